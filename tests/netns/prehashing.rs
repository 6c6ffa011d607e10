//! `bootcast-server --prehash`, while files are cast.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use harness::binaries::binary;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, ServerProc, digest_of, lab_or_skip, mib, wait_until};

use crate::proving::b3;
use crate::transfers::Get;
use crate::{TRANSFER, text};

/// `SCHED_IDLE`, sched(7).
const IDLE_POLICY: &str = "5";

/// Returns the number of manifests in a state directory.
fn kept(state: &Path) -> usize {
    let names = fs::read_dir(state).map(|entries| entries.flatten().map(|entry| entry.file_name()));
    names.map_or(0, |names| {
        names.filter(|name| name.to_string_lossy().ends_with(".manifest")).count()
    })
}

/// Returns the directory in `/proc` of the thread of the server that hashes ahead.
fn prehash_thread(server: &ServerProc<'_>) -> PathBuf {
    let threads = fs::read_dir(format!("/proc/{}/task", server.proc().pid())).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let is_prehash = |thread: &PathBuf| {
        fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "prehash")
    };
    threads.find(is_prehash).expect("the thread that hashes ahead")
}

#[test]
fn files_are_hashed_ahead_at_idle_priority_and_a_server_that_hashes_can_be_stopped() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, other) = (lab.put("images/image", mib(9)), lab.put("other", 1000));
    // It would take an hour to hash, and is the last in the order of names.
    fs::create_dir(lab.served().join("z")).unwrap();
    File::create(lab.served().join("z/huge")).unwrap().set_len(mib(8 << 20)).unwrap();
    symlink("/etc", lab.served().join("outside")).unwrap();
    let state = lab.head().fresh_path("ahead");
    let mut server = lab.server().flag("--prehash").option("--state-dir", text(&state)).start();
    wait_until(TRANSFER, "both files are hashed", || kept(&state) == 2);
    let thread = prehash_thread(&server);
    let stat = fs::read_to_string(thread.join("stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    assert_eq!(fields.split_whitespace().nth(41 - 3), Some(IDLE_POLICY), "{stat}");
    let id = thread.file_name().unwrap().to_str().unwrap();
    assert_eq!(lab.head().run_ok("ionice", ["-p", id]).trim(), "idle");

    // Meanwhile casts go on, and the proof of a file is there at once.
    Get::start_with(&lab, 1, &image, &["--b3", &b3(&image)]).finish(&image);
    Get::start(&lab, 1, &other).finish(&other);
    let log = server.log();
    assert!(log.contains("hashing the served files ahead"), "{log}");
    assert!(!log.contains("all files are hashed"), "{log}");
    server.stop();
    assert_eq!(kept(&state), 2);
}

#[test]
fn a_mount_pins_all_files_of_a_directory_to_what_hash_printed() {
    let lab = lab_or_skip!(Lab::builder());
    let images = [lab.put("images/a", mib(5)), lab.put("images/below/b c", 1000)];
    let _server = lab.server().start();
    let (pins, state) = (lab.client(1).fresh_path("pins"), lab.head().fresh_path("hashes"));
    let program = binary("bootcast-server");
    let script = "\"$1\" hash --dir \"$2\" --state-dir \"$3\" . >\"$4\"";
    let dir = lab.served().join("images");
    let args = [script, "sh", text(&program), text(&dir), text(&state), text(&pins)];
    lab.head().run_ok("sh", [&["-c"], &args[..]].concat());
    let source = format!("{HEAD_ADDRESS}:/images");
    let option = format!("pins={}", text(&pins));
    let mount = lab.mount(1).source(&source).option(&option).start();
    for image in &images {
        let name = image.name.strip_prefix("images").unwrap();
        assert_eq!(digest_of(mount.join(name)), image.digest, "{}", name.display());
    }
}
