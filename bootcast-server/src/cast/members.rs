//! Members of a cast, and when they are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bootcast_proto::Token;

/// Leases are checked this many times per lease. A member is forgotten at most 1 / this of a lease
/// late.
const CHECKS_PER_LEASE: u32 = 16;

/// What a client announced about itself when it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Knows the base protocol only.
    Plain,
    /// Knows the extensions: receives the repair channel and reports.
    Extended,
    /// Knows the extensions and wants only the pages that it demands.
    Demand,
}

/// Members of a cast. Plain members send nothing until they leave; members with a lease are
/// forgotten when it expires.
#[derive(Debug)]
pub(super) struct Members {
    plain: BTreeSet<Token>,
    extended: Leased,
    demand: Leased,
    lease: Duration,
    /// When to check the leases; `None` while no member has one.
    check_at: Option<Instant>,
}

/// Members of one kind that have a lease.
#[derive(Debug, Default)]
struct Leased {
    /// Time of each member's last request.
    heard: BTreeMap<Token, Instant>,
    /// Members that receive no datagrams and fetch the file over HTTP.
    unicast: BTreeSet<Token>,
}

impl Leased {
    fn leave(&mut self, token: &Token) -> bool {
        self.unicast.remove(token);
        self.heard.remove(token).is_some()
    }

    /// Renews a lease. Returns `false` if the token is not a member of this kind.
    fn renew(&mut self, token: &Token, now: Instant) -> bool {
        match self.heard.get_mut(token) {
            Some(heard) => {
                *heard = now;
                true
            }
            None => false,
        }
    }

    fn forget_silent(&mut self, lease: Duration, now: Instant) {
        self.heard.retain(|_, heard| now < *heard + lease);
        self.unicast.retain(|token| self.heard.contains_key(token));
    }

    fn set_unicast(&mut self, token: &Token, unicast: bool) -> bool {
        if unicast && self.heard.contains_key(token) {
            !self.unicast.insert(token.clone())
        } else {
            self.unicast.remove(token)
        }
    }
}

impl Members {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            plain: BTreeSet::new(),
            extended: Leased::default(),
            demand: Leased::default(),
            lease,
            check_at: None,
        }
    }

    pub(super) fn join(&mut self, token: Token, kind: MemberKind, now: Instant) {
        let leased = match kind {
            MemberKind::Plain => {
                self.plain.insert(token);
                return;
            }
            MemberKind::Extended => &mut self.extended,
            MemberKind::Demand => &mut self.demand,
        };
        leased.heard.insert(token, now);
        self.check_at.get_or_insert(now + self.lease);
    }

    /// Removes a member and returns its kind; `None` if the token is not a member.
    pub(super) fn leave(&mut self, token: &Token) -> Option<MemberKind> {
        if self.plain.remove(token) {
            return Some(MemberKind::Plain);
        }
        let extended = self.extended.leave(token).then_some(MemberKind::Extended);
        extended.or_else(|| self.demand.leave(token).then_some(MemberKind::Demand))
    }

    /// Renews a lease and returns the member's kind; `None` if the token has no lease.
    pub(super) fn renew(&mut self, token: &Token, now: Instant) -> Option<MemberKind> {
        let extended = self.extended.renew(token, now).then_some(MemberKind::Extended);
        extended.or_else(|| self.demand.renew(token, now).then_some(MemberKind::Demand))
    }

    pub(super) fn forget_plain(&mut self) {
        self.plain.clear();
    }

    /// Forgets the members whose lease expired. Returns whether there were any.
    pub(super) fn forget_silent(&mut self, now: Instant) -> bool {
        if self.check_at.is_none_or(|at| now < at) {
            return false;
        }
        let before = self.len();
        let lease = self.lease;
        self.extended.forget_silent(lease, now);
        self.demand.forget_silent(lease, now);
        let earliest = self.extended.heard.values().chain(self.demand.heard.values()).min();
        self.check_at = earliest.map(|heard| (*heard + lease).max(now + lease / CHECKS_PER_LEASE));
        self.len() < before
    }

    /// When to call [`Self::forget_silent`].
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    pub(super) fn len(&self) -> usize {
        self.takers() + self.demand.heard.len()
    }

    /// Number of members that want the whole file.
    pub(super) fn takers(&self) -> usize {
        self.plain.len() + self.extended.heard.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// Number of extended members that receive datagrams.
    pub(super) fn extended(&self) -> usize {
        self.extended.heard.len() - self.extended.unicast.len()
    }

    /// Number of members that want the whole file and receive datagrams.
    pub(super) fn hearing(&self) -> usize {
        self.plain.len() + self.extended()
    }

    /// Records whether a member with a lease fetches the file over HTTP. Returns whether it did
    /// before.
    pub(super) fn set_unicast(&mut self, token: &Token, unicast: bool) -> bool {
        let extended = self.extended.set_unicast(token, unicast);
        self.demand.set_unicast(token, unicast) || extended
    }

    /// Number of members that fetch the file over HTTP.
    pub(super) fn unicast(&self) -> usize {
        self.extended.unicast.len() + self.demand.unicast.len()
    }
}
