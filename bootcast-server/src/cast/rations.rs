//! Rations: how much of a cast goes before the stream because a single principal asks for it.
//! docs/PROTOCOL.md, "What goes first for a host".
//!
//! Needs and demands go before what all members wait for, because they are few and urgent. A
//! principal that lies about them would hold up all others. So beside others each principal has a
//! ration. What is beyond waits until nothing else is to be sent.

use std::collections::BTreeMap;

use super::principal::Principal;

/// Pages and symbols of every ration at least; for files of up to 382 MB.
const MIN: u64 = 2048;

/// The ration is 1 / this of the file, and the same share of all that is sent.
const DIVISOR: u64 = 128;

/// Maximum number of principals that are remembered. Bounds memory.
const MAX_PRINCIPALS: usize = 65_536;

/// Rations of the principals in a cast.
#[derive(Debug)]
pub(super) struct Rations {
    /// Number of pages in the file.
    pages: u64,
    /// Pages and symbols that went first for each principal, also of one that left meanwhile.
    used: BTreeMap<Principal, u64>,
    /// Whether the streams of other casts run.
    has_neighbours: bool,
}

impl Rations {
    /// Creates full rations for a file of `pages` pages.
    pub(super) fn new(pages: u32) -> Self {
        Self { pages: pages.into(), used: BTreeMap::new(), has_neighbours: false }
    }

    /// Sets whether the streams of other casts run.
    pub(super) fn set_has_neighbours(&mut self, has_neighbours: bool) {
        self.has_neighbours = has_neighbours;
    }

    /// Whether the streams of other casts run.
    pub(super) fn has_neighbours(&self) -> bool {
        self.has_neighbours
    }

    /// Returns how many pages and symbols may still go first for a principal, after the cast sent
    /// `sent` in all.
    pub(super) fn left(&self, principal: Principal, sent: u64) -> u64 {
        let ration = MIN.max(self.pages / DIVISOR) + sent / DIVISOR;
        ration.saturating_sub(self.used.get(&principal).copied().unwrap_or(0))
    }

    /// Takes pages and symbols out of the ration of a principal.
    pub(super) fn take(&mut self, principal: Principal, count: u64) {
        if count == 0 {
            return;
        }
        if self.used.len() >= MAX_PRINCIPALS && !self.used.contains_key(&principal) {
            self.used.pop_first();
        }
        *self.used.entry(principal).or_default() += count;
        debug_assert!(self.used.len() <= MAX_PRINCIPALS, "principals would accumulate");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ration_grows_with_what_the_cast_sends() {
        let host = |number| std::net::IpAddr::from([10, 0, 0, number]).into();
        let mut rations = Rations::new(1_280_000);
        assert_eq!(rations.left(host(1), 0), 10_000);
        rations.take(host(1), 9000);
        assert_eq!((rations.left(host(1), 0), rations.left(host(2), 0)), (1000, 10_000));
        assert_eq!(rations.left(host(1), 128_000), 2000);
        rations.take(host(1), 9000);
        assert_eq!(rations.left(host(1), 0), 0);
        assert_eq!(Rations::new(10).left(host(1), 0), MIN);
    }

    #[test]
    fn the_numbers_are_those_of_the_protocol() {
        let page = include_str!("../../../docs/PROTOCOL.md");
        let text = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(MIN, 2048);
        let ration = format!("2,048 pages and symbols, or 1/{DIVISOR} of the file");
        assert!(text.contains(&ration), "{ration}");
    }
}
