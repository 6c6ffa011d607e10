//! The thread that owns all casts and sends their datagrams, and the handle to it.

mod driver;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bootcast_proto::api::{Report, Status, WantBody};
use bootcast_proto::geometry::TooManyPages;
use bootcast_proto::join::Extensions;
use bootcast_proto::{Etag, Geometry, JoinAnswer, Layout, PageRange, PageSize, RemotePath, Token};
use tokio::sync::oneshot;

use super::cast_keys::CastKeys;
use super::interface::{Interface, InterfaceName};
use super::socket::{MulticastSocket, SocketConfig};
use crate::cast::{JoinRefusal, Joined, MemberKind, RepairSettings, Settings};
use crate::source::{OpenFile, Source};
use driver::Driver;

/// Nice value of the sender's thread. docs/SEMANTICS.md, "Priority".
const NICENESS: i32 = -10;

/// Address that datagrams come from at present. The sender changes it, joins tell it.
#[derive(Clone, Debug)]
pub struct SourceAddress(Arc<AtomicU32>);

impl SourceAddress {
    /// Begins with this address.
    pub fn new(address: Ipv4Addr) -> Self {
        Self(Arc::new(AtomicU32::new(address.to_bits())))
    }

    fn get(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.load(Ordering::Acquire))
    }

    fn set(&self, address: Ipv4Addr) {
        self.0.store(address.to_bits(), Ordering::Release);
    }
}

/// Configuration of the sender.
#[derive(Debug)]
pub struct SenderConfig {
    /// Served directory.
    pub source: Arc<Source>,
    /// Interface that multicast leaves by.
    pub interface: Interface,
    /// Address of the interface, as joins are told it.
    pub source_address: SourceAddress,
    /// Name that selected the interface; `None` for the default. Used to find the interface again
    /// if it disappears.
    pub interface_name: Option<InterfaceName>,
    /// An address of the group range, used to look up the route.
    pub any_group: Ipv4Addr,
    /// Options of the sending socket.
    pub socket: SocketConfig,
    /// Bytes of a full page.
    pub page_size: PageSize,
    /// Layout of the datagram headers.
    pub layout: Layout,
    /// Keys for the datagrams' tags; `None`: they carry none.
    pub keys: Option<CastKeys>,
}

/// Why a join got no membership.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The scheduler refused it. Retrying later may help.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// The file was replaced after it was opened. Opening it again helps.
    #[error("the file was replaced meanwhile: try again")]
    Outdated,
    /// The file has too many pages of this size.
    #[error("no cast with the server's --page-size: {0}")]
    TooManyPages(#[from] TooManyPages),
    /// The sender did not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// How long to wait for the sender. It needs milliseconds unless a disk hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Why the sender does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Its thread has ended.
    #[error("the server stops")]
    Stopped,
    /// It did not answer within seconds.
    #[error("the server is busy: try again later")]
    Busy,
}

/// What becomes of a demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Time until its last page is sent.
    pub queue: Duration,
    /// Pages that cannot be read, those of the demand first.
    pub unreadable: Vec<PageRange>,
}

/// Handle to the sender. Each call usually takes a few milliseconds, at most a few seconds.
#[derive(Clone, Debug)]
pub struct SenderHandle {
    commands: mpsc::Sender<Command>,
    page_size: PageSize,
    layout: Layout,
    source_address: SourceAddress,
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
        reply: oneshot::Sender<Option<Vec<PageRange>>>,
    },
    Want {
        path: RemotePath,
        token: Token,
        want: WantBody,
        reply: oneshot::Sender<Option<Wanted>>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Stop,
}

/// Opens the socket and starts the thread. [`SenderHandle::stop`] ends it; then the receiver
/// resolves.
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
        source_address: config.source_address.clone(),
        repair: settings.repair,
        keys: config.keys.clone(),
    };
    let (ending, ended) = oneshot::channel();
    std::thread::Builder::new().name("sender".to_owned()).spawn(move || {
        // Dropped when the thread ends, for whatever reason.
        let _ending: oneshot::Sender<()> = ending;
        raise_priority();
        Driver::new(config, settings, socket).run(&received);
    })?;
    Ok((handle, ended))
}

/// Raises the thread's priority: wire time that it misses because others have the CPU is lost for
/// all clients. Keeps the default priority without `CAP_SYS_NICE`.
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
                source: Some(self.source_address.get().into()),
                key: self.keys.as_ref().map(|keys| keys.of(joined.cast)),
                repair: repair.map(|(settings, _)| settings.repair_port),
                interleave: repair.map(|(_, layout)| layout.interleave()),
                lease: repair.map(|(settings, _)| settings.lease),
            },
        })
    }

    /// Leaves. Returns `false` if the token is not a member of a cast of this path.
    pub async fn leave(&self, path: RemotePath, token: Token) -> Result<bool, NoAnswer> {
        self.ask(|reply| Command::Leave { path, token, reply }).await
    }

    /// Passes a report on. Returns pages that cannot be read; `None` if the token is not a member
    /// that may report to a cast of this path.
    pub async fn report(
        &self,
        path: RemotePath,
        token: Token,
        report: Report,
    ) -> Result<Option<Vec<PageRange>>, NoAnswer> {
        self.ask(|reply| Command::Report { path, token, report, reply }).await
    }

    /// Passes a demand on. Returns `None` if the token is not a member that may demand from a cast
    /// of this path.
    pub async fn want(
        &self,
        path: RemotePath,
        token: Token,
        want: WantBody,
    ) -> Result<Option<Wanted>, NoAnswer> {
        self.ask(|reply| Command::Want { path, token, want, reply }).await
    }

    /// Returns the state of the server.
    pub async fn status(&self) -> Result<Status, NoAnswer> {
        self.ask(|reply| Command::Status { reply }).await
    }

    /// Ends all casts and the thread.
    pub fn stop(&self) {
        // Fails if the sender has already stopped.
        let _ = self.commands.send(Command::Stop);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        self.ask_within(ANSWER_WAIT, command).await
    }

    async fn ask_within<T>(
        &self,
        patience: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| NoAnswer::Stopped)?;
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Stopped),
            Err(_) => Err(NoAnswer::Busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sender_that_does_not_answer_is_not_waited_for_for_ever() {
        let (commands, received) = mpsc::channel();
        let handle = SenderHandle {
            repair: None,
            keys: None,
            commands,
            page_size: PageSize::new(1456).unwrap(),
            layout: Layout::Base,
            source_address: SourceAddress::new(Ipv4Addr::LOCALHOST),
        };
        let status = |reply| Command::Status { reply };
        let answer = handle.ask_within(Duration::ZERO, status).await;
        assert_eq!(answer, Err(NoAnswer::Busy));
        let Ok(Command::Status { reply }) = received.recv() else { panic!("another command") };
        assert!(reply.is_closed());
        drop(received);
        assert_eq!(handle.status().await, Err(NoAnswer::Stopped));
    }
}
