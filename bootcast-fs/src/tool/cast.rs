//! Fetches a file by multicast, as a member of its cast.

use std::sync::Arc;
use std::time::Duration;

use bootcast_host::signals::EndSignals;
use bootcast_proto::Etag;

use super::error::ToolError;
use super::output::{Sink, Zeros};
use super::probe::Probe;
use super::progress::Progress;
use super::proof::Gate;
use super::range::{ByteRange, RangeFetch};
use super::relay::{Relay, Relayed};
use super::spool::{Scratch, Spool};
use super::stall::{ProgressDetector, StallClock};
use super::unicast::{ResumePoint, UnicastFetch};
use super::url::Target;
use crate::cache::{Cache, ObjectKey, Store};
use crate::io::{Intake, IntakeConfig, InterfaceChoice, seed};
use crate::object::{Object, Opening, Snapshot, Unread};
use crate::receiver::{Failure, Fill, Timing, UnicastMode, Verify};

/// Timing of the membership: the member joins again after `silence` without a datagram, and leaves
/// at once when it is done.
const TIMING: Timing = Timing { linger: Duration::ZERO, silence: Duration::from_secs(2) };
/// Longest time that the end of a fetch waits for its leave request.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two checks of the progress.
const CHECK_PERIOD: Duration = Duration::from_millis(100);
/// Time for another process to save what it received.
const SAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Fetch of a file as a member of its cast.
#[derive(Debug)]
pub(super) struct CastFetch {
    target: Target,
    intake: Intake,
    /// Longest time without a new page; `None` for no limit.
    timeout: Option<Duration>,
    verify: Verify,
}

impl CastFetch {
    /// Starts the receive thread. Needs the tokio runtime.
    pub(super) fn new(
        target: &Target,
        interface: InterfaceChoice,
        timeout: Option<Duration>,
        verify: Verify,
    ) -> Result<Self, ToolError> {
        interface.check().map_err(|error| ToolError::Usage(error.to_string()))?;
        let runtime = tokio::runtime::Handle::current();
        let config = IntakeConfig { control: target.control.clone(), interface, runtime };
        let intake = Intake::start(config).map_err(|error| {
            ToolError::Local(format!("cannot start the receive thread: {error}"))
        })?;
        Ok(Self { target: target.clone(), intake, timeout, verify })
    }

    /// Writes the file to `sink`, each page in place when it arrives. Returns the size.
    pub(super) async fn write_in_place(
        &self,
        sink: &Sink,
        zeros: Zeros,
        progress: &Progress,
        signals: &mut EndSignals,
    ) -> Result<u64, ToolError> {
        let store = Store::transient(sink.reopen()?, Scratch::find().cache());
        let store = if let Zeros::Freed(_) = zeros { store.freeing_zeros() } else { store };
        let object = self.object(store, Fill::Full);
        let clock = StallClock::new(self.timeout);
        let show = |now: &Snapshot| progress.show(now.received, now.size_at_most);
        let completion = async {
            completion(&object).await.map_err(|failure| match failure {
                Failure::Store(text) => sink.write_error_because(&text),
                failure => failure.into(),
            })
        };
        self.run_as_member(&object, &clock, show, signals, unless_unreadable(&object, completion))
            .await?;
        // The size is known because the file is complete.
        let size = object.snapshot().size.unwrap_or_default();
        object.store().set_size(size).map_err(|error| sink.write_error(&error))?;
        Ok(size)
    }

    /// Fetches a version into a cache. What arrived is kept also if the rest does not. Returns the
    /// complete file, which stays in the cache as long as the object lives.
    pub(super) async fn keep(
        &self,
        cache: &Cache,
        etag: Etag,
        size: u64,
        progress: &Progress,
        signals: &mut EndSignals,
    ) -> Result<Arc<Object>, ToolError> {
        let Target { control, path } = &self.target;
        let content = control.stated_id(path, &etag);
        let server = control.server().to_owned();
        let key = ObjectKey { server, path: path.clone(), etag: Some(etag), content };
        let store = cache.open(&key).map_err(|error| cannot_keep(&error))?;
        if store.path().is_none() {
            return Err(not_shared());
        }
        let object = Object::new(key, store, Some(size), TIMING, Fill::Full, seed());
        let object = object.with_unicast(UnicastMode::Auto).with_verify(self.verify);
        let object = Arc::new(object);
        let mut outcome = Ok(());
        if !object.has_all_pages() {
            let clock = StallClock::new(self.timeout);
            let show = |now: &Snapshot| progress.show(now.received, now.size_at_most);
            let kept = async {
                tokio::select! {
                    done = kept_completion(&object) => done.map_err(|failure| match failure {
                        Failure::Store(reason) => ToolError::Cache(reason),
                        failure => failure.into(),
                    }),
                    full = has_no_room(&object) => Err(full),
                }
            };
            let kept = unless_unreadable(&object, kept);
            outcome = self.run_as_member(&object, &clock, show, signals, kept).await;
        }
        let kept = object.clone();
        let saved = tokio::task::spawn_blocking(move || kept.checkpoint()).await;
        outcome?;
        let saved = saved.map_err(|error| cannot_keep(&error))?;
        saved.map_err(|error| cannot_keep(&error)).map(|()| object)
    }

    /// Writes the file to `sink` in order, as pages arrive and `gate` has proven them. Returns the
    /// size.
    pub(super) async fn write_in_order(
        &self,
        sink: &Sink,
        gate: Option<Gate>,
        progress: &Progress,
        signals: &mut EndSignals,
    ) -> Result<u64, ToolError> {
        let spool = Spool::new()?;
        let object = self.object(spool.store()?, Fill::Full);
        let clock = StallClock::new(self.timeout);
        let show = |now: &Snapshot| progress.show(now.received, now.size_at_most);
        let relay = Relay::new(&object, &spool, sink, gate, &clock);
        let relaying = unless_unreadable(&object, relay.run(|| self.leave(&object)));
        match self.run_as_member(&object, &clock, show, signals, relaying).await? {
            Relayed::All => Ok(relay.written()),
            Relayed::SpoolFull(reason) => {
                let etag = object.snapshot().etag.ok_or_else(|| spool_full(&spool, &reason))?;
                let from = ResumePoint { first: 0, written: relay.written(), end: None, etag };
                self.resume_over_http(from, relay.into_gate(), sink, progress, signals).await
            }
        }
    }

    /// Writes a part of the file to `sink` in order, as pages arrive. Returns the size of the part.
    pub(super) async fn write_range(
        &self,
        range: ByteRange,
        sink: &Sink,
        progress: &Progress,
        signals: &mut EndSignals,
    ) -> Result<u64, ToolError> {
        let spool = Spool::new()?;
        let object = self.object(spool.store()?, Fill::Demand);
        let clock = StallClock::new(self.timeout);
        let fetch = RangeFetch::new(range, &object, &self.intake, &spool, sink, &clock);
        let show = |_: &Snapshot| progress.show(fetch.written(), fetch.total());
        let outcome = self.run_as_member(&object, &clock, show, signals, fetch.run()).await;
        let relayed = outcome.map_err(|error| match error {
            ToolError::Changed if fetch.written() > 0 => ToolError::ChangedMidway(fetch.written()),
            error => error,
        })?;
        match relayed {
            Relayed::All => Ok(fetch.written()),
            Relayed::SpoolFull(reason) => {
                let etag = object.snapshot().etag.ok_or_else(|| spool_full(&spool, &reason))?;
                let Some(bytes) = fetch.bytes() else { return Err(spool.error(&reason)) };
                let (first, written) = (bytes.start, fetch.written());
                let from = ResumePoint { first, written, end: Some(bytes.end), etag };
                self.resume_over_http(from, None, sink, progress, signals).await
            }
        }
    }

    /// Fetches the rest over HTTP, which follows the speed of the reader and needs no spool.
    /// Returns the number of bytes written in all.
    async fn resume_over_http(
        &self,
        from: ResumePoint,
        gate: Option<Gate>,
        sink: &Sink,
        progress: &Progress,
        signals: &mut EndSignals,
    ) -> Result<u64, ToolError> {
        progress.notify("no room to spool for a slow reader, fetching the rest over HTTP");
        let fetch = UnicastFetch::resume(&self.target, self.timeout, progress, sink, from);
        let mut fetch = fetch.through(gate);
        signals.guard(fetch.run()).await
    }

    /// Creates the object of the file, with its pages in `store`.
    fn object(&self, store: Store, fill: Fill) -> Arc<Object> {
        let key = ObjectKey {
            server: self.target.control.server().to_owned(),
            path: self.target.path.clone(),
            etag: None,
            content: None,
        };
        let object = Object::new(key, store, None, TIMING, fill, seed());
        Arc::new(object.with_unicast(UnicastMode::Auto).with_verify(self.verify))
    }

    /// Joins the cast, runs `work`, and leaves however it ends.
    async fn run_as_member<T>(
        &self,
        object: &Arc<Object>,
        clock: &StallClock,
        show: impl Fn(&Snapshot),
        signals: &mut EndSignals,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        object.open();
        self.intake.attend(object);
        let mut probe = Probe::new(&self.target);
        let watched = async {
            let outcome = tokio::select! {
                done = work => done,
                stalled = self.wait_for_stall(object, clock, show) => Err(stalled),
                // Not polled again after this.
                failure = probe.failure() => return Err(failure),
            };
            match outcome {
                Ok(done) => Ok(done),
                Err(error) => Err(probe.explain(error).await),
            }
        };
        let outcome = signals.guard(watched).await;
        self.leave(object);
        self.intake.drain(LEAVE_TIMEOUT).await;
        outcome
    }

    /// Ends the membership. Held pages stay readable.
    fn leave(&self, object: &Arc<Object>) {
        object.shut_down();
        self.intake.attend(object);
    }

    /// Shows the progress. Returns an error once nothing new arrived within the timeout.
    async fn wait_for_stall(
        &self,
        object: &Object,
        clock: &StallClock,
        show: impl Fn(&Snapshot),
    ) -> ToolError {
        let mut ticks = tokio::time::interval(CHECK_PERIOD);
        let mut detector = ProgressDetector::default();
        loop {
            ticks.tick().await;
            let snapshot = object.snapshot();
            show(&snapshot);
            let counters = snapshot.counters;
            // Only plain servers repeat a whole file to repair it. They have no versions.
            let pages = if snapshot.etag.is_some() { None } else { snapshot.pages };
            let pass = u64::from(pages.unwrap_or(0));
            let is_new = detector.update(counters.pages, counters.duplicates, pass);
            if is_new || snapshot.is_complete {
                clock.restart();
            }
            if let Some(waited) = clock.expired() {
                return self.stalled(&snapshot, waited);
            }
        }
    }

    /// Creates the error of a fetch that stalled, with the most likely cause.
    fn stalled(&self, snapshot: &Snapshot, waited: Duration) -> ToolError {
        let waited = humantime::format_duration(Duration::from_secs(waited.as_secs()));
        let server = self.target.control.server();
        let counters = snapshot.counters;
        let heard = counters.pages + counters.duplicates + counters.symbols;
        ToolError::TimedOut(match snapshot.opening {
            Opening::Pending | Opening::Failed(_) => {
                format!("{server} answered no join for {waited}: it is down or overloaded")
            }
            Opening::Open if heard == 0 && counters.forged > 0 => format!(
                "joined, but for {waited} only forged datagrams arrived: another host sends to the \
                 group in the name of {server}, try --unicast"
            ),
            Opening::Open if heard == 0 => format!(
                "joined, but nothing arrived for {waited}: check that multicast from {server} \
                 reaches this host (firewall, --interface, IGMP querier), or try --unicast"
            ),
            Opening::Open => format!(
                "nothing new arrived for {waited}: check {server} and the network, or try --unicast"
            ),
        })
    }
}

fn cannot_keep(error: &impl ToString) -> ToolError {
    ToolError::Cache(format!("cannot use the cache: {}", error.to_string()))
}

fn not_shared() -> ToolError {
    ToolError::Cache("another program fetches it into this cache, and does not share it".into())
}

/// Waits until the file cannot be kept in the cache, mostly because that has no room for it.
async fn has_no_room(object: &Object) -> ToolError {
    let mut ticks = tokio::time::interval(CHECK_PERIOD);
    while !object.is_past_cache() {
        if !object.store().is_persistent() {
            return not_shared();
        }
        ticks.tick().await;
    }
    ToolError::Cache("the cache has no room for it: see --cache-size and --cache-min-free".into())
}

/// Creates the error of a full spool on a plain server, which serves no files over HTTP.
fn spool_full(spool: &Spool, reason: &str) -> ToolError {
    spool.error(&format!("{reason}, and this server serves no files over HTTP"))
}

/// Runs `work`, which needs the whole file. Fails once the server reports a part that it cannot
/// read.
async fn unless_unreadable<T>(
    object: &Object,
    work: impl Future<Output = Result<T, ToolError>>,
) -> Result<T, ToolError> {
    let unreadable = object.wait_for(|snapshot| snapshot.unreadable.map(Unread::Unreadable));
    tokio::select! {
        done = work => done,
        unreadable = unreadable => Err(unreadable.into()),
    }
}

/// Waits until every page is held, and saved by the process that received it, if that is another.
async fn kept_completion(object: &Object) -> Result<(), Failure> {
    completion(object).await?;
    let saved = object.wait_for(|_| (!object.follows()).then_some(()));
    // A process that cannot know the content saves it when it ends.
    let _ = tokio::time::timeout(SAVE_PATIENCE, saved).await;
    Ok(())
}

/// Waits until every page is held.
async fn completion(object: &Object) -> Result<(), Failure> {
    let ended = object.wait_for(|snapshot| match snapshot.opening {
        _ if snapshot.is_complete => Some(Ok(())),
        Opening::Failed(failure) => Some(Err(failure)),
        Opening::Open | Opening::Pending => None,
    });
    ended.await
}
