//! Lends multicast addresses to casts.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::group_ranges::reserved_for;

/// Time for which a returned address stays unused. A client that missed the end of its cast leaves
/// the group within this time, before pages of another cast arrive there.
const QUARANTINE: Duration = Duration::from_secs(10);

/// Time for which an address stays unused that another sender was heard on.
const TAKEN_QUARANTINE: Duration = Duration::from_secs(600);

/// Pool of the multicast addresses that are lent to casts.
///
/// Addresses that were never lent come first, then returned ones, the longest unused first. Late
/// datagrams of an ended cast are then unlikely to reach the members of the next one.
#[derive(Debug)]
pub struct GroupPool {
    /// Lowest address, as a number.
    first: u32,
    /// Number of addresses, reserved ones included.
    len: u32,
    /// Position, counted from `first`, of the address that is lent first.
    offset: u32,
    /// Positions of the addresses that were never lent, counted from `offset` on and wrapping; in
    /// the order in which they are lent.
    unlent: VecDeque<Range<u32>>,
    /// Returned addresses, each with the end of its quarantine; earliest first.
    returned: VecDeque<(Ipv4Addr, Instant)>,
}

/// Why a block of addresses cannot serve as multicast groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupPoolError {
    /// Some of the addresses are not multicast.
    #[error("{0} is not multicast: groups lie in 224.0.0.0/4, such as 239.255.0.0/16")]
    NotMulticast(Ipv4Net),
    /// Every address is reserved. Names the first address and its reason.
    #[error("{0} holds no usable group: {1} {2}; name other groups, such as 239.255.0.0/16")]
    Reserved(Ipv4Net, Ipv4Addr, &'static str),
}

/// Prefix length of the whole IPv4 multicast range.
const MULTICAST_PREFIX_LEN: u8 = 4;

impl GroupPool {
    /// Creates a pool of the addresses in `block`. The first and the last are left out if there are
    /// more than two.
    pub fn new(block: Ipv4Net) -> Result<Self, GroupPoolError> {
        if !block.network().is_multicast() || block.prefix_len() < MULTICAST_PREFIX_LEN {
            return Err(GroupPoolError::NotMulticast(block));
        }
        let mut hosts = block.hosts();
        let first = hosts.next().unwrap_or(block.network()).to_bits();
        let last = hosts.next_back().map_or(first, Ipv4Addr::to_bits);
        let reserved = |bits| reserved_for(Ipv4Addr::from_bits(bits));
        if let Some(reason) = reserved(first)
            && (first..=last).all(|bits| reserved(bits).is_some())
        {
            return Err(GroupPoolError::Reserved(block, Ipv4Addr::from_bits(first), reason));
        }
        let is_multicast = |bits| Ipv4Addr::from_bits(bits).is_multicast();
        assert!(
            first <= last && is_multicast(first) && is_multicast(last),
            "{block} is not multicast"
        );
        let len = last - first + 1;
        let unlent = std::iter::once(0..len).collect();
        Ok(Self { first, len, offset: 0, unlent, returned: VecDeque::new() })
    }

    /// Asserts that this address is lent.
    fn assert_lent(&self, group: Ipv4Addr) {
        let at = group.to_bits().wrapping_sub(self.first);
        // Datagrams to a foreign address would reach the members of other groups.
        assert!(at < self.len, "{group} is not of this pool");
        debug_assert!(reserved_for(group).is_none(), "{group} is reserved");
        debug_assert!(
            !self.unlent.iter().any(|unlent| unlent.contains(&self.position(at)))
                && self.returned.iter().all(|(other, _)| *other != group),
            "{group} is free as well, so two casts would share it"
        );
    }

    /// Makes the pool lend the address at `offset` first, modulo the size of the block. With a
    /// random offset, a restarted server or a second server is unlikely to reuse groups that
    /// clients still listen to.
    #[must_use]
    pub fn starting_at(self, offset: u32) -> Self {
        Self { offset: offset % self.len, ..self }
    }

    /// Lends an address. Returns `None` while all are lent or in quarantine.
    pub fn take(&mut self, now: Instant) -> Option<Ipv4Addr> {
        self.skip_reserved();
        let group = if let Some(unlent) = self.unlent.front_mut() {
            let nth = unlent.start;
            unlent.start += 1;
            self.address(nth)
        } else {
            self.returned.front().filter(|(_, until)| *until <= now)?;
            self.returned.pop_front()?.0
        };
        self.assert_lent(group);
        Some(group)
    }

    /// Whether [`Self::take`] would lend an address.
    pub fn has_free(&mut self, now: Instant) -> bool {
        self.skip_reserved();
        !self.unlent.is_empty() || self.returned.front().is_some_and(|(_, until)| *until <= now)
    }

    /// Leaves out reserved addresses until the first one that was never lent may be lent.
    fn skip_reserved(&mut self) {
        while let Some(unlent) = self.unlent.front().cloned() {
            let usable = |nth: &u32| reserved_for(self.address(*nth)).is_none();
            match unlent.clone().find(usable) {
                Some(nth) => {
                    self.unlent[0].start = nth;
                    return;
                }
                None => self.unlent.pop_front(),
            };
        }
    }

    /// Takes an address back and starts its quarantine.
    pub fn give_back(&mut self, group: Ipv4Addr, now: Instant) {
        self.return_until(group, now + QUARANTINE);
    }

    /// Takes an address back that another sender uses. That sender probably lends the next ones as
    /// well. So this pool goes on in the middle of those that it has not lent yet.
    pub fn give_back_taken(&mut self, group: Ipv4Addr, now: Instant) {
        if let Some(next) = self.unlent.pop_front() {
            let middle = next.start.midpoint(next.end);
            self.unlent.push_front(middle..next.end);
            self.unlent.push_back(next.start..middle);
        }
        self.return_until(group, now + TAKEN_QUARANTINE);
    }

    /// Returns an address that may be lent again from `until` on.
    fn return_until(&mut self, group: Ipv4Addr, until: Instant) {
        self.assert_lent(group);
        let at = self.returned.partition_point(|(_, other)| *other <= until);
        self.returned.insert(at, (group, until));
    }

    /// Returns the position, counted from that which is lent first, of the `nth` address.
    fn position(&self, nth: u32) -> u32 {
        if nth >= self.offset { nth - self.offset } else { nth + (self.len - self.offset) }
    }

    /// Returns the address at a position, counted from that which is lent first.
    fn address(&self, nth: u32) -> Ipv4Addr {
        let nth = (u64::from(self.offset) + u64::from(nth)) % u64::from(self.len);
        Ipv4Addr::from_bits(self.first + u32::try_from(nth).expect("below a u32"))
    }
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
    fn a_group_that_another_sender_uses_is_left_alone_and_so_are_those_after_it() {
        let now = Instant::now();
        let mut pool = pool("239.255.0.0/28").unwrap();
        let group = |host| Some(Ipv4Addr::new(239, 255, 0, host));
        let first = pool.take(now).unwrap();
        pool.give_back_taken(first, now);
        // The other sender probably lends .2 and those after it.
        let lent: Vec<_> = std::iter::from_fn(|| pool.take(now)).map(Some).collect();
        let expected: Vec<_> = (8..=14).chain(2..=7).map(group).collect();
        assert_eq!(lent, expected);
        assert!(!pool.has_free(now + QUARANTINE));
        assert!(pool.has_free(now + TAKEN_QUARANTINE));
        assert_eq!(pool.take(now + TAKEN_QUARANTINE), Some(first));
    }

    #[test]
    fn a_large_block_is_divided_for_other_senders_without_a_list_of_its_groups() {
        let now = Instant::now();
        let mut pool = pool("239.0.0.0/8").unwrap();
        for _ in 0..100 {
            let group = pool.take(now).unwrap();
            pool.give_back_taken(group, now);
        }
        assert!(pool.unlent.len() <= 101, "{} parts", pool.unlent.len());
    }

    #[test]
    fn a_group_with_a_shorter_quarantine_is_lent_before_one_with_a_longer() {
        let now = Instant::now();
        let mut pool = pool("239.255.0.0/30").unwrap();
        let groups = [pool.take(now).unwrap(), pool.take(now).unwrap()];
        assert!(!pool.has_free(now));
        pool.give_back_taken(groups[0], now);
        pool.give_back(groups[1], now);
        assert_eq!(pool.take(now + QUARANTINE), Some(groups[1]));
        assert_eq!(pool.take(now + QUARANTINE), None);
    }

    #[test]
    fn groups_of_other_protocols_are_skipped() {
        let now = Instant::now();
        let lent = |block: &str| {
            let mut pool = pool(block).unwrap();
            std::iter::from_fn(move || pool.take(now))
        };
        assert_eq!(lent("239.0.0.0/16").next(), Some(Ipv4Addr::new(239, 0, 1, 0)));
        assert_eq!(lent("224.0.0.0/7").next(), Some(Ipv4Addr::new(225, 0, 1, 0)));
        assert_eq!(lent("232.0.0.0/7").next(), Some(Ipv4Addr::new(233, 0, 1, 0)));
        let last = lent("239.255.254.0/23").last();
        assert_eq!(last, Some(Ipv4Addr::new(239, 255, 254, 255)));
    }

    #[test]
    fn the_default_block_lends_all_but_its_reserved_groups() {
        let now = Instant::now();
        let mut pool = pool("239.255.0.0/16").unwrap().starting_at(65_000);
        let lent: Vec<_> = std::iter::from_fn(|| pool.take(now)).collect();
        // Without 239.255.255.0/24 and the first address of the block.
        assert_eq!(lent.len(), 65_536 - 256 - 1);
        assert!(lent.iter().all(|group| group.octets()[2] != 255));
    }

    #[test]
    fn a_block_without_a_usable_group_is_refused_with_the_reason() {
        for unicast in ["192.168.0.0/16", "0.0.0.0/0", "224.0.0.0/3"] {
            assert!(matches!(pool(unicast), Err(GroupPoolError::NotMulticast(_))), "{unicast}");
        }
        for (reserved, word) in [
            ("224.0.0.0/24", "IANA"),
            ("224.0.1.1/32", "IANA"),
            ("224.2.127.254/32", "IANA"),
            ("233.252.0.0/24", "RFC 5771"),
            ("239.195.255.0/24", "RFC 2365"),
            ("232.1.1.1/32", "RFC 4607"),
            ("232.0.0.0/8", "RFC 4607"),
            ("239.255.255.248/29", "SSDP"),
            ("239.255.255.253/32", "SSDP"),
            ("239.128.0.0/24", "Ethernet"),
        ] {
            let refused = pool(reserved).unwrap_err();
            assert!(matches!(refused, GroupPoolError::Reserved(..)), "{reserved}");
            assert!(refused.to_string().contains(word), "{reserved}: {refused}");
        }
        for usable in ["239.255.0.1/32", "239.192.0.0/14", "239.255.254.0/23", "224.0.0.0/4"] {
            assert!(pool(usable).is_ok(), "{usable}");
        }
    }
}
