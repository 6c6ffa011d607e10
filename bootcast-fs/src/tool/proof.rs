//! Proof of fetched bytes by a content id, for `bootcast get --b3`.
//!
//! The server lists the hashes of all leaves (docs/PROTOCOL.md, "Manifest"). The lists themselves
//! are proven by the content id, so that neither the server, nor the network, nor another member
//! can put a wrong byte into the output. A leaf that arrives wrong is fetched again over HTTP.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bootcast_proto::Etag;
use bootcast_proto::api::Kind;
use bootcast_proto::manifest::{ContentId, ContentTree, SEGMENT_LEAVES, Value};
use tokio::sync::Mutex;

use super::error::ToolError;
use super::output::{Sink, blocking};
use super::progress::Progress;
use super::stall::StallClock;
use super::url::Target;
use crate::io::{ControlError, SegmentRange};
use crate::receiver::FetchError;

/// Number of segments whose leaf values are requested at a time: 512 KiB, for 256 MiB of the file.
const SEGMENTS_AT_A_TIME: u64 = 64;
/// Longest time without progress of a server that hashes a file for `bootcast ls`.
const HASH_TIMEOUT: Duration = Duration::from_secs(60);
/// Minimum pause before a failed request is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of attempts at a manifest whose file changes meanwhile.
const MAX_TRIES: u32 = 4;

/// Hashes of one version of a file, proven by its content id.
#[derive(Debug)]
pub(super) struct Proof {
    target: Target,
    etag: Etag,
    tree: ContentTree,
    segments: Vec<Value>,
    /// Leaf values that were requested last.
    leaves: Mutex<LeafValues>,
    /// Number of leaves that arrived wrong.
    replaced: AtomicU64,
    timeout: Option<Duration>,
}

/// Values of consecutive leaves.
#[derive(Debug, Default)]
struct LeafValues {
    /// Index of the first leaf.
    first: u64,
    values: Vec<Value>,
}

impl LeafValues {
    fn get(&self, leaf: u64) -> Option<Value> {
        let index = usize::try_from(leaf.checked_sub(self.first)?).ok()?;
        self.values.get(index).copied()
    }
}

impl Proof {
    /// Fetches the segment list and checks it against `id`. Waits for as long as the server hashes
    /// the file, but gives up after `timeout` without an answer.
    pub(super) async fn begin(
        target: &Target,
        id: ContentId,
        timeout: Option<Duration>,
        progress: &Progress,
    ) -> Result<Arc<Self>, ToolError> {
        let clock = StallClock::new(timeout);
        for _ in 0..MAX_TRIES {
            let attributes = || target.control.attributes(&target.path);
            let attributes = persist(&clock, attributes, |_| {}).await?;
            let Some(etag) = attributes.etag.filter(|_| attributes.kind == Kind::File) else {
                return Err(ToolError::Refused("not a regular file".to_owned()));
            };
            let request = || target.control.manifest(&target.path, None);
            let list = persist(&clock, request, |reason| progress.notify(reason)).await?;
            if list.etag != etag {
                continue;
            }
            let tree = ContentTree::new(attributes.size);
            if list.values.len() as u64 != tree.segments() {
                return Err(ToolError::Refused("its manifest does not fit its size".to_owned()));
            }
            let found = tree.content_id(&list.values);
            if found != id {
                return Err(ToolError::Content(format!("the server has the content {found}")));
            }
            return Ok(Arc::new(Self {
                target: target.clone(),
                etag,
                tree,
                segments: list.values,
                leaves: Mutex::default(),
                replaced: AtomicU64::new(0),
                timeout,
            }));
        }
        Err(ToolError::Changed)
    }

    /// Returns the size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Returns the number of leaves that arrived wrong and were fetched again.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Checks all bytes of a file, and replaces wrong ones.
    pub(super) async fn check_file(&self, file: File, sink: &Sink) -> Result<(), ToolError> {
        let file = Arc::new(file);
        for segment in 0..self.tree.segments() {
            let bytes = self.read(&file, self.tree.segment(segment), sink).await?;
            let start = self.tree.segment(segment).start;
            for leaf in self.tree.leaves_of(segment) {
                let range = self.tree.leaf(leaf);
                let part = &bytes[index(range.start - start)..index(range.end - start)];
                if let Some(right) = self.replacement(leaf, part).await? {
                    let file = file.clone();
                    let written = blocking(move || file.write_all_at(&right, range.start));
                    written.await.map_err(|error| sink.write_error(&error))?;
                }
            }
        }
        Ok(())
    }

    async fn read(
        &self,
        file: &Arc<File>,
        range: Range<u64>,
        sink: &Sink,
    ) -> Result<Vec<u8>, ToolError> {
        let file = file.clone();
        let read = blocking(move || {
            let mut bytes = vec![0; index(range.end - range.start)];
            file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
        });
        read.await.map_err(|error| sink.write_error(&error))
    }

    /// Returns the right bytes of a leaf if `bytes` are wrong, fetched from the server.
    async fn replacement(&self, leaf: u64, bytes: &[u8]) -> Result<Option<Vec<u8>>, ToolError> {
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
        Err(ToolError::Content(format!("the server sends other bytes at {start}-{}", end - 1)))
    }

    /// Returns the value of a leaf.
    async fn value_of(&self, leaf: u64) -> Result<Value, ToolError> {
        let mut known = self.leaves.lock().await;
        if known.get(leaf).is_none() {
            *known = Box::pin(self.request_values(leaf)).await?;
        }
        known.get(leaf).ok_or_else(|| {
            ToolError::Refused("the server's manifest is shorter than its file".to_owned())
        })
    }

    /// Requests the list of values that a leaf is in, and checks it.
    async fn request_values(&self, leaf: u64) -> Result<LeafValues, ToolError> {
        let first = leaf / SEGMENT_LEAVES;
        let end = self.tree.segments().min(first + SEGMENTS_AT_A_TIME);
        let wanted = SegmentRange { first, last: end - 1 };
        let clock = StallClock::new(self.timeout);
        let request = || self.target.control.manifest(&self.target.path, Some(wanted));
        let list = persist(&clock, request, |_| {}).await?;
        if list.etag != self.etag {
            return Err(ToolError::Changed);
        }
        let mut rest = &list.values[..];
        for segment in first..end {
            let leaves = self.tree.leaves_of(segment);
            let count = index(leaves.end - leaves.start);
            let Some((own, others)) = rest.split_at_checked(count) else { break };
            if self.tree.segment_value(segment, own) != self.segments[index(segment)] {
                let text = "the server's manifest contradicts itself".to_owned();
                return Err(ToolError::Content(text));
            }
            rest = others;
        }
        let mut values = list.values.clone();
        values.truncate(list.values.len() - rest.len());
        Ok(LeafValues { first: first * SEGMENT_LEAVES, values })
    }

    /// Fetches bytes of the version over HTTP.
    async fn fetch(&self, range: &Range<u64>) -> Result<Vec<u8>, ToolError> {
        let clock = StallClock::new(self.timeout);
        loop {
            let answer = self.target.control.file_range(&self.target.path, range, &self.etag);
            let pause = match waited(&clock, answer).await? {
                Ok(mut response) => {
                    let mut bytes = Vec::new();
                    let len = index(range.end - range.start);
                    while let Ok(Some(piece)) = waited(&clock, response.chunk()).await? {
                        bytes.extend_from_slice(&piece[..piece.len().min(len - bytes.len())]);
                    }
                    if bytes.len() == len {
                        return Ok(bytes);
                    }
                    RETRY_PAUSE
                }
                Err(FetchError::Retry { after }) => after.max(RETRY_PAUSE),
                Err(FetchError::Changed) => return Err(ToolError::Changed),
                Err(FetchError::Refused(text) | FetchError::Garbled(text)) => {
                    return Err(ToolError::Refused(text));
                }
                Err(FetchError::Store) => unreachable!("a request stores nothing"),
                Err(FetchError::Unreadable(bytes)) => {
                    let Range { start, end } = bytes;
                    let text = format!("the server cannot read bytes {start}-{}", end - 1);
                    return Err(ToolError::Refused(text));
                }
            };
            waited(&clock, tokio::time::sleep(pause)).await?;
        }
    }
}

/// Returns the hash of a file as the server computes it. Waits for as long as it makes progress.
pub(super) async fn content_id(target: &Target) -> Result<ContentId, ToolError> {
    let clock = StallClock::new(Some(HASH_TIMEOUT));
    let request = || target.control.manifest(&target.path, None);
    Ok(persist(&clock, request, |_| {}).await?.id)
}

/// Lets bytes through in order, leaf by leaf, once they are proven.
#[derive(Debug)]
pub(super) struct Gate {
    proof: Arc<Proof>,
    /// Index of the leaf that `held` begins.
    leaf: u64,
    /// First bytes of that leaf.
    held: Vec<u8>,
}

impl Gate {
    /// Creates a gate before the first byte of the file.
    pub(super) fn new(proof: Arc<Proof>) -> Self {
        Self { proof, leaf: 0, held: Vec::new() }
    }

    /// Takes the next bytes of the file. Returns those that are proven now.
    pub(super) async fn pass(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ToolError> {
        self.held.extend_from_slice(bytes);
        let mut proven = Vec::new();
        loop {
            let range = self.proof.tree.leaf(self.leaf);
            let len = index(range.end - range.start);
            if len == 0 || self.held.len() < len {
                return Ok(proven);
            }
            let right = self.proof.replacement(self.leaf, &self.held[..len]).await?;
            match right {
                Some(right) => proven.extend_from_slice(&right),
                None => proven.extend_from_slice(&self.held[..len]),
            }
            self.held.drain(..len);
            self.leaf += 1;
        }
    }
}

/// Repeats a request until it is answered, or until the clock has expired. Calls `busy` with the
/// first reason of a server that puts the request off. A reason that changes is progress: a server
/// that hashes a file says how far it is.
async fn persist<T, F: Future<Output = Result<T, ControlError>>>(
    clock: &StallClock,
    request: impl Fn() -> F,
    busy: impl Fn(&str),
) -> Result<T, ToolError> {
    let mut last = None;
    loop {
        let pause = match waited(clock, request()).await? {
            Ok(answer) => return Ok(answer),
            Err(ControlError::Refused { status: 503, message, retry_after }) => {
                if last.is_none() {
                    busy(&message);
                }
                if last.as_ref() != Some(&message) {
                    clock.restart();
                    last = Some(message);
                }
                retry_after.max(RETRY_PAUSE)
            }
            Err(error) if error.is_temporary() => RETRY_PAUSE,
            Err(error) => return Err(error.into()),
        };
        waited(clock, tokio::time::sleep(pause)).await?;
    }
}

async fn waited<T>(clock: &StallClock, work: impl Future<Output = T>) -> Result<T, ToolError> {
    clock.within(work).await.map_err(|waited| {
        let waited = humantime::format_duration(waited);
        ToolError::TimedOut(format!("the server sent no proof of its bytes for {waited}"))
    })
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the bytes or values in memory")
}
