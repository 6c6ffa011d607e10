//! The kernel's side of mounting: `/dev/fuse`, mount(2), umount2(2), and fusermount3 for users
//! other than root.

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

use super::MountRequest;

const DEVICE: &str = "/dev/fuse";

/// File system subtype: `/proc/mounts` shows it after `fuse.`, and mount(8) runs the program of
/// this name.
const SUBTYPE: &str = "bootcastfs";

const FUSERMOUNT: &str = "fusermount3";

/// File type of the root directory in the form of `rootmode=`: octal, without permissions.
const ROOT_MODE: u32 = 0o040_000;

/// Why the kernel did not mount or unmount.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The mount point does not exist.
    #[error("mount point {0:?} does not exist")]
    NoMountpoint(PathBuf),
    /// The mount point is not a directory.
    #[error("mount point {0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// A dead mount, whose process has exited, covers the mount point.
    #[error("mount point {0:?} holds a dead file system: run umount -l on it first")]
    Stale(PathBuf),
    /// The mount point cannot be examined.
    #[error("mount point {0:?}: {1}")]
    Mountpoint(PathBuf, io::Error),
    /// The kernel has no FUSE, or its module is not loaded.
    #[error("{DEVICE} is missing: run modprobe fuse, or give the container this device")]
    NoDevice,
    /// Without fusermount3 only root may mount.
    #[error("{FUSERMOUNT} is missing, and only root can mount without it: install fuse3")]
    NoFusermount,
    /// fusermount3 failed; its own message.
    #[error("{FUSERMOUNT}: {0}")]
    Fusermount(String),
    /// The mount is in use.
    #[error("{0:?} is busy: a process uses it")]
    Busy(PathBuf),
    /// Nothing is mounted there.
    #[error("{0:?} is not mounted")]
    NotMounted(PathBuf),
    /// Another system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Mounts and returns the connection to the kernel. The kernel blocks every access to the mount
/// until the FUSE handshake on this connection.
///
/// Tries mount(2), which needs privileges, then fusermount3.
pub fn mount(request: &MountRequest) -> Result<OwnedFd, KernelError> {
    check_mountpoint(&request.mountpoint)?;
    match mount_directly(request) {
        Err(KernelError::System(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            mount_by_fusermount(request)
        }
        outcome => outcome,
    }
}

/// Unmounts. With `lazy`, a mount in use is unmounted once it is no longer used.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), KernelError> {
    let detach = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | detach) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_fusermount(mountpoint, lazy),
        Err(Errno::BUSY) => Err(KernelError::Busy(mountpoint.to_owned())),
        Err(Errno::INVAL | Errno::NOENT) => Err(KernelError::NotMounted(mountpoint.to_owned())),
        Err(errno) => Err(KernelError::System("unmounting", errno.into())),
    }
}

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
    for option in shared_data(request) {
        data.push(',');
        data.push_str(&option);
    }
    let data = CString::new(data).map_err(|error| KernelError::System("mounting", error.into()))?;
    rustix::mount::mount(
        request.shown_source.as_os_str(),
        &request.mountpoint,
        format!("fuse.{SUBTYPE}"),
        request.options.flags,
        data.as_c_str(),
    )
    .map_err(|errno| match errno {
        Errno::NODEV => KernelError::NoDevice,
        errno => KernelError::System("mounting", errno.into()),
    })?;
    Ok(device)
}

/// Options that the kernel and fusermount3 spell alike.
fn shared_data(request: &MountRequest) -> impl Iterator<Item = String> {
    let options = &request.options;
    [
        options.allow_other.then(|| "allow_other".to_owned()),
        options.default_permissions.then(|| "default_permissions".to_owned()),
        options.max_read.map(|bytes| format!("max_read={bytes}")),
    ]
    .into_iter()
    .flatten()
}

/// Mounts through fusermount3, which passes the open device back through a socket whose number it
/// is given. The socket is standard input, which stays open across the exec by itself.
fn mount_by_fusermount(request: &MountRequest) -> Result<OwnedFd, KernelError> {
    let (ours, theirs) = UnixStream::pair().map_err(system("making a socket pair"))?;
    let child = fusermount()
        .arg("-o")
        .arg(fusermount_options(request))
        .arg("--")
        .arg(&request.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .spawn();
    let device = child.map_err(no_fusermount).and_then(|child| {
        let device = receive_descriptor(&ours);
        wait(child)?;
        device
    })?;
    device.ok_or_else(|| KernelError::Fusermount("passed no device".to_owned()))
}

fn unmount_by_fusermount(mountpoint: &Path, lazy: bool) -> Result<(), KernelError> {
    let mut command = fusermount();
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    wait(command.spawn().map_err(no_fusermount)?)
}

fn fusermount() -> Command {
    let mut command = Command::new(FUSERMOUNT);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn wait(child: Child) -> Result<(), KernelError> {
    let Output { status, stderr, .. } =
        child.wait_with_output().map_err(system("waiting for fusermount3"))?;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&stderr);
    let reason = text.trim().trim_start_matches(FUSERMOUNT).trim_start_matches(": ");
    Err(KernelError::Fusermount(if reason.is_empty() { status.to_string() } else { reason.into() }))
}

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
    for option in names.map(|(_, name)| name.to_owned()).chain(shared_data(request)) {
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

/// Receives a message with a descriptor; `None` if the other end closes without one.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>, KernelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })
    .map_err(|errno| KernelError::System("hearing from fusermount3", errno.into()))?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}

fn no_fusermount(error: io::Error) -> KernelError {
    match error.kind() {
        io::ErrorKind::NotFound => KernelError::NoFusermount,
        _ => KernelError::System("starting fusermount3", error),
    }
}

fn system(action: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |error| KernelError::System(action, error)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Write;

    use super::*;

    /// An empty file system: answers every request except INIT with ENOSYS.
    struct Nothing;

    impl fuser::Filesystem for Nothing {}

    /// A mount point that is unmounted at the end of the test, whatever happens.
    struct Mountpoint(tempfile::TempDir);

    impl Mountpoint {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Fields of its line in the mount table, separated by blanks.
        fn mounted(&self) -> Option<String> {
            let table = fs::read_to_string("/proc/self/mounts").unwrap();
            let place = self.0.path().to_str().unwrap();
            table.lines().find(|line| line.split(' ').nth(1) == Some(place)).map(str::to_owned)
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

    /// Whether this machine allows the test to mount. Reports a skipped test if not.
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
        let place = Mountpoint::new();
        let request = place.request("head:/a,b c", "allow_other,noexec,dev,suid,max_read=65536");
        let device = mount(&request).unwrap();
        let config = fuser::Config::default();
        let session =
            fuser::Session::from_fd(Nothing, device, fuser::SessionACL::All, config).unwrap();
        let session = session.spawn().unwrap();

        let line = place.mounted().expect("not in the mount table");
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields[0], fields[2]), ("head:/a,b\\040c", "fuse.bootcastfs"));
        let options: Vec<&str> = fields[3].split(',').collect();
        for option in
            ["ro", "nosuid", "nodev", "noexec", "allow_other", "max_read=65536", "user_id=0"]
        {
            assert!(options.contains(&option), "{option} is not in {line}");
        }

        unmount(place.0.path(), false).unwrap();
        assert_eq!(place.mounted(), None);
        session.join().unwrap();
    }

    #[test]
    fn a_dead_mount_is_told_apart_and_can_be_unmounted() {
        if !can_mount() {
            return;
        }
        let place = Mountpoint::new();
        let request = place.request("head:/", "");
        drop(mount(&request).unwrap());
        let error = mount(&request).unwrap_err();
        assert!(matches!(error, KernelError::Stale(_)), "{error}");
        unmount(place.0.path(), true).unwrap();
        assert_eq!(place.mounted(), None);
    }

    #[test]
    fn what_is_no_directory_is_no_mount_point() {
        let place = Mountpoint::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let at = |path: &Path| MountRequest {
            mountpoint: path.to_owned(),
            ..place.request("head:/", "")
        };
        let missing = mount(&at(&place.0.path().join("missing"))).unwrap_err();
        assert!(matches!(missing, KernelError::NoMountpoint(_)), "{missing}");
        let file = mount(&at(file.path())).unwrap_err();
        assert!(matches!(file, KernelError::NotADirectory(_)), "{file}");
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_told() {
        if !can_mount() {
            return;
        }
        let place = Mountpoint::new();
        let error = unmount(place.0.path(), false).unwrap_err();
        assert!(matches!(error, KernelError::NotMounted(_)), "{error}");
    }

    #[test]
    fn fusermount_is_told_the_source_with_its_commas_escaped() {
        let place = Mountpoint::new();
        let options = fusermount_options(&place.request("head:/a,b\\c", "allow_other,noexec"));
        let expected =
            "subtype=bootcastfs,ro,nosuid,nodev,noexec,allow_other,fsname=head:/a\\,b\\\\c";
        assert_eq!(options, expected);
    }

    #[test]
    fn a_descriptor_comes_through_a_socket_and_silence_is_none() {
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
