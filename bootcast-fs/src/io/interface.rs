//! Choice of the interface on which multicast arrives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use bootcast_host::interface::{InterfaceName, addresses, index_of, source_toward};

/// Interface on which multicast arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// The interface of the route to the server.
    #[default]
    TowardServer,
    /// The interface that the user named.
    Named(InterfaceName),
}

impl FromStr for InterfaceChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Named)
    }
}

impl InterfaceChoice {
    /// Checks that a named interface exists. That of the route is known only after the server was
    /// reached.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Self::TowardServer => Ok(()),
            Self::Named(name) => index_of_named(name).map(drop),
        }
    }

    /// Returns the index of the interface, or 0 to let the kernel choose. `server` is the peer of
    /// the control connection.
    pub(super) fn index(&self, server: SocketAddr) -> io::Result<u32> {
        match self {
            Self::Named(name) => index_of_named(name),
            Self::TowardServer => match source_toward(server)? {
                IpAddr::V4(address) => index_of_address(address),
                // The group is IPv4, so the IPv6 route does not tell its interface.
                IpAddr::V6(_) => Ok(0),
            },
        }
    }
}

fn index_of_named(name: &InterfaceName) -> io::Result<u32> {
    match name {
        InterfaceName::Name(name) => index_of(name).map_err(|_| {
            not_found(format!("no interface is named {name:?}: `ip link` lists them"))
        }),
        InterfaceName::Address(address) => index_of_address(*address),
    }
}

/// Returns the index of the interface that has this address. All loopback addresses belong to `lo`.
fn index_of_address(address: Ipv4Addr) -> io::Result<u32> {
    let is_wanted = |own: Ipv4Addr| own == address || own.is_loopback() && address.is_loopback();
    let found = addresses()?.find(|entry| is_wanted(entry.address));
    let found = found.ok_or_else(|| {
        not_found(format!("no interface has the address {address}: `ip address` lists them"))
    })?;
    index_of(&found.name)
}

fn not_found(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 8888))
    }

    #[test]
    fn the_route_the_name_and_the_address_of_loopback_give_the_same_interface() {
        let by_name = "lo".parse::<InterfaceChoice>().unwrap().index(server()).unwrap();
        assert_eq!(InterfaceChoice::TowardServer.index(server()).unwrap(), by_name);
        assert_eq!(
            "127.0.0.1".parse::<InterfaceChoice>().unwrap().index(server()).unwrap(),
            by_name
        );
    }

    #[test]
    fn an_unknown_interface_is_named_in_the_error() {
        for text in ["nosuch0", "203.0.113.77"] {
            let error = text.parse::<InterfaceChoice>().unwrap().index(server()).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
