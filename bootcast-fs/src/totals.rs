//! Counters of this process since it began. Like the log, they belong to the whole process.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::status::Totals;

/// A counter that any thread may raise.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `count`.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// One counter for each field of [`Totals`], with its name.
        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// Counters of this process.
        pub(crate) static TOTALS: Counters = Counters { $($name: Counter::new(),)* };

        impl Counters {
            /// Returns the present values.
            pub(crate) fn read(&self) -> Totals {
                Totals { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters!(
    multicast_bytes,
    rebuilt_bytes,
    unicast_bytes,
    duplicate_pages,
    symbols,
    rejected_datagrams,
    dropped_datagrams,
    reads,
    reads_waited,
    joins,
    failed_joins,
    unanswered_requests,
);
