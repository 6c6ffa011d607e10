//! Tests of the lab's bad networks, on which the benchmarks rely.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use harness::lab::HEAD_ADDRESS;
use harness::requirements::{has_tool, report_skipped};
use harness::{Lab, SOON, lab_or_skip, wait_until};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 0, 1), 9000);

/// Sends numbered datagrams, and reads the sockets in between, so that none overflows. Returns the
/// numbers that each client received.
fn received(lab: &Lab, count: u32) -> Vec<Vec<u32>> {
    let sockets = lab.clients().iter().zip(1..).map(|(host, k)| {
        let socket = host.enter(|| {
            let socket = UdpSocket::bind(GROUP).unwrap();
            socket.join_multicast_v4(GROUP.ip(), &host.address()).unwrap();
            socket
        });
        socket.set_nonblocking(true).unwrap();
        wait_until(SOON, "the switch knows the member", || lab.switch_sends(*GROUP.ip(), k));
        socket
    });
    let sockets: Vec<_> = sockets.collect();
    let head = lab.head().enter(|| UdpSocket::bind((HEAD_ADDRESS, 0)).unwrap());
    let mut numbers = vec![Vec::new(); sockets.len()];
    let read = |numbers: &mut [Vec<u32>]| {
        for (socket, numbers) in sockets.iter().zip(numbers) {
            let mut number = [0; 4];
            while socket.recv(&mut number).is_ok() {
                numbers.push(u32::from_be_bytes(number));
            }
        }
    };
    for number in 0..count {
        head.send_to(&number.to_be_bytes(), GROUP).unwrap();
        read(&mut numbers);
    }
    // Datagrams keep their order: when one of these arrives, no other is in flight.
    wait_until(SOON, "a last datagram gets through to all", || {
        head.send_to(&count.to_be_bytes(), GROUP).unwrap();
        read(&mut numbers);
        numbers.iter().all(|numbers| numbers.contains(&count))
    });
    for numbers in &mut numbers {
        numbers.retain(|number| *number < count);
    }
    numbers
}

#[test]
fn bursts_lose_ten_packets_in_a_row_of_every_hundred_at_different_places_for_each_client() {
    let lab = lab_or_skip!(Lab::builder().clients(2).bursts(10, 100));
    let received = received(&lab, 1000);
    for numbers in &received {
        assert_eq!(numbers.len(), 900);
        let gaps = numbers.windows(2).filter(|pair| pair[1] - pair[0] > 1);
        assert!(gaps.clone().all(|pair| pair[1] - pair[0] == 11), "{numbers:?}");
        assert!((9..=10).contains(&gaps.count()));
    }
    assert_ne!(received[0], received[1]);
    for k in [1, 2] {
        // The final datagrams may have been lost in a burst as well.
        let lost = lab.lost_packets(k);
        assert!((100..=110).contains(&lost), "{lost} counted as lost on the way to client {k}");
    }
}

#[test]
fn a_lossy_network_loses_single_datagrams_and_clients_receive_many_at_a_time() {
    const LEN: usize = 1000;
    const SENDS: u64 = 20;
    const AT_ONCE: u64 = 40;
    let lab = lab_or_skip!(Lab::builder().loss(5.0));
    if !has_tool("ethtool") {
        return report_skipped("ethtool not found, install ethtool");
    }
    let host = lab.client(1);
    let receiving = host.enter(|| UdpSocket::bind(GROUP).unwrap());
    host.enter(|| receiving.join_multicast_v4(GROUP.ip(), &host.address()).unwrap());
    setsockopt(&receiving, UdpGroSegment, &true).unwrap();
    receiving.set_nonblocking(true).unwrap();
    wait_until(SOON, "the switch knows the member", || lab.switch_sends(*GROUP.ip(), 1));
    let sending = lab.head().enter(|| UdpSocket::bind((HEAD_ADDRESS, 0)).unwrap());
    setsockopt(&sending, UdpGsoSegment, &i32::try_from(LEN).unwrap()).unwrap();

    let (mut datagrams, mut messages) = (0, 0);
    let mut message = vec![0; 65_536];
    for sends in 1..=SENDS {
        sending.send_to(&vec![0; LEN * usize::try_from(AT_ONCE).unwrap()], GROUP).unwrap();
        wait_until(SOON, "each datagram was received or lost", || {
            while let Ok(len) = receiving.recv(&mut message) {
                assert_eq!(len % LEN, 0);
                datagrams += u64::try_from(len / LEN).unwrap();
                messages += 1;
            }
            datagrams + lab.lost_packets(1) == sends * AT_ONCE
        });
    }
    assert!((1..200).contains(&lab.lost_packets(1)), "of 800 at 5 %: {}", lab.lost_packets(1));
    assert!(messages * 2 < datagrams, "{messages} messages for {datagrams} datagrams");
}

#[test]
fn shared_loss_takes_the_same_packets_from_all_clients() {
    let lab = lab_or_skip!(Lab::builder().clients(2).shared_loss(20.0));
    let received = received(&lab, 1000);
    assert_eq!(received[0], received[1]);
    assert!((700..900).contains(&received[0].len()), "{} of 1000", received[0].len());
}

#[test]
fn one_client_can_have_a_higher_loss_rate_than_the_others() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss_of(2, 30.0));
    let received = received(&lab, 1000);
    assert_eq!(received[0].len(), 1000);
    assert!((600..800).contains(&received[1].len()), "{} of 1000", received[1].len());
}

#[test]
fn an_outage_loses_all_packets_for_some_time() {
    let lab = lab_or_skip!(Lab::builder().outages(20, 0.5));
    let received = received(&lab, 2000);
    let numbers = &received[0];
    assert!(numbers.len() < 2000, "none of 2000 was lost");
    // Independent losses would make about as many gaps as lost packets.
    let gaps = numbers.windows(2).filter(|pair| pair[1] - pair[0] > 1).count();
    assert!(gaps * 3 < 2000 - numbers.len(), "{gaps} gaps, {} of 2000", numbers.len());
}

#[test]
fn a_cap_at_the_switch_drops_packets_and_does_not_block_the_head() {
    let lab = lab_or_skip!(Lab::builder().rate("1mbit").cap_at_switch());
    let (client, head) = (lab.client(1), lab.head());
    let receiving = client.enter(|| UdpSocket::bind((client.address(), 9000)).unwrap());
    let sending = head.enter(|| UdpSocket::bind((HEAD_ADDRESS, 0)).unwrap());
    let before = (client.counters().rx_bytes, head.counters().tx_bytes);
    sending.connect(receiving.local_addr().unwrap()).unwrap();
    sending.set_nonblocking(true).unwrap();
    receiving.set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        sending.send(&[0; 1400]).expect("room in the socket's buffer");
    }
    assert!(head.counters().tx_bytes - before.1 >= 2000 * 1400);
    // Datagrams keep their order: when this one arrives, no other is in flight.
    wait_until(SOON, "a last datagram gets through", || {
        sending.send(b"last").unwrap();
        let mut datagram = [0; 1400];
        std::iter::from_fn(|| receiving.recv(&mut datagram).ok()).any(|len| len == 4)
    });
    // The datagrams would take 23 s at this rate, and the queue has room for a tenth of them.
    let received = client.counters().rx_bytes - before.0;
    assert!((200_000..2_000_000).contains(&received), "{received} bytes");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the real clock is what a delay is measured by")]
fn a_delay_line_delays_datagrams_in_both_directions() {
    let delay = Duration::from_millis(30);
    let lab = lab_or_skip!(Lab::builder().delay(delay));
    let bind =
        |host: &harness::Host| host.enter(|| UdpSocket::bind((host.address(), 9000)).unwrap());
    let (head, client) = (bind(lab.head()), bind(lab.client(1)));
    let mut ping = [0; 4];
    for socket in [&head, &client] {
        socket.set_read_timeout(Some(SOON)).unwrap();
    }
    let start = Instant::now();
    head.send_to(b"ping", client.local_addr().unwrap()).unwrap();
    let (_, from) = client.recv_from(&mut ping).unwrap();
    assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
    client.send_to(&ping, from).unwrap();
    head.recv(&mut ping).unwrap();
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
}
