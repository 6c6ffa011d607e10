//! Tags of datagrams. docs/PROTOCOL.md, "Tags".

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use bootcast_proto::tag::TAG;
use bootcast_proto::{DatagramKey, JoinAnswer};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::http::{report, request};
use crate::process::{DEADLINE, Server, wait_for};

/// A member of a cast of 40 pages, with a socket for each port.
struct Member {
    answer: JoinAnswer,
    pages: UdpSocket,
    repair: UdpSocket,
}

fn listen(group: SocketAddrV4) -> UdpSocket {
    let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    unbound.set_reuse_address(true).unwrap();
    unbound.bind(&group.into()).unwrap();
    let socket = UdpSocket::from(unbound);
    socket.join_multicast_v4(group.ip(), &Ipv4Addr::LOCALHOST).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn join(server: &Server, path: &str) -> JoinAnswer {
    server.write(path, &vec![7; 40 * 1456 - 3]);
    let response =
        request(server.address(), "GET", &format!("/join/{path}"), &[("X-BOOTCAST", "1")]);
    JoinAnswer::parse(response.text()).unwrap()
}

impl Member {
    fn new(server: &Server, path: &str) -> Self {
        let answer = join(server, path);
        let repair = SocketAddrV4::new(*answer.connect.ip(), answer.extensions.repair.unwrap());
        let (pages, repair) = (listen(answer.connect), listen(repair));
        let token = Some(answer.token.as_str());
        assert_eq!(report(server.address(), path, token, r#"{"needs":[[0,2]]}"#).status, 204);
        Self { answer, pages, repair }
    }

    /// Passes datagrams to `check`: every page, and at least one of each kind of the repair
    /// channel. Stops the server to get the end datagram.
    fn receive_all(&self, server: &mut Server, mut check: impl FnMut(&[u8])) {
        let mut datagram = vec![0; 65_536];
        let mut receive = |socket: &UdpSocket| {
            let len = socket.recv(&mut datagram).expect("a datagram within the deadline");
            check(&datagram[..len]);
            datagram[0]
        };
        for _ in 0..self.answer.pages {
            assert_eq!(receive(&self.pages), 0);
        }
        let (mut symbols, mut beacons) = (0, 0);
        wait_for("symbols and beacons", || {
            match receive(&self.repair) {
                1 => symbols += 1,
                2 => beacons += 1,
                other => panic!("kind {other}"),
            }
            (symbols > 0 && beacons > 0).then_some(())
        });
        assert_eq!(server.stop_with(Signal::TERM).code(), Some(0));
        wait_for("the end", || (receive(&self.repair) == 3).then_some(()));
    }
}

#[test]
fn every_datagram_of_either_port_carries_its_tag() {
    let mut server = Server::start(&["--rate", "50mbit"]);
    let member = Member::new(&server, "file");
    let key = member.answer.extensions.key.expect("a key");
    member.receive_all(&mut server, |datagram| assert!(key.is_genuine(datagram), "{datagram:?}"));
}

#[test]
fn without_tags_there_is_no_key_and_the_tag_field_is_0() {
    let mut server = Server::start(&["--rate", "50mbit", "--no-tag"]);
    let member = Member::new(&server, "file");
    assert_eq!(member.answer.extensions.key, None);
    member.receive_all(&mut server, |datagram| assert_eq!(datagram[TAG], [0; 8]));
}

#[test]
fn the_reference_layout_has_no_key() {
    let server = Server::start(&["--layout", "reference"]);
    assert_eq!(join(&server, "file").extensions.key, None);
}

#[test]
fn every_cast_has_a_key_of_its_own() {
    let key = |server: &Server, path| join(server, path).extensions.key.unwrap();
    let server = Server::start(&["--rate", "1mbit"]);
    let keys: [DatagramKey; 2] = ["one", "other"].map(|path| key(&server, path));
    let again = request(server.address(), "GET", "/join/one", &[]);
    assert_eq!(JoinAnswer::parse(again.text()).unwrap().extensions.key, Some(keys[0]));
    assert_ne!(keys[0], keys[1]);
    // The same file in another run of the server.
    let restarted = Server::start(&["--rate", "1mbit"]);
    assert!(!keys.contains(&key(&restarted, "one")));
}
