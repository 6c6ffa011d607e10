//! Mounting and unmounting: `/dev/fuse`, mount(2), umount2(2), and fusermount3 for users other than
//! root.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::{MountRequest, mount_table};

/// Device whose open file is the connection to the kernel.
const DEVICE: &str = "/dev/fuse";

/// File system subtype: `/proc/mounts` shows it after `fuse.`, and mount(8) runs the program of
/// this name.
const SUBTYPE: &str = "bootcastfs";

/// Program that mounts and unmounts FUSE file systems for users other than root.
const FUSERMOUNT: &str = "fusermount3";

/// Maximum number of dead mounts on one mount point that a mount takes off.
const MAX_DEAD: usize = 16;

/// Value of `rootmode=`: the file type of the root directory (`S_IFDIR`), without permissions.
const ROOT_MODE: u32 = 0o040_000;

/// Reason why a mount or an unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The mount point does not exist.
    #[error("mount point {0:?} does not exist")]
    NoMountpoint(PathBuf),
    /// The mount point is not a directory.
    #[error("mount point {0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// A dead mount, whose process has exited, covers the mount point.
    #[error("mount point {0:?} has a dead mount on it: run umount -l on it first")]
    Stale(PathBuf),
    /// The mount point cannot be examined.
    #[error("cannot examine mount point {0:?}: {1}")]
    Mountpoint(PathBuf, io::Error),
    /// The kernel has no FUSE, or its module is not loaded.
    #[error("{DEVICE} is missing: run modprobe fuse, or give the container this device")]
    NoDevice,
    /// fusermount3 is not installed, and without it only root may mount.
    #[error("{FUSERMOUNT} is missing, and only root can mount without it: install fuse3")]
    NoFusermount,
    /// fusermount3 failed, with this message.
    #[error("{FUSERMOUNT}: {0}")]
    Fusermount(String),
    /// The mount is in use.
    #[error("{0:?} is busy: a process still uses it")]
    Busy(PathBuf),
    /// Nothing is mounted there.
    #[error("{0:?} is not mounted")]
    NotMounted(PathBuf),
    /// Another system call failed: the action and the error.
    #[error("{0} failed: {1}")]
    System(&'static str, io::Error),
}

/// Mounts and returns the connection to the kernel. The kernel blocks every access to the mount
/// until the FUSE handshake on this connection is done.
///
/// Tries mount(2) first, then fusermount3 if the caller may not call mount(2).
pub fn mount(request: &MountRequest) -> Result<OwnedFd, KernelError> {
    clear_mountpoint(&request.mountpoint)?;
    match mount_directly(request) {
        Err(KernelError::System(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            mount_by_fusermount(request)
        }
        outcome => outcome,
    }
}

/// Unmounts. With `lazy`, detaches a mount that is in use; it ends with its last use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), KernelError> {
    let detach = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | detach) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_fusermount(mountpoint, lazy),
        Err(Errno::BUSY) => Err(KernelError::Busy(mountpoint.to_owned())),
        Err(Errno::INVAL | Errno::NOENT) => Err(KernelError::NotMounted(mountpoint.to_owned())),
        Err(errno) => Err(KernelError::System("unmount", errno.into())),
    }
}

/// Detaches the mount of the connection with this number, unless it has been unmounted: then what
/// lies beneath belongs to somebody else.
pub(crate) fn detach(mountpoint: &Path, connection: u32) {
    if connection_number(mountpoint).is_ok_and(|found| found == connection)
        && let Err(error) = unmount(mountpoint, true)
    {
        tracing::warn!(%error, "cannot unmount");
    }
}

/// Checks the mount point, and takes dead mounts of this program off it, such as one whose process
/// was killed. Nobody can use them any more.
fn clear_mountpoint(mountpoint: &Path) -> Result<(), KernelError> {
    for _ in 0..MAX_DEAD {
        match check_mountpoint(mountpoint) {
            Err(KernelError::Stale(_)) if connection_number(mountpoint).is_ok() => {
                unmount(mountpoint, true)?;
                tracing::warn!("took a dead mount off {mountpoint:?}");
            }
            outcome => return outcome,
        }
    }
    check_mountpoint(mountpoint)
}

/// Returns the number of the FUSE connection behind a mount point of this program: the minor device
/// number of the mount. Makes no request to the mount, which may hang.
pub(crate) fn connection_number(mountpoint: &Path) -> Result<u32, KernelError> {
    mount_table::top_minor(mountpoint, &format!("fuse.{SUBTYPE}"))
        .ok_or_else(|| KernelError::NotMounted(mountpoint.to_owned()))
}

/// Checks that the mount point is a directory and not covered by a dead mount.
fn check_mountpoint(mountpoint: &Path) -> Result<(), KernelError> {
    let path = mountpoint.to_owned();
    match fs::metadata(mountpoint) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(KernelError::NotADirectory(path)),
        Err(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => KernelError::NoMountpoint(path),
            Some(Errno::NOTDIR) => KernelError::NotADirectory(path),
            Some(Errno::NOTCONN) => KernelError::Stale(path),
            _ => KernelError::Mountpoint(path, error),
        }),
    }
}

/// Mounts with mount(2), which needs privileges.
fn mount_directly(request: &MountRequest) -> Result<OwnedFd, KernelError> {
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = device.map_err(|errno| match errno {
        Errno::NOENT | Errno::NXIO | Errno::NODEV => KernelError::NoDevice,
        errno => KernelError::System("opening /dev/fuse", errno.into()),
    })?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!(
        "fd={},rootmode={ROOT_MODE:o},user_id={},group_id={}",
        device.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw()
    );
    for option in common_options(request) {
        data.push(',');
        data.push_str(&option);
    }
    let data = CString::new(data).map_err(|error| KernelError::System("mount", error.into()))?;
    rustix::mount::mount(
        request.shown_source.as_os_str(),
        &request.mountpoint,
        format!("fuse.{SUBTYPE}"),
        request.options.flags,
        data.as_c_str(),
    )
    .map_err(|errno| match errno {
        Errno::NODEV => KernelError::NoDevice,
        errno => KernelError::System("mount", errno.into()),
    })?;
    Ok(device)
}

/// Returns the options that mount(2) and fusermount3 take in the same form.
fn common_options(request: &MountRequest) -> impl Iterator<Item = String> {
    let options = &request.options;
    [
        options.allow_other.then(|| "allow_other".to_owned()),
        options.default_permissions.then(|| "default_permissions".to_owned()),
        options.max_read.map(|bytes| format!("max_read={bytes}")),
    ]
    .into_iter()
    .flatten()
}

/// Mounts with fusermount3, which passes the open device back over a Unix socket.
///
/// `_FUSE_COMMFD` names the descriptor of the child's end: 0, because standard input stays open
/// across the exec.
fn mount_by_fusermount(request: &MountRequest) -> Result<OwnedFd, KernelError> {
    let (ours, theirs) = UnixStream::pair().map_err(system_error("making a socket pair"))?;
    let child = fusermount()
        .arg("-o")
        .arg(fusermount_options(request))
        .arg("--")
        .arg(&request.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .spawn();
    let device = child.map_err(spawn_error).and_then(|child| {
        let device = receive_descriptor(&ours);
        wait_for_exit(child)?;
        device
    })?;
    device.ok_or_else(|| KernelError::Fusermount("did not pass the open device back".to_owned()))
}

/// Unmounts with fusermount3.
fn unmount_by_fusermount(mountpoint: &Path, lazy: bool) -> Result<(), KernelError> {
    let mut command = fusermount();
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    wait_for_exit(command.spawn().map_err(spawn_error)?)
}

/// Returns a command that runs fusermount3 and captures its error message.
fn fusermount() -> Command {
    let mut command = Command::new(FUSERMOUNT);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits for fusermount3 to exit. If it fails, returns its error message without its name.
fn wait_for_exit(child: Child) -> Result<(), KernelError> {
    let Output { status, stderr, .. } =
        child.wait_with_output().map_err(system_error("waiting for fusermount3"))?;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&stderr);
    let reason = text.trim().trim_start_matches(FUSERMOUNT).trim_start_matches(": ");
    Err(KernelError::Fusermount(if reason.is_empty() { status.to_string() } else { reason.into() }))
}

/// Returns the option list of fusermount3, with commas and backslashes of the source escaped.
///
/// Other options on access times than `noatime` are left out: fusermount3 fails with them (libfuse
/// 3.14). Nothing is lost, because a read-only mount updates no access times.
fn fusermount_options(request: &MountRequest) -> OsString {
    let mut options = format!("subtype={SUBTYPE}");
    let flags = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
    ];
    let names = flags.into_iter().filter(|(flag, _)| request.options.flags.contains(*flag));
    for option in names.map(|(_, name)| name.to_owned()).chain(common_options(request)) {
        options.push(',');
        options.push_str(&option);
    }
    let mut bytes = options.into_bytes();
    bytes.extend_from_slice(b",fsname=");
    for &byte in request.shown_source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(byte);
    }
    OsString::from_vec(bytes)
}

/// Receives a message and returns its descriptor; `None` if the peer closes the socket instead.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>, KernelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .map_err(|errno| KernelError::System("receiving from fusermount3", errno.into()))?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}

/// Maps an error of starting fusermount3.
fn spawn_error(error: io::Error) -> KernelError {
    match error.kind() {
        io::ErrorKind::NotFound => KernelError::NoFusermount,
        _ => KernelError::System("starting fusermount3", error),
    }
}

/// Returns a function that adds `action` to an I/O error.
fn system_error(action: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |error| KernelError::System(action, error)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Write;

    use super::*;

    /// File system that answers every request except INIT with ENOSYS.
    struct EmptyFs;

    impl fuser::Filesystem for EmptyFs {}

    /// Mount point that is unmounted at the end of the test, even after a panic.
    struct Mountpoint(tempfile::TempDir);

    impl Mountpoint {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Returns the line of this mount point in the mount table, if it is mounted.
        fn mounted(&self) -> Option<String> {
            let table = fs::read_to_string("/proc/self/mounts").unwrap();
            let path = self.0.path().to_str().unwrap();
            table.lines().find(|line| line.split(' ').nth(1) == Some(path)).map(str::to_owned)
        }

        fn request(&self, source: &str, options: &str) -> MountRequest {
            MountRequest::parse(OsStr::new(source), self.0.path(), &[options.into()]).unwrap()
        }
    }

    impl Drop for Mountpoint {
        fn drop(&mut self) {
            while self.mounted().is_some() {
                unmount(self.0.path(), true).unwrap();
            }
        }
    }

    /// Whether the test may mount on this machine. Reports a skipped test if not.
    fn can_mount() -> bool {
        let can = rustix::process::geteuid().is_root() && Path::new(DEVICE).exists();
        if !can {
            report_skipped(&format!("needs root and {DEVICE}"));
        }
        can
    }

    /// Adds this test to the list that `tests/scripts/run-tests.sh` shows at the end.
    fn report_skipped(reason: &str) {
        let thread = std::thread::current();
        let line = format!("{}\t{reason}\n", thread.name().unwrap_or("test"));
        if let Some(list) = std::env::var_os("BOOTCAST_SKIPPED") {
            let mut list = File::options().append(true).create(true).open(list).unwrap();
            list.write_all(line.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_mount_shows_its_type_source_and_options_until_it_is_unmounted() {
        if !can_mount() {
            return;
        }
        let mountpoint = Mountpoint::new();
        let request =
            mountpoint.request("head:/a,b c", "allow_other,noexec,dev,suid,max_read=65536");
        let device = mount(&request).unwrap();
        let config = fuser::Config::default();
        let session =
            fuser::Session::from_fd(EmptyFs, device, fuser::SessionACL::All, config).unwrap();
        let session = session.spawn().unwrap();

        let line = mountpoint.mounted().expect("not in the mount table");
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields[0], fields[2]), ("head:/a,b\\040c", "fuse.bootcastfs"));
        let options: Vec<&str> = fields[3].split(',').collect();
        for option in
            ["ro", "nosuid", "nodev", "noexec", "allow_other", "max_read=65536", "user_id=0"]
        {
            assert!(options.contains(&option), "{option} is not in {line}");
        }

        unmount(mountpoint.0.path(), false).unwrap();
        assert_eq!(mountpoint.mounted(), None);
        session.join().unwrap();
    }

    #[test]
    fn dead_mounts_are_taken_off_by_the_next_mount() {
        if !can_mount() {
            return;
        }
        let mountpoint = Mountpoint::new();
        let request = mountpoint.request("head:/", "");
        drop(mount(&request).unwrap());
        let error = check_mountpoint(mountpoint.0.path()).unwrap_err();
        assert!(matches!(error, KernelError::Stale(_)), "{error}");
        drop(mount(&request).unwrap());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let path = mountpoint.0.path().to_str().unwrap();
        assert_eq!(table.matches(path).count(), 1, "{table}");
    }

    #[test]
    fn a_mount_point_must_be_an_existing_directory() {
        let mountpoint = Mountpoint::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let at = |path: &Path| MountRequest {
            mountpoint: path.to_owned(),
            ..mountpoint.request("head:/", "")
        };
        let missing = mount(&at(&mountpoint.0.path().join("missing"))).unwrap_err();
        assert!(matches!(missing, KernelError::NoMountpoint(_)), "{missing}");
        let file = mount(&at(file.path())).unwrap_err();
        assert!(matches!(file, KernelError::NotADirectory(_)), "{file}");
    }

    #[test]
    fn unmounting_an_ordinary_directory_fails_with_not_mounted() {
        if !can_mount() {
            return;
        }
        let mountpoint = Mountpoint::new();
        let error = unmount(mountpoint.0.path(), false).unwrap_err();
        assert!(matches!(error, KernelError::NotMounted(_)), "{error}");
    }

    #[test]
    fn commas_and_backslashes_of_the_source_are_escaped_for_fusermount() {
        let mountpoint = Mountpoint::new();
        let options = fusermount_options(&mountpoint.request("head:/a,b\\c", "allow_other,noexec"));
        let expected =
            "subtype=bootcastfs,ro,nosuid,nodev,noexec,allow_other,fsname=head:/a\\,b\\\\c";
        assert_eq!(options, expected);
    }

    #[test]
    fn fusermount_gets_no_options_that_it_would_refuse() {
        let mountpoint = Mountpoint::new();
        let options = |text| fusermount_options(&mountpoint.request("head:/", text));
        let without = options("noatime");
        assert!(without.to_str().unwrap().contains(",noatime,"), "{without:?}");
        assert_eq!(options("noatime,nodiratime"), without);
        assert_eq!(options("nodiratime,strictatime"), options(""));
    }

    #[test]
    fn a_descriptor_is_received_over_a_socket_and_a_closed_socket_is_none() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        use std::io::{IoSlice, Read};
        use std::os::fd::AsFd;

        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [writer.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let none = SendFlags::empty();
        rustix::net::sendmsg(&theirs, &[IoSlice::new(&[0])], &mut control, none).unwrap();
        drop((theirs, writer));

        let received = receive_descriptor(&ours).unwrap().expect("no descriptor");
        rustix::io::write(&received, b"hello").unwrap();
        drop(received);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }
}
