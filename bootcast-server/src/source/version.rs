//! Which content a file has, told from outside.

use std::fs::File;
use std::time::{Duration, SystemTime};

use bootcast_proto::Etag;
use rustix::fs::Stat;
use rustix::io::Errno;

/// Two writes may leave the same change time: the kernel takes it from a clock that steps with the timer
/// interrupt, every 10 ms at the slowest (`CONFIG_HZ=100`). A change time of this age is not given again.
/// File systems that keep whole seconds are not helped.
const SETTLED_AGE: Duration = Duration::from_millis(20);

/// Attributes that change whenever the content may have changed, and survive a restart.
///
/// The change time is among them because nobody can set it back: a file that was replaced by one of the
/// same size and modification time is another version.
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
    /// Of an open file, as it is now.
    pub fn of_file(file: &File) -> Result<Self, Errno> {
        rustix::fs::fstat(file).map(|stat| Self::of_stat(&stat))
    }

    /// Of whatever was looked at.
    pub fn of_stat(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: Timestamp::new(stat.st_mtime, stat.st_mtime_nsec),
            changed: Timestamp::new(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Last modification. Times before 1970 count as 1970.
    pub fn modified(&self) -> SystemTime {
        let seconds = u64::try_from(self.modified.seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::new(seconds, self.modified.nanos)
    }

    /// How long it may still be left as it is by another write; `None`: every write changes it.
    pub fn unsettled_for(&self, now: SystemTime) -> Option<Duration> {
        let Timestamp { seconds, nanos } = self.changed;
        let changed = Duration::new(u64::try_from(seconds).ok()?, nanos);
        // A time to come is of another clock, which ours says nothing about.
        let age = now.duration_since(SystemTime::UNIX_EPOCH + changed).ok()?;
        SETTLED_AGE.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Its name on the wire: inode, size, modification and change time, in hex.
    pub fn etag(&self) -> Etag {
        let Self { inode, size, modified, changed } = self;
        let text = format!(
            "{inode:x}-{size:x}-{:x}.{:x}-{:x}.{:x}",
            modified.seconds, modified.nanos, changed.seconds, changed.nanos
        );
        Etag::new(&text).expect("hex digits, dots and dashes, below 128")
    }
}

impl Timestamp {
    fn new<N: TryInto<u32>>(seconds: i64, nanos: N) -> Self {
        Self { seconds, nanos: nanos.try_into().unwrap_or(0) }
    }
}
