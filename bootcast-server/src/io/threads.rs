//! Threads of the server, and what happens when one of them panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::mpsc;

/// A thread that ended by a panic.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread \"{thread}\" panicked: {reason}")]
pub struct ThreadPanicked {
    /// Name of the thread.
    pub thread: &'static str,
    /// Message of the panic.
    pub reason: String,
}

/// Starts threads, and reports those that panic. Without it, work that such a thread had would
/// never be finished, and nobody would know why.
#[derive(Clone, Debug)]
pub struct ThreadWatch(mpsc::UnboundedSender<ThreadPanicked>);

impl ThreadWatch {
    /// Creates a watch, and the receiver of its reports. The receiver must end the program.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<ThreadPanicked>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Starts a thread.
    pub fn spawn(
        &self,
        thread: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let panics = self.0.clone();
        let watched = move || {
            // What the work shared is not used any more: the program ends.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
                let reason = reason_of(&*payload);
                // Nobody is left to hear it if the server has stopped.
                let _ = panics.send(ThreadPanicked { thread, reason });
            }
        };
        std::thread::Builder::new().name(thread.to_owned()).spawn(watched).map(drop)
    }
}

/// Returns the message of a panic.
pub fn reason_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "without a message".to_owned())
}

/// Nice value of work in the background: a ninth of the CPU time of a thread that competes.
const LOW_PRIORITY: i32 = 10;

/// Sets the nice value of this thread. Without `CAP_SYS_NICE` it can only be raised, and otherwise
/// stays unchanged.
pub fn set_niceness(niceness: i32) {
    let this = Some(rustix::thread::gettid());
    if let Err(error) = rustix::process::setpriority_process(this, niceness) {
        tracing::debug!(%error, niceness, "cannot set the priority of a thread");
    }
}

/// Runs work that others must not notice, in a thread of its own: its nice value could not be
/// lowered again without `CAP_SYS_NICE`.
pub fn at_low_priority<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        set_niceness(LOW_PRIORITY);
        work()
    };
    let result = std::thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_at_low_priority_leaves_the_thread_as_it_was() {
        let niceness = || rustix::process::getpriority_process(Some(rustix::thread::gettid()));
        let before = niceness().unwrap();
        assert_eq!(at_low_priority(niceness), Ok(before.max(LOW_PRIORITY)));
        assert_eq!(niceness(), Ok(before));
    }
}
