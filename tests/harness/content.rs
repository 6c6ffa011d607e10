//! Files with content that can be told apart: seeded, fast to make, and their digests.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// BLAKE3 of some content.
pub type Digest = blake3::Hash;

const CHUNK: usize = 1 << 20;

/// Bytes in `n` MiB.
pub const fn mib(n: u64) -> u64 {
    n << 20
}

/// What a file holds: `size` bytes that follow from `seed`.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Bytes in the file.
    pub size: u64,
    /// Another seed, other bytes from the first on.
    pub seed: u64,
}

impl Content {
    /// `size` bytes that follow from `seed`.
    pub const fn new(size: u64, seed: u64) -> Self {
        Self { size, seed }
    }

    /// All of it.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).expect("a generator does not fail");
        bytes
    }

    /// Writes it to a new file at `path`, or over the one that is there.
    pub fn write_to(self, path: &Path) {
        let written = File::create(path).and_then(|file| {
            let mut file = BufWriter::with_capacity(CHUNK, file);
            io::copy(&mut self.reader(), &mut file)?;
            file.flush()
        });
        written.unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
    }

    /// Its digest.
    pub fn digest(self) -> Digest {
        digest_from(self.reader()).expect("a generator does not fail")
    }

    fn reader(self) -> impl Read {
        let stream = blake3::Hasher::new().update(&self.seed.to_le_bytes()).finalize_xof();
        stream.take(self.size)
    }
}

/// A file in the served directory, and what it must read as.
#[derive(Clone, Debug)]
pub struct Image {
    /// Relative to the served directory.
    pub name: PathBuf,
    /// On the server's disk.
    pub path: PathBuf,
    /// Bytes in the file.
    pub size: u64,
    /// Of the whole file.
    pub digest: Digest,
}

/// Digest of the file at `path`, read from begin to end.
#[track_caller]
pub fn digest_of(path: impl AsRef<Path>) -> Digest {
    let path = path.as_ref();
    try_digest_of(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

/// As [`digest_of`]; the error is the caller's to judge.
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
    fn equal_seeds_give_equal_bytes_and_others_differ_at_once() {
        assert_eq!(Content::new(100, 7).bytes(), Content::new(100, 7).bytes());
        assert_ne!(Content::new(8, 7).bytes(), Content::new(8, 8).bytes());
        assert_eq!(Content::new(100, 7).bytes()[..9], Content::new(9, 7).bytes());
    }

    #[test]
    fn the_digest_of_a_file_is_that_of_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let content = Content::new(3_000_000, 1);
        content.write_to(&path);
        assert_eq!(digest_of(&path), content.digest());
    }
}
