//! Members that die, hang or lose many datagrams do not keep the others from finishing, nor does a
//! crash of the server.

use harness::wait::try_wait_for;
use harness::{Lab, SOON, digest_of, lab_or_skip, mib, wait_until};
use rustix::process::{Signal, getpriority_process};

use crate::TRANSFER;
use crate::second_implementation::extended_client;
use crate::transfers::{Copy, Get};

/// Expression of `nftables` that matches repair symbols, but no beacons.
const SYMBOLS: &str = "udp dport 9001 @th,64,8 1";

#[test]
fn a_member_that_dies_and_one_that_hangs_are_forgotten_after_the_lease() {
    let lab = lab_or_skip!(Lab::builder().clients(4).loss(2.0));
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "2mbit").option("--lease", "3s").start();
    let mut reader = Copy::start(&lab, 1, &image);
    let [mut well, mut dies, mut hangs] = [2, 3, 4].map(|k| Get::start(&lab, k, &image));
    server.wait_cast("image", "all are members, a tenth is sent", |cast| {
        cast.members == 4 && cast.pages_sent > u64::from(cast.pages) / 10
    });

    dies.proc.kill_within(SOON);
    hangs.proc.signal(Signal::STOP);
    reader.finish(&image);
    well.finish(&image);
    wait_until(SOON, "the cast has ended", || server.status().casts.is_empty());
    assert_eq!(server.status().totals.leaves, 2, "the other two have not left");

    hangs.proc.signal(Signal::CONT);
    // It must join again.
    hangs.finish(&image);
    server.wait_no_members();
}

/// Returns the name and nice value of each thread of a process.
fn threads(process: u32) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let stats =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    // proc_pid_stat(5): field 2 is the name, in brackets; field 19 is the nice value.
    let thread = |stat: String| {
        let (begin, end) = stat.rsplit_once(") ")?;
        let name = begin.split_once('(')?.1.to_owned();
        Some((name, end.split(' ').nth(16)?.parse().ok()?))
    };
    stats.filter_map(thread).collect()
}

#[test]
fn the_sender_and_receive_threads_have_a_higher_priority() {
    // docs/SEMANTICS.md, "Priority".
    let lab = lab_or_skip!(Lab::builder().clients(1));
    let server = lab.server().start();
    let mut mount = lab.mount(1).start();
    // Nice value of this process, which its children inherit. It is 19 under some job schedulers.
    let ordinary = getpriority_process(None).unwrap();
    for (process, thread, nice) in [
        (server.proc().pid(), "sender", -10),
        (mount.proc().pid(), "receive", -10),
        (mount.proc().pid(), "answer", ordinary),
    ] {
        // A thread that has just started may not have set its nice value yet.
        let expected = (thread.to_owned(), nice);
        try_wait_for(SOON, || threads(process).contains(&expected).then_some(()))
            .unwrap_or_else(|| panic!("no {expected:?} among {:?}", threads(process)));
    }
}

#[test]
fn members_finish_after_a_server_crash_during_repair() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(5.0));
    let image = lab.put("image", mib(8));
    let mut server = lab.server().option("--rate", "50mbit").start();
    for k in [1, 2] {
        lab.drop_toward(k, SYMBOLS);
    }
    let mut reader = Copy::start(&lab, 1, &image);
    let mut get = Get::start(&lab, 2, &image);
    // The loss of all symbols slows the cast down to its lowest rate, but the server keeps
    // promising more.
    server.wait_cast("image", "symbols are being sent", |cast| cast.symbols_sent > 500);
    server.kill();
    for k in [1, 2] {
        lab.pass_toward(k);
    }
    server.start();
    reader.finish(&image);
    get.finish(&image);
    server.wait_no_members();
}

#[test]
fn a_member_with_a_tiny_socket_buffer_finishes_and_delays_nobody() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "200mbit").start();
    let tiny = lab.client(2).fresh_path("out");
    // A burst of the server has twice as many datagrams as the buffer can hold.
    let options = ["--buffer", "16384"];
    let mut small = extended_client(lab.client(2), &lab.url("image"), &tiny, &options);
    let mut copy = Copy::start(&lab, 1, &image);
    copy.finish(&image);
    small.wait_success(TRANSFER);
    assert_eq!(digest_of(tiny), image.digest);
    server.wait_no_members();
}
