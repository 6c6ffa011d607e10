//! `bootcast get --cache-dir` shares its file with mounts. docs/SEMANTICS.md, "Fetched files".

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use harness::binaries::binary;
use harness::{Lab, Proc, ServerProc, digest_of, lab_or_skip, mib};

use crate::{TRANSFER, outputs, text};

/// Starts `bootcast get --cache-dir` of the image on client 1, with these arguments.
fn spawn_get(lab: &Lab, cache: &Path, args: &[&str]) -> Proc {
    let url = lab.url("image");
    let fixed = ["get", "--interface", "eth0", "--cache-dir", text(cache), &url];
    lab.client(1).spawn(binary("bootcast"), [&fixed[..], args].concat())
}

/// Returns the pages and symbols that a server sent.
fn sent(server: &ServerProc<'_>) -> u64 {
    let totals = server.status().totals;
    totals.pages_sent + totals.symbols_sent
}

#[test]
fn a_fetch_leaves_the_file_to_mounts_and_later_fetches_of_every_kind() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(4) + 77);
    let server = lab.server().start();
    let (cache, target) = (lab.client(1).fresh_path("kept"), lab.client(1).fresh_path("out"));
    spawn_get(&lab, &cache, &["-O", text(&target)]).wait_success(TRANSFER);
    assert_eq!(digest_of(&target), image.digest);
    server.wait_no_members();
    let before = sent(&server);

    let id = image.digest.to_hex();
    let again = lab.client(1).fresh_path("again");
    spawn_get(&lab, &cache, &["-O", text(&again), "--b3", &id]).wait_success(TRANSFER);
    assert_eq!(digest_of(&again), image.digest);
    let output = "exec >\"$1\"; shift; exec \"$@\"";
    let piped = lab.client(1).fresh_path("piped");
    let (bootcast, url) = (binary("bootcast"), lab.url("image"));
    let get = [text(&bootcast), "get", "--cache-dir", text(&cache), &url, "-O", "-", "--b3", &id];
    lab.client(1).run_ok("sh", [&["-c", output, "sh", text(&piped)], &get[..]].concat());
    assert_eq!(digest_of(&piped), image.digest);
    let mount = lab.mount(1).option(&format!("cache_dir={}", text(&cache))).start();
    assert_eq!(digest_of(mount.join("image")), image.digest);
    assert_eq!(sent(&server), before, "the file was sent again");
}

#[test]
fn a_fetch_beside_a_mount_that_receives_the_file_takes_part_in_no_cast() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "40mbit").start();
    let (cache, target) = (lab.client(1).fresh_path("kept"), lab.client(1).fresh_path("out"));
    let mount = lab.mount(1).option(&format!("cache_dir={}", text(&cache))).start();
    let open = fs::File::open(mount.join("image")).unwrap();
    server.wait_cast("image", "pages are being sent", |cast| cast.pages_sent > 10);
    let mut get = spawn_get(&lab, &cache, &["-O", text(&target)]);
    get.wait_success(TRANSFER);
    assert_eq!(digest_of(&target), image.digest);
    drop(open);
    let joins = server.status().totals.joins;
    assert_eq!(joins, 1, "{}", get.log());
}

#[test]
fn holes_stay_holes() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(1));
    let file = fs::OpenOptions::new().write(true).open(&image.path).unwrap();
    file.set_len(mib(64)).unwrap();
    let _server = lab.server().start();
    let (cache, target) = (lab.client(1).fresh_path("kept"), lab.client(1).fresh_path("out"));
    spawn_get(&lab, &cache, &["-O", text(&target)]).wait_success(TRANSFER);
    assert_eq!(digest_of(&target), digest_of(&image.path));
    let allocated = fs::metadata(&target).unwrap().blocks() * 512;
    assert!(allocated <= mib(2), "{allocated} bytes are allocated");
}

#[test]
fn without_room_in_the_cache_the_file_is_fetched_all_the_same() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let _server = lab.server().start();
    let (cache, target) = (lab.client(1).fresh_path("kept"), lab.client(1).fresh_path("out"));
    outputs::mount_tmpfs(&cache, "size=4m");
    let mut get = spawn_get(&lab, &cache, &["-v", "-O", text(&target)]);
    get.wait_success(TRANSFER);
    assert!(get.log().contains("fetching without the cache: "), "{}", get.log());
    assert_eq!(digest_of(&target), image.digest);
}
