//! Tests of the lab itself, on which the other tests rely.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::parent_id;

use harness::{Lab, SOON, lab_or_skip, wait_until};

use crate::text;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 0, 1);
const PORT: u16 = 9000;

fn send(lab: &Lab, datagrams: u32, len: usize) {
    lab.head().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..datagrams {
            socket.send_to(&vec![0; len], (GROUP, PORT)).unwrap();
        }
    });
}

fn subscribe(lab: &Lab, client: usize) -> UdpSocket {
    let host = lab.client(client);
    let socket = host.enter(|| {
        let socket = UdpSocket::bind((GROUP, PORT)).unwrap();
        socket.join_multicast_v4(&GROUP, &host.address()).unwrap();
        socket
    });
    wait_until(SOON, "the switch knows the member", || lab.switch_sends(GROUP, client));
    socket
}

#[test]
fn a_client_gets_only_the_groups_that_it_joined() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let _socket = subscribe(&lab, 1);
    let before = (lab.client(1).counters().rx_bytes, lab.client(2).counters().rx_bytes);
    send(&lab, 100, 1000);
    wait_until(SOON, "the member got the datagrams", || {
        lab.client(1).counters().rx_bytes - before.0 >= 100_000
    });
    assert!(lab.client(2).counters().rx_bytes - before.1 < 10_000, "the switch floods");
}

#[test]
fn without_snooping_every_client_gets_every_group() {
    let lab = lab_or_skip!(Lab::builder().clients(2).snooping(false));
    send(&lab, 100, 1000);
    for client in lab.clients() {
        wait_until(SOON, "the switch floods", || client.counters().rx_bytes >= 100_000);
    }
}

#[test]
fn a_lab_with_20_percent_loss_loses_about_20_percent() {
    let lab = lab_or_skip!(Lab::builder().loss(20.0));
    let socket = subscribe(&lab, 1);
    socket.set_nonblocking(true).unwrap();
    send(&lab, 150, 100);
    let (mut received, mut is_over) = (0, false);
    wait_until(SOON, "a last datagram gets through", || {
        // Datagrams keep their order: when one of these arrives, no other is in flight.
        send(&lab, 1, 1);
        let mut buffer = [0; 200];
        while let Ok(len) = socket.recv(&mut buffer) {
            received += u32::from(len == 100);
            is_over |= len == 1;
        }
        is_over
    });
    assert!((75..150).contains(&received), "{received} of 150 at 20 % loss");
}

#[test]
fn a_lab_removes_everything_even_if_its_test_panics() {
    let lab = lab_or_skip!(Lab::builder());
    let namespace = lab.head().namespace().to_owned();
    let directory = lab.directory().to_owned();
    let mut sleeper = lab.head().spawn("sleep", ["1000"]);
    let name = format!("/proc/{}/comm", sleeper.pid());
    wait_until(SOON, "it runs on its host", || fs::read_to_string(&name).unwrap() == "sleep\n");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _owned = lab;
        panic!("as a failing test does");
    }));
    assert!(panicked.is_err());
    sleeper.wait(SOON);
    assert!(!directory.exists());
    assert!(!std::path::Path::new("/run/netns").join(namespace).exists());
}

#[test]
fn only_a_test_and_its_programs_see_its_mounts() {
    let lab = lab_or_skip!(Lab::builder());
    let _server = lab.server().start();
    let mut mount = lab.mount(1).start();
    let (path, daemon) = (mount.path().to_owned(), mount.proc().pid().to_string());
    let seen = |process: &str| {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
        mounts.contains(text(&path))
    };
    assert!(seen("thread-self") && seen(&daemon));
    assert!(!seen(&parent_id().to_string()), "the program that runs the tests sees the mount");
}
