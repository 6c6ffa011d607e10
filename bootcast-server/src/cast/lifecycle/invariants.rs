//! Assertions about a cast.

use super::{Cast, Sending, State};

impl Cast {
    /// Asserts what holds between any two calls.
    pub(super) fn assert_invariants(&self) {
        // An empty file has nothing to send, so its cast lingers with its members.
        let has_members = !self.members.is_empty();
        assert!(!self.sends_demand() || has_members, "a cast without members would never end");
        debug_assert!(
            !matches!(self.state, State::Lingering { .. }) || !has_members || self.pages == 0,
            "a cast with members lingers, so they get nothing"
        );
        debug_assert!(
            self.repair.is_some() || self.members.leased() == 0,
            "a member has a lease in a cast without a repair channel"
        );
        debug_assert!(
            self.credits.len() <= self.members.leased(),
            "credits of clients that are no members would accumulate"
        );
        debug_assert!(
            self.profile.members() <= self.members.leased(),
            "clients that are no members keep the profile waiting"
        );
    }

    /// Asserts that datagrams can go out: there are some, no more than `budget`, and the file has
    /// them.
    pub(super) fn assert_sendable(&self, sending: &Sending, budget: u32) {
        let count = sending.datagrams();
        assert!((1..=budget).contains(&count), "{count} datagrams for a budget of {budget}");
        match sending {
            Sending::Pages(pages) => {
                assert!(pages.end.0 <= self.pages, "pages {pages} of a file of {}", self.pages);
            }
            Sending::Symbols(symbols) => {
                let blocks = self.repair.as_ref().map_or(0, |repair| repair.layout().blocks());
                debug_assert!(symbols.iter().all(|symbol| symbol.block.0 < blocks));
            }
            Sending::Beacon(beacon) => {
                assert!(beacon.position.0 <= self.pages, "the stream is behind the file");
            }
            Sending::LeafList(list) => {
                let has_repair = self.repair.is_some();
                assert!(has_repair, "{list:?} has no channel: it would look like a page");
            }
            Sending::End(_) => {}
        }
    }
}
