//! `bootcastfs` on a client.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use bootcast_fs::status::{MountStatus, STATUS_ATTRIBUTE, STATUS_MAX};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::binaries::{binary, peer};
use crate::host::Host;
use crate::lab::HEAD_ADDRESS;
use crate::mount_namespace::mountinfo;
use crate::process::Proc;
use crate::wait::{SOON, wait_for, wait_until};

/// Time after which a watchdog aborts the mount. A test that is blocked in a read cannot enforce a
/// deadline itself.
const MAX_LIFETIME: Duration = Duration::from_secs(240);

/// Python program that executes `argv[2]` with a seccomp filter, under which the system call with
/// the name `argv[1]` fails with EIO. Numbers: Linux `syscall_64.tbl` and `asm-generic/unistd.h`.
const FAIL_CALL: &str = "
import ctypes, os, platform, struct, sys
generic = {'fsync': 82, 'fdatasync': 83}
numbers = {'x86_64': {'fsync': 74, 'fdatasync': 75}}.get(platform.machine(), generic)
step = lambda code, yes, no, value: struct.pack('HBBI', code, yes, no, value)
load, jump_if_equal, return_ = 0x20, 0x15, 0x06
program = step(load, 0, 0, 0) + step(jump_if_equal, 0, 1, numbers[sys.argv[1]])
program += step(return_, 0, 0, 0x00050000 | 5) + step(return_, 0, 0, 0x7fff0000)
code = ctypes.create_string_buffer(program, len(program))
class Filter(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
rules = Filter(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(rules)) == 0, 'no seccomp'
os.execv(sys.argv[2], sys.argv[2:])
";

/// Options of a mount that is not mounted yet.
#[derive(Debug)]
pub struct MountBuilder<'lab> {
    host: &'lab Host,
    source: String,
    options: Vec<String>,
    variables: Vec<(String, String)>,
    failing: Option<String>,
    is_service: bool,
}

/// A mounted directory, which only the test and its programs see.
#[derive(Debug)]
pub struct MountProc<'lab> {
    host: &'lab Host,
    path: PathBuf,
    cache: PathBuf,
    /// Minor device number, which is also the number of the kernel's FUSE connection.
    connection: u32,
    proc: Proc,
    /// Stops the watchdog when dropped.
    _watchdog: Sender<()>,
}

impl<'lab> MountBuilder<'lab> {
    pub(crate) fn new(host: &'lab Host) -> Self {
        Self {
            host,
            source: format!("{HEAD_ADDRESS}:/"),
            options: Vec::new(),
            variables: Vec::new(),
            failing: None,
            is_service: false,
        }
    }

    /// Sets the source to mount instead of the whole served directory.
    #[must_use]
    pub fn source(mut self, source: &str) -> Self {
        self.source = source.into();
        self
    }

    /// Adds a mount option, such as `linger=1s`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// Sets an environment variable of the daemon.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Makes a system call of the daemon fail with EIO, as on a disk that fails: `fsync` or
    /// `fdatasync`.
    #[must_use]
    pub fn failing(mut self, call: &str) -> Self {
        self.failing = Some(call.into());
        self
    }

    /// Runs the daemon as a service, which is started again when it was killed, and has a store for
    /// descriptors as under systemd.
    #[must_use]
    pub fn service(mut self) -> Self {
        self.is_service = true;
        self
    }

    /// Mounts and waits until the mount is there.
    #[track_caller]
    pub fn start(self) -> MountProc<'lab> {
        let (path, cache) = (self.host.fresh_path("mnt"), self.host.fresh_path("cache"));
        fs::create_dir(&path).expect("a mount point");
        fs::create_dir(&cache).expect("a cache directory");
        let args = self.args(&path, &cache);
        let mut command = self.host.command(self.program());
        if let Some(call) = &self.failing {
            command.args(["-c", FAIL_CALL, call]).arg(binary("bootcastfs"));
        }
        if self.is_service {
            let socket = self.host.fresh_path("notify");
            command.arg(peer("service_manager.py")).arg(socket).arg(binary("bootcastfs"));
        }
        command.args(args).envs(self.variables.iter().map(|(name, value)| (name, value)));
        let mut proc = Proc::start(command, &self.host.fresh_path("log"));
        let connection = wait_for(SOON, "bootcastfs has mounted", || {
            assert!(proc.exited().is_none(), "bootcastfs ended:\n{}", proc.log());
            minor_device(&path)
        });
        let watchdog = abort_after(MAX_LIFETIME, connection);
        MountProc { host: self.host, path, cache, connection, proc, _watchdog: watchdog }
    }

    fn program(&self) -> PathBuf {
        let is_wrapped = self.failing.is_some() || self.is_service;
        if is_wrapped { "python3".into() } else { binary("bootcastfs") }
    }

    fn args(&self, path: &Path, cache: &Path) -> Vec<OsString> {
        let mut options = format!("interface=eth0,cache_dir={}", cache.display());
        for option in &self.options {
            options.push(',');
            options.push_str(option);
        }
        let source = self.source.clone();
        vec![source.into(), path.into(), "-o".into(), options.into(), "-f".into()]
    }
}

impl MountProc<'_> {
    /// Mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of `name` in the mount.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Cache directory.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Client that has the mount.
    pub fn host(&self) -> &Host {
        self.host
    }

    /// The daemon's process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Log of the daemon.
    pub fn log(&self) -> String {
        self.proc.log()
    }

    /// Returns the status that the mount reports.
    #[track_caller]
    pub fn status(&self) -> MountStatus {
        let mut value = vec![0; STATUS_MAX];
        let len = rustix::fs::getxattr(&self.path, STATUS_ATTRIBUTE, &mut value[..]);
        value.truncate(len.expect("the mount has a status"));
        serde_json::from_slice(&value).expect("a status in JSON")
    }

    /// Number of kernel requests that the daemon has not answered yet, such as parked reads.
    pub fn parked_requests(&self) -> u64 {
        let waiting = fuse_connections().join(self.connection.to_string()).join("waiting");
        let text = fs::read_to_string(&waiting)
            .unwrap_or_else(|error| panic!("{}: {error}", waiting.display()));
        text.trim().parse().expect("a number of requests")
    }

    /// Waits until the daemon has at least `count` unanswered requests.
    #[track_caller]
    pub fn wait_parked(&self, count: u64) {
        wait_until(SOON, &format!("{count} reads are parked"), || self.parked_requests() >= count);
    }

    /// Has a new process take the mount over with `--replace`, and waits until the old one ended.
    #[track_caller]
    pub fn replace(&mut self) {
        let mut command = self.host.command(binary("bootcastfs"));
        command.arg("--replace").arg(&self.path).arg("-f");
        let mut new = Proc::start(command, &self.host.fresh_path("log"));
        wait_until(SOON, "a new process has taken the mount over", || {
            assert!(new.exited().is_none(), "the new process ended:\n{}", new.log());
            new.log().contains("took the mount over")
        });
        std::mem::replace(&mut self.proc, new).wait_success(SOON);
    }

    /// Process id of the child that serves the mount, under the option `keeper` or as a service.
    #[track_caller]
    fn kept_child(&self) -> Pid {
        let pid = self.proc.pid();
        let children = format!("/proc/{pid}/task/{pid}/children");
        wait_for(SOON, "the keeper has a child", || {
            let children = fs::read_to_string(&children).expect("a running keeper");
            Pid::from_raw(children.split(' ').next()?.parse().ok()?)
        })
    }

    /// Kills the child that serves the mount, under the option `keeper` or as a service.
    #[track_caller]
    pub fn kill_kept_child(&self) {
        // The keeper may have waited for a child that died; then this was not the last one.
        let _ = kill_process(self.kept_child(), Signal::KILL);
    }

    /// Unmounts like `umount`, and requires that the daemon exits with status 0. The mount may be
    /// busy for a moment: a program that another test starts has all descriptors of this process
    /// between its fork and its exec.
    #[track_caller]
    pub fn umount(mut self) {
        let refused = wait_for(SOON, "the mount is not busy any more", || {
            let output = Command::new("umount").arg(&self.path).output().expect("umount runs");
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                Some(None)
            } else {
                (!message.contains("target is busy")).then_some(Some(message))
            }
        });
        assert_eq!(refused, None);
        assert!(!is_mounted(&self.path), "umount said that it had unmounted");
        self.proc.wait_success(SOON);
    }
}

impl Drop for MountProc<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.path) {
            // Readers may still use the mount. They keep it, detached, until the daemon ends.
            let _ = unmount(&self.path, UnmountFlags::DETACH);
        }
        self.proc.signal(Signal::KILL);
    }
}

/// Whether something is mounted at exactly this path.
pub fn is_mounted(path: &Path) -> bool {
    minor_device(path).is_some()
}

/// Minor device number of the mount at exactly this path. Looks it up without a request to the file
/// system, which may hang.
fn minor_device(path: &Path) -> Option<u32> {
    let mounts = mountinfo();
    let mount =
        mounts.lines().rev().find(|line| line.split(' ').nth(4).map(Path::new) == Some(path))?;
    let (_major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
    minor.parse().ok()
}

/// Starts a watchdog that aborts the FUSE connection after `delay`: parked reads then fail, and
/// with them the test. Dropping the returned sender cancels the watchdog.
fn abort_after(delay: Duration, connection: u32) -> Sender<()> {
    let (cancel, cancelled) = channel();
    let abort = fuse_connections().join(connection.to_string()).join("abort");
    std::thread::spawn(move || {
        if cancelled.recv_timeout(delay) == Err(RecvTimeoutError::Timeout) {
            // Fails if the connection is gone, which is fine.
            let _ = fs::write(abort, "1");
        }
    });
    cancel
}

/// Returns the directory of the kernel's FUSE connections; mounts it if necessary.
fn fuse_connections() -> &'static Path {
    let path = Path::new("/sys/fs/fuse/connections");
    if !is_mounted(path) {
        // Fails if another test mounts it at the same moment, which is fine.
        let _ = mount("fusectl", path, "fusectl", MountFlags::empty(), None);
    }
    path
}
