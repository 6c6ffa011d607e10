//! The head's address changes during a cast, as when a DHCP lease is not renewed.

use harness::{Lab, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::Copy;

/// Address of the head that is removed during the cast. Requests go to the other address.
const REMOVED: &str = "10.77.0.5";

#[test]
fn members_follow_the_head_to_another_address_and_complete_by_multicast() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16));
    let ip = |args: &[&str]| lab.head().run_ok("ip", args);
    let (removed, kept) = (format!("{REMOVED}/24"), format!("{}/24", lab.head().address()));
    ip(&["addr", "del", &kept, "dev", "eth0"]);
    ip(&["addr", "add", &removed, "dev", "eth0"]);
    ip(&["addr", "add", &kept, "dev", "eth0"]);
    lab.head().run_ok("sysctl", ["-q", "-w", "net.ipv4.conf.eth0.promote_secondaries=1"]);
    let server = lab.server().option("--rate", "20mbit").start();
    let source = || {
        let join = lab.client(1).get(&lab.url("join/image")).body;
        join.lines().find_map(|line| line.strip_prefix("SOURCE=")).unwrap().to_owned()
    };
    assert_eq!(source(), REMOVED);
    // Without this option, a member that gets no CPU time for a second would fetch over HTTP.
    let mount = lab.mount(1).option("unicast=never").start();
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "a part is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 8);

    ip(&["addr", "del", &removed, "dev", "eth0"]);
    wait_until(TRANSFER, "the cast continues from the other address", || {
        server
            .cast_of("image")
            .is_some_and(|cast| cast.members > 0 && cast.unicast == 0 && cast.pages_sent > 100)
            && server.log().contains("address changed")
    });
    assert_eq!(source(), lab.head().address().to_string());
    copy.finish(&image);
}
