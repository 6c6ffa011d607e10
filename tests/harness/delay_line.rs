//! A delay line: each frame leaves it a fixed time after it entered, in order. Not every kernel has
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

/// Largest number of frames in flight in one direction. Further frames are lost.
const MAX_IN_FLIGHT: usize = 200_000;

/// Longest sleep of the thread. Bounds the time until it notices that it should end.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// A running delay line. Ends when dropped.
#[derive(Debug)]
pub(crate) struct DelayLine {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One direction of the delay line.
struct Direction {
    /// Index of the tap that frames come from.
    from: usize,
    /// Frames in flight with the time at which they leave, in order.
    in_flight: VecDeque<(Instant, Vec<u8>)>,
}

impl DelayLine {
    /// Connects two tap interfaces of a namespace. A frame that leaves by one arrives at the other,
    /// `delay` later.
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

/// Forwards frames in both directions until `stop` is set.
fn carry(taps: &[File; 2], delay: Duration, stop: &AtomicBool) {
    let direction = |from| Direction { from, in_flight: VecDeque::new() };
    let mut directions = [direction(0), direction(1)];
    let mut frame = vec![0; FRAME_MAX];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let dues = directions.iter().filter_map(|it| it.in_flight.front()).map(|(due, _)| *due);
        let sleep = dues.min().map_or(MAX_SLEEP, |due| due.saturating_duration_since(now));
        let mut waiting = taps.each_ref().map(|tap| PollFd::new(tap, PollFlags::IN));
        // An interrupted wait only ends early.
        let _ = poll(&mut waiting, Timespec::try_from(sleep.min(MAX_SLEEP)).ok().as_ref());
        let now = Instant::now();
        for Direction { from, in_flight } in &mut directions {
            while let Ok(len) = (&taps[*from]).read(&mut frame) {
                if in_flight.len() < MAX_IN_FLIGHT {
                    in_flight.push_back((now + delay, frame[..len].to_vec()));
                }
            }
            let is_due = |(due, _): &(Instant, Vec<u8>)| *due <= now;
            while in_flight.front().is_some_and(is_due)
                && let Some((_, frame)) = in_flight.pop_front()
            {
                // A full queue on the other side loses the frame.
                let _ = (&taps[1 - *from]).write(&frame);
            }
        }
    }
}
