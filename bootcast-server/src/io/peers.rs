//! Counts connections by the host they come from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Limits the connections of each host, so that one host cannot take all of them.
#[derive(Clone, Debug)]
pub struct Peers {
    limit: usize,
    /// Number of open connections of each host that has any.
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Admission of one connection; counts until dropped.
#[derive(Debug)]
pub struct Admitted {
    peers: Peers,
    host: IpAddr,
}

impl Peers {
    /// Allows each host `limit` connections.
    pub fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// Counts a connection; `None` if the host has reached its limit.
    pub fn admit(&self, host: IpAddr) -> Option<Admitted> {
        // A listener for both families shows IPv4 hosts as IPv6 addresses.
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
    fn a_host_with_all_its_connections_gets_no_more_until_one_ends_and_others_do() {
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
