//! Objects that the receive thread must attend to, and the descriptor that wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::EventfdFlags;

use crate::io::requests::InFlight;
use crate::object::Object;
use crate::panics;

/// Queue of objects for the receive thread. Any thread may add to it.
#[derive(Debug)]
pub(in crate::io) struct Inbox {
    /// Eventfd that is readable while the queue has entries that were not taken.
    wake: OwnedFd,
    queue: Mutex<Vec<(Arc<Object>, InFlight)>>,
    is_stopping: AtomicBool,
}

impl Inbox {
    /// Creates an empty inbox.
    pub(in crate::io) fn new() -> io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { wake, queue: Mutex::default(), is_stopping: AtomicBool::new(false) })
    }

    /// Wakes the receive thread to attend to `object`. `in_flight` is dropped when it has.
    pub(in crate::io) fn attend(&self, object: &Arc<Object>, in_flight: InFlight) {
        let entry = (object.clone(), in_flight);
        panics::lock(&self.queue).push(entry);
        self.wake();
    }

    /// Wakes the receive thread to end.
    pub(in crate::io) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the receive thread must end.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Takes all entries.
    pub(super) fn take(&self) -> Vec<(Arc<Object>, InFlight)> {
        // Comes before the entries are taken: an entry that is added meanwhile wakes the thread
        // once more.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut *panics::lock(&self.queue))
    }

    fn wake(&self) {
        // If the counter is full, the thread is being woken anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
