//! The command line: arguments as typed (`Args`) and as understood (`Config`).

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bootcast_proto::{BitRate, DEFAULT_PORT, Layout, PageSize};
use clap::{Parser, ValueEnum};
use ipnet::Ipv4Net;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::cast::{CastPolicy, GroupPool, GroupPoolError};
use crate::io::interface::InterfaceName;

/// Sends the files of a directory by UDP multicast, each page once for all clients that want it.
#[derive(Debug, Parser)]
#[command(name = "bootcast-server", version, max_term_width = 100, args_override_self = true)]
pub struct Args {
    /// Directory to serve; nothing outside of it is ever opened
    #[arg(long, value_name = "DIR", default_value = ".", env = "BOOTCAST_DIR")]
    dir: PathBuf,

    /// Address and TCP port of the control plane (HTTP); port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)), env = "BOOTCAST_LISTEN")]
    listen: SocketAddr,

    /// Interface to multicast through, by name or by its IPv4 address [default: the one that the
    /// kernel routes the groups through, else the only one there is]
    #[arg(long, value_name = "NAME|ADDR", env = "BOOTCAST_INTERFACE")]
    interface: Option<InterfaceName>,

    /// Multicast addresses to use, one for each cast
    #[arg(long, value_name = "CIDR", default_value = "239.255.0.0/16", env = "BOOTCAST_GROUPS")]
    groups: Ipv4Net,

    /// UDP port of the datagrams
    #[arg(long, value_name = "PORT", default_value_t = 9000, value_parser = clap::value_parser!(u16).range(1..), env = "BOOTCAST_DATA_PORT")]
    data_port: u16,

    /// UDP port of the repair channel [default: the one behind --data-port]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), env = "BOOTCAST_REPAIR_PORT")]
    repair_port: Option<u16>,

    /// Blocks in a window of the repair code: more of them survive longer loss bursts, but delay
    /// repair [default: what is sent in about 0.2 s, 16 to 512]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..=512), env = "BOOTCAST_INTERLEAVE")]
    interleave: Option<u32>,

    /// Send no repair symbols; repeat the pages for all clients instead
    #[arg(long, env = "BOOTCAST_NO_REPAIR")]
    no_repair: bool,

    /// Send datagrams without tags: saves a few per cent of CPU at both ends, but anyone who can
    /// forge the server's address can make clients store wrong bytes
    #[arg(long, env = "BOOTCAST_NO_TAG")]
    no_tag: bool,

    /// Bytes of a page, 1 to 65491 [default: what fits the interface's MTU, 1456 at 1500; on
    /// loopback 1456]
    #[arg(long, value_name = "BYTES", value_parser = page_size, env = "BOOTCAST_PAGE_SIZE")]
    page_size: Option<PageSize>,

    /// Upper bound of the sending rate, all casts together, in bits on the wire, Ethernet framing
    /// included, such as 900mbit or 2.5gbit [default: 0.97 of the interface's speed, of 1gbit if
    /// that is unknown; on loopback 10gbit]
    #[arg(long, value_name = "RATE", env = "BOOTCAST_RATE")]
    rate: Option<BitRate>,

    /// Most hops of a datagram
    #[arg(long, value_name = "HOPS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..), env = "BOOTCAST_TTL")]
    ttl: u8,

    /// Passes since its join after which a plain member is forgotten
    #[arg(long, value_name = "PASSES", default_value = "5", env = "BOOTCAST_IDLE_PASSES")]
    idle_passes: NonZeroU32,

    /// How long a cast without members can still be joined, such as 500ms or 2s; nothing is sent
    /// meanwhile
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = linger, env = "BOOTCAST_LINGER")]
    linger: Duration,

    /// Time after which a client that sends no request is forgotten, in whole seconds; clients with
    /// repair report twice within it
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = lease, env = "BOOTCAST_LEASE")]
    lease: Duration,

    /// Most casts at the same time; a further join is told to try again later
    #[arg(long, value_name = "CASTS", default_value = "1024", env = "BOOTCAST_MAX_CASTS")]
    max_casts: NonZeroU32,

    /// Layout of the datagram headers: that of the protocol, or that of the reference
    /// implementation of 2016
    #[arg(long, value_enum, default_value = "base", env = "BOOTCAST_LAYOUT")]
    layout: LayoutArg,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter by module
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter, env = "BOOTCAST_LOG")]
    log: Targets,
}

/// Longest linger time. Casts without members hold a group and a descriptor each.
const LINGER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest lease: how long a dead member may be waited for.
const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Base,
    Reference,
}

/// Settings of the repair channel of all casts.
#[derive(Clone, Copy, Debug)]
pub struct RepairConfig {
    /// UDP port, in every group.
    pub port: u16,
    /// Blocks in a window; `None`: derived from the rate.
    pub interleave: Option<u32>,
    /// Time after which a member that sends no request is forgotten.
    pub lease: Duration,
}

/// Why the arguments cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The block of addresses cannot serve as groups.
    #[error(transparent)]
    Groups(#[from] GroupPoolError),
    /// Pages and repair would share a port.
    #[error("the repair channel needs a port of its own: name one by --repair-port")]
    RepairPort,
}

/// Configuration that the arguments describe.
#[derive(Debug)]
pub struct Config {
    /// Directory to serve.
    pub dir: PathBuf,
    /// Address and port of the control plane.
    pub listen: SocketAddr,
    /// Interface to send through; `None`: find one.
    pub interface: Option<InterfaceName>,
    /// Pool of groups, one for each cast.
    pub groups: GroupPool,
    /// An address of the group range, used to look up the route.
    pub any_group: Ipv4Addr,
    /// UDP port of the datagrams.
    pub data_port: u16,
    /// Repair channel; `None`: there is none.
    pub repair: Option<RepairConfig>,
    /// Whether datagrams carry tags.
    pub tags: bool,
    /// Size of a page; `None`: what fits the interface.
    pub page_size: Option<PageSize>,
    /// Upper bound of the sending rate; `None`: derived from the interface's speed.
    pub rate: Option<BitRate>,
    /// Most hops of a datagram.
    pub ttl: u8,
    /// When a cast ends without a request.
    pub policy: CastPolicy,
    /// Most casts at the same time.
    pub max_casts: usize,
    /// Layout of the datagrams.
    pub layout: Layout,
}

impl Args {
    /// Which log lines are written.
    pub fn log_filter(&self) -> Targets {
        self.log.clone()
    }

    /// Repair settings; `None` for the reference layout, whose clients know the base protocol only.
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
            dir: args.dir,
            listen: args.listen,
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
            policy: CastPolicy { idle_passes: args.idle_passes, linger: args.linger },
            max_casts: usize::try_from(args.max_casts.get()).unwrap_or(usize::MAX),
            layout: match args.layout {
                LayoutArg::Base => Layout::Base,
                LayoutArg::Reference => Layout::Reference,
            },
        })
    }
}

fn linger(text: &str) -> Result<Duration, String> {
    let linger = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if linger > LINGER_MAX { Err("more than a day".to_owned()) } else { Ok(linger) }
}

/// Parses a lease. It must be whole seconds because the join answer states seconds.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease.is_zero() || lease.subsec_nanos() != 0 {
        return Err("not a number of whole seconds, at least one".to_owned());
    }
    if lease > LEASE_MAX { Err("more than a day".to_owned()) } else { Ok(lease) }
}

/// Parses a level, or several of `level` and `module=level` with commas between.
///
/// `Targets` alone would take any other word for the name of a module, and a misspelt level would
/// silence everything.
fn log_filter(text: &str) -> Result<Targets, String> {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_known = |part: &str| part.contains('=') || is_level(part);
    match text.split(',').map(str::trim).find(|part| !is_known(part)) {
        Some(part) => Err(format!("{part:?} is no level (error, warn, info, debug, trace, off)")),
        None => text.parse::<Targets>().map_err(|error| error.to_string()),
    }
}

fn page_size(text: &str) -> Result<PageSize, String> {
    let bytes = text.parse::<u64>().map_err(|_| "not a number of bytes".to_owned())?;
    PageSize::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_the_readme_has_every_option_and_its_default() {
        let page = include_str!("../../README.md");
        let table = page.split("### Options of the server").nth(1).unwrap();
        let table = table.split("\n### ").next().unwrap();
        for argument in Args::command().get_arguments() {
            let long = argument.get_long().filter(|name| !["help", "version"].contains(name));
            let Some(name) = long else { continue };
            let option = format!("`--{name}");
            let row = table.lines().find(|line| line.contains(&option));
            let row = row.unwrap_or_else(|| panic!("no row for --{name}"));
            // The table shows no default for flags.
            let shown = argument.get_action().takes_values();
            for default in argument.get_default_values().iter().filter(|_| shown) {
                let default = default.to_str().unwrap();
                let cell = row.split(" | ").nth(1).unwrap();
                assert_eq!(cell.trim_matches('`'), default, "--{name}");
            }
        }
    }

    #[test]
    fn a_log_filter_is_a_level_or_levels_of_modules() {
        for text in ["info", "DEBUG", "off", "info,bootcast_server=debug", "bootcast_server=trace"]
        {
            assert!(log_filter(text).is_ok(), "{text}");
        }
        for text in ["", "inof", "info,hyper", "hyper=loud", "=,=[", "info,,debug"] {
            assert!(log_filter(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_lease_is_told_in_whole_seconds() {
        assert_eq!(lease("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(lease("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["0s", "1500ms", "2d", "60", ""] {
            assert!(lease(text).is_err(), "{text}");
        }
    }
}
