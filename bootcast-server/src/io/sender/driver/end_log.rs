//! Logs the ends of casts.

use std::time::Instant;

use bootcast_proto::RemotePath;
use bootcast_proto::log_limit::Limiter;

use crate::cast::{EndReason, Ended};

/// Logs the ends of casts, failures of a file only once a minute. The members of a cast that failed
/// join again at once, so that a file that changes all the time would otherwise fill the log.
#[derive(Debug, Default)]
pub(super) struct EndLog {
    failures: Limiter<(RemotePath, EndReason), Instant>,
}

impl EndLog {
    /// Logs the end of a cast, unless the file failed and the same path and reason were logged less
    /// than a minute ago.
    pub(super) fn log(&mut self, ended: &Ended, now: Instant) {
        let Some(suppressed) = self.allow(ended, now) else { return };
        let Ended { cast, path, group, reason, joins, pages, symbols, passes, duration } = ended;
        let seconds = format_args!("{:.1}", duration.as_secs_f64());
        tracing::info!(
            %cast, %path, %group, %reason, joins, pages, symbols, passes, %seconds, suppressed,
            "cast ended"
        );
    }

    /// Returns how many ends like this one were suppressed since the last line; `None` if this one
    /// must be suppressed too.
    fn allow(&mut self, ended: &Ended, now: Instant) -> Option<u64> {
        match ended.reason {
            EndReason::FileChanged | EndReason::Unreadable => {
                self.failures.allow(&(ended.path.clone(), ended.reason), now)
            }
            EndReason::LastLeave
            | EndReason::IdlePasses
            | EndReason::LeasesExpired
            | EndReason::AddressChanged
            | EndReason::Stopped => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::time::Duration;

    use super::*;
    use crate::cast::CastId;

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
    fn repeated_failures_of_a_file_are_logged_once_a_minute_with_their_number() {
        let (mut log, start) = (EndLog::default(), Instant::now());
        let changed = ended("a", EndReason::FileChanged);
        assert_eq!(log.allow(&changed, start), Some(0));
        for second in 1..60 {
            assert_eq!(log.allow(&changed, start + Duration::from_secs(second)), None);
        }
        let other_file = ended("b", EndReason::FileChanged);
        let other_reason = ended("a", EndReason::Unreadable);
        assert_eq!(log.allow(&other_file, start), Some(0));
        assert_eq!(log.allow(&other_reason, start), Some(0));
        assert_eq!(log.allow(&changed, start + Duration::from_secs(60)), Some(59));
    }

    #[test]
    fn ends_without_a_failure_are_all_logged() {
        let (mut log, now) = (EndLog::default(), Instant::now());
        for reason in [EndReason::LastLeave, EndReason::IdlePasses, EndReason::LeasesExpired] {
            for _ in 0..3 {
                assert_eq!(log.allow(&ended("a", reason), now), Some(0));
            }
        }
    }
}
