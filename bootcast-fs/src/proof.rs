//! Proof of received bytes by a content id. docs/PROTOCOL.md, "Manifest".
//!
//! The server lists the hashes of all leaves. The lists themselves are proven by the content id, so
//! that neither the server, nor the network, nor another member can put a wrong byte before whoever
//! knows the id. A leaf that arrived wrong is fetched again over HTTP.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bootcast_proto::api::Kind;
use bootcast_proto::manifest::{ContentId, ContentTree, LEAF_BYTES, SEGMENT_LEAVES, Value};
use bootcast_proto::{Etag, RemotePath};

use crate::io::{Control, ControlError, SegmentRange};
use crate::receiver::FetchError;

/// Number of segments whose leaf values are requested at a time: 128 KiB, for 64 MiB of the file.
const SEGMENTS_AT_A_TIME: u64 = 16;

/// Minimum pause before a failed request is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Maximum number of attempts at a manifest whose file changes meanwhile.
const MAX_TRIES: u32 = 4;

/// Why bytes cannot be proven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The file changed on the server.
    #[error("the file changed on the server")]
    Changed,
    /// The content is not the expected one.
    #[error("{0}")]
    Content(String),
    /// There was no answer and no progress for this time.
    #[error("the server sent no proof of its bytes for {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// The server refused, failed, or sent a manifest that makes no sense.
    #[error("{0}")]
    Refused(String),
    /// A request failed for good.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Hashes of one version of a file, proven by its content id.
#[derive(Debug)]
pub struct Proof {
    control: Control,
    path: RemotePath,
    etag: Etag,
    tree: ContentTree,
    segments: Vec<Value>,
    /// Proven leaf values of the segments that were needed so far: 0.2 % of the file at most.
    leaves: Mutex<BTreeMap<u64, Arc<[Value]>>>,
    /// Number of leaves that arrived wrong.
    replaced: AtomicU64,
    /// Longest time without an answer; `None` for no limit.
    timeout: Option<Duration>,
}

impl Proof {
    /// Fetches the segment list and checks it against `id`. Waits for as long as the server hashes
    /// the file. Calls `busy` with the reason of a server that puts the request off.
    pub async fn begin(
        control: &Control,
        path: &RemotePath,
        id: ContentId,
        timeout: Option<Duration>,
        busy: impl Fn(&str),
    ) -> Result<Arc<Self>, ProofError> {
        for _ in 0..MAX_TRIES {
            let attributes = persist(timeout, || control.attributes(path), &busy).await?;
            let Some(etag) = attributes.etag.filter(|_| attributes.kind == Kind::File) else {
                return Err(ProofError::Refused("not a regular file".to_owned()));
            };
            let list = persist(timeout, || control.manifest(path, None), &busy).await?;
            if list.etag != etag {
                continue;
            }
            let tree = ContentTree::new(attributes.size);
            if list.values.len() as u64 != tree.segments() {
                let text = "the server's manifest does not fit the size of its file".to_owned();
                return Err(ProofError::Refused(text));
            }
            let found = tree.content_id(&list.values);
            if found != id {
                return Err(ProofError::Content(format!("the server has the content {found}")));
            }
            return Ok(Arc::new(Self {
                control: control.clone(),
                path: path.clone(),
                etag,
                tree,
                segments: list.values,
                leaves: Mutex::default(),
                replaced: AtomicU64::new(0),
                timeout,
            }));
        }
        Err(ProofError::Changed)
    }

    /// Returns the version of the file.
    pub fn etag(&self) -> &Etag {
        &self.etag
    }

    /// Returns the division of the file into leaves and segments.
    pub fn tree(&self) -> &ContentTree {
        &self.tree
    }

    /// Returns the number of leaves that arrived wrong and were fetched again.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Extends a range to whole leaves of the file. An empty range stays empty.
    pub fn whole_leaves(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.tree.size());
        if bytes.start >= end {
            return end..end;
        }
        let start = bytes.start / LEAF_BYTES * LEAF_BYTES;
        start..end.next_multiple_of(LEAF_BYTES).min(self.tree.size())
    }

    /// Checks the whole leaves that begin at `offset`, and replaces wrong ones by what the server
    /// sends over HTTP. Returns the ranges of the file that were replaced.
    ///
    /// # Panics
    ///
    /// If the bytes do not begin and end with a leaf of the file.
    pub async fn correct(
        &self,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<Vec<Range<u64>>, ProofError> {
        assert!(bytes.is_empty() || offset.is_multiple_of(LEAF_BYTES), "{offset} is in a leaf");
        let mut replaced = Vec::new();
        let (mut rest, mut leaf) = (bytes, offset / LEAF_BYTES);
        while !rest.is_empty() {
            let range = self.tree.leaf(leaf);
            assert!(!range.is_empty(), "bytes behind the end of the file");
            let (own, others) = rest.split_at_mut(index(range.end - range.start));
            if let Some(right) = self.replacement(leaf, own).await? {
                own.copy_from_slice(&right);
                replaced.push(range);
            }
            (rest, leaf) = (others, leaf + 1);
        }
        Ok(replaced)
    }

    /// Returns the right bytes of a leaf if `bytes` are wrong, fetched from the server.
    async fn replacement(&self, leaf: u64, bytes: &[u8]) -> Result<Option<Vec<u8>>, ProofError> {
        let value = self.value_of(leaf).await?;
        if self.tree.leaf_value(leaf, bytes) == value {
            return Ok(None);
        }
        let range = self.tree.leaf(leaf);
        self.replaced.fetch_add(1, Ordering::Relaxed);
        let fetched = Box::pin(self.fetch(&range)).await?;
        if self.tree.leaf_value(leaf, &fetched) == value {
            return Ok(Some(fetched));
        }
        let Range { start, end } = range;
        Err(ProofError::Content(format!("the server sends other bytes at {start}-{}", end - 1)))
    }

    /// Returns the value of a leaf.
    async fn value_of(&self, leaf: u64) -> Result<Value, ProofError> {
        let segment = leaf / SEGMENT_LEAVES;
        let known = self.lock_leaves().get(&segment).cloned();
        let values = match known {
            Some(values) => values,
            None => Box::pin(self.request_values(segment)).await?,
        };
        Ok(values[index(leaf - self.tree.leaves_of(segment).start)])
    }

    /// Requests the leaf values of a segment and of some after it, and checks them.
    async fn request_values(&self, segment: u64) -> Result<Arc<[Value]>, ProofError> {
        let end = self.tree.segments().min(segment + SEGMENTS_AT_A_TIME);
        let wanted = SegmentRange { first: segment, last: end - 1 };
        let request = || self.control.manifest(&self.path, Some(wanted));
        let list = persist(self.timeout, request, |_| {}).await?;
        if list.etag != self.etag {
            return Err(ProofError::Changed);
        }
        let mut rest = &list.values[..];
        for segment in segment..end {
            let leaves = self.tree.leaves_of(segment);
            let Some((own, others)) = rest.split_at_checked(index(leaves.end - leaves.start))
            else {
                break;
            };
            if self.tree.segment_value(segment, own) != self.segments[index(segment)] {
                let text = "the server's lists of hashes contradict each other".to_owned();
                return Err(ProofError::Content(text));
            }
            self.lock_leaves().insert(segment, own.into());
            rest = others;
        }
        let own = self.lock_leaves().get(&segment).cloned();
        own.ok_or_else(|| ProofError::Refused("the server's list of hashes is cut off".to_owned()))
    }

    /// Fetches bytes of the version over HTTP.
    async fn fetch(&self, range: &Range<u64>) -> Result<Vec<u8>, ProofError> {
        let len = index(range.end - range.start);
        let attempts = async {
            loop {
                let pause = match self.control.file_range(&self.path, range, &self.etag).await {
                    Ok(mut response) => {
                        let mut bytes = Vec::new();
                        while let Ok(Some(piece)) = response.chunk().await {
                            bytes.extend_from_slice(&piece[..piece.len().min(len - bytes.len())]);
                        }
                        if bytes.len() == len {
                            return Ok(bytes);
                        }
                        RETRY_PAUSE
                    }
                    Err(FetchError::Retry { after }) => after.max(RETRY_PAUSE),
                    Err(FetchError::Changed) => return Err(ProofError::Changed),
                    Err(FetchError::Refused(text) | FetchError::Garbled(text)) => {
                        return Err(ProofError::Refused(text));
                    }
                    Err(FetchError::Store) => unreachable!("a request stores nothing"),
                    Err(FetchError::Unreadable(bytes)) => {
                        let (start, last) = (bytes.start, bytes.end.saturating_sub(1));
                        let text = format!("the server cannot read bytes {start}-{last}");
                        return Err(ProofError::Refused(text));
                    }
                };
                tokio::time::sleep(pause).await;
            }
        };
        within(self.timeout, attempts).await?
    }

    fn lock_leaves(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<[Value]>>> {
        // A panic cannot leave the map half changed.
        crate::panics::lock(&self.leaves)
    }
}

/// Returns the hash of a file as the server computes it, and the version of the file. Waits for as
/// long as the server makes progress.
pub async fn content_id(
    control: &Control,
    path: &RemotePath,
    timeout: Option<Duration>,
) -> Result<(Etag, ContentId), ProofError> {
    let request = || control.manifest(path, None);
    let list = persist(timeout, request, |_| {}).await?;
    Ok((list.etag, list.id))
}

/// Repeats a request until it is answered, or until there was no progress for `timeout`. Calls
/// `busy` with the first reason of a server that puts the request off. A reason that changes is
/// progress: a server that hashes a file says how far it is.
async fn persist<T, F: Future<Output = Result<T, ControlError>>>(
    timeout: Option<Duration>,
    request: impl Fn() -> F,
    busy: impl Fn(&str),
) -> Result<T, ProofError> {
    let mut last: Option<String> = None;
    loop {
        let attempts = async {
            loop {
                match request().await {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(ControlError::Refused { status: 503, message, retry_after }) => {
                        let pause = retry_after.max(RETRY_PAUSE);
                        if last.as_ref() != Some(&message) {
                            if last.is_none() {
                                busy(&message);
                            }
                            last = Some(message);
                            tokio::time::sleep(pause).await;
                            return Ok(None);
                        }
                        tokio::time::sleep(pause).await;
                    }
                    Err(error) if error.is_temporary() => {
                        tokio::time::sleep(error.retry_after().max(RETRY_PAUSE)).await;
                    }
                    Err(error) => return Err(ProofError::from(error)),
                }
            }
        };
        if let Some(answer) = within(timeout, attempts).await?? {
            return Ok(answer);
        }
    }
}

async fn within<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = T>,
) -> Result<T, ProofError> {
    match timeout {
        Some(limit) => {
            tokio::time::timeout(limit, work).await.map_err(|_| ProofError::TimedOut(limit))
        }
        None => Ok(work.await),
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the bytes or values in memory")
}
