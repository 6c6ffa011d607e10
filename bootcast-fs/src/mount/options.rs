//! Options after `-o`, as passed by mount(8), fstab or a person.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountFlags;

use crate::receiver::{Fill, UnicastMode};

mod list;
mod table;

pub use table::help;

/// Default wait limit of a reader under `soft`.
const SOFT_WAIT: Duration = Duration::from_secs(30);

/// Result of all option lists. If options contradict each other, the last one wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether `rw` was given. The mount is read-only anyway; the user gets a warning.
    pub wants_rw: bool,
    /// Flags of mount(2). `ro`, `nosuid` and `nodev` are always among them.
    pub flags: MountFlags,
    /// Whether users other than the mounting one have access.
    pub allow_other: bool,
    /// Whether the kernel checks the mode bits.
    pub default_permissions: bool,
    /// Owner of all files; `None` for the mounting user.
    pub uid: Option<u32>,
    /// Group of all files; `None` for that of the mounting user.
    pub gid: Option<u32>,
    /// Permission bits to remove, at most `0o777`.
    pub umask: Option<u16>,
    /// TCP port of the server's control plane.
    pub port: Option<u16>,
    /// Name or address of the interface that multicast arrives on.
    pub interface: Option<String>,
    /// Where pages are cached.
    pub cache: CacheKind,
    /// Directory of the disk cache.
    pub cache_dir: Option<PathBuf>,
    /// Whether files may be fetched over HTTP.
    pub unicast: UnicastMode,
    /// Which pages of an open file arrive.
    pub fill: Fill,
    /// How long an incomplete file that nobody has open goes on arriving.
    pub linger: Duration,
    /// How long the kernel may use names and attributes without asking again.
    pub attr_ttl: Duration,
    /// Log filter; `None` for the default of [`logging`](super::logging).
    pub log: Option<String>,
    /// Text that replaces the source in `/proc/mounts`.
    pub fsname: Option<OsString>,
    /// Most bytes in one read request of the kernel.
    pub max_read: Option<u32>,
    waiting: Waiting,
    timeo: Option<Duration>,
}

/// Where pages are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// In files that outlive the mount.
    Disk,
    /// In memory, for nodes without a disk.
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Hard,
    Soft,
}

/// Why an option list is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option that neither we nor mount(8) know.
    #[error("unknown option {0:?}: see bootcastfs --help for those there are")]
    Unknown(String),
    /// `remount` is not supported: options hold for the life of a mount.
    #[error("remount is not supported: unmount, then mount with the new options")]
    Remount,
    /// An option that takes no value has one, as in `ro=1`.
    #[error("option {0} takes no value")]
    TakesNoValue(&'static str),
    /// A value is missing or malformed.
    #[error("option {name}={value}: expected {expected}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// Value as given; empty if there was none.
        value: String,
        /// Description of a valid value.
        expected: &'static str,
    },
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
            unicast: UnicastMode::Auto,
            fill: Fill::Full,
            linger: Duration::from_secs(10),
            attr_ttl: Duration::from_secs(1),
            log: None,
            fsname: None,
            max_read: None,
            waiting: Waiting::Hard,
            timeo: None,
        }
    }
}

impl MountOptions {
    /// Parses the values of all `-o`. A comma inside double quotes or after a backslash belongs to
    /// the value.
    pub fn parse<L: AsRef<OsStr>>(lists: &[L]) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for item in lists.iter().flat_map(|text| list::split(text.as_ref().as_bytes())) {
            options.apply(&item)?;
        }
        Ok(options)
    }

    /// How long a reader waits before it gets EIO (`soft`); `None` for ever (`hard`).
    pub fn wait_limit(&self) -> Option<Duration> {
        match self.waiting {
            Waiting::Hard => None,
            Waiting::Soft => Some(self.timeo.unwrap_or(SOFT_WAIT)),
        }
    }

    fn apply(&mut self, item: &list::Item) -> Result<(), OptionError> {
        let Some((name, meaning)) = table::find(&item.name) else {
            return Err(match item.name.as_slice() {
                b"remount" => OptionError::Remount,
                name => OptionError::Unknown(String::from_utf8_lossy(name).into_owned()),
            });
        };
        match (meaning, &item.value) {
            (table::Meaning::Ignored, _) => {}
            (table::Meaning::Flags { set, clear }, None) => {
                self.flags = self.flags.difference(*clear).union(*set);
            }
            (table::Meaning::Switch(switch), None) => switch(self),
            (table::Meaning::Flags { .. } | table::Meaning::Switch(_), Some(_)) => {
                return Err(OptionError::TakesNoValue(name));
            }
            (table::Meaning::Value(set), value) => {
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
    fn nothing_given_means_the_defaults() {
        assert_eq!(parse("").unwrap(), MountOptions::default());
        assert_eq!(parse(",,ro,").unwrap(), MountOptions::default());
    }

    #[test]
    fn our_options_are_understood() {
        let options = parse(
            "allow_other,default_permissions,uid=1000,gid=100,umask=0027,port=9999,interface=eth1,\
             cache=memory,cache_dir=/var/c,unicast=always,fill=demand,linger=1m30s,attr_ttl=0.5,log=debug,max_read=131072",
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
            fill: Fill::Demand,
            linger: Duration::from_secs(90),
            attr_ttl: Duration::from_millis(500),
            log: Some("debug".into()),
            max_read: Some(131_072),
            ..MountOptions::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn rw_is_remembered_but_the_mount_stays_read_only() {
        let options = parse("rw").unwrap();
        assert!(options.wants_rw && options.flags.contains(MountFlags::RDONLY));
        assert!(!parse("rw,ro").unwrap().wants_rw);
        assert!(!parse("defaults").unwrap().wants_rw);
    }

    #[test]
    fn no_option_lifts_nosuid_or_nodev() {
        let always = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        // The first is what mount(8) adds for root; the kernel's default holds for all.
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
    fn generic_options_without_a_meaning_here_are_ignored() {
        let text = "defaults,_netdev,nofail,noauto,users,user=joe,x-systemd.automount,X-mount.mkdir=0755,\
                    comment=hello,async,lazytime,context=\"a:b:c0,c1\",subtype=bootcastfs,nonempty";
        assert_eq!(parse(text).unwrap(), MountOptions::default());
    }

    #[test]
    fn an_unknown_option_is_named() {
        assert_eq!(parse("ro,prot=1"), Err(OptionError::Unknown("prot".into())));
        assert_eq!(parse("remount,ro"), Err(OptionError::Remount));
    }

    #[test]
    fn a_flag_takes_no_value() {
        assert_eq!(parse("allow_other=1"), Err(OptionError::TakesNoValue("allow_other")));
        assert_eq!(parse("noexec=1"), Err(OptionError::TakesNoValue("noexec")));
    }

    #[test]
    fn a_malformed_value_is_answered_with_what_was_expected() {
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
        ] {
            let error = parse(bad).unwrap_err();
            let name = bad.split('=').next().unwrap();
            assert!(error.to_string().starts_with(&format!("option {name}=")), "{bad}: {error}");
            assert!(error.to_string().contains("expected "), "{bad}: {error}");
        }
    }

    #[test]
    fn a_reader_waits_for_ever_unless_soft() {
        assert_eq!(parse("timeo=5").unwrap().wait_limit(), None);
        assert_eq!(parse("soft").unwrap().wait_limit(), Some(SOFT_WAIT));
        assert_eq!(parse("timeo=2m,soft").unwrap().wait_limit(), Some(Duration::from_secs(120)));
        assert_eq!(parse("soft,hard").unwrap().wait_limit(), None);
    }

    #[test]
    fn all_pages_arrive_unless_only_those_are_wanted_that_are_read() {
        assert_eq!(parse("").unwrap().fill, Fill::Full);
        assert_eq!(parse("fill=demand").unwrap().fill, Fill::Demand);
        assert_eq!(parse("fill=demand,fill=full").unwrap().fill, Fill::Full);
    }

    #[test]
    fn several_lists_count_as_one() {
        let options = MountOptions::parse(&["port=1", "port=2,allow_other"]).unwrap();
        assert_eq!((options.port, options.allow_other), (Some(2), true));
    }

    #[test]
    fn a_quoted_comma_belongs_to_the_value() {
        let log = Some("info,bootcast_fs=debug".to_owned());
        assert_eq!(parse("log=\"info,bootcast_fs=debug\",ro").unwrap().log, log);
        assert_eq!(parse("log=info\\,bootcast_fs=debug,ro").unwrap().log, log);
    }

    #[test]
    fn a_directory_may_have_a_name_of_any_bytes() {
        let text = OsString::from_vec(b"cache_dir=/\xff\\\\x".to_vec());
        let dir = MountOptions::parse(&[text]).unwrap().cache_dir.unwrap();
        assert_eq!(dir.as_os_str().as_bytes(), b"/\xff\\x");
    }

    #[test]
    fn the_table_of_the_readme_has_the_options_and_their_defaults() {
        let page = include_str!("../../../README.md");
        let table = page.split("### Options of the mount").nth(1).unwrap();
        let table = table.split("\n## ").next().unwrap();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.replace("\\|", "/"))
            .map(|line| line.leak().trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        let told = |name: &str| rows.iter().any(|row| row[0].contains(&format!("`{name}")));
        for name in help().lines().filter_map(|line| line.split_whitespace().next()) {
            let name = name.split('=').next().unwrap();
            let is_rare = ["ro", "rw", "fsname", "max_read"].contains(&name);
            assert!(is_rare || told(name), "{name} is not in the table");
        }
        for row in &rows {
            let default = row[1].trim_matches('`');
            let name = row[0].trim_matches('`').split('=').next().unwrap();
            if ["cache", "unicast", "fill", "linger", "attr_ttl"].contains(&name) {
                assert_eq!(parse(&format!("{name}={default}")), parse(""), "{name}");
            }
        }
        let text = include_str!("../../../docs/SEMANTICS.md");
        let soft = format!("`timeo=` ({} s unless given)", SOFT_WAIT.as_secs());
        let ttl = format!("`attr_ttl=` ({} s)", MountOptions::default().attr_ttl.as_secs());
        assert!(text.contains(&soft) && text.contains(&ttl), "{soft}, {ttl}");
    }

    #[test]
    fn every_option_of_ours_is_in_the_help() {
        for name in
            ["allow_other", "fill=full|demand", "timeo=TIME", "cache_dir=DIR", "hard", "log=FILTER"]
        {
            assert!(help().contains(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = MountOptions::parse(&[OsString::from_vec(bytes)]);
        }

        #[test]
        fn no_value_panics(name in "(port|uid|umask|linger|attr_ttl|timeo|max_read|log|cache)",
                           value in "[0-9a-z.\"=+-]{0,24}") {
            let _ = parse(&format!("{name}={value}"));
        }
    }
}
