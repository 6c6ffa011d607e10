//! Lends multicast addresses to casts.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

/// How long a returned address stays unused. A client that missed the end of a cast leaves the
/// group within this time, and so does not take pages of the next cast for those of the old one.
const QUARANTINE: Duration = Duration::from_secs(10);

/// Multicast addresses that casts borrow.
///
/// Lends unused addresses first, then returned ones, the longest unused first. This keeps late
/// datagrams of an ended cast away from the next one.
#[derive(Debug)]
pub struct GroupPool {
    /// Lowest address, as a number.
    first: u32,
    /// Number of addresses, usable or not.
    len: u32,
    /// Position of the address that is lent first.
    offset: u32,
    /// Number of addresses, from `offset` on and around, that were lent or skipped.
    used: u32,
    /// Returned addresses, each with the time from which it may be lent again.
    returned: VecDeque<(Ipv4Addr, Instant)>,
}

/// Why a block of addresses cannot serve as multicast groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupPoolError {
    /// Some of the addresses are not multicast.
    #[error("{0} is not multicast: groups lie in 224.0.0.0/4, such as 239.255.0.0/16")]
    NotMulticast(Ipv4Net),
    /// Every address is skipped because switches flood it.
    #[error("{0} holds no usable group: its Ethernet addresses are those of 224.0.0.0/24")]
    LinkLocal(Ipv4Net),
}

/// Prefix length of the whole IPv4 multicast range.
const MULTICAST_PREFIX_LEN: u8 = 4;

impl GroupPool {
    /// Creates the pool of the addresses of `block`, without its first and last if it has more than
    /// two.
    pub fn new(block: Ipv4Net) -> Result<Self, GroupPoolError> {
        if !block.network().is_multicast() || block.prefix_len() < MULTICAST_PREFIX_LEN {
            return Err(GroupPoolError::NotMulticast(block));
        }
        if !block.hosts().any(is_usable) {
            return Err(GroupPoolError::LinkLocal(block));
        }
        let mut hosts = block.hosts();
        let first = hosts.next().unwrap_or(block.network()).to_bits();
        let last = hosts.next_back().map_or(first, Ipv4Addr::to_bits);
        Ok(Self { first, len: last - first + 1, offset: 0, used: 0, returned: VecDeque::new() })
    }

    /// Makes the pool lend the address at `offset` first, counted around the block. With a random
    /// offset, a restarted server or a second server is unlikely to reuse groups that clients still
    /// listen to.
    #[must_use]
    pub fn starting_at(self, offset: u32) -> Self {
        Self { offset: offset % self.len, ..self }
    }

    /// Lends an address; `None` while all are lent or in quarantine.
    pub fn take(&mut self, now: Instant) -> Option<Ipv4Addr> {
        while self.used < self.len {
            let nth = (self.offset + self.used) % self.len;
            self.used += 1;
            let group = Ipv4Addr::from_bits(self.first + nth);
            if is_usable(group) {
                return Some(group);
            }
        }
        self.returned.front().filter(|(_, until)| *until <= now)?;
        self.returned.pop_front().map(|(group, _)| group)
    }

    /// Takes an address back.
    pub fn give_back(&mut self, group: Ipv4Addr, now: Instant) {
        self.returned.push_back((group, now + QUARANTINE));
    }
}

/// Whether no network protocol shares the address's Ethernet address.
///
/// Ethernet keeps only the low 23 bits (RFC 1112, 6.4). Those of 224.0.0.0/24 belong to the
/// network's own protocols: switches flood them, whatever the high bits of the group are.
fn is_usable(group: Ipv4Addr) -> bool {
    group.to_bits() & 0x007f_ff00 != 0
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    fn pool(block: &str) -> Result<GroupPool, GroupPoolError> {
        GroupPool::new(block.parse().unwrap())
    }

    #[test]
    fn a_returned_group_is_lent_again_only_after_all_others_and_its_quarantine() {
        let now = Instant::now();
        let mut pool = pool("239.255.0.0/29").unwrap();
        let first = pool.take(now).unwrap();
        pool.give_back(first, now);
        let later = now + QUARANTINE;
        let others: Vec<_> = (0..5).map(|_| pool.take(later).unwrap()).collect();
        assert!(!others.contains(&first));
        assert_eq!(pool.take(later.checked_sub(Duration::from_millis(1)).unwrap()), None);
        assert_eq!(pool.take(later), Some(first));
        assert_eq!(pool.take(later), None);
    }

    #[test]
    fn the_only_group_is_lent_again_after_its_quarantine() {
        let now = Instant::now();
        let mut pool = pool("239.255.9.9/32").unwrap().starting_at(u32::MAX);
        let only = pool.take(now).unwrap();
        assert_eq!((only, pool.take(now)), (Ipv4Addr::new(239, 255, 9, 9), None));
        pool.give_back(only, now);
        assert_eq!(pool.take(now), None);
        assert_eq!(pool.take(now + QUARANTINE), Some(only));
    }

    #[test]
    fn groups_go_round_the_block_from_the_offset_on_each_once() {
        let now = Instant::now();
        for offset in [0, 4, 5, 6, u32::MAX] {
            let mut pool = pool("239.255.0.0/29").unwrap().starting_at(offset);
            let lent: Vec<_> = std::iter::from_fn(|| pool.take(now)).collect();
            let expected: Vec<_> = (0u64..6)
                .map(|nth| (u64::from(offset) + nth) % 6)
                .map(|host| Ipv4Addr::new(239, 255, 0, 1 + u8::try_from(host).unwrap()))
                .collect();
            assert_eq!(lent, expected, "{offset}");
        }
    }

    #[test]
    fn groups_that_share_an_ethernet_address_with_link_local_ones_are_skipped() {
        let mut pool = pool("239.0.0.0/16").unwrap();
        assert_eq!(pool.take(Instant::now()), Some(Ipv4Addr::new(239, 0, 1, 0)));
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
