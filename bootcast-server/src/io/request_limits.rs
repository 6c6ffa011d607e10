//! Limits the requests of each host, so that a flood costs the others little. docs/PROTOCOL.md,
//! "Requests a second".

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::api::RefusedRequests;
use bootcast_proto::log_limit::Limiter;

use crate::cast::Principal;

/// Number of buckets above which full ones are forgotten. Bounds memory.
const MANY_BUCKETS: usize = 8192;

/// Requests that share a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestKind {
    /// Joins and leaves.
    Join,
    /// Reports.
    Report,
    /// Demands.
    Want,
    /// Names and attributes.
    Meta,
    /// All other requests: files, manifests, bundles, profiles, status.
    Other,
}

/// Limit of one kind of request, for each host.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// Requests a second in the long run.
    per_second: u32,
    /// Requests at once, after a pause.
    burst: u32,
}

impl RequestKind {
    /// Returns the kind of a request for this path.
    pub fn of(path: &str) -> Self {
        let endpoint = path.split('/').nth(1).unwrap_or_default();
        match endpoint {
            "join" | "leave" => Self::Join,
            "report" => Self::Report,
            "want" => Self::Want,
            "meta" => Self::Meta,
            _ => Self::Other,
        }
    }

    /// Returns the limit. A host may be a thousand clients behind one address that begin together.
    const fn limit(self) -> Limit {
        match self {
            Self::Join => Limit { per_second: 2000, burst: 8000 },
            Self::Report => Limit { per_second: 1000, burst: 4000 },
            // Twice what the readers of a fast host ask for.
            Self::Want => Limit { per_second: 10_000, burst: 20_000 },
            Self::Meta | Self::Other => Limit { per_second: 5000, burst: 20_000 },
        }
    }

    /// Returns the requests a second that a host may send in the long run.
    pub const fn per_second(self) -> u32 {
        self.limit().per_second
    }

    /// Returns the noun of the requests, for messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Join => "joins and leaves",
            Self::Report => "reports",
            Self::Want => "wants",
            Self::Meta => "requests for /meta/",
            Self::Other => "requests",
        }
    }
}

/// Requests that each host may still send.
#[derive(Clone, Debug, Default)]
pub struct RequestLimits(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buckets: Mutex<Buckets>,
    refused: [AtomicU64; 5],
}

/// Buckets whose tokens are time: a request costs the time in which the limit allows one. Each
/// holds the time up to which the requests of a host are paid for. Absent buckets are full.
#[derive(Debug, Default)]
struct Buckets {
    paid_until: HashMap<(Principal, RequestKind), Instant>,
    log: Limiter<(Principal, RequestKind), Instant>,
}

impl RequestLimits {
    /// Counts a request. Returns whether it may be answered. Logs a refusal once a minute.
    pub fn admit(&self, host: Principal, kind: RequestKind) -> bool {
        self.admit_at(host, kind, Instant::now())
    }

    fn admit_at(&self, host: Principal, kind: RequestKind, now: Instant) -> bool {
        let mut buckets = self.0.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.take(host, kind, now) {
            return true;
        }
        self.0.refused[kind as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = buckets.log.allow(&(host, kind), now) {
            let (requests, limit) = (kind.noun(), kind.per_second());
            tracing::warn!(%host, requests, limit, suppressed, "too many requests a second");
        }
        false
    }

    /// Returns the numbers of requests that were refused.
    pub fn refused(&self) -> RefusedRequests {
        let of = |kind: RequestKind| self.0.refused[kind as usize].load(Ordering::Relaxed);
        RefusedRequests {
            joins: of(RequestKind::Join),
            reports: of(RequestKind::Report),
            wants: of(RequestKind::Want),
            meta: of(RequestKind::Meta),
            others: of(RequestKind::Other),
        }
    }
}

impl Buckets {
    /// Takes a request out of a bucket. Returns `false` if the bucket is empty.
    fn take(&mut self, host: Principal, kind: RequestKind, now: Instant) -> bool {
        let Limit { per_second, burst } = kind.limit();
        let cost = Duration::from_secs(1) / per_second;
        let full = now.checked_sub(cost * burst).unwrap_or(now);
        if self.paid_until.len() >= MANY_BUCKETS && !self.paid_until.contains_key(&(host, kind)) {
            self.make_room(now);
        }
        let paid_until = self.paid_until.entry((host, kind)).or_insert(full);
        let next = (*paid_until).max(full) + cost;
        let is_admitted = next <= now;
        if is_admitted {
            *paid_until = next;
        }
        is_admitted
    }

    /// Forgets full buckets, and all if none is full.
    fn make_room(&mut self, now: Instant) {
        self.paid_until.retain(|(_, kind), paid_until| {
            let Limit { per_second, burst } = kind.limit();
            *paid_until + Duration::from_secs(1) / per_second * burst > now
        });
        if self.paid_until.len() >= MANY_BUCKETS {
            self.paid_until.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> Principal {
        std::net::IpAddr::from([10, 0, 0, number]).into()
    }

    fn admitted(limits: &RequestLimits, kind: RequestKind, now: Instant) -> u32 {
        let attempts = 0..100_000_u32;
        let admitted = attempts.take_while(|_| limits.admit_at(host(1), kind, now)).count();
        admitted.try_into().unwrap()
    }

    #[test]
    fn a_flood_is_refused_beyond_its_burst_and_then_beyond_its_rate() {
        let (limits, now) = (RequestLimits::default(), Instant::now());
        for kind in [RequestKind::Join, RequestKind::Want, RequestKind::Other] {
            let Limit { per_second, burst } = kind.limit();
            assert_eq!(admitted(&limits, kind, now), burst);
            assert_eq!(admitted(&limits, kind, now + Duration::from_secs(1)), per_second);
        }
        assert!(limits.admit_at(host(2), RequestKind::Join, now), "another host");
        assert!(limits.admit_at(host(1), RequestKind::Report, now), "another kind");
        let RefusedRequests { joins, reports, wants, others, .. } = limits.refused();
        assert_eq!((joins, reports, wants, others), (2, 0, 2, 2));
    }

    #[test]
    fn the_limits_are_those_of_the_protocol() {
        let page = include_str!("../../../docs/PROTOCOL.md");
        let kinds = [
            ("joins and leaves", RequestKind::Join),
            ("reports", RequestKind::Report),
            ("demands", RequestKind::Want),
            ("`/meta/`", RequestKind::Meta),
            ("all others", RequestKind::Other),
        ];
        for (name, kind) in kinds {
            let Limit { per_second, burst } = kind.limit();
            let row = format!("| {name} | {} | {} |", grouped(per_second), grouped(burst));
            assert!(page.contains(&row), "{row}");
        }
    }

    /// Writes a number as documents do: 10,000.
    fn grouped(number: u32) -> String {
        format!("{},{:03}", number / 1000, number % 1000)
    }

    #[test]
    fn a_request_counts_by_its_endpoint() {
        assert_eq!(RequestKind::of("/join/a/want/b"), RequestKind::Join);
        assert_eq!(RequestKind::of("/leave/"), RequestKind::Join);
        assert_eq!(RequestKind::of("/want/a"), RequestKind::Want);
        assert_eq!(RequestKind::of("/wanted"), RequestKind::Other);
        assert_eq!(RequestKind::of(""), RequestKind::Other);
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let (mut buckets, now) = (Buckets::default(), Instant::now());
        for number in 0..20_000_u32 {
            let host = std::net::IpAddr::from(number.to_be_bytes()).into();
            assert!(buckets.take(host, RequestKind::Join, now));
        }
        assert!(buckets.paid_until.len() <= MANY_BUCKETS);
    }
}
