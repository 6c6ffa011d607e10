//! The host that a request comes from. No host may use up what all of them share.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use bootcast_proto::Token;

/// Largest share of a table that one principal may fill: 1 / this.
const SHARE: usize = 4;

/// Entries of a table that each principal may have, however small the table is.
const AT_LEAST: usize = 16;

/// A host, by its address. All addresses of an IPv6 network of 64 bits are one principal, because
/// one host can use them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(IpAddr);

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<IpAddr> for Principal {
    fn from(address: IpAddr) -> Self {
        // A dual-stack listener shows IPv4 hosts as IPv4-mapped IPv6 addresses.
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// Returns the number of entries that one principal may have in a table of this size.
pub(super) fn share_of(size: usize) -> usize {
    (size / SHARE).max(AT_LEAST).min(size)
}

/// The principals of the members of a cast.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_member: BTreeMap<Token, Principal>,
    /// Number of memberships by principal. Those without are absent.
    memberships: BTreeMap<Principal, usize>,
}

impl Owners {
    /// Records whose membership this is.
    pub(super) fn insert(&mut self, token: Token, principal: Principal) {
        self.remove(&token);
        self.by_member.insert(token, principal);
        *self.memberships.entry(principal).or_default() += 1;
    }

    /// Forgets a membership, and returns whose it was. Does nothing if it is not known.
    pub(super) fn remove(&mut self, token: &Token) -> Option<Principal> {
        let principal = self.by_member.remove(token)?;
        if let Some(count) = self.memberships.get_mut(&principal) {
            *count -= 1;
            if *count == 0 {
                self.memberships.remove(&principal);
            }
        }
        Some(principal)
    }

    /// Returns whose membership this is, if that is known.
    pub(super) fn owner_of(&self, token: &Token) -> Option<Principal> {
        self.by_member.get(token).copied()
    }

    /// Number of principals with memberships.
    pub(super) fn principals(&self) -> usize {
        self.memberships.len()
    }

    /// Returns all memberships for which `is_member` is `false`.
    pub(super) fn not_in(&self, is_member: impl Fn(&Token) -> bool) -> Vec<Token> {
        self.by_member.keys().filter(|token| !is_member(token)).cloned().collect()
    }

    /// Returns the number of memberships of a principal.
    pub(super) fn memberships(&self, principal: Principal) -> usize {
        self.memberships.get(&principal).copied().unwrap_or(0)
    }

    /// Returns the number of memberships whose principal is known.
    pub(super) fn len(&self) -> usize {
        debug_assert!(
            self.memberships.len() <= self.by_member.len(),
            "a principal without a membership is counted"
        );
        self.by_member.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(address: &str) -> Principal {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_host_is_one_principal_whatever_its_address_looks_like() {
        assert_eq!(principal("::ffff:10.0.0.1"), principal("10.0.0.1"));
        assert_eq!(principal("2001:db8::1"), principal("2001:db8::ffff:0:0:2"));
        assert_ne!(principal("2001:db8::1"), principal("2001:db8:0:1::1"));
        assert_ne!(principal("10.0.0.1"), principal("10.0.0.2"));
    }

    #[test]
    fn a_share_is_a_quarter_but_for_small_tables() {
        assert_eq!([1, 16, 40, 64, 1024].map(share_of), [1, 16, 16, 16, 256]);
    }

    #[test]
    fn memberships_are_counted_by_principal() {
        let (mut owners, host) = (Owners::default(), principal("10.0.0.1"));
        let token = Token::from_random;
        for number in 0..3 {
            owners.insert(token(number), host);
        }
        owners.insert(token(3), principal("10.0.0.2"));
        owners.remove(&token(0));
        owners.remove(&token(0));
        assert_eq!((owners.memberships(host), owners.len()), (2, 3));
        assert_eq!(owners.owner_of(&token(3)), Some(principal("10.0.0.2")));
        assert_eq!(owners.not_in(|member| *member == token(3)), [token(1), token(2)]);
        assert_eq!(owners.remove(&token(1)), Some(host));
        assert_eq!((owners.memberships(host), owners.principals()), (1, 2));
    }
}
