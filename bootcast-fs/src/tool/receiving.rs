//! Options of all commands that receive files.

use std::time::Duration;

use crate::durations;
use crate::io::InterfaceChoice;

/// Options of a command that receives files.
#[derive(clap::Args, Debug)]
pub(super) struct ReceivingArgs {
    /// Interface on which multicast arrives, by name or address [default: the route to the server]
    #[arg(short, long, value_name = "NAME|ADDR", env = "BOOTCAST_INTERFACE")]
    pub(super) interface: Option<InterfaceChoice>,

    /// Give up after this time without a new byte: seconds, or with units as in 1m30s; 0 for never
    #[arg(
        short,
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = durations::parse
    )]
    timeout: Duration,

    /// Show only errors: no progress bar, notices or log lines
    #[arg(short, long)]
    pub(super) quiet: bool,
}

impl ReceivingArgs {
    /// Returns the time without a new byte after which to give up; `None` for never.
    pub(super) fn timeout(&self) -> Option<Duration> {
        Some(self.timeout).filter(|timeout| !timeout.is_zero())
    }
}
