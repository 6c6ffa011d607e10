//! Interfaces that go and come back while a file arrives, at either end.

use harness::{Host, Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::Copy;

/// Has a client copy a file, and changes the interface of the head, and then that of the client,
/// while it arrives. The copy must become complete by multicast alone.
fn copy_while(lab: &Lab, change: impl Fn(&Lab, &ServerProc<'_>, &Host)) -> String {
    let image = lab.put("image", mib(16));
    let server = lab.server().option("--rate", "20mbit").start();
    let mount = lab.mount(1).option("unicast=never").start();
    let mut copy = Copy::start_on(mount, &image);
    for (host, eighth) in [(lab.head(), 1), (lab.client(1), 3)] {
        wait_until(TRANSFER, "a part of the file is sent", || {
            server
                .cast_of("image")
                .is_some_and(|cast| cast.pages_sent > u64::from(cast.pages) * eighth / 8)
        });
        change(lab, &server, host);
    }
    copy.finish(&image);
    server.wait_no_members();
    copy.mount.log()
}

#[test]
fn a_cast_goes_on_after_the_link_of_either_end_was_down() {
    let lab = lab_or_skip!(Lab::builder());
    copy_while(&lab, |lab, server, host| {
        host.run_ok("ip", ["link", "set", "eth0", "down"]);
        if host.address() == lab.head().address() {
            wait_until(SOON, "the server notices it", || server.log().contains("cannot send"));
        } else {
            // Pages that the client does not get.
            let before = server.status().totals.pages_sent;
            wait_until(SOON, "pages are lost", || server.status().totals.pages_sent > before + 100);
        }
        host.run_ok("ip", ["link", "set", "eth0", "up"]);
    });
}

#[test]
fn a_cast_goes_on_through_an_interface_that_is_made_anew_at_either_end() {
    let lab = lab_or_skip!(Lab::builder());
    let log = copy_while(&lab, |lab, _, host| lab.replace_interface(host));
    // The client does not wait until silence makes it join again.
    assert!(log.contains("listening on another interface"), "{log}");
}
