//! The FUSE adapter: turns kernel requests into calls of [`Fs`], and results into replies.
//!
//! Session threads never wait. Calls that need the server run on the runtime and take their reply
//! object along. A read that must wait is parked together with its reply object.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, PoisonError};

use bootcast_proto::api::Kind;
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::fs::{Attr, DirEntry, Fs, FsError, OpenFile};
use crate::io::Caller;
use crate::object::{Unread, Waiter};

/// Most background requests of the kernel. Parked reads count among them; with the default of 16
/// they would block all others.
const MAX_BACKGROUND: u16 = u16::MAX;

/// Adapter between the kernel and the file system.
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    uid: u32,
    gid: u32,
    opens: Arc<OpenModes>,
}

impl Adapter {
    /// Creates the adapter. All files belong to `uid` and `gid`.
    pub fn new(fs: Arc<Fs>, runtime: Handle, uid: u32, gid: u32) -> Self {
        Self { fs, runtime, uid, gid, opens: Arc::default() }
    }

    /// Runs a call that may wait. Replies when it is done or its caller dies.
    fn spawn<T, R>(
        &self,
        request: &Request,
        reply: R,
        call: impl Future<Output = Result<T, FsError>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Refuse + Send + 'static,
    {
        let caller = Caller(request.pid());
        self.runtime.spawn(async move {
            let outcome = tokio::select! {
                outcome = call => outcome,
                () = caller.dies() => Err(FsError::Interrupted),
            };
            match outcome {
                Ok(value) => answer(reply, value),
                Err(error) => reply.refuse(&error),
            }
        });
    }

    fn file_attr(&self, attr: &Attr) -> FileAttr {
        file_attr(attr, self.uid, self.gid)
    }
}

fn file_attr(attr: &Attr, uid: u32, gid: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.mtime,
        crtime: attr.mtime,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        // A socket is the only special file whose open fails without a side effect.
        Kind::Other => FileType::Socket,
    }
}

/// A reply that can carry an errno.
trait Refuse {
    fn refuse(self, error: &FsError);
}

macro_rules! refuse {
    ($($reply:ty),*) => {$(
        impl Refuse for $reply {
            fn refuse(self, error: &FsError) {
                debug!(%error, "refused");
                self.error(Errno::from_i32(error.errno()));
            }
        }
    )*};
}
refuse!(ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen);

/// A kernel read that waits for its pages.
struct ReadWaiter {
    reply: ReplyData,
    caller: Caller,
}

impl Waiter for ReadWaiter {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        match outcome {
            // Short only at the end of the file: elsewhere the kernel would cut the file there.
            Ok(bytes) => self.reply.data(bytes),
            Err(error) => self.reply.refuse(&error.into()),
        }
    }

    fn is_abandoned(&self) -> bool {
        self.caller.is_dying()
    }
}

/// How the open files of each inode are read. The kernel allows one mode at a time: through
/// requests and its page cache, or directly from a backing file (fs/fuse/iomode.c).
#[derive(Debug, Default)]
struct OpenModes {
    inodes: Mutex<HashMap<INodeNo, OpenMode>>,
}

#[derive(Debug)]
enum OpenMode {
    Cached { opens: usize },
    Passthrough { opens: usize, backing: Arc<BackingId> },
}

impl OpenModes {
    /// Answers an open. Uses passthrough if the file is complete and nobody reads it through
    /// requests.
    fn answer(&self, ino: INodeNo, file: &OpenFile, reply: ReplyOpen) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = FileHandle(file.handle);
        if !inodes.contains_key(&ino)
            && file.complete
            && let Ok(backing) = reply.open_backing(file.object.store())
        {
            inodes.insert(ino, OpenMode::Passthrough { opens: 0, backing: Arc::new(backing) });
        }
        match inodes.entry(ino).or_insert(OpenMode::Cached { opens: 0 }) {
            OpenMode::Cached { opens } => {
                *opens += 1;
                // Without KEEP_CACHE a second open would wait for the pages that a parked read
                // holds.
                reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            OpenMode::Passthrough { opens, backing } => {
                *opens += 1;
                reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, backing);
            }
        }
    }

    fn release(&self, ino: INodeNo) {
        let mut inodes = self.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mode) = inodes.get_mut(&ino) else { return };
        let (OpenMode::Cached { opens } | OpenMode::Passthrough { opens, .. }) = mode;
        *opens -= 1;
        if *opens == 0 {
            inodes.remove(&ino);
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for set in [KernelConfig::set_max_background, KernelConfig::set_congestion_threshold] {
            if let Err(limit) = set(config, MAX_BACKGROUND) {
                warn!(limit, "the kernel takes fewer waiting reads");
            }
        }
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_PASSTHROUGH,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                debug!(?capability, "not offered by this kernel");
            }
        }
        if config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH) {
            config.set_max_stack_depth(1).map_err(|_| io::ErrorKind::InvalidInput)?;
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let (uid, gid) = (self.uid, self.gid);
        self.spawn(
            request,
            reply,
            async move { fs.lookup(parent.0, &name).await },
            move |reply, attr| reply.entry(&attr.ttl, &file_attr(&attr, uid, gid), Generation(0)),
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.fs.clone();
        let (uid, gid) = (self.uid, self.gid);
        self.spawn(request, reply, async move { fs.getattr(ino.0).await }, move |reply, attr| {
            reply.attr(&attr.ttl, &file_attr(&attr, uid, gid));
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.refuse(&error),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (fs, opens) = (self.fs.clone(), self.opens.clone());
        self.spawn(request, reply, async move { fs.open(ino.0).await }, move |reply, file| {
            opens.answer(ino, &file, reply);
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let waiter = Box::new(ReadWaiter { reply, caller: Caller(request.pid()) });
        self.fs.read(handle.0, offset, size, waiter);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.opens.release(ino);
        self.fs.release(handle.0);
        reply.ok();
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let fs = self.fs.clone();
        self.spawn(request, reply, async move { fs.opendir(ino.0).await }, move |reply, handle| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.fs.readdir(handle.0) {
            Ok(entries) => entries,
            Err(error) => return reply.refuse(&error),
        };
        for (next, entry) in from_offset(&entries, offset) {
            let name = OsString::from_vec(entry.name.clone());
            if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.fs.readdir(handle.0) {
            Ok(entries) => entries,
            Err(error) => return reply.refuse(&error),
        };
        for (next, entry) in from_offset(&entries, offset) {
            let name = OsString::from_vec(entry.name.clone());
            let remembered = self.fs.remember_entry(entry);
            let Some(attr) = remembered.clone().or_else(|| self.fs.dot_attr(entry.ino)) else {
                continue;
            };
            let file_attr = self.file_attr(&attr);
            if reply.add(INodeNo(attr.ino), next, &name, &attr.ttl, &file_attr, Generation(0)) {
                // The entry did not fit, so the kernel holds no reference to it.
                if let Some(attr) = remembered {
                    self.fs.forget(attr.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // The server's capacity is unknown. Programs read 0 of 0 blocks as "unknown".
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}

/// Entries after `offset`, each with the offset of the next one.
fn from_offset(entries: &[DirEntry], offset: u64) -> impl Iterator<Item = (u64, &DirEntry)> {
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    (1u64..).zip(entries.iter()).skip(skip)
}
