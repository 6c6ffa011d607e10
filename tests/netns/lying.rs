//! Members that send false or malformed requests ten thousand times. A reader in the same cast
//! still gets its file, and the server does not exceed its rate. docs/PROTOCOL.md, "Demand" and
//! "Report".
#![expect(
    clippy::disallowed_methods,
    reason = "the bytes that the server may send follow from the real time"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bootcast_proto::DEFAULT_PORT;
use harness::lab::HEAD_ADDRESS;
use harness::{Host, Lab, lab_or_skip, mib};

use crate::transfers::{Copy, Get};
use crate::{SetOnDrop, TRANSFER};

/// Least number of requests that a lying member sends.
const REQUESTS: usize = 10_000;

/// Number of times that all lies are sent before the first answer is read.
const REPETITIONS: usize = 32;

/// Rate at which the server may send, in bits per second.
const RATE: u64 = 20_000_000;

/// A request's token and body, and the expected status.
pub(crate) type Lie = (String, String, u16);

/// Sends a join, and returns the token of the membership.
pub(crate) fn join(host: &Host, lab: &Lab, file: &str, headers: &[(&str, &str)]) -> String {
    let answer = host.get_with(&lab.url(&format!("join/{file}")), headers);
    let token = answer.body.lines().find_map(|line| line.strip_prefix("TOKEN="));
    token.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

fn request(endpoint: &str, (token, body, _): &Lie) -> String {
    let length = body.len();
    format!(
        "POST /{endpoint}/image HTTP/1.1\r\nHost: head\r\nX-TOKEN: {token}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Reads an answer and returns its status; `None` if the server closed the connection.
pub(crate) fn answer(stream: &mut impl BufRead) -> Option<u16> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer: {line:?}"));
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if line.trim_end().is_empty() {
            break;
        }
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    Some(status)
}

/// Status of a request beyond the limit of its host. docs/PROTOCOL.md, "Requests a second".
const TOO_MANY: u16 = 429;

/// Sends all lies repeatedly until `done` is set and [`REQUESTS`] were sent. Must be called on the
/// lying host.
pub(crate) fn lie(endpoint: &str, lies: &[Lie], done: &AtomicBool) {
    let connect = || {
        let stream = TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
        stream.set_read_timeout(Some(TRANSFER)).unwrap();
        (BufReader::new(stream.try_clone().unwrap()), stream)
    };
    let (mut answers, mut stream) = connect();
    let batch: String = lies.iter().map(|lie| request(endpoint, lie)).collect();
    let batch = batch.repeat(REPETITIONS);
    let mut sent = 0;
    while sent < REQUESTS || !done.load(Ordering::Relaxed) {
        // A server that refuses a request may close the connection, and lose what follows.
        let mut was_refused = stream.write_all(batch.as_bytes()).is_err();
        for (_, body, status) in std::iter::repeat_n(lies, REPETITIONS).flatten() {
            let Some(answer) = answer(&mut answers) else {
                assert!(was_refused, "{endpoint}: no answer to {body:.80}");
                (answers, stream) = connect();
                break;
            };
            was_refused |= answer == TOO_MANY;
            assert!([*status, TOO_MANY].contains(&answer), "{endpoint}: {answer}, {body:.80}");
        }
        sent += REPETITIONS * lies.len();
    }
}

/// Sends a body that is larger than the endpoint accepts, on a connection of its own.
fn send_too_much(endpoint: &str, token: &str, bytes: usize) {
    let body = format!("[{}", " ".repeat(bytes));
    let mut stream = TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
    stream.set_read_timeout(Some(TRANSFER)).unwrap();
    let request = request(endpoint, &(token.to_owned(), body, 413));
    // The server may close the connection before it has read everything. The answer may then be
    // lost.
    if stream.write_all(request.as_bytes()).is_ok() {
        let mut status = [0; 12];
        if stream.read_exact(&mut status).is_ok() {
            assert_eq!(&status, b"HTTP/1.1 413");
        }
    }
}

/// Reads from a mount whose cast has a lying member. `lies` gets the tokens of the liar in this
/// cast and in another one.
fn read_beside_a_liar(endpoint: &str, headers: &[(&str, &str)], lies: fn(&str, &str) -> Vec<Lie>) {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(1.0).valve());
    let image = lab.put("image", mib(2));
    lab.put("other", mib(1));
    let start = Instant::now();
    // The cast that the liar started must not end before the reader joins.
    let server = lab.server().option("--idle-passes", "100000");
    let server = server.option("--rate", &format!("{}kbit", RATE / 1000)).start();
    let liar = lab.client(2);
    let (token, strange) = (join(liar, &lab, "image", headers), join(liar, &lab, "other", headers));
    let lies = lies(&token, &strange);
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(0);
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "both are in one cast", |cast| cast.members == 2);
    valve.open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            liar.enter(|| {
                lie(endpoint, &lies, &done);
                send_too_much(endpoint, &token, 300 << 10);
            });
        });
        let _done = SetOnDrop(&done);
        copy.finish(&image);
    });
    let bits = server.status().totals.bytes_sent * 8;
    let elapsed = start.elapsed().as_millis();
    // The server may send the bytes of a tenth of a second in advance.
    let most = u128::from(RATE) * (elapsed + 100) / 1000;
    assert!(u128::from(bits) <= most, "{bits} bits in {elapsed} ms");
    for (file, token) in [("image", &token), ("other", &strange)] {
        let left = liar.get_with(&lab.url(&format!("leave/{file}")), &[("X-TOKEN", token)]);
        assert_eq!(left.status, 204);
    }
    server.wait_no_members();
}

#[test]
fn ten_thousand_absurd_wants_do_not_disturb_a_reader() {
    let lies = |token: &str, strange: &str| {
        let every_second: Vec<_> = (0..700).map(|k| format!("[{},1]", 2 * k + 1)).collect();
        let every_second = format!(r#"{{"now":[{}]}}"#, every_second.join(","));
        [
            (token, r#"{"now":[[1,4294967295]],"later":[[1,4294967295]]}"#, 204),
            (token, r#"{"now":[[0,4294967295],[0,0],[1,0],[0,1]]}"#, 204),
            (token, r#"{"now":[[4294967295,4294967295]],"later":[[1441,1],[4294967295,1]]}"#, 204),
            (token, &every_second, 204),
            (token, "{}", 204),
            (token, r#"{"now":[[4294967296,1]]}"#, 400),
            (token, r#"{"now":[[-1,1]]}"#, 400),
            (token, r#"{"now":[[1]]}"#, 400),
            (token, "[", 400),
            (strange, r#"{"now":[[1,16]]}"#, 404),
            ("no-token-at-all", r#"{"now":[[1,16]]}"#, 404),
        ]
        .map(|(token, body, status)| (token.to_owned(), body.to_owned(), status))
        .into()
    };
    let headers = [("X-BOOTCAST", "1"), ("X-BOOTCAST-FILL", "demand")];
    read_beside_a_liar("want", &headers, lies);
}

#[test]
fn ten_thousand_absurd_reports_do_not_disturb_a_reader() {
    let lies = |token: &str, strange: &str| {
        let all: Vec<_> = (0..100).map(|block| format!("[{block},255]")).collect();
        let all = format!(r#"{{"needs":[{}]}}"#, all.join(","));
        [
            (token, all.as_str(), 204),
            (token, r#"{"bulk":[[0,4294967295],[4294967295,4294967295]]}"#, 204),
            (token, r#"{"needs":[[4294967295,255],[0,0]],"bulk":[[7,0]]}"#, 204),
            (token, r#"{"sent":18446744073709551615,"received":18446744073709551615}"#, 204),
            (token, r#"{"sent":1,"received":1000000,"drops":18446744073709551615}"#, 204),
            (token, r#"{"unicast":true}"#, 204),
            (token, r#"{"needs":[[0,256]]}"#, 400),
            (token, r#"{"sent":-1}"#, 400),
            (token, "[", 400),
            (strange, r#"{"needs":[[0,1]]}"#, 404),
            ("no-token-at-all", "{}", 404),
        ]
        .map(|(token, body, status)| (token.to_owned(), body.to_owned(), status))
        .into()
    };
    read_beside_a_liar("report", &[("X-BOOTCAST", "1")], lies);
}

#[test]
fn a_member_with_false_counters_does_not_slow_the_cast_down() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(8));
    // The rate is so low that honest members lose no page, even on a busy machine.
    let server = lab.server().option("--rate", &format!("{}kbit", RATE / 1000)).start();
    let liar = lab.client(3);
    let token = join(liar, &lab, "image", &[("X-BOOTCAST", "1")]);
    let huge = u64::MAX;
    let lies = [
        (format!(r#"{{"sent":{huge},"received":0,"drops":0}}"#), 204),
        (format!(r#"{{"sent":1,"received":{huge},"drops":{huge}}}"#), 204),
        (r#"{"needs":[[4294967295,255],[7,255]],"sent":100000,"received":1}"#.to_owned(), 204),
        (r#"{"bulk":[[0,4294967295],[4294967295,4294967295]],"sent":50}"#.to_owned(), 204),
    ];
    let lies = lies.map(|(body, status)| (token.clone(), body, status));
    let mut gets = [1, 2].map(|k| Get::start(&lab, k, &image));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| liar.enter(|| lie("report", &lies, &done)));
        let _done = SetOnDrop(&done);
        for get in &mut gets {
            get.finish(&image);
        }
    });
    assert_eq!(server.cast_of("image").unwrap().rate_bps, RATE);
}
