//! Datagrams are lost, or sent by other hosts. Files stay right.

use std::net::UdpSocket;

use harness::{Lab, lab_or_skip, mib};

use crate::transfers::Copy;

#[test]
fn every_client_reads_the_same_bytes_through_2_percent_loss() {
    let lab = lab_or_skip!(Lab::builder().clients(4).loss(2.0));
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "200mbit").start();
    let mut copies = [1, 2, 3, 4].map(|k| Copy::start(&lab, k, &image));
    for copy in &mut copies {
        copy.finish(&image);
    }
    server.wait_no_members();
}

#[test]
fn datagrams_from_another_host_in_the_group_do_no_harm() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let valve = lab.hold_multicast_after(500_000);
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 50);

    let cast = server.cast_of("image").unwrap();
    lab.client(2).enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for page in 1..=cast.pages {
            // A valid page, but with wrong bytes and from another host.
            let mut forged = vec![0xaa; 16 + cast.page_size as usize];
            let words = [cast.page_size, page, 0, 0].map(u32::to_be_bytes);
            forged[..16].copy_from_slice(words.as_flattened());
            socket.send_to(&forged, &cast.group).unwrap();
            socket.send_to(b"noise", &cast.group).unwrap();
        }
    });
    valve.open();
    copy.finish(&image);
}
