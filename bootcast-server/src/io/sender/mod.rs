//! The one thread that owns all casts and sends their pages; and the handle that talks to it.

mod driver;

use std::net::Ipv4Addr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bootcast_proto::api::{Report, Status, Want};
use bootcast_proto::geometry::TooManyPages;
use bootcast_proto::join::Extensions;
use bootcast_proto::{Etag, Geometry, JoinAnswer, Layout, PageSize, RemotePath, Token};
use tokio::sync::oneshot;

use super::cast_keys::CastKeys;
use super::interface::{Interface, InterfaceName};
use super::socket::{MulticastSocket, SocketConfig};
use crate::cast::{JoinRefusal, Joined, MemberKind, RepairSettings, Settings};
use crate::source::{OpenFile, Source};
use driver::Driver;

/// Nice value of the sender's thread. docs/SEMANTICS.md, "Priority".
const NICENESS: i32 = -10;

/// What the sender needs to know.
#[derive(Debug)]
pub struct SenderConfig {
    /// What is served.
    pub source: Arc<Source>,
    /// Where to.
    pub interface: Interface,
    /// How the interface was named; `None` for the default. It is looked up again when it went away.
    pub interface_name: Option<InterfaceName>,
    /// Any address of the groups, for that.
    pub any_group: Ipv4Addr,
    /// How.
    pub socket: SocketConfig,
    /// Bytes of a full page.
    pub page_size: PageSize,
    /// What the headers say.
    pub layout: Layout,
    /// What vouches for the datagrams; `None`: nothing does.
    pub keys: Option<CastKeys>,
}

/// Why there is no answer to a join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Try again later.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// The file was replaced since it was opened: open it again.
    #[error("the file was replaced meanwhile: try again")]
    Outdated,
    /// The file is too large for the page size.
    #[error("no cast with the server's --page-size: {0}")]
    TooManyPages(#[from] TooManyPages),
    /// Not from the sender.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// How long the sender is waited for. It needs milliseconds, but for a disk that hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Why the sender does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It is gone.
    #[error("the server stops")]
    Stopped,
    /// It has other things to do, for seconds.
    #[error("the server is busy: try again later")]
    Busy,
}

/// Talks to the sender. Each call waits a few milliseconds as a rule, a few seconds at most.
#[derive(Clone, Debug)]
pub struct SenderHandle {
    commands: mpsc::Sender<Command>,
    page_size: PageSize,
    layout: Layout,
    source_address: Ipv4Addr,
    repair: Option<RepairSettings>,
    keys: Option<CastKeys>,
}

#[derive(Debug)]
enum Command {
    Join {
        path: RemotePath,
        etag: Etag,
        open: OpenFile,
        geometry: Geometry,
        token: Token,
        kind: MemberKind,
        reply: oneshot::Sender<Result<Joined, JoinError>>,
    },
    Leave {
        path: RemotePath,
        token: Token,
        reply: oneshot::Sender<bool>,
    },
    Report {
        path: RemotePath,
        token: Token,
        report: Report,
        reply: oneshot::Sender<bool>,
    },
    Want {
        path: RemotePath,
        token: Token,
        want: Want,
        reply: oneshot::Sender<bool>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Stop,
}

/// Opens the socket and starts the thread. It ends by [`SenderHandle::stop`]; then the receiver resolves.
pub fn spawn(
    config: SenderConfig,
    settings: Settings,
) -> std::io::Result<(SenderHandle, oneshot::Receiver<()>)> {
    let socket = MulticastSocket::open(&config.interface, &config.socket)?;
    let (commands, received) = mpsc::channel();
    let handle = SenderHandle {
        commands,
        page_size: config.page_size,
        layout: config.layout,
        source_address: config.interface.address,
        repair: settings.repair,
        keys: config.keys.clone(),
    };
    let (ending, ended) = oneshot::channel();
    std::thread::Builder::new().name("sender".to_owned()).spawn(move || {
        // Dropped with the thread, by whatever way it ends.
        let _ending: oneshot::Sender<()> = ending;
        raise_priority();
        Driver::new(config, settings, socket).run(&received);
    })?;
    Ok((handle, ended))
}

/// The pace of all clients hangs on this thread: time on the wire that it misses because others have the processor is lost for
/// all. Where the operator does not allow it (`CAP_SYS_NICE`), it has the priority of the others.
fn raise_priority() {
    let this = Some(rustix::thread::gettid());
    if let Err(error) = rustix::process::setpriority_process(this, NICENESS) {
        tracing::debug!(%error, "the sender keeps its usual priority");
    }
}

impl SenderHandle {
    /// Joins the cast of this version of the file.
    pub async fn join(
        &self,
        path: RemotePath,
        open: OpenFile,
        token: Token,
        kind: MemberKind,
    ) -> Result<JoinAnswer, JoinError> {
        let etag = open.etag();
        let geometry = Geometry::new(open.version.size(), self.page_size)?;
        let (name, version) = (token.clone(), etag.clone());
        let join =
            |reply| Command::Join { path, etag: version, open, geometry, token: name, kind, reply };
        let joined = self.ask(join).await??;
        let repair = self.repair.and_then(|it| Some((it, it.layout(&geometry)?)));
        Ok(JoinAnswer {
            connect: joined.group,
            token,
            pages: self.layout.announced_pages(&geometry),
            page_size: self.page_size,
            extensions: Extensions {
                size: Some(geometry.size()),
                etag: Some(etag),
                rate: Some(joined.rate),
                source: Some(self.source_address.into()),
                key: self.keys.as_ref().map(|keys| keys.of(joined.cast)),
                repair: repair.map(|(settings, _)| settings.repair_port),
                interleave: repair.map(|(_, layout)| layout.interleave()),
                lease: repair.map(|(settings, _)| settings.lease),
            },
        })
    }

    /// Leaves; `false` where the token is no member of a cast of this path.
    pub async fn leave(&self, path: RemotePath, token: Token) -> Result<bool, NoAnswer> {
        self.ask(|reply| Command::Leave { path, token, reply }).await
    }

    /// Tells what a member lacks; `false` where the token is no member of a cast of this path that may report.
    pub async fn report(
        &self,
        path: RemotePath,
        token: Token,
        report: Report,
    ) -> Result<bool, NoAnswer> {
        self.ask(|reply| Command::Report { path, token, report, reply }).await
    }

    /// Asks for pages; `false` where the token is no member of a cast of this path that may ask.
    pub async fn want(&self, path: RemotePath, token: Token, want: Want) -> Result<bool, NoAnswer> {
        self.ask(|reply| Command::Want { path, token, want, reply }).await
    }

    /// What runs at present.
    pub async fn status(&self) -> Result<Status, NoAnswer> {
        self.ask(|reply| Command::Status { reply }).await
    }

    /// Ends all casts and the thread.
    pub fn stop(&self) {
        // A sender that is gone has stopped.
        let _ = self.commands.send(Command::Stop);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| NoAnswer::Stopped)?;
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Stopped),
            Err(_) => Err(NoAnswer::Busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_does_not_answer_is_not_waited_for_for_ever() {
        let (commands, received) = mpsc::channel();
        let handle = SenderHandle {
            repair: None,
            keys: None,
            commands,
            page_size: PageSize::new(1456).unwrap(),
            layout: Layout::Base,
            source_address: Ipv4Addr::LOCALHOST,
        };
        assert_eq!(handle.status().await, Err(NoAnswer::Busy));
        let Ok(Command::Status { reply }) = received.recv() else { panic!("another command") };
        assert!(reply.is_closed());
        drop(received);
        assert_eq!(handle.status().await, Err(NoAnswer::Stopped));
    }
}
