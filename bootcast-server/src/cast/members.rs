//! Members of a cast, and when they are forgotten.

mod plain;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bootcast_proto::Token;

use super::accounts::Entry;
use super::principal::{Owners, Principal};
use super::shares::Shares;
use plain::Plain;

/// Number of checks of the leases per lease. A silent member is forgotten at most 1 / this of a
/// lease too late.
const CHECKS_PER_LEASE: u32 = 16;

/// Kind of a member, as its join announced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// Knows the base protocol only.
    Plain,
    /// Knows the extensions: receives the repair channel and reports.
    Extended,
    /// Like `Extended`, but has a part of the file already. Nothing is sent for it before its first
    /// report states what it lacks.
    Resuming,
    /// Knows the extensions and wants only the pages that it demands.
    Demand,
}

/// Members of a cast. Plain members send nothing until they leave, so they are forgotten after some
/// passes. Members with a lease are forgotten when it expires.
#[derive(Debug)]
pub(super) struct Members {
    plain: Plain,
    extended: Leased,
    demand: Leased,
    owners: Owners,
    /// Owned extended members that showed no progress, each with the number of pages that the
    /// stream had sent when it joined.
    unproven: BTreeMap<Token, u64>,
    /// What principals owe for these, and for plain members.
    shares: Shares,
    /// Entries for the accounts of principals.
    entries: Vec<Entry>,
    lease: Duration,
    /// When to check the leases; `None` while no member has one.
    check_at: Option<Instant>,
}

/// Members of one kind that have a lease.
#[derive(Debug, Default)]
struct Leased {
    /// Time of each member's last request.
    last_request: BTreeMap<Token, Instant>,
    /// Members for which not everything is sent.
    impaired: Impaired,
    /// Members that asked for leaf lists.
    leaf_askers: BTreeSet<Token>,
    /// Members that have the zero map, as their last report says.
    zero_map_holders: BTreeSet<Token>,
}

/// Reason why not everything is sent for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Impairment {
    /// It reported that it receives no datagrams and fetches the file over HTTP.
    Unicast,
    /// Its reports used up its credit without progress.
    NoCredit,
    /// It reported that it receives pages, but nothing of the repair channel.
    StreamOnly,
}

/// Members with an impairment, and their number for each impairment.
#[derive(Debug, Default)]
struct Impaired {
    by_member: BTreeMap<Token, Impairment>,
    unicast: usize,
    no_credit: usize,
    stream_only: usize,
}

impl Impaired {
    fn get(&self, token: &Token) -> Option<Impairment> {
        self.by_member.get(token).copied()
    }

    fn set(&mut self, token: &Token, impairment: Option<Impairment>) {
        let before = match impairment {
            Some(impairment) => self.by_member.insert(token.clone(), impairment),
            None => self.by_member.remove(token),
        };
        if let Some(before) = before {
            *self.count(before) -= 1;
        }
        if let Some(impairment) = impairment {
            *self.count(impairment) += 1;
        }
        debug_assert_eq!(self.by_member.len(), self.unicast + self.no_credit + self.stream_only);
    }

    /// Number of members with an impairment.
    fn len(&self) -> usize {
        self.by_member.len()
    }

    fn count(&mut self, impairment: Impairment) -> &mut usize {
        match impairment {
            Impairment::Unicast => &mut self.unicast,
            Impairment::NoCredit => &mut self.no_credit,
            Impairment::StreamOnly => &mut self.stream_only,
        }
    }

    /// Forgets all tokens for which `is_member` is `false`.
    fn retain(&mut self, is_member: impl Fn(&Token) -> bool) {
        let gone: Vec<_> =
            self.by_member.keys().filter(|token| !is_member(token)).cloned().collect();
        for token in gone {
            self.set(&token, None);
        }
    }
}

impl Leased {
    /// Removes a member. Returns `false` if the token is not a member of this kind.
    fn leave(&mut self, token: &Token) -> bool {
        self.impaired.set(token, None);
        self.leaf_askers.remove(token);
        self.zero_map_holders.remove(token);
        self.last_request.remove(token).is_some()
    }

    /// Renews a lease. Returns `false` if the token is not a member of this kind.
    fn renew(&mut self, token: &Token, now: Instant) -> bool {
        match self.last_request.get_mut(token) {
            Some(last_request) => {
                *last_request = now;
                true
            }
            None => false,
        }
    }

    fn forget_silent(&mut self, lease: Duration, now: Instant) {
        self.last_request.retain(|_, at| now < *at + lease);
        self.impaired.retain(|token| self.last_request.contains_key(token));
        self.leaf_askers.retain(|token| self.last_request.contains_key(token));
        self.zero_map_holders.retain(|token| self.last_request.contains_key(token));
    }

    /// Sets the impairment of a member and returns the previous one.
    fn set(&mut self, token: &Token, impairment: Option<Impairment>) -> Option<Impairment> {
        let before = self.impaired.get(token);
        if self.last_request.contains_key(token) && before != impairment {
            self.impaired.set(token, impairment);
        }
        before
    }
}

impl Members {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            plain: Plain::default(),
            extended: Leased::default(),
            demand: Leased::default(),
            owners: Owners::default(),
            unproven: BTreeMap::new(),
            shares: Shares::default(),
            entries: Vec::new(),
            lease,
            check_at: None,
        }
    }

    /// Adds a plain member that gets `pages` pages of the carousel, which has sent `carousel` pages
    /// so far.
    pub(super) fn join_plain(&mut self, token: Token, carousel: u64, pages: u64) {
        self.plain.join(token, carousel, pages);
        self.assert_invariants();
    }

    /// Adds a member with a lease.
    pub(super) fn join_leased(&mut self, token: Token, only_demands: bool, now: Instant) {
        let leased = if only_demands { &mut self.demand } else { &mut self.extended };
        leased.last_request.insert(token, now);
        self.check_at.get_or_insert(now + self.lease);
        self.assert_invariants();
    }

    /// Records whose membership this is. `sent` is the number of pages that the stream has sent so
    /// far. Does nothing if the token is no member, or owned already.
    pub(super) fn set_owner(&mut self, token: &Token, principal: Principal, sent: u64) {
        if self.owners.owner_of(token).is_some() {
            return;
        }
        let is_extended = self.extended.last_request.contains_key(token);
        if is_extended {
            self.unproven.insert(token.clone(), sent);
        }
        let wants_all = is_extended || self.plain.contains(token);
        if wants_all {
            self.shares.join(principal);
        }
        if wants_all || self.demand.last_request.contains_key(token) {
            self.owners.insert(token.clone(), principal);
        }
        self.assert_invariants();
    }

    /// Changes the number of pages that a plain member gets.
    pub(super) fn limit_plain(&mut self, token: &Token, pages: u64) {
        self.plain.limit(token, pages);
    }

    /// Returns whose membership this is, if that is known.
    pub(super) fn owner_of(&self, token: &Token) -> Option<Principal> {
        self.owners.owner_of(token)
    }

    /// Number of principals that have members.
    pub(super) fn principals(&self) -> usize {
        self.owners.principals()
    }

    /// Records that a principal asked for more than its ration.
    pub(super) fn record_deferred(&mut self, principal: Principal, count: u64) {
        if count > 0 {
            self.entries.push(Entry::Deferred(principal, count));
        }
    }

    /// Returns the entries for the accounts of principals since the last call.
    pub(super) fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// Divides bytes that are sent only for members that proved nothing among their principals.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.shares.on_sent(bytes);
        let owed = self.shares.poll().into_iter().flatten();
        self.entries.extend(owed.map(|(principal, bytes)| Entry::Charge(principal, bytes)));
    }

    /// Records that a member received something.
    pub(super) fn prove(&mut self, token: &Token) {
        if let Some(principal) = self.owners.owner_of(token) {
            if self.unproven.remove(token).is_some() {
                // What it owes is cleared.
                self.shares.leave(principal);
            }
            self.entries.push(Entry::Proof(principal));
        }
        self.assert_invariants();
    }

    /// Whether an extended member showed that it receives something.
    pub(super) fn has_proven(&self) -> bool {
        self.extended.last_request.len() > self.unproven.len()
    }

    /// Whether a member is there since before the last pass: before the last `pages` pages of the
    /// stream, which has sent `sent` of them, `carousel` with plain members.
    pub(super) fn had_a_pass(&self, token: &Token, pages: u64, sent: u64, carousel: u64) -> bool {
        let since = self.unproven.get(token).copied();
        since.is_some_and(|since| since + pages <= sent)
            || self.plain.has_had(token, carousel, pages)
    }

    /// Forgets whose membership this was, and charges what its principal owes. `is_plain`: the
    /// member was a plain one.
    fn settle(&mut self, token: &Token, is_plain: bool) -> Option<Principal> {
        let principal = self.owners.remove(token)?;
        if self.unproven.remove(token).is_some() || is_plain {
            let owed = self.shares.leave(principal);
            if owed > 0 {
                self.entries.push(Entry::Charge(principal, owed));
            }
        }
        Some(principal)
    }

    /// Returns the number of memberships of a principal.
    pub(super) fn of_principal(&self, principal: Principal) -> usize {
        self.owners.memberships(principal)
    }

    /// Asserts what holds between any two calls.
    fn assert_invariants(&self) {
        debug_assert!(self.owners.len() <= self.len(), "somebody owns a membership that is over");
        assert!(
            self.leased() == 0 || self.check_at.is_some(),
            "leases that nobody checks would never expire"
        );
        for leased in [&self.extended, &self.demand] {
            debug_assert!(
                leased.impaired.len() <= leased.last_request.len(),
                "a client that is no member is impaired"
            );
            debug_assert!(
                leased.leaf_askers.len() <= leased.last_request.len(),
                "more members asked for leaf lists than there are"
            );
            debug_assert!(
                leased.zero_map_holders.len() <= leased.last_request.len(),
                "more members have the zero map than there are"
            );
        }
        debug_assert!(
            self.shares.principals() <= self.plain.len() + self.unproven.len()
                && self.unproven.len() <= self.extended.last_request.len(),
            "somebody pays for members that are gone"
        );
    }

    /// Number of members with a lease.
    pub(super) fn leased(&self) -> usize {
        self.extended.last_request.len() + self.demand.last_request.len()
    }

    /// Removes a member and returns its kind; `None` if the token is not a member.
    pub(super) fn leave(&mut self, token: &Token) -> Option<MemberKind> {
        if self.plain.leave(token).is_some() {
            self.settle(token, true);
            return Some(MemberKind::Plain);
        }
        self.settle(token, false);
        let extended = self.extended.leave(token).then_some(MemberKind::Extended);
        let left = extended.or_else(|| self.demand.leave(token).then_some(MemberKind::Demand));
        self.assert_invariants();
        left
    }

    /// Renews a lease and returns the member's kind; `None` if the token has no lease.
    pub(super) fn renew(&mut self, token: &Token, now: Instant) -> Option<MemberKind> {
        let extended = self.extended.renew(token, now).then_some(MemberKind::Extended);
        extended.or_else(|| self.demand.renew(token, now).then_some(MemberKind::Demand))
    }

    /// Forgets the plain members that had all their pages. `carousel` is the number of pages that
    /// the carousel has sent so far. Returns whether any was forgotten.
    pub(super) fn forget_finished_plain(&mut self, carousel: u64) -> bool {
        let mut any_forgotten = false;
        while let Some(token) = self.plain.pop_finished(carousel) {
            let principal = self.settle(&token, true);
            self.entries.extend(principal.map(|it| Entry::Forgotten(it, token)));
            any_forgotten = true;
        }
        self.assert_invariants();
        any_forgotten
    }

    /// Forgets all plain members of a principal. Returns their number.
    pub(super) fn forget_plain_of(&mut self, principal: Principal) -> usize {
        let is_its_own = |token: &&Token| self.owners.owner_of(token) == Some(principal);
        let gone: Vec<_> = self.plain.tokens().filter(is_its_own).cloned().collect();
        let forgotten = gone.len();
        for token in gone {
            self.plain.leave(&token);
            self.settle(&token, true);
            self.entries.push(Entry::Forgotten(principal, token));
        }
        self.assert_invariants();
        forgotten
    }

    /// Whether the token is a member.
    pub(super) fn contains(&self, token: &Token) -> bool {
        self.plain.contains(token) || self.has_lease(token)
    }

    /// Whether the token has a lease.
    pub(super) fn has_lease(&self, token: &Token) -> bool {
        self.extended.last_request.contains_key(token)
            || self.demand.last_request.contains_key(token)
    }

    /// Forgets the members whose lease expired. Returns whether any was forgotten.
    pub(super) fn forget_silent(&mut self, now: Instant) -> bool {
        if self.check_at.is_none_or(|at| now < at) {
            return false;
        }
        let before = self.len();
        let lease = self.lease;
        self.extended.forget_silent(lease, now);
        self.demand.forget_silent(lease, now);
        for token in self.owners.not_in(|token| self.contains(token)) {
            self.settle(&token, false);
        }
        let earliest =
            self.extended.last_request.values().chain(self.demand.last_request.values()).min();
        self.check_at = earliest.map(|at| (*at + lease).max(now + lease / CHECKS_PER_LEASE));
        self.assert_invariants();
        self.len() < before
    }

    /// Returns when to call [`Self::forget_silent`] next.
    pub(super) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    /// Returns the number of members of all kinds.
    pub(super) fn len(&self) -> usize {
        self.whole_file_members() + self.demand.last_request.len()
    }

    /// Returns the number of members that want the whole file.
    pub(super) fn whole_file_members(&self) -> usize {
        self.plain.len() + self.extended.last_request.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_plain(&self) -> bool {
        self.plain.len() > 0
    }

    /// Returns the number of extended members that receive datagrams.
    pub(super) fn extended(&self) -> usize {
        let Impaired { unicast, no_credit, .. } = &self.extended.impaired;
        self.extended.last_request.len() - unicast - no_credit
    }

    /// Returns the number of extended members that receive the repair channel.
    pub(super) fn repair_receivers(&self) -> usize {
        self.extended() - self.extended.impaired.stream_only
    }

    /// Records that a member asked for leaf lists. Ignores members without a lease.
    pub(super) fn request_leaves(&mut self, token: &Token) {
        for leased in [&mut self.extended, &mut self.demand] {
            if leased.last_request.contains_key(token) {
                leased.leaf_askers.insert(token.clone());
            }
        }
        self.assert_invariants();
    }

    /// Records whether a member has the zero map. Ignores members that want no stream.
    pub(super) fn set_has_zero_map(&mut self, token: &Token, has: bool) {
        if !has {
            self.extended.zero_map_holders.remove(token);
        } else if self.extended.last_request.contains_key(token) {
            self.extended.zero_map_holders.insert(token.clone());
        }
        self.assert_invariants();
    }

    /// Whether every member that wants the whole file has the zero map. Deaf ones count: they may
    /// hear again at any time.
    pub(super) fn all_have_zero_map(&self) -> bool {
        self.plain.len() == 0
            && self.extended.zero_map_holders.len() == self.extended.last_request.len()
    }

    /// Whether the member asked for leaf lists.
    pub(super) fn has_requested_leaves(&self, token: &Token) -> bool {
        self.extended.leaf_askers.contains(token) || self.demand.leaf_askers.contains(token)
    }

    /// Whether leaf lists go out with the stream: some member asked for them, and some member
    /// receives the repair channel.
    pub(super) fn want_leaf_lists(&self) -> bool {
        !self.extended.leaf_askers.is_empty() && self.repair_receivers() > 0
    }

    /// Returns the number of members that want the whole file and receive datagrams.
    pub(super) fn receivers(&self) -> usize {
        self.plain.len() + self.extended()
    }

    /// Sets the impairment of a member with a lease. Returns the previous one.
    pub(super) fn set_impairment(
        &mut self,
        token: &Token,
        impairment: Option<Impairment>,
    ) -> Option<Impairment> {
        let extended = self.extended.set(token, impairment);
        extended.or(self.demand.set(token, impairment))
    }

    /// Whether anything is sent for the member: it has a lease and does not count as deaf.
    pub(super) fn serves(&self, token: &Token) -> bool {
        let impairment = self.extended.impaired.get(token).or(self.demand.impaired.get(token));
        let is_reached = !matches!(impairment, Some(Impairment::Unicast | Impairment::NoCredit));
        self.has_lease(token) && is_reached
    }

    /// Returns the number of members that fetch the file over HTTP.
    pub(super) fn unicast(&self) -> usize {
        self.extended.impaired.unicast + self.demand.impaired.unicast
    }

    /// Returns the number of members that count as deaf: those that reported `unicast`, and
    /// extended ones without credit.
    pub(super) fn deaf(&self) -> usize {
        self.unicast() + self.extended.impaired.no_credit
    }
}
