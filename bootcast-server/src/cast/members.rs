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
}

/// The members of a cast. Plain ones say nothing until they leave; extended ones are forgotten when they
/// were silent for longer than their lease.
#[derive(Debug)]
pub(super) struct Members {
    plain: BTreeSet<Token>,
    /// When each was heard of last.
    extended: BTreeMap<Token, Instant>,
    /// Those of the extended that no datagram reaches: they fetch the file themselves.
    unicast: BTreeSet<Token>,
    lease: Duration,
    /// When to look through the leases; `None` while nobody has one.
    check_at: Option<Instant>,
}

impl Members {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            plain: BTreeSet::new(),
            extended: BTreeMap::new(),
            unicast: BTreeSet::new(),
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
        }
    }

    /// `false` where the token is no member.
    pub(super) fn leave(&mut self, token: &Token) -> bool {
        self.unicast.remove(token);
        self.plain.remove(token) || self.extended.remove(token).is_some()
    }

    /// Renews a lease; `false` where the token is no extended member.
    pub(super) fn renew(&mut self, token: &Token, now: Instant) -> bool {
        match self.extended.get_mut(token) {
            Some(heard) => {
                *heard = now;
                true
            }
            None => false,
        }
    }

    pub(super) fn forget_plain(&mut self) {
        self.plain.clear();
    }

    /// Forgets those whose lease is over; `true` where there were any.
    pub(super) fn forget_silent(&mut self, now: Instant) -> bool {
        if self.check_at.is_none_or(|at| now < at) {
            return false;
        }
        let before = self.extended.len();
        let lease = self.lease;
        self.extended.retain(|_, heard| now < *heard + lease);
        self.unicast.retain(|token| self.extended.contains_key(token));
        let earliest = self.extended.values().min();
        self.check_at = earliest.map(|heard| (*heard + lease).max(now + lease / CHECKS_PER_LEASE));
        self.extended.len() < before
    }

    /// When to call [`Self::forget_silent`].
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.extended.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// Extended ones that hear what is sent.
    pub(super) fn extended(&self) -> usize {
        self.extended.len() - self.unicast.len()
    }

    /// Whoever hears what is sent.
    pub(super) fn hearing(&self) -> usize {
        self.plain.len() + self.extended()
    }

    /// Notes whether an extended member fetches the file itself; returns whether it did before.
    pub(super) fn set_unicast(&mut self, token: &Token, unicast: bool) -> bool {
        if unicast && self.extended.contains_key(token) {
            !self.unicast.insert(token.clone())
        } else {
            self.unicast.remove(token)
        }
    }

    /// Extended ones that fetch the file themselves.
    pub(super) fn unicast(&self) -> usize {
        self.unicast.len()
    }
}
