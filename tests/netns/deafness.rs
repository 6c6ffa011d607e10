//! Networks that drop some kind of datagram: those of one port, membership messages, long ones. The
//! file arrives in each of them, and the server does not send for ever to a member that receives
//! nothing.

use harness::content::Image;
use harness::{Host, Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::TRANSFER;
use crate::transfers::{Copy, Get};

/// Parts of the log lines of a client that receives no datagrams, and of one that receives only
/// those of the repair channel.
const DEAF: [&str; 2] = ["no multicast from", "no datagram on UDP 9000 from"];

/// Drops packets to a host that match an expression of `nftables`.
fn drop_incoming(host: &Host, matches: &str) {
    let rules = format!(
        "table netdev deafness {{ chain incoming {{ \
         type filter hook ingress device \"eth0\" priority 0; policy accept; {matches} drop; }}; }}"
    );
    host.run_ok("nft", [rules]);
}

/// Returns the number of log lines that contain one of these texts.
fn count_lines(log: &str, texts: &[&str]) -> usize {
    log.lines().filter(|line| texts.iter().any(|text| line.contains(text))).count()
}

/// Returns the number of pages and symbols that the server sent, as a multiple of the file.
fn files_sent(server: &ServerProc<'_>, image: &Image, page_size: u64) -> f64 {
    let totals = server.status().totals;
    let datagrams = totals.pages_sent + totals.symbols_sent;
    #[expect(clippy::cast_precision_loss, reason = "a ratio, to a few digits")]
    let files = datagrams as f64 / image.size.div_ceil(page_size) as f64;
    files
}

/// Reads the file with a `get` on client 1 and with mounts on clients 2 and 3, and checks that few
/// files are sent. The networks of clients 1 and 2 drop something. Returns the log of client 2.
fn assert_all_complete(
    lab: &Lab,
    server: &ServerProc<'_>,
    image: &Image,
    page_size: u64,
) -> String {
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
    assert_eq!(count_lines(&healthy, &DEAF), 0, "{healthy}");
    copy.mount.log()
}

/// Starts a server that takes three seconds for the file, so that clients have time to notice that
/// they receive nothing.
fn start_server(lab: &Lab) -> ServerProc<'_> {
    lab.server().option("--rate", "60mbit").start()
}

/// Drops packets that match at clients 1 and 2, and reads a file on all clients. Returns the log of
/// the mount on client 2.
fn read_while_dropping(lab: &Lab, matches: &str) -> String {
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(lab);
    for k in [1, 2] {
        drop_incoming(lab.client(k), matches);
    }
    assert_all_complete(lab, &server, &image, 1456)
}

#[test]
fn with_a_closed_data_port_the_file_arrives_over_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = read_while_dropping(&lab, "udp dport 9000");
    assert_eq!(count_lines(&log, &DEAF[1..]), 1, "{log}");
    assert_eq!(count_lines(&log, &DEAF), 1, "{log}");
}

#[test]
fn with_a_closed_repair_port_lost_pages_arrive_without_another_join() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit").loss(1.0));
    let log = read_while_dropping(&lab, "udp dport 9001");
    assert_eq!(count_lines(&log, &["UDP 9001 is closed"]), 1, "{log}");
    assert_eq!(count_lines(&log, &[" joined "]), 1, "the client joined again: {log}");
}

#[test]
fn with_both_ports_closed_the_file_arrives_over_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = read_while_dropping(&lab, "udp dport { 9000, 9001 }");
    assert_eq!(count_lines(&log, &DEAF), 1, "{log}");
}

#[test]
fn through_a_network_that_drops_long_datagrams_the_file_arrives_over_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let log = read_while_dropping(&lab, "ip daddr 224.0.0.0/4 udp length > 1400");
    let lines = ["no multicast from", "no datagram on UDP 9000", "only short datagrams"];
    assert_eq!(count_lines(&log, &lines), 1, "{log}");
}

#[test]
fn behind_a_switch_that_gets_no_igmp_the_file_arrives_over_http() {
    let lab = lab_or_skip!(Lab::builder().clients(3).rate("200mbit"));
    let image = lab.put("image", mib(20) + 77);
    let server = start_server(&lab);
    for k in [1, 2] {
        let rules = "table ip deafness { chain outgoing { \
                     type filter hook output priority 0; policy accept; \
                     ip protocol igmp drop; }; }";
        lab.client(k).run_ok("nft", [rules]);
    }
    let log = assert_all_complete(&lab, &server, &image, 1456);
    assert_eq!(count_lines(&log, &DEAF), 1, "{log}");
}

#[test]
fn with_the_data_port_taken_by_another_program_the_file_arrives_over_http_at_once() {
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
    let log = assert_all_complete(&lab, &server, &image, 1456);
    assert_eq!(count_lines(&log, &["cannot listen on UDP 9000"]), 1, "{log}");
    drop(takers);
}

#[test]
fn with_a_smaller_mtu_than_the_servers_the_file_arrives_over_http_at_once() {
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
    let log = assert_all_complete(&lab, &server, &image, 8956);
    assert_eq!(count_lines(&log, &["do not fit this interface's MTU of 1500"]), 1, "{log}");
}

#[test]
fn when_a_closed_data_port_opens_again_the_rest_arrives_by_multicast() {
    let lab = lab_or_skip!(Lab::builder().rate("20mbit"));
    let image = lab.put("image", mib(24));
    let server = lab.server().option("--rate", "15mbit").start();
    drop_incoming(lab.client(1), "udp dport 9000");
    let mut copy = Copy::start(&lab, 1, &image);
    let wait_unicast = |members| {
        let condition = format!("{members} members fetch over HTTP");
        server.wait_cast("image", &condition, move |cast| cast.unicast == members);
    };
    wait_unicast(1);
    lab.client(1).run_ok("nft", ["delete table netdev deafness"]);
    wait_unicast(0);
    copy.finish(&image);
    server.wait_no_members();
    let log = copy.mount.log();
    // Beacons may be late on a busy machine. Each warning is taken back once.
    let warnings = 1 + count_lines(&log, &["but no beacons"]);
    let returns = count_lines(&log, &["arrives again"]);
    assert_eq!((count_lines(&log, &DEAF), returns), (1, warnings), "{log}");
}

#[test]
fn a_deaf_member_with_unicast_never_waits_and_the_server_stops_sending_to_it() {
    let lab = lab_or_skip!(Lab::builder().rate("200mbit"));
    let image = lab.put("image", mib(4));
    let server = lab.server().option("--rate", "60mbit").start();
    drop_incoming(lab.client(1), "udp dport 9000");
    let mount = lab.mount(1).option("unicast=never").start();
    let mut copy = Copy::start_on(mount, &image);
    wait_until(TRANSFER, "the mount says why", || count_lines(&copy.mount.log(), &DEAF) > 0);
    // The server now sends only a multicast probe from time to time.
    let mut before = server.status();
    let is_silent = || {
        let now = server.status();
        if now.totals.pages_sent > before.totals.pages_sent + 100 {
            before = now;
            return false;
        }
        now.uptime_s >= before.uptime_s + 3
    };
    wait_until(TRANSFER, "the server has stopped sending", is_silent);
    let files = files_sent(&server, &image, 1456);
    assert!(files < 6.0, "{files} files sent to a member that receives nothing");
    assert!(copy.proc.exited().is_none(), "{}", copy.mount.log());
    lab.client(1).run_ok("nft", ["delete table netdev deafness"]);
    copy.finish(&image);
    assert_eq!(count_lines(&copy.mount.log(), &DEAF), 1, "{}", copy.mount.log());
}
