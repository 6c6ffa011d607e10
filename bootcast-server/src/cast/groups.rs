//! Which multicast address a cast gets.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use ipnet::{Ipv4AddrRange, Ipv4Net};

/// Multicast addresses that casts borrow.
///
/// Addresses never used go first, then returned ones, the longest unused first: datagrams of an
/// ended cast that are still under way are not to meet the next one.
#[derive(Debug)]
pub struct GroupPool {
    fresh: Ipv4AddrRange,
    returned: VecDeque<Ipv4Addr>,
}

/// Why a block of addresses cannot serve as groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupPoolError {
    /// Some or all of it is unicast.
    #[error("{0} is not multicast: groups lie in 224.0.0.0/4, such as 239.255.0.0/16")]
    NotMulticast(Ipv4Net),
    /// Every address in it is skipped.
    #[error("{0} holds no usable group: its Ethernet addresses are those of 224.0.0.0/24")]
    LinkLocal(Ipv4Net),
}

/// All of IPv4 multicast.
const MULTICAST_PREFIX_LEN: u8 = 4;

impl GroupPool {
    /// The addresses of `block`, without its first and its last if it has more than two.
    pub fn new(block: Ipv4Net) -> Result<Self, GroupPoolError> {
        if !block.network().is_multicast() || block.prefix_len() < MULTICAST_PREFIX_LEN {
            return Err(GroupPoolError::NotMulticast(block));
        }
        if !block.hosts().any(is_usable) {
            return Err(GroupPoolError::LinkLocal(block));
        }
        Ok(Self { fresh: block.hosts(), returned: VecDeque::new() })
    }

    /// Lends an address; `None` while all are lent.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        self.fresh.find(|&group| is_usable(group)).or_else(|| self.returned.pop_front())
    }

    /// Takes an address back.
    pub fn give_back(&mut self, group: Ipv4Addr) {
        self.returned.push_back(group);
    }
}

/// Whether the address has an Ethernet address of its own kind.
///
/// Ethernet keeps the low 23 bits only (RFC 1112, 6.4). Those of 224.0.0.0/24 belong to the network's
/// own protocols: switches flood them, however the group's high bits read.
fn is_usable(group: Ipv4Addr) -> bool {
    group.to_bits() & 0x007f_ff00 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(block: &str) -> Result<GroupPool, GroupPoolError> {
        GroupPool::new(block.parse().unwrap())
    }

    #[test]
    fn a_returned_group_is_lent_again_only_after_all_others() {
        let mut pool = pool("239.255.0.0/29").unwrap();
        let first = pool.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(239, 255, 0, 1));
        pool.give_back(first);
        let others: Vec<_> = (0..5).map(|_| pool.take().unwrap()).collect();
        assert!(!others.contains(&first));
        assert_eq!(pool.take(), Some(first));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn groups_that_share_an_ethernet_address_with_link_local_ones_are_skipped() {
        let mut pool = pool("239.0.0.0/16").unwrap();
        assert_eq!(pool.take(), Some(Ipv4Addr::new(239, 0, 1, 0)));
        assert!(!is_usable(Ipv4Addr::new(224, 0, 0, 251)));
        assert!(!is_usable(Ipv4Addr::new(239, 128, 0, 5)));
    }

    #[test]
    fn a_block_that_is_not_multicast_or_has_no_usable_group_is_refused() {
        for unicast in ["192.168.0.0/16", "0.0.0.0/0", "224.0.0.0/3"] {
            assert!(matches!(pool(unicast), Err(GroupPoolError::NotMulticast(_))), "{unicast}");
        }
        assert!(matches!(pool("224.0.0.0/24"), Err(GroupPoolError::LinkLocal(_))));
        assert!(pool("239.255.0.1/32").is_ok());
    }
}
