//! Creates links, switch ports, rate caps and packet filters.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Once;

use bootcast_proto::BitRate;

use crate::requirements::has_tool;

/// Size of the queue of the head's interface in bytes. When it is full, the sender blocks.
const NIC_QUEUE_BYTES: u64 = 1_500_000;

/// Size of the queue of a switch port in bytes. When it is full, the port drops packets.
const PORT_QUEUE_BYTES: u64 = 256_000;

/// Size of a full Ethernet frame as counted by traffic control.
const FRAME_BYTES: u64 = 1514;

/// Runs `argv` with `input` on standard input. Panics with the program's error message if it fails.
pub(crate) fn run(argv: &[&str], input: &str) {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("starting {argv:?}: {error}"));
    if let Some(mut stdin) = child.stdin.take() {
        // Fails if the program ends early. Its exit status and stderr are checked below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().expect("a child that was started can be waited for");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{argv:?}: {errors}\n{input}");
}

/// Runs these commands of `ip` in a namespace.
pub(crate) fn ip(namespace: &str, lines: &[String]) {
    run(&["ip", "-n", namespace, "-batch", "-"], &(lines.join("\n") + "\n"));
}

/// Creates a namespace without IPv6, whose own packets would appear in the counters of tests.
pub(crate) fn add_namespace(namespace: &str) {
    run(&["ip", "netns", "add", namespace], "");
    let disable = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"];
    let sysctl = ["ip", "netns", "exec", namespace, "sysctl", "-qw"];
    run(&[&sysctl[..], &disable[..]].concat(), "");
}

/// Creates the switch. With `snooping`, it sends a group only to the hosts that joined it.
///
/// The query intervals are set before the querier is turned on. The bridge floods until the querier
/// counts as present, which takes one response interval ([`QUERIER_DELAY`](crate::lab)).
pub(crate) fn add_switch(namespace: &str, snooping: bool) {
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
    ];
    if snooping {
        lines.push(
            "link set br0 type bridge mcast_igmp_version 3 mcast_query_response_interval 50 \
             mcast_startup_query_interval 50 mcast_query_interval 1000"
                .to_owned(),
        );
        lines.push("link set br0 type bridge mcast_snooping 1".to_owned());
        lines.push("addr add 10.77.0.254/24 dev br0".to_owned());
    }
    lines.push("link set br0 up".to_owned());
    if snooping {
        lines.push("link set br0 type bridge mcast_query_use_ifaddr 1".to_owned());
        lines.push("link set br0 type bridge mcast_querier 1".to_owned());
    }
    ip(namespace, &lines);
}

/// A cable from `eth0` of a host to the switch port with the host's name.
pub(crate) struct Cable<'a> {
    pub(crate) switch: &'a str,
    pub(crate) host: &'a str,
    pub(crate) port: &'a str,
    pub(crate) address: &'a str,
    pub(crate) mac: &'a str,
}

impl Cable<'_> {
    /// Plugs the cable in, and gives the host its address and a route for all groups.
    pub(crate) fn plug(&self) {
        let Self { switch, host, port, address, mac } = self;
        let add = ["ip", "link", "add", "eth0", "netns", host, "address", mac, "type", "veth"];
        let peer = ["peer", "name", port, "netns", switch];
        run(&[&add[..], &peer[..]].concat(), "");
        ip(
            host,
            &[
                "link set lo up".to_owned(),
                format!("addr add {address}/24 brd + dev eth0"),
                "link set eth0 up".to_owned(),
                "route add 224.0.0.0/4 dev eth0".to_owned(),
            ],
        );
        ip(switch, &[format!("link set {port} up")]);
    }
}

/// Turns off GSO at a host's `eth0`, so that each packet is a single datagram, as on a real wire. A
/// lost packet is then one lost datagram.
pub(crate) fn send_single_datagrams(namespace: &str) {
    ip(namespace, &["link set eth0 gso_max_segs 1".to_owned()]);
}

/// Turns on GRO at a client's `eth0`: datagrams that arrive together are merged, as a network card
/// does it.
///
/// A virtual cable merges packets only if its sending side has segmentation offload turned off. The
/// port also gets a queue, so that packets wait there while the receiving side is busy, instead of
/// being dropped. Without `ethtool`, datagrams arrive one by one, which costs receivers twice the
/// CPU time.
pub(crate) fn gather_at_client(switch: &str, port: &str, client: &str, has_queue: bool) {
    if !has_tool("ethtool") {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| eprintln!("no ethtool: datagrams arrive one by one in labs with loss"));
        return;
    }
    for (namespace, device, feature, state) in
        [(switch, port, "tso", "off"), (client, "eth0", "gro", "on")]
    {
        let enter = ["ip", "netns", "exec", namespace];
        run(&[&enter[..], &["ethtool", "-K", device, feature, state]].concat(), "");
    }
    if !has_queue {
        let add = ["tc", "-n", switch, "qdisc", "add", "dev", port, "root"];
        run(&[&add[..], &["pfifo", "limit", "10000"]].concat(), "");
    }
}

/// Attaches a port to the switch.
pub(crate) fn attach(switch: &str, port: &str) {
    ip(switch, &[format!("link set {port} master br0 up")]);
}

/// Adds the hardware address of another host to a host's table, so that ARP does not delay the
/// first packets.
pub(crate) fn add_neighbour(namespace: &str, address: &str, mac: &str) {
    ip(namespace, &[format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent")]);
}

/// Caps the rate of a host's `eth0`, with a burst of one millisecond. When the queue is full, the
/// sender blocks.
pub(crate) fn cap_rate(namespace: &str, rate: BitRate) {
    cap(namespace, "eth0", rate, NIC_QUEUE_BYTES);
}

fn cap(namespace: &str, device: &str, rate: BitRate, queue_bytes: u64) {
    let bits = rate.bits_per_second();
    let burst = (bits / 8 / 1000).max(10 * FRAME_BYTES);
    let (rate, burst) = (format!("{bits}bit"), format!("{burst}b"));
    let queue = format!("{queue_bytes}b");
    let add = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"];
    run(&[&add[..], &["rate", &rate, "burst", &burst, "limit", &queue]].concat(), "");
}

/// Caps the rate of a switch port toward its host, with a queue of 10 ms. When the queue is full,
/// the port drops single datagrams.
pub(crate) fn narrow(switch: &str, port: &str, rate: BitRate) {
    let bits = rate.bits_per_second();
    let (rate, burst) =
        (format!("{bits}bit"), format!("{}b", (bits / 8 / 1000).max(10 * FRAME_BYTES)));
    let queue = format!("{}b", (bits / 8 / 100).max(20 * FRAME_BYTES));
    let add = ["tc", "-n", switch, "qdisc", "add", "dev", port, "root", "tbf"];
    run(&[&add[..], &["rate", &rate, "burst", &burst, "limit", &queue]].concat(), "");
}

/// Adds a link of this rate behind a switch port, and returns the port to attach instead. When the
/// queue is full, the link drops packets and the sender does not notice.
///
/// The kernel charges a packet to its sender's socket until the last queue releases it, so a full
/// queue would block the sender. A copy is charged to no socket. The filters here therefore forward
/// a copy of each packet and drop the original.
pub(crate) fn cap_behind(switch: &str, port: &str, rate: BitRate) -> &'static str {
    ip(
        switch,
        &[
            "link add up0 type veth peer name up1".to_owned(),
            "link set up0 up".to_owned(),
            "link set up1 up".to_owned(),
        ],
    );
    for (name, from, to) in [("there", port, "up0"), ("back", "up0", port)] {
        let rules = format!(
            "table netdev hop_{name} {{
                chain copy {{
                    type filter hook ingress device \"{from}\" priority 10; policy accept;
                    dup to \"{to}\"
                    drop
                }}
            }}"
        );
        run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &rules);
    }
    cap(switch, "up0", rate, PORT_QUEUE_BYTES);
    "up1"
}

/// Creates the two tap interfaces of a delay line, the first one behind a switch port, and returns
/// their names. [`DelayLine`](crate::delay_line) connects them later.
pub(crate) fn add_taps(switch: &str, port: &str) -> [&'static str; 2] {
    ip(
        switch,
        &[
            "link add brx type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            "link set brx up".to_owned(),
            format!("link set {port} master brx"),
            "tuntap add dev dl0 mode tap".to_owned(),
            "tuntap add dev dl1 mode tap".to_owned(),
            "link set dl0 txqueuelen 10000 master brx up".to_owned(),
            "link set dl1 txqueuelen 10000 up".to_owned(),
        ],
    );
    ["dl0", "dl1"]
}

/// Drops all multicast UDP datagrams to a host, as a bad switch or access point does.
pub(crate) fn drop_multicast(namespace: &str) {
    let rules = "table netdev multicast {
        chain toward_host {
            type filter hook ingress device \"eth0\" priority 0; policy accept;
            ip daddr 224.0.0.0/4 ip protocol udp drop
        }
    }";
    run(&["ip", "netns", "exec", namespace, "nft", "-f", "-"], rules);
}

/// Reverts [`drop_multicast`].
pub(crate) fn pass_multicast(namespace: &str) {
    run(&["ip", "netns", "exec", namespace, "nft", "delete", "table", "netdev", "multicast"], "");
}

/// Counts all multicast that leaves a host by `eth0`.
pub(crate) fn count_multicast(namespace: &str) {
    let rules = "table netdev counted {
        counter multicast { }
        chain from_host {
            type filter hook egress device \"eth0\" priority 0; policy accept;
            ip daddr 224.0.0.0/4 counter name multicast
        }
    }";
    run(&["ip", "netns", "exec", namespace, "nft", "-f", "-"], rules);
}

/// Bytes that [`count_multicast`] has counted.
pub(crate) fn multicast_bytes(namespace: &str) -> u64 {
    let list = "nft -j list counter netdev counted multicast".split(' ');
    let output = Command::new("ip").args(["netns", "exec", namespace]).args(list).output();
    let answer: serde_json::Value =
        serde_json::from_slice(&output.expect("ip runs").stdout).expect("JSON of nft");
    let objects = answer["nftables"].as_array().expect("a list");
    objects.iter().find_map(|it| it["counter"]["bytes"].as_u64()).expect("a counter")
}

/// Size of the closed valve's queue. It is larger than a socket's send buffer, so the sender blocks
/// before the queue drops anything.
const VALVE_QUEUE: &str = "16mb";

/// Queues UDP multicast in the head's `eth0` after the first `bytes` bytes; other packets overtake
/// it.
///
/// The queue's rate is 8 bit/s, at which a packet takes minutes. One packet passes at once.
pub(crate) fn hold_multicast(namespace: &str, bytes: u64) {
    let tc = |args: &str| {
        let args: Vec<_> = args.split(' ').collect();
        run(&[&["tc", "-n", namespace][..], &args].concat(), "");
    };
    let class = "htb rate 10gbit burst 1mb cburst 1mb quantum 60000";
    tc("qdisc replace dev eth0 root handle 1: htb default 1");
    tc(&format!("class add dev eth0 parent 1: classid 1:1 {class}"));
    tc(&format!("class add dev eth0 parent 1: classid 1:2 {class}"));
    tc(&format!(
        "qdisc add dev eth0 parent 1:2 handle 2: tbf rate 8bit burst 1600 limit {VALVE_QUEUE}"
    ));
    let after = if bytes > 0 { format!("quota over {bytes} bytes") } else { String::new() };
    let rules = format!(
        "table netdev valve {{
            chain from_head {{
                type filter hook egress device \"eth0\" priority 0; policy accept;
                ip daddr 224.0.0.0/4 ip protocol udp {after} meta priority set 1:2
            }}
        }}"
    );
    run(&["ip", "netns", "exec", namespace, "nft", "-f", "-"], &rules);
}

/// Removes the rate limit of [`hold_multicast`]. Its queue stays, so that packets keep their order.
pub(crate) fn release_multicast(namespace: &str) {
    let change = ["tc", "-n", namespace, "qdisc", "change", "dev", "eth0"];
    let rate = ["rate", "10gbit", "burst", "1mb", "limit", VALVE_QUEUE];
    run(&[&change[..], &["parent", "1:2", "handle", "2:", "tbf"], &rate].concat(), "");
}

/// Drops packets that match `rule` and leave the switch by `port`.
pub(crate) fn drop_toward(switch: &str, port: &str, rule: &str) {
    let rules = format!(
        "table netdev dropped_{port} {{
            chain toward_client {{
                type filter hook egress device \"{port}\" priority 1; policy accept;
                {rule} drop
            }}
        }}"
    );
    run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &rules);
}

/// Reverts [`drop_toward`].
pub(crate) fn pass_toward(switch: &str, port: &str) {
    let table = format!("dropped_{port}");
    run(&["ip", "netns", "exec", switch, "nft", "delete", "table", "netdev", &table], "");
}
