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
    /// As `Extended`, and has a part of the file already. Nothing is sent for it before its first
    /// report says what it lacks.
    Resuming,
    /// Knows the extensions and wants only the pages that it demands.
    Demand,
}

/// Members of a cast. Plain members send nothing until they leave; members with a lease are
/// forgotten when it expires.
#[derive(Debug)]
pub(super) struct Members {
    /// Plain members, each with the pages that the carousel had sent when it joined.
    plain: BTreeMap<Token, u64>,
    /// The same, the earliest first.
    by_age: BTreeSet<(u64, Token)>,
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
    /// Members that do not receive all datagrams.
    impaired: Impaired,
}

/// What a member does not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Impairment {
    /// It receives no datagrams and fetches the file over HTTP.
    Unicast,
    /// Whatever is sent for it has no effect: nothing is any more.
    Futile,
    /// It receives pages, but nothing of the repair channel.
    StreamOnly,
}

/// Members that do not receive all datagrams, counted by what they miss.
#[derive(Debug, Default)]
struct Impaired {
    of: BTreeMap<Token, Impairment>,
    unicast: usize,
    futile: usize,
    stream_only: usize,
}

impl Impaired {
    fn get(&self, token: &Token) -> Option<Impairment> {
        self.of.get(token).copied()
    }

    fn set(&mut self, token: &Token, impairment: Option<Impairment>) {
        let before = match impairment {
            Some(impairment) => self.of.insert(token.clone(), impairment),
            None => self.of.remove(token),
        };
        if let Some(before) = before {
            *self.count(before) -= 1;
        }
        if let Some(impairment) = impairment {
            *self.count(impairment) += 1;
        }
        debug_assert_eq!(self.of.len(), self.unicast + self.futile + self.stream_only);
    }

    fn count(&mut self, impairment: Impairment) -> &mut usize {
        match impairment {
            Impairment::Unicast => &mut self.unicast,
            Impairment::Futile => &mut self.futile,
            Impairment::StreamOnly => &mut self.stream_only,
        }
    }

    /// Forgets members that are none any more.
    fn retain(&mut self, is_member: impl Fn(&Token) -> bool) {
        let gone: Vec<_> = self.of.keys().filter(|token| !is_member(token)).cloned().collect();
        for token in gone {
            self.set(&token, None);
        }
    }
}

impl Leased {
    fn leave(&mut self, token: &Token) -> bool {
        self.impaired.set(token, None);
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
        self.impaired.retain(|token| self.heard.contains_key(token));
    }

    /// Sets what a member does not receive, and returns that of before.
    fn set(&mut self, token: &Token, impairment: Option<Impairment>) -> Option<Impairment> {
        let before = self.impaired.get(token);
        if self.heard.contains_key(token) && before != impairment {
            self.impaired.set(token, impairment);
        }
        before
    }
}

impl Members {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            plain: BTreeMap::new(),
            by_age: BTreeSet::new(),
            extended: Leased::default(),
            demand: Leased::default(),
            lease,
            check_at: None,
        }
    }

    /// Adds a member. `carousel` is the number of pages that the carousel has sent so far.
    pub(super) fn join(&mut self, token: Token, kind: MemberKind, carousel: u64, now: Instant) {
        let leased = match kind {
            MemberKind::Plain => {
                self.by_age.insert((carousel, token.clone()));
                self.plain.insert(token, carousel);
                return;
            }
            MemberKind::Extended | MemberKind::Resuming => &mut self.extended,
            MemberKind::Demand => &mut self.demand,
        };
        leased.heard.insert(token, now);
        self.check_at.get_or_insert(now + self.lease);
    }

    /// Removes a member and returns its kind; `None` if the token is not a member.
    pub(super) fn leave(&mut self, token: &Token) -> Option<MemberKind> {
        if let Some(carousel) = self.plain.remove(token) {
            self.by_age.remove(&(carousel, token.clone()));
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

    /// Forgets the plain members that joined `idle` pages of the carousel ago or earlier. Returns
    /// whether there were any.
    pub(super) fn forget_plain(&mut self, carousel: u64, idle: u64) -> bool {
        let mut were_any = false;
        while self.by_age.first().is_some_and(|(joined, _)| joined + idle <= carousel) {
            let Some((_, token)) = self.by_age.pop_first() else { break };
            were_any |= self.plain.remove(&token).is_some();
        }
        debug_assert_eq!(self.by_age.len(), self.plain.len());
        were_any
    }

    /// Whether the token has a lease.
    pub(super) fn has_lease(&self, token: &Token) -> bool {
        self.extended.heard.contains_key(token) || self.demand.heard.contains_key(token)
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
        let Impaired { unicast, futile, .. } = &self.extended.impaired;
        self.extended.heard.len() - unicast - futile
    }

    /// Number of extended members that receive the repair channel.
    pub(super) fn repairing(&self) -> usize {
        self.extended() - self.extended.impaired.stream_only
    }

    /// Number of members that want the whole file and receive datagrams.
    pub(super) fn hearing(&self) -> usize {
        self.plain.len() + self.extended()
    }

    /// Records what a member with a lease does not receive. Returns what that was before.
    pub(super) fn set_impairment(
        &mut self,
        token: &Token,
        impairment: Option<Impairment>,
    ) -> Option<Impairment> {
        let extended = self.extended.set(token, impairment);
        extended.or(self.demand.set(token, impairment))
    }

    /// Number of members that fetch the file over HTTP.
    pub(super) fn unicast(&self) -> usize {
        self.extended.impaired.unicast + self.demand.impaired.unicast
    }

    /// Number of members for which nothing is sent until they show that something arrives.
    pub(super) fn unreached(&self) -> usize {
        self.unicast() + self.extended.impaired.futile
    }
}
