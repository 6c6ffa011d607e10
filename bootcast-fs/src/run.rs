//! Runs a mount from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::cache::{Cache, Names};
use crate::fs::{Fs, FsConfig};
use crate::fuse::Adapter;
use crate::io::{Caller, Control, Intake, IntakeConfig, InterfaceChoice};
use crate::log_limit;
use crate::metrics::{self, Listener};
use crate::mount::options::{CacheKind, MetricsAddress, Passthrough};
use crate::mount::{MountError, MountOptions, MountRequest, kernel, root_fs};
use crate::panics;
use crate::receiver::{Timing, Verify};
use crate::root::{Root, Search};
use bootcast_host::signals::{EndSignal, EndSignals};

/// Time without a datagram after which a member joins again.
const SILENCE: Duration = Duration::from_secs(2);
/// Longest time that the end of a mount waits for its leave requests.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Number of threads that take kernel requests. They also copy held pages from the cache, so this
/// many reads of a slow disk block all other requests.
const FUSE_THREADS: usize = 4;

/// Mounts the file system, calls `ready` once the kernel accepts requests, and serves until an
/// unmount or a signal. With `bg`, `ready` is called earlier if the server does not answer.
pub fn run_mount(request: &MountRequest, ready: impl FnOnce()) -> Result<(), MountError> {
    raise_file_limit();
    if request.options.root_fs {
        Caller::keep_proc_open();
        root_fs::settle()?;
    }
    // With one thread, the thread that a demand wakes also sends it.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| MountError::failed(&error))?;
    let mut ready = Some(ready);
    let (mounted, signals) = runtime.block_on(async {
        let mut signals = EndSignals::listen().map_err(|error| MountError::failed(&error))?;
        let on_wait = || {
            if let Some(ready) = ready.take_if(|_| request.options.is_background) {
                ready();
            }
        };
        let begin = signals.guard(Mounted::begin(request, runtime.handle().clone(), on_wait));
        let mounted = tokio::select! {
            biased;
            reason = panics::first() => Err(MountError::failed(&reason)),
            mounted = begin => mounted,
        };
        mounted.map(|mounted| (mounted, signals))
    })?;
    if let Some(ready) = ready {
        ready();
    }
    let (source, mountpoint) = (request.shown_source.display(), request.mountpoint.display());
    info!(%source, %mountpoint, "mounted");
    serve(&runtime, request, mounted, signals)
}

/// A mount that the kernel accepted.
struct Mounted {
    fs: Arc<Fs>,
    session: Session<Adapter>,
    metrics: Option<Listener>,
}

impl Mounted {
    async fn begin(
        request: &MountRequest,
        runtime: tokio::runtime::Handle,
        on_wait: impl FnMut(),
    ) -> Result<Self, MountError> {
        let MountRequest { source, options, .. } = request;
        if options.wants_rw {
            warn!("ignoring -o rw: the file system is read-only");
        }
        let control =
            Control::new(&source.base_url()).map_err(|error| MountError::failed(&error))?;
        let cache = open_cache(options)?;
        let names = open_names(&cache, &control);
        let search = Search { control: &control, request, names: names.as_ref() };
        let Root { path, attributes, pins, is_remembered } = search.run(on_wait).await?;
        let metrics = listen_for_metrics(options).await?;
        // The bytes of pinned files are proven at every read.
        let verify = if pins.is_some() { Verify::AtReader } else { options.verify };
        let has_passthrough = may_pass_through(options, pins.is_some());
        let config = FsConfig { verify, pins, ..fs_config(options) };
        let interface =
            options.interface.as_deref().map_or(InterfaceChoice::TowardServer, |text| {
                text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
            });
        interface.check().map_err(|error| MountError::failed(&error))?;
        let intake = IntakeConfig { control: control.clone(), interface, runtime: runtime.clone() };
        let intake = Intake::start(intake).map_err(|error| MountError::failed(&error))?;
        let (uid, gid) = (config.uid, config.gid);
        let fs = Arc::new(match attributes {
            Some(attributes) => {
                Fs::new(config, control, cache, intake, path, attributes).with_names(names)
            }
            None => Fs::new_plain(config, control, cache, intake, path),
        });
        if is_remembered {
            fs.begin_without_server();
        }
        let connection = kernel::mount(request)?;
        let adapter = Adapter::new(fs.clone(), runtime, uid, gid)
            .with_modes_enforced(options.default_permissions)
            .with_passthrough(has_passthrough);
        let mut config = Config::default();
        config.n_threads = Some(FUSE_THREADS);
        config.clone_fd = true;
        // The FUSE handshake happens here.
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        match Session::from_fd(adapter, connection, acl, config) {
            Ok(session) => Ok(Self { fs, session, metrics }),
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

fn open_cache(options: &MountOptions) -> Result<Cache, MountError> {
    match options.cache {
        CacheKind::Memory => Ok(Cache::in_memory(options.budget().size)),
        CacheKind::Disk => {
            let dir = options.cache_dir.clone().or_else(crate::cache::default_dir);
            let none = || MountError::usage(&"no cache directory: set HOME, or -o cache_dir=DIR");
            let dir = dir.ok_or_else(none)?;
            Cache::with_budget(&dir, options.budget()).map_err(|error| {
                let dir = dir.display();
                MountError::failed(&format!(
                    "cannot cache pages in {dir}: {error}; name another directory by -o cache_dir="
                ))
            })
        }
    }
}

/// Opens the names that the cache remembers, if it outlives the mount. Without them, as on a full
/// disk, the mount only lacks them.
fn open_names(cache: &Cache, control: &Control) -> Option<Names> {
    Names::of(cache, control.server()).unwrap_or_else(|error| {
        warn!(%error, "cannot record names in the cache: a mount without the server lacks them");
        None
    })
}

/// Opens the socket for metrics, if there is to be one.
async fn listen_for_metrics(options: &MountOptions) -> Result<Option<Listener>, MountError> {
    let Some(address) = &options.metrics else { return Ok(None) };
    let listener = Listener::bind(address).await;
    listener.map(Some).map_err(|error| {
        let address = match address {
            MetricsAddress::Tcp(address) => address.to_string(),
            MetricsAddress::Unix(path) => path.display().to_string(),
        };
        MountError::failed(&format!("cannot serve metrics at {address}: {error}"))
    })
}

/// Whether the kernel may ever read a cache file of this mount itself.
fn may_pass_through(options: &MountOptions, has_pins: bool) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    options.passthrough == Passthrough::Allowed
        && options.cache == CacheKind::Disk
        && is_root
        && !has_pins
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
        verify: options.verify,
        pins: None,
    }
}

/// Serves until the kernel closes the connection or a signal arrives.
fn serve(
    runtime: &Runtime,
    request: &MountRequest,
    mounted: Mounted,
    mut signals: EndSignals,
) -> Result<(), MountError> {
    let Mounted { fs, session, metrics } = mounted;
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("session".into());
    thread
        .spawn(move || {
            let _ = ended.send(session.run());
        })
        .map_err(|error| MountError::failed(&error))?;
    runtime.block_on(async {
        tokio::spawn(fs.clone().housekeep());
        if let Some(metrics) = metrics {
            let fs = fs.clone();
            tokio::spawn(metrics.serve(move || metrics::text(&fs.status(true))));
        }
        let outcome = tokio::select! {
            biased;
            reason = panics::first() => {
                // Nothing is saved: what is held may be half recorded.
                fs.abandon();
                unmount(request);
                return Err(MountError::failed(&reason));
            }
            ended = end => {
                fs.stop(LEAVE_PATIENCE).await;
                let died = || Err(std::io::Error::other("the thread that serves the kernel died"));
                ended.unwrap_or_else(|_| died())
            }
            signal = terminated(&mut signals, request.options.root_fs) => {
                info!(signal = signal.name(), "unmounting");
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

/// Waits for a signal that ends the process. None ends a process that serves a root file system: it
/// must outlive whatever would be run to shut the system down.
async fn terminated(signals: &mut EndSignals, is_root_fs: bool) -> EndSignal {
    loop {
        let signal = signals.recv().await;
        if !is_root_fs {
            return signal;
        }
        let name = signal.name();
        if let Some(more) = log_limit::allow("signal ignored", name) {
            info!(signal = name, "ignored: this process serves a root file system{more}");
        }
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
