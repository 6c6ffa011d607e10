//! Spool of repair symbols, stored until their block can be rebuilt.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bootcast_proto::BlockIndex;
use bootcast_proto::fec::{REPAIRS, RepairIndex};

use super::Cache;

/// Repair symbols of one version. Each has a fixed offset in a sparse file, which is created when
/// the first symbol is written.
#[derive(Debug)]
pub struct Symbols {
    cache: Cache,
    /// Name of the file, by which it counts in the budget of the cache; `None` for a nameless one.
    name: Option<PathBuf>,
    file: Mutex<Option<Arc<File>>>,
}

impl Symbols {
    pub(super) fn new(cache: Cache) -> Self {
        Self { cache, name: None, file: Mutex::default() }
    }

    /// Keeps the symbols in the directory of their object. Those that an earlier use left are
    /// removed.
    pub(super) fn keep_in(&mut self, object: &Path) {
        let name = object.join("symbols");
        let _ = fs::remove_file(&name);
        self.name = self.cache.room().is_some().then_some(name);
    }

    /// Returns the file, which is created at the first call.
    fn file(&self) -> io::Result<Arc<File>> {
        let mut file = crate::panics::lock(&self.file);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let created = Arc::new(self.create()?);
        if let Some(room) = self.cache.room() {
            room.count(&created);
        }
        Ok(file.insert(created).clone())
    }

    fn create(&self) -> io::Result<File> {
        let Some(name) = &self.name else { return self.cache.nameless() };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(name)
    }

    /// Stores a symbol. All symbols must have the same length, until [`Self::clear`].
    pub fn write(&self, block: BlockIndex, number: RepairIndex, symbol: &[u8]) -> io::Result<()> {
        debug_assert!(!symbol.is_empty(), "a symbol is as long as a page");
        let at = offset(block, number, symbol.len());
        let taken = self.cache.room().map(|room| room.take(at, symbol.len() as u64));
        if matches!(taken, Some(None)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = self.file()?;
        file.write_all_at(symbol, at)
    }

    /// Reads a stored symbol into `symbol`, which must have its length.
    pub fn read(
        &self,
        block: BlockIndex,
        number: RepairIndex,
        symbol: &mut [u8],
    ) -> io::Result<()> {
        let file = crate::panics::lock(&self.file).clone();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(symbol, offset(block, number, symbol.len()))
    }

    /// Drops all symbols.
    pub fn clear(&self) {
        let file = crate::panics::lock(&self.file).take();
        if let (Some(_), Some(name)) = (file, &self.name) {
            // A file that stays is removed by the next use of the object.
            let _ = fs::remove_file(name);
        }
    }
}

impl Drop for Symbols {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the offset of a symbol in the file. Each block has room for [`REPAIRS`] symbols.
fn offset(block: BlockIndex, number: RepairIndex, len: usize) -> u64 {
    let index = u64::from(block.0) * REPAIRS as u64 + number.get() as u64;
    index * len as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_can_be_read_until_all_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        for cache in [Cache::Memory, Cache::Disk(dir.path().to_path_buf())] {
            let symbols = Symbols::new(cache);
            let number = |number| RepairIndex::new(number).unwrap();
            symbols.write(BlockIndex(3), number(127), b"last").unwrap();
            symbols.write(BlockIndex(4), number(0), b"next").unwrap();
            let mut read = [0; 4];
            symbols.read(BlockIndex(3), number(127), &mut read).unwrap();
            assert_eq!(&read, b"last");
            symbols.clear();
            assert!(symbols.read(BlockIndex(3), number(127), &mut read).is_err());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
