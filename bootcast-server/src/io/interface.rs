//! Finds the network interface that sends the datagrams.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

pub use bootcast_host::interface::InterfaceName;
use bootcast_host::interface::{InterfaceAddress, addresses, index_of, source_toward};
use bootcast_proto::BitRate;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::sockopt::IpMtu;

/// An interface with an IPv4 address.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name of the interface, such as `eth0`.
    pub name: String,
    /// Index of the interface in the kernel.
    pub index: u32,
    /// Source address of the datagrams.
    pub address: Ipv4Addr,
    /// Largest IPv4 packet in bytes.
    pub mtu: u32,
    /// Link speed; `None` if the driver does not report it.
    pub speed: Option<BitRate>,
    /// Whether it is a loopback interface, whose traffic never leaves this machine.
    pub is_loopback: bool,
}

/// Why no interface was found.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface with this name or address is up and has an IPv4 address.
    #[error("no interface {wanted} with an IPv4 address is up: --interface takes one of {known}")]
    Unknown {
        /// Name or address as typed.
        wanted: String,
        /// Interfaces that are up, for the message.
        known: String,
    },
    /// There is neither a route to the groups nor a single interface capable of multicast.
    #[error("no route to {group}: choose an interface with --interface, one of {known}")]
    Ambiguous {
        /// Address whose route was looked up.
        group: Ipv4Addr,
        /// Interfaces that are up, for the message.
        known: String,
    },
    /// A system call failed.
    #[error("cannot query the network interfaces: {0}")]
    Io(#[from] std::io::Error),
}

/// Port used to look up a route by connecting a UDP socket, which sends nothing. The number is that
/// of the Discard service (RFC 863).
const ROUTE_LOOKUP_PORT: u16 = 9;

/// Finds the interface. If none is named, takes the one that the kernel routes `group` through, or
/// else the only one capable of multicast.
pub fn resolve(
    wanted: Option<&InterfaceName>,
    group: Ipv4Addr,
) -> Result<Interface, InterfaceError> {
    let is_up = |it: &InterfaceAddress| it.flags.contains(InterfaceFlags::IFF_UP);
    let candidates: Vec<_> = addresses()?.filter(is_up).collect();
    let found = match wanted {
        Some(InterfaceName::Name(name)) => candidates.iter().find(|it| it.name == *name),
        Some(InterfaceName::Address(address)) => {
            candidates.iter().find(|it| it.address == *address)
        }
        None => default_candidate(&candidates, group),
    };
    let Some(found) = found else {
        let known = describe(&candidates);
        return Err(match wanted {
            Some(wanted) => InterfaceError::Unknown { wanted: wanted.to_string(), known },
            None => InterfaceError::Ambiguous { group, known },
        });
    };
    let index = index_of(&found.name)?;
    Ok(Interface {
        name: found.name.clone(),
        index,
        address: found.address,
        mtu: mtu(index, found.address, group)?,
        speed: speed(&found.name, index),
        is_loopback: found.flags.contains(InterfaceFlags::IFF_LOOPBACK),
    })
}

/// Chooses an interface if none is named.
fn default_candidate(
    candidates: &[InterfaceAddress],
    group: Ipv4Addr,
) -> Option<&InterfaceAddress> {
    if let Ok(IpAddr::V4(routed)) = source_toward((group, ROUTE_LOOKUP_PORT).into()) {
        return candidates.iter().find(|it| it.address == routed);
    }
    let network = InterfaceFlags::IFF_MULTICAST | InterfaceFlags::IFF_RUNNING;
    let mut usable = candidates.iter().filter(|it| {
        it.flags.contains(network) && !it.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    usable.next().filter(|only| usable.all(|other| other.name == only.name))
}

/// Returns the MTU. Queries it through a socket, because /sys may show another network namespace.
fn mtu(index: u32, address: Ipv4Addr, group: Ipv4Addr) -> Result<u32, std::io::Error> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    rustix::net::sockopt::set_ip_multicast_if_with_ifindex(
        &socket,
        &Ipv4Addr::UNSPECIFIED,
        &address,
        index,
    )?;
    socket.connect(SocketAddrV4::new(group, ROUTE_LOOKUP_PORT))?;
    let mtu = nix::sys::socket::getsockopt(&socket, IpMtu)?;
    u32::try_from(mtu).map_err(std::io::Error::other)
}

/// Returns the link speed that the driver reports in /sys. `None` if it reports none, as while the
/// link is down, or if /sys shows another network namespace.
fn speed(name: &str, index: u32) -> Option<BitRate> {
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    if read("ifindex")? != u64::from(index) {
        return None;
    }
    BitRate::from_bits_per_second(read("speed")?.checked_mul(1_000_000)?)
}

/// Lists interfaces for an error message.
fn describe(candidates: &[InterfaceAddress]) -> String {
    let names: Vec<_> =
        candidates.iter().map(|it| format!("{} ({})", it.name, it.address)).collect();
    if names.is_empty() { "none (no interface is up)".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 0, 1);

    #[test]
    fn loopback_is_found_by_name_and_by_address() {
        for wanted in ["lo", "127.0.0.1"] {
            let found = resolve(Some(&wanted.parse().unwrap()), GROUP).unwrap();
            assert_eq!((found.name.as_str(), found.address), ("lo", Ipv4Addr::LOCALHOST));
            assert!(found.is_loopback);
            assert!(found.mtu >= 1500);
        }
    }

    #[test]
    fn the_error_for_an_unknown_interface_lists_the_known_ones() {
        let wanted = "no-such-0".parse().unwrap();
        let error = resolve(Some(&wanted), GROUP).unwrap_err().to_string();
        assert!(error.contains("no-such-0") && error.contains("lo (127.0.0.1)"), "{error}");
    }
}
