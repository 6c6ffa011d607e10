//! How the open files of each inode are read.
//!
//! The kernel allows one way for an inode at a time: by requests to this program and its page
//! cache, or by itself from one backing file (fs/fuse/iomode.c). Direct I/O goes beside either.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How an open is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode<B> {
    /// The kernel asks this program and keeps what it got.
    Cached,
    /// The kernel reads this file.
    Passthrough(Arc<B>),
    /// The kernel asks this program for every read.
    Direct,
}

/// The open files of each inode. `B` is what the kernel knows a backing file by.
#[derive(Debug)]
pub(super) struct OpenModes<B> {
    inodes: HashMap<u64, Open<B>>,
    /// Handles that are read directly, because their inode is read from another object's file.
    direct: HashSet<u64>,
}

/// The opens of one inode that are not direct.
#[derive(Debug)]
struct Open<B> {
    count: usize,
    /// The backing file and its object; `None` where the kernel asks this program.
    backing: Option<(u64, Arc<B>)>,
}

impl<B> Default for OpenModes<B> {
    fn default() -> Self {
        Self { inodes: HashMap::new(), direct: HashSet::new() }
    }
}

impl<B> OpenModes<B> {
    /// Notes an open. `register` makes the backing file known to the kernel if the object allows
    /// for one; it is called for the first open of an inode only.
    ///
    /// The store of one object must never be read for another of the same inode: what follows an
    /// object that failed is a new object with a store of its own.
    pub(super) fn open(
        &mut self,
        ino: u64,
        handle: u64,
        object: u64,
        register: impl FnOnce() -> Option<B>,
    ) -> Mode<B> {
        let open = self.inodes.entry(ino).or_insert_with(|| Open {
            count: 0,
            backing: register().map(|backing| (object, Arc::new(backing))),
        });
        match &open.backing {
            Some((owner, _)) if *owner != object => {
                self.direct.insert(handle);
                Mode::Direct
            }
            Some((_, backing)) => {
                open.count += 1;
                Mode::Passthrough(backing.clone())
            }
            None => {
                open.count += 1;
                Mode::Cached
            }
        }
    }

    /// Notes the end of an open.
    pub(super) fn release(&mut self, ino: u64, handle: u64) {
        if self.direct.remove(&handle) {
            return;
        }
        let Some(open) = self.inodes.get_mut(&ino) else { return };
        open.count -= 1;
        if open.count == 0 {
            self.inodes.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: u64 = 7;

    #[test]
    fn all_opens_of_an_inode_are_read_in_the_way_of_the_first() {
        let mut modes = OpenModes::default();
        assert_eq!(modes.open(INO, 1, 1, || None::<&str>), Mode::Cached);
        assert_eq!(modes.open(INO, 2, 1, || Some("file")), Mode::Cached);
        assert_eq!(modes.open(INO + 1, 3, 2, || Some("b")), Mode::Passthrough(Arc::new("b")));
        modes.release(INO, 1);
        assert_eq!(modes.open(INO, 4, 1, || Some("file")), Mode::Cached, "handle 2 is open");
        modes.release(INO, 2);
        modes.release(INO, 4);
        assert_eq!(modes.open(INO, 5, 1, || Some("file")), Mode::Passthrough(Arc::new("file")));
        assert_eq!(modes.open(INO, 6, 1, || None), Mode::Passthrough(Arc::new("file")));
    }

    #[test]
    fn a_new_object_is_never_read_from_the_file_of_the_one_before() {
        let mut modes = OpenModes::default();
        assert_eq!(modes.open(INO, 1, 1, || Some("lost")), Mode::Passthrough(Arc::new("lost")));
        assert_eq!(modes.open(INO, 2, 2, || Some("new")), Mode::Direct);
        modes.release(INO, 2);
        assert_eq!(modes.open(INO, 3, 2, || Some("new")), Mode::Direct);
        modes.release(INO, 1);
        // Direct opens stand in nobody's way.
        assert_eq!(modes.open(INO, 4, 2, || Some("new")), Mode::Passthrough(Arc::new("new")));
        modes.release(INO, 3);
        modes.release(INO, 4);
        assert!(modes.inodes.is_empty() && modes.direct.is_empty());
    }
}
