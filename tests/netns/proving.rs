//! `bootcast get --b3`: only the content with this hash is written, whoever sends. docs/PROTOCOL.md,
//! "Manifest".

use std::fs;
use std::process::Stdio;

use bootcast_proto::wire::Layout;
use bootcast_proto::{JoinAnswer, PageIndex};
use harness::binaries::binary;
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, ServerProc, digest_of, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::forging::{Forger, sending_socket};
use crate::transfers::Get;

fn b3(image: &Image) -> String {
    image.digest.to_hex().to_string()
}

/// Joins the cast of `image` on client 2 as a member, which learns the key, and sends each page
/// with wrong bytes and a right tag in the name of the server.
fn forge_all_pages(lab: &Lab, server: &ServerProc<'_>, image: &Image) {
    let host = lab.client(2);
    let url = lab.url(&format!("join/{}", image.name.display()));
    let answer = JoinAnswer::parse(&host.get_with(&url, &[("X-BOOTCAST", "1")]).body).unwrap();
    let key = answer.extensions.key.expect("a key");
    let geometry = answer.geometry().unwrap();
    let source = sending_socket(server);
    host.enter(|| {
        let forger = Forger::new(source);
        for page in 0..geometry.pages() {
            let page = PageIndex(page);
            let payload = vec![0xee; geometry.page_len(page).unwrap() as usize];
            let header = Layout::Base.header(page, answer.pages, &payload);
            let mut datagram = [&header[..], &payload].concat();
            key.seal(&mut datagram);
            forger.send(answer.connect, &datagram);
        }
    });
    let token = [("X-TOKEN", answer.token.as_str())];
    host.get_with(&lab.url(&format!("leave/{}", image.name.display())), &token);
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_into_the_file() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let _valve = lab.hold_multicast_after(0);
    let mut get = Get::start_with(&lab, 1, &image, &["-v", "--b3", &b3(&image)]);
    lab.wait_members(&server, "image", 1..=1);
    forge_all_pages(&lab, &server, &image);
    get.finish(&image);
    let log = get.proc.log();
    assert!(log.contains("128 parts of 16 KiB arrived wrong"), "{log}");
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_into_a_pipe() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let _valve = lab.hold_multicast_after(0);
    let host = lab.client(1);
    let copy = host.fresh_path("copy");
    let url = lab.url("image");
    let mut command = host.command(binary("bootcast"));
    command.args(["get", "--b3", &b3(&image), "-O", "-", "--interface", "eth0", &url]);
    let mut get = command.stdout(Stdio::from(fs::File::create(&copy).unwrap())).spawn().unwrap();
    lab.wait_members(&server, "image", 1..=1);
    forge_all_pages(&lab, &server, &image);
    wait_until(TRANSFER, "the transfer ends", || get.try_wait().unwrap().is_some());
    assert!(get.wait().unwrap().success());
    assert_eq!(digest_of(copy), image.digest);
}

#[test]
fn the_right_content_is_got_by_every_way() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let _server = lab.server().start();
    for (name, size) in [("empty", 0), ("small", 1000), ("segments", mib(9) + 1)] {
        let image = lab.put(name, size);
        for options in [&[][..], &["--unicast"]] {
            let hash = b3(&image);
            let options = [&["--b3", hash.as_str()], options].concat();
            Get::start_with(&lab, 1, &image, &options).finish(&image);
        }
    }
}

#[test]
fn another_content_is_refused_before_anything_is_written() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let other = lab.put("other", mib(1));
    let server = lab.server().start();
    let mut get = Get::start_with(&lab, 1, &image, &["--b3", &b3(&other)]);
    assert_eq!(get.proc.wait(TRANSFER).code(), Some(8));
    let log = get.proc.log();
    let told =
        format!("not the content that --b3 names: the server has the content {}", b3(&image));
    assert!(log.contains(&told), "{log}");
    assert!(!get.target.exists());
    assert!(server.cast_of("image").is_none(), "no cast was started for it");
}

#[test]
fn a_listing_has_the_hashes_of_all_files_as_b3sum_prints_them() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("images/b c", mib(5)), lab.put("images/a", 0));
    lab.put("images/below/c", 10);
    let _server = lab.server().start();
    let list = |path: &str| {
        let url = format!("{HEAD_ADDRESS}:/{path}");
        let mut ls = lab.client(1).spawn(binary("bootcast"), ["ls", "--b3", &url]);
        ls.wait_success(TRANSFER);
        ls.log()
    };
    assert_eq!(list("images"), format!("{}  a\n{}  b c\n", b3(&other), b3(&image)));
    assert_eq!(list("images/b c"), format!("{}  b c\n", b3(&image)));
}
