//! Runs a mount from its start to its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::{Session, SessionACL};
use rustix::process::{Resource, Rlimit};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::cache::{Cache, Names};
use crate::fs::{Fs, FsConfig, Pins};
use crate::fuse::{Adapter, session};
use crate::handover::store::Store;
use crate::handover::{self, Connection, Start};
use crate::io::{Caller, Control, Intake, IntakeConfig, InterfaceChoice};
use crate::journal::{Journal, Record};
use crate::log_limit;
use crate::metrics;
use crate::mount::options::{CacheKind, MetricsAddress, Passthrough};
use crate::mount::{self, MountError, MountOptions, MountRequest, kernel, root_fs};
use crate::panics;
use crate::receiver::{Timing, Verify};
use crate::root::{Root, Search};
use bootcast_host::signals::{EndSignal, EndSignals};

/// Time without a datagram after which a member joins again.
const SILENCE: Duration = Duration::from_secs(2);
/// Longest time that the end of a mount waits for its leave requests.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest time that a process waits for its leave requests when it hands its mount over.
const HANDOVER_LEAVE_PATIENCE: Duration = Duration::from_millis(100);

/// End of a mount for this process.
enum Ended {
    /// It is unmounted.
    Unmounted,
    /// Another process serves it from now on.
    HandedOver,
}

/// Mounts the file system, or takes a mount over, as `start` says. Calls `ready` once the kernel's
/// requests are served, and serves until an unmount, a signal, or the next process. With `bg`,
/// `ready` is called earlier if the server does not answer. Leaves the connection in `store`.
pub fn run_mount(
    request: &MountRequest,
    start: Start,
    store: &Store,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    raise_file_limit();
    mount::limit_arenas();
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
    let prepared = runtime.block_on(async {
        let signals = EndSignals::listen().map_err(|error| MountError::failed(&error))?;
        Network::check(request).map(|network| (network, signals))
    });
    let (network, mut signals) = prepared?;
    // A signal waits until the connection is here: nobody else would serve the mount.
    let connection = start.connection()?;
    let is_taken_over = connection.is_some();
    let number = connection.as_ref().and_then(|it| it.number(&request.mountpoint));
    let mut ready = Some(ready);
    let on_wait = || {
        if let Some(ready) = ready.take_if(|_| request.options.is_background) {
            store.report_waiting();
            ready();
        }
    };
    let begun = runtime.block_on(begin(request, network, connection, &mut signals, on_wait));
    if begun.is_err() && is_taken_over {
        // Nobody else serves it.
        if let Some(number) = number {
            kernel::detach(&request.mountpoint, number);
        }
        store.remove();
    }
    let mounted = begun?;
    let listener = runtime.block_on(async { mounted.listen(request, store) });
    store.keep(mounted.connection.as_ref());
    if let Some(ready) = ready {
        ready();
    }
    let (source, mountpoint) = (request.shown_source.display(), request.mountpoint.display());
    info!(%source, %mountpoint, "mounted");
    let serving = Serving { request, store, mounted, listener: listener.as_ref(), signals };
    match serving.run(&runtime) {
        Ok(Ended::HandedOver) => {
            // Its tasks have requests that are the next process's to answer.
            std::mem::forget(runtime);
            Ok(())
        }
        ended => {
            store.remove();
            ended.map(|_| ())
        }
    }
}

/// Mounts, or resumes the connection. Fails on a signal, and on a panic of any thread.
async fn begin(
    request: &MountRequest,
    network: Network,
    connection: Option<Connection>,
    signals: &mut EndSignals,
    on_wait: impl FnMut(),
) -> Result<Mounted, MountError> {
    let begin = async {
        match connection {
            None => Mounted::begin_new(request, network, on_wait).await,
            Some(connection) => Mounted::begin_resumed(request, network, connection).await,
        }
    };
    tokio::select! {
        biased;
        reason = panics::first() => Err(MountError::failed(&reason)),
        mounted = signals.guard(begin) => mounted,
    }
}

/// Client of the server, and the interface to it. A process checks them before it takes a mount
/// over.
struct Network {
    control: Control,
    interface: InterfaceChoice,
}

impl Network {
    fn check(request: &MountRequest) -> Result<Self, MountError> {
        let MountRequest { source, options, .. } = request;
        if options.wants_rw {
            warn!("ignoring -o rw: the file system is read-only");
        }
        let control =
            Control::new(&source.base_url()).map_err(|error| MountError::failed(&error))?;
        let interface =
            options.interface.as_deref().map_or(InterfaceChoice::TowardServer, |text| {
                text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
            });
        interface.check().map_err(|error| MountError::failed(&error))?;
        Ok(Self { control, interface })
    }

    /// Starts to receive what a file system asks for.
    fn start_intake(&self) -> Result<Intake, MountError> {
        let (control, interface) = (self.control.clone(), self.interface.clone());
        let config = IntakeConfig { control, interface, runtime: Handle::current() };
        Intake::start(config).map_err(|error| MountError::failed(&error))
    }
}

/// A mount that the kernel accepted.
struct Mounted {
    fs: Arc<Fs>,
    session: Session<Adapter>,
    metrics: Option<metrics::Listener>,
    /// Connection for the next process; `None` if none could resume it.
    connection: Option<Connection>,
}

impl Mounted {
    /// Mounts. Calls `on_wait` if the server does not answer.
    async fn begin_new(
        request: &MountRequest,
        network: Network,
        on_wait: impl FnMut(),
    ) -> Result<Self, MountError> {
        let cache = open_cache(&request.options)?;
        let names = open_names(&cache, &network.control);
        let metrics = listen_for_metrics(&request.options).await?;
        let search = Search { control: &network.control, request, names: names.as_ref() };
        let root = search.run(on_wait).await?;
        let is_remembered = root.is_remembered;
        let intake = network.start_intake()?;
        let fs = new_fs(request, network.control, cache, names, intake, root)?;
        if is_remembered {
            fs.begin_without_server();
        }
        let device = kernel::mount(request)?;
        let begun = Self::begin_session(request, fs, device, metrics);
        if begun.is_err() {
            let _ = kernel::unmount(&request.mountpoint, true);
        }
        begun
    }

    /// Takes over the mount whose process had this connection, and has ended.
    async fn begin_resumed(
        request: &MountRequest,
        network: Network,
        Connection { device, journal }: Connection,
    ) -> Result<Self, MountError> {
        debug!("the old process has ended");
        let cache = open_cache(&request.options)?;
        let names = open_names(&cache, &network.control);
        let metrics = listen_for_metrics(&request.options).await?;
        let (journal, mut state) =
            Journal::resume(journal).map_err(|error| MountError::failed(&error))?;
        let config = fs_config(request, Root::pins_of(request)?);
        let (intake, journal) = (network.start_intake()?, Arc::new(journal));
        let fs = Fs::resumed(config, network.control, cache, intake, &mut state, journal);
        let fs = Arc::new(fs.with_names(names));
        let opens = fs.restore_opens(&state).await;
        let adapter = adapter(request, &fs, &device)?.with_restored(&opens);
        let session = session::resume(adapter, &device, acl(&request.options));
        let session = session.map_err(|error| MountError::failed(&error))?;
        let connection = connection_of(&fs, device)?;
        info!(open_files = opens.len(), "took the mount over from another process");
        Ok(Self { fs, session, metrics, connection })
    }

    /// Starts the session of a new connection. The FUSE handshake happens here.
    fn begin_session(
        request: &MountRequest,
        fs: Arc<Fs>,
        device: OwnedFd,
        metrics: Option<metrics::Listener>,
    ) -> Result<Self, MountError> {
        let failed = |error: std::io::Error| MountError::failed(&error);
        let adapter = adapter(request, &fs, &device)?;
        let can_resend = adapter.can_resend();
        let spare = device.try_clone().map_err(failed)?;
        let session = session::begin(adapter, device, acl(&request.options)).map_err(failed)?;
        let connection = if can_resend.load(Ordering::Acquire) {
            connection_of(&fs, spare)?
        } else {
            debug!("this kernel cannot send requests again: the mount cannot be handed over");
            None
        };
        Ok(Self { fs, session, metrics, connection })
    }

    /// Opens the socket for the next process, if there may be one.
    fn listen(&self, request: &MountRequest, store: &Store) -> Option<handover::Listener> {
        // A service manager would not know the next process.
        let connection = self.connection.as_ref().filter(|_| !store.is_service_manager())?;
        let listen = || {
            let minor = kernel::connection_number(&request.mountpoint)?;
            let bound = connection
                .try_clone()
                .and_then(|connection| handover::Listener::bind(minor, connection));
            bound.map_err(|error| MountError::failed(&error))
        };
        listen()
            .inspect_err(|error| {
                info!(%error, "bootcastfs --replace will not find this process");
            })
            .ok()
    }
}

/// Creates the file system of a new mount.
fn new_fs(
    request: &MountRequest,
    control: Control,
    cache: Cache,
    names: Option<Names>,
    intake: Intake,
    Root { path, attributes, pins, .. }: Root,
) -> Result<Arc<Fs>, MountError> {
    let config = fs_config(request, pins);
    Ok(Arc::new(match attributes {
        Some(attributes) => {
            let journal = new_journal(request)?;
            Fs::new(config, control, cache, intake, path, attributes, Arc::new(journal))
                .with_names(names)
        }
        // A next process could not tell whether it gets the same content under the same name.
        None => Fs::new_plain(config, control, cache, intake, path),
    }))
}

fn new_journal(request: &MountRequest) -> Result<Journal, MountError> {
    if request.options.root_fs {
        // The next process would be read from its own mount.
        return Ok(Journal::disabled());
    }
    let journal = Journal::create().map_err(|error| MountError::failed(&error))?;
    journal.record(|| Record::Mount(request.typed.clone()));
    Ok(journal)
}

/// Creates the adapter of a mount whose connection is `device`. Must be called within the runtime.
fn adapter(request: &MountRequest, fs: &Arc<Fs>, device: &OwnedFd) -> Result<Adapter, MountError> {
    let options = &request.options;
    let (uid, gid) = owner(options);
    let device = device.try_clone().map_err(|error| MountError::failed(&error))?;
    Ok(Adapter::new(fs.clone(), Handle::current(), device, uid, gid)
        .with_modes_enforced(options.default_permissions)
        .with_passthrough(may_pass_through(options)))
}

/// Returns what the next process needs; `None` if the mount has no journal.
fn connection_of(fs: &Fs, device: OwnedFd) -> Result<Option<Connection>, MountError> {
    let journal = fs.journal().file().transpose().map_err(|error| MountError::failed(&error))?;
    Ok(journal.map(|journal| Connection { device, journal }))
}

fn acl(options: &MountOptions) -> SessionACL {
    if options.allow_other { SessionACL::All } else { SessionACL::Owner }
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
async fn listen_for_metrics(
    options: &MountOptions,
) -> Result<Option<metrics::Listener>, MountError> {
    let Some(address) = &options.metrics else { return Ok(None) };
    let listener = metrics::Listener::bind(address).await;
    listener.map(Some).map_err(|error| {
        let address = match address {
            MetricsAddress::Tcp(address) => address.to_string(),
            MetricsAddress::Unix(path) => path.display().to_string(),
        };
        MountError::failed(&format!("cannot serve metrics at {address}: {error}"))
    })
}

/// Whether the kernel may ever read a cache file of this mount itself.
fn may_pass_through(options: &MountOptions) -> bool {
    let has_pins = options.pins.is_some() || options.b3.is_some();
    let is_root = rustix::process::geteuid().is_root();
    options.passthrough == Passthrough::Allowed
        && options.cache == CacheKind::Disk
        && is_root
        && !has_pins
}

/// Returns user and group of all files.
fn owner(options: &MountOptions) -> (u32, u32) {
    let uid = options.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let gid = options.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
    (uid, gid)
}

fn fs_config(request: &MountRequest, pins: Option<Pins>) -> FsConfig {
    let options = &request.options;
    let (uid, gid) = owner(options);
    FsConfig {
        uid,
        gid,
        umask: options.umask.unwrap_or(0).into(),
        attr_ttl: options.attr_ttl,
        wait_limit: options.wait_limit(),
        timing: Timing { linger: options.linger, silence: SILENCE },
        unicast: options.unicast,
        fill: options.fill,
        // The bytes of pinned files are proven at every read. Leaves are verified before all the
        // same, so that a member that forges is found out.
        verify: if pins.is_some() { Verify::Leaf } else { options.verify },
        pins,
        only: Root::only_of(request),
    }
}

/// A mount that is served until the kernel closes the connection, a signal arrives, or another
/// process takes over.
struct Serving<'a> {
    request: &'a MountRequest,
    /// Keeps the connection for the next process.
    store: &'a Store,
    mounted: Mounted,
    /// Socket at which the next process asks for the mount; `None` if none can.
    listener: Option<&'a handover::Listener>,
    signals: EndSignals,
}

impl Serving<'_> {
    /// Serves the mount.
    fn run(self, runtime: &Runtime) -> Result<Ended, MountError> {
        let Self { request, store, mounted, listener, mut signals } = self;
        let Mounted { fs, session: fuse, metrics, connection } = mounted;
        // The socket and the store have their own descriptors.
        drop(connection);
        let (ended, end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("session".into());
        thread
            .spawn(move || {
                let _ = ended.send(session::run(fuse));
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
                () = next_process(listener) => {
                    store.give_away();
                    info!("handing the mount over to another process");
                    fs.hand_over(HANDOVER_LEAVE_PATIENCE).await;
                    return Ok(Ended::HandedOver);
                }
            };
            // The last step, because it may block on the disk.
            fs.save();
            info!("unmounted");
            outcome.map(|()| Ended::Unmounted).map_err(|error| MountError::failed(&error))
        })
    }
}

/// Waits until another process takes over. Never returns if none can.
async fn next_process(listener: Option<&handover::Listener>) {
    match listener {
        Some(listener) => listener.next_process().await,
        None => std::future::pending().await,
    }
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

/// Unmounts, or detaches the mount if files are still open. Then the FUSE connection is closed when
/// the last process that has it ends: this one, or the one that keeps it.
fn unmount(request: &MountRequest) {
    let first = kernel::unmount(&request.mountpoint, false);
    if let Err(error) = first.or_else(|_| kernel::unmount(&request.mountpoint, true)) {
        warn!(%error, "cannot unmount");
    }
}
