//! A process that learns from another one of this machine what arrives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;
use tracing::{debug, info};

use super::super::now;
use super::super::requests::Context;
use super::{
    FileMessage, FromFollower, FromHolder, MAX_RANGES, Messages, Span, VERSION, check_peer, send,
    socket_path,
};
use crate::cache::open_dir;
use crate::object::{Attached, Following, Object, Ready, Wishes};

/// Time without a word of the holder, after which a follower receives the file itself. A part of a
/// second is allowed for a busy machine, and the rest for one that sleeps for a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for a holder that ends to save what it has. The disk can take long.
const SAVE_PATIENCE: Duration = Duration::from_secs(60);
/// Pause before another attempt to reach a holder, or to become it.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// End of a connection to a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// There was none.
    Unreachable,
    /// The holder closed it. This time is allowed until another one, or this process, takes its
    /// place.
    Closed { patience: Duration },
    /// The file cannot come from the holder.
    Useless,
    /// Nobody reads the file any more, or nothing more can arrive.
    Over,
}

/// Follows the holder of an object until that is complete, or nobody reads it. Takes over from a
/// holder that ends. Receives the file alone if the holder does not answer.
pub(in crate::io) async fn follow(context: Arc<Context>, following: Following) {
    let object = following.object().clone();
    let mut follower = Follower { context, object, following: Some(following) };
    follower.run().await;
    let Follower { context, object, .. } = follower;
    context.inbox.attend(&object, context.in_flight.begin());
}

struct Follower {
    context: Arc<Context>,
    object: Arc<Object>,
    /// `None` while a thread that may wait for the disk has it.
    following: Option<Following>,
}

impl Follower {
    async fn run(&mut self) {
        let path = self.object.key().path.clone();
        let mut give_up_at = now() + PATIENCE;
        loop {
            match self.blocking(Following::try_lock).await {
                Some(Attached::Held) => {}
                Some(Attached::Locked) => {
                    debug!(%path, "goes on without another process");
                    return self.save().await;
                }
                Some(Attached::Lost) => break,
                None => return,
            }
            let end = self.attend_holder().await;
            debug!(%path, ?end, "the connection to the process that receives the file ended");
            match end {
                Ok(End::Over) => return,
                Ok(End::Closed { patience }) if patience.is_zero() && now() >= give_up_at => break,
                Ok(End::Closed { patience }) => give_up_at = give_up_at.max(now() + patience),
                Ok(End::Unreachable) | Err(_) if now() < give_up_at => {}
                Ok(End::Useless | End::Unreachable) | Err(_) => break,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        info!(%path, "another process does not share this file: receiving it here, too");
        self.blocking(|following| ((), following.start_alone())).await;
    }

    /// Runs `work` on a thread that may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Following) -> (T, Vec<Ready>) + Send + 'static,
    ) -> Option<T> {
        let mut following = self.following.take()?;
        let task = spawn_blocking(move || {
            let (result, ready) = work(&mut following);
            (following, result, ready)
        });
        // Fails only if the runtime ends, or after a panic.
        let (following, result, ready) = task.await.ok()?;
        self.following = Some(following);
        self.answer(ready);
        Some(result)
    }

    fn answer(&self, ready: Vec<Ready>) {
        self.context.answers.queue(&self.object, ready);
    }

    /// Records a file that is complete, so that the kernel may read it.
    async fn save(&self) {
        let object = self.object.clone();
        if object.has_all_pages() {
            // The object logs errors itself.
            let _ = spawn_blocking(move || object.checkpoint().is_ok()).await;
        }
    }

    /// Learns from a holder what arrives, until the connection ends.
    async fn attend_holder(&mut self) -> std::io::Result<End> {
        let Some(dir) = self.object.store().shared_dir() else { return Ok(End::Useless) };
        let dir = open_dir(dir)?;
        let Ok(stream) = UnixStream::connect(socket_path(&dir)).await else {
            return Ok(End::Unreachable);
        };
        check_peer(&stream)?;
        let Some(following) = &mut self.following else { return Ok(End::Over) };
        let (reader, socket) = stream.into_split();
        let (context, object) = (self.context.clone(), self.object.clone());
        let wished = Wishes::default();
        let mut connection =
            Connection { context, object, following, socket, by_pages: None, wished };
        connection.run(Messages::receive(reader)).await
    }
}

/// Connection to a holder.
struct Connection<'a> {
    context: Arc<Context>,
    object: Arc<Object>,
    following: &'a mut Following,
    socket: OwnedWriteHalf,
    /// Whether the holder tells of pages; `None` before it has described the file.
    by_pages: Option<bool>,
    /// Last wishes that were sent to the holder. They are sent again only when they change.
    wished: Wishes,
}

impl Connection<'_> {
    async fn run(&mut self, mut messages: Messages<FromHolder>) -> std::io::Result<End> {
        let verifies = self.object.verifies_leaves();
        send(&mut self.socket, &FromFollower::Hello { version: VERSION, verifies }).await?;
        let mut changes = self.object.watch();
        let mut silence = Silence::begin();
        loop {
            let Some(wishes) = self.following.wishes(self.by_pages.unwrap_or(false)) else {
                return Ok(End::Over);
            };
            let tell = self.tell(wishes);
            if timeout_at(silence.deadline(), tell).await.is_err() {
                return Ok(End::Useless);
            }
            tokio::select! {
                message = timeout_at(silence.deadline(), messages.next()) => match message {
                    Ok(None) => return Ok(self.closed(PATIENCE)),
                    Ok(Some(message)) => {
                        silence = Silence::begin();
                        if let Some(end) = self.handle(message) {
                            return Ok(end);
                        }
                    }
                    Err(_) if silence.is_over() => return Ok(End::Useless),
                    Err(_) => {}
                },
                _ = changes.changed() => {}
            }
        }
    }

    /// Returns the end of the connection by the holder. One that never described the file may do so
    /// again and again, so that no more time is allowed for it.
    fn closed(&self, patience: Duration) -> End {
        let patience = if self.by_pages.is_some() { patience } else { Duration::ZERO };
        End::Closed { patience }
    }

    /// Tells the holder what readers want, if that has changed and the file is known.
    async fn tell(&mut self, wishes: Wishes) -> std::io::Result<()> {
        if self.by_pages.is_none() || wishes == self.wished {
            return Ok(());
        }
        let span = |bytes: &std::ops::Range<u64>| (bytes.start, bytes.end);
        // The others are told as soon as some of these have arrived.
        let bytes: Vec<Span> = wishes.bytes.iter().map(span).take(MAX_RANGES).collect();
        let fill = wishes.fill;
        self.wished = wishes;
        send(&mut self.socket, &FromFollower::Wishes { bytes, fill }).await
    }

    /// Handles a message. Returns the end of the connection, if this is it.
    fn handle(&mut self, message: FromHolder) -> Option<End> {
        match message {
            FromHolder::File(file) => return self.handle_file(&file),
            FromHolder::Readable(spans) => {
                let runs: Vec<_> = spans.into_iter().map(|(start, end)| start..end).collect();
                let are_leaves = self.by_pages == Some(false);
                self.answer(self.following.handle_told(&runs, are_leaves));
                // Hashes may be due.
                self.context.inbox.attend(&self.object, self.context.in_flight.begin());
            }
            FromHolder::Unreadable((start, end)) => {
                self.answer(self.following.handle_unreadable(&(start..end), now()));
            }
            FromHolder::Alive => {}
            // The next attempt to lock the object succeeds.
            FromHolder::Settled => return Some(self.closed(PATIENCE)),
            FromHolder::Ending => return Some(self.closed(SAVE_PATIENCE)),
            FromHolder::Gone => {
                self.answer(self.following.handle_gone());
                return Some(End::Over);
            }
            FromHolder::Failed => return Some(End::Useless),
        }
        None
    }

    fn handle_file(&mut self, message: &FileMessage) -> Option<End> {
        let fits = message.file().is_some_and(|file| self.following.attach(&file));
        if !fits {
            return Some(End::Useless);
        }
        self.by_pages = Some(message.by_pages);
        debug!(path = %self.object.key().path, "another process of this machine receives it");
        None
    }

    fn answer(&self, ready: Vec<Ready>) {
        self.context.answers.queue(&self.object, ready);
    }
}

/// Time without a word of the holder. It must pass in two parts: a process that was stopped finds
/// the first one over, although the holder may have sent something.
struct Silence {
    since: Instant,
    parts: u32,
}

impl Silence {
    fn begin() -> Self {
        Self { since: now(), parts: 0 }
    }

    /// End of the present part.
    fn deadline(&self) -> tokio::time::Instant {
        (self.since + PATIENCE / 2).into()
    }

    /// Ends a part. Returns whether it was the last one.
    fn is_over(&mut self) -> bool {
        (self.since, self.parts) = (now(), self.parts + 1);
        self.parts > 1
    }
}
