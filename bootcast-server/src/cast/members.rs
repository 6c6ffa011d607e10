//! Who takes part in a cast, and until when that is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bootcast_proto::Token;

/// How often leases are looked through: each is over by this share of it too late at most.
const CHECKS_PER_LEASE: u32 = 16;

/// What a client told of itself with its join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// It knows the base protocol only.
    Plain,
    /// It knows the extensions: it hears the repair channel and reports.
    Extended,
    /// It knows the extensions and wants nothing but the pages that it asks for.
    Demand,
}

/// The members of a cast. Plain ones say nothing until they leave; the others are forgotten when they
/// were silent for longer than their lease.
#[derive(Debug)]
pub(super) struct Members {
    plain: BTreeSet<Token>,
    /// When each was heard of last.
    extended: BTreeMap<Token, Instant>,
    /// The same of those that only demand.
    demand: BTreeMap<Token, Instant>,
    lease: Duration,
    /// When to look through the leases; `None` while nobody has one.
    check_at: Option<Instant>,
}

impl Members {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            plain: BTreeSet::new(),
            extended: BTreeMap::new(),
            demand: BTreeMap::new(),
            lease,
            check_at: None,
        }
    }

    pub(super) fn join(&mut self, token: Token, kind: MemberKind, now: Instant) {
        match kind {
            MemberKind::Plain => {
                self.plain.insert(token);
            }
            MemberKind::Extended => {
                self.extended.insert(token, now);
                self.check_at.get_or_insert(now + self.lease);
            }
            MemberKind::Demand => {
                self.demand.insert(token, now);
                self.check_at.get_or_insert(now + self.lease);
            }
        }
    }

    /// Which kind of member that was; `None` where the token is none.
    pub(super) fn leave(&mut self, token: &Token) -> Option<MemberKind> {
        if self.plain.remove(token) {
            return Some(MemberKind::Plain);
        }
        let extended = self.extended.remove(token).map(|_| MemberKind::Extended);
        extended.or_else(|| self.demand.remove(token).map(|_| MemberKind::Demand))
    }

    /// Renews a lease and tells whose; `None` where the token has none.
    pub(super) fn renew(&mut self, token: &Token, now: Instant) -> Option<MemberKind> {
        let extended = self.extended.get_mut(token).map(|heard| (heard, MemberKind::Extended));
        let member = extended
            .or_else(|| self.demand.get_mut(token).map(|heard| (heard, MemberKind::Demand)));
        let (heard, kind) = member?;
        *heard = now;
        Some(kind)
    }

    pub(super) fn forget_plain(&mut self) {
        self.plain.clear();
    }

    /// Forgets those whose lease is over; `true` where there were any.
    pub(super) fn forget_silent(&mut self, now: Instant) -> bool {
        if self.check_at.is_none_or(|at| now < at) {
            return false;
        }
        let before = self.len();
        let lease = self.lease;
        self.extended.retain(|_, heard| now < *heard + lease);
        self.demand.retain(|_, heard| now < *heard + lease);
        let earliest = self.extended.values().chain(self.demand.values()).min();
        self.check_at = earliest.map(|heard| (*heard + lease).max(now + lease / CHECKS_PER_LEASE));
        self.len() < before
    }

    /// When to call [`Self::forget_silent`].
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    pub(super) fn len(&self) -> usize {
        self.takers() + self.demand.len()
    }

    /// Those that want the whole file.
    pub(super) fn takers(&self) -> usize {
        self.plain.len() + self.extended.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    pub(super) fn extended(&self) -> usize {
        self.extended.len()
    }
}
