//! Recent requests for small files. docs/PROTOCOL.md, "Small files".

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;

/// Time after a request within which another host is told to join.
const MANY_WITHIN: Duration = Duration::from_secs(1);

/// Time for which a directory is remembered of which several hosts asked for the same file.
const SHARED_FOR: Duration = Duration::from_secs(60);

/// Maximum number of files whose last request is remembered. Those of further files are answered.
const MAX_FILES: usize = 4096;

/// Latest request for each small file.
#[derive(Clone, Debug, Default)]
pub struct SmallFiles(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    files: HashMap<RemotePath, LastRequest>,
    /// Directories of files that several hosts asked for, with the time of the last such request.
    shared: HashMap<RemotePath, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LastRequest {
    /// Host that got the file.
    host: IpAddr,
    /// Time of the latest request, of whatever host.
    at: Instant,
}

impl SmallFiles {
    /// Records a request. Returns `false` if another host has lately asked for the same file: who
    /// wants it now should join its cast.
    pub fn admits_now(&self, path: &RemotePath, host: IpAddr) -> bool {
        self.admits(path, host, Instant::now())
    }

    /// Like [`Self::admits_now`], at this time.
    fn admits(&self, path: &RemotePath, host: IpAddr, now: Instant) -> bool {
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Requests { files, shared } = &mut *requests;
        let is_recent = |last: &LastRequest| now < last.at + MANY_WITHIN;
        if let Some(last) = files.get_mut(path).filter(|last| is_recent(last)) {
            last.at = now;
            let is_admitted = last.host == host;
            if !is_admitted {
                record_shared(shared, path, now);
            }
            return is_admitted;
        }
        if files.len() >= MAX_FILES {
            files.retain(|_, last| is_recent(last));
        }
        if files.len() < MAX_FILES {
            files.insert(path.clone(), LastRequest { host, at: now });
        }
        debug_assert!(files.len() <= MAX_FILES, "requests would accumulate");
        true
    }

    /// Whether several hosts have lately asked for the same file of this directory.
    pub fn is_shared(&self, directory: &RemotePath) -> bool {
        let requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = requests.shared.get(directory);
        at.is_some_and(|at| Instant::now() < *at + SHARED_FOR)
    }
}

/// Records that several hosts asked for a file.
fn record_shared(shared: &mut HashMap<RemotePath, Instant>, path: &RemotePath, now: Instant) {
    if shared.len() >= MAX_FILES {
        shared.retain(|_, at| now < *at + SHARED_FOR);
    }
    if let Some(directory) = path.parent().filter(|_| shared.len() < MAX_FILES) {
        shared.insert(directory, now);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_first_host_gets_a_file_and_others_join_until_nobody_asks_for_a_second() {
        let (files, now) = (SmallFiles::default(), Instant::now());
        let path = |name| RemotePath::decode(name).unwrap();
        let host = |k| IpAddr::V4(Ipv4Addr::new(192, 0, 2, k));
        let ms = Duration::from_millis;
        assert!(files.admits(&path("a"), host(1), now));
        assert!(!files.admits(&path("a"), host(2), now + ms(900)));
        assert!(files.admits(&path("b"), host(2), now + ms(900)), "another file");
        assert!(files.admits(&path("a"), host(1), now + ms(1800)), "the same host");
        assert!(!files.admits(&path("a"), host(3), now + ms(2700)));
        assert!(files.admits(&path("a"), host(3), now + ms(3700)));
        assert!(!files.admits(&path("a"), host(1), now + ms(3701)));
    }

    #[test]
    fn remembered_requests_are_limited() {
        let (files, now) = (SmallFiles::default(), Instant::now());
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for k in 0..=MAX_FILES {
            assert!(files.admits(&RemotePath::decode(&k.to_string()).unwrap(), host, now));
        }
        assert_eq!(files.0.lock().unwrap().files.len(), MAX_FILES);
        let later = now + MANY_WITHIN;
        assert!(files.admits(&RemotePath::decode("x").unwrap(), host, later));
        assert_eq!(files.0.lock().unwrap().files.len(), 1);
    }
}
