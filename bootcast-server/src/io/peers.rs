//! Limits the connections of each host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the open connections of each host, so that one host cannot take all of them.
#[derive(Clone, Debug)]
pub struct Peers {
    limit: usize,
    /// Number of open connections by host. Hosts without connections are absent.
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Host that a request comes from. Handlers get it as an extension of the request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Admission of one connection. Counts against the limit until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    peers: Peers,
    host: IpAddr,
}

impl Peers {
    /// Creates counters that allow each host `limit` connections.
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// Admits and counts a connection; `None` if the host has reached its limit.
    pub fn admit(&self, host: IpAddr) -> Option<Admitted> {
        // A dual-stack listener shows IPv4 hosts as IPv4-mapped IPv6 addresses.
        let host = host.to_canonical();
        let mut open = self.open();
        if open.get(&host).is_some_and(|&count| count >= self.limit) {
            return None;
        }
        *open.entry(host).or_insert(0) += 1;
        Some(Admitted { peers: self.clone(), host })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.peers.open();
        if let Some(count) = open.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_at_its_limit_gets_no_connection_until_one_ends_but_others_do() {
        let peers = Peers::new(2);
        let host: IpAddr = "192.0.2.1".parse().unwrap();
        let first = peers.admit(host).unwrap();
        let _second = peers.admit("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(peers.admit(host).is_none());
        assert!(peers.admit("192.0.2.2".parse().unwrap()).is_some());
        drop(first);
        assert!(peers.admit(host).is_some());
        assert_eq!(peers.open().len(), 1);
    }
}
