//! Multicast addresses that no cast may use.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Ranges that other protocols own, and why a cast there would harm or fail.
const RESERVED: [(Ipv4Net, &str); 3] = [
    (net([224, 0, 0, 0], 16), "belongs to the network's own protocols (224.0.0.0/16)"),
    (net([232, 0, 0, 0], 8), "needs joins that name their source (232.0.0.0/8, RFC 4607)"),
    (
        net([239, 255, 255, 0], 24),
        "belongs to discovery protocols such as SSDP and SLP (239.255.255.0/24)",
    ),
];

const fn net(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Why `group` is not lent; `None` if it may be.
pub(super) fn reserved_for(group: Ipv4Addr) -> Option<&'static str> {
    let owned = RESERVED.iter().find(|(range, _)| range.contains(&group));
    owned.map(|(_, reason)| *reason).or_else(|| {
        // Ethernet keeps the low 23 bits only (RFC 1112, 6.4). Switches flood the addresses of
        // 224.0.0.0/24 to all ports, whatever the high bits of the group are.
        let shares_ethernet = group.to_bits() & 0x007f_ff00 == 0;
        shares_ethernet.then_some("has the Ethernet address of a group in 224.0.0.0/24")
    })
}
