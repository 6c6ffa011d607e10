//! Bytes are verified before they are read: mounts and fetches with `verify=leaf`, the default.
//! docs/SEMANTICS.md, "Verification".

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use harness::{Lab, digest_of, lab_or_skip, mib, wait_until};

use crate::proving::{copy_forged_pages, get_forged_pages, has_wrong_bytes, wait_hashed};
use crate::transfers::Get;
use crate::{TRANSFER, keeping, text};

/// Waits until this many contents are complete on disk, with their hashes.
pub(crate) fn wait_recorded(cache: &Path, contents: usize) {
    wait_until(TRANSFER, "the content is recorded", || {
        fs::read_dir(cache.join("contents")).is_ok_and(|entries| entries.count() >= contents)
    });
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_before_a_reader_of_a_mount() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).start();
    let mut copy = copy_forged_pages(&lab, &server, &image, mount);
    copy.finish(&image);
}

#[test]
fn a_member_that_forges_every_page_puts_no_wrong_byte_into_a_fetched_file() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    get_forged_pages(&lab, &server, &image, &["-v"], has_wrong_bytes).finish(&image);
}

#[test]
fn without_verification_the_same_member_is_believed() {
    let lab = lab_or_skip!(Lab::builder().clients(2).valve());
    let image = lab.put("image", mib(2));
    let server = lab.server().option("--rate", "20mbit").start();
    let is_over = |get: &mut Get| get.proc.exited().is_some();
    let mut get = get_forged_pages(&lab, &server, &image, &["--verify", "tag"], is_over);
    get.proc.wait_success(TRANSFER);
    assert_ne!(digest_of(&get.target), image.digest, "the forger of the other tests is harmless");
}

#[test]
fn a_cached_byte_that_changed_between_two_mounts_is_not_read() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(5));
    let server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let option = format!("cache_dir={}", text(&cache));
    let mount = lab.mount(1).option(&option).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    mount.umount();
    let data = keeping::only_object(&cache).join("data");
    let data = fs::OpenOptions::new().read(true).write(true).open(data).unwrap();
    for at in [0, 70_000, mib(5) - 1] {
        let mut byte = [0];
        data.read_exact_at(&mut byte, at).unwrap();
        data.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    let sent = server.status().totals.pages_sent;
    let again = lab.mount(1).option(&option).start();
    assert_eq!(digest_of(again.join("image")), image.digest);
    assert!(again.log().contains("wrong bytes"), "{}", again.log());
    assert_eq!(server.status().totals.pages_sent, sent, "the wrong leaves come over HTTP");
}

#[test]
fn a_complete_file_is_verified_also_while_the_server_is_away() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(5));
    let mut server = lab.server().start();
    let cache = lab.client(1).fresh_path("kept");
    let option = format!("cache_dir={}", text(&cache));
    let mount = lab.mount(1).option(&option).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    wait_recorded(&cache, 1);
    mount.umount();

    let again = lab.mount(1).option(&option).start();
    fs::metadata(again.join("image")).unwrap();
    server.kill();
    assert_eq!(digest_of(again.join("image")), image.digest);
}

#[test]
fn the_same_content_under_another_name_is_read_from_the_cache() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(5));
    let server = lab.server().start();
    let mount = lab.mount(1).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    server.wait_no_members();
    fs::copy(lab.served().join("image"), lab.served().join("copy")).unwrap();
    wait_hashed(&lab, "copy");
    let sent = server.status().totals.pages_sent;
    wait_recorded(mount.cache(), 1);
    assert_eq!(digest_of(mount.join("copy")), image.digest);
    assert_eq!(server.status().totals.pages_sent, sent);
}
