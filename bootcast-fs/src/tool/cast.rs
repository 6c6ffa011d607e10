//! Fetches by multicast, as a member of the file's cast for as long as needed.

use std::sync::Arc;
use std::time::Duration;

use super::error::ToolError;
use super::output::Sink;
use super::probe::Probe;
use super::progress::Progress;
use super::range::{ByteRange, RangeFetch};
use super::relay::{Relay, Relayed};
use super::signals::Signals;
use super::spool::{Scratch, Spool};
use super::stall::{Progressed, StallClock};
use super::unicast::{Begun, UnicastFetch};
use super::url::Target;
use crate::cache::{ObjectKey, Store};
use crate::io::{Intake, IntakeConfig, InterfaceChoice, seed};
use crate::object::{Object, Opening, Unread};
use crate::receiver::{Failure, Fill, Timing, UnicastMode};

/// Timing of the membership: join again after `silence` without a datagram, leave at once when
/// done.
const TIMING: Timing = Timing { linger: Duration::ZERO, silence: Duration::from_secs(2) };
/// How long the end of a fetch waits for its leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the progress is checked.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Fetch of a file as a member of its cast.
#[derive(Debug)]
pub(super) struct CastFetch {
    target: Target,
    intake: Intake,
    /// Longest time without a new page; `None` for ever.
    patience: Option<Duration>,
}

impl CastFetch {
    /// Prepares to receive. Needs the runtime.
    pub(super) fn new(
        target: &Target,
        interface: InterfaceChoice,
        patience: Option<Duration>,
    ) -> Result<Self, ToolError> {
        interface.check().map_err(|error| ToolError::Usage(error.to_string()))?;
        let runtime = tokio::runtime::Handle::current();
        let config = IntakeConfig { control: target.control.clone(), interface, runtime };
        let intake = Intake::start(config)
            .map_err(|error| ToolError::Local(format!("cannot start to receive: {error}")))?;
        Ok(Self { target: target.clone(), intake, patience })
    }

    /// Receives into a file or a device, each page at its place. Returns the size.
    pub(super) async fn fill(
        &self,
        sink: &Sink,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let store = Store::transient(sink.open_again()?, Scratch::find().cache());
        let object = self.object(store, Fill::Full);
        let clock = StallClock::new(self.patience);
        let show = || progress.show(object.received(), object.size_at_most());
        let completion = async {
            completion(&object).await.map_err(|failure| match failure {
                Failure::Store(text) => sink.refused(&text),
                failure => failure.into(),
            })
        };
        self.follow(&object, &clock, show, signals, whole(&object, completion)).await?;
        // Known because the file is complete.
        let size = object.size().unwrap_or_default();
        object.store().set_size(size).map_err(|error| sink.failed(&error))?;
        Ok(size)
    }

    /// Writes the file to `sink`, in order, as pages arrive. Returns the size.
    pub(super) async fn stream(
        &self,
        sink: &Sink,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let spool = Spool::new()?;
        let object = self.object(spool.store()?, Fill::Full);
        let clock = StallClock::new(self.patience);
        let show = || progress.show(object.received(), object.size_at_most());
        let relay = Relay::new(&object, &spool, sink, &clock);
        let relaying = whole(&object, relay.run(|| self.leave(&object)));
        match self.follow(&object, &clock, show, signals, relaying).await? {
            Relayed::All => Ok(relay.written()),
            Relayed::SpoolFull(reason) => {
                let etag = object.etag().ok_or_else(|| no_other_way(&spool, &reason))?;
                let begun = Begun { first: 0, written: relay.written(), end: None, etag };
                self.go_on(begun, sink, progress, signals).await
            }
        }
    }

    /// Writes a part of the file to `sink`, in order, as pages arrive. Returns the size of the
    /// part.
    pub(super) async fn part(
        &self,
        range: ByteRange,
        sink: &Sink,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        let spool = Spool::new()?;
        let object = self.object(spool.store()?, Fill::Demand);
        let clock = StallClock::new(self.patience);
        let fetch = RangeFetch::new(range, &object, &self.intake, &spool, sink, &clock);
        let show = || progress.show(fetch.written(), fetch.total());
        let outcome = self.follow(&object, &clock, show, signals, fetch.run()).await;
        let relayed = outcome.map_err(|error| match error {
            ToolError::Changed if fetch.written() > 0 => ToolError::ChangedMidway(fetch.written()),
            error => error,
        })?;
        match relayed {
            Relayed::All => Ok(fetch.written()),
            Relayed::SpoolFull(reason) => {
                let etag = object.etag().ok_or_else(|| no_other_way(&spool, &reason))?;
                let Some(bytes) = fetch.bytes() else { return Err(spool.failed(&reason)) };
                let (first, written) = (bytes.start, fetch.written());
                let begun = Begun { first, written, end: Some(bytes.end), etag };
                self.go_on(begun, sink, progress, signals).await
            }
        }
    }

    /// Fetches the rest over HTTP, which is as fast as the reader and needs no spool. Returns the
    /// number of bytes written in all.
    async fn go_on(
        &self,
        begun: Begun,
        sink: &Sink,
        progress: &Progress,
        signals: &mut Signals,
    ) -> Result<u64, ToolError> {
        progress.say("no room to spool for a slow reader, going on over HTTP");
        let mut fetch = UnicastFetch::going_on(&self.target, self.patience, progress, sink, begun)?;
        signals.guard(fetch.run()).await
    }

    fn object(&self, store: Store, fill: Fill) -> Arc<Object> {
        let key = ObjectKey {
            server: self.target.control.server().to_owned(),
            path: self.target.path.clone(),
            etag: None,
        };
        let object = Object::new(key, store, None, TIMING, fill, seed());
        Arc::new(object.with_unicast(UnicastMode::Auto))
    }

    /// Runs `work` as a member, and leaves afterwards however it ends.
    async fn follow<T>(
        &self,
        object: &Arc<Object>,
        clock: &StallClock,
        show: impl Fn(),
        signals: &mut Signals,
        work: impl Future<Output = Result<T, ToolError>>,
    ) -> Result<T, ToolError> {
        object.open();
        self.intake.attend(object);
        let mut probe = Probe::new(&self.target);
        let watched = async {
            let outcome = tokio::select! {
                done = work => done,
                stalled = self.watch_over(object, clock, show) => Err(stalled),
                // Not polled again after this.
                hopeless = probe.hopeless() => return Err(hopeless),
            };
            match outcome {
                Ok(done) => Ok(done),
                Err(error) => Err(probe.explain(error).await),
            }
        };
        let outcome = signals.guard(watched).await;
        self.leave(object);
        self.intake.drain(LEAVE_PATIENCE).await;
        outcome
    }

    /// Ends the membership. Received pages stay readable.
    fn leave(&self, object: &Arc<Object>) {
        object.shut_down();
        self.intake.attend(object);
    }

    /// Shows the progress. Returns when nothing new came for too long.
    async fn watch_over(&self, object: &Object, clock: &StallClock, show: impl Fn()) -> ToolError {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        let mut progressed = Progressed::default();
        loop {
            looks.tick().await;
            show();
            let counters = object.counters();
            // Only plain servers, which have no versions, repeat a file to repair it.
            let pages = if object.etag().is_some() { None } else { object.pages() };
            let pass = u64::from(pages.unwrap_or(0));
            if progressed.look(counters.pages, counters.duplicates, pass) || object.is_complete() {
                clock.restart();
            }
            if let Some(waited) = clock.expired() {
                return self.stalled(object, waited);
            }
        }
    }

    /// Explains why nothing new arrives, as far as this side can tell.
    fn stalled(&self, object: &Object, waited: Duration) -> ToolError {
        let waited = humantime::format_duration(Duration::from_secs(waited.as_secs()));
        let server = self.target.control.server();
        let counters = object.counters();
        let heard = counters.pages + counters.duplicates + counters.symbols;
        ToolError::TimedOut(match object.opening() {
            Opening::Pending | Opening::Failed(_) => {
                format!("{server} took no join for {waited}: it is away or overloaded")
            }
            Opening::Open if heard == 0 && counters.forged > 0 => format!(
                "joined, but for {waited} nothing arrived except datagrams that are not {server}'s: \
                 something else sends to its group in its name, try --unicast"
            ),
            Opening::Open if heard == 0 => format!(
                "joined, but nothing arrived for {waited}: check that multicast from {server} gets \
                 here (firewall, --interface, IGMP querier), or try --unicast"
            ),
            Opening::Open => format!(
                "nothing new arrived for {waited}: check {server} and the network, or try --unicast"
            ),
        })
    }
}

/// Creates the error of a full spool on a plain server, which has no files over HTTP.
fn no_other_way(spool: &Spool, reason: &str) -> ToolError {
    spool.failed(&format!("{reason}, and this server has no files over HTTP"))
}

/// Runs `work`, which wants all of the file, until the server says that it cannot read a part.
async fn whole<T>(
    object: &Object,
    work: impl Future<Output = Result<T, ToolError>>,
) -> Result<T, ToolError> {
    let unreadable = async {
        let mut changes = object.watch();
        loop {
            if let Some(bytes) = object.unreadable() {
                return Unread::Unreadable(bytes);
            }
            // The object outlives this borrow of it.
            let _ = changes.changed().await;
        }
    };
    tokio::select! {
        done = work => done,
        unreadable = unreadable => Err(unreadable.into()),
    }
}

/// Resolves when every page is here.
async fn completion(object: &Object) -> Result<(), Failure> {
    let mut changes = object.watch();
    while !object.is_complete() {
        if let Opening::Failed(failure) = object.opening() {
            return Err(failure);
        }
        // The object outlives this borrow of it.
        let _ = changes.changed().await;
    }
    Ok(())
}
