//! What befalls packets on their way: loss of several kinds. `nftables` draws it, so that no `netem` is needed.

use crate::link::{ip, run};

/// Spared by every loss: without IGMP and ARP there would be no group and no way.
const SPARED: &str = "meta protocol != ip accept
                ip protocol igmp accept";

/// What befalls what is sent to one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Impairment {
    /// Each packet is lost with this probability, in millionths.
    pub(crate) loss_ppm: u32,
    /// So many packets in a row are lost of every so many.
    pub(crate) burst: Option<(u32, u32)>,
    /// With each packet an outage of so many milliseconds begins, with a probability in millionths.
    pub(crate) outage: Option<(u32, u32)>,
}

impl Impairment {
    /// Puts it before client `number`. Bursts of different clients begin at different packets.
    ///
    /// A large GSO packet is cut at the switch port before: lost in one piece it would be some forty datagrams in a row.
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

/// Loses packets of the head before the switch, so that all clients miss the same; with a probability of `ppm` millionths.
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
