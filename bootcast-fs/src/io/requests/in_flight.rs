//! Number of requests in flight, so that an orderly end can wait for its leaves.

use std::sync::Arc;

use tokio::sync::watch;

/// Counter of the requests in flight.
#[derive(Clone, Debug, Default)]
pub(in crate::io) struct InFlightCount(Arc<watch::Sender<usize>>);

impl InFlightCount {
    /// Counts a request until the result is dropped.
    pub(in crate::io) fn begin(&self) -> InFlight {
        self.0.send_modify(|count| *count += 1);
        InFlight(self.0.clone())
    }

    /// Waits until no request is in flight.
    pub(in crate::io) async fn drained(&self) {
        let mut count = self.0.subscribe();
        // Fails only if the sender is gone, but `self` has it.
        let _ = count.wait_for(|count| *count == 0).await;
    }
}

/// A request that counts as in flight until this is dropped.
#[derive(Debug)]
pub(in crate::io) struct InFlight(Arc<watch::Sender<usize>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|count| {
            debug_assert!(*count > 0, "a request is counted once");
            *count = count.saturating_sub(1);
        });
    }
}
