//! Which version is announced for a path. No I/O, no clock.
//!
//! A version is a content, but the server sees attributes first. When the attributes of a file
//! change, its content may be the same: after `chmod`, `touch`, a rename, a copy of the same bytes.
//!
//! ```text
//!            other attributes, and the content      equal bytes
//!            of the announced version is proven
//!  announced --------------------------> suspect -----------------> announced: the new attributes
//!      |                                    |                       are an alias
//!      | other attributes, nothing proven   | other bytes, or too late
//!      v                                    v
//!  another version is announced <-----------'
//! ```

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;
use lru::LruCache;

use super::{Version, VersionKey};

/// Maximum number of paths whose announced versions are remembered.
const PATHS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not 0");

/// Maximum number of aliases that are remembered.
const ALIASES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not 0");

/// Time for which a version may be announced although the file has other attributes, besides
/// [`SUSPECT_BYTES_PER_S`].
const SUSPECT_TIME: Duration = Duration::from_secs(10);

/// Rate at which a suspect file is read at least, in bytes per second. A file that takes longer
/// counts as another version.
const SUSPECT_BYTES_PER_S: u64 = 50 << 20;

/// Announced versions of paths.
#[derive(Debug)]
pub struct Announcements {
    paths: LruCache<RemotePath, Announced>,
    /// Announced version of attributes that began with another content, or under which the content
    /// changed.
    aliases: LruCache<VersionKey, Version>,
}

/// What is announced for a path.
#[derive(Debug)]
struct Announced {
    version: Version,
    /// Attributes that the path had last with this content.
    present: Version,
    suspect: Option<Suspect>,
}

/// A path with other attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    present: Version,
    /// When the path first had other attributes.
    since: Instant,
    /// Whether its bytes are being compared.
    is_compared: bool,
}

/// The version to announce for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Version to announce.
    pub version: Version,
    /// Whether it is not known yet that the file has this content.
    pub is_suspect: bool,
    /// Time until which the caller must compare the bytes and call [`Announcements::on_compared`];
    /// `None` if nothing is to be done.
    pub compare_until: Option<Instant>,
}

/// The attributes of a file, and the announced version that they stand for from now on.
pub type Alias = (Version, Version);

impl Announcements {
    /// Creates a registry with these aliases: keys of attributes, and announced versions.
    pub fn new(aliases: impl IntoIterator<Item = (VersionKey, Version)>) -> Self {
        let mut all = LruCache::new(ALIASES_MAX);
        for (present, version) in aliases {
            all.put(present, version);
        }
        Self { paths: LruCache::new(PATHS_MAX), aliases: all }
    }

    /// Whether remembering this path would make another one be forgotten.
    pub fn is_full_for(&self, path: &RemotePath) -> bool {
        self.paths.len() >= PATHS_MAX.get() && !self.paths.contains(path)
    }

    /// Returns the version that these attributes stand for.
    pub fn version_of(&self, present: Version) -> Version {
        self.aliases.peek(&present.key()).copied().unwrap_or(present)
    }

    /// Returns the version that is announced for a path, if it had other attributes.
    pub fn announced_otherwise(&self, path: &RemotePath, present: Version) -> Option<Version> {
        let entry = self.paths.peek(path).filter(|entry| entry.present != present)?;
        Some(entry.version)
    }

    /// Returns the version to announce for a path that has these attributes at present.
    /// `can_prove` says whether bytes can be compared with a version. `serial` is the generation of
    /// a content that has nothing else of its own: seconds since 1970.
    pub fn resolve(
        &mut self,
        path: &RemotePath,
        present: Version,
        can_prove: impl FnOnce(&Version) -> bool,
        serial: u64,
        now: Instant,
    ) -> (Resolution, Option<Alias>) {
        debug_assert_eq!(present.generation(), 0, "attributes have no generation");
        let known = |version| Resolution { version, is_suspect: false, compare_until: None };
        let alias = self.aliases.get(&present.key()).copied();
        let Some(entry) = self.paths.get_mut(path) else {
            let version = alias.unwrap_or(present);
            let suspect = None;
            self.paths.put(path.clone(), Announced { version, present, suspect });
            return (known(version), None);
        };
        if entry.present == present || entry.is_alias(present, alias) {
            (entry.present, entry.suspect) = (present, None);
            return (known(entry.version), None);
        }
        if let Some(version) = alias.filter(|_| !present.is_in_image()) {
            *entry = Announced { version, present, suspect: None };
            return (known(version), None);
        }
        let until = entry.deadline(now);
        if now < until && present.size() == entry.version.size() && can_prove(&entry.version) {
            let compare_until = entry.suspect(present, now).then_some(until);
            let version = entry.version;
            return (Resolution { version, is_suspect: true, compare_until }, None);
        }
        if entry.has_moved(present) {
            entry.present = present;
            return (known(entry.version), None);
        }
        let alias = self.supersede(path, present, serial);
        (known(alias.1), Some(alias).filter(|(_, version)| version.generation() != 0))
    }

    /// Handles that a path with these attributes has the content of the announced version, or
    /// another one. Returns an alias to remember, if any. Ignores what is outdated.
    pub fn on_compared(
        &mut self,
        path: &RemotePath,
        announced: Version,
        present: Version,
        is_equal: bool,
        serial: u64,
    ) -> Option<Alias> {
        let entry = self.paths.get_mut(path).filter(|entry| entry.version == announced)?;
        entry.suspect.filter(|suspect| suspect.present == present)?;
        if is_equal {
            (entry.present, entry.suspect) = (present, None);
            self.aliases.put(present.key(), announced);
            return Some((present, announced));
        }
        Some(self.supersede(path, present, serial))
    }

    /// Handles that the bytes could not be compared, because the attributes changed again.
    pub fn on_compare_aborted(&mut self, path: &RemotePath, present: Version) {
        let suspect = self.paths.get_mut(path).and_then(|entry| entry.suspect.as_mut());
        if let Some(suspect) = suspect.filter(|suspect| suspect.present == present) {
            suspect.is_compared = false;
        }
    }

    /// Handles bytes that are not those of the announced version. Returns an alias to remember;
    /// `None` if another version is announced already.
    pub fn on_other_bytes(
        &mut self,
        path: &RemotePath,
        announced: Version,
        present: Version,
        serial: u64,
    ) -> Option<Alias> {
        self.paths.get(path).filter(|entry| entry.version == announced)?;
        Some(self.supersede(path, present, serial))
    }

    /// Announces another version for a path, with an `ETag` that no other content had.
    fn supersede(&mut self, path: &RemotePath, present: Version, serial: u64) -> Alias {
        let entry = self.paths.get_mut(path).expect("callers have found the path");
        let old = entry.version;
        let is_taken = old.has_equal_attributes(&present) || self.aliases.contains(&present.key());
        let generation = if is_taken { serial.max(old.generation() + 1) } else { 0 };
        let version = present.with_generation(generation);
        assert_ne!(old.etag(), version.etag(), "two contents would have one name");
        *entry = Announced { version, present, suspect: None };
        if is_taken {
            self.aliases.put(present.key(), version);
        }
        (present, version)
    }
}

impl Announced {
    /// Whether the attributes are known to stand for the announced version.
    fn is_alias(&self, present: Version, alias: Option<Version>) -> bool {
        // Another image in its place may have equal attributes.
        let is_same_image = !present.is_in_image();
        let is_original = present.key() == self.version.with_generation(0).key();
        let is_alias = alias.map_or(is_original, |alias| alias == self.version);
        is_same_image && is_alias
    }

    /// Whether only the device number differs: the file system was mounted again. Files of two
    /// images can have equal attributes; those of other file systems cannot.
    fn has_moved(&self, present: Version) -> bool {
        let is_image = present.is_in_image() || self.present.is_in_image();
        !is_image && self.present.has_equal_attributes(&present)
    }

    /// Makes these attributes suspect. Returns whether the bytes are still to be compared.
    fn suspect(&mut self, present: Version, now: Instant) -> bool {
        let since = self.suspect.map_or(now, |suspect| suspect.since);
        let old = self.suspect.replace(Suspect { present, since, is_compared: true });
        old.is_none_or(|old| !old.is_compared || old.present != present)
    }

    /// Returns until when the announced version may stay, if the attributes are suspect at `now`.
    fn deadline(&self, now: Instant) -> Instant {
        let since = self.suspect.map_or(now, |suspect| suspect.since);
        let seconds = self.version.size() / SUSPECT_BYTES_PER_S;
        since + SUSPECT_TIME + Duration::from_secs(seconds)
    }
}

#[cfg(test)]
#[path = "announced_tests.rs"]
mod tests;
