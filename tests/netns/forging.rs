//! A host on the network forges datagrams of the server. Files stay right. docs/PROTOCOL.md,
//! "Tags".

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use bootcast_proto::fec::RepairIndex;
use bootcast_proto::manifest::ContentTree;
use bootcast_proto::wire::{Beacon, Layout, LeafSpan, end_datagram, symbol_header};
use bootcast_proto::{BlockIndex, JoinAnswer, Manifest, PageIndex, Share};
use harness::requirements::report_skipped;
use harness::{Forger, Host, Lab, SOON, ServerProc, lab_or_skip, mib, sending_socket, wait_until};

use crate::transfers::Copy;
use crate::{SetOnDrop, TRANSFER};

/// Returns forged datagrams that would do harm if a client accepted them, each with its port.
fn harmful(pages: u32, page_size: u32) -> Vec<(u16, Vec<u8>)> {
    let payload = vec![0xee; page_size as usize];
    let page =
        |page| [&Layout::Base.header(PageIndex(page), pages, &payload)[..], &payload].concat();
    let symbol = |number| {
        let header = symbol_header(BlockIndex(0), RepairIndex::new(number).unwrap(), 255);
        [&header[..], &payload].concat()
    };
    let mut beacon = Beacon {
        number: u32::MAX,
        position: PageIndex(pages),
        members: 1,
        permit: Share::ALL,
        spread_ms: 1,
        pace: bootcast_proto::wire::Pace::default(),
        windows: Vec::new(),
    }
    .encode();
    // A wrong tag.
    beacon[8..16].fill(0x5a);
    let mut all: Vec<_> = (0..pages - 1).map(|number| (9000, page(number))).collect();
    all.extend((0..128).map(|number| (9001, symbol(number))));
    all.extend([(9001, beacon), (9001, end_datagram(None))]);
    all
}

/// Returns the number of forged datagrams from the last log line about a membership.
fn forged(log: &str) -> u64 {
    let line = log.lines().rev().find(|line| line.contains("forged="));
    let count = line.and_then(|line| line.split_once("forged=")?.1.split_whitespace().next());
    count.expect("a leave in the log").parse().unwrap()
}

#[test]
fn forged_datagrams_of_the_server_are_counted_and_do_no_harm() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(0.5).valve());
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(500_000);
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 50);

    let cast = server.cast_of("image").unwrap();
    let group: SocketAddrV4 = cast.group.parse().unwrap();
    let source = sending_socket(&server);
    let datagrams = harmful(cast.pages, cast.page_size);
    let done = AtomicBool::new(false);
    valve.open();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.client(2).enter(|| {
                let forger = Forger::new(source);
                while !done.load(Ordering::Relaxed) {
                    for (port, datagram) in &datagrams {
                        forger.send(SocketAddrV4::new(*group.ip(), *port), datagram);
                    }
                }
            });
        });
        let _done = SetOnDrop(&done);
        copy.finish(&image);
    });
    wait_until(SOON, "the client has left", || copy.mount.log().contains("forged="));
    assert!(forged(&copy.mount.log()) > 0, "{}", copy.mount.log());
}

/// Key of the tags of forged datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForgedTag {
    /// None: the field is 0, or random.
    None,
    /// That of another cast of the server, which the forger joined.
    OfAnotherCast,
    /// That of the cast itself: the forger is a member.
    Right,
}

/// Joins the cast of a file on client 2.
fn join(lab: &Lab, name: &str) -> JoinAnswer {
    let answer = lab.client(2).get_with(&lab.url(&format!("join/{name}")), &[("X-BOOTCAST", "1")]);
    JoinAnswer::parse(&answer.body).unwrap()
}

/// Returns values that no leaf of a file has, as leaf lists of the repair channel.
fn false_leaf_lists(size: u64, page_size: u32) -> Vec<Vec<u8>> {
    let tree = ContentTree::new(size);
    let leaves = (0..tree.leaves()).map(|leaf| [u8::try_from(leaf % 256).unwrap(); 32]);
    let manifest = Manifest::new(tree, leaves.collect());
    let segments = 0..u32::try_from(tree.segments()).unwrap();
    let spans = segments.flat_map(|segment| LeafSpan::all_of(&tree, segment, page_size));
    spans.map(|span| span.encode(&manifest).unwrap()).collect()
}

/// Reads `image` on client 1 while client 2 forges all kinds of datagrams: before the first one of
/// the server, and for as long as the file arrives. They come from the server's socket, another
/// port of its host, and the forger itself. Returns the log of the mount.
fn read_beside_a_forger(tag: ForgedTag) -> Option<String> {
    let builder = Lab::builder().clients(2).loss(0.5).valve();
    if let Some(reason) = builder.skip_reason() {
        report_skipped(&reason);
        return None;
    }
    let lab = builder.build();
    let (image, _) = (lab.put("image", mib(4)), lab.put("other", mib(1)));
    let server = lab.server().option("--rate", "20mbit").option("--idle-passes", "100000").start();
    let valve = lab.hold_multicast_after(0);
    let mut copy = Copy::start_on(lab.mount(1).option("unicast=never").start(), &image);
    lab.wait_members(&server, "image", 1..=1);

    let own = join(&lab, "image");
    let key = match tag {
        ForgedTag::None => None,
        ForgedTag::OfAnotherCast => join(&lab, "other").extensions.key,
        ForgedTag::Right => own.extensions.key,
    };
    let (pages, page_size) = (own.pages, own.page_size.get());
    let mut datagrams = harmful(pages, page_size);
    datagrams.extend(false_leaf_lists(image.size, page_size).into_iter().map(|it| (9001, it)));
    for (_, datagram) in &mut datagrams {
        key.inspect(|key| key.seal(datagram));
    }
    let leave = [("X-TOKEN", own.token.as_str())];
    assert_eq!(lab.client(2).get_with(&lab.url("leave/image"), &leave).status, 204);
    let (group, source, done) =
        (*own.connect.ip(), sending_socket(&server), AtomicBool::new(false));
    let forge = |forgers: &[Forger; 3]| {
        for (number, (port, datagram)) in datagrams.iter().enumerate() {
            forgers[number % 3].send(SocketAddrV4::new(group, *port), datagram);
        }
    };
    let forgers = lab.client(2).enter(|| {
        let [port, socket] = forgers(source);
        let forgers = [port, socket, Forger::new(SocketAddrV4::new(lab.client(2).address(), 9))];
        forge(&forgers);
        forgers
    });
    valve.open();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.client(2).enter(|| {
                while !done.load(Ordering::Relaxed) {
                    forge(&forgers);
                }
            });
        });
        let _done = SetOnDrop(&done);
        copy.finish(&image);
    });
    wait_until(SOON, "the client has left", || copy.mount.log().contains("forged="));
    let log = copy.mount.log();
    assert!(log.lines().count() < MAX_LOG_LINES, "{log}");
    Some(log)
}

/// Most log lines of a client that hears a forger.
const MAX_LOG_LINES: usize = 40;

#[test]
fn forged_datagrams_without_a_tag_are_counted_from_the_first_on_and_spoil_no_leaf() {
    let Some(log) = read_beside_a_forger(ForgedTag::None) else { return };
    assert!(forged(&log) > 0 && !log.contains("wrong bytes"), "{log}");
}

#[test]
fn forged_datagrams_with_the_key_of_another_cast_are_counted_and_spoil_no_leaf() {
    let Some(log) = read_beside_a_forger(ForgedTag::OfAnotherCast) else { return };
    assert!(forged(&log) > 0 && !log.contains("wrong bytes"), "{log}");
}

#[test]
fn forged_datagrams_with_the_right_key_put_no_wrong_byte_before_a_reader() {
    let Some(log) = read_beside_a_forger(ForgedTag::Right) else { return };
    assert!(log.contains("wrong bytes"), "the forger was not heard: {log}");
}

/// Ports of the pages and of the repair channel.
pub(crate) const PORTS: [u16; 2] = [9000, 9001];

/// Creates sockets on a host that receive both ports of a group.
pub(crate) fn listen(host: &Host, group: Ipv4Addr) -> [UdpSocket; 2] {
    PORTS.map(|port| {
        host.enter(|| {
            let socket = UdpSocket::bind((group, port)).unwrap();
            socket.join_multicast_v4(&group, &host.address()).unwrap();
            socket
        })
    })
}

/// A recorded datagram with its port.
pub(crate) type Recorded = (u16, Vec<u8>);

/// Joins the cast of `image` on client 2, and records its datagrams. Leaves when it has this many
/// pages and symbols, and records until the server announces the end of the cast.
fn record(lab: &Lab, server: &ServerProc<'_>, pages: usize, symbols: usize) -> Vec<Recorded> {
    let host = lab.client(2);
    let answer = host.get_with(&lab.url("join/image"), &[("X-BOOTCAST", "1")]);
    let answer = JoinAnswer::parse(&answer.body).unwrap();
    let sockets = listen(host, *answer.connect.ip());
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
    }
    let mut recorded: Vec<Recorded> = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut until = |what: &str, is_enough: &dyn Fn(&[Recorded]) -> bool| {
        wait_until(TRANSFER, what, || {
            for (port, socket) in PORTS.iter().zip(&sockets) {
                while let Ok(len) = socket.recv(&mut buffer) {
                    recorded.push((*port, buffer[..len].to_vec()));
                }
            }
            is_enough(&recorded)
        });
    };
    // The first byte of a page's datagram is 0; on the repair channel it is the kind.
    let count = |recorded: &[Recorded], kind: u8| {
        recorded.iter().filter(|(_, datagram)| datagram[0] == kind).count()
    };
    until("pages, symbols and beacons", &|it| {
        count(it, 0) >= pages && count(it, 1) >= symbols && count(it, 2) > 0
    });
    let token = [("X-TOKEN", answer.token.as_str())];
    assert_eq!(host.get_with(&lab.url("leave/image"), &token).status, 204);
    until("the end", &|it| count(it, 3) > 0);
    server.wait_no_members();
    recorded
}

/// Sends recorded datagrams to the group again, alternately from each forger.
fn replay(forgers: &[Forger; 2], group: Ipv4Addr, recorded: &[Recorded]) {
    for ((port, datagram), forger) in recorded.iter().zip(forgers.iter().cycle()) {
        forger.send(SocketAddrV4::new(group, *port), datagram);
    }
}

/// Creates forgers of another socket of the server's host, and of the server's socket. Must be
/// called on the forging host.
pub(crate) fn forgers(server: SocketAddrV4) -> [Forger; 2] {
    [Forger::new(SocketAddrV4::new(*server.ip(), 4242)), Forger::new(server)]
}

#[test]
fn replayed_datagrams_of_an_earlier_cast_are_dropped() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").option("--linger", "60s").start();
    let earlier = record(&lab, &server, 1000, 100);
    let old = server.cast_of("image").unwrap();

    // Another version of the same size: every page of the earlier cast could belong to it.
    let new = lab.put("new", image.size);
    fs::rename(&new.path, &image.path).unwrap();
    let mount = lab.mount(1).option("attr_ttl=0,unicast=never").start();
    let valve = lab.hold_multicast_after(0);
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "the new version is being sent", |cast| {
        cast.etag != old.etag && cast.pages_sent > 0
    });
    lab.wait_members(&server, "image", 1..=1);
    let group: SocketAddrV4 = server.cast_of("image").unwrap().group.parse().unwrap();
    let source = sending_socket(&server);
    lab.client(2).enter(|| replay(&forgers(source), *group.ip(), &earlier));
    valve.open();
    copy.finish(&new);
    wait_until(SOON, "the client has left", || copy.mount.log().contains("forged="));
    assert!(forged(&copy.mount.log()) > 0, "{}", copy.mount.log());
}

#[test]
fn replayed_datagrams_of_the_same_cast_do_no_harm() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "20mbit").option("--linger", "60s").start();
    let mut earlier = record(&lab, &server, 2000, 100);
    let before = server.cast_of("image").unwrap();
    // The cast still has the same key, so these datagrams are genuine, and members may use them.
    let mut pages = 0;
    earlier.retain(|(port, _)| {
        pages += u32::from(*port == 9000);
        *port == 9001 || pages <= 500
    });
    let group: SocketAddrV4 = before.group.parse().unwrap();
    let source = sending_socket(&server);
    let mount = lab.mount(1).start();
    let done = AtomicBool::new(false);
    let log = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The replay begins before the copy does. Each request for the status is a pause.
            let forgers = lab.client(2).enter(|| forgers(source));
            for batch in earlier.chunks(20).cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                replay(&forgers, *group.ip(), batch);
                server.status();
            }
        });
        let _done = SetOnDrop(&done);
        let mut copy = Copy::start_on(mount, &image);
        copy.finish(&image);
        wait_until(SOON, "the client has left", || copy.mount.log().contains("strangers="));
        copy.mount.log()
    });
    assert!(log.contains("strangers=0 forged=0"), "{log}");
    let (cast, totals) = (server.cast_of("image").unwrap(), server.status().totals);
    assert_eq!((totals.casts, totals.joins), (1, 2), "{log}");
    let sent = cast.pages_sent + cast.symbols_sent - before.pages_sent - before.symbols_sent;
    assert!(sent < u64::from(cast.pages) * 2, "{sent} datagrams for {} pages", cast.pages);
}
