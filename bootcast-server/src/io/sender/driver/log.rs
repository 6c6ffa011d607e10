//! Log lines of the sender thread: casts that begin or end, and errors of the network.

use std::net::SocketAddrV4;
use std::time::Instant;

use bootcast_proto::log_limit::Limiter;
use bootcast_proto::{Etag, RemotePath};
use rustix::io::Errno;

use super::SenderConfig;
use crate::cast::{CastId, EndReason, Ended, Principal, Taken};
use crate::io::interface::{Interface, InterfaceName};

/// Logs each cause once a minute. A client that joins and leaves in a loop, a file that changes all
/// the time, or a loose cable would otherwise fill the log.
#[derive(Debug, Default)]
pub(super) struct SenderLog {
    begins: Limiter<RemotePath, Instant>,
    ends: Limiter<(RemotePath, EndReason), Instant>,
    network: Limiter<NetworkFault, Instant>,
    budgets: Limiter<Principal, Instant>,
    rations: Limiter<Principal, Instant>,
    /// Whether the last line about the interface says that it is down.
    is_down: bool,
}

/// Reason why datagrams cannot be sent; each is logged once a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum NetworkFault {
    Down,
    Refused,
    Taken,
}

/// Description of a cast that begins, for the log.
#[derive(Debug)]
pub(super) struct Begun<'a> {
    /// Identifier of the cast.
    pub(super) cast: CastId,
    /// Path of its file.
    pub(super) path: &'a RemotePath,
    /// Version of its file.
    pub(super) etag: &'a Etag,
    /// Size of its file in bytes.
    pub(super) size: u64,
    /// Group and port that its pages go to.
    pub(super) group: SocketAddrV4,
}

impl SenderLog {
    /// Logs that a cast began, unless this was logged for its path less than a minute ago.
    pub(super) fn log_begin(&mut self, begun: &Begun<'_>, now: Instant) {
        let Begun { cast, path, etag, size, group } = begun;
        let Some(suppressed) = self.begins.allow(path, now) else { return };
        tracing::info!(%cast, %path, %group, size, %etag, suppressed, "cast began");
    }

    /// Logs the end of a cast, unless one with this path and reason was logged less than a minute
    /// ago.
    pub(super) fn log_end(&mut self, ended: &Ended, now: Instant) {
        let Some(suppressed) = self.allow_end(ended, now) else { return };
        let Ended { cast, path, group, reason, joins, pages, symbols, passes, duration } = ended;
        let seconds = format_args!("{:.1}", duration.as_secs_f64());
        tracing::info!(
            %cast, %path, %group, %reason, joins, pages, symbols, passes, %seconds, suppressed,
            "cast ended"
        );
    }

    /// Logs that a host has used up its budget for members that proved nothing.
    pub(super) fn log_budget(&mut self, host: Principal, path: &RemotePath, now: Instant) {
        let Some(suppressed) = self.budgets.allow(&host, now) else { return };
        tracing::warn!(
            %host, %path, suppressed,
            "budget used up: plain members of this host never left, or its clients receive nothing"
        );
    }

    /// Logs that a host asked for more than goes before what others wait for.
    pub(super) fn log_ration(&mut self, host: Principal, path: &RemotePath, now: Instant) {
        let Some(suppressed) = self.rations.allow(&host, now) else { return };
        tracing::info!(
            %host, %path, suppressed,
            "this host needs much more than others: it waits until they have what they need"
        );
    }

    /// Warns that the interface is down.
    pub(super) fn log_down(&mut self, config: &SenderConfig, errno: Errno, now: Instant) {
        let Some(suppressed) = self.allow_down(now) else { return };
        let Interface { name, address, .. } = &config.interface;
        if let Some(InterfaceName::Address(_)) = config.interface_name {
            tracing::warn!(%address, %errno, suppressed, "cannot send: waiting for this address");
        } else {
            let interface = name;
            tracing::warn!(interface, %errno, suppressed, "cannot send: waiting for the interface");
        }
    }

    /// Logs that the interface works again, if the log says that it is down.
    pub(super) fn log_up(&mut self, interface: &Interface) {
        if std::mem::take(&mut self.is_down) {
            tracing::info!(interface = interface.name, "the interface is back");
        }
    }

    /// Warns about a datagram that the kernel refused to send.
    pub(super) fn log_refused(&mut self, group: SocketAddrV4, errno: Errno, now: Instant) {
        let Some(suppressed) = self.network.allow(&NetworkFault::Refused, now) else { return };
        tracing::warn!(
            %group, %errno, suppressed,
            "the kernel refuses datagrams to this group: check the firewall"
        );
    }

    /// Logs another sender in the group of a cast.
    pub(super) fn log_taken(
        &mut self,
        group: SocketAddrV4,
        other: SocketAddrV4,
        taken: Taken,
        now: Instant,
    ) {
        let Some(suppressed) = self.network.allow(&NetworkFault::Taken, now) else { return };
        let then = match taken {
            Taken::Ended => "the cast ends, and its members join again in another group",
            Taken::Waits => "the cast goes on for now",
            Taken::NoOtherGroup => "no other group is free: give each server --groups of its own",
        };
        tracing::warn!(%group, %other, suppressed, "another sender uses this group: {then}");
    }

    /// Returns how many such warnings were suppressed; `None` if this one must be suppressed too.
    fn allow_down(&mut self, now: Instant) -> Option<u64> {
        let suppressed = self.network.allow(&NetworkFault::Down, now);
        self.is_down |= suppressed.is_some();
        suppressed
    }

    /// Returns how many ends like this one were suppressed; `None` if this one must be suppressed
    /// too.
    fn allow_end(&mut self, ended: &Ended, now: Instant) -> Option<u64> {
        self.ends.allow(&(ended.path.clone(), ended.reason), now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::time::Duration;

    use super::*;

    fn ended(path: &str, reason: EndReason) -> Ended {
        Ended {
            cast: CastId(1),
            path: RemotePath::decode(path).unwrap(),
            group: SocketAddrV4::new(Ipv4Addr::new(239, 255, 0, 1), 9000),
            reason,
            joins: 1,
            pages: 1,
            symbols: 0,
            passes: 0,
            duration: Duration::ZERO,
        }
    }

    #[test]
    fn an_end_is_logged_once_a_minute_for_each_path_and_reason_with_a_count() {
        let (mut log, start) = (SenderLog::default(), Instant::now());
        let changed = ended("a", EndReason::FileChanged);
        assert_eq!(log.allow_end(&changed, start), Some(0));
        for second in 1..60 {
            assert_eq!(log.allow_end(&changed, start + Duration::from_secs(second)), None);
        }
        for other in [ended("b", EndReason::FileChanged), ended("a", EndReason::LastLeave)] {
            assert_eq!(log.allow_end(&other, start), Some(0));
        }
        assert_eq!(log.allow_end(&changed, start + Duration::from_secs(60)), Some(59));
    }

    #[test]
    fn a_loose_cable_is_logged_once_a_minute() {
        let (mut log, start) = (SenderLog::default(), Instant::now());
        let mut backs = 0;
        for second in 0..60 {
            let suppressed = log.allow_down(start + Duration::from_secs(second));
            assert_eq!(suppressed, (second == 0).then_some(0));
            backs += u32::from(std::mem::take(&mut log.is_down));
        }
        assert_eq!(backs, 1);
        assert_eq!(log.allow_down(start + Duration::from_secs(60)), Some(59));
    }
}
