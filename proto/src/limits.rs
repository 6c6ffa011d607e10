//! Numbers that server and client both rely on. docs/PROTOCOL.md, "Numbers", lists them.
//!
//! A number that only one end needs stands in that end's code. Where two numbers depend on each
//! other, the assertions below say how.

use core::time::Duration;

/// Upper bound of a lease. A longer one could overflow the client's clock, and renewing a lease
/// early does no harm.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest `Retry-After` that a client obeys, and the longest that the server states.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Time after which the server closes an idle connection.
pub const SERVER_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Time after which a client gives an idle connection up. It is shorter than
/// [`SERVER_IDLE_TIMEOUT`], so that no request meets a connection that the server is closing.
pub const CLIENT_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const _: () = assert!(CLIENT_IDLE_TIMEOUT.as_millis() < SERVER_IDLE_TIMEOUT.as_millis());

/// Maximum size of a small file, in bytes: one that a client may ask for instead of joining. It is
/// of four leaves at most.
pub const SMALL_FILE: u64 = 64 << 10;

/// Maximum number of bytes of the files in a bundle. A host that turns out not to want them was
/// sent so much in vain.
pub const BUNDLE_BYTES: u64 = 4 << 20;

/// Maximum number of files in a bundle.
pub const BUNDLE_FILES: usize = 4096;

/// Longest hold: time from the join that starts a cast to its first page.
///
/// During the hold the client reads the answer and opens its socket, and the switches on the path
/// learn of its membership (IGMP). Earlier pages would be lost, which costs a plain member a second
/// pass.
pub const HOLD: Duration = Duration::from_millis(100);

/// Hold from the last join on if all members have repair. Repairing what they miss takes no longer
/// than waiting for the full [`HOLD`].
pub const SHORT_HOLD: Duration = Duration::from_millis(20);

/// Time between two beacons while the cast sends.
pub const BEACON_INTERVAL: Duration = Duration::from_millis(25);

/// Longest time between two beacons while the cast waits for reports.
pub const BEACON_INTERVAL_MAX: Duration = Duration::from_millis(50);

/// Number of times that the end of a cast is announced.
pub const END_REPETITIONS: u32 = 3;

/// Time between two announcements of the same end.
pub const END_INTERVAL: Duration = Duration::from_millis(10);

/// Time after which an end is believed if nothing newer arrived. A cast that goes on sends a beacon
/// in this time.
pub const END_PATIENCE: Duration = Duration::from_millis(60);
const _: () = assert!(END_PATIENCE.as_millis() > BEACON_INTERVAL_MAX.as_millis());
const _: () = assert!(END_PATIENCE.as_millis() > 2 * BEACON_INTERVAL.as_millis());
const _: () =
    assert!(END_PATIENCE.as_millis() > END_INTERVAL.as_millis() * (END_REPETITIONS as u128 - 1));

/// The same in a membership that has heard no beacon, or nothing new: the end may be older than
/// this membership. In this time the hold ends, and beacons begin.
pub const END_PATIENCE_AT_FIRST: Duration = Duration::from_millis(500);
const _: () = assert!(
    END_PATIENCE_AT_FIRST.as_millis() > HOLD.as_millis() + 2 * BEACON_INTERVAL_MAX.as_millis()
);

/// 1 / this of a window is left to repair. A member that missed no more than this of the beginning
/// of a window does not need these pages from the stream again.
pub const MISSED_DIVISOR: u32 = 64;

/// Maximum number of blocks that a report names. What is left follows with the next report.
pub const REPORT_NEEDS: usize = 4096;

/// Maximum number of runs of windows that a report names, and that the server reads.
pub const REPORT_RUNS: usize = 256;

/// Maximum length of a report's body in bytes.
pub const REPORT_BYTES: usize = 256 << 10;

/// Upper bound of the time from the expiry of a member's report timer to the promise that follows.
pub const REPORT_DELAY: Duration = Duration::from_millis(50);

/// Maximum number of demanded pages of one member: as many wait at the client at a time, and are
/// kept in either queue of the server.
pub const WANT_PAGES: u32 = 4096;

/// Maximum number of runs of `now` that a want names.
pub const WANT_RUNS: usize = 512;

/// Maximum number of runs of `later` that a want names.
pub const WANT_LATER_RUNS: usize = 64;

/// Maximum number of runs of either kind that the server reads from one want.
pub const WANT_RUNS_READ: usize = 1024;
const _: () = assert!(WANT_RUNS <= WANT_RUNS_READ && WANT_LATER_RUNS <= WANT_RUNS_READ);

/// Maximum length of a want's body in bytes.
pub const WANT_BYTES: usize = 16 << 10;

/// Receiving less than 1 / this of the datagrams that were sent counts as receiving none.
pub const HEARD_DIVISOR: u64 = 32;

/// Maximum number of pages that the server sends at a time to learn whether members that fetch the
/// file over HTTP hear multicast again.
pub const PROBE_PAGES: u32 = 16;

/// Number of new full pages, or of datagrams that a beacon tells of, after which a member that
/// fetches the file may rely on multicast again.
pub const RETURN_PAGES: u32 = 8;
const _: () = assert!(RETURN_PAGES <= PROBE_PAGES);

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::{String, ToString};
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::api::{Report, Want};
    use crate::ids::PageRange;

    /// Rows of the table in docs/PROTOCOL.md, "Numbers".
    fn table() -> Vec<(String, String)> {
        let page = include_str!("../../docs/PROTOCOL.md");
        let (_, section) = page.split_once("\n## 10 Numbers\n").expect("the section is there");
        let rows = section.lines().filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            Some((cells.next()?.to_string(), cells.next()?.to_string()))
        });
        rows.skip(2).collect()
    }

    #[test]
    fn the_protocol_states_the_same_numbers() {
        let time = |time: Duration| match time.as_millis() {
            millis if millis < 1000 => format!("{millis} ms"),
            millis if millis < 3_600_000 => format!("{} s", millis / 1000),
            millis => format!("{} h", millis / 3_600_000),
        };
        let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
        let expected = [
            ("longest lease", time(LEASE_MAX)),
            ("longest `Retry-After`", time(RETRY_AFTER_MAX)),
            ("largest small file", format!("{} KiB", SMALL_FILE >> 10)),
            ("idle connection, until the client gives it up", time(CLIENT_IDLE_TIMEOUT)),
            ("the same, until the server closes it", time(SERVER_IDLE_TIMEOUT)),
            ("longest hold", time(HOLD)),
            ("hold where all members have repair", time(SHORT_HOLD)),
            ("from beacon to beacon while the cast sends", time(BEACON_INTERVAL)),
            ("the same while it waits for reports, at most", time(BEACON_INTERVAL_MAX)),
            ("times that an end is told", END_REPETITIONS.to_string()),
            ("from one of them to the next", time(END_INTERVAL)),
            ("from an end until it is believed", time(END_PATIENCE)),
            ("the same before the first news of a membership", time(END_PATIENCE_AT_FIRST)),
            ("share of a window's beginning that a member may miss", format!("1/{MISSED_DIVISOR}")),
            ("blocks in a report", REPORT_NEEDS.to_string()),
            ("runs of windows in a report", REPORT_RUNS.to_string()),
            ("body of a report", kib(REPORT_BYTES)),
            ("from a report to its promises, at most", time(REPORT_DELAY)),
            ("pages that a member demands at a time", WANT_PAGES.to_string()),
            ("pairs of `now` in a want", WANT_RUNS.to_string()),
            ("pairs of `later` in a want", WANT_LATER_RUNS.to_string()),
            ("pairs of either kind that the server reads", WANT_RUNS_READ.to_string()),
            ("body of a want", kib(WANT_BYTES)),
            ("share of the datagrams below which none count as come", format!("1/{HEARD_DIVISOR}")),
            ("pages by which deaf members learn that they hear again", PROBE_PAGES.to_string()),
            ("of them, those that suffice", RETURN_PAGES.to_string()),
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(what, number)| (what.to_string(), number)).collect();
        assert_eq!(table(), expected);
    }

    #[test]
    fn the_longest_report_and_the_longest_want_fit_their_bodies() {
        let report = Report {
            needs: vec![(u32::MAX, u8::MAX); REPORT_NEEDS],
            bulk: vec![(u32::MAX, u32::MAX); REPORT_RUNS],
            sent: u64::MAX,
            received: u64::MAX,
            drops: u64::MAX,
            seen: u64::MAX,
            useful: u64::MAX,
            unicast: true,
            stream_only: true,
            zeros: true,
        };
        assert!(serde_json::to_vec(&report).unwrap().len() <= REPORT_BYTES);
        let end = u32::MAX;
        let run = |pages| PageRange::new(end - pages, end);
        let want = Want {
            now: vec![run(WANT_PAGES); WANT_RUNS],
            later: vec![run(WANT_PAGES); WANT_LATER_RUNS],
            came: u32::MAX,
            delay_us: u32::MAX,
            late: true,
            lossy: true,
        };
        assert!(serde_json::to_vec(&want).unwrap().len() + 32 <= WANT_BYTES, "with `useful`");
    }
}
