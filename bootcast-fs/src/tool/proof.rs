//! Proven outputs of `bootcast get --b3`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::ToolError;
use super::output::{Sink, blocking};
use crate::proof::Proof;

/// Checks all bytes of a file, and replaces wrong ones.
pub(super) async fn check_file(proof: &Proof, file: File, sink: &Sink) -> Result<(), ToolError> {
    let (file, tree) = (Arc::new(file), proof.tree());
    for segment in 0..tree.segments() {
        let bytes = read(&file, tree.segment(segment), sink).await?;
        let start = tree.segment(segment).start;
        for leaf in tree.leaves_of(segment) {
            let range = tree.leaf(leaf);
            let part = &bytes[index(range.start - start)..index(range.end - start)];
            if let Some(right) = proof.replacement(leaf, part).await? {
                let file = file.clone();
                let written = blocking(move || file.write_all_at(&right, range.start));
                written.await.map_err(|error| sink.write_error(&error))?;
            }
        }
    }
    Ok(())
}

async fn read(file: &Arc<File>, range: Range<u64>, sink: &Sink) -> Result<Vec<u8>, ToolError> {
    let file = file.clone();
    let read = blocking(move || {
        let mut bytes = vec![0; index(range.end - range.start)];
        file.read_exact_at(&mut bytes, range.start).map(|()| bytes)
    });
    read.await.map_err(|error| sink.write_error(&error))
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
            let range = self.proof.tree().leaf(self.leaf);
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

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the bytes in memory")
}
