//! A panic in any thread of a client leaves no reader waiting and no dead mount.
//!
//! Builds with debug assertions panic where `BOOTCAST_TEST_PANIC=place:/path` says.

use std::path::Path;
use std::thread::JoinHandle;

use harness::binaries::binary;
use harness::mount::is_mounted;
use harness::{Lab, MountProc, Proc, SOON, digest_of, lab_or_skip, mib};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{TRANSFER, readers};

/// Mounts on client 1. The daemon panics in `place` for the file `trigger`.
fn mount<'lab>(lab: &'lab Lab, place: &str, option: &str) -> MountProc<'lab> {
    let provoked = format!("{place}:/trigger");
    lab.mount(1).option(option).variable("BOOTCAST_TEST_PANIC", &provoked).start()
}

/// Opens a file, and starts to read its first bytes past the page cache. Otherwise the kernel would
/// read once more after a failure, perhaps when the mount is gone already.
fn start_read(path: &Path) -> JoinHandle<rustix::io::Result<usize>> {
    let file = rustix::fs::open(path, OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).unwrap();
    // So many that the receive thread leaves it to the answer thread to copy them.
    let mut buffer = vec![0; usize::try_from(readers::READ_LEN).unwrap()];
    std::thread::spawn(move || rustix::io::read(file, &mut buffer[..]))
}

/// Asserts that the daemon ends in order, and that the mount can be made again.
fn assert_ends_in_order(lab: &Lab, mut mount: MountProc<'_>, place: &str) {
    assert_eq!(mount.proc().wait(SOON).code(), Some(32), "{}", mount.log());
    assert!(mount.log().contains(&format!("provoked by a test in {place}")), "{}", mount.log());
    assert!(!is_mounted(mount.path()));
    let again = lab.mount(1).option("unicast=always").start();
    assert_eq!(digest_of(again.join("trigger")), digest_of(lab.served().join("trigger")));
}

#[test]
fn a_panic_of_the_receive_thread_fails_reads_of_other_files_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder().valve());
    lab.put("image", mib(16));
    lab.put("trigger", mib(1));
    let _server = lab.server().option("--rate", "50mbit").start();
    let _valve = lab.hold_multicast_after(0);
    let mount = mount(&lab, "receive", "unicast=never");
    let read = start_read(&mount.join("image"));
    mount.wait_parked(1);
    let _trigger = readers::read_at(lab.client(1), &mount.join("trigger"), 0);
    assert_eq!(read.join().unwrap(), Err(Errno::IO));
    assert_ends_in_order(&lab, mount, "receive");
}

#[test]
fn a_panic_of_the_answer_thread_fails_its_reads_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder().valve());
    lab.put("trigger", mib(1));
    let _server = lab.server().option("--rate", "50mbit").start();
    let valve = lab.hold_multicast_after(0);
    let mount = mount(&lab, "answer", "unicast=never");
    let read = start_read(&mount.join("trigger"));
    mount.wait_parked(1);
    valve.open();
    // The read is in the thread's hands: the mount may end before it is given back.
    let read = read.join().unwrap();
    assert!([Err(Errno::IO), Err(Errno::CONNABORTED)].contains(&read), "{read:?}");
    assert_ends_in_order(&lab, mount, "answer");
}

#[test]
fn a_panic_of_a_fetch_fails_its_reads_and_unmounts() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("trigger", mib(1));
    let _server = lab.server().start();
    let mount = mount(&lab, "fetch", "unicast=always");
    let mut reader = readers::read_at(lab.client(1), &mount.join("trigger"), 0);
    assert!(!reader.wait(TRANSFER).success());
    // The fetch may begin, and the mount end, before the read does or before it is taken.
    let errors = [
        "Input/output error",
        "Transport endpoint is not connected",
        "Software caused connection abort",
    ];
    assert!(errors.iter().any(|error| reader.log().contains(error)), "{}", reader.log());
    assert_ends_in_order(&lab, mount, "fetch");
}

#[test]
fn get_ends_with_one_line_and_an_exit_code_of_its_own() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", mib(1));
    let _server = lab.server().start();
    let copy = lab.client(1).fresh_path("copy");
    let mut command = lab.client(1).command(binary("bootcast"));
    command.env("BOOTCAST_TEST_PANIC", "receive:/image");
    command.args(["get", "--interface", "eth0", &lab.url("image"), "-O"]).arg(&copy);
    let mut get = Proc::start(command, &lab.client(1).fresh_path("log"));
    let code = get.wait(TRANSFER).code();
    let log = get.log();
    assert_eq!(code, Some(9), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("provoked by a test in receive"), "{log}");
    assert!(!copy.exists(), "a partial file was left");
}
