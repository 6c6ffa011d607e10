//! Directory listings of the server, cached for `attr_ttl`, so that `ls -lR` of a tree that was
//! listed a moment ago asks nobody. Older ones are asked for again with their version: the server
//! then need not send them.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bootcast_proto::api::Attributes;
use bootcast_proto::{Etag, RemotePath};
use lru::LruCache;

use crate::panics::lock;

/// Most names of all cached listings together, with one more for each listing, so that a directory
/// of 100,000 names is kept. Each takes a few hundred bytes.
const MAX_WEIGHT: usize = 100_001;

/// Number of names that must be looked up within `attr_ttl` until their directory is listed again.
const MIN_LOOKUPS: usize = 8;

/// 1 / this of the names of a directory must be looked up as well.
const LOOKUPS_DIVISOR: usize = 64;

/// Names of one directory with their attributes, as the server listed them.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    /// Version of the listing; `None` if it cannot be asked for again by version.
    pub(super) etag: Option<Etag>,
    /// Paths of the names, with their attributes.
    pub(super) entries: Arc<Vec<(RemotePath, Attributes)>>,
    /// Time at which the server was asked.
    pub(super) fetched: Instant,
    /// Positions of the entries in the order of their paths, once a path was looked for.
    pub(super) order: Arc<OnceLock<Vec<u32>>>,
}

impl Listing {
    /// Creates a listing that is not asked for again by its version.
    pub(super) fn new(entries: Vec<(RemotePath, Attributes)>, fetched: Instant) -> Self {
        Self { etag: None, entries: Arc::new(entries), fetched, order: Arc::default() }
    }

    /// Returns the attributes of a path.
    fn find(&self, path: &RemotePath) -> Option<&Attributes> {
        let at = |position: u32| self.entries.get(usize::try_from(position).ok()?);
        let path_at = |position: &u32| at(*position).map(|(path, _)| path);
        let order = self.order.get_or_init(|| {
            let mut order: Vec<_> = (0..).take(self.entries.len()).collect();
            order.sort_unstable_by(|a, b| path_at(a).cmp(&path_at(b)));
            order
        });
        let found = order.binary_search_by(|position| path_at(position).cmp(&Some(path))).ok()?;
        at(order[found]).map(|(_, attributes)| attributes)
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

/// Where the attributes of a name come from.
#[derive(Debug)]
pub(super) enum Lookup {
    /// From a listing, for which the server was asked at this time.
    Listed(Attributes, Instant),
    /// From a request for this name alone.
    Alone,
    /// The same, and the directory should be listed for later lookups. This is its latest listing.
    AloneAndList(Listing),
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
    /// Directory whose names are being looked up one after another.
    lookups: Option<Lookups>,
}

/// Names of a directory that are looked up one after another.
#[derive(Debug)]
struct Lookups {
    directory: RemotePath,
    since: Instant,
    /// Number of lookups since then that no listing answered.
    count: usize,
    /// Whether the directory is being listed.
    is_listing: bool,
}

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(Kept { listings: LruCache::unbounded(), weight: 0, lookups: None }))
    }
}

impl Listings {
    /// Returns the latest listing of a directory, of any age.
    pub(super) fn latest(&self, dir: &RemotePath) -> Option<Listing> {
        lock(&self.0).listings.get(dir).cloned()
    }

    /// Records that a name is looked up. Returns what is to be done about it.
    pub(super) fn handle_lookup(&self, path: &RemotePath, ttl: Duration, now: Instant) -> Lookup {
        let Some(directory) = path.parent() else { return Lookup::Alone };
        let Some(listing) = self.latest(&directory) else { return Lookup::Alone };
        if !listing.time_left(ttl, now).is_zero() {
            let found = listing.find(path).cloned();
            return found.map_or(Lookup::Alone, |it| Lookup::Listed(it, listing.fetched));
        }
        let lookups = &mut lock(&self.0).lookups;
        let is_same = |it: &&mut Lookups| it.directory == directory;
        let lookups = match lookups.as_mut().filter(is_same) {
            Some(lookups) => lookups,
            None => lookups.insert(Lookups { directory, since: now, count: 0, is_listing: false }),
        };
        if lookups.since + ttl <= now {
            (lookups.since, lookups.count) = (now, 0);
        }
        lookups.count += 1;
        let is_enough = lookups.count >= MIN_LOOKUPS.max(listing.entries.len() / LOOKUPS_DIVISOR);
        if lookups.is_listing || !is_enough {
            return Lookup::Alone;
        }
        lookups.is_listing = true;
        Lookup::AloneAndList(listing)
    }

    /// Handles the end of the request for a listing.
    pub(super) fn handle_listing_end(&self, dir: &RemotePath) {
        let lookups = &mut lock(&self.0).lookups;
        if lookups.as_ref().is_some_and(|it| it.directory == *dir) {
            *lookups = None;
        }
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
    fn many_names_that_are_looked_up_again_lead_to_a_listing_that_answers_for_a_while() {
        let (listings, start, ttl) = (Listings::default(), Instant::now(), Duration::from_secs(1));
        let at = |ms| start + Duration::from_millis(ms);
        let name = |k: u64| path("d").join(k.to_string().as_bytes()).unwrap();
        let list = |fetched| {
            let entries = (0..64 * 20).map(|k| (name(k), file_attributes(k)));
            listings.keep(&path("d"), &Listing::new(entries.collect(), fetched));
        };
        let look = |k, now| listings.handle_lookup(&name(k), ttl, now);
        let asks = |k, now| matches!(look(k, now), Lookup::AloneAndList(_));
        assert!(matches!(look(0, start), Lookup::Alone), "it was never listed");
        list(start);
        for k in 0..19 {
            assert!(matches!(look(k, at(1000)), Lookup::Alone), "{k}");
        }
        assert!(asks(19, at(1999)));
        for k in 20..100 {
            assert!(matches!(look(k, at(1999 + 100 * k)), Lookup::Alone), "it is being listed");
        }
        listings.handle_listing_end(&path("d"));
        let asked = (0..100).filter(|k| asks(*k, at(12_000))).count();
        assert_eq!(asked, 1, "after as many lookups again");
        list(at(1999));
        listings.handle_listing_end(&path("d"));
        assert!(matches!(look(777, at(2998)), Lookup::Listed(found, _) if found.size == 777));
        assert!(matches!(look(5000, at(2998)), Lookup::Alone), "the listing has no such name");
        assert!(matches!(look(778, at(2999)), Lookup::Alone), "it is too old");
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
