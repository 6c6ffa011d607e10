//! Mount options: the lists after `-o`, from mount(8), fstab or the command line.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use bootcast_proto::ContentId;
use rustix::mount::MountFlags;

use crate::cache::{Amount, Budget};
use crate::receiver::{FillPolicy, UnicastMode, Verify};

mod list;
mod table;

pub use table::help;

/// Default of `timeo=`: how long a call waits under `soft` before it fails with EIO.
const DEFAULT_TIMEO: Duration = Duration::from_secs(30);

/// Mount options of all lists. Where options contradict each other, the last one wins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option without a value")]
pub struct MountOptions {
    /// Whether `rw` was given. The mount is read-only all the same, and the user gets a warning.
    pub wants_rw: bool,
    /// Flags of mount(2). `ro`, `nosuid` and `nodev` are always among them.
    pub flags: MountFlags,
    /// Whether users other than the mounting user have access.
    pub allow_other: bool,
    /// Whether the kernel enforces the mode bits.
    pub default_permissions: bool,
    /// Owner of all files; `None` for the mounting user.
    pub uid: Option<u32>,
    /// Group of all files; `None` for the group of the mounting user.
    pub gid: Option<u32>,
    /// Permission bits to remove from all modes, at most `0o777`.
    pub umask: Option<u16>,
    /// TCP port of the server's control plane.
    pub port: Option<u16>,
    /// Name or address of the interface that multicast arrives on.
    pub interface: Option<String>,
    /// Storage of received pages.
    pub cache: CacheKind,
    /// Directory of the disk cache.
    pub cache_dir: Option<PathBuf>,
    /// Most that the cache may take up; `None` for the default of its kind.
    pub cache_size: Option<Amount>,
    /// Least that stays free beside a cache on disk; `None` for the default.
    pub cache_min_free: Option<Amount>,
    /// Rule for fetching pages over HTTP instead of receiving them by multicast.
    pub unicast: UnicastMode,
    /// Whether the kernel may read the cache files of complete files itself.
    pub passthrough: Passthrough,
    /// Pages of an open file that are received: all, or those that readers ask for.
    pub fill: FillPolicy,
    /// Proof that bytes need before they are read.
    pub verify: Verify,
    /// File that names the contents of all files; `None` for any contents.
    pub pins: Option<PathBuf>,
    /// Content of the single file that the source names; `None` for any content.
    pub b3: Option<ContentId>,
    /// Whether `file` was given: the source names a single file.
    file: bool,
    /// Time for which an incomplete file is still received after its last close.
    pub linger: Duration,
    /// Time for which the kernel may use names and attributes without asking again.
    pub attr_ttl: Duration,
    /// Log filter; `None` for the default of [`logging`](super::logging).
    pub log: Option<String>,
    /// Address at which metrics are served; `None` for nowhere.
    pub metrics: Option<MetricsAddress>,
    /// Text to show in `/proc/mounts` instead of the source.
    pub fsname: Option<OsString>,
    /// Whether the process serves a root file system.
    pub root_fs: bool,
    /// Whether a parent process keeps the mount when the serving process is killed.
    pub keeper: bool,
    /// Largest read request of the kernel, in bytes; `None` for the kernel's own limit.
    pub max_read: Option<u32>,
    /// Whether a mount whose server does not answer shows what the cache holds.
    pub offline: Offline,
    /// Whether the command returns before the mount is there, if the server does not answer.
    pub is_background: bool,
    /// Value of `retry=`.
    retry: Option<Duration>,
    /// Last of the options `hard` and `soft`.
    waiting: Waiting,
    /// Value of `timeo=`, which has an effect only with `soft`.
    timeo: Option<Duration>,
}

/// Address of a socket that answers requests for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Address and port.
    Tcp(SocketAddr),
    /// Absolute path of a socket in the file system.
    Unix(PathBuf),
}

/// Storage of received pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Files on disk, which outlive the mount.
    Disk,
    /// Memory, for machines without a disk.
    Memory,
}

/// Time limit of calls that wait for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Calls wait until the server has answered and the pages have arrived.
    Hard,
    /// Calls fail with EIO after the wait limit.
    Soft,
}

/// Reason why an option list is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option that neither `bootcastfs` nor mount(8) knows.
    #[error("unknown option {0:?}: bootcastfs --help lists the options")]
    Unknown(String),
    /// `remount` is not supported, because options hold for the life of a mount.
    #[error("remount is not supported: unmount, then mount with the new options")]
    Remount,
    /// An option that takes no value has one, as in `ro=1`.
    #[error("option {0} takes no value")]
    TakesNoValue(&'static str),
    /// Options of a directory and of a single file were given together.
    #[error(
        "pins= excludes b3= and file: give b3= if the source is a single file, pins= if it is a \
         directory"
    )]
    PinsAndFile,
    /// A value is missing or malformed.
    #[error("option {name}={value}: expected {expected}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// Value as typed; empty if there was none.
        value: String,
        /// Description of a valid value.
        expected: &'static str,
    },
}

/// Whether a mount can begin without its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// If the cache remembers names of the server.
    Allowed,
    /// Never.
    Refused,
}

/// Whether the kernel may read cache files without this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Where it can.
    Allowed,
    /// Never.
    Refused,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            wants_rw: false,
            flags: MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            allow_other: false,
            default_permissions: false,
            uid: None,
            gid: None,
            umask: None,
            port: None,
            interface: None,
            cache: CacheKind::Disk,
            cache_dir: None,
            cache_size: None,
            cache_min_free: None,
            unicast: UnicastMode::Auto,
            passthrough: Passthrough::Allowed,
            fill: FillPolicy::AtOpen,
            verify: Verify::Leaf,
            pins: None,
            b3: None,
            file: false,
            linger: Duration::from_secs(10),
            attr_ttl: Duration::from_secs(1),
            log: None,
            metrics: None,
            fsname: None,
            root_fs: false,
            keeper: false,
            max_read: None,
            offline: Offline::Allowed,
            is_background: false,
            retry: None,
            waiting: Waiting::Hard,
            timeo: None,
        }
    }
}

impl MountOptions {
    /// Parses the option lists of all `-o`. A comma inside double quotes or after a backslash is
    /// part of a value.
    pub fn parse<L: AsRef<OsStr>>(lists: &[L]) -> Result<Self, OptionError> {
        Self::parse_items(lists, false)
    }

    /// Like [`Self::parse`], but ignores unknown options.
    pub fn parse_sloppy<L: AsRef<OsStr>>(lists: &[L]) -> Result<Self, OptionError> {
        Self::parse_items(lists, true)
    }

    fn parse_items<L: AsRef<OsStr>>(lists: &[L], is_sloppy: bool) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for item in lists.iter().flat_map(|text| list::split(text.as_ref().as_bytes())) {
            match options.apply(&item) {
                Err(OptionError::Unknown(_)) if is_sloppy => {}
                applied => applied?,
            }
        }
        if options.pins.is_some() && options.is_single_file() {
            return Err(OptionError::PinsAndFile);
        }
        Ok(options)
    }

    /// Whether the source names a single file, and not a directory.
    pub fn is_single_file(&self) -> bool {
        self.file || self.b3.is_some()
    }

    /// Returns how long a call waits before it fails with EIO; `None` under `hard`, which sets no
    /// limit.
    pub fn wait_limit(&self) -> Option<Duration> {
        match self.waiting {
            Waiting::Hard => None,
            Waiting::Soft => Some(self.timeo.unwrap_or(DEFAULT_TIMEO)),
        }
    }

    /// Returns how long a mount asks a server that does not answer. Without `retry=`, the times are
    /// those of mount.nfs(8).
    pub fn retry_limit(&self) -> Duration {
        let minutes = |number: u64| Duration::from_secs(60 * number);
        self.retry.unwrap_or(minutes(if self.is_background { 10_000 } else { 2 }))
    }

    /// Returns the limits of the cache.
    pub fn budget(&self) -> Budget {
        let default = match self.cache {
            CacheKind::Disk => Budget::DISK,
            CacheKind::Memory => Budget::MEMORY,
        };
        Budget {
            size: self.cache_size.unwrap_or(default.size),
            min_free: self.cache_min_free.unwrap_or(default.min_free),
        }
    }

    fn apply(&mut self, item: &list::Item) -> Result<(), OptionError> {
        let Some((name, effect)) = table::find(&item.name) else {
            return Err(match item.name.as_slice() {
                b"remount" => OptionError::Remount,
                name => OptionError::Unknown(String::from_utf8_lossy(name).into_owned()),
            });
        };
        match (effect, &item.value) {
            (table::Effect::Ignored, _) => {}
            (table::Effect::Flags { set, clear }, None) => {
                self.flags = self.flags.difference(*clear).union(*set);
            }
            (table::Effect::Switch(switch), None) => switch(self),
            (table::Effect::Flags { .. } | table::Effect::Switch(_), Some(_)) => {
                return Err(OptionError::TakesNoValue(name));
            }
            (table::Effect::Value(set), value) => {
                let value = OsStr::from_bytes(value.as_deref().unwrap_or_default());
                set(self, value).map_err(|expected| OptionError::Value {
                    name,
                    value: value.to_string_lossy().into_owned(),
                    expected,
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse(&[text])
    }

    #[test]
    fn an_empty_list_gives_the_defaults() {
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert_eq!(parse(",,ro,").unwrap(), MountOptions::default());
    }

    #[test]
    fn every_option_of_bootcastfs_is_parsed() {
        let options = parse(
            "allow_other,default_permissions,uid=1000,gid=100,umask=0027,port=9999,interface=eth1,\
             cache=memory,cache_dir=/var/c,unicast=always,fill=demand,pins=/etc/pins,linger=1m30s,\
             passthrough=no,attr_ttl=0.5,log=debug,metrics=[::1]:9555,root_fs,keeper,\
             max_read=131072",
        )
        .unwrap();
        let expected = MountOptions {
            allow_other: true,
            default_permissions: true,
            uid: Some(1000),
            gid: Some(100),
            umask: Some(0o27),
            port: Some(9999),
            interface: Some("eth1".into()),
            cache: CacheKind::Memory,
            cache_dir: Some("/var/c".into()),
            unicast: UnicastMode::Always,
            passthrough: Passthrough::Refused,
            fill: FillPolicy::Never,
            pins: Some("/etc/pins".into()),
            linger: Duration::from_secs(90),
            attr_ttl: Duration::from_millis(500),
            log: Some("debug".into()),
            metrics: Some(MetricsAddress::Tcp("[::1]:9555".parse().unwrap())),
            root_fs: true,
            keeper: true,
            max_read: Some(131_072),
            ..MountOptions::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn metrics_are_served_at_an_address_with_a_port_or_at_an_absolute_path() {
        let options = parse("metrics=/run/bootcast/m").unwrap();
        assert_eq!(options.metrics, Some(MetricsAddress::Unix("/run/bootcast/m".into())));
        for wrong in ["9555", "localhost:9555", "m", "", "127.0.0.1"] {
            assert!(parse(&format!("metrics={wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sloppy_ignores_unknown_options_and_no_wrong_values() {
        let options = MountOptions::parse_sloppy(&["bogus,bogus=1,fill=demand"]).unwrap();
        assert_eq!(options.fill, FillPolicy::Never);
        assert!(MountOptions::parse_sloppy(&["fill=bogus"]).is_err());
    }

    #[test]
    fn rw_is_recorded_but_the_mount_stays_read_only() {
        let options = parse("rw").unwrap();
        assert!(options.wants_rw && options.flags.contains(MountFlags::RDONLY));
        assert!(!parse("rw,ro").unwrap().wants_rw);
        assert!(!parse("defaults").unwrap().wants_rw);
    }

    #[test]
    fn no_option_lifts_nosuid_or_nodev() {
        let always = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        // mount(8) adds the options of the first text for root.
        for text in ["rw,dev,suid", "defaults", "nodev,nosuid,dev,suid", "users,exec,defaults"] {
            assert_eq!(parse(text).unwrap().flags, always, "{text}");
        }
    }

    #[test]
    fn generic_flags_reach_the_kernel_and_the_last_one_wins() {
        let flags = parse("noexec,noatime,nodiratime,exec,strictatime").unwrap().flags;
        assert!(flags.contains(MountFlags::STRICTATIME | MountFlags::NODIRATIME));
        assert!(!flags.intersects(MountFlags::NOEXEC | MountFlags::NOATIME));
    }

    #[test]
    fn generic_options_without_an_effect_are_ignored() {
        let text = "defaults,_netdev,nofail,noauto,users,user=joe,x-systemd.automount,\
                    X-mount.mkdir=0755,comment=hello,async,lazytime,context=\"a:b:c0,c1\",\
                    subtype=bootcastfs,nonempty";
        assert_eq!(parse(text).unwrap(), MountOptions::default());
    }

    #[test]
    fn the_error_names_an_unknown_option() {
        assert_eq!(parse("ro,prot=1"), Err(OptionError::Unknown("prot".into())));
        assert_eq!(parse("remount,ro"), Err(OptionError::Remount));
    }

    #[test]
    fn a_flag_takes_no_value() {
        assert_eq!(parse("allow_other=1"), Err(OptionError::TakesNoValue("allow_other")));
        assert_eq!(parse("noexec=1"), Err(OptionError::TakesNoValue("noexec")));
    }

    #[test]
    fn the_error_for_a_malformed_value_says_what_was_expected() {
        for bad in [
            "port",
            "port=",
            "port=0",
            "port=x",
            "uid=-1",
            "umask=8",
            "umask=1000",
            "cache=ram",
            "unicast=yes",
            "cache_dir=",
            "fill=",
            "fill=half",
            "passthrough=",
            "passthrough=maybe",
            "linger=soon",
            "attr_ttl=-1",
            "timeo=0",
            "interface=",
            "max_read=0",
            "log=",
            "log==[",
            "attr_ttl=1e30",
            "timeo=NaN",
            "fsname=",
            "b3=0123",
        ] {
            let error = parse(bad).unwrap_err();
            let name = bad.split('=').next().unwrap();
            assert!(error.to_string().starts_with(&format!("option {name}=")), "{bad}: {error}");
            assert!(error.to_string().contains("expected "), "{bad}: {error}");
        }
    }

    #[test]
    fn calls_wait_without_a_limit_unless_soft() {
        assert_eq!(parse("timeo=5").unwrap().wait_limit(), None);
        assert_eq!(parse("soft").unwrap().wait_limit(), Some(DEFAULT_TIMEO));
        assert_eq!(parse("timeo=2m,soft").unwrap().wait_limit(), Some(Duration::from_secs(120)));
        assert_eq!(parse("soft,hard").unwrap().wait_limit(), None);
    }

    #[test]
    fn fill_is_full_unless_demand_is_given() {
        assert_eq!(parse("").unwrap().fill, FillPolicy::AtOpen);
        assert_eq!(parse("fill=demand").unwrap().fill, FillPolicy::Never);
        assert_eq!(parse("fill=eager").unwrap().fill, FillPolicy::AtOpen);
        assert_eq!(parse("fill=demand,fill=full").unwrap().fill, FillPolicy::AfterIntent);
    }

    #[test]
    fn a_single_file_is_pinned_by_its_hash_and_not_by_a_list() {
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(parse(&format!("b3={hash}")).unwrap().b3, hash.parse().ok());
        assert!(parse(&format!("b3={hash},file")).unwrap().is_single_file());
        assert!(!parse("").unwrap().is_single_file());
        for both in
            [format!("pins=/p,b3={hash}"), format!("b3={hash},pins=/p"), "file,pins=/p".into()]
        {
            let error = parse(&both).unwrap_err();
            assert_eq!(error, OptionError::PinsAndFile);
            assert!(error.to_string().contains("give b3= if the source is a single file"));
        }
    }

    #[test]
    fn several_lists_are_parsed_as_one() {
        let options = MountOptions::parse(&["port=1", "port=2,allow_other"]).unwrap();
        assert_eq!((options.port, options.allow_other), (Some(2), true));
    }

    #[test]
    fn a_quoted_comma_is_part_of_the_value() {
        let log = Some("info,bootcast_fs=debug".to_owned());
        assert_eq!(parse("log=\"info,bootcast_fs=debug\",ro").unwrap().log, log);
        assert_eq!(parse("log=info\\,bootcast_fs=debug,ro").unwrap().log, log);
    }

    #[test]
    fn a_cache_directory_may_have_any_bytes_in_its_name() {
        let text = OsString::from_vec(b"cache_dir=/\xff\\\\x".to_vec());
        let dir = MountOptions::parse(&[text]).unwrap().cache_dir.unwrap();
        assert_eq!(dir.as_os_str().as_bytes(), b"/\xff\\x");
    }

    #[test]
    fn the_readme_and_semantics_state_the_options_and_their_defaults() {
        let page = include_str!("../../../README.md");
        let table = page.split("### Options of the mount").nth(1).unwrap();
        let table = table.split("\n## ").next().unwrap();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.replace("\\|", "/"))
            .map(|line| line.leak().trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        let is_documented =
            |name: &str| rows.iter().any(|row| row[0].contains(&format!("`{name}")));
        for name in help().lines().filter_map(|line| line.split_whitespace().next()) {
            let name = name.split('=').next().unwrap();
            let is_rare = ["ro", "rw", "fsname", "max_read"].contains(&name);
            assert!(is_rare || is_documented(name), "{name} is not in the table");
        }
        for row in &rows {
            let default = row[1].trim_matches('`');
            let name = row[0].trim_matches('`').split('=').next().unwrap();
            let stated = "cache unicast fill passthrough verify linger attr_ttl offline".split(' ');
            if stated.clone().any(|stated| stated == name) {
                assert_eq!(parse(&format!("{name}={default}")), parse(""), "{name}");
            }
        }
        let text = include_str!("../../../docs/SEMANTICS.md");
        let soft = format!("`timeo=` ({} s unless given)", DEFAULT_TIMEO.as_secs());
        let ttl = format!("`attr_ttl=` ({} s)", MountOptions::default().attr_ttl.as_secs());
        assert!(text.contains(&soft) && text.contains(&ttl), "{soft}, {ttl}");
    }

    #[test]
    fn a_mount_asks_its_server_for_minutes_and_longer_in_the_background() {
        for (text, minutes) in
            [("", 2), ("bg", 10_000), ("bg,fg", 2), ("retry=0", 0), ("bg,retry=7", 7)]
        {
            assert_eq!(parse(text).unwrap().retry_limit().as_secs(), 60 * minutes, "{text}");
        }
        assert!(parse("retry=1m").is_err() && parse("retry=").is_err() && parse("bg=1").is_err());
    }

    #[test]
    fn the_help_lists_the_options_of_bootcastfs() {
        for name in [
            "allow_other",
            "fill=eager|full|demand",
            "timeo=TIME",
            "cache_dir=DIR",
            "hard",
            "log=FILTER",
        ] {
            assert!(help().contains(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = MountOptions::parse(&[OsString::from_vec(bytes)]);
        }

        #[test]
        fn arbitrary_values_do_not_panic(
            name in "(port|uid|umask|linger|attr_ttl|timeo|max_read|log|cache)",
            value in "[0-9a-z.\"=+-]{0,24}"
        ) {
            let _ = parse(&format!("{name}={value}"));
        }
    }
}
