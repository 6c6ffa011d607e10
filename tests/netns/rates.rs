//! The rate of a cast follows the network, the members and other casts.

use std::time::Duration;

use bootcast_proto::api::CastStatus;
use harness::{Lab, SOON, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::transfers::Get;

/// Returns the number of windows that reports asked the stream to send again. The server logs each
/// report at the level `debug`: `bulk=[(3, 1), (7, 2)]`.
fn windows_reported(log: &str) -> u64 {
    let lists = log.lines().filter_map(|line| line.split_once("bulk=[")?.1.split_once(']'));
    let runs = lists.flat_map(|(list, _)| list.split("), "));
    runs.filter_map(|run| run.trim_end_matches(')').rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn a_cast_slows_down_to_the_rate_of_a_narrow_network() {
    let lab = lab_or_skip!(Lab::builder().clients(2).narrow("50mbit"));
    let image = lab.put("image", mib(48));
    let server = lab.server().option("--rate", "100mbit").option("--linger", "60s");
    let server = server.option("--interleave", "16").option("--log", "debug").start();
    let mut gets: Vec<_> = (1..=2).map(|k| Get::start(&lab, k, &image)).collect();
    let lowered = |cast: &CastStatus| (1_200_000..80_000_000).contains(&cast.rate_bps);
    server.wait_cast("image", "the rate follows what gets through", lowered);
    for get in &mut gets {
        get.finish(&image);
    }
    // Reports arrive at any time. But the stream sends a page only because of a join, or of a
    // report that names its window, of 16 blocks.
    let cast = server.cast_of("image").unwrap();
    let reported = windows_reported(&server.log());
    let most = cast.joins * u64::from(cast.pages) + reported * 16 * 128;
    assert!(cast.pages_sent - cast.demanded <= most, "{reported} windows: {cast:?}");
}

#[test]
fn two_casts_share_the_uplink() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let server = lab.server().option("--rate", "100mbit").start();
    for (k, name) in [(1, "one"), (2, "other")] {
        lab.put(name, mib(64));
        assert_eq!(lab.client(k).get(&lab.url(&format!("join/{name}"))).status, 200);
    }
    // Both counters come from one answer, because pages are sent between two answers.
    let both = || {
        let casts = server.status().casts;
        let pages_of = |name| casts.iter().find(|cast| cast.path == name).map(|it| it.pages_sent);
        ["one", "other"].map(|name| pages_of(name).unwrap_or_default())
    };
    wait_until(SOON, "both casts send", || both().iter().all(|pages| *pages > 0));
    let before = both();
    let sum = |pages: [u64; 2]| pages.iter().sum::<u64>();
    wait_until(SOON, "8000 more pages are sent", || sum(both()) > sum(before) + 8_000);
    let after = both();
    let [one, other] = [after[0] - before[0], after[1] - before[1]];
    assert!(one * 2 > other && other * 2 > one, "{one} and {other} pages");
}

#[test]
fn a_client_that_is_stopped_for_a_while_delays_nobody_and_finishes() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "100mbit").option("--linger", "60s").start();
    let mut gets: Vec<_> = (1..=3).map(|k| Get::start(&lab, k, &image)).collect();
    lab.wait_members(&server, "image", 1..=3);
    gets[2].proc.signal(Signal::STOP);
    // This is more than the stopped client's socket buffer can hold.
    server.wait_cast("image", "most is sent", |cast| {
        cast.pages_sent * 10 > u64::from(cast.pages) * 8
    });
    gets[2].proc.signal(Signal::CONT);
    for get in &mut gets {
        get.finish(&image);
    }
}

#[test]
fn a_sender_takes_little_cpu_time_while_the_interface_is_full() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", "1gbit").start();
    assert_eq!(lab.client(1).get(&lab.url("join/image")).status, 200);
    server.wait_cast("image", "the queue is full", |cast| cast.pages_sent > 2_000);
    let (before, pages) = (server.proc().cpu_time(), server.cast_of("image").unwrap().pages_sent);
    // At 20 Mbit/s these pages take more than a second.
    server.wait_cast("image", "2000 more pages", |cast| cast.pages_sent > pages + 2_000);
    let busy = server.proc().cpu_time().saturating_sub(before);
    assert!(busy < Duration::from_millis(600), "{busy:?} of CPU while it waits");
}
