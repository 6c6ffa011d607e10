//! Repair channel, as a member sees it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use bootcast_proto::fec::{Engine, decode};
use bootcast_proto::wire::RepairDatagram;
use bootcast_proto::{BlockIndex, JoinAnswer, PageRange};
use socket2::{Domain, Socket, Type};

use crate::http::{report, request};
use crate::process::{DEADLINE, Server, wait_for};

const EXTENDED: [(&str, &str); 1] = [("X-BOOTCAST", "1")];

pub(crate) fn join(server: &Server, path: &str) -> JoinAnswer {
    join_with(server, path, &[])
}

/// Joins as an extended client with further headers.
pub(crate) fn join_with(server: &Server, path: &str, headers: &[(&str, &str)]) -> JoinAnswer {
    let headers = [&EXTENDED, headers].concat();
    let response = request(server.address(), "GET", &format!("/join/{path}"), &headers);
    assert_eq!(response.status, 200, "{}", response.text());
    JoinAnswer::parse(response.text()).unwrap()
}

/// Opens the repair channel of a member.
pub(crate) fn listen(answer: &JoinAnswer) -> UdpSocket {
    let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    unbound.set_reuse_address(true).unwrap();
    let (group, port) = (*answer.connect.ip(), answer.extensions.repair.unwrap());
    unbound.bind(&SocketAddr::from((group, port)).into()).unwrap();
    let socket = UdpSocket::from(unbound);
    socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect()
}

#[test]
fn reported_needs_bring_symbols_that_rebuild_pages() {
    let server = Server::start(&["--rate", "50mbit"]);
    let content = bytes(300_000);
    server.write("file", &content);
    let answer = join(&server, "file");
    let (channel, token) = (listen(&answer), answer.token.as_str());
    let (layout, geometry) = (answer.block_layout().unwrap(), answer.geometry().unwrap());
    let sent = report(server.address(), "file", Some(token), r#"{"needs":[[1,3]]}"#);
    assert_eq!((sent.status, sent.body.len()), (204, 0), "{}", sent.text());
    let page = |page| {
        let range = geometry.byte_range(PageRange::single(page));
        &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let mut symbols = Vec::new();
    let mut datagram = vec![0; 65_536];
    let full = answer.page_size.get();
    while symbols.len() < 3 {
        let len = channel.recv(&mut datagram).expect("a datagram within the deadline");
        match RepairDatagram::decode(&datagram[..len], layout, full).unwrap() {
            RepairDatagram::Symbol { block: BlockIndex(1), symbol, payload, .. } => {
                symbols.push((symbol, payload.to_vec()));
            }
            RepairDatagram::Symbol { .. }
            | RepairDatagram::Beacon(_)
            | RepairDatagram::LeafList(_) => {}
            RepairDatagram::End { .. } => panic!("the cast ended"),
        }
    }
    let pages: Vec<_> = layout.pages_in(BlockIndex(1)).collect();
    let (missing, present) = pages.split_at(3);
    let wanted: Vec<_> = missing.iter().map(|(source, _)| *source).collect();
    let present: Vec<_> = present.iter().map(|(source, at)| (*source, page(*at))).collect();
    let symbols: Vec<_> = symbols.iter().map(|(number, it)| (*number, it.as_slice())).collect();
    let rebuilt = decode(Engine::best(), full as usize, &wanted, &present, &symbols).unwrap();
    assert!(rebuilt.iter().zip(missing).all(|(rebuilt, (_, at))| rebuilt == page(*at)));
    assert!(server.status().casts[0].symbols_sent >= 3);
}

#[test]
fn a_member_receives_beacons_and_the_end_of_the_cast() {
    let mut server = Server::start(&["--rate", "5mbit"]);
    server.write("file", &bytes(300_000));
    let answer = join(&server, "file");
    let (channel, layout) = (listen(&answer), answer.block_layout().unwrap());
    let mut datagram = vec![0; 65_536];
    let mut wait_until_received = |is_wanted: fn(&RepairDatagram<'_>) -> bool| {
        wait_for("the datagram", || {
            let len = channel.recv(&mut datagram).expect("a datagram within the deadline");
            let received = RepairDatagram::decode(&datagram[..len], layout, 1456).unwrap();
            is_wanted(&received).then_some(())
        });
    };
    wait_until_received(|it| matches!(it, RepairDatagram::Beacon(beacon) if beacon.members == 1));
    assert_eq!(server.stop_with(rustix::process::Signal::TERM).code(), Some(0));
    wait_until_received(|it| matches!(it, RepairDatagram::End { .. }));
}

#[test]
fn a_malformed_report_is_refused_with_its_status() {
    let server = Server::start(&["--rate", "1mbit"]);
    server.write("file", &bytes(300_000));
    let extended = join(&server, "file");
    let plain = JoinAnswer::parse(server.get("/join/file").text()).unwrap();
    let (extended, plain) = (extended.token.as_str(), plain.token.as_str());
    let huge = format!("{{}}{}", " ".repeat(256 << 10));
    for (path, token, body, status) in [
        ("file", Some(extended), "{}", 204),
        ("file", None, "{}", 400),
        ("file", Some(extended), "", 400),
        ("file", Some(extended), r#"{"needs":[[1,256]]}"#, 400),
        ("file", Some(extended), r#"{"needs":"all"}"#, 400),
        ("file", Some(extended), &huge, 413),
        ("file", Some(plain), "{}", 404),
        ("file", Some("0123"), "{}", 404),
        ("file", Some("\u{e9}"), "{}", 404),
        ("other", Some(extended), "{}", 404),
        ("%zz", Some(extended), "{}", 400),
    ] {
        let response = report(server.address(), path, token, body);
        assert_eq!(response.status, status, "{path} {token:?}: {}", response.text());
        assert_eq!(response.text().lines().count(), usize::from(status != 204));
    }
    assert_eq!(server.get("/report/file").status, 405);
}

#[test]
fn without_repair_the_join_answer_has_no_lines_of_repair() {
    for args in [&["--no-repair"][..], &["--layout", "reference"]] {
        let server = Server::start(args);
        server.write("file", &bytes(4000));
        let extensions = join(&server, "file").extensions;
        assert_eq!(
            (extensions.repair, extensions.interleave, extensions.lease),
            (None, None, None)
        );
    }
}
