//! Packet loss of several kinds, made with `nftables`, so that no `netem` is needed.

use std::process::Command;

use crate::link::run;

/// Packets exempt from loss: without IGMP and ARP there is no group and no route.
const SPARED: &str = "meta protocol != ip accept
                ip protocol igmp accept";

/// Counts a packet as lost and loses it.
const LOSE: &str = "counter name lost drop";

/// Loss on the way to one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Impairment {
    /// Probability of losing each packet, in millionths.
    pub(crate) loss_ppm: u32,
    /// Length and period of bursts: this many packets in a row are lost of every so many.
    pub(crate) burst: Option<(u32, u32)>,
    /// Outages: length in milliseconds, and the probability that one starts with a packet, in
    /// millionths.
    pub(crate) outage: Option<(u32, u32)>,
}

impl Impairment {
    /// Installs the loss at the switch's port to client `number`, where packets leave the switch.
    /// Bursts of different clients start at different packets.
    ///
    /// Packets must be single datagrams there ([`send_single_datagrams`](crate::link)): losing a
    /// large GSO packet whole would lose some forty datagrams in a row.
    pub(crate) fn put(self, switch: &str, port: &str, number: u32) {
        if self == Self::default() {
            return;
        }
        let mut rules = Vec::new();
        if self.loss_ppm > 0 {
            rules.push(format!("numgen random mod 1000000 < {} {LOSE}", self.loss_ppm));
        }
        if let Some((lost, every)) = self.burst {
            let first = number * 997 % (every - lost + 1);
            rules.push(format!("numgen inc mod {every} {first}-{} {LOSE}", first + lost - 1));
        }
        if let Some((milliseconds, ppm)) = self.outage {
            rules.push(format!("oif @out {LOSE}"));
            rules.push(format!(
                "numgen random mod 1000000 < {ppm} \
                 add @out {{ oif timeout {milliseconds}ms }} {LOSE}"
            ));
        }
        let rules = rules.join("\n");
        let table = format!(
            "table netdev {port} {{
            counter lost {{ }}
            set out {{ type iface_index; flags dynamic,timeout; size 16; }}
            chain toward_client {{
                type filter hook egress device \"{port}\" priority 0; policy accept;
                {SPARED}
                {rules}
            }}
        }}"
        );
        run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &table);
    }
}

/// Packets lost so far on the way to the client at this port; `None` if none can be.
pub(crate) fn lost_packets(switch: &str, port: &str) -> Option<u64> {
    let list = ["netns", "exec", switch, "nft", "-j", "list", "counter", "netdev", port, "lost"];
    let output = Command::new("ip").args(list).output().expect("ip runs");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    answer["nftables"].as_array()?.iter().find_map(|it| it["counter"]["packets"].as_u64())
}

/// Loses packets of the head before the switch, with a probability of `ppm` millionths, so that all
/// clients miss the same packets.
pub(crate) fn lose_for_all(switch: &str, port: &str, ppm: u32) {
    let table = format!(
        "table netdev bootcast {{
            chain from_head {{
                type filter hook ingress device \"{port}\" priority 0; policy accept;
                {SPARED}
                numgen random mod 1000000 < {ppm} drop
            }}
        }}"
    );
    run(&["ip", "netns", "exec", switch, "nft", "-f", "-"], &table);
}
