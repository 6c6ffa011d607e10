//! Proven outputs of `bootcast get --b3`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bootcast_proto::manifest::LEAF_BYTES;

use super::error::ToolError;
use super::output::{Sink, blocking};
use crate::proof::Proof;

/// Checks all bytes of a file, and replaces wrong ones.
pub(super) async fn check_file(proof: &Proof, file: File, sink: &Sink) -> Result<(), ToolError> {
    let file = Arc::new(file);
    for segment in 0..proof.tree().segments() {
        let Range { start, end } = proof.tree().segment(segment);
        let source = file.clone();
        let read = blocking(move || {
            let mut bytes = vec![0; index(end - start)];
            source.read_exact_at(&mut bytes, start).map(|()| bytes)
        });
        let mut bytes = read.await.map_err(|error| sink.write_error(&error))?;
        for wrong in proof.correct(start, &mut bytes).await? {
            let target = file.clone();
            let right = bytes[index(wrong.start - start)..index(wrong.end - start)].to_vec();
            let write = blocking(move || target.write_all_at(&right, wrong.start));
            write.await.map_err(|error| sink.write_error(&error))?;
        }
    }
    Ok(())
}

/// Lets bytes through in order, leaf by leaf, once they are proven.
#[derive(Debug)]
pub(super) struct Gate {
    proof: Arc<Proof>,
    /// Offset of the first held byte, where a leaf begins.
    offset: u64,
    /// Bytes that arrived but are not proven: less than a leaf between two calls.
    held: Vec<u8>,
}

impl Gate {
    /// Creates a gate before the first byte of the file.
    pub(super) fn new(proof: Arc<Proof>) -> Self {
        Self { proof, offset: 0, held: Vec::new() }
    }

    /// Takes the next bytes of the file. Returns those that are proven now.
    pub(super) async fn pass(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ToolError> {
        self.held.extend_from_slice(bytes);
        let (end, size) = (self.offset + self.held.len() as u64, self.proof.tree().size());
        if end > size {
            return Err(ToolError::Content(format!("more than the {size} bytes of it arrived")));
        }
        let whole = if end == size { end } else { end - end % LEAF_BYTES };
        let mut proven: Vec<u8> = self.held.drain(..index(whole - self.offset)).collect();
        self.proof.correct(self.offset, &mut proven).await?;
        self.offset = whole;
        Ok(proven)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("at most the bytes in memory")
}
