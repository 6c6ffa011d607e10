//! Runs a mount from its start to its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bootcast_proto::RemotePath;
use bootcast_proto::api::{Attributes, Kind};
use fuser::{Config, Session, SessionACL};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::cache::Cache;
use crate::fs::{Fs, FsConfig, Pins};
use crate::fuse::Adapter;
use crate::io::{Control, Intake, IntakeConfig, InterfaceChoice};
use crate::mount::options::CacheKind;
use crate::mount::{MountError, MountOptions, MountRequest, kernel};
use crate::receiver::Timing;
use crate::signals::EndSignal;

/// Time without a datagram after which a member joins again.
const SILENCE: Duration = Duration::from_secs(2);
/// Longest time that the end of a mount waits for its leave requests.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Number of threads that take kernel requests. They also copy held pages from the cache, so this
/// many reads of a slow disk block all other requests.
const SESSION_THREADS: usize = 4;

/// Mounts the file system, calls `ready` once the kernel accepts requests, and serves until an
/// unmount or a signal.
pub fn run_mount(request: &MountRequest, ready: impl FnOnce()) -> Result<(), MountError> {
    raise_file_limit();
    // With one thread, the thread that a demand wakes also sends it.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| MountError::failed(&error))?;
    let mounted = runtime.block_on(Mounted::begin(request, runtime.handle().clone()))?;
    ready();
    let (source, mountpoint) = (request.shown_source.display(), request.mountpoint.display());
    info!(%source, %mountpoint, "mounted");
    serve(&runtime, request, mounted)
}

/// A mount that the kernel accepted.
struct Mounted {
    fs: Arc<Fs>,
    session: Session<Adapter>,
}

impl Mounted {
    async fn begin(
        request: &MountRequest,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, MountError> {
        let MountRequest { source, options, .. } = request;
        if options.wants_rw {
            warn!("ignoring -o rw: the file system is read-only");
        }
        let control =
            Control::new(&source.base_url()).map_err(|error| MountError::failed(&error))?;
        let root = find_root(&control, &source.path).await?;
        let cache = open_cache(options)?;
        let mut config = fs_config(options);
        config.pins = read_pins(options, &source.path)?;
        if config.pins.is_some() && root.is_none() {
            return Err(MountError::failed(
                &"a plain server cannot prove files: pins= needs a server with manifests",
            ));
        }
        let interface =
            options.interface.as_deref().map_or(InterfaceChoice::TowardServer, |text| {
                text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
            });
        interface.check().map_err(|error| MountError::failed(&error))?;
        let intake = IntakeConfig { control: control.clone(), interface, runtime: runtime.clone() };
        let intake = Intake::start(intake).map_err(|error| MountError::failed(&error))?;
        let (uid, gid) = (config.uid, config.gid);
        let path = source.path.clone();
        let fs = Arc::new(match root {
            Some(attributes) => Fs::new(config, control, cache, intake, path, attributes),
            None => Fs::new_plain(config, control, cache, intake, path),
        });
        let connection = kernel::mount(request)?;
        let adapter = Adapter::new(fs.clone(), runtime, uid, gid);
        let mut config = Config::default();
        config.n_threads = Some(SESSION_THREADS);
        config.clone_fd = true;
        // The FUSE handshake happens here.
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        match Session::from_fd(adapter, connection, acl, config) {
            Ok(session) => Ok(Self { fs, session }),
            Err(error) => {
                let _ = kernel::unmount(&request.mountpoint, true);
                Err(MountError::failed(&error))
            }
        }
    }
}

/// Raises the limit of open files to the hard limit. Each object keeps one or two files open: its
/// bytes and its repair symbols.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        warn!(%error, "cannot raise the limit of open files");
    }
}

/// Requests the attributes of the directory to mount. Returns `None` from a plain server.
async fn find_root(control: &Control, path: &RemotePath) -> Result<Option<Attributes>, MountError> {
    match control.attributes(path).await {
        Ok(attributes) if attributes.kind == Kind::Directory => Ok(Some(attributes)),
        Ok(_) => {
            Err(MountError::failed(&format!("{path} is not a directory on {}", control.server())))
        }
        Err(error) if error.is_not_found() => match control.attributes(&RemotePath::root()).await {
            Err(error) if error.is_not_found() => {
                info!("a plain server, without listings: files appear when they are opened");
                Ok(None)
            }
            Err(error) => Err(MountError::failed(&error)),
            Ok(_) => {
                Err(MountError::failed(&format!("no directory {path} on {}", control.server())))
            }
        },
        Err(error) => Err(MountError::failed(&error)),
    }
}

/// Reads the file that names the contents of all files.
fn read_pins(options: &MountOptions, root: &RemotePath) -> Result<Option<Pins>, MountError> {
    let Some(file) = &options.pins else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| {
        MountError::failed(&format!("cannot use pins={}: {error}", file.display()))
    };
    let text = std::fs::read(file).map_err(|error| failed(&error))?;
    Pins::parse(&text, root).map(Some).map_err(|error| failed(&error))
}

fn open_cache(options: &MountOptions) -> Result<Cache, MountError> {
    match options.cache {
        CacheKind::Memory => Ok(Cache::Memory),
        CacheKind::Disk => {
            let dir = options.cache_dir.clone().or_else(default_cache_dir);
            let none = || MountError::usage(&"no cache directory: set HOME, or -o cache_dir=DIR");
            let dir = dir.ok_or_else(none)?;
            Cache::on_disk(&dir).map_err(|error| {
                let dir = dir.display();
                MountError::failed(&format!(
                    "cannot cache pages in {dir}: {error}; name another directory by -o cache_dir="
                ))
            })
        }
    }
}

/// Returns the default cache directory: `/var/cache/bootcast` for root, otherwise `bootcast` below
/// `$XDG_CACHE_HOME` or `~/.cache`.
fn default_cache_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/cache/bootcast"));
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    Some(xdg.or_else(home)?.join("bootcast"))
}

fn fs_config(options: &MountOptions) -> FsConfig {
    FsConfig {
        uid: options.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: options.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        umask: options.umask.unwrap_or(0).into(),
        attr_ttl: options.attr_ttl,
        wait_limit: options.wait_limit(),
        timing: Timing { linger: options.linger, silence: SILENCE },
        unicast: options.unicast,
        fill: options.fill,
        pins: None,
    }
}

/// Serves until the kernel closes the connection or a signal arrives.
fn serve(runtime: &Runtime, request: &MountRequest, mounted: Mounted) -> Result<(), MountError> {
    let Mounted { fs, session } = mounted;
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("session".into());
    thread
        .spawn(move || {
            let _ = ended.send(session.run());
        })
        .map_err(|error| MountError::failed(&error))?;
    runtime.block_on(async {
        tokio::spawn(fs.clone().housekeep());
        let outcome = tokio::select! {
            ended = end => {
                fs.stop(LEAVE_PATIENCE).await;
                let died = || Err(std::io::Error::other("the thread that serves the kernel died"));
                ended.unwrap_or_else(|_| died())
            }
            name = terminated() => {
                info!(signal = name, "unmounting");
                fs.stop(LEAVE_PATIENCE).await;
                unmount(request);
                Ok(())
            }
        };
        // The last step, because it may block on the disk.
        fs.save();
        info!("unmounted");
        outcome.map_err(|error| MountError::failed(&error))
    })
}

/// Waits for SIGTERM, SIGINT or SIGHUP and returns its name. Signals that were ignored when the
/// program started stay ignored.
async fn terminated() -> &'static str {
    let listen = |kind| EndSignal::listen(kind).unwrap_or_default();
    let (mut term, mut int, mut hup) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
    );
    tokio::select! {
        () = term.recv() => "SIGTERM",
        () = int.recv() => "SIGINT",
        () = hup.recv() => "SIGHUP",
    }
}

/// Unmounts, or detaches the mount if files are still open. The kernel closes the FUSE connection
/// when this process ends.
fn unmount(request: &MountRequest) {
    let first = kernel::unmount(&request.mountpoint, false);
    if let Err(error) = first.or_else(|_| kernel::unmount(&request.mountpoint, true)) {
        warn!(%error, "cannot unmount");
    }
}
