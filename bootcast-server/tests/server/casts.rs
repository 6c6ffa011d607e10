//! Casts over loopback multicast to a plain client, which knows the base protocol only.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use bootcast_proto::wire::Layout;
use bootcast_proto::{JoinAnswer, PageIndex};
use socket2::{Domain, Socket, Type};

use crate::http::request;
use crate::process::{DEADLINE, Server, wait_for};

/// A member and its socket.
struct Member {
    path: String,
    answer: JoinAnswer,
    socket: UdpSocket,
}

impl Member {
    fn join(server: &Server, path: &str) -> Self {
        let response = server.get(&format!("/join/{path}"));
        assert_eq!(response.status, 200, "{}", response.text());
        let answer = JoinAnswer::parse(response.text()).unwrap();
        let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        unbound.set_reuse_address(true).unwrap();
        unbound.bind(&SocketAddr::from(answer.connect).into()).unwrap();
        let socket = UdpSocket::from(unbound);
        socket.join_multicast_v4(answer.connect.ip(), &Ipv4Addr::LOCALHOST).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { path: path.to_owned(), answer, socket }
    }

    fn receive(&self, layout: Layout) -> (PageIndex, Vec<u8>) {
        let mut datagram = vec![0; 65_536];
        let len = self.socket.recv(&mut datagram).expect("a datagram within the deadline");
        let page = layout.decode(&datagram[..len], self.answer.pages).expect("a page of this cast");
        (page.index, page.payload.to_vec())
    }

    /// Receives until every page arrived, and returns them in file order.
    fn receive_all(&self, layout: Layout) -> Vec<u8> {
        let pages = self.answer.geometry().unwrap().pages() as usize;
        let mut held = BTreeMap::new();
        while held.len() < pages {
            let (index, payload) = self.receive(layout);
            held.insert(index, payload);
        }
        held.into_values().flatten().collect()
    }

    fn leave(self, server: &Server) {
        let token = [("X-TOKEN", self.answer.token.as_str())];
        let left = request(server.address(), "GET", &format!("/leave/{}", self.path), &token);
        assert_eq!((left.status, left.body.len()), (204, 0));
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect()
}

/// A rate that an unoptimised receiver with a small socket buffer can follow.
const SLOW: [&str; 2] = ["--rate", "50mbit"];

fn wait_until_no_cast_runs(server: &Server) {
    wait_for("the end of the cast", || server.status().casts.is_empty().then_some(()));
}

#[test]
fn a_file_of_any_size_arrives_and_the_last_leave_ends_its_cast() {
    let server = Server::start(&SLOW);
    for size in [1, 1455, 1456, 1457, 2912, 4000, 300_000] {
        let name = format!("file-{size}");
        server.write(&name, &bytes(size));
        let member = Member::join(&server, &name);
        assert!(member.receive_all(Layout::Base) == bytes(size), "{size}");
        member.leave(&server);
    }
    wait_until_no_cast_runs(&server);
    wait_for("the end of each cast in the log", || {
        (server.log().matches("reason=last member left").count() == 7).then_some(())
    });
}

#[test]
fn the_reference_layout_is_sent_when_configured() {
    let server = Server::start(&[&SLOW[..], &["--layout", "reference"]].concat());
    server.write("exact", &bytes(2912));
    let member = Member::join(&server, "exact");
    assert_eq!(member.answer.pages, 3);
    assert!(member.receive_all(Layout::Reference) == bytes(2912));
    member.leave(&server);
}

#[test]
fn an_empty_file_is_joined_and_left_without_a_datagram() {
    let server = Server::start(&SLOW);
    server.write("empty", b"");
    let member = Member::join(&server, "empty");
    assert_eq!(member.answer.pages, 0);
    member.leave(&server);
    wait_until_no_cast_runs(&server);
    assert_eq!(server.status().totals.pages_sent, 0);
}

#[test]
fn a_late_member_shares_the_running_cast_and_its_reads() {
    let server = Server::start(&["--rate", "10mbit"]);
    server.write("file", &bytes(200_000));
    let first = Member::join(&server, "file");
    first.receive(Layout::Base);
    let late = Member::join(&server, "file");
    assert_eq!(late.answer.connect, first.answer.connect);
    assert_ne!(late.answer.token, first.answer.token);
    let (first_page, _) = late.receive(Layout::Base);
    assert!(first_page.0 > 0, "the cast started again from its first page");
    assert!(late.receive_all(Layout::Base) == bytes(200_000));
    let status = server.status();
    let cast = &status.casts[0];
    assert_eq!((status.totals.casts, cast.joins, cast.members), (1, 2, 2));
    let passes = u64::from(cast.passes) + 1;
    assert!(status.totals.bytes_read <= passes * 200_000, "{status:?}");
}

#[test]
fn a_cast_without_a_leave_ends_after_its_idle_passes() {
    let server = Server::start(&["--rate", "50mbit", "--idle-passes", "2"]);
    server.write("file", &bytes(4000));
    drop(Member::join(&server, "file"));
    wait_until_no_cast_runs(&server);
    assert_eq!(server.status().totals.pages_sent, 2 * 3);
    wait_for("the reason in the log", || server.log().contains("reason=idle passes").then_some(()));
}

type Change = fn(&std::path::Path);

#[test]
fn a_file_that_changes_ends_its_cast() {
    let changes: [(&str, Change); 4] = [
        ("shrinks", |file| {
            std::fs::File::options().write(true).open(file).unwrap().set_len(10).unwrap();
        }),
        ("grows", |file| std::fs::write(file, bytes(500_000)).unwrap()),
        ("vanishes", |file| std::fs::remove_file(file).unwrap()),
        ("is replaced", |file| {
            let other = file.with_extension("new");
            std::fs::write(&other, bytes(300_000)).unwrap();
            std::fs::rename(&other, file).unwrap();
        }),
    ];
    for (how, change) in changes {
        // A pass takes 2.4 s, so the change is detected within a pass.
        let server = Server::start(&["--rate", "1mbit"]);
        server.write("file", &bytes(300_000));
        let member = Member::join(&server, "file");
        member.receive(Layout::Base);
        change(&server.dir.path().join("file"));
        wait_until_no_cast_runs(&server);
        let is_logged = || server.log().contains("reason=file changed").then_some(());
        wait_for(how, is_logged);
        assert_eq!(server.status().totals.casts, 1, "{how}");
    }
}

#[test]
fn a_join_beyond_the_limit_of_casts_is_refused_with_retry_after() {
    for limit in [["--max-casts", "1"], ["--groups", "239.255.9.9/32"]] {
        let server = Server::start(&[&["--rate", "1mbit"][..], &limit].concat());
        server.write("one", &bytes(100_000));
        server.write("two", &bytes(100_000));
        let one = Member::join(&server, "one");
        let refused = server.get("/join/two");
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        assert_eq!(refused.text().lines().count(), 1);
        one.leave(&server);
        wait_for("room for the second cast", || {
            (server.get("/join/two").status == 200).then_some(())
        });
    }
}

#[test]
fn servers_start_with_different_groups() {
    let group = |_| {
        let server = Server::start(&SLOW);
        server.write("file", &bytes(4000));
        *Member::join(&server, "file").answer.connect.ip()
    };
    // Three groups chosen at random from 65,534 are practically never all the same.
    let groups: std::collections::BTreeSet<_> = (0..3).map(group).collect();
    assert!(groups.len() > 1, "{groups:?}");
}
