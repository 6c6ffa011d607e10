//! What one host may cost. docs/PROTOCOL.md, "Budgets".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;

use bootcast_proto::DEFAULT_PORT;
use harness::lab::HEAD_ADDRESS;
use harness::requirements::report_skipped;
use harness::{Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::lying::{Lie, answer, join, lie};
use crate::transfers::Get;
use crate::{SetOnDrop, TRANSFER};

/// A file that is larger than the budget of 256 MiB.
const LARGE: u64 = 300 << 20;

/// Creates a file of zeros that takes no room.
fn put_sparse(lab: &Lab, name: &str, size: u64) {
    File::create(lab.served().join(name)).unwrap().set_len(size).unwrap();
}

/// Waits until no cast runs, and returns the pages that were sent as a share of [`LARGE`].
fn files_sent(server: &ServerProc<'_>) -> f64 {
    wait_until(TRANSFER, "no cast runs", || server.status().casts.is_empty());
    let pages = u32::try_from(server.status().totals.pages_sent).unwrap();
    f64::from(pages) / f64::from(u32::try_from(LARGE.div_ceil(1456)).unwrap())
}

#[test]
fn a_dead_plain_client_costs_one_large_file_and_is_then_refused() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    put_sparse(&lab, "image", LARGE);
    put_sparse(&lab, "other", LARGE);
    // The rate is high for the sake of the test's duration, and in vain for the host.
    let server = lab.server().option("--rate", "2gbit").start();
    assert_eq!(lab.client(1).get(&lab.url("join/image")).status, 200);
    wait_until(SOON, "the cast runs", || server.status().totals.pages_sent > 0);
    let files = files_sent(&server);
    assert!((1.0..1.05).contains(&files), "{files}");
    let refused = lab.client(1).get(&lab.url("join/other"));
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("plain members that never left"), "{}", refused.body);
    assert_eq!(server.status().budgets.joins, 1);
    assert_eq!(lab.client(2).get(&lab.url("join/other")).status, 200, "another host");
}

#[test]
fn plain_clients_are_refused_where_they_are_denied_and_others_are_not() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let server = lab.server().option("--plain", "deny").start();
    let refused = lab.client(1).get(&lab.url("join/image"));
    assert_eq!(refused.status, 403, "{}", refused.body);
    let joined = lab.client(1).get_with(&lab.url("join/image"), &[("X-BOOTCAST", "1")]);
    assert_eq!(joined.status, 200, "{}", joined.body);
    assert_eq!(server.status().totals.joins, 1);
}

/// Sends a request `count` times on one connection. Returns how often each status came. Must be
/// called on the host that sends them.
fn flood(request: &str, count: usize) -> BTreeMap<u16, usize> {
    let stream = TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
    stream.set_read_timeout(Some(TRANSFER)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut requests = stream;
    let mut statuses = BTreeMap::new();
    for batch in std::iter::repeat_n(100, count / 100) {
        requests.write_all(request.repeat(batch).as_bytes()).unwrap();
        for _ in 0..batch {
            let status = answer(&mut answers).expect("an answer to each request");
            *statuses.entry(status).or_default() += 1;
        }
    }
    statuses
}

#[test]
fn a_host_that_sends_too_many_requests_is_refused_and_another_is_served() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(2));
    let server = lab.server().start();
    let report = "POST /report/nothing HTTP/1.1\r\nHost: head\r\nContent-Length: 0\r\n\r\n";
    let (mut answered, mut refused) = (0, 0);
    lab.client(2).enter(|| {
        for _ in 0..50 {
            let statuses = flood(report, 1000);
            refused += statuses.get(&429).copied().unwrap_or(0);
            answered += statuses.get(&400).copied().unwrap_or(0);
            if refused > 0 {
                break;
            }
        }
    });
    if refused == 0 {
        return report_skipped("this machine sends fewer requests a second than are allowed");
    }
    assert!(answered >= 4000, "{answered}");
    assert!(server.status().budgets.requests.reports > 0);
    Get::start(&lab, 1, &image).finish(&image);
    server.wait_no_members();
}

#[test]
fn a_thousand_dead_joins_of_one_host_cost_their_budget_and_nobody_else() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "200mbit").option("--lease", "2s").start();
    let mut joined = 0;
    lab.client(2).enter(|| {
        for headers in ["", "X-BOOTCAST: 1\r\n"] {
            let join = format!("GET /join/image HTTP/1.1\r\nHost: head\r\n{headers}\r\n");
            let statuses = flood(&join, 500);
            joined += statuses.get(&200).copied().unwrap_or(0);
        }
    });
    assert!(joined >= 500, "{joined}");
    let before = server.status().totals;
    Get::start(&lab, 1, &image).finish(&image);
    wait_until(TRANSFER, "all are forgotten", || server.status().casts.is_empty());
    let totals = server.status().totals;
    let sent = totals.pages_sent + totals.symbols_sent - before.pages_sent - before.symbols_sent;
    // Five passes, which a small file has, from the last join on; a stream for the extended
    // members, and fill symbols that nobody hears.
    assert!(sent <= 7 * image_pages(mib(8)), "{sent} after {before:?}");
}

fn image_pages(size: u64) -> u64 {
    size.div_ceil(1456)
}

/// Reads a file on one host while another one lies in the same cast, until it needed more than its
/// ration.
fn read_beside(endpoint: &'static str, headers: &[(&str, &str)], bodies: &[&str]) {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(0.1));
    let image = lab.put("image", mib(32));
    let server = lab.server().option("--rate", "100mbit").start();
    let liar = lab.client(2);
    let token = join(liar, &lab, "image", headers);
    let lies: Vec<Lie> =
        bodies.iter().map(|body| (token.clone(), (*body).to_owned(), 204)).collect();
    let mut get = Get::start(&lab, 1, &image);
    server.wait_cast("image", "both are in one cast", |cast| cast.members == 2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| liar.enter(|| lie(endpoint, &lies, &done)));
        let _done = SetOnDrop(&done);
        get.finish(&image);
    });
    let status = server.status();
    assert!(status.budgets.deferred > 0, "{:?}", status.budgets);
    let left = liar.get_with(&lab.url("leave/image"), &[("X-TOKEN", &token)]);
    assert_eq!(left.status, 204);
    server.wait_no_members();
}

#[test]
fn needs_beyond_the_ration_wait_for_the_others() {
    // Just under half of the blocks of each window, many symbols each.
    let needs: Vec<_> = (0..181).step_by(2).map(|block| format!("[{block},128]")).collect();
    let body = format!(r#"{{"needs":[{}],"sent":9,"received":9}}"#, needs.join(","));
    let all: Vec<_> = (0..181).map(|block| format!("[{block},255]")).collect();
    let absurd = format!(r#"{{"needs":[{}]}}"#, all.join(","));
    read_beside("report", &[("X-BOOTCAST", "1")], &[&body, &absurd]);
}

#[test]
fn pages_demanded_beyond_the_ration_wait_for_the_others() {
    let bodies: Vec<_> = (1..10)
        .map(|useful| {
            format!(r#"{{"now":[[{},4096]],"late":true,"useful":{useful}}}"#, useful * 2000)
        })
        .collect();
    let bodies: Vec<_> = bodies.iter().map(String::as_str).collect();
    let headers = [("X-BOOTCAST", "1"), ("X-BOOTCAST-FILL", "demand")];
    read_beside("want", &headers, &bodies);
}
