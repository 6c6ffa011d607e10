//! Plain members, and how many pages the carousel sends for each.

use std::collections::{BTreeMap, BTreeSet};

use bootcast_proto::Token;

/// Plain members. They send nothing until they leave, so each is forgotten after its passes.
#[derive(Debug, Default)]
pub(super) struct Plain {
    by_token: BTreeMap<Token, Member>,
    /// The same members in the order in which they are forgotten, by [`Member::until`].
    by_end: BTreeSet<(u64, Token)>,
}

/// A plain member. Both numbers count pages that the carousel of the cast has sent in all.
#[derive(Clone, Copy, Debug)]
struct Member {
    /// Pages that had been sent when it joined.
    since: u64,
    /// Pages after which it is forgotten.
    until: u64,
}

impl Plain {
    /// Adds a member that gets the next `pages` pages. `carousel` is the number of pages that the
    /// carousel has sent so far.
    pub(super) fn join(&mut self, token: Token, carousel: u64, pages: u64) {
        let member = Member { since: carousel, until: carousel + pages };
        self.by_end.insert((member.until, token.clone()));
        self.by_token.insert(token, member);
        self.assert_invariants();
    }

    /// Changes the number of pages that a member gets. Does nothing if the token is no member.
    pub(super) fn limit(&mut self, token: &Token, pages: u64) {
        let Some(member) = self.by_token.get_mut(token) else { return };
        self.by_end.remove(&(member.until, token.clone()));
        member.until = member.since + pages;
        self.by_end.insert((member.until, token.clone()));
        self.assert_invariants();
    }

    /// Removes a member. Returns the number of pages that the carousel had sent when it joined.
    pub(super) fn leave(&mut self, token: &Token) -> Option<u64> {
        let Member { since, until } = self.by_token.remove(token)?;
        self.by_end.remove(&(until, token.clone()));
        self.assert_invariants();
        Some(since)
    }

    /// Removes the next member that has had all its pages.
    pub(super) fn pop_finished(&mut self, carousel: u64) -> Option<Token> {
        let (until, _) = self.by_end.first()?;
        if *until > carousel {
            return None;
        }
        let (_, token) = self.by_end.pop_first()?;
        self.by_token.remove(&token);
        self.assert_invariants();
        Some(token)
    }

    /// Whether a member had joined before the carousel sent these pages.
    pub(super) fn has_had(&self, token: &Token, carousel: u64, pages: u64) -> bool {
        self.by_token.get(token).is_some_and(|member| member.since + pages <= carousel)
    }

    pub(super) fn contains(&self, token: &Token) -> bool {
        self.by_token.contains_key(token)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.by_token.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.by_token.len()
    }

    fn assert_invariants(&self) {
        debug_assert_eq!(self.by_end.len(), self.by_token.len(), "a member is never forgotten");
    }
}
