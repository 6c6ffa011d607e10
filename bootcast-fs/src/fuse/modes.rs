//! Modes in which the kernel reads the open files of each inode.
//!
//! At any time the kernel allows one mode for an inode: cached, or passthrough to one backing file
//! (fs/fuse/iomode.c in Linux). Direct I/O is possible together with either.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::journal::Mode;

/// Open files of each inode. `B` identifies a backing file to the kernel.
#[derive(Debug)]
pub(super) struct OpenModes<B> {
    /// Cached and passthrough opens by inode number.
    inodes: HashMap<u64, InodeOpens<B>>,
    /// Handles of direct opens, whose inode has the backing file of another object.
    direct: HashSet<u64>,
}

/// Cached or passthrough opens of one inode.
#[derive(Debug)]
struct InodeOpens<B> {
    handles: HashSet<u64>,
    /// Object and its backing file in passthrough mode; `None` in cached mode. The object is `None`
    /// if the previous process had it, and this one could not open it again.
    backing: Option<(Option<u64>, Arc<B>)>,
}

impl<B> Default for OpenModes<B> {
    fn default() -> Self {
        Self { inodes: HashMap::new(), direct: HashSet::new() }
    }
}

impl<B> OpenModes<B> {
    /// Records an open and returns its mode. `register` registers the object's backing file with
    /// the kernel, or returns `None` if it has none. It is called for the first open of an inode
    /// only.
    ///
    /// The backing file of one object must never be read for another object of the same inode. An
    /// object that failed is replaced by a new object with another file.
    pub(super) fn open(
        &mut self,
        ino: u64,
        handle: u64,
        object: u64,
        register: impl FnOnce() -> Option<B>,
    ) -> Mode<Arc<B>> {
        let open = self.inodes.entry(ino).or_insert_with(|| InodeOpens {
            handles: HashSet::new(),
            backing: register().map(|backing| (Some(object), Arc::new(backing))),
        });
        match &open.backing {
            Some((owner, _)) if *owner != Some(object) => {
                self.direct.insert(handle);
                Mode::Direct
            }
            Some((_, backing)) => {
                open.handles.insert(handle);
                Mode::Passthrough(backing.clone())
            }
            None => {
                open.handles.insert(handle);
                Mode::Cached
            }
        }
    }

    /// Records an open of the previous process, which the kernel reads in this mode. `restore`
    /// takes over a backing file by its number. It is called for the first open of an inode only.
    /// `object` is `None` if the file is lost.
    pub(super) fn restore(
        &mut self,
        ino: u64,
        handle: u64,
        object: Option<u64>,
        mode: Mode,
        restore: impl FnOnce(u32) -> B,
    ) {
        let backing = match mode {
            Mode::Direct => {
                self.direct.insert(handle);
                return;
            }
            Mode::Cached => None,
            Mode::Passthrough(id) => Some(id),
        };
        let open = self.inodes.entry(ino).or_insert_with(|| InodeOpens {
            handles: HashSet::new(),
            backing: backing.map(|id| (object, Arc::new(restore(id)))),
        });
        open.handles.insert(handle);
    }

    /// Records the end of an open. Ignores an unknown handle: the previous process may have
    /// recorded its end, too.
    pub(super) fn release(&mut self, ino: u64, handle: u64) {
        if self.direct.remove(&handle) {
            return;
        }
        let Some(open) = self.inodes.get_mut(&ino) else { return };
        open.handles.remove(&handle);
        if open.handles.is_empty() {
            self.inodes.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: u64 = 7;

    #[test]
    fn all_opens_of_an_inode_have_the_mode_of_the_first() {
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
    fn opens_of_the_previous_process_decide_the_mode_of_the_next_ones() {
        let mut modes = OpenModes::default();
        modes.restore(INO, 1, Some(1), Mode::Passthrough(8), |id| id);
        modes.restore(INO, 2, Some(1), Mode::Passthrough(8), |_| unreachable!("registered once"));
        modes.restore(INO, 3, Some(1), Mode::Direct, |_| unreachable!("direct"));
        modes.restore(INO + 1, 4, Some(2), Mode::Cached, |_| unreachable!("cached"));
        assert_eq!(modes.open(INO, 5, 1, || Some(9)), Mode::Passthrough(Arc::new(8)));
        assert_eq!(modes.open(INO + 1, 6, 2, || Some(9)), Mode::Cached);
        modes.release(INO, 99);
        for (ino, handle) in [(INO, 1), (INO, 2), (INO, 3), (INO, 5), (INO + 1, 4), (INO + 1, 6)] {
            modes.release(ino, handle);
        }
        assert!(modes.inodes.is_empty() && modes.direct.is_empty());
    }

    #[test]
    fn a_lost_open_keeps_its_inode_in_the_mode_that_the_kernel_knows() {
        let mut modes = OpenModes::default();
        modes.restore(INO, 1, None, Mode::Passthrough(8), |id| id);
        assert_eq!(modes.open(INO, 2, 1, || Some(9)), Mode::Direct);
        modes.release(INO, 1);
        assert_eq!(modes.open(INO, 3, 1, || Some(9)), Mode::Passthrough(Arc::new(9)));
    }

    #[test]
    fn a_new_object_is_not_read_from_the_backing_file_of_the_previous_one() {
        let mut modes = OpenModes::default();
        assert_eq!(modes.open(INO, 1, 1, || Some("lost")), Mode::Passthrough(Arc::new("lost")));
        assert_eq!(modes.open(INO, 2, 2, || Some("new")), Mode::Direct);
        modes.release(INO, 2);
        assert_eq!(modes.open(INO, 3, 2, || Some("new")), Mode::Direct);
        modes.release(INO, 1);
        // The direct open of handle 3 does not prevent passthrough.
        assert_eq!(modes.open(INO, 4, 2, || Some("new")), Mode::Passthrough(Arc::new("new")));
        modes.release(INO, 3);
        modes.release(INO, 4);
        assert!(modes.inodes.is_empty() && modes.direct.is_empty());
    }
}
