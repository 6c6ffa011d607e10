//! Version of a file, derived from its attributes.

use std::fmt;
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

/// Types of file systems that take their times from an image (linux/magic.h and the file systems'
/// sources): ISO 9660, UDF, squashfs, EROFS, cramfs and romfs.
const IMAGE_FILE_SYSTEMS: [i128; 6] =
    [0x9660, 0x1501_3346, 0x7371_7368, 0xe0f5_e1e2, 0x28cd_3d45, 0x7275];

/// Attributes of a file that change with its content and survive a restart of the server.
///
/// They include the change time, because no program can set it back: replacing a file by one of the
/// same size and modification time still gives another version. The exception is file systems that
/// take their times from an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    device: u64,
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
            device: stat.st_dev,
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

    /// Returns the number of the device that holds the file's file system.
    pub fn device(&self) -> u64 {
        self.device
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
        let Self { inode, size, modified, changed, .. } = self;
        let text = format!(
            "{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            modified.seconds, modified.nanos, changed.seconds, changed.nanos
        );
        Etag::new(&text).expect("fewer than 128 hex digits, dots and dashes")
    }

    /// Returns the key of this version. It hashes the `ETag` and the number of the file system's
    /// device.
    pub fn key(&self) -> VersionKey {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.device.to_le_bytes()).update(self.etag().as_str().as_bytes());
        VersionKey(hasher.finalize().into())
    }
}

/// Key of a version among the versions of all file systems of this machine. Files of different file
/// systems may have equal `ETag`s, but not equal keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionKey([u8; 32]);

impl VersionKey {
    /// Returns the bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for VersionKey {
    /// Writes 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether the file lies in a file system that takes its times from an image. Another image
/// on the same device can then hold other bytes under an equal version.
pub fn is_in_image(file: &File) -> Result<bool, Errno> {
    let kind = i128::from(rustix::fs::fstatfs(file)?.f_type);
    // Where the type is a signed 32-bit number, that of EROFS is negative.
    Ok(IMAGE_FILE_SYSTEMS.contains(&(kind & 0xffff_ffff)))
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

    fn version(device: u64, time: Timestamp) -> Version {
        Version { device, inode: 1, size: 1, modified: time, changed: time }
    }

    #[test]
    fn equal_etags_of_two_devices_have_different_keys() {
        let time = Timestamp { seconds: 1, nanos: 2 };
        let (one, other) = (version(1, time), version(2, time));
        assert_eq!(one.etag(), other.etag());
        assert_ne!(one.key(), other.key());
        assert_eq!(one.key(), version(1, time).key());
        assert_ne!(one.key(), version(1, Timestamp { seconds: 1, nanos: 3 }).key());
    }

    #[test]
    fn a_temporary_file_lies_in_no_image() {
        assert_eq!(is_in_image(&tempfile::tempfile().unwrap()), Ok(false));
    }

    proptest! {
        #[test]
        fn any_timestamp_gives_a_valid_http_date(seconds: i64, nanos in 0u32..1_000_000_000) {
            for seconds in [seconds, i64::MIN, i64::MAX, -1, 253_402_300_799, 253_402_300_800] {
                let time = Timestamp { seconds, nanos };
                let version = version(1, time);
                let header = httpdate::fmt_http_date(version.modified());
                prop_assert!(httpdate::parse_http_date(&header).is_ok(), "{}", header);
                version.unstable_for(SystemTime::UNIX_EPOCH);
                version.etag();
            }
        }
    }
}
