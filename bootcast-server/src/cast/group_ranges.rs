//! Multicast addresses that casts must not use.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Ranges of other protocols, each with the reason why a cast must not use it.
const RESERVED: [(Ipv4Net, &str); 5] = [
    (net([224, 0, 0, 0], 8), "belongs to other protocols (224.0.0.0/8, assigned by IANA)"),
    (net([233, 252, 0, 0], 14), "belongs to other protocols (233.252.0.0/14, RFC 5771)"),
    (
        net([239, 195, 255, 0], 24),
        "belongs to protocols of organizations (239.195.255.0/24, RFC 2365)",
    ),
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

/// Returns the reason why a cast must not use `group`; `None` if it may.
pub(super) fn reserved_for(group: Ipv4Addr) -> Option<&'static str> {
    let reserved = RESERVED.iter().find(|(range, _)| range.contains(&group));
    reserved.map(|(_, reason)| *reason).or_else(|| {
        // An Ethernet address holds only the low 23 bits of a group (RFC 1112, 6.4). Switches flood
        // the Ethernet addresses of 224.0.0.0/24 to all ports, also for other groups that share
        // them.
        let shares_ethernet = group.to_bits() & 0x007f_ff00 == 0;
        shares_ethernet.then_some("has the Ethernet address of a group in 224.0.0.0/24")
    })
}
