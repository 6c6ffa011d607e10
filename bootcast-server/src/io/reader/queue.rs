//! Order of the jobs of the reader stage. No I/O, no threads.
//!
//! A file system may hang: an NFS server that went away, a FUSE daemon that stopped, a disk that
//! does not answer. Each job for a file on it then keeps a thread. Therefore a file system gets at
//! most half of the threads that other file systems leave: with 32 threads the first one that hangs
//! takes 16, the second 8. A sixth one takes the last thread. A single cast gets
//! [`CAST_THREADS`], so that one file that hangs leaves threads for others of its file system.

use std::collections::{BTreeMap, VecDeque};

use crate::cast::CastId;

/// Maximum number of threads that work for one cast at a time: one for the stream and one for
/// symbols, say. As many close files.
const CAST_THREADS: usize = 2;

/// Identifies a file system: the device number of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileSystem(pub u64);

/// What a job is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose {
    /// Cast that needs the outcome; `None` for closing files.
    pub cast: Option<CastId>,
    /// File system that the job may hang on.
    pub file_system: FileSystem,
}

/// Jobs that wait for a thread, and the number of those that have one.
#[derive(Debug)]
pub(super) struct Queue<J> {
    threads: usize,
    file_systems: BTreeMap<FileSystem, Jobs<J>>,
}

/// Jobs of one file system.
#[derive(Debug)]
struct Jobs<J> {
    waiting: VecDeque<(Option<CastId>, J)>,
    running: BTreeMap<Option<CastId>, usize>,
}

impl<J> Queue<J> {
    /// Creates an empty queue for this number of threads.
    pub(super) fn new(threads: usize) -> Self {
        assert!(threads > 0, "no job would ever run");
        Self { threads, file_systems: BTreeMap::new() }
    }

    /// Adds a job.
    pub(super) fn push(&mut self, purpose: Purpose, job: J) {
        let Purpose { cast, file_system } = purpose;
        self.file_systems.entry(file_system).or_default().waiting.push_back((cast, job));
    }

    /// Returns the next job that may run: the oldest one of the file system with the fewest running
    /// jobs. [`Self::finish`] must follow.
    pub(super) fn pop(&mut self) -> Option<(Purpose, J)> {
        let busy = self.running();
        let threads = self.threads;
        let may_run = |jobs: &&mut Jobs<J>| {
            let left = threads - (busy - jobs.threads()).min(threads);
            jobs.threads() < left.div_ceil(2)
        };
        let jobs = self.file_systems.iter_mut().filter(|(_, jobs)| may_run(jobs));
        let next = jobs.filter_map(|(file_system, jobs)| Some((jobs.next()?, *file_system, jobs)));
        let (at, file_system, jobs) = next.min_by_key(|(_, _, jobs)| jobs.threads())?;
        let (cast, job) = jobs.waiting.remove(at)?;
        *jobs.running.entry(cast).or_default() += 1;
        debug_assert!(self.running() <= self.threads, "more jobs run than there are threads");
        Some((Purpose { cast, file_system }, job))
    }

    /// Records that a job has run.
    pub(super) fn finish(&mut self, purpose: Purpose) {
        let jobs = self.file_systems.get_mut(&purpose.file_system);
        let running = jobs.and_then(|jobs| jobs.running.get_mut(&purpose.cast));
        let running = running.expect("every job that runs is counted");
        *running -= 1;
        if let Some(jobs) = self.file_systems.get_mut(&purpose.file_system) {
            jobs.running.retain(|_, running| *running > 0);
            if jobs.waiting.is_empty() && jobs.running.is_empty() {
                self.file_systems.remove(&purpose.file_system);
            }
        }
    }

    /// Returns the number of jobs that wait for a thread.
    pub(super) fn waiting(&self) -> usize {
        self.file_systems.values().map(|jobs| jobs.waiting.len()).sum()
    }

    /// Returns the number of jobs that run.
    pub(super) fn running(&self) -> usize {
        self.file_systems.values().map(Jobs::threads).sum()
    }
}

impl<J> Jobs<J> {
    /// Returns the number of threads that work for this file system.
    fn threads(&self) -> usize {
        self.running.values().sum()
    }

    /// Returns the position of the oldest job whose cast may have another thread.
    fn next(&self) -> Option<usize> {
        let may_run = |(cast, _): &(Option<CastId>, J)| {
            self.running.get(cast).is_none_or(|running| *running < CAST_THREADS)
        };
        self.waiting.iter().position(may_run)
    }
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), running: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purpose(cast: u64, file_system: u64) -> Purpose {
        Purpose { cast: Some(CastId(cast)), file_system: FileSystem(file_system) }
    }

    /// Starts all jobs that may run, and returns how many each file system has.
    fn start_all(queue: &mut Queue<()>) -> BTreeMap<u64, usize> {
        let mut started = BTreeMap::new();
        while let Some((purpose, ())) = queue.pop() {
            *started.entry(purpose.file_system.0).or_default() += 1;
        }
        started
    }

    #[test]
    fn file_systems_that_hang_leave_threads_for_the_next_one() {
        let mut queue = Queue::new(32);
        let mut shares = Vec::new();
        for file_system in 0..6 {
            (0..100).for_each(|cast| queue.push(purpose(cast, file_system), ()));
            shares.push(start_all(&mut queue)[&file_system]);
        }
        assert_eq!(shares, [16, 8, 4, 2, 1, 1]);
        queue.push(purpose(1000, 9), ());
        assert!(queue.pop().is_none());
        queue.finish(purpose(0, 0));
        assert_eq!(queue.pop().map(|(purpose, ())| purpose), Some(purpose(1000, 9)));
    }

    #[test]
    fn a_cast_that_hangs_leaves_threads_for_others_of_its_file_system() {
        let mut queue = Queue::new(32);
        (0..8).for_each(|_| queue.push(purpose(1, 0), ()));
        queue.push(purpose(2, 0), ());
        let started: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|(purpose, ())| purpose.cast.unwrap().0)
            .collect();
        assert_eq!(started, [1, 1, 2]);
        queue.finish(purpose(1, 0));
        assert_eq!(queue.pop().map(|(purpose, ())| purpose.cast), Some(Some(CastId(1))));
    }

    #[test]
    fn finished_jobs_leave_nothing_behind() {
        let mut queue = Queue::new(4);
        for round in 0..100 {
            queue.push(purpose(round, round), ());
            let (purpose, ()) = queue.pop().unwrap();
            queue.finish(purpose);
        }
        assert!(queue.file_systems.is_empty() && queue.running() == 0);
    }
}
