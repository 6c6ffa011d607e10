//! Demand for single pages: reads that wait, what the server is asked for because of them, and its
//! answers. docs/PROTOCOL.md, "Demand".

use std::ops::Range;
use std::time::{Duration, Instant};

use bootcast_proto::api::Want;
use bootcast_proto::{Backoff, Geometry, JoinAnswer, PageIndex, PageRange};

use super::demand::{Demand, DemandView, Fill, WaitId};
use super::reads::Access;
use super::remainder::Remainder;
use super::repair::Repair;
use super::stream_position::StreamPosition;
use super::{Assembly, ReportError};

/// Pauses before a forgotten member joins again, from the second time in a row on.
const REJOIN: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(6400));

/// Consequence of the answer to a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantOutcome {
    /// The server knows this member: its lease is renewed.
    Accepted,
    /// Nothing follows; the pages are demanded again.
    Failed,
    /// The server does not know this member, which should join again after this pause.
    Forgotten(Duration),
}

/// Facts about the file that demands depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileView<'a> {
    /// Pages that arrived, once the page size is known.
    pub(super) assembly: Option<&'a Assembly>,
    /// Blocks of the present cast, if it has repair.
    pub(super) blocks: Option<&'a Repair>,
}

/// Demands of one receiver.
#[derive(Debug, Default)]
pub(super) struct DemandLoop {
    demand: Demand,
    /// Position of the present cast's stream.
    stream: Option<StreamPosition>,
    /// Demands in a row for which the server did not know this member.
    forgotten: u32,
    /// Waits for pages that no stream and no symbol brings, because an unreadable page keeps their
    /// block from being rebuilt.
    cut_off: Vec<WaitId>,
    /// Demands for all that is missing; `None` if only readers' pages are demanded.
    remainder: Option<Remainder>,
}

impl DemandLoop {
    /// Sets which pages should arrive; all, by default.
    pub(super) fn set_fill(&mut self, fill: Fill) {
        self.demand.set_fill(fill);
    }

    /// Which pages should arrive.
    pub(super) fn fill(&self) -> Fill {
        self.demand.fill()
    }

    /// Adopts the answer's facts about the stream, and whether the server supports demand.
    pub(super) fn begin(&mut self, answer: &JoinAnswer, geometry: &Geometry, now: Instant) {
        let rate = answer.extensions.rate;
        self.stream = Some(StreamPosition::new(geometry.pages(), answer.page_size, rate, now));
        // Without a lease a member cannot demand.
        let is_supported = answer.extensions.lease.is_some();
        self.demand.begin(is_supported, geometry, now);
    }

    /// Whether only demanded pages are expected, and whether some are. `None` where the server
    /// sends the stream for this member.
    pub(super) fn expects_demanded(&self) -> Option<bool> {
        let is_on_demand = self.demand.is_supported() && self.fill() == Fill::Demand;
        is_on_demand.then(|| self.demand.is_waiting())
    }

    /// Records a read, whether it waits or not.
    pub(super) fn record_read(&mut self, bytes: &Range<u64>, file: FileView<'_>) -> Access {
        self.demand.record_read(bytes, view(file, self.stream.as_ref()))
    }

    /// Bytes that were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.demand.bytes_read()
    }

    /// Bytes that the last reader has read one after another.
    pub(super) fn newest_run(&self) -> Range<u64> {
        self.demand.newest_run()
    }

    /// Starts the wait of a read.
    pub(super) fn begin_wait(
        &mut self,
        bytes: &Range<u64>,
        access: Access,
        geometry: Option<&Geometry>,
        now: Instant,
    ) -> WaitId {
        self.demand.begin_wait(bytes, access, geometry, now)
    }

    /// Ends the wait of a read.
    pub(super) fn end_wait(&mut self, wait: WaitId) {
        self.demand.end_wait(wait);
    }

    /// Demands pages that nothing else brings, instead of those of the last call.
    pub(super) fn demand_cut_off(
        &mut self,
        pages: &[PageIndex],
        geometry: Option<&Geometry>,
        now: Instant,
    ) {
        for wait in self.cut_off.drain(..) {
            self.demand.end_wait(wait);
        }
        let Some(geometry) = geometry else { return };
        for page in pages {
            let bytes = geometry.byte_range(PageRange::single(*page));
            let wait = self.demand.begin_wait(&bytes, Access::Random, Some(geometry), now);
            self.cut_off.push(wait);
        }
        debug_assert_eq!(self.cut_off.len(), pages.len(), "one wait for each page");
    }

    /// Stops filling the file: from now on only what is read arrives.
    pub(super) fn stop_filling(&mut self) {
        for wait in self.cut_off.drain(..) {
            self.demand.end_wait(wait);
        }
        self.end_remainder();
        self.demand.set_fill(Fill::Demand);
    }

    /// Demands all missing pages from now on, a few at a time, whether they are read or not.
    pub(super) fn begin_remainder(&mut self) {
        self.remainder = Some(Remainder::default());
    }

    /// Demands only what is read again.
    fn end_remainder(&mut self) {
        if let Some(mut remainder) = self.remainder.take() {
            remainder.end(&mut self.demand);
        }
    }

    /// Leaves out pages that the server cannot read, until all others have come.
    pub(super) fn skip_remainder(&mut self, runs: &[PageRange]) {
        if let Some(remainder) = &mut self.remainder {
            remainder.skip(runs, &mut self.demand);
        }
    }

    /// Whether the server supports demand.
    pub(super) fn is_supported(&self) -> bool {
        self.demand.is_supported()
    }

    /// Handles a page that was missing. Returns whether this member demanded it.
    pub(super) fn handle_new_page(&mut self, page: PageIndex, now: Instant) -> bool {
        let was_demanded = self.demand.is_asked(page);
        self.demand.came(page, now);
        was_demanded
    }

    /// Handles pages that were stored.
    pub(super) fn handle_stored(&mut self, pages: PageRange) {
        self.demand.stored(pages);
    }

    /// Handles pages that came and could not be stored.
    pub(super) fn handle_not_stored(&mut self, pages: PageRange, now: Instant) {
        self.demand.handle_not_stored(pages, now);
    }

    /// Handles pages that were here and are dropped.
    pub(super) fn handle_dropped(&mut self, pages: PageRange, now: Instant) {
        self.demand.handle_dropped(pages, now);
    }

    /// Handles the position that the newest beacon states.
    pub(super) fn handle_beacon(&mut self, position: PageIndex, now: Instant) {
        if let Some(stream) = &mut self.stream {
            stream.beacon(position, now);
        }
    }

    /// Whether the stream sends pages for somebody, as far as beacons tell.
    pub(super) fn is_streaming(&self, now: Instant) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.is_running(now))
    }

    /// Declares overdue demanded pages lost.
    pub(super) fn lose_late(&mut self, now: Instant) {
        self.demand.lose_late(now);
    }

    /// Runs what is due.
    pub(super) fn handle_timeout(&mut self, file: FileView<'_>, now: Instant) {
        if let Some(view) = view(file, self.stream.as_ref()) {
            if let Some(remainder) = &mut self.remainder {
                remainder.handle_timeout(&mut self.demand, view, now);
            }
            self.demand.handle_timeout(view, now);
        }
    }

    /// Returns pages that were demanded repeatedly and did not arrive.
    pub(super) fn take_overdue(&mut self) -> Vec<PageRange> {
        self.demand.take_overdue()
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.demand.poll_timeout()
    }

    /// Whether demanded pages are on their way.
    pub(super) fn is_waiting(&self) -> bool {
        self.demand.is_waiting()
    }

    /// Whether a random reader waits, so that the time of each page matters.
    pub(super) fn is_hurried(&self, now: Instant) -> bool {
        self.demand.is_hurried(now)
    }

    /// Returns a request to send now.
    pub(super) fn poll_want(&mut self) -> Option<Want> {
        self.demand.poll_want()
    }

    /// Handles the answer to a demand of the present membership. It states when the demanded pages
    /// leave the server.
    pub(super) fn handle_answer(
        &mut self,
        want: &Want,
        result: Result<Duration, ReportError>,
    ) -> WantOutcome {
        self.demand.answered(want, result.ok());
        match result {
            Ok(_) => {
                self.forgotten = 0;
                WantOutcome::Accepted
            }
            Err(ReportError::Temporary) => WantOutcome::Failed,
            Err(ReportError::UnknownMember) => WantOutcome::Forgotten(self.rejoin_pause()),
        }
    }

    /// Pause before a forgotten member joins again: none the first time, because a reader waits.
    fn rejoin_pause(&mut self) -> Duration {
        let pause = self.forgotten.checked_sub(1).map(|earlier| REJOIN.pause(earlier));
        self.forgotten = self.forgotten.saturating_add(1);
        pause.unwrap_or_default()
    }
}

/// State of the pages that decisions depend on; `None` before the first join.
fn view<'a>(file: FileView<'a>, stream: Option<&'a StreamPosition>) -> Option<DemandView<'a>> {
    let (assembly, stream) = (file.assembly?, stream?);
    let (geometry, arrived) = (assembly.geometry(), assembly.arrived());
    Some(DemandView { geometry, arrived, stream, blocks: file.blocks })
}
