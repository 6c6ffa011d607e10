//! Pinned files: a mount shows them with one content only. docs/SEMANTICS.md, "Pinned files".

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Etag, RemotePath};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{error, warn};

use super::{Fs, FsError, shutting_down};
use crate::log_limit;
use crate::object::{Object, Unread, Waiter};
use crate::proof::{Proof, ProofError};
use crate::receiver::Failure;

/// Time between two looks whether a reader that waits for a check still lives.
const ABANDONED_PERIOD: Duration = Duration::from_millis(250);

/// The files of a mount and their contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    contents: BTreeMap<RemotePath, ContentId>,
}

/// Error: a line is not one that `b3sum` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a hash, two spaces and a path, as b3sum prints them")]
pub struct PinsError {
    /// Number of the line, from 1.
    line: usize,
}

impl Pins {
    /// Parses the output of `b3sum`, run in the mounted directory `root`.
    pub fn parse(text: &[u8], root: &RemotePath) -> Result<Self, PinsError> {
        let lines = text.split(|byte| *byte == b'\n').zip(1..).filter(|(it, _)| !it.is_empty());
        let pins = lines.map(|(text, line)| parse_line(text, root).ok_or(PinsError { line }));
        let contents = pins.collect::<Result<_, _>>()?;
        Ok(Self { contents })
    }

    /// Pins one file.
    pub fn single(path: RemotePath, id: ContentId) -> Self {
        Self { contents: BTreeMap::from([(path, id)]) }
    }

    /// Returns the content that a file must have; `None` if the file must not be opened.
    pub(super) fn get(&self, path: &RemotePath) -> Option<ContentId> {
        self.contents.get(path).copied()
    }
}

/// Parses `HASH  PATH`. If the line begins with a backslash, backslashes and line breaks in the
/// path are escaped as `\\` and `\n`.
fn parse_line(line: &[u8], root: &RemotePath) -> Option<(RemotePath, ContentId)> {
    let (line, is_escaped) = line.strip_prefix(b"\\").map_or((line, false), |rest| (rest, true));
    let (hash, rest) = line.split_at_checked(64)?;
    let id = str::from_utf8(hash).ok()?.parse().ok()?;
    let name = rest.strip_prefix(b"  ")?;
    let name = if is_escaped { unescape(name)? } else { name.to_vec() };
    let mut path = root.clone();
    for part in name.split(|byte| *byte == b'/').filter(|part| *part != b".") {
        path = path.join(part).ok()?;
    }
    (path != *root).then_some((path, id))
}

fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'n' => b'\n',
                _ => return None,
            },
            byte => *byte,
        });
    }
    Some(plain)
}

/// An open file whose bytes are checked before a reader gets them.
#[derive(Clone, Debug)]
pub(super) struct PinnedFile {
    proof: Arc<Proof>,
    /// Runs the checks.
    runtime: Handle,
    /// Whether the mount ends.
    stopping: watch::Receiver<bool>,
}

impl Fs {
    /// Returns what proves a pinned file of this version and size; `None` if the mount has no pins.
    /// Waits for the server, as calls of this mount wait. Fails if the proof has another size: the
    /// kernel would show a part of the content as the whole file.
    pub(super) async fn pinned(
        &self,
        path: &RemotePath,
        version: Option<(&Etag, u64)>,
    ) -> Result<Option<PinnedFile>, FsError> {
        let Some(pins) = &self.config.pins else { return Ok(None) };
        let (Some(id), Some(version)) = (pins.get(path), version) else {
            return Err(FsError::Access);
        };
        let proves = |proof: &Arc<Proof>| (proof.etag(), proof.tree().size()) == version;
        let (runtime, mut stopping) = (Handle::current(), self.stopping.subscribe());
        let known = self.proofs.get(path).map(|proof| proof.clone());
        if let Some(proof) = known.filter(proves) {
            return Ok(Some(PinnedFile { proof, runtime, stopping }));
        }
        let proof = tokio::select! {
            proof = Proof::begin(&self.control, path, id, self.config.wait_limit, |_| {}) => proof,
            _ = stopping.wait_for(|stopping| *stopping) => return Err(shutting_down()),
        };
        let proof = proof.map_err(|failure| {
            if let Some(more) = log_limit::allow("not pinned content", &failure) {
                error!(%path, pinned = %id, "cannot open a pinned file: {failure}{more}");
            }
            FsError::from(failure)
        })?;
        if !proves(&proof) {
            return Err(FsError::Stale);
        }
        self.proofs.insert(path.clone(), proof.clone());
        Ok(Some(PinnedFile { proof, runtime, stopping }))
    }
}

impl PinnedFile {
    /// Returns the bytes to read for `bytes`, and a waiter that checks them before it answers
    /// `waiter`.
    pub(super) fn check(
        self,
        bytes: &Range<u64>,
        object: Arc<Object>,
        waiter: Box<dyn Waiter>,
    ) -> (Range<u64>, Box<dyn Waiter>) {
        let size = self.proof.tree().size();
        let wanted = bytes.start.min(size)..bytes.end.min(size);
        let whole = self.proof.whole_leaves(&wanted);
        let check = Check { file: self, object, whole: whole.clone(), wanted, waiter };
        (whole, Box::new(check))
    }

    /// Checks whole leaves from `offset` on. Wrong ones are replaced in `bytes` and in the cache.
    async fn correct(
        &self,
        object: &Arc<Object>,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), ProofError> {
        for wrong in self.proof.correct(offset, bytes).await? {
            let path = &object.key().path;
            let (first, last) = (wrong.start, wrong.end - 1);
            if let Some(more) = log_limit::allow("wrong bytes", path) {
                warn!(
                    %path, first, last,
                    "bytes that arrived, or were cached, are wrong: fetched over HTTP{more}"
                );
            }
            let right = bytes[index(wrong.start - offset)..index(wrong.end - offset)].to_vec();
            let object = object.clone();
            let write = move || object.store().write_run(&mut [IoSlice::new(&right)], first);
            // If the cache cannot be written, the next read fetches the leaf again.
            let _ = tokio::task::spawn_blocking(write).await;
        }
        Ok(())
    }
}

/// A reader whose bytes are checked first.
struct Check {
    file: PinnedFile,
    object: Arc<Object>,
    /// Bytes of whole leaves that contain the wanted ones.
    whole: Range<u64>,
    wanted: Range<u64>,
    waiter: Box<dyn Waiter>,
}

impl Waiter for Check {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        match outcome {
            // The lists of hashes may have to be requested.
            Ok(bytes) if bytes.len() as u64 == self.whole.end - self.whole.start => {
                let bytes = bytes.to_vec();
                self.file.runtime.clone().spawn(self.prove(bytes));
            }
            Ok(_) => self.waiter.answer(Err(Failure::Stale.into())),
            Err(error) => self.waiter.answer(Err(error)),
        }
    }

    fn is_abandoned(&self) -> bool {
        self.waiter.is_abandoned()
    }
}

impl Check {
    async fn prove(self: Box<Self>, mut bytes: Vec<u8>) {
        let Self { file, object, whole, wanted, waiter } = *self;
        let mut stopping = file.stopping.clone();
        let outcome = {
            let mut correcting = pin!(file.correct(&object, whole.start, &mut bytes));
            loop {
                // The server may be away: the reader must be able to die, and the mount to end.
                tokio::select! {
                    outcome = &mut correcting => break outcome,
                    () = tokio::time::sleep(ABANDONED_PERIOD) => {
                        if waiter.is_abandoned() {
                            return waiter.answer(Err(Unread::Interrupted));
                        }
                    }
                    _ = stopping.wait_for(|stopping| *stopping) => {
                        return waiter.answer(Err(Unread::ShutDown));
                    }
                }
            }
        };
        match outcome {
            Ok(()) => {
                let (start, end) = (wanted.start - whole.start, wanted.end - whole.start);
                waiter.answer(Ok(&bytes[index(start)..index(end)]));
            }
            Err(ProofError::Changed) => waiter.answer(Err(Failure::Stale.into())),
            Err(failure) => {
                let path = &object.key().path;
                if let Some(more) = log_limit::allow("unproven bytes", &failure) {
                    error!(%path, "bytes of a pinned file cannot be proven: {failure}{more}");
                }
                waiter.answer(Err(Unread::Unproven(failure.to_string())));
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the bytes of a read")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

    fn parse(text: &str) -> Result<Vec<String>, PinsError> {
        let pins = Pins::parse(text.as_bytes(), &RemotePath::decode("images").unwrap())?;
        assert!(pins.contents.values().all(|id| id.to_string() == HASH));
        Ok(pins
            .contents
            .keys()
            .map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap())
            .collect())
    }

    #[test]
    fn the_output_of_b3sum_names_files_below_the_mounted_directory() {
        let text = format!("{HASH}  root.img\n\n{HASH}  ./a/b c\n\\{HASH}  x\\\\y\\nz\n");
        assert_eq!(parse(&text).unwrap(), ["images/a/b c", "images/root.img", "images/x\\y\nz"]);
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_line_that_b3sum_does_not_print_is_named() {
        for line in [
            "root.img".to_owned(),
            format!("{HASH} root.img"),
            format!("{HASH}  "),
            format!("{HASH}  ../root.img"),
            format!("{HASH}  /root.img"),
            format!("\\{HASH}  a\\b"),
            HASH.replace('6', "g") + "  root.img",
        ] {
            assert_eq!(
                parse(&format!("{HASH}  a\n{line}\n")),
                Err(PinsError { line: 2 }),
                "{line}"
            );
        }
    }
}
