//! Networks that drop a part of what a cast sends: one port, membership messages, long datagrams.
//! Whatever it is, the file arrives, and nothing is sent without end to a member that gets nothing.

use harness::content::Image;
use harness::{Host, Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::{Copy, Get};

/// What the log says where nothing comes, and where pages get lost that were sent.
const DEAF: [&str; 2] = ["no multicast from", "no datagram on UDP 9000 from"];

/// Drops what matches on its way into a host.
fn drop_incoming(host: &Host, matches: &str) {
    let rules = format!(
        "table netdev deafness {{ chain incoming {{ \
         type filter hook ingress device \"eth0\" priority 0; policy accept; {matches} drop; }}; }}"
    );
    host.run_ok("nft", [rules]);
}

/// Times that one of these texts is in the log.
fn times(log: &str, texts: &[&str]) -> usize {
    log.lines().filter(|line| texts.iter().any(|text| line.contains(text))).count()
}

/// Datagrams of pages and symbols that the server sent, in files.
fn files_sent(server: &ServerProc<'_>, image: &Image, page_size: u64) -> f64 {
    let totals = server.status().totals;
    let datagrams = totals.pages_sent + totals.symbols_sent;
    #[expect(clippy::cast_precision_loss, reason = "a ratio, to a few digits")]
    let files = datagrams as f64 / image.size.div_ceil(page_size) as f64;
    files
}

/// A `get` on client 1 and a mount on client 2 get the file whose network drops something, and so
/// does the mount on client 3, whose network does not. Returns the log of the second.
fn all_get_it(lab: &Lab, server: &ServerProc<'_>, image: &Image, page_size: u64) -> String {
    let mut healthy = Copy::start(lab, 3, image);
    let mut get = Get::start(lab, 1, image);
    let mut copy = Copy::start(lab, 2, image);
    healthy.finish(image);
    get.finish(image);
    copy.finish(image);
    server.wait_no_members();
    let files = files_sent(server, image, page_size);
    assert!(files < 3.0, "{files} files sent; {}", copy.mount.log());
    let healthy = healthy.mount.log();
    assert_eq!(times(&healthy, &DEAF), 0, "{healthy}");
    copy.mount.log()
}

/// A server that takes three seconds for the file, so that deafness has time to be noticed.
fn start_server(lab: &Lab) -> ServerProc<'_> {
    lab.server().option("--rate", "60mbit").start()
}

/// Drops what matches at clients 1 and 2, and has everybody get a file. Returns the mount's log.
fn dropped(lab: &Lab, matches: &str) -> String {
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(lab);
    for k in [1, 2] {
        drop_incoming(lab.client(k), matches);
    }
    all_get_it(lab, &server, &image, 1456)
}

#[test]
fn a_closed_data_port_ends_in_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = dropped(&lab, "udp dport 9000");
    assert_eq!(times(&log, &DEAF[1..]), 1, "{log}");
    assert_eq!(times(&log, &DEAF), 1, "{log}");
}

#[test]
fn a_closed_repair_port_costs_no_more_than_what_was_lost() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit").loss(1.0));
    let log = dropped(&lab, "udp dport 9001");
    assert_eq!(times(&log, &["UDP 9001 is closed"]), 1, "{log}");
    assert_eq!(times(&log, &[" joined "]), 1, "it does not join again for it: {log}");
}

#[test]
fn two_closed_ports_end_in_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = dropped(&lab, "udp dport { 9000, 9001 }");
    assert_eq!(times(&log, &DEAF), 1, "{log}");
}

#[test]
fn a_network_that_drops_long_datagrams_ends_in_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = dropped(&lab, "ip daddr 224.0.0.0/4 udp length > 1400");
    let said = ["no multicast from", "no datagram on UDP 9000", "only short datagrams"];
    assert_eq!(times(&log, &said), 1, "{log}");
}

#[test]
fn a_switch_that_hears_of_no_membership_ends_in_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(&lab);
    for k in [1, 2] {
        let rules = "table ip deafness { chain outgoing { \
                     type filter hook output priority 0; policy accept; ip protocol igmp drop; }; }";
        lab.client(k).run_ok("nft", [rules]);
    }
    let log = all_get_it(&lab, &server, &image, 1456);
    assert_eq!(times(&log, &DEAF), 1, "{log}");
}

#[test]
fn a_data_port_that_another_program_has_ends_in_http_at_once() {
    const TAKE: &str = "
import socket, time
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taken.bind(('', 9000))
time.sleep(600)
";
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(&lab);
    let takers = [1, 2].map(|k| lab.client(k).spawn("python3", ["-c", TAKE]));
    for k in [1, 2] {
        wait_until(SOON, "the port is taken", || {
            let sockets =
                lab.client(k).enter(|| std::fs::read_to_string("/proc/thread-self/net/udp"));
            sockets.unwrap().contains(":2328 ")
        });
    }
    let log = all_get_it(&lab, &server, &image, 1456);
    assert_eq!(times(&log, &["cannot listen on UDP 9000"]), 1, "{log}");
    drop(takers);
}

#[test]
fn an_interface_with_a_smaller_mtu_than_the_servers_ends_in_http_at_once() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let switch = lab.head().namespace().replace("-head", "-sw");
    let wide = |namespace: &str, device: &str| {
        lab.head().run_ok("ip", ["-n", namespace, "link", "set", device, "mtu", "9000"]);
    };
    for host in [lab.head(), lab.client(3)] {
        wide(host.namespace(), "eth0");
        wide(&switch, &host.to_string());
    }
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(&lab);
    let log = all_get_it(&lab, &server, &image, 8956);
    assert_eq!(times(&log, &["do not fit this interface's MTU of 1500"]), 1, "{log}");
}

#[test]
fn a_data_port_that_opens_again_brings_the_rest_by_multicast() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(24));
    let server = lab.server().option("--rate", "15mbit").start();
    drop_incoming(lab.client(1), "udp dport 9000");
    let mut copy = Copy::start(&lab, 1, &image);
    let unicast = |members| {
        server.wait_cast("image", "the server knows who fetches", move |it| it.unicast == members);
    };
    unicast(1);
    lab.client(1).run_ok("nft", ["delete table netdev deafness"]);
    unicast(0);
    copy.finish(&image);
    server.wait_no_members();
    let log = copy.mount.log();
    assert_eq!((times(&log, &DEAF), times(&log, &["comes again"])), (1, 1), "{log}");
}

#[test]
fn who_never_fetches_waits_and_is_not_sent_the_file_for_ever() {
    let lab = lab_or_skip!(Lab::builder().rate("200mbit"));
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "60mbit").start();
    drop_incoming(lab.client(1), "udp dport 9000");
    let mount = lab.mount(1).option("unicast=never").start();
    let mut copy = Copy::start_on(mount, &image);
    wait_until(TRANSFER, "the mount says why", || times(&copy.mount.log(), &DEAF) > 0);
    // The server gives it up: of this cast nothing is sent any more but signs of life.
    let mut before = server.status();
    let quiet = || {
        let now = server.status();
        if now.totals.pages_sent > before.totals.pages_sent + 100 {
            before = now;
            return false;
        }
        now.uptime_s >= before.uptime_s + 3
    };
    wait_until(TRANSFER, "the server sends nothing to nobody", quiet);
    let files = files_sent(&server, &image, 1456);
    assert!(files < 6.0, "{files} files sent to nobody");
    assert!(copy.proc.exited().is_none(), "{}", copy.mount.log());
    lab.client(1).run_ok("nft", ["delete table netdev deafness"]);
    copy.finish(&image);
    assert_eq!(times(&copy.mount.log(), &DEAF), 1, "{}", copy.mount.log());
}
