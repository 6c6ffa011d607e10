//! Packet loss of several kinds, made with `nftables`. Not every kernel has `netem`.

use std::process::Command;

use crate::link::run;

/// Rules that exempt packets from loss: multicast needs IGMP, and IP needs ARP.
const EXEMPT: &str = "meta protocol != ip accept
                ip protocol igmp accept";

/// Verdict that counts a packet as lost and drops it.
const DROP_COUNTED: &str = "counter name lost drop";

/// Loss on the path from the switch to one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Impairment {
    /// Probability of losing each packet, in millionths.
    pub(crate) loss_ppm: u32,
    /// Burst loss: how many packets in a row are lost, and in each run of how many packets.
    pub(crate) burst: Option<(u32, u32)>,
    /// Outages: length in milliseconds, and the probability that a packet starts one, in
    /// millionths.
    pub(crate) outage: Option<(u32, u32)>,
}

impl Impairment {
    /// Installs the loss at the switch's port to client `number`, where packets leave the switch.
    /// Bursts start at a different packet for each client.
    ///
    /// Packets must be single datagrams there ([`send_single_datagrams`](crate::link)): the loss of
    /// one large GSO packet would be that of some forty datagrams in a row.
    pub(crate) fn install(self, switch: &str, port: &str, number: u32) {
        if self == Self::default() {
            return;
        }
        let mut rules = Vec::new();
        if self.loss_ppm > 0 {
            rules.push(format!("numgen random mod 1000000 < {} {DROP_COUNTED}", self.loss_ppm));
        }
        if let Some((lost, every)) = self.burst {
            let first = number * 997 % (every - lost + 1);
            rules.push(format!(
                "numgen inc mod {every} {first}-{} {DROP_COUNTED}",
                first + lost - 1
            ));
        }
        if let Some((milliseconds, ppm)) = self.outage {
            rules.push(format!("oif @out {DROP_COUNTED}"));
            rules.push(format!(
                "numgen random mod 1000000 < {ppm} \
                 add @out {{ oif timeout {milliseconds}ms }} {DROP_COUNTED}"
            ));
        }
        let rules = rules.join("\n");
        let table = format!(
            "table netdev {port} {{
            counter lost {{ }}
            set out {{ type iface_index; flags dynamic,timeout; size 16; }}
            chain toward_client {{
                type filter hook egress device \"{port}\" priority 0; policy accept;
                {EXEMPT}
                {rules}
            }}
        }}"
        );
        run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &table);
    }
}

/// Number of packets lost so far on the way to the client at this port. `None` if the port has no
/// impairment.
pub(crate) fn lost_packets(switch: &str, port: &str) -> Option<u64> {
    let list = ["netns", "exec", switch, "nft", "-j", "list", "counter", "netdev", port, "lost"];
    let output = Command::new("ip").args(list).output().expect("ip runs");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    answer["nftables"].as_array()?.iter().find_map(|it| it["counter"]["packets"].as_u64())
}

/// Loses packets from the head before the switch, with a probability of `ppm` millionths. All
/// clients then miss the same packets.
pub(crate) fn lose_for_all(switch: &str, port: &str, ppm: u32) {
    let table = format!(
        "table netdev bootcast {{
            chain from_head {{
                type filter hook ingress device \"{port}\" priority 0; policy accept;
                {EXEMPT}
                numgen random mod 1000000 < {ppm} drop
            }}
        }}"
    );
    run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &table);
}
