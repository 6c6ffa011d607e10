//! The process that receives a file, and tells others of this machine what has arrived.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::super::now;
use super::super::requests::{self, Context};
use super::{
    ALIVE_PERIOD, FileMessage, FromFollower, FromHolder, MAX_RANGES, Messages, Span, VERSION,
    check_peer, send, socket_path,
};
use crate::cache::open_dir;
use crate::log_limit;
use crate::object::{FollowUp, Holding, Object, Unread, Waiter};
use crate::receiver::{News, Told};

/// Time for which news accumulate, except for what a reader of the follower waits for.
const COALESCE_DELAY: Duration = Duration::from_millis(10);

/// Tells followers of an object what arrives, until they are of no more use.
pub(in crate::io) async fn hold(context: Arc<Context>, holding: Holding) {
    let (listener, dir) = loop {
        match open_dir(holding.dir()).and_then(|dir| Ok((listen(&dir)?, dir))) {
            Ok(listening) => break listening,
            Err(error) => {
                if let Some(more) = log_limit::allow("cannot share a file", &error) {
                    warn!(%error, "cannot share files with other processes of this machine{more}");
                }
            }
        }
        // Descriptors, or room, may be short for a moment.
        tokio::select! {
            () = tokio::time::sleep(ALIVE_PERIOD) => {}
            _ = holding.over() => return,
        }
    };
    let over = holding.over();
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let Some(object) = holding.object() else { break };
                    tokio::spawn(serve(context.clone(), object, stream));
                }
                // Descriptors may be short for a moment.
                Err(_) => tokio::time::sleep(ALIVE_PERIOD).await,
            }
        }
    };
    let is_settled = tokio::select! {
        () = accept => false,
        is_settled = over => is_settled,
    };
    if is_settled {
        // Nobody makes one of an object that is complete. Otherwise the store removes it.
        let _ = std::fs::remove_file(socket_path(&dir));
    }
}

/// Makes the socket of an object, which is locked, so that a socket there was left by others.
fn listen(dir: &impl std::os::fd::AsRawFd) -> io::Result<UnixListener> {
    let path = socket_path(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(path)
}

/// Serves one follower. It counts as an open.
async fn serve(context: Arc<Context>, object: Arc<Object>, stream: UnixStream) {
    let attend = || context.inbox.attend(&object, context.in_flight.begin());
    object.open();
    if object.pin() {
        attend();
        let result = converse(&context, &object, stream).await;
        debug!(path = %object.key().path, ?result, "a follower ended");
    }
    object.close(now());
    object.unpin_if_idle();
    attend();
}

async fn converse(
    context: &Arc<Context>,
    object: &Arc<Object>,
    stream: UnixStream,
) -> io::Result<()> {
    check_peer(&stream)?;
    let (reader, socket) = stream.into_split();
    let mut messages = Messages::receive(reader);
    let Some(FromFollower::Hello { version: VERSION, verifies }) = messages.next().await else {
        return Ok(());
    };
    let (answers, answered) = mpsc::unbounded_channel();
    let follower = Follower {
        context: context.clone(),
        object: object.clone(),
        socket,
        verifies,
        told: None,
        waits: BTreeMap::new(),
        answers,
    };
    follower.run(messages, answered).await
}

/// A follower, as its holder sees it.
struct Follower {
    context: Arc<Context>,
    object: Arc<Object>,
    socket: OwnedWriteHalf,
    /// Whether it verifies leaves.
    verifies: bool,
    /// Leaves or pages already reported to this follower; `None` until the file was described to
    /// it.
    told: Option<Told>,
    /// Reads parked here for the follower, by their bytes. The flag of each is set to abandon it.
    waits: BTreeMap<Span, Arc<AtomicBool>>,
    answers: mpsc::UnboundedSender<Answer>,
}

/// End of a wait for bytes.
type Answer = (Span, Result<(), Unread>);

impl Follower {
    /// Serves the follower until one of both ends.
    async fn run(
        mut self,
        mut messages: Messages<FromFollower>,
        mut answered: mpsc::UnboundedReceiver<Answer>,
    ) -> io::Result<()> {
        let mut changes = self.object.watch();
        let mut alive = tokio::time::interval(ALIVE_PERIOD);
        // When to tell what is new; `None` while nothing is.
        let mut tell_at = Some(now());
        loop {
            if tell_at.is_some_and(|at| at <= now()) {
                tell_at = None;
                if !self.tell().await? {
                    return Ok(());
                }
            }
            let pause = tell_at.map_or(ALIVE_PERIOD, |at| at.saturating_duration_since(now()));
            tokio::select! {
                message = messages.next() => match message {
                    Some(FromFollower::Wishes { bytes, fill }) => {
                        self.handle_wishes(&bytes, fill)?;
                    }
                    Some(FromFollower::Hello { .. }) | None => return Ok(()),
                },
                Some(answer) = answered.recv() => {
                    self.handle_answer(answer).await?;
                    tell_at = Some(now());
                }
                _ = changes.changed(), if tell_at.is_none() => {
                    tell_at = Some(now() + COALESCE_DELAY);
                }
                () = tokio::time::sleep(pause), if tell_at.is_some() => {}
                _ = alive.tick() => send(&mut self.socket, &FromHolder::Alive).await?,
            }
        }
    }

    /// Tells what is new. Returns `false` if there is nothing more to tell.
    async fn tell(&mut self) -> io::Result<bool> {
        self.describe().await?;
        let mut nothing = Told::no_pages();
        // Settled before it is read is settled afterwards.
        let is_settled = self.object.store().is_settled();
        let last = match (self.object.news(self.told.as_mut().unwrap_or(&mut nothing)), &self.told)
        {
            (News::Readable(_), None) => None,
            (News::Readable(runs), Some(_)) => {
                self.tell_readable(&runs).await?;
                is_settled.then_some(FromHolder::Settled)
            }
            // It connects again, and begins anew.
            (News::Retracted, _) => return Ok(false),
            (News::Ending, _) => Some(FromHolder::Ending),
            (News::Gone, _) => Some(FromHolder::Gone),
            (News::Failed, _) => Some(FromHolder::Failed),
        };
        if let Some(last) = &last {
            send(&mut self.socket, last).await?;
        }
        Ok(last.is_none())
    }

    /// Describes the file once it can be opened here.
    async fn describe(&mut self) -> io::Result<()> {
        if self.told.is_none()
            && let Some(file) = self.object.describe()
        {
            let told = self.object.nothing_told(self.verifies);
            let file = FileMessage::new(&file, !told.has_leaves());
            self.told = Some(told);
            send(&mut self.socket, &FromHolder::File(file)).await?;
        }
        Ok(())
    }

    async fn tell_readable(&mut self, runs: &[Range<u64>]) -> io::Result<()> {
        for runs in runs.chunks(MAX_RANGES) {
            let spans = runs.iter().map(|run| (run.start, run.end)).collect();
            send(&mut self.socket, &FromHolder::Readable(spans)).await?;
        }
        Ok(())
    }

    /// Handles what the follower's readers wait for: each range is a read of this process.
    fn handle_wishes(&mut self, bytes: &[Span], fill: bool) -> io::Result<()> {
        if bytes.len() > MAX_RANGES || bytes.iter().any(|(start, end)| start > end) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if fill {
            self.object.fill_for_followers(now());
            self.attend();
        }
        self.waits.retain(|span, is_over| {
            let stays = bytes.contains(span);
            is_over.store(!stays, Ordering::Relaxed);
            stays
        });
        for span in bytes {
            if !self.waits.contains_key(span) {
                self.wait(*span);
            }
        }
        Ok(())
    }

    /// Waits for bytes, like a reader of this process.
    fn wait(&mut self, span: Span) {
        let is_over = Arc::new(AtomicBool::new(false));
        self.waits.insert(span, is_over.clone());
        let waiter = Box::new(Wait { span, is_over, answers: self.answers.clone() });
        let FollowUp { want, attend } = self.object.read(span.0..span.1, waiter, now());
        if let Some((token, want)) = want {
            requests::want(&self.context, &self.object, token, want);
        }
        if attend {
            self.attend();
        }
    }

    fn attend(&self) {
        self.context.inbox.attend(&self.object, self.context.in_flight.begin());
    }

    /// Handles the end of a wait. Tells of bytes that cannot arrive.
    async fn handle_answer(&mut self, (span, outcome): Answer) -> io::Result<()> {
        if self.waits.remove(&span).is_none() {
            return Ok(());
        }
        match outcome {
            // It is told of them like of all others.
            Ok(()) | Err(Unread::ShutDown | Unread::Failed(_) | Unread::Store(_)) => {}
            // Its readers have their own patience.
            Err(Unread::TimedOut | Unread::Interrupted) => self.wait(span),
            Err(Unread::Unreadable(_) | Unread::Unproven(_)) => {
                send(&mut self.socket, &FromHolder::Unreadable(span)).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        for is_over in self.waits.values() {
            is_over.store(true, Ordering::Relaxed);
        }
    }
}

/// A follower's wait for bytes.
struct Wait {
    span: Span,
    is_over: Arc<AtomicBool>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Waiter for Wait {
    fn answer(self: Box<Self>, outcome: Result<&[u8], Unread>) {
        if self.is_over.load(Ordering::Relaxed) {
            // The same bytes may be waited for again by now.
            return;
        }
        // Fails if the follower is gone.
        let _ = self.answers.send((self.span, outcome.map(drop)));
    }

    fn is_abandoned(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_given_up_does_not_end_another_one_for_the_same_bytes() {
        let (answers, mut answered) = mpsc::unbounded_channel();
        for is_given_up in [true, false] {
            let is_over = Arc::new(AtomicBool::new(is_given_up));
            let wait = Wait { span: (0, 5), is_over, answers: answers.clone() };
            Box::new(wait).answer(Err(Unread::Interrupted));
            assert_eq!(answered.try_recv().is_err(), is_given_up);
        }
    }
}
