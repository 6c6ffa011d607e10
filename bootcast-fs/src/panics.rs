//! Ends the program in order after a panic in any of its threads or tasks.
//!
//! After a panic a thread is gone that readers wait for, and the state behind its locks may be half
//! changed. [`end_on_panic`] makes every panic known to the main thread through `first`. The main
//! thread fails all waiting reads, unmounts, and exits with an error. Until then, `lock` keeps
//! other threads away from state that may be half changed.

use std::panic::PanicHookInfo;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use bootcast_proto::RemotePath;
use tokio::sync::watch;

/// Longest time that the main thread gets to end the program. Then the process is aborted, which
/// leaves a dead mount but no reader that waits.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Description of the first panic.
static FIRST: LazyLock<watch::Sender<Option<String>>> = LazyLock::new(|| watch::Sender::new(None));

/// Makes every panic from now on known to `first`. Calls `log` with its description before that,
/// on the thread that panics.
pub fn end_on_panic(log: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let description = describe(panic);
        log(&description);
        announce(description);
        let abort_late = std::thread::Builder::new().name("abort".into()).spawn(|| {
            sleep(END_TIMEOUT);
            std::process::abort()
        });
        if abort_late.is_err() {
            std::process::abort();
        }
    }));
}

/// Waits for the first panic. Returns its description in one line.
pub(crate) async fn first() -> String {
    let mut panic = FIRST.subscribe();
    match panic.wait_for(Option::is_some).await {
        Ok(panic) => panic.clone().unwrap_or_default(),
        // The sender is a static, so this is never reached.
        Err(_) => std::future::pending().await,
    }
}

/// Returns the description of the first panic, if there was one.
pub(crate) fn description() -> Option<String> {
    FIRST.borrow().clone()
}

fn announce(description: String) {
    FIRST.send_if_modified(|first| {
        let is_first = first.is_none();
        first.get_or_insert(description);
        is_first
    });
}

/// Describes a panic in one line: thread, place and message.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    format!("error in this program, in thread {name}: {panic}").replace('\n', " ")
}

#[expect(clippy::disallowed_methods, reason = "time is all that is waited for")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Locks `mutex`.
///
/// If a thread panicked while it held the lock, the state may be half changed, and the main thread
/// is ending the program. The calling thread then unwinds too, without another message.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.lock() {
        Ok(guard) => guard,
        // A destructor that runs because of a panic must not unwind itself.
        Err(poisoned) if std::thread::panicking() => poisoned.into_inner(),
        Err(_) => std::panic::resume_unwind(Box::new("the state may be half changed")),
    }
}

/// Waits on `condvar` while `waits` is true, for `timeout` at most. After a panic like [`lock`].
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
    waits: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    match condvar.wait_timeout_while(guard, timeout, waits) {
        Ok((guard, _)) => guard,
        Err(_) => std::panic::resume_unwind(Box::new("the state may be half changed")),
    }
}

/// Panics if the environment variable `BOOTCAST_TEST_PANIC` is `place:/path`. End-to-end tests
/// cause panics by this. Builds without debug assertions, such as releases, do not have it.
#[cfg(debug_assertions)]
pub(crate) fn provoke(place: &str, path: &RemotePath) {
    static PROVOKED: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("BOOTCAST_TEST_PANIC").ok());
    let provoked = PROVOKED.as_deref().and_then(|provoked| provoked.split_once(':'));
    let is_here = provoked.is_some_and(|(at, name)| at == place && *name == path.to_string());
    assert!(!is_here, "provoked by a test in {place}");
}

/// Does nothing in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub(crate) fn provoke(_place: &str, _path: &RemotePath) {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Runs the test `name` again in a process of its own, where it calls `child`, and returns the
    /// exit code and what it printed.
    fn in_child(name: &str, child: impl FnOnce() -> i32) -> (Option<i32>, String) {
        const IS_CHILD: &str = "BOOTCAST_TEST_CHILD";
        if std::env::var_os(IS_CHILD).is_some() {
            std::process::exit(child());
        }
        let this = std::env::current_exe().unwrap();
        let output = std::process::Command::new(this)
            .args(["--exact", &format!("panics::tests::{name}"), "--nocapture"])
            .env(IS_CHILD, "1")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap()
    }

    #[test]
    fn the_main_thread_learns_the_first_panic_of_a_thread_and_its_reason() {
        let (code, printed) =
            in_child("the_main_thread_learns_the_first_panic_of_a_thread_and_its_reason", || {
                end_on_panic(|description| eprintln!("logged: {description}"));
                let thread = std::thread::Builder::new().name("receive".into());
                let thread = thread.spawn(|| panic!("out of pages")).unwrap();
                assert!(thread.join().is_err());
                eprintln!("main: {}", runtime().block_on(first()));
                7
            });
        assert_eq!(code, Some(7), "{printed}");
        for line in ["logged: ", "main: "] {
            let line = printed.lines().find_map(|text| text.strip_prefix(line)).unwrap();
            assert!(line.contains("in thread receive: panicked at "), "{line}");
            assert!(line.ends_with("out of pages"), "{line}");
        }
    }

    #[test]
    fn the_main_thread_learns_the_panic_of_a_task() {
        let (code, printed) = in_child("the_main_thread_learns_the_panic_of_a_task", || {
            end_on_panic(|_| ());
            let runtime = runtime();
            drop(runtime.spawn(async { panic!("out of blocks") }));
            assert!(runtime.block_on(first()).ends_with("out of blocks"));
            7
        });
        assert_eq!(code, Some(7), "{printed}");
    }

    #[test]
    fn nobody_uses_the_state_after_a_panic_under_its_lock() {
        let state = Arc::new(Mutex::new(0));
        let theirs = state.clone();
        let panicked = std::thread::spawn(move || {
            *lock(&theirs) += 1;
            let _guard = lock(&theirs);
            // Without a message, because this is the test's own process.
            std::panic::resume_unwind(Box::new("half done"));
        });
        assert!(panicked.join().is_err());
        let theirs = state.clone();
        let other = std::thread::spawn(move || *lock(&theirs));
        assert!(other.join().is_err());
    }
}
