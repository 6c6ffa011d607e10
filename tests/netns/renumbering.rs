//! The head's address changes while it sends, as when a lease is not renewed.

use harness::{Lab, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::Copy;

/// Address of the head that goes away. Requests go to the one that stays.
const GOING: &str = "10.77.0.5";

#[test]
fn members_follow_the_head_to_another_address_and_complete_by_multicast() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(16));
    let ip = |args: &[&str]| lab.head().run_ok("ip", args);
    let (going, staying) = (format!("{GOING}/24"), format!("{}/24", lab.head().address()));
    ip(&["addr", "del", &staying, "dev", "eth0"]);
    ip(&["addr", "add", &going, "dev", "eth0"]);
    ip(&["addr", "add", &staying, "dev", "eth0"]);
    lab.head().run_ok("sysctl", ["-q", "-w", "net.ipv4.conf.eth0.promote_secondaries=1"]);
    let server = lab.server().option("--rate", "20mbit").start();
    let source = || {
        let join = lab.client(1).get(&lab.url("join/image")).body;
        join.lines().find_map(|line| line.strip_prefix("SOURCE=")).unwrap().to_owned()
    };
    assert_eq!(source(), GOING);
    // A member that gets no CPU for a second takes itself for deaf, and would fetch the rest.
    let mount = lab.mount(1).option("unicast=never").start();
    let mut copy = Copy::start_on(mount, &image);
    server.wait_cast("image", "a part is sent", |cast| cast.pages_sent > u64::from(cast.pages) / 8);

    ip(&["addr", "del", &going, "dev", "eth0"]);
    wait_until(TRANSFER, "the cast goes on from the other address", || {
        server
            .cast_of("image")
            .is_some_and(|cast| cast.members > 0 && cast.unicast == 0 && cast.pages_sent > 100)
            && server.log().contains("address changed")
    });
    assert_eq!(source(), lab.head().address().to_string());
    copy.finish(&image);
}
