//! Packet loss of several kinds, made with `nftables`, so that no `netem` is needed.

use crate::link::{ip, run};

/// Packets exempt from loss: without IGMP and ARP there is no group and no route.
const SPARED: &str = "meta protocol != ip accept
                ip protocol igmp accept";

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
    /// Installs the loss before client `number`. Bursts of different clients start at different
    /// packets.
    ///
    /// Splits large GSO packets at the switch port first: losing one whole would lose some forty
    /// datagrams in a row.
    pub(crate) fn put(self, switch: &str, port: &str, client: &str, number: u32) {
        if self == Self::default() {
            return;
        }
        ip(switch, &[format!("link set {port} gso_max_segs 1")]);
        let mut rules = Vec::new();
        if self.loss_ppm > 0 {
            rules.push(format!("numgen random mod 1000000 < {} drop", self.loss_ppm));
        }
        if let Some((lost, every)) = self.burst {
            let first = number * 997 % (every - lost + 1);
            rules.push(format!("numgen inc mod {every} {first}-{} drop", first + lost - 1));
        }
        if let Some((milliseconds, ppm)) = self.outage {
            rules.push("iif @out drop".to_owned());
            rules.push(format!(
                "numgen random mod 1000000 < {ppm} add @out {{ iif timeout {milliseconds}ms }} drop"
            ));
        }
        let rules = rules.join("\n");
        let table = format!(
            "table netdev bootcast {{
            set out {{ type iface_index; flags dynamic,timeout; size 16; }}
            chain toward_client {{
                type filter hook ingress device \"eth0\" priority 0; policy accept;
                {SPARED}
                {rules}
            }}
        }}"
        );
        run(&["ip", "netns", "exec", client, "nft", "-f", "-"], &table);
    }
}

/// Loses packets of the head before the switch, with a probability of `ppm` millionths, so that all
/// clients miss the same packets.
pub(crate) fn lose_for_all(switch: &str, port: &str, head: &str, ppm: u32) {
    ip(head, &["link set eth0 gso_max_segs 1".to_owned()]);
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
