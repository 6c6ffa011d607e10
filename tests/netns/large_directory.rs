//! A directory of a hundred thousand names. Listing it delays no other request.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;

use bootcast_proto::DEFAULT_PORT;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, digest_of, lab_or_skip, mib};

use crate::outputs::mount_tmpfs;
use crate::{TRANSFER, text};

const NAMES: usize = 100_000;

/// Number of listings. More than the server makes at a time below one directory.
const LISTINGS: usize = 12;

/// Requests the listing. The answer has 15 MB, so the server is busy with it until it is read.
fn request_listing(lab: &Lab) -> TcpStream {
    let connect = || TcpStream::connect((HEAD_ADDRESS, DEFAULT_PORT)).unwrap();
    let mut stream = lab.client(1).enter(connect);
    stream.set_read_timeout(Some(TRANSFER)).unwrap();
    let request = "GET /meta/many/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[test]
fn listing_a_hundred_thousand_names_delays_no_lookup_and_a_lookup_needs_no_listing() {
    let lab = lab_or_skip!(Lab::builder());
    let many = lab.served().join("many");
    mount_tmpfs(&many, "size=16m,nr_inodes=0");
    for name in 0..NAMES {
        File::create(many.join(name.to_string())).unwrap();
    }
    let image = lab.put("fine/image", mib(1));
    let _server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0").start();
    let host = lab.client(1);

    let before = host.counters().rx_bytes;
    for name in ["many", "many/0", "many/99999"] {
        fs::metadata(mount.join(name)).unwrap();
    }
    assert!(!mount.join("many/100000").exists());
    let bytes = host.counters().rx_bytes - before;
    assert!(bytes < 50_000, "{bytes} bytes for four names");

    let listings: Vec<_> = (0..LISTINGS).map(|_| request_listing(&lab)).collect();
    let mut ls = host.spawn("ls", ["-U", text(&mount.join("many"))]);
    assert_eq!(digest_of(mount.join("fine/image")), image.digest);
    assert_eq!(fs::read_dir(mount.join("fine")).unwrap().count(), 1);
    for name in ["fine/image", "many/77777"] {
        fs::metadata(mount.join(name)).unwrap();
    }
    for mut listing in listings {
        let mut answer = String::new();
        listing.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches(r#"{"name":""#).count(), NAMES);
    }
    ls.wait_success(TRANSFER);
    assert_eq!(ls.log().lines().count(), NAMES);
}
