//! A host on the network sends datagrams of a cast again, for as long as a test lasts. It does not
//! need the key. docs/PROTOCOL.md, "What counts as news".

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bootcast_proto::JoinAnswer;
use harness::{Forger, Host, Lab, SOON, ServerProc, lab_or_skip, mib, sending_socket, wait_until};

use crate::forging::{PORTS, Recorded, forgers, listen};
use crate::transfers::{Copy, Get};
use crate::{SetOnDrop, TRANSFER};

/// Longest time for which the replayer waits for a datagram.
const PAUSE: Duration = Duration::from_millis(10);

/// Most datagrams that it records at a time, and number of those that it then sends.
const RECORDED: usize = 50;
const BATCH: usize = 100;

/// Most log lines of a client whose cast is replayed.
const MAX_LOG_LINES: usize = 40;

/// A host that records a cast and sends it again.
struct Replayer {
    group: Ipv4Addr,
    listening: [UdpSocket; 2],
    /// Sender from its own address.
    own: UdpSocket,
    /// Senders in the name of the server's host: another socket, and the server's.
    forgers: [Forger; 2],
    /// Datagrams with their ports, each once.
    seen: BTreeSet<Vec<u8>>,
    recorded: Vec<Recorded>,
    /// Number of datagrams sent.
    sent: usize,
}

impl Replayer {
    /// Joins the cast of `image` on a host and leaves at once. The cast lingers, and the replayer
    /// has its end.
    fn join(lab: &Lab, host: &Host, server: &ServerProc<'_>) -> Self {
        let answer = host.get_with(&lab.url("join/image"), &[("X-BOOTCAST", "1")]);
        let answer = JoinAnswer::parse(&answer.body).unwrap();
        let group = *answer.connect.ip();
        let listening = listen(host, group);
        for socket in &listening {
            socket.set_read_timeout(Some(PAUSE)).unwrap();
        }
        let source = sending_socket(server);
        let mut replayer = host.enter(|| Self {
            group,
            listening,
            own: UdpSocket::bind((host.address(), 0)).unwrap(),
            forgers: forgers(source),
            seen: BTreeSet::new(),
            recorded: Vec::new(),
            sent: 0,
        });
        let token = [("X-TOKEN", answer.token.as_str())];
        assert_eq!(host.get_with(&lab.url("leave/image"), &token).status, 204);
        wait_until(TRANSFER, "the end", || {
            replayer.listen();
            replayer.first_of_kind(3).is_some()
        });
        replayer
    }

    /// Records datagrams until none comes for a moment, or some came.
    fn listen(&mut self) {
        let mut buffer = vec![0; 65_536];
        for (port, socket) in PORTS.into_iter().zip(&self.listening) {
            for _ in 0..RECORDED {
                let Ok(len) = socket.recv(&mut buffer) else { break };
                if self.seen.insert(buffer[..len].to_vec()) {
                    self.recorded.push((port, buffer[..len].to_vec()));
                }
            }
        }
    }

    /// Position of the first datagram of a kind. The first byte of a page's datagram is 0; on the
    /// repair channel it is the kind.
    fn first_of_kind(&self, kind: u8) -> Option<usize> {
        self.recorded.iter().position(|(_, datagram)| datagram[0] == kind)
    }

    /// Sends one of each kind, and a batch of all. Must be called on the replaying host.
    fn send(&mut self) {
        let first = (0..4).filter_map(|kind| self.first_of_kind(kind));
        let batch = (self.sent..self.sent + BATCH).map(|at| at % self.recorded.len());
        for at in first.chain(batch).collect::<Vec<_>>() {
            let (port, datagram) = &self.recorded[at];
            let to = SocketAddrV4::new(self.group, *port);
            match self.forgers.get(self.sent % 3) {
                Some(forger) => forger.send(to, datagram),
                None => _ = self.own.send_to(datagram, to).unwrap(),
            }
            self.sent += 1;
        }
    }

    /// Records and sends until told otherwise. Must be called on the replaying host.
    fn run(mut self, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            self.listen();
            self.send();
        }
    }
}

/// Runs `work` while client 3 replays the cast of `image`.
fn while_replaying(lab: &Lab, server: &mut ServerProc<'_>, work: impl FnOnce(&mut ServerProc<'_>)) {
    let host = lab.client(3);
    let replayer = Replayer::join(lab, host, server);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| host.enter(|| replayer.run(&done)));
        let _done = SetOnDrop(&done);
        work(server);
    });
}

fn lines(log: &str) -> usize {
    log.lines().count()
}

#[test]
fn a_cast_that_is_replayed_before_meanwhile_and_afterwards_completes_with_a_join_each() {
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(0.5));
    let image = lab.put("image", mib(4));
    let mut server = lab.server().option("--rate", "20mbit").option("--linger", "60s").start();
    while_replaying(&lab, &mut server, |server| {
        let mut get = Get::start(&lab, 2, &image);
        let mut copy = Copy::start_on(lab.mount(1).option("unicast=never").start(), &image);
        get.finish(&image);
        copy.finish(&image);
        server.wait_no_members();
        // The cast lingers, and goes on with the same key.
        Get::start(&lab, 2, &image).finish(&image);
        let totals = server.status().totals;
        assert_eq!((totals.casts, totals.joins), (1, 4), "{}", copy.mount.log());
        // The next cast of the file has another key.
        server.kill();
        server.start();
        Get::start(&lab, 2, &image).finish(&image);
        assert_eq!(server.status().totals.joins, 1);
        let log = copy.mount.log();
        assert!(!log.contains("strangers=0"), "the replayer was not heard: {log}");
        assert!(lines(&log) < MAX_LOG_LINES, "{log}");
    });
}

#[test]
fn a_member_whose_server_died_notices_although_its_cast_is_replayed() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(8));
    let mut server = lab.server().option("--rate", "20mbit").option("--linger", "60s").start();
    while_replaying(&lab, &mut server, |server| {
        let mut copy = Copy::start_on(lab.mount(1).option("unicast=never").start(), &image);
        server.wait_cast("image", "a third is sent", |cast| {
            cast.pages_sent > u64::from(cast.pages) / 3
        });
        server.kill();
        wait_until(TRANSFER, "the mount joins again in vain", || {
            copy.mount.log().contains("cannot join yet")
        });
        server.start();
        copy.finish(&image);
        wait_until(SOON, "the mount has left", || copy.mount.log().contains("forged="));
        let log = copy.mount.log();
        assert!(lines(&log) < MAX_LOG_LINES, "{log}");
    });
}

#[test]
fn a_member_that_multicast_no_longer_reaches_fetches_although_its_cast_is_replayed() {
    let lab = lab_or_skip!(Lab::builder().clients(3).valve());
    let image = lab.put("image", mib(8));
    let mut server = lab.server().option("--rate", "20mbit").option("--linger", "60s").start();
    while_replaying(&lab, &mut server, |server| {
        let mount = lab.mount(1).start();
        let valve = lab.hold_multicast_after(mib(2));
        let mut copy = Copy::start_on(mount, &image);
        server.wait_cast("image", "the mount fetches", |cast| cast.unicast == 1);
        copy.finish(&image);
        let log = copy.mount.log();
        assert!(lines(&log) < MAX_LOG_LINES, "{log}");
        valve.open();
    });
}
