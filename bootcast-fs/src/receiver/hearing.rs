//! Measures whether the network brings what the server sends, for each of the two ports.
//! docs/PROTOCOL.md, "Unicast".
//!
//! A datagram proves little by arriving: an old one may be sent again, and a network may pass one
//! port, or short datagrams only. The proof is in numbers: each newer beacon states how many
//! datagrams were sent before it, and full pages either arrived meanwhile or did not.

use std::time::{Duration, Instant};

use bootcast_proto::PageIndex;
use bootcast_proto::limits::{BEACON_INTERVAL_MAX, HEARD_DIVISOR, RETURN_PAGES};

/// Time in which a server that sends must be heard.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Datagrams that must have been sent before their absence proves anything: at a loss of one half,
/// as many are lost in a row once in four billion times.
const ENOUGH_SENT: u64 = 32;
/// Pages that came before the lack of beacons means anything.
const ENOUGH_PAGES: u32 = 32;
/// Time for which pages must come without a beacon after beacons did come. A server that stops, or
/// a link that goes down, cuts both off at once: then the pages after the last beacon come within
/// two beacon intervals.
const ENOUGH_TIME: Duration = BEACON_INTERVAL_MAX.saturating_mul(4);
/// Time within which [`RETURN_PAGES`] must come to show that multicast works again.
const ROW_TIME: Duration = Duration::from_secs(2);

/// Conclusion from a beacon about the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// Pages come.
    Heard,
    /// This many datagrams were sent to the data port, and hardly a full page came.
    Deaf {
        /// Datagrams sent beyond the symbols that came.
        sent: u64,
    },
}

/// Sign that a cast goes on, beside new pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SignsOfLife {
    /// Nothing: the member gets only what it demands.
    #[default]
    Nothing,
    /// Repeated pages: there is a stream for this member, and no repair channel that it listens to.
    RepeatedPages,
    /// Beacons of the repair channel.
    Beacons,
}

/// Datagrams of one membership, by what they prove.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    signs: SignsOfLife,
    /// Counts since the last proof; `None` before the first beacon.
    period: Option<Period>,
    /// When it was proven that pages do not come; `None` if one came since.
    deaf_since: Option<Instant>,
    /// When the first of a row of new full pages arrived, and how many there are.
    row: Option<(Instant, u32)>,
    /// When the first new page after the last news of the repair channel arrived, and how many.
    unannounced: Option<(Instant, u32)>,
    /// Whether the repair channel counts as closed.
    is_repair_closed: bool,
    /// Time of the last new page or useful symbol.
    last_new: Option<Instant>,
    /// Whether a page shorter than the page size arrived, but no full one.
    short_only: bool,
    /// Last page that was not new, of this membership.
    last_duplicate: Option<PageIndex>,
}

/// Counts of sent and received datagrams since the last proof.
#[derive(Clone, Copy, Debug)]
struct Period {
    began: Instant,
    /// Datagrams sent by then.
    sent: u64,
    /// Full pages that arrived since, and datagrams that this machine's own sockets dropped.
    came: u64,
    /// New symbols that arrived since, useful or not.
    symbols: u64,
}

impl Hearing {
    /// Starts a membership. `expects_stream`: the server sends pages unasked.
    pub(super) fn begin(&mut self, expects_repair: bool, expects_stream: bool) {
        let signs = match (expects_repair, expects_stream) {
            (true, _) => SignsOfLife::Beacons,
            (false, true) => SignsOfLife::RepeatedPages,
            (false, false) => SignsOfLife::Nothing,
        };
        *self = Self { signs, ..Self::default() };
    }

    /// Handles a page that was missing. `is_full`: as long as the longest datagram of the cast.
    pub(super) fn new_page(&mut self, is_full: bool, now: Instant) {
        let last = self.last_new.replace(now);
        if self.period.is_some() && last.is_some_and(|last| last + PATIENCE <= now) {
            // The server was silent on both ports: no closed port kept the beacons away.
            self.unannounced = None;
        }
        let (_, pages) = self.unannounced.get_or_insert((now, 0));
        *pages = pages.saturating_add(1);
        if !is_full {
            self.short_only |= self.row.is_none();
            return;
        }
        self.short_only = false;
        self.deaf_since = None;
        let row = self.row.filter(|(since, _)| now <= *since + ROW_TIME);
        let (since, pages) = row.unwrap_or((now, 0));
        self.row = Some((since, pages + 1));
        self.full_page_came();
        self.assert_invariants();
    }

    /// Handles a page that was here already. The server may have sent it again, or a stranger: it
    /// counts among those that beacons say were sent, and shows nothing by itself. Returns whether
    /// it is an echo: the same as the last such page, which counts nowhere.
    pub(super) fn repeated_page(&mut self, page: PageIndex, is_full: bool) -> bool {
        let is_echo = self.last_duplicate.replace(page) == Some(page);
        if is_full && !is_echo {
            self.full_page_came();
        }
        is_echo
    }

    fn full_page_came(&mut self) {
        if let Some(period) = &mut self.period {
            period.came += 1;
        }
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(
            !self.is_repair_closed || self.expects_repair(),
            "a repair channel is closed that nobody listens to"
        );
        debug_assert!(
            !self.short_only || self.row.is_none(),
            "a full page came, but only short ones are said to"
        );
    }

    /// Whether a repeated page that is no echo shows that the cast goes on.
    pub(super) fn counts_repeats(&self) -> bool {
        self.signs == SignsOfLife::RepeatedPages
    }

    /// Whether the server has a repair channel and this member listens to it.
    fn expects_repair(&self) -> bool {
        self.signs == SignsOfLife::Beacons
    }

    /// Handles a new symbol.
    pub(super) fn symbol(&mut self, is_useful: bool, now: Instant) {
        if let Some(period) = &mut self.period {
            period.symbols += 1;
        }
        if is_useful {
            self.last_new = Some(now);
        }
        self.repair_came();
    }

    /// Counts datagrams that this machine's sockets had no room for: the network brought them.
    pub(super) fn dropped(&mut self, datagrams: u64) {
        if let Some(period) = &mut self.period {
            period.came += datagrams;
        }
    }

    fn repair_came(&mut self) {
        self.unannounced = None;
        self.is_repair_closed = false;
    }

    /// Handles a beacon newer than all before, which states that `sent` datagrams were sent before
    /// it.
    pub(super) fn beacon(&mut self, sent: u64, is_fetching: bool, now: Instant) -> Option<Proof> {
        self.repair_came();
        let fresh = Period { began: now, sent, came: 0, symbols: 0 };
        let period = self.period.get_or_insert(fresh);
        let sent_to_pages = period.pages_sent(sent);
        if sent_to_pages == 0 {
            *period = Period { came: period.came, ..fresh };
            return None;
        }
        let enough = if is_fetching { RETURN_PAGES.into() } else { ENOUGH_SENT };
        // Symbols get lost too: where they are the greater part, they may be all there was.
        if sent_to_pages < enough || sent_to_pages <= period.symbols {
            return None;
        }
        if period.came * HEARD_DIVISOR >= sent_to_pages {
            *period = fresh;
            self.deaf_since = None;
            return Some(Proof::Heard);
        }
        if now < period.began + PATIENCE {
            return None;
        }
        *period = fresh;
        self.deaf_since = Some(now);
        Some(Proof::Deaf { sent: sent_to_pages })
    }

    /// Whether pages were sent and none came, as far as the beacons tell: counters of such a time
    /// say nothing of the rate.
    pub(super) fn is_suspect(&self, sent: u64) -> bool {
        let is_empty = |it: &Period| {
            it.came == 0 && it.pages_sent(sent) >= u64::from(RETURN_PAGES).max(it.symbols)
        };
        self.deaf_since.is_some() || self.period.as_ref().is_some_and(is_empty)
    }

    /// Datagrams to the data port that did not come, of `sent` in all, where hardly any did.
    pub(super) fn lost(&self, sent: u64) -> Option<u64> {
        let period = self.period?;
        let lost = period.pages_sent(sent);
        (lost > 0 && period.came * HEARD_DIVISOR < lost).then_some(lost)
    }

    /// Whether enough new full pages came in a row.
    pub(super) fn has_row(&self) -> bool {
        self.row.is_some_and(|(_, pages)| pages >= RETURN_PAGES)
    }

    /// Forgets the row: what follows is to be proven anew.
    pub(super) fn forget_row(&mut self) {
        self.row = None;
    }

    /// Whether only datagrams came that are shorter than a full page.
    pub(super) fn is_short_only(&self) -> bool {
        self.short_only
    }

    /// Whether pages come and nothing of the repair channel does.
    pub(super) fn is_repair_closed(&self) -> bool {
        self.is_repair_closed
    }

    /// Handles that the socket of the repair channel could not be opened.
    pub(super) fn close_repair(&mut self) {
        self.is_repair_closed = self.expects_repair();
    }

    /// Counts the repair channel as closed if it is time. Returns whether that changed.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.repair_deadline().is_none_or(|at| now < at) {
            return false;
        }
        self.is_repair_closed = true;
        self.assert_invariants();
        true
    }

    /// When the repair channel counts as closed, unless a beacon arrives before.
    pub(super) fn repair_deadline(&self) -> Option<Instant> {
        let (since, pages) = self.unannounced.filter(|_| self.expects_repair())?;
        let is_cut_off =
            self.period.is_some() && self.last_new.is_none_or(|last| last < since + ENOUGH_TIME);
        if is_cut_off {
            return None;
        }
        (pages >= ENOUGH_PAGES && !self.is_repair_closed).then_some(since + PATIENCE)
    }

    /// When the stream of a cast whose repair channel is closed has brought all that it will.
    pub(super) fn stalled_at(&self) -> Option<Instant> {
        self.last_new.filter(|_| self.is_repair_closed).map(|at| at + PATIENCE)
    }
}

impl Period {
    /// Number of `sent` datagrams that went to the data port. Those that arrived as symbols went to
    /// the other.
    fn pages_sent(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.sent).saturating_sub(self.symbols)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn hearing() -> (Hearing, Instant) {
        let mut hearing = Hearing::default();
        hearing.begin(true, true);
        (hearing, Instant::now())
    }

    /// Beacons every 25 ms for this long, `sent` datagrams before each, of which `came` get here.
    fn listen(
        hearing: &mut Hearing,
        now: &mut Instant,
        time: Duration,
        [sent, came]: [u64; 2],
        symbols: u64,
    ) -> Vec<Proof> {
        let mut total = hearing.period.map_or(0, |period| period.sent);
        let mut proofs = Vec::new();
        let end = *now + time;
        while *now < end {
            *now += 25 * MS;
            total += sent;
            for number in total..total + came {
                hearing.repeated_page(PageIndex(u32::try_from(number).unwrap()), true);
            }
            (0..symbols).for_each(|_| hearing.symbol(false, *now));
            proofs.extend(hearing.beacon(total, false, *now));
        }
        proofs
    }

    #[test]
    fn beacons_alone_prove_within_a_second_that_no_page_comes() {
        for (time, proofs) in [(1000, vec![]), (1050, vec![Proof::Deaf { sent: 400 }])] {
            let (mut hearing, mut now) = hearing();
            let heard = listen(&mut hearing, &mut now, time * MS, [10, 0], 0);
            assert_eq!((&heard, hearing.is_suspect(500)), (&proofs, true));
            hearing.repeated_page(PageIndex(1), true);
            assert_eq!(hearing.is_suspect(500), !proofs.is_empty(), "a stranger's, perhaps");
            hearing.new_page(true, now);
            assert!(!hearing.is_suspect(500));
        }
    }

    #[test]
    fn a_short_page_or_a_page_in_a_hundred_is_no_hearing() {
        let (mut hearing, mut now) = hearing();
        listen(&mut hearing, &mut now, 25 * MS, [0, 0], 0);
        hearing.new_page(false, now);
        hearing.new_page(true, now);
        let proofs = listen(&mut hearing, &mut now, 1100 * MS, [100, 0], 0);
        assert!(matches!(proofs[..], [Proof::Deaf { .. }]), "{proofs:?}");
    }

    #[test]
    fn duplicates_that_beacons_confirm_are_heard_also_at_heavy_loss() {
        let (mut hearing, mut now) = hearing();
        listen(&mut hearing, &mut now, 25 * MS, [0, 0], 0);
        let proofs = listen(&mut hearing, &mut now, 3000 * MS, [20, 1], 0);
        assert!(!proofs.is_empty() && proofs.iter().all(|it| *it == Proof::Heard), "{proofs:?}");
    }

    #[test]
    fn symbols_only_and_a_silent_server_prove_nothing() {
        let (mut hearing, mut now) = hearing();
        listen(&mut hearing, &mut now, 25 * MS, [0, 0], 0);
        assert_eq!(listen(&mut hearing, &mut now, 3000 * MS, [20, 0], 20), []);
        assert_eq!(listen(&mut hearing, &mut now, 9000 * MS, [0, 0], 0), []);
        let busy = listen(&mut hearing, &mut now, 900 * MS, [9, 0], 0);
        assert_eq!(busy, [], "the second begins when the server begins to send");
    }

    #[test]
    fn lost_symbols_do_not_pass_for_pages() {
        let (mut hearing, mut now) = hearing();
        listen(&mut hearing, &mut now, 25 * MS, [0, 0], 0);
        assert_eq!(listen(&mut hearing, &mut now, 3000 * MS, [20, 0], 15), []);
    }

    #[test]
    fn what_this_machine_dropped_did_come() {
        let (mut hearing, mut now) = hearing();
        listen(&mut hearing, &mut now, 25 * MS, [0, 0], 0);
        hearing.dropped(100);
        assert_eq!(listen(&mut hearing, &mut now, 1000 * MS, [5, 0], 0)[0], Proof::Heard);
    }

    #[test]
    fn pages_without_a_beacon_for_a_second_close_the_repair_channel_until_one_comes() {
        let (mut hearing, now) = hearing();
        (0..ENOUGH_PAGES).for_each(|_| hearing.new_page(true, now));
        assert_eq!(hearing.repair_deadline(), Some(now + PATIENCE));
        assert!(!hearing.handle_timeout(now + 999 * MS));
        assert!(hearing.handle_timeout(now + PATIENCE) && hearing.is_repair_closed());
        assert_eq!(hearing.stalled_at(), Some(now + PATIENCE));
        hearing.beacon(9, false, now + PATIENCE);
        assert!(!hearing.is_repair_closed() && hearing.stalled_at().is_none());
    }

    /// Brings full pages, one each millisecond. Returns the time of the last one.
    fn pages(hearing: &mut Hearing, count: u32, start: Instant) -> Instant {
        (1..=count).for_each(|page| hearing.new_page(true, start + page * MS));
        start + count * MS
    }

    #[test]
    fn a_server_that_stops_closes_no_port_and_neither_do_its_first_pages_afterwards() {
        let (mut hearing, start) = hearing();
        hearing.beacon(0, false, start);
        let stopped = pages(&mut hearing, 100, start);
        assert_eq!(hearing.repair_deadline(), None);
        let goes_on = stopped + 60 * PATIENCE;
        let later = pages(&mut hearing, 150, goes_on);
        assert_eq!(hearing.repair_deadline(), None);
        pages(&mut hearing, 100, later);
        assert_eq!(hearing.repair_deadline(), Some(goes_on + MS + PATIENCE), "now it is closed");
    }

    #[test]
    fn few_new_pages_here_and_there_are_no_row() {
        let (mut hearing, mut now) = hearing();
        for _ in 0..20 {
            hearing.new_page(true, now);
            hearing.new_page(false, now);
            now += 500 * MS;
            assert!(!hearing.has_row());
        }
        (0..RETURN_PAGES).for_each(|_| hearing.new_page(true, now));
        assert!(hearing.has_row());
    }
}
