//! `df` of a mount shows the server's file system, also while the server is away.

use harness::{Lab, SOON, lab_or_skip, wait_until};
use rustix::fs::{StatVfs, statvfs};
use rustix::process::Signal;

/// Returns the size in bytes.
fn total(space: &StatVfs) -> u64 {
    space.f_blocks * space.f_frsize
}

#[test]
fn df_shows_the_file_system_of_the_server_and_does_not_wait_for_it() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("images/image", 1000);
    let server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=0s").start();
    let expected = statvfs(lab.served()).unwrap();
    for path in [mount.path().to_owned(), mount.join("images"), mount.join("images/image")] {
        let shown = statvfs(&path).unwrap();
        // The free space changes with everything else that runs on this machine.
        assert_eq!(total(&shown), total(&expected) / 4096 * 4096, "{}", path.display());
        assert!(shown.f_bavail <= shown.f_bfree && 0 < shown.f_bfree);
    }
    server.proc().signal(Signal::STOP);
    let shown = statvfs(mount.path()).unwrap();
    assert_eq!(total(&shown), total(&expected) / 4096 * 4096);
    server.proc().signal(Signal::CONT);
    wait_until(SOON, "no request waits", || mount.parked_requests() == 0);
    mount.umount();
}
