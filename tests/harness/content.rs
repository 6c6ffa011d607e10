//! Reproducible file content, fast to generate, with digests.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// BLAKE3 hash of a file's content.
pub type Digest = blake3::Hash;

/// Bytes of a write or a read.
const CHUNK: usize = 1 << 20;

/// Number of bytes in `n` MiB.
pub const fn mib(n: u64) -> u64 {
    n << 20
}

/// Content of a file: `size` bytes generated from `seed`.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// Seed of the content. Contents of different seeds differ within the first bytes.
    pub seed: u64,
}

impl Content {
    /// Content of `size` bytes generated from `seed`.
    pub const fn new(size: u64, seed: u64) -> Self {
        Self { size, seed }
    }

    /// Returns all bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).expect("a generator does not fail");
        bytes
    }

    /// Writes the content to the file `path`, which it creates or replaces.
    pub fn write_to(self, path: &Path) {
        let written = File::create(path).and_then(|file| {
            let mut file = BufWriter::with_capacity(CHUNK, file);
            io::copy(&mut self.reader(), &mut file)?;
            file.flush()
        });
        written.unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    }

    /// Digest of the content.
    pub fn digest(self) -> Digest {
        digest_from(self.reader()).expect("a generator does not fail")
    }

    fn reader(self) -> impl Read {
        let stream = blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof();
        stream.take(self.size)
    }
}

/// A file in the served directory, with its expected content.
#[derive(Clone, Debug)]
pub struct Image {
    /// Path relative to the served directory.
    pub name: PathBuf,
    /// Path on this machine.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the whole file.
    pub digest: Digest,
}

/// Returns the digest of the file at `path`, read from beginning to end.
#[track_caller]
pub fn digest_of(path: impl AsRef<Path>) -> Digest {
    let path = path.as_ref();
    try_digest_of(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

/// Like [`digest_of`], but returns the error.
pub fn try_digest_of(path: &Path) -> io::Result<Digest> {
    digest_from(File::open(path)?)
}

fn digest_from(mut reader: impl Read) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&chunk[..len]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_and_other_seeds_other_bytes() {
        assert_eq!(Content::new(100, 7).bytes(), Content::new(100, 7).bytes());
        assert_ne!(Content::new(8, 7).bytes(), Content::new(8, 8).bytes());
        assert_eq!(Content::new(100, 7).bytes()[..9], Content::new(9, 7).bytes());
    }

    #[test]
    fn the_digest_of_a_written_file_equals_that_of_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let content = Content::new(3_000_000, 1);
        content.write_to(&path);
        assert_eq!(digest_of(&path), content.digest());
    }
}
