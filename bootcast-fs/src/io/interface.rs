//! Choice of the interface on which multicast arrives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use nix::sys::socket::SockaddrIn;

/// Interface on which multicast arrives, as the user named it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// The interface of the route to the server.
    #[default]
    TowardServer,
    /// The interface of this name.
    Name(String),
    /// The interface with this address.
    Address(Ipv4Addr),
}

impl FromStr for InterfaceChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Address))
    }
}

impl InterfaceChoice {
    /// Checks that a named interface exists. That of the route is known only after the server was
    /// reached.
    pub fn check(&self) -> io::Result<()> {
        match self {
            Self::TowardServer => Ok(()),
            Self::Name(_) | Self::Address(_) => {
                self.index(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).map(drop)
            }
        }
    }

    /// Returns the index of the interface, or 0 to let the kernel choose. `server` is the peer of
    /// the control connection.
    pub(super) fn index(&self, server: SocketAddr) -> io::Result<u32> {
        match self {
            Self::Name(name) => rustix::net::netdevice::name_to_index(ioctl_socket()?, name)
                .map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("no interface is named {name:?}: `ip link` lists them"),
                    )
                }),
            Self::Address(address) => index_of(*address),
            Self::TowardServer => match local_address_toward(server)? {
                IpAddr::V4(address) => index_of(address),
                // The group is IPv4, so the IPv6 route does not tell its interface.
                IpAddr::V6(_) => Ok(0),
            },
        }
    }
}

/// Opens a socket for ioctls.
fn ioctl_socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

/// Returns the source address of packets to `server`. Sends nothing.
fn local_address_toward(server: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

/// Returns the index of the interface that has this address. All loopback addresses belong to `lo`.
fn index_of(address: Ipv4Addr) -> io::Result<u32> {
    let socket = ioctl_socket()?;
    let addresses = nix::ifaddrs::getifaddrs()?;
    let name = addresses
        .filter(|entry| {
            let own =
                entry.address.as_ref().and_then(|own| own.as_sockaddr_in().map(SockaddrIn::ip));
            own == Some(address)
                || (address.is_loopback() && own.is_some_and(|own| own.is_loopback()))
        })
        .map(|entry| entry.interface_name)
        .next();
    let name = name.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no interface has the address {address}: `ip address` lists them"),
        )
    })?;
    Ok(rustix::net::netdevice::name_to_index(socket, &name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 8888))
    }

    #[test]
    fn the_route_the_name_and_the_address_of_loopback_give_the_same_interface() {
        let by_name = InterfaceChoice::Name("lo".into()).index(server()).unwrap();
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
