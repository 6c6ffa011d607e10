//! FUSE adapter: turns kernel requests into calls of [`Fs`], and results into replies.
//!
//! The threads that take kernel requests never wait. Calls that need the server run on the tokio
//! runtime, together with their reply object. A read that must wait is parked together with its
//! reply object.

mod backing;
mod modes;
mod opens;
mod reply;
pub mod session;
mod statfs;
mod sys;
mod xattr;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bootcast_proto::api::Kind;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::fs::{Attr, CONTENT_ID_ATTRIBUTE, DirEntry, FileAttribute, Fs, FsError, ROOT};
use crate::io::Caller;
use crate::object::Seek;
use crate::status::{STATUS_ATTRIBUTE, STATUS_MAX};
use backing::Backing;
use modes::OpenModes;
use reply::{ErrorReply, ReadWaiter, leave_unanswered};

/// Maximum number of background requests that the kernel has in flight, and the number from which
/// it counts the mount as congested. Parked reads are background requests: with the FUSE library's
/// default of 16, that many parked reads would block all other ones.
const MAX_BACKGROUND: u16 = u16::MAX;

/// Adapter between the kernel and [`Fs`].
#[derive(Debug)]
pub struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    /// Owner of all files.
    uid: u32,
    /// Group of all files.
    gid: u32,
    /// User who mounted.
    mounter: u32,
    /// Whether the kernel checks modes, so that not every user may see all names.
    enforces_modes: bool,
    /// The connection to the kernel.
    device: Arc<OwnedFd>,
    /// Whether the kernel may read more cache files itself.
    may_pass_through: bool,
    /// Modes of the open files.
    opens: Arc<Mutex<OpenModes<Backing>>>,
    /// Inode and handle of the opens that the previous process may not have answered, by request.
    unanswered: Mutex<HashMap<u64, (u64, u64)>>,
    /// Whether the kernel can send requests again, set by INIT.
    can_resend: Arc<AtomicBool>,
}

impl Adapter {
    /// Creates the adapter for the kernel on the other end of `device`. All files belong to `uid`
    /// and `gid`.
    pub fn new(fs: Arc<Fs>, runtime: Handle, device: OwnedFd, uid: u32, gid: u32) -> Self {
        Self {
            fs,
            runtime,
            uid,
            gid,
            mounter: rustix::process::geteuid().as_raw(),
            enforces_modes: false,
            device: Arc::new(device),
            may_pass_through: false,
            opens: Arc::default(),
            unanswered: Mutex::default(),
            can_resend: Arc::default(),
        }
    }

    /// Sets whether the kernel checks modes; if so, only root and the user who mounted see in the
    /// status which files are used.
    #[must_use]
    pub fn with_modes_enforced(self, enforces_modes: bool) -> Self {
        Self { enforces_modes, ..self }
    }

    /// Sets whether the kernel reads complete files itself where it can. That takes one level of
    /// the two that the kernel allows for file systems on top of each other.
    #[must_use]
    pub fn with_passthrough(self, may_pass_through: bool) -> Self {
        Self { may_pass_through, ..self }
    }

    /// Returns a flag that tells, after INIT, whether the kernel can send requests again that were
    /// not answered (Linux 6.9).
    pub fn can_resend(&self) -> Arc<AtomicBool> {
        self.can_resend.clone()
    }

    /// Runs `call`, which may wait, on the runtime. Passes its result to `answer`, or replies with
    /// an error if it fails or its caller dies.
    fn spawn<T, R>(
        &self,
        request: &Request,
        reply: R,
        call: impl Future<Output = Result<T, FsError>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
        R: ErrorReply + Send + 'static,
    {
        let (caller, fs) = (Caller(request.pid()), self.fs.clone());
        self.runtime.spawn(async move {
            let outcome = tokio::select! {
                outcome = call => outcome,
                () = caller.dies() => Err(FsError::Interrupted),
            };
            match outcome {
                Ok(value) => answer(reply, value),
                Err(_) if fs.is_handing_over() => leave_unanswered(reply),
                Err(error) => reply.send_error(&error),
            }
        });
    }
}

impl Adapter {
    /// Answers a request for an attribute that tells what the mount does.
    fn answer_status(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let fs = self.fs.clone();
        let is_status = ino.0 == ROOT && name.as_bytes() == STATUS_ATTRIBUTE.as_bytes();
        let attribute = FileAttribute::named(name.as_bytes());
        if !is_status && attribute.is_none() {
            return reply.send_error(&FsError::NoAttribute);
        }
        let shows_files = !self.enforces_modes || [0, self.mounter].contains(&request.uid());
        let value = move || match attribute {
            Some(attribute) => fs.file_attribute(ino.0, attribute).map(String::into_bytes),
            None => Ok(fs.status(shows_files).to_bounded_json()),
        };
        // Looks at the cache, and takes locks under which others wait for the disk.
        let value = async {
            let value = tokio::task::spawn_blocking(value).await;
            value.unwrap_or_else(|error| Err(FsError::Io(error.to_string())))
        };
        self.spawn(request, reply, value, move |reply, value| {
            // The status may be longer at the next call.
            let is_query = is_status && size == 0;
            let room = STATUS_MAX - value.len();
            let value = if is_query { [value, vec![0; room]].concat() } else { value };
            xattr::answer(reply, size, &value);
        });
    }
}

fn file_attr(attr: &Attr, uid: u32, gid: u32) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
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
        blksize: statfs::BLOCK,
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

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for set in [KernelConfig::set_max_background, KernelConfig::set_congestion_threshold] {
            if let Err(limit) = set(config, MAX_BACKGROUND) {
                warn!(limit, "the kernel allows fewer waiting reads");
            }
        }
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Reads of one descriptor with O_DIRECT and native AIO are in flight at the same time.
            InitFlags::FUSE_ASYNC_DIO,
            // NFS servers find inodes that the kernel forgot.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        let passthrough = self.may_pass_through.then_some(InitFlags::FUSE_PASSTHROUGH);
        for capability in wanted.into_iter().chain(passthrough) {
            if config.add_capabilities(capability).is_err() {
                debug!(?capability, "this kernel lacks a FUSE capability");
            }
        }
        let is_capable = config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH);
        if self.may_pass_through && is_capable {
            config.set_max_stack_depth(1).map_err(|_| io::ErrorKind::InvalidInput)?;
        }
        let can_resend = config.capabilities().contains(InitFlags::FUSE_HAS_RESEND);
        self.can_resend.store(can_resend, Ordering::Release);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let (uid, gid) = (self.uid, self.gid);
        self.spawn(
            request,
            reply,
            async move {
                match fs.lookup(parent.0, &name).await {
                    Err(FsError::NotFound) => Ok(fs.negative_attr()),
                    found => found,
                }
            },
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

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        let target = async move { fs.readlink(ino.0) };
        self.spawn(request, reply, target, |reply, target| reply.data(&target));
    }

    fn open(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.end_unanswered_open(request.unique());
        let number = opens::number(request.unique());
        let (fs, opens) = (self.fs.clone(), self.opens.clone());
        let passthrough = self.may_pass_through.then(|| self.device.clone());
        let opened = {
            let fs = fs.clone();
            async move { fs.open(ino.0).await }
        };
        self.spawn(request, reply, opened, move |reply, file| {
            let passthrough = passthrough.as_ref();
            opens::reply(&fs, passthrough, &opens, (number, ino), &file, reply);
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
        let waiter =
            Box::new(ReadWaiter { reply, caller: Caller(request.pid()), fs: self.fs.clone() });
        self.fs.read(handle.0, offset, size, waiter);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel handles all others itself.
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = u64::try_from(offset).map_err(|_| FsError::NoData);
        let found = found.and_then(|offset| self.fs.seek(handle.0, offset, seek));
        match found.map(i64::try_from) {
            Ok(Ok(position)) => reply.offset(position),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(error) => reply.send_error(&error),
        }
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
        self.end_open(ino.0, handle.0);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.opendir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.send_error(&error),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let fs = self.fs.clone();
        let listing = async move { fs.readdir(handle.0).await };
        let fs = self.fs.clone();
        self.spawn(request, reply, listing, move |mut reply, listed| {
            for (next, entry) in from_offset(&listed.entries, offset) {
                let name = OsStr::from_bytes(&entry.name);
                if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), name) {
                    fs.record_listing(handle.0, &listed.entries);
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (fs, uid, gid) = (self.fs.clone(), self.uid, self.gid);
        let listing = {
            let fs = fs.clone();
            async move { fs.readdir(handle.0).await }
        };
        self.spawn(request, reply, listing, move |mut reply, listed| {
            for (next, entry) in from_offset(&listed.entries, offset) {
                let name = OsStr::from_bytes(&entry.name);
                let referenced = fs.remember_entry(&listed, entry);
                let Some(attr) = referenced.clone().or_else(|| fs.dot_attr(entry.ino)) else {
                    continue;
                };
                let file_attr = file_attr(&attr, uid, gid);
                let (ino, generation) = (INodeNo(attr.ino), Generation(0));
                if reply.add(ino, next, name, &attr.ttl, &file_attr, generation) {
                    // The entry did not fit into the reply, so the kernel took no reference.
                    if let Some(attr) = referenced {
                        fs.forget(attr.ino, 1);
                    }
                    fs.record_listing(handle.0, &listed.entries);
                    break;
                }
            }
            reply.ok();
        });
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

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let fs = self.fs.clone();
        // Programs look for labels and ACLs of each file that they list.
        if name.as_bytes() != CONTENT_ID_ATTRIBUTE {
            return self.answer_status(request, ino, name, size, reply);
        }
        let id = async move { fs.content_id(ino.0).await };
        self.spawn(request, reply, id, move |reply, id| {
            xattr::answer(reply, size, id.to_string().as_bytes());
        });
    }

    fn listxattr(&self, _request: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        // Programs that copy files would request the value of each listed attribute.
        xattr::answer(reply, size, b"");
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _argument: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Many programs ask whether a file that they open is a terminal. The library's default
        // would log each time.
        reply.error(Errno::ENOTTY);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        statfs::answer(reply, self.fs.space());
        // The next answer is then the server's newest one. `df` asks for attributes before.
        let fs = self.fs.clone();
        self.runtime.spawn(async move { fs.getattr(ROOT).await });
    }
}

/// Returns the entries from `offset` on, each with the offset of the entry after it.
fn from_offset(entries: &[DirEntry], offset: u64) -> impl Iterator<Item = (u64, &DirEntry)> {
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    (1u64..).zip(entries.iter()).skip(skip)
}
