//! Version of a file, derived from its attributes.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bootcast_proto::Etag;
use rustix::fs::{AtFlags, Stat, StatxFlags};
use rustix::io::Errno;

/// Age from which on a version is stable: a later write gets a later change time. The kernel takes
/// change times from a clock that ticks at least every 10 ms (`CONFIG_HZ=100`). The age is two of
/// these ticks.
const STABLE_AGE: Duration = Duration::from_millis(20);

/// Time to add to [`STABLE_AGE`] on file systems that store whole seconds: FAT stores times in
/// steps of two seconds.
const WHOLE_SECONDS_STEP: Duration = Duration::from_secs(2);

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a number that no later mount gets. Older kernels ignore it,
/// and report a number that a later mount may get.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Length of an encoded version in bytes.
pub const VERSION_LEN: usize = 7 * 8;

/// Last second of the year 9999, in seconds since 1970. HTTP dates have four digits for the year.
const LAST_HTTP_SECOND: u64 = 253_402_300_799;

/// Types of file systems that take their times from an image (linux/magic.h and the file systems'
/// sources): ISO 9660, UDF, squashfs, EROFS, cramfs and romfs.
const IMAGE_FILE_SYSTEMS: [i128; 6] =
    [0x9660, 0x1501_3346, 0x7371_7368, 0xe0f5_e1e2, 0x28cd_3d45, 0x7275];

/// Attributes of a file that change with its content and survive a restart of the server.
///
/// They include the change time, because no program can set it back: replacing a file by one of the
/// same size and modification time still gives another version. File systems that take their times
/// from an image are the exception; there the mount tells two images apart while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: Timestamp,
    changed: Timestamp,
    /// Mount of a file system that takes its times from an image; `None` of all others.
    mount: Option<u64>,
    /// Tells contents apart that the file had under equal attributes; 0 of the first one.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Version {
    /// Returns the present version of an open file, or of an `O_PATH` descriptor.
    pub fn of_file(file: impl AsFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self::of_stat(&stat, image_mount(file)?))
    }

    /// Creates the version that a `stat` result describes. `mount` is that of `image_mount`.
    pub fn of_stat(stat: &Stat, mount: Option<u64>) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: Timestamp::new(stat.st_mtime, stat.st_mtime_nsec),
            changed: Timestamp::new(stat.st_ctime, stat.st_ctime_nsec),
            mount,
            generation: 0,
        }
    }

    /// Returns the version of another content under the same attributes.
    #[must_use]
    pub fn with_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// Returns the number that tells contents under equal attributes apart.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the file lies in a file system that takes its times from an image.
    pub fn is_in_image(&self) -> bool {
        self.mount.is_some()
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
        let has_whole_seconds = nanos == 0 && self.modified.nanos == 0;
        let step = if has_whole_seconds { WHOLE_SECONDS_STEP } else { Duration::ZERO };
        (STABLE_AGE + step).checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Returns the `ETag`: inode, size, modification time and change time in hex, and the
    /// generation unless it is 0.
    pub fn etag(&self) -> Etag {
        let Self { inode, size, modified, changed, generation, .. } = self;
        let attributes = format!(
            "{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            modified.seconds, modified.nanos, changed.seconds, changed.nanos
        );
        let text = match generation {
            0 => attributes,
            generation => format!("{attributes}-{generation:x}"),
        };
        Etag::new(&text).expect("fewer than 128 hex digits, dots and dashes")
    }

    /// Whether the `ETag`s of two versions differ in the generation at most.
    pub fn has_equal_attributes(&self, other: &Self) -> bool {
        self.with_generation(0).etag() == other.with_generation(0).etag()
    }

    /// Encodes the version, without the mount, which means nothing to another process: seven
    /// little-endian numbers.
    pub fn to_bytes(&self) -> [u8; VERSION_LEN] {
        let Self { device, inode, size, modified, changed, mount: _, generation } = self;
        let nanos = u64::from(modified.nanos) | u64::from(changed.nanos) << 32;
        let times = [modified.seconds.cast_unsigned(), changed.seconds.cast_unsigned(), nanos];
        let numbers = [*device, *inode, *size, *generation].into_iter().chain(times);
        let mut bytes = [0; VERSION_LEN];
        for (part, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`Self::to_bytes`] encoded.
    pub fn from_bytes(bytes: &[u8; VERSION_LEN]) -> Self {
        let mut numbers = [0; VERSION_LEN / 8];
        for (number, part) in numbers.iter_mut().zip(bytes.as_chunks().0) {
            *number = u64::from_le_bytes(*part);
        }
        let [device, inode, size, generation, modified, changed, nanos] = numbers;
        let modified = Timestamp::new(modified.cast_signed(), nanos & 0xffff_ffff);
        let changed = Timestamp::new(changed.cast_signed(), nanos >> 32);
        Self { device, inode, size, modified, changed, mount: None, generation }
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
    /// Wraps the bytes of a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

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

/// Mounts that were met, and whether their file systems take their times from an image.
static MOUNTS: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());

/// Maximum number of mounts that are remembered.
const MOUNTS_MAX: usize = 1024;

/// Returns the mount of a file or directory in a file system that takes its times from an image;
/// `None` of all others. Another image on the same device can hold other bytes under equal
/// attributes.
pub(super) fn image_mount(file: impl AsFd) -> Result<Option<u64>, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&file, c"", flags, StatxFlags::MNT_ID | MNT_ID_UNIQUE)?;
    // Kernels before 5.8 report 0 for all mounts.
    let mount = stat.stx_mnt_id;
    // A panic cannot leave the map half changed.
    let mounts = || MOUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = mounts().get(&mount).copied();
    if let Some(is_image) = known.filter(|_| mount != 0) {
        return Ok(is_image.then_some(mount));
    }
    // Asks the server of a network file system: therefore once for each mount.
    let is_image = is_in_image(file)?;
    let mut mounts = mounts();
    if mounts.len() >= MOUNTS_MAX {
        mounts.clear();
    }
    mounts.insert(mount, is_image);
    Ok(is_image.then_some(mount))
}

/// Returns whether a file or directory lies in a file system that takes its times from an image.
fn is_in_image(file: impl AsFd) -> Result<bool, Errno> {
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
        let (modified, changed) = (time, time);
        Version { device, inode: 1, size: 1, modified, changed, mount: None, generation: 0 }
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
        assert_eq!(image_mount(tempfile::tempfile().unwrap()), Ok(None));
    }

    #[test]
    fn each_generation_has_an_etag_and_a_key_of_its_own() {
        let first = version(1, Timestamp { seconds: 1, nanos: 2 });
        let second = first.with_generation(0x5f);
        assert_eq!(second.etag().as_str(), format!("{}-5f", first.etag().as_str()));
        assert_ne!(first.key(), second.key());
        assert!(first.has_equal_attributes(&second));
    }

    #[test]
    fn where_times_are_whole_seconds_a_version_is_stable_two_seconds_later() {
        for (nanos, unstable_ms) in [(0, 2020), (1, 20)] {
            let version = version(1, Timestamp { seconds: 100, nanos });
            let changed = SystemTime::UNIX_EPOCH + Duration::new(100, nanos);
            let expected = Duration::from_millis(unstable_ms);
            assert_eq!(version.unstable_for(changed), Some(expected));
            assert_eq!(version.unstable_for(changed + expected), None);
        }
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
                let version = version.with_generation(nanos.into());
                prop_assert_eq!(Version::from_bytes(&version.to_bytes()), version);
            }
        }
    }
}
