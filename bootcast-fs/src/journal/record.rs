//! Records of a journal, and the state that they lead to.

use std::collections::BTreeMap;
use std::ffi::OsString;

use bootcast_proto::api::Attributes;
use serde::{Deserialize, Serialize};

/// One change of what the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The mount began. This is the first record.
    Mount(MountRecord),
    /// The kernel gets `lookups` references to an inode.
    Inode(Inode, u64),
    /// The kernel dropped references to an inode.
    Forget {
        /// Inode number.
        ino: u64,
        /// Number of references.
        lookups: u64,
    },
    /// A file was opened.
    Open {
        /// Handle of the open.
        handle: u64,
        /// Inode number.
        ino: u64,
        /// Mode in which the kernel reads it.
        mode: Mode,
        /// Number of the kernel's request.
        request: u64,
    },
    /// An open file was released.
    Release {
        /// Handle of the open.
        handle: u64,
    },
    /// A directory was opened.
    Opendir {
        /// Handle of the open.
        handle: u64,
        /// Inode number.
        ino: u64,
    },
    /// The kernel gets a part of a listing, and will ask for the rest by its position.
    Listing {
        /// Handle of the open directory.
        handle: u64,
        /// All entries, in the order in which the kernel gets them.
        entries: Vec<Listed>,
    },
    /// An open directory was released.
    Releasedir {
        /// Handle of the open.
        handle: u64,
    },
}

/// Command line of the mount, as typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Source of the mount.
    pub source: OsString,
    /// Mount point.
    pub mountpoint: OsString,
    /// Lists of mount options.
    pub options: Vec<OsString>,
    /// Whether unknown options are ignored.
    pub is_sloppy: bool,
    /// Directory that relative paths start from.
    pub directory: OsString,
}

/// Inode that the kernel has references to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Number.
    pub ino: u64,
    /// Path on the server, percent-encoded.
    pub path: String,
    /// Attributes, with the version of a file.
    pub attributes: Attributes,
}

/// Mode in which the kernel reads an open file. `P` is a backing file, which the journal has by its
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode<P = u32> {
    /// Through the page cache.
    Cached,
    /// By a request for every read.
    Direct,
    /// From this backing file, without requests.
    Passthrough(P),
}

impl<P> Mode<P> {
    /// Returns the same mode with `by` applied to its backing file.
    pub fn map<Q>(&self, by: impl FnOnce(&P) -> Q) -> Mode<Q> {
        match self {
            Self::Cached => Mode::Cached,
            Self::Direct => Mode::Direct,
            Self::Passthrough(backing) => Mode::Passthrough(by(backing)),
        }
    }
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Inode number.
    pub ino: u64,
    /// Mode in which the kernel reads it.
    pub mode: Mode,
    /// Number of the kernel's request. If that comes again, the kernel does not know this open.
    pub request: u64,
}

/// Entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Name, percent-encoded.
    pub name: String,
    /// Inode number.
    pub ino: u64,
    /// Attributes; `None` for `.` and `..`.
    pub attributes: Option<Attributes>,
}

/// An open directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dir {
    /// Inode number.
    pub ino: u64,
    /// Listing of which the kernel has a part.
    pub listing: Option<Vec<Listed>>,
}

/// Inodes, open files and open directories that the kernel refers to, and the mount they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Command line of the mount.
    pub mount: Option<MountRecord>,
    /// Inodes and the number of references, by inode number.
    pub inodes: BTreeMap<u64, (Inode, u64)>,
    /// Open files, by handle.
    pub opens: BTreeMap<u64, Open>,
    /// Open directories, by handle.
    pub dirs: BTreeMap<u64, Dir>,
    /// The largest handle that was ever given; 0 if there was none. The kernel may still send a
    /// request with a handle that was released meanwhile, so no number is given twice.
    pub last_handle: u64,
}

impl State {
    /// Applies a record to the state.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Mount(mount) => self.mount = Some(mount),
            Record::Inode(inode, lookups) => {
                let known = self.inodes.get(&inode.ino).map_or(0, |(_, lookups)| *lookups);
                self.inodes.insert(inode.ino, (inode, known + lookups));
            }
            Record::Forget { ino, lookups } => {
                if let Some((_, known)) = self.inodes.get_mut(&ino) {
                    *known = known.saturating_sub(lookups);
                    if *known == 0 {
                        self.inodes.remove(&ino);
                    }
                }
            }
            Record::Open { handle, ino, mode, request } => {
                self.last_handle = self.last_handle.max(handle);
                self.opens.insert(handle, Open { ino, mode, request });
            }
            Record::Release { handle } => {
                self.opens.remove(&handle);
            }
            Record::Opendir { handle, ino } => {
                self.last_handle = self.last_handle.max(handle);
                self.dirs.insert(handle, Dir { ino, listing: None });
            }
            Record::Listing { handle, entries } => {
                if let Some(dir) = self.dirs.get_mut(&handle) {
                    dir.listing = Some(entries);
                }
            }
            Record::Releasedir { handle } => {
                self.dirs.remove(&handle);
            }
        }
    }

    /// Returns records that lead to this state.
    pub(super) fn into_records(self) -> Vec<Record> {
        let is_open = |handle| self.opens.contains_key(handle) || self.dirs.contains_key(handle);
        let is_released = self.last_handle > 0 && !is_open(&self.last_handle);
        let mount = self.mount.into_iter().map(Record::Mount);
        let inodes = self.inodes.into_values().map(|(inode, count)| Record::Inode(inode, count));
        let opens = self.opens.into_iter().map(|(handle, Open { ino, mode, request })| {
            Record::Open { handle, ino, mode, request }
        });
        let dirs = self.dirs.into_iter().flat_map(|(handle, Dir { ino, listing })| {
            let listing = listing.map(|entries| Record::Listing { handle, entries });
            std::iter::once(Record::Opendir { handle, ino }).chain(listing)
        });
        // Older programs know no record of a number alone.
        let handle = self.last_handle;
        let last = [Record::Opendir { handle, ino: 1 }, Record::Releasedir { handle }];
        let last = is_released.then_some(last).into_iter().flatten();
        mount.chain(inodes).chain(opens).chain(dirs).chain(last).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bootcast_proto::Etag;
    use bootcast_proto::api::Kind;

    use super::*;

    pub(in crate::journal) fn mount_record() -> Record {
        Record::Mount(MountRecord {
            source: "head:/".into(),
            mountpoint: "/mnt".into(),
            options: vec!["ro".into()],
            is_sloppy: false,
            directory: "/".into(),
        })
    }

    /// Returns a record of one more reference to a file.
    pub(in crate::journal) fn file_record(ino: u64, path: &str) -> Record {
        let attributes = Attributes {
            kind: Kind::File,
            size: 5,
            mode: 0o644,
            mtime: 0,
            mtime_ns: 0,
            etag: Some(Etag::new("v1").unwrap()),
            target: None,
            allocated: None,
        };
        Record::Inode(Inode { ino, path: path.into(), attributes }, 1)
    }

    #[test]
    fn the_records_of_a_state_lead_to_the_same_state() {
        let mut state = State::default();
        let records = [
            mount_record(),
            file_record(7, "a"),
            file_record(7, "a"),
            file_record(8, "b"),
            Record::Open { handle: 4, ino: 7, mode: Mode::Passthrough(2), request: 5 },
            Record::Opendir { handle: 8, ino: 1 },
            Record::Opendir { handle: 9, ino: 1 },
            Record::Listing {
                handle: 9,
                entries: vec![Listed { name: "a%20b".into(), ino: 7, attributes: None }],
            },
        ];
        for record in records {
            state.apply(record);
        }
        assert_eq!(state.inodes[&7].1, 2, "references are counted");
        assert_eq!(state.last_handle, 9);
        let mut again = State::default();
        for record in state.clone().into_records() {
            again.apply(record);
        }
        assert_eq!(again, state);
    }

    #[test]
    fn a_handle_that_was_released_is_still_the_last_one() {
        let mut state = State::default();
        for record in [
            Record::Opendir { handle: 3, ino: 1 },
            Record::Open { handle: 4, ino: 7, mode: Mode::Cached, request: 5 },
            Record::Release { handle: 4 },
        ] {
            state.apply(record);
        }
        assert_eq!(state.last_handle, 4);
        let mut again = State::default();
        for record in state.clone().into_records() {
            again.apply(record);
        }
        assert_eq!(again, state);
    }

    #[test]
    fn an_inode_goes_with_its_last_reference_and_an_open_with_its_release() {
        let mut state = State::default();
        for record in [
            file_record(7, "a"),
            file_record(7, "a"),
            Record::Open { handle: 1, ino: 7, mode: Mode::Cached, request: 5 },
            Record::Forget { ino: 7, lookups: 1 },
        ] {
            state.apply(record);
        }
        assert_eq!(state.inodes[&7].1, 1);
        state.apply(Record::Release { handle: 1 });
        state.apply(Record::Forget { ino: 7, lookups: 1 });
        assert_eq!(state, State { last_handle: 1, ..State::default() });
    }
}
