//! Work in the background that waits for the processor or the disk: rebuilding and checkpoints.

use std::sync::Arc;
use std::time::Duration;

use super::Job;
use crate::object::{Object, Rebuilding};
use crate::panics;

/// Time for which blocks that can be rebuilt accumulate, unless nothing else is missing. The
/// symbols of a window arrive block by block, and neighbours are rebuilt from one reading of their
/// pages.
const REBUILD_DELAY: Duration = Duration::from_millis(20);

impl Job {
    /// Rebuilds pages until no block is left that can be. For a thread that may block.
    #[expect(clippy::disallowed_methods, reason = "time is all that is waited for")]
    pub(super) fn rebuild(self, mut rebuilding: Rebuilding) {
        panics::provoke("rebuild", &self.object.key().path);
        loop {
            if !rebuilding.lacks_nothing_else() {
                std::thread::sleep(REBUILD_DELAY);
            }
            if !rebuilding.step(|reads| self.answer(reads)) {
                break;
            }
        }
        self.attend();
    }
}

/// Makes a checkpoint on a thread that may wait for the disk.
pub(super) async fn save(object: Arc<Object>) {
    let saving = tokio::task::spawn_blocking(move || {
        // The object logs what went wrong.
        let _ = object.checkpoint();
    });
    // Awaiting fails only if the runtime ends, which makes checkpoints by itself.
    let _ = saving.await;
}
