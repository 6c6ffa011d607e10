//! Command line: the arguments as typed ([`Args`]) and the configuration they give ([`Config`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bootcast_proto::limits::LEASE_MAX;
use bootcast_proto::{BitRate, DEFAULT_PORT, Layout, PageSize};
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::api::Names;
use crate::cast::{CastPolicy, GroupPool, GroupPoolError, PlainTrust};
use crate::io::interface::InterfaceName;

/// Sends the files of a directory by UDP multicast, each page once for all clients that want it.
#[derive(Debug, Parser)]
#[command(
    name = "bootcast-server",
    version,
    max_term_width = 100,
    args_override_self = true,
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// Command to run instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    directories: Directories,

    /// Hash the served files ahead, so that no client waits for it: one at a time, at idle
    /// priority, and new ones within about a minute
    #[arg(long, env = "BOOTCAST_PREHASH")]
    prehash: bool,

    /// Address and TCP port on which HTTP requests are answered; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
        env = "BOOTCAST_LISTEN"
    )]
    listen: SocketAddr,

    /// Name by which clients may call the server, beside its addresses, such as head.example; may
    /// be given several times, or with commas between. Requests for other names are refused, so that
    /// no web page can read files under a name of its own [default: every name]
    #[arg(long, value_name = "NAME", value_delimiter = ',', env = "BOOTCAST_HOST")]
    host: Vec<String>,

    /// Interface that sends the multicast datagrams, by its name or its IPv4 address [default: the
    /// one that the kernel routes the groups through, else the only one that is up]
    #[arg(long, value_name = "NAME|ADDR", env = "BOOTCAST_INTERFACE")]
    interface: Option<InterfaceName>,

    /// Range of multicast groups; each cast takes one of them
    #[arg(long, value_name = "CIDR", default_value = "239.255.0.0/16", env = "BOOTCAST_GROUPS")]
    groups: Ipv4Net,

    /// UDP port of the pages, in every group
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 9000,
        value_parser = clap::value_parser!(u16).range(1..),
        env = "BOOTCAST_DATA_PORT"
    )]
    data_port: u16,

    /// UDP port of the repair channel, in every group [default: --data-port + 1]
    #[arg(
        long,
        value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..),
        env = "BOOTCAST_REPAIR_PORT"
    )]
    repair_port: Option<u16>,

    /// Blocks in a window of the repair code, 1 to 512: more blocks survive longer loss bursts, but
    /// delay repair [default: as many as --rate sends in 0.2 s, at least 16]
    #[arg(
        long,
        value_name = "BLOCKS",
        value_parser = clap::value_parser!(u32).range(1..=512),
        env = "BOOTCAST_INTERLEAVE"
    )]
    interleave: Option<u32>,

    /// Send no repair symbols; lost pages are repaired by sending the file again
    #[arg(long, env = "BOOTCAST_NO_REPAIR")]
    no_repair: bool,

    /// Send datagrams without tags. This saves a few per cent of CPU at both ends, but a host that
    /// forges the server's address can make clients store wrong bytes
    #[arg(long, env = "BOOTCAST_NO_TAG")]
    no_tag: bool,

    /// Bytes of a page, 1 to 65491 [default: the most that fits the interface's MTU: 1456 at an MTU
    /// of 1500; on loopback at most 1456]
    #[arg(long, value_name = "BYTES", value_parser = page_size, env = "BOOTCAST_PAGE_SIZE")]
    page_size: Option<PageSize>,

    /// Upper bound of the sending rate of all casts together, at least 100kbit, such as 900mbit or
    /// 2.5gbit. It counts bits on the wire, Ethernet framing included. Casts begin at a rate that
    /// is named here, and otherwise find their rate from reports [default: 97 % of the interface's
    /// speed, or of 1gbit if that is unknown; on loopback 10gbit]
    #[arg(long, value_name = "RATE", env = "BOOTCAST_RATE")]
    rate: Option<BitRate>,

    /// TTL of the datagrams: the number of routers that they may cross, plus one
    #[arg(
        long,
        value_name = "HOPS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..),
        env = "BOOTCAST_TTL"
    )]
    ttl: u8,

    /// Passes over the file, counted from its join, after which a plain member is forgotten
    #[arg(long, value_name = "PASSES", default_value = "5", env = "BOOTCAST_IDLE_PASSES")]
    idle_passes: NonZeroU32,

    /// What members get that know only the base protocol: all their passes, as many passes as a
    /// budget of their host allows, or a refusal
    #[arg(long, value_enum, default_value = "limited", env = "BOOTCAST_PLAIN")]
    plain: PlainArg,

    /// Time for which a cast that all members left can still be joined, such as 500ms or 2s; it
    /// sends nothing meanwhile
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "500ms",
        value_parser = linger,
        env = "BOOTCAST_LINGER"
    )]
    linger: Duration,

    /// Time after which a member that sends no request is forgotten, in whole seconds, such as 60s;
    /// clients with repair report twice within it
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = lease,
        env = "BOOTCAST_LEASE"
    )]
    lease: Duration,

    /// Maximum number of casts at the same time; a join that needs another one is refused for now
    /// (HTTP status 503)
    #[arg(long, value_name = "CASTS", default_value = "1024", env = "BOOTCAST_MAX_CASTS")]
    max_casts: NonZeroU32,

    /// Layout of the datagram headers: that of the protocol, or that of the reference
    /// implementation of 2016, which has neither repair nor tags
    #[arg(long, value_enum, default_value = "base", env = "BOOTCAST_LAYOUT")]
    layout: LayoutArg,

    /// Messages to log to standard error: a level (off, error, warn, info, debug or trace), or
    /// module=level pairs with commas between
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        value_parser = log_filter,
        env = "BOOTCAST_LOG"
    )]
    log: Targets,
}

/// Options of the server and of [`HashArgs`].
#[derive(Debug, clap::Args)]
pub struct Directories {
    /// Directory to serve; files outside of it are never opened
    #[arg(long, value_name = "DIR", default_value = ".", env = "BOOTCAST_DIR")]
    pub dir: PathBuf,

    /// Directory that keeps the hashes of files across restarts, at most 256 MiB; created if there
    /// is none
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/bootcast",
        env = "BOOTCAST_STATE_DIR"
    )]
    pub state_dir: PathBuf,
}

/// Commands that run instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the BLAKE3 hash of each file, as b3sum does, and keep what the server needs to prove
    /// its parts. A server that uses the same --state-dir then need not read the file for that
    Hash(HashArgs),
}

/// Arguments of `bootcast-server hash`.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct HashArgs {
    /// Directories as for the server.
    #[command(flatten)]
    pub directories: Directories,

    /// Files to hash, and directories with all files below them; a relative path starts at --dir
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// Upper bound of `--linger`: a cast that lingers occupies a group and a descriptor.
const LINGER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlainArg {
    Allow,
    Limited,
    Deny,
}

impl From<PlainArg> for PlainTrust {
    fn from(plain: PlainArg) -> Self {
        match plain {
            PlainArg::Allow => Self::Allow,
            PlainArg::Limited => Self::Limited,
            PlainArg::Deny => Self::Deny,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Base,
    Reference,
}

/// Settings of the repair channel of all casts.
#[derive(Clone, Copy, Debug)]
pub struct RepairConfig {
    /// UDP port in every group.
    pub port: u16,
    /// Blocks in a window; `None` derives them from the rate.
    pub interleave: Option<u32>,
    /// Time after which a member that sends no request is forgotten.
    pub lease: Duration,
}

/// Why the arguments cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The range of `--groups` cannot be used.
    #[error(transparent)]
    Groups(#[from] GroupPoolError),
    /// Pages and repair channel would share a port, or there is no port after `--data-port`.
    #[error("the repair channel needs a port of its own: choose one with --repair-port")]
    RepairPort,
}

/// Configuration that the arguments describe.
#[derive(Debug)]
pub struct Config {
    /// Directory to serve, and the one for manifests.
    pub directories: Directories,
    /// Whether files are hashed ahead.
    pub prehash: bool,
    /// Address and port of the control plane.
    pub listen: SocketAddr,
    /// Names by which clients may call the server.
    pub names: Names,
    /// Interface to send through; `None` takes the one of the route, or the only one.
    pub interface: Option<InterfaceName>,
    /// Pool of groups, one for each cast.
    pub groups: GroupPool,
    /// An address of the group range, used to look up the route.
    pub any_group: Ipv4Addr,
    /// UDP port of the pages, in every group.
    pub data_port: u16,
    /// Settings of the repair channel; `None` sends no repair symbols.
    pub repair: Option<RepairConfig>,
    /// Whether datagrams carry tags.
    pub tags: bool,
    /// Size of a page; `None` takes the largest that fits the interface.
    pub page_size: Option<PageSize>,
    /// Upper bound of the sending rate; `None` derives it from the interface's speed.
    pub rate: Option<BitRate>,
    /// TTL of the datagrams.
    pub ttl: u8,
    /// When a cast ends without a request.
    pub policy: CastPolicy,
    /// Number of passes that plain members get.
    pub plain: PlainTrust,
    /// Maximum number of casts at the same time.
    pub max_casts: usize,
    /// Layout of the datagram headers.
    pub layout: Layout,
}

impl Args {
    /// Returns the filter of the log.
    pub fn log_filter(&self) -> Targets {
        self.log.clone()
    }

    /// Returns the repair settings. `None` also for the reference layout, whose clients know
    /// nothing of repair.
    fn repair(&self) -> Result<Option<RepairConfig>, ConfigError> {
        if self.no_repair || matches!(self.layout, LayoutArg::Reference) {
            return Ok(None);
        }
        let port = self.repair_port.or_else(|| self.data_port.checked_add(1));
        let port = port.filter(|&port| port != self.data_port).ok_or(ConfigError::RepairPort)?;
        Ok(Some(RepairConfig { port, interleave: self.interleave, lease: self.lease }))
    }
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let repair = args.repair()?;
        Ok(Self {
            directories: args.directories,
            prehash: args.prehash,
            listen: args.listen,
            names: Names::new(args.host),
            interface: args.interface,
            groups: GroupPool::new(args.groups)?,
            any_group: args.groups.network(),
            data_port: args.data_port,
            repair,
            // The reference layout has no room for tags.
            tags: !args.no_tag && matches!(args.layout, LayoutArg::Base),
            page_size: args.page_size,
            rate: args.rate,
            ttl: args.ttl,
            plain: args.plain.into(),
            policy: CastPolicy { idle_passes: args.idle_passes, linger: args.linger },
            max_casts: usize::try_from(args.max_casts.get()).unwrap_or(usize::MAX),
            layout: match args.layout {
                LayoutArg::Base => Layout::Base,
                LayoutArg::Reference => Layout::Reference,
            },
        })
    }
}

/// Parses a linger time.
fn linger(text: &str) -> Result<Duration, String> {
    let linger = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if linger > LINGER_MAX { Err("more than a day".to_owned()) } else { Ok(linger) }
}

/// Parses a lease. It must be whole seconds, because the join answer states it in seconds.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease.is_zero() || lease.subsec_nanos() != 0 {
        return Err("not in whole seconds, at least one, such as 60s".to_owned());
    }
    if lease > LEASE_MAX { Err("more than a day".to_owned()) } else { Ok(lease) }
}

/// Parses a log filter: levels and `module=level` pairs, separated by commas.
///
/// `Targets` alone would take any other word for a module name, so that a misspelt level would
/// silence the log.
fn log_filter(text: &str) -> Result<Targets, String> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_known = |part: &str| part.contains('=') || is_level(part);
    match text.split(',').map(str::trim).find(|part| !is_known(part)) {
        Some(part) => Err(format!("{part:?} is not a level: off, error, warn, info, debug, trace")),
        None => text.parse::<Targets>().map_err(|error| error.to_string()),
    }
}

/// Parses a page size in bytes.
fn page_size(text: &str) -> Result<PageSize, String> {
    let bytes = text.parse::<u64>().map_err(|_| "not a number of bytes".to_owned())?;
    PageSize::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_readme_table_lists_every_option_with_its_default() {
        let page = include_str!("../../README.md");
        let table = page.split("### Options of the server").nth(1).unwrap();
        let table = table.split("\n### ").next().unwrap();
        for argument in Args::command().get_arguments() {
            let long = argument.get_long().filter(|name| !["help", "version"].contains(name));
            let Some(name) = long else { continue };
            let option = format!("`--{name}");
            let row = table.lines().find(|line| line.contains(&option));
            let row = row.unwrap_or_else(|| panic!("no row for --{name}"));
            // The table shows no default of a flag.
            let shown = argument.get_action().takes_values();
            for default in argument.get_default_values().iter().filter(|_| shown) {
                let default = default.to_str().unwrap();
                let cell = row.split(" | ").nth(1).unwrap();
                assert_eq!(cell.trim_matches('`'), default, "--{name}");
            }
        }
    }

    #[test]
    fn options_of_the_server_are_not_mistaken_for_a_command() {
        let args = Args::try_parse_from(["bootcast-server", "--dir", "hash"]).unwrap();
        assert!(args.command.is_none());
        assert!(Args::try_parse_from(["bootcast-server", "--ttl", "2", "hash", "x"]).is_err());
        let args = Args::try_parse_from(["bootcast-server", "hash", "--dir", "a", "x"]).unwrap();
        let Some(Command::Hash(hash)) = args.command else { panic!("{args:?}") };
        assert_eq!(hash.directories.dir, PathBuf::from("a"));
        assert!(Args::try_parse_from(["bootcast-server", "hash"]).is_err());
    }

    #[test]
    fn a_log_filter_has_levels_and_module_level_pairs_only() {
        for text in ["info", "DEBUG", "off", "info,bootcast_server=debug", "bootcast_server=trace"]
        {
            assert!(log_filter(text).is_ok(), "{text}");
        }
        for text in ["", "inof", "info,hyper", "hyper=loud", "=,=[", "info,,debug"] {
            assert!(log_filter(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_lease_must_be_in_whole_seconds() {
        assert_eq!(lease("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(lease("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["0s", "1500ms", "2d", "60", ""] {
            assert!(lease(text).is_err(), "{text}");
        }
    }
}
