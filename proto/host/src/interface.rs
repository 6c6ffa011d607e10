//! Network interfaces: those that a user names, and that of a route.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// An interface as a user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceName {
    /// Name of the interface, such as `eth0`.
    Name(String),
    /// One of the interface's IPv4 addresses.
    Address(Ipv4Addr),
}

impl std::str::FromStr for InterfaceName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// An IPv4 address of an interface.
#[derive(Clone, Debug)]
pub struct InterfaceAddress {
    /// Name of the interface.
    pub name: String,
    /// The address.
    pub address: Ipv4Addr,
    /// State and abilities of the interface.
    pub flags: InterfaceFlags,
}

/// Lists all interfaces, once for each IPv4 address.
pub fn addresses() -> io::Result<impl Iterator<Item = InterfaceAddress>> {
    let entries = nix::ifaddrs::getifaddrs()?;
    Ok(entries.filter_map(|entry| {
        let address = entry.address?.as_sockaddr_in()?.ip();
        Some(InterfaceAddress { name: entry.interface_name, address, flags: entry.flags })
    }))
}

/// Returns the index in the kernel of the interface with this name.
pub fn index_of(name: &str) -> io::Result<u32> {
    if_nametoindex(name).map_err(io::Error::from)
}

/// Returns the source address of packets to `peer`. Sends nothing.
pub fn source_toward(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_a_name() {
        let parse = |text: &str| text.parse::<InterfaceName>().unwrap();
        assert_eq!(parse("192.0.2.1"), InterfaceName::Address(Ipv4Addr::new(192, 0, 2, 1)));
        for name in ["eth0", "192.0.2", "::1"] {
            assert_eq!(parse(name), InterfaceName::Name(name.to_owned()));
            assert_eq!(parse(name).to_string(), name);
        }
    }

    #[test]
    fn the_route_to_loopback_leads_to_an_interface_with_that_address() {
        let source = source_toward((Ipv4Addr::LOCALHOST, 9).into()).unwrap();
        let found = addresses().unwrap().find(|entry| entry.address == source).unwrap();
        assert!(found.flags.contains(InterfaceFlags::IFF_LOOPBACK));
        assert!(index_of(&found.name).unwrap() > 0);
        assert!(index_of("no-such-0").is_err());
    }
}
