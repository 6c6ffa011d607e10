//! What the mount tells of itself and its files. docs/SEMANTICS.md, "What a mount tells of itself".

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootcast_proto::api::Kind;

use super::inode::Node;
use super::{FileVersion, Fs, FsError, ROOT, lock};
use crate::cache::KeptFile;
use crate::io::now;
use crate::object::Object;
use crate::receiver::{FillPolicy, UnicastMode, Verify};
use crate::status::{FileState, FileStatus, MountStatus};
use crate::totals::TOTALS;
use crate::warnings;

/// Extended attribute of a regular file, besides its content id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAttribute {
    /// Version of the file.
    Etag,
    /// What the mount does with it.
    State,
    /// Number of held bytes.
    Progress,
    /// Number of bytes whose hash was found right.
    Verified,
    /// URL of the file.
    Source,
}

impl FileAttribute {
    /// Returns the attribute of this name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Some(match name.strip_prefix(b"user.bootcast.")? {
            b"etag" => Self::Etag,
            b"state" => Self::State,
            b"progress" => Self::Progress,
            b"verified" => Self::Verified,
            b"source" => Self::Source,
            _ => return None,
        })
    }
}

/// Time over which rates are averaged.
const RATE_PERIOD: Duration = Duration::from_secs(2);

/// Rates at which files arrive, by the id of the object.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<u64, Rate>);

/// Rate of one file.
#[derive(Clone, Copy, Debug)]
struct Rate {
    since: Instant,
    /// Held bytes at `since`.
    held: u64,
    bits_per_second: u64,
}

impl Rates {
    /// Takes the number of held bytes of each file that arrives, and forgets all others.
    fn update(&mut self, arriving: &[(u64, u64)], now: Instant) {
        let former = std::mem::take(&mut self.0);
        for &(id, held) in arriving {
            let begun = Rate { since: now, held, bits_per_second: 0 };
            let rate = former.get(&id).copied().unwrap_or(begun);
            self.0.insert(id, rate.after(held, now));
        }
    }

    fn of(&self, object: &Object) -> u64 {
        self.0.get(&object.id()).map_or(0, |rate| rate.bits_per_second)
    }
}

impl Rate {
    fn after(self, held: u64, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.since);
        // Until the first period is over, the rate so far is the best guess.
        if passed < RATE_PERIOD && (self.bits_per_second > 0 || passed < RATE_PERIOD / 4) {
            return self;
        }
        let bits = u128::from(held.saturating_sub(self.held)) * 8;
        let rate = bits * 1000 / passed.as_millis().max(1);
        let bits_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
        let (since, held) =
            if passed < RATE_PERIOD { (self.since, self.held) } else { (now, held) };
        Self { since, held, bits_per_second }
    }
}

impl Fs {
    /// Returns an attribute of a regular file. Asks the cache on disk about a file that is not
    /// open, so that it must not run on a thread that takes kernel requests. Never asks the server.
    pub fn file_attribute(&self, ino: u64, attribute: FileAttribute) -> Result<String, FsError> {
        let node = self.node(ino)?;
        let version = node.version.as_ref().filter(|_| node.attributes.kind == Kind::File);
        let version = version.ok_or(FsError::NoAttribute)?;
        let status = || self.file_status(&node, version);
        match attribute {
            FileAttribute::Etag => match version {
                FileVersion::Etag(etag) => Ok(etag.to_string()),
                FileVersion::Plain(_) => Err(FsError::NoAttribute),
            },
            FileAttribute::State => Ok(status().state.to_string()),
            FileAttribute::Progress => {
                let status = status();
                Ok(format!("{}/{}", status.held, size_text(status.size)))
            }
            FileAttribute::Verified => {
                let status = status();
                let verified = status.verified.ok_or(FsError::NoAttribute)?;
                Ok(format!("{verified}/{}", size_text(status.size)))
            }
            FileAttribute::Source => Ok(self.control.file_url(&node.path)),
        }
    }

    /// Returns the status of a version, be it open or not.
    fn file_status(&self, node: &Node, version: &FileVersion) -> FileStatus {
        if let Some(object) = self.object(&node.path, version) {
            return object.status(now());
        }
        let kept = self.cache.kept(&self.key(&node.path, version));
        FileStatus {
            size: match version {
                FileVersion::Etag(_) => Some(node.attributes.size),
                FileVersion::Plain(content) => self.plain_size(&node.path, *content),
            },
            held: kept.as_ref().map_or(0, held_bytes),
            ..FileStatus::of(node.path.encode(), FileState::Closed)
        }
    }

    /// Returns the status of the mount, with its files if `shows_files`. Never asks the server.
    pub fn status(&self, shows_files: bool) -> MountStatus {
        let now = now();
        let mut files = self.file_statuses(now);
        let waiting = files.iter().map(|file| file.waiting).sum();
        let oldest_wait_ms = files.iter().filter_map(|file| file.oldest_wait_ms).max();
        if !shows_files {
            files.clear();
        }
        let seconds = |since: Duration| since.as_secs();
        let outage = self.intake.multicast_outage(now);
        let path = lock(&self.inodes).find(ROOT).map(|root| root.path.encode());
        MountStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            server: self.control.server().into(),
            path: path.unwrap_or_default(),
            uptime_s: seconds(now.saturating_duration_since(self.started)),
            server_away_s: self.control.away_for(now).map(seconds),
            multicast_lost_s: outage.as_ref().map(|(since, _)| seconds(*since)),
            multicast_lost: outage.map(|(_, cause)| cause),
            waiting,
            oldest_wait_ms,
            totals: TOTALS.read(),
            warnings: warnings::recent(),
            files,
            ..self.options_status()
        }
    }

    /// Returns the part of the status that the options determine.
    fn options_status(&self) -> MountStatus {
        let cache_dir = self.cache.dir().map(|dir| dir.display().to_string());
        let cache = if cache_dir.is_some() { "disk" } else { "memory" };
        let fill = match self.config.fill {
            FillPolicy::AfterIntent => "full",
            FillPolicy::AtOpen => "eager",
            FillPolicy::Never => "demand",
        };
        let verify = match self.config.verify {
            Verify::Leaf => "leaf",
            Verify::Tag => "tag",
        };
        let unicast = match self.config.unicast {
            UnicastMode::Auto => "auto",
            UnicastMode::Never => "never",
            UnicastMode::Always => "always",
        };
        MountStatus {
            cache: cache.into(),
            cache_dir,
            fill: fill.into(),
            verify: verify.into(),
            unicast: unicast.into(),
            pinned: self.config.pins.is_some(),
            ..MountStatus::default()
        }
    }

    /// Returns the status of all objects: those with waiting readers first, then those that arrive,
    /// then those that are open.
    fn file_statuses(&self, now: Instant) -> Vec<FileStatus> {
        let with_rate = |object: &Arc<Object>| {
            let rate_bps = lock(&self.rates).of(object);
            FileStatus { rate_bps, ..object.status(now) }
        };
        let mut files: Vec<_> = self.all_objects().iter().map(with_rate).collect();
        files.sort_by_key(|file| {
            (Reverse(file.oldest_wait_ms), Reverse(file.rate_bps), Reverse(file.opens.min(1)))
        });
        files
    }

    /// Measures at which rate files arrive. Called a few times a second.
    pub(super) fn measure_rates(&self) {
        let objects = self.all_objects();
        let arriving: Vec<_> =
            objects.iter().filter_map(|object| Some((object.id(), object.arriving()?))).collect();
        lock(&self.rates).update(&arriving, now());
    }
}

/// Returns a size in decimal digits, or `?`.
fn size_text(size: Option<u64>) -> String {
    size.map_or_else(|| "?".into(), |size| size.to_string())
}

/// Returns the number of bytes that the cache holds, up to a page too low.
fn held_bytes(kept: &KeptFile) -> u64 {
    if kept.is_complete() {
        return kept.size;
    }
    let held = u128::from(kept.size) * u128::from(kept.held) / u128::from(kept.pages.max(1));
    u64::try_from(held).unwrap_or(kept.size)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a virtual clock needs a first moment")]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_the_document() {
        let page = include_str!("../../../docs/SEMANTICS.md");
        for (name, attribute) in [
            ("etag", FileAttribute::Etag),
            ("state", FileAttribute::State),
            ("progress", FileAttribute::Progress),
            ("verified", FileAttribute::Verified),
            ("source", FileAttribute::Source),
        ] {
            let name = format!("user.bootcast.{name}");
            assert_eq!(FileAttribute::named(name.as_bytes()), Some(attribute));
            assert!(page.contains(&format!("\n| `{name}` | ")), "{name}");
        }
        assert_eq!(FileAttribute::named(b"user.bootcast."), None);
        assert_eq!(FileAttribute::named(b"user.state"), None);
    }

    #[test]
    fn a_rate_is_known_soon_and_then_that_of_the_last_seconds() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let rate = |rates: &Rates| rates.0[&7].bits_per_second;
        rates.update(&[(7, 1000)], at(0));
        assert_eq!(rate(&rates), 0, "what was held before did not arrive");
        rates.update(&[(7, 2000)], at(500));
        assert_eq!(rate(&rates), 16_000);
        rates.update(&[(7, 9000)], at(2000));
        assert_eq!(rate(&rates), 32_000);
        rates.update(&[(7, 9000)], at(4000));
        assert_eq!(rate(&rates), 0);
        rates.update(&[], at(4500));
        assert!(rates.0.is_empty());
    }
}
