//! Threads of the reader stage.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::queue::Queue;
pub use super::queue::{FileSystem, Purpose};
use crate::io::threads::ThreadWatch;

/// Maximum number of threads. Each may hang in a file system.
const THREADS: usize = 32;

/// Nice value of the threads. The sender waits for them, but goes before them.
const NICENESS: i32 = -5;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs that may block. Dropping it lets the threads end after the jobs that wait.
pub struct Stage {
    shared: Arc<Shared>,
    watch: ThreadWatch,
}

struct Shared {
    state: Mutex<State>,
    /// Signals a job, or that the stage is dropped.
    changed: Condvar,
}

struct State {
    queue: Queue<Job>,
    /// Number of threads that were started.
    threads: usize,
    /// Number of threads that wait for a job.
    idle: usize,
    is_closed: bool,
}

impl Stage {
    /// Starts a stage with one thread. It starts more while jobs wait.
    pub fn start(watch: ThreadWatch) -> std::io::Result<Self> {
        let empty = State { queue: Queue::new(THREADS), threads: 0, idle: 0, is_closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(empty), changed: Condvar::new() });
        let stage = Self { shared, watch };
        stage.start_thread(&mut stage.shared.lock())?;
        Ok(stage)
    }

    /// Queues a job. It runs as soon as a thread is free that its file system may use.
    pub fn submit(&self, purpose: Purpose, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.queue.push(purpose, Box::new(job));
        let is_short = state.queue.waiting() > state.idle && state.threads < THREADS;
        // Without another thread the job waits for one of the present ones.
        if is_short && let Err(error) = self.start_thread(&mut state) {
            tracing::debug!(%error, "cannot start another reader thread");
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    fn start_thread(&self, state: &mut State) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.watch.spawn("reader", move || {
            crate::io::threads::set_niceness(NICENESS);
            shared.run();
        })?;
        state.threads += 1;
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a job happens outside of the lock, and ends the program.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs jobs until the stage is dropped and none may run.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let Some((purpose, job)) = state.queue.pop() else {
                if state.is_closed {
                    return;
                }
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            job();
            state = self.lock();
            state.queue.finish(purpose);
            // Another file system may use one more thread now, too.
            if state.idle > 0 && state.queue.waiting() > 0 {
                self.changed.notify_one();
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::cast::CastId;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn purpose(cast: u64, file_system: u64) -> Purpose {
        Purpose { cast: Some(CastId(cast)), file_system: FileSystem(file_system) }
    }

    #[test]
    fn while_one_file_system_hangs_the_jobs_of_others_run() {
        let stage = Stage::start(ThreadWatch::new().0).unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let (done, finished) = mpsc::channel();
        for cast in 0..100 {
            let (blocked, done) = (Arc::clone(&blocked), done.clone());
            stage.submit(purpose(cast, 1), move || {
                // Returns when the test drops its sender.
                let _ = blocked.lock().unwrap().recv();
                done.send(cast).unwrap();
            });
        }
        stage.submit(purpose(1000, 2), move || done.send(1000).unwrap());
        assert_eq!(finished.recv_timeout(DEADLINE), Ok(1000));
        drop(release);
        let mut rest: Vec<_> = finished.iter().collect();
        rest.sort_unstable();
        assert_eq!(rest, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_job_that_panics_is_noticed() {
        let (watch, mut panics) = ThreadWatch::new();
        let stage = Stage::start(watch).unwrap();
        stage.submit(purpose(1, 1), || panic!("intended by the test"));
        let panicked = panics.blocking_recv().unwrap();
        assert_eq!(panicked.to_string(), "the thread \"reader\" panicked: intended by the test");
    }
}
