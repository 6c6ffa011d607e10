//! Whether multicast arrives from the server at all, as its files show one after another.

use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use crate::receiver::Reception;

/// Reception of one server's multicast. Logs when it changes.
#[derive(Debug, Default)]
pub(super) struct Multicast {
    is_missing: AtomicBool,
}

impl Multicast {
    /// The reception of a file that is fetched only for lack of multicast changed.
    pub(super) fn note(&self, reception: Reception, server: &str) {
        match reception {
            Reception::Unknown => {}
            Reception::Unicast => {
                if !self.is_missing.swap(true, Ordering::Relaxed) {
                    warn!("no multicast from {server}: fetching over HTTP");
                }
            }
            Reception::Multicast => {
                if self.is_missing.swap(false, Ordering::Relaxed) {
                    info!("multicast from {server} comes again");
                }
            }
        }
    }

    /// Whether the file that was asked last got none.
    pub(super) fn is_missing(&self) -> bool {
        self.is_missing.load(Ordering::Relaxed)
    }
}
