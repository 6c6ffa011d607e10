//! Directory listings of the server, cached for `attr_ttl`, so that `ls -lR` of a tree that was
//! listed a moment ago asks nobody. Older ones are asked for again with their version: the server
//! then need not send them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bootcast_proto::api::Attributes;
use bootcast_proto::{Etag, RemotePath};

use crate::panics::lock;

/// Most names of all cached listings together. Each takes a few hundred bytes.
const MAX_NAMES: usize = 100_000;

/// Names of one directory with their attributes, as the server listed them.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    /// Version of the listing; `None` if it cannot be asked for again by version.
    pub(super) etag: Option<Etag>,
    /// Paths of the names, with their attributes.
    pub(super) entries: Arc<Vec<(RemotePath, Attributes)>>,
    /// Time at which the server was asked.
    pub(super) fetched: Instant,
}

impl Listing {
    /// Creates a listing that is not asked for again by its version.
    pub(super) fn new(entries: Vec<(RemotePath, Attributes)>, fetched: Instant) -> Self {
        Self { etag: None, entries: Arc::new(entries), fetched }
    }

    /// Returns how much longer attributes of the listing may be used, out of `ttl`.
    pub(super) fn time_left(&self, ttl: Duration, now: Instant) -> Duration {
        ttl.saturating_sub(now.saturating_duration_since(self.fetched))
    }
}

/// Latest listings, by directory.
#[derive(Debug, Default)]
pub(super) struct Listings(Mutex<HashMap<RemotePath, Listing>>);

impl Listings {
    /// Returns the latest listing of a directory, of any age.
    pub(super) fn latest(&self, dir: &RemotePath) -> Option<Listing> {
        lock(&self.0).get(dir).cloned()
    }

    /// Keeps a listing. Drops the oldest ones if there are too many names.
    pub(super) fn keep(&self, dir: &RemotePath, listing: &Listing) {
        let mut listings = lock(&self.0);
        listings.insert(dir.clone(), listing.clone());
        let mut names: usize = listings.values().map(|listing| listing.entries.len()).sum();
        while names > MAX_NAMES {
            let oldest = listings.iter().min_by_key(|(_, listing)| listing.fetched);
            let Some(oldest) = oldest.map(|(dir, _)| dir.clone()) else { break };
            let dropped = listings.remove(&oldest);
            names -= dropped.map_or(0, |listing| listing.entries.len());
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;
    use crate::fs::plain::file_attributes;

    fn path(text: &str) -> RemotePath {
        RemotePath::decode(text).unwrap()
    }

    fn listing(names: usize, fetched: Instant) -> Listing {
        let entries = (0..names).map(|name| (path(&name.to_string()), file_attributes(0)));
        Listing::new(entries.collect(), fetched)
    }

    #[test]
    fn the_oldest_listings_go_when_there_are_too_many_names() {
        let (listings, start) = (Listings::default(), Instant::now());
        for (age, dir) in [(2, "b"), (3, "a"), (1, "c")] {
            let fetched = start + Duration::from_secs(10 - age);
            listings.keep(&path(dir), &listing(MAX_NAMES / 2, fetched));
        }
        let kept = ["a", "b", "c"].map(|dir| listings.latest(&path(dir)).is_some());
        assert_eq!(kept, [false, true, true]);
        listings.keep(&path("d"), &listing(MAX_NAMES + 1, start));
        assert!(listings.latest(&path("d")).is_none(), "too large to be kept");
    }

    #[test]
    fn attributes_may_be_used_for_what_is_left_of_their_time() {
        let start = Instant::now();
        let listing = listing(1, start);
        let left =
            |age| listing.time_left(Duration::from_secs(5), start + Duration::from_secs(age));
        assert_eq!([left(0), left(3), left(9)].map(|left| left.as_secs()), [5, 2, 0]);
    }
}
