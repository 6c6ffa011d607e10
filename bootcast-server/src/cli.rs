//! The command line: what was typed, and what it means.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bootcast_proto::{BitRate, DEFAULT_PORT, Layout, PageSize};
use clap::{Parser, ValueEnum};
use ipnet::Ipv4Net;

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

    /// Blocks of a window of the repair code: more spread longer bursts of losses, and let repair come
    /// later [default: what is sent in about 0.2 s, 16 to 512]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(1..=512), env = "BOOTCAST_INTERLEAVE")]
    interleave: Option<u32>,

    /// Repeat the pages only, for all clients
    #[arg(long, env = "BOOTCAST_NO_REPAIR")]
    no_repair: bool,

    /// No tag in the datagrams: a few per cent less work at both ends, and whoever can send in the server's
    /// name can make clients store other bytes
    #[arg(long, env = "BOOTCAST_NO_TAG")]
    no_tag: bool,

    /// Bytes of a page, 1 to 65491 [default: what fits the interface's MTU, 1456 at 1500; on
    /// loopback 1456]
    #[arg(long, value_name = "BYTES", value_parser = page_size, env = "BOOTCAST_PAGE_SIZE")]
    page_size: Option<PageSize>,

    /// Ceiling of the sending rate over all casts, headers included, such as 900mbit or 2.5gbit
    /// [default: 0.9 of the interface's speed, of 1gbit where that is unknown; on loopback 10gbit]
    #[arg(long, value_name = "RATE", env = "BOOTCAST_RATE")]
    rate: Option<BitRate>,

    /// Hops that a datagram may go
    #[arg(long, value_name = "HOPS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..), env = "BOOTCAST_TTL")]
    ttl: u8,

    /// A cast ends after this many passes without a join, a leave, a report or a want
    #[arg(long, value_name = "PASSES", default_value = "5", env = "BOOTCAST_IDLE_PASSES")]
    idle_passes: NonZeroU32,

    /// How long a cast that everybody left can still be joined, such as 500ms or 2s; nothing is sent
    /// meanwhile
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = linger, env = "BOOTCAST_LINGER")]
    linger: Duration,

    /// A client that says nothing for so long is forgotten; those that know repair report twice within it.
    /// Whole seconds
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = lease, env = "BOOTCAST_LEASE")]
    lease: Duration,

    /// Casts at the same time; a join beyond is told to come again
    #[arg(long, value_name = "CASTS", default_value = "1024", env = "BOOTCAST_MAX_CASTS")]
    max_casts: NonZeroU32,

    /// Header of the datagrams: as the protocol says, or as the reference implementation of 2016 sends
    #[arg(long, value_enum, default_value = "base", env = "BOOTCAST_LAYOUT")]
    layout: LayoutArg,

    /// What to log to standard error: error, warn, info, debug, trace, or a filter by module
    #[arg(long, value_name = "FILTER", default_value = "info", env = "BOOTCAST_LOG")]
    log: String,
}

/// Casts without members hold a group and a descriptor each.
const LINGER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A member that died is waited for as long.
const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutArg {
    Base,
    Reference,
}

/// The repair channel of all casts.
#[derive(Clone, Copy, Debug)]
pub struct RepairConfig {
    /// UDP port.
    pub port: u16,
    /// Blocks of a window. `None`: what fits the rate.
    pub interleave: Option<u32>,
    /// A member that says nothing for so long is forgotten.
    pub lease: Duration,
}

/// Why the arguments mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// See there.
    #[error(transparent)]
    Groups(#[from] GroupPoolError),
    /// Pages and repair would meet on one port.
    #[error("the repair channel needs a port of its own: name one by --repair-port")]
    RepairPort,
}

/// What the arguments mean.
#[derive(Debug)]
pub struct Config {
    /// Directory to serve.
    pub dir: PathBuf,
    /// Of the control plane.
    pub listen: SocketAddr,
    /// `None`: find one.
    pub interface: Option<InterfaceName>,
    /// One for each cast.
    pub groups: GroupPool,
    /// One of them.
    pub any_group: Ipv4Addr,
    /// UDP port of the datagrams.
    pub data_port: u16,
    /// `None`: no repair channel.
    pub repair: Option<RepairConfig>,
    /// Whether datagrams carry tags.
    pub tags: bool,
    /// `None`: what fits the interface.
    pub page_size: Option<PageSize>,
    /// `None`: what fits the interface.
    pub rate: Option<BitRate>,
    /// Hops that a datagram may go.
    pub ttl: u8,
    /// When a cast gives up.
    pub policy: CastPolicy,
    /// At the same time.
    pub max_casts: usize,
    /// Of the datagrams.
    pub layout: Layout,
}

impl Args {
    /// What to log.
    pub fn log_filter(&self) -> &str {
        &self.log
    }

    /// The reference layout belongs to clients that know the base protocol only.
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
            // The reference layout has no room for them.
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

/// The join answer tells it in whole seconds.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lease.is_zero() || lease.subsec_nanos() != 0 {
        return Err("not a number of whole seconds, at least one".to_owned());
    }
    if lease > LEASE_MAX { Err("more than a day".to_owned()) } else { Ok(lease) }
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
            // A flag's default is no text that a table shows.
            let shown = argument.get_action().takes_values();
            for default in argument.get_default_values().iter().filter(|_| shown) {
                let default = default.to_str().unwrap();
                let cell = row.split(" | ").nth(1).unwrap();
                assert_eq!(cell.trim_matches('`'), default, "--{name}");
            }
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
