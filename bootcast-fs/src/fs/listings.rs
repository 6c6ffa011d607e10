//! Directory listings of the server, cached for `attr_ttl`, so that `ls -lR` of a tree that was
//! listed a moment ago asks nobody. Older ones are asked for again with their version: the server
//! then need not send them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bootcast_proto::api::Attributes;
use bootcast_proto::{Etag, RemotePath};
use lru::LruCache;

use crate::panics::lock;

/// Most names of all cached listings together, with one more for each listing, so that a directory
/// of 100,000 names is kept. Each takes a few hundred bytes.
const MAX_WEIGHT: usize = 100_001;

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

    /// Returns how much it counts among all listings.
    fn weight(&self) -> usize {
        self.entries.len() + 1
    }

    /// Returns how much longer attributes of the listing may be used, out of `ttl`.
    pub(super) fn time_left(&self, ttl: Duration, now: Instant) -> Duration {
        ttl.saturating_sub(now.saturating_duration_since(self.fetched))
    }
}

/// Latest listings, by directory.
#[derive(Debug)]
pub(super) struct Listings(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    /// Listings in the order of their last use.
    listings: LruCache<RemotePath, Listing>,
    /// Sum of the listings' weights.
    weight: usize,
}

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(Kept { listings: LruCache::unbounded(), weight: 0 }))
    }
}

impl Listings {
    /// Returns the latest listing of a directory, of any age.
    pub(super) fn latest(&self, dir: &RemotePath) -> Option<Listing> {
        lock(&self.0).listings.get(dir).cloned()
    }

    /// Keeps a listing. Drops those that were not used for longest if there are too many names.
    pub(super) fn keep(&self, dir: &RemotePath, listing: &Listing) {
        let mut kept = lock(&self.0);
        if let Some(before) = kept.listings.pop(dir) {
            kept.weight -= before.weight();
        }
        if listing.weight() > MAX_WEIGHT {
            return;
        }
        kept.weight += listing.weight();
        kept.listings.push(dir.clone(), listing.clone());
        while kept.weight > MAX_WEIGHT
            && let Some((_, dropped)) = kept.listings.pop_lru()
        {
            kept.weight -= dropped.weight();
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
    fn the_listings_that_were_not_used_for_longest_go_when_there_are_too_many_names() {
        let (listings, start) = (Listings::default(), Instant::now());
        for dir in ["b", "a"] {
            listings.keep(&path(dir), &listing(MAX_WEIGHT / 3, start));
        }
        assert!(listings.latest(&path("b")).is_some());
        listings.keep(&path("c"), &listing(MAX_WEIGHT / 3, start));
        let kept = ["a", "b", "c"].map(|dir| listings.latest(&path(dir)).is_some());
        assert_eq!(kept, [false, true, true]);
        listings.keep(&path("d"), &listing(MAX_WEIGHT, start));
        assert!(listings.latest(&path("d")).is_none(), "too large to be kept");
        assert!(listings.latest(&path("c")).is_some(), "nothing goes in vain");
        listings.keep(&path("c"), &listing(MAX_WEIGHT, start));
        assert!(listings.latest(&path("c")).is_none(), "the earlier one is out of date");
    }

    #[test]
    fn listings_without_names_are_limited_too() {
        let (listings, start) = (Listings::default(), Instant::now());
        for dir in 0..MAX_WEIGHT + 5 {
            for _ in 0..2 {
                listings.keep(&path(&dir.to_string()), &listing(0, start));
            }
        }
        let kept = lock(&listings.0);
        assert_eq!((kept.listings.len(), kept.weight), (MAX_WEIGHT, MAX_WEIGHT));
        assert!(!kept.listings.contains(&path("4")) && kept.listings.contains(&path("5")));
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
