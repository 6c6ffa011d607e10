//! Rate of casts: what the network and the members can take, and what other casts leave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bootcast_proto::api::CastStatus;
use bootcast_proto::{DEFAULT_PORT, JoinAnswer};
use harness::lab::HEAD_ADDRESS;
use harness::{Host, Lab, SOON, lab_or_skip, mib, wait_until};
use rustix::process::Signal;

use crate::transfers::Get;

fn sent(cast: &CastStatus) -> u64 {
    cast.pages_sent + cast.symbols_sent
}

#[test]
fn a_cast_slows_down_to_what_gets_through_a_narrow_network() {
    let lab = lab_or_skip!(Lab::builder().clients(2).narrow("50mbit"));
    let image = lab.put("image", mib(48));
    let server = lab.server().option("--rate", "100mbit").option("--linger", "60s").start();
    let mut gets: Vec<_> = (1..=2).map(|k| Get::start(&lab, k, &image)).collect();
    lab.wait_members(&server, "image", 1..=2);
    let before = server.cast_of("image").unwrap().pages_sent;
    let lowered = |cast: &CastStatus| (1_200_000..80_000_000).contains(&cast.rate_bps);
    server.wait_cast("image", "the rate follows what gets through", lowered);
    for get in &mut gets {
        get.finish(&image);
    }
    let cast = server.cast_of("image").unwrap();
    let pages = u64::from(cast.pages);
    // What was sent before the second of them came may have to be sent again for it.
    let most = pages * 13 / 10 + before;
    assert!(sent(&cast) < most, "{} datagrams of {pages} pages", sent(&cast));
}

#[test]
fn two_casts_share_the_uplink() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let server = lab.server().option("--rate", "100mbit").start();
    for (k, name) in [(1, "one"), (2, "other")] {
        lab.put(name, mib(64));
        assert_eq!(lab.client(k).get(&lab.url(&format!("join/{name}"))).status, 200);
    }
    // Of one answer: between two of them pages are sent.
    let both = || {
        let casts = server.status().casts;
        let pages_of = |name| casts.iter().find(|cast| cast.path == name).map(|it| it.pages_sent);
        ["one", "other"].map(|name| pages_of(name).unwrap_or_default())
    };
    wait_until(SOON, "both send", || both().iter().all(|pages| *pages > 0));
    let before = both();
    let sum = |pages: [u64; 2]| pages.iter().sum::<u64>();
    wait_until(SOON, "both went on", || sum(both()) > sum(before) + 8_000);
    let after = both();
    let [one, other] = [after[0] - before[0], after[1] - before[1]];
    assert!(one * 2 > other && other * 2 > one, "{one} and {other} pages");
}

#[test]
fn a_client_that_does_not_run_for_a_while_holds_nobody_up_and_finishes() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(64));
    let server = lab.server().option("--rate", "100mbit").option("--linger", "60s").start();
    let mut gets: Vec<_> = (1..=3).map(|k| Get::start(&lab, k, &image)).collect();
    lab.wait_members(&server, "image", 1..=3);
    gets[2].proc.signal(Signal::STOP);
    // More than its socket buffer holds.
    server.wait_cast("image", "most is sent", |cast| {
        cast.pages_sent * 10 > u64::from(cast.pages) * 8
    });
    gets[2].proc.signal(Signal::CONT);
    for get in &mut gets {
        get.finish(&image);
    }
}

/// A connection that sends reports one after another.
struct Reports {
    connection: BufReader<TcpStream>,
    token: String,
}

impl Reports {
    /// Joins as a client that knows the extensions. Must be called in the client's network
    /// namespace.
    fn join(lab: &Lab, host: &Host, name: &str) -> Self {
        let answer = host.get_with(&lab.url(&format!("join/{name}")), &[("X-BOOTCAST", "1")]);
        let answer = JoinAnswer::parse(&answer.body).unwrap();
        let server = SocketAddr::from((HEAD_ADDRESS, DEFAULT_PORT));
        let stream = host.enter(|| TcpStream::connect_timeout(&server, SOON).unwrap());
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { connection: BufReader::new(stream), token: answer.token.as_str().to_owned() }
    }

    /// Status in answer to this body.
    fn send(&mut self, endpoint: &str, body: &str) -> u16 {
        let (token, len) = (&self.token, body.len());
        let request = format!(
            "POST /{endpoint} HTTP/1.1\r\nhost: x\r\nx-token: {token}\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        self.connection.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut line, mut len) = (String::new(), 0);
        self.connection.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        while line.trim() != "" {
            line.clear();
            self.connection.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
        }
        self.connection.read_exact(&mut vec![0; len]).unwrap();
        status
    }
}

#[test]
fn a_member_that_lies_without_pause_does_not_keep_the_others_from_finishing() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(8));
    // So slow that no honest member loses a page, whatever else the machine does.
    let server = lab.server().option("--rate", "20mbit").start();
    let mut reports = Reports::join(&lab, lab.client(3), "image");
    let gets = [1, 2].map(|k| Get::start(&lab, k, &image));
    let over = AtomicBool::new(false);
    let huge = u64::MAX;
    let lies = [
        format!(r#"{{"sent":{huge},"received":0,"drops":0}}"#),
        format!(r#"{{"sent":1,"received":{huge},"drops":{huge}}}"#),
        r#"{"needs":[[4294967295,255],[7,255]],"sent":100000,"received":1}"#.to_owned(),
        r#"{"bulk":[[0,4294967295],[4294967295,4294967295]],"sent":50,"received":1}"#.to_owned(),
    ];
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for lie in &lies {
                    assert_eq!(reports.send("report/image", lie), 204, "{lie}");
                }
                assert_eq!(reports.send("report/image", r#"{"sent":-1}"#), 400);
            }
        });
        for mut get in gets {
            get.finish(&image);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(server.cast_of("image").unwrap().rate_bps, 20_000_000);
}

#[test]
fn a_sender_that_the_interface_holds_back_waits() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    lab.put("image", mib(16));
    let server = lab.server().option("--rate", "1gbit").start();
    assert_eq!(lab.client(1).get(&lab.url("join/image")).status, 200);
    server.wait_cast("image", "the queue is full", |cast| cast.pages_sent > 2_000);
    let (before, pages) = (server.proc().cpu_time(), server.cast_of("image").unwrap().pages_sent);
    // At 20 Mbit/s these take more than a second.
    server.wait_cast("image", "it goes on", |cast| cast.pages_sent > pages + 2_000);
    let busy = server.proc().cpu_time().saturating_sub(before);
    assert!(busy < Duration::from_millis(600), "{busy:?} of CPU while it waits");
}
