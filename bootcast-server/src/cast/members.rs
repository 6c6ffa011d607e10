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
    extended: Leased,
    demand: Leased,
    lease: Duration,
    /// When to look through the leases; `None` while nobody has one.
    check_at: Option<Instant>,
}

/// Members of one kind that have a lease.
#[derive(Debug, Default)]
struct Leased {
    /// When each was heard of last.
    heard: BTreeMap<Token, Instant>,
    /// Those of them that no datagram reaches: they fetch the file themselves.
    unicast: BTreeSet<Token>,
}

impl Leased {
    fn leave(&mut self, token: &Token) -> bool {
        self.unicast.remove(token);
        self.heard.remove(token).is_some()
    }

    /// `false` where the token is none of them.
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

    /// Which kind of member that was; `None` where the token is none.
    pub(super) fn leave(&mut self, token: &Token) -> Option<MemberKind> {
        if self.plain.remove(token) {
            return Some(MemberKind::Plain);
        }
        let extended = self.extended.leave(token).then_some(MemberKind::Extended);
        extended.or_else(|| self.demand.leave(token).then_some(MemberKind::Demand))
    }

    /// Renews a lease and tells whose; `None` where the token has none.
    pub(super) fn renew(&mut self, token: &Token, now: Instant) -> Option<MemberKind> {
        let extended = self.extended.renew(token, now).then_some(MemberKind::Extended);
        extended.or_else(|| self.demand.renew(token, now).then_some(MemberKind::Demand))
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

    /// Those that want the whole file.
    pub(super) fn takers(&self) -> usize {
        self.plain.len() + self.extended.heard.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// Extended ones that hear what is sent.
    pub(super) fn extended(&self) -> usize {
        self.extended.heard.len() - self.extended.unicast.len()
    }

    /// Those that want the whole file and hear what is sent.
    pub(super) fn hearing(&self) -> usize {
        self.plain.len() + self.extended()
    }

    /// Notes whether a member with a lease fetches the file itself; returns whether it did before.
    pub(super) fn set_unicast(&mut self, token: &Token, unicast: bool) -> bool {
        let extended = self.extended.set_unicast(token, unicast);
        self.demand.set_unicast(token, unicast) || extended
    }

    /// Those that fetch the file themselves.
    pub(super) fn unicast(&self) -> usize {
        self.extended.unicast.len() + self.demand.unicast.len()
    }
}
