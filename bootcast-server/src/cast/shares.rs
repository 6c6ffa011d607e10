//! What each principal owes for pages that a cast sends for members that proved nothing.
//!
//! A page that several principals need is shared among them. Dividing each page at once would take
//! longer the more of them there are. So the cast has a *price*: what a principal would owe that
//! had been there from the beginning. A principal owes how much the price rose while it was there.

use std::collections::BTreeMap;

use super::principal::Principal;

/// Rise of the price in bytes after which all principals are charged.
const QUANTUM: u64 = 1 << 20;

/// Principals with members that proved nothing, and what they owe.
#[derive(Debug, Default)]
pub(super) struct Shares {
    price: u64,
    /// Bytes that were too few to be divided.
    remainder: u64,
    /// Price up to which all principals were charged.
    charged_until: u64,
    by_principal: BTreeMap<Principal, Share>,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    members: usize,
    /// Price up to which this principal was charged.
    charged_until: u64,
}

impl Shares {
    /// Adds a member that proved nothing.
    pub(super) fn join(&mut self, principal: Principal) {
        let share = Share { members: 0, charged_until: self.price };
        self.by_principal.entry(principal).or_insert(share).members += 1;
    }

    /// Removes a member. Returns the bytes that its principal owes if it has no other.
    pub(super) fn leave(&mut self, principal: Principal) -> u64 {
        let Some(share) = self.by_principal.get_mut(&principal) else { return 0 };
        share.members -= 1;
        if share.members > 0 {
            return 0;
        }
        let owed = self.price - share.charged_until;
        self.by_principal.remove(&principal);
        owed
    }

    /// Divides bytes that are sent only for these members.
    pub(super) fn on_sent(&mut self, bytes: u64) {
        let principals = self.by_principal.len() as u64;
        if principals == 0 {
            return;
        }
        let bytes = bytes + self.remainder;
        self.price += bytes / principals;
        self.remainder = bytes % principals;
    }

    /// Returns what all principals owe, if it is time to charge them.
    pub(super) fn poll(&mut self) -> Option<Vec<(Principal, u64)>> {
        let price = self.price;
        debug_assert!(price >= self.charged_until, "the price of a cast never falls");
        if price - self.charged_until < QUANTUM {
            return None;
        }
        self.charged_until = price;
        let owed = self.by_principal.iter_mut().map(|(principal, share)| {
            (*principal, price - std::mem::replace(&mut share.charged_until, price))
        });
        Some(owed.collect())
    }

    /// Number of principals that have such members.
    pub(super) fn principals(&self) -> usize {
        self.by_principal.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> Principal {
        std::net::IpAddr::from([10, 0, 0, number]).into()
    }

    #[test]
    fn a_page_that_several_need_is_shared_among_their_hosts() {
        let mut shares = Shares::default();
        shares.on_sent(1 << 30);
        shares.join(host(1));
        shares.on_sent(QUANTUM / 2);
        assert_eq!(shares.poll(), None);
        shares.join(host(2));
        shares.join(host(2));
        shares.on_sent(QUANTUM);
        let owed = vec![(host(1), QUANTUM), (host(2), QUANTUM / 2)];
        assert_eq!(shares.poll(), Some(owed));
        shares.on_sent(200);
        assert_eq!(shares.leave(host(1)), 100);
        shares.on_sent(7);
        assert_eq!((shares.leave(host(2)), shares.leave(host(2))), (0, 107));
        assert_eq!(shares.principals(), 0);
    }
}
