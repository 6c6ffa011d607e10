//! A long cable: each frame leaves its other end a fixed time later, in order. For kernels without
//! `netem`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::open_tap;

/// Largest Ethernet frame.
const FRAME_MAX: usize = 65_536;

/// Most frames in flight in one direction. Further frames are lost.
const UNDER_WAY_MAX: usize = 200_000;

/// How often the thread checks whether it should end.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// A running delay line. Ends when dropped.
#[derive(Debug)]
pub(crate) struct DelayLine {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One direction.
struct Direction {
    from: usize,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl DelayLine {
    /// Connects two tap interfaces of a namespace: what leaves by one arrives at the other, `delay`
    /// later.
    pub(crate) fn start(namespace: &Path, taps: [&'static str; 2], delay: Duration) -> Self {
        let taps = open_taps(namespace, taps);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carry(&taps, delay, &stopped));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread has printed its panic already.
            let _ = thread.join();
        }
    }
}

fn open_taps(namespace: &Path, names: [&'static str; 2]) -> [File; 2] {
    let namespace = File::open(namespace).expect("the namespace of the switch");
    let opened = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("entering the namespace of the switch");
        names.map(|name| open_tap(name).expect("a tap interface"))
    });
    opened.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn carry(taps: &[File; 2], delay: Duration, stop: &AtomicBool) {
    let direction = |from| Direction { from, under_way: VecDeque::new() };
    let mut directions = [direction(0), direction(1)];
    let mut frame = vec![0; FRAME_MAX];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let dues = directions.iter().filter_map(|it| it.under_way.front()).map(|(due, _)| *due);
        let sleep = dues.min().map_or(LONGEST_SLEEP, |due| due.saturating_duration_since(now));
        let mut waiting = taps.each_ref().map(|tap| PollFd::new(tap, PollFlags::IN));
        // An interrupted wait is merely short.
        let _ = poll(&mut waiting, Timespec::try_from(sleep.min(LONGEST_SLEEP)).ok().as_ref());
        let now = Instant::now();
        for Direction { from, under_way } in &mut directions {
            while let Ok(len) = (&taps[*from]).read(&mut frame) {
                if under_way.len() < UNDER_WAY_MAX {
                    under_way.push_back((now + delay, frame[..len].to_vec()));
                }
            }
            let is_due = |(due, _): &(Instant, Vec<u8>)| *due <= now;
            while under_way.front().is_some_and(is_due)
                && let Some((_, frame)) = under_way.pop_front()
            {
                // A full queue on the other side loses the frame.
                let _ = (&taps[1 - *from]).write(&frame);
            }
        }
    }
}
