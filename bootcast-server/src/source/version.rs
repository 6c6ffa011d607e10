//! Version of a file, derived from its attributes.

use std::fs::File;
use std::time::{Duration, SystemTime};

use bootcast_proto::Etag;
use rustix::fs::Stat;
use rustix::io::Errno;

/// Age from which on a version is stable: a later write gets a later change time. The kernel takes
/// change times from a clock that ticks at least every 10 ms (`CONFIG_HZ=100`). The age is two of
/// these ticks; it does not suffice for file systems that store whole seconds.
const STABLE_AGE: Duration = Duration::from_millis(20);

/// Last second of the year 9999, in seconds since 1970. HTTP dates have four digits for the year.
const LAST_HTTP_SECOND: u64 = 253_402_300_799;

/// Attributes of a file that change with its content and survive a restart of the server.
///
/// They include the change time, because no program can set it back: replacing a file by one of the
/// same size and modification time still gives another version. The exception is file systems that
/// take their times from an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    size: u64,
    modified: Timestamp,
    changed: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Version {
    /// Returns the present version of an open file.
    pub fn of_file(file: &File) -> Result<Self, Errno> {
        rustix::fs::fstat(file).map(|stat| Self::of_stat(&stat))
    }

    /// Creates the version that a `stat` result describes.
    pub fn of_stat(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: Timestamp::new(stat.st_mtime, stat.st_mtime_nsec),
            changed: Timestamp::new(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the last modification time, within the range of HTTP dates. A time before 1970
    /// counts as 1970, one after the year 9999 as the last second of that year.
    pub fn modified(&self) -> SystemTime {
        let seconds = u64::try_from(self.modified.seconds).unwrap_or(0).min(LAST_HTTP_SECOND);
        SystemTime::UNIX_EPOCH + Duration::new(seconds, self.modified.nanos)
    }

    /// Returns how long a write may still leave this version unchanged; `None` if the version is
    /// stable, so that every later write changes it.
    pub fn unstable_for(&self, now: SystemTime) -> Option<Duration> {
        let Timestamp { seconds, nanos } = self.changed;
        let changed = Duration::new(u64::try_from(seconds).ok()?, nanos);
        // A change time in the future comes from another clock, such as that of an NFS server.
        let age = now.duration_since(SystemTime::UNIX_EPOCH + changed).ok()?;
        STABLE_AGE.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Returns the `ETag`: inode, size, modification time and change time in hex.
    pub fn etag(&self) -> Etag {
        let Self { inode, size, modified, changed } = self;
        let text = format!(
            "{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            modified.seconds, modified.nanos, changed.seconds, changed.nanos
        );
        Etag::new(&text).expect("fewer than 128 hex digits, dots and dashes")
    }
}

impl Timestamp {
    fn new<N: TryInto<u32>>(seconds: i64, nanos: N) -> Self {
        Self { seconds, nanos: nanos.try_into().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_timestamp_gives_a_valid_http_date(seconds: i64, nanos in 0u32..1_000_000_000) {
            for seconds in [seconds, i64::MIN, i64::MAX, -1, 253_402_300_799, 253_402_300_800] {
                let time = Timestamp { seconds, nanos };
                let version = Version { inode: 1, size: 1, modified: time, changed: time };
                let header = httpdate::fmt_http_date(version.modified());
                prop_assert!(httpdate::parse_http_date(&header).is_ok(), "{}", header);
                version.unstable_for(SystemTime::UNIX_EPOCH);
                version.etag();
            }
        }
    }
}
