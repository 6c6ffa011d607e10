//! The budget of a cache: how much it may take up, and what goes when that is reached.
//! docs/SEMANTICS.md, "The budget of the cache".

use std::fmt;
use std::fs;
use std::path::Path;

/// A number of bytes, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Percent of the file system, or of the memory.
    Percent(u8),
}

impl Amount {
    /// Parses a size such as `20G`, or a share such as `50%`. The error describes a valid value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let expected = "a size such as 20G, or a share such as 50%";
        match text.strip_suffix('%') {
            Some(number) => {
                let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
                let percent = number.parse().ok().filter(|percent| *percent <= 100 && is_number);
                percent.map(Self::Percent).ok_or(expected)
            }
            None => crate::sizes::parse(text).map(Self::Bytes).map_err(|_| expected),
        }
    }

    /// Returns the amount in bytes, if there are `total`.
    pub(super) fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// Limits of a cache, as its user states them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most that the cache may take up.
    pub size: Amount,
    /// Least that stays free in the file system of a cache on disk.
    pub min_free: Amount,
}

/// File in the directory of a cache that has the limits of its newest user.
const RECORD: &str = "budget";

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Budget {
    /// Returns the limits that the newest user of the cache in `dir` stated, else the default ones.
    pub fn recorded(dir: &Path) -> Self {
        let text = fs::read_to_string(dir.join(RECORD)).unwrap_or_default();
        let amounts: Vec<_> = text.split_whitespace().flat_map(Amount::parse).collect();
        match amounts[..] {
            [size, min_free] => Self { size, min_free },
            _ => Self::DISK,
        }
    }

    /// Records the limits for [`Self::recorded`].
    pub(super) fn record(self, dir: &Path) {
        // Tools then show, and keep to, other limits.
        let _ = fs::write(dir.join(RECORD), format!("{} {}\n", self.size, self.min_free));
    }

    /// Returns the most bytes that the cache in `dir` may take up, and the least that it leaves
    /// free there.
    pub fn bytes(self, dir: &Path) -> (u64, u64) {
        let total = FileSystem::of(dir).total;
        (self.size.of(total), self.min_free.of(total))
    }

    /// Budget of a cache on disk unless the user states another one.
    pub const DISK: Self = Self { size: Amount::Percent(50), min_free: Amount::Percent(2) };

    /// Budget of a cache in memory unless the user states another one.
    pub const MEMORY: Self = Self { size: Amount::Percent(25), min_free: Amount::Bytes(0) };
}

/// Size of a file system and its free space for users other than root, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem {
    pub(super) total: u64,
    pub(super) free: u64,
}

impl FileSystem {
    /// Returns those of the file system of `dir`. What is unknown does not limit the cache.
    pub(super) fn of(dir: &Path) -> Self {
        match rustix::fs::statvfs(dir) {
            // A tmpfs without a limit reports 0 blocks.
            Ok(found) if found.f_blocks > 0 => Self {
                total: found.f_blocks.saturating_mul(found.f_frsize),
                free: found.f_bavail.saturating_mul(found.f_frsize),
            },
            _ => Self { total: u64::MAX, free: u64::MAX },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_the_newest_user_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Budget::recorded(dir.path()), Budget::DISK);
        let budget = Budget { size: Amount::Bytes(77), min_free: Amount::Percent(3) };
        budget.record(dir.path());
        assert_eq!(Budget::recorded(dir.path()), budget);
        fs::write(dir.path().join(RECORD), "much").unwrap();
        assert_eq!(Budget::recorded(dir.path()), Budget::DISK);
    }

    #[test]
    fn amounts_are_sizes_or_shares() {
        assert_eq!(Amount::parse("64M"), Ok(Amount::Bytes(64 << 20)));
        assert_eq!(Amount::parse("50%"), Ok(Amount::Percent(50)));
        assert_eq!(Amount::parse("100%").unwrap().of(1000), 1000);
        assert_eq!(Amount::parse("5%").unwrap().of(u64::MAX), u64::MAX / 100 * 5);
        for text in ["", "%", "101%", "-1%", "+1%", "1.5%", "M", "5 %"] {
            assert!(Amount::parse(text).is_err(), "{text}");
        }
    }
}
