//! Cost of a host that sends captured datagrams of a cast again, once a second.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bootcast_proto::JoinAnswer;
use harness::{Host, Lab, ServerProc, mib};

use crate::{median, read_all, rounds, timed, wait_all, warm_memory};

const RATE: &str = "200mbit";
const SIZE: u64 = mib(128);

/// Ports of the pages and of repair.
const PORTS: [u16; 2] = [9000, 9001];

/// Time between two datagrams that are sent again.
const INTERVAL: Duration = Duration::from_secs(1);

/// Measures one mount, with and without a host that captures the cast and sends a datagram of each
/// channel again once a second, by turns.
pub(crate) fn measure() -> String {
    let mut runs = [Vec::new(), Vec::new()];
    let mut sent = 0;
    for round in 0..rounds() {
        let (quiet, _) = run(false);
        let (replayed, replays) = run(true);
        println!("round {round}: {quiet:.2} s, replayed {replayed:.2} s, {replays} datagrams");
        runs[0].push(quiet);
        runs[1].push(replayed);
        sent += replays;
    }
    let [quiet, replayed] = runs.map(median);
    format!(
        "\n## Datagrams that are sent again\n\n\
         128 MiB at {RATE} to one mount, `cat`, while another host sends a page and a datagram of \
         the repair channel that it captured again, once a second, from its own address; {} \
         rounds by turns, {sent} datagrams.\n\n\
         | without, s | with, s | ratio |\n|---|---|---|\n\
         | {quiet:.2} | {replayed:.2} | {:.3} |\n\nGoal: nothing measurable.\n",
        rounds(),
        replayed / quiet
    )
}

/// Returns the seconds until the mount has read the file, and the number of datagrams sent again.
fn run(is_replayed: bool) -> (f64, usize) {
    let lab = Lab::builder().clients(2).rate(RATE).memory_disk().build();
    lab.put("image", SIZE);
    let server = lab.server().option("--rate", RATE).start();
    let mount = lab.mount(1).start();
    warm_memory(1);
    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let read =
        || timed(|| wait_all(vec![read_all(lab.client(1), &mount.join("image"))])).as_secs_f64();
    let seconds = std::thread::scope(|scope| {
        if is_replayed {
            let (host, done, sent) = (lab.client(2), &done, &sent);
            let sockets = join(&lab, host, &server);
            scope.spawn(move || host.enter(|| replay(host, &sockets, done, sent)));
        }
        let seconds = read();
        done.store(true, Ordering::Relaxed);
        seconds
    });
    (seconds, sent.into_inner())
}

/// Joins the cast as a plain member and leaves at once. Returns a socket for each port of its
/// group, with the address of the group.
fn join(lab: &Lab, host: &Host, server: &ServerProc<'_>) -> Vec<(SocketAddr, UdpSocket)> {
    let answer = host.get_with(&lab.url("join/image"), &[("X-BOOTCAST", "1")]);
    let answer = JoinAnswer::parse(&answer.body).unwrap();
    let group = *answer.connect.ip();
    let token = [("X-TOKEN", answer.token.as_str())];
    assert_eq!(host.get_with(&lab.url("leave/image"), &token).status, 204);
    assert!(server.cast_of("image").is_some(), "the cast lingers");
    let socket = |port| {
        let group = SocketAddrV4::new(group, port);
        let socket = UdpSocket::bind(group).unwrap();
        socket.join_multicast_v4(group.ip(), &host.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        (group.into(), socket)
    };
    host.enter(|| PORTS.map(socket).into())
}

/// Sends a datagram of each port again, once a second, until told otherwise. Must be called
/// on the host.
fn replay(host: &Host, sockets: &[(SocketAddr, UdpSocket)], done: &AtomicBool, sent: &AtomicUsize) {
    let own = UdpSocket::bind((host.address(), 0)).unwrap();
    let mut buffer = vec![0; 65_536];
    let mut due = Instant::now() + INTERVAL;
    while !done.load(Ordering::Relaxed) {
        let is_due = Instant::now() >= due;
        if is_due {
            due += INTERVAL;
        }
        for (group, socket) in sockets {
            // Some milliseconds old: the socket buffers more than is taken from it.
            let Ok(len) = socket.recv(&mut buffer) else { continue };
            if is_due {
                own.send_to(&buffer[..len], group).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
