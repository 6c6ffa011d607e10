//! The answer thread: copies the bytes of reads whose pages have arrived.

use std::io;
use std::sync::{Arc, mpsc};

use crate::object::{Object, Ready};
use crate::panics;

/// Most bytes of reads that the receive thread answers itself: copying them takes less time than
/// waking another thread.
const MAX_INLINE_BYTES: u64 = 16 << 10;

/// Sends reads to the answer thread, which ends when all clones are dropped.
#[derive(Clone, Debug)]
pub(super) struct Answers(mpsc::Sender<(Arc<Object>, Vec<Ready>)>);

impl Answers {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, ready) = mpsc::channel::<(Arc<Object>, Vec<Ready>)>();
        let thread = std::thread::Builder::new().name("answer".into());
        thread.spawn(move || {
            for (object, reads) in ready {
                for read in reads {
                    panics::provoke("answer", &object.key().path);
                    object.answer(read);
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Has the reads of `object` answered by the answer thread.
    pub(super) fn queue(&self, object: &Arc<Object>, reads: Vec<Ready>) {
        if !reads.is_empty() {
            // The answer thread lives as long as this sender.
            let _ = self.0.send((object.clone(), reads));
        }
    }

    /// Answers short reads at once, and queues longer ones. For the receive thread.
    pub(super) fn answer(&self, object: &Arc<Object>, reads: Vec<Ready>) {
        let bytes: u64 = reads.iter().map(|read| read.bytes.end - read.bytes.start).sum();
        if bytes > MAX_INLINE_BYTES {
            return self.queue(object, reads);
        }
        for read in reads {
            object.answer(read);
        }
    }
}
