//! Sender thread: it owns all casts and sends their datagrams. HTTP handlers reach it by a handle.

mod driver;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bootcast_proto::api::{Report, Status, WantBody};
use bootcast_proto::geometry::TooManyPages;
use bootcast_proto::join::Extensions;
use bootcast_proto::manifest::LEAF_BYTES;
use bootcast_proto::{
    Etag, Geometry, JoinAnswer, Layout, Manifest, PageRange, PageSize, Profile, RemotePath, Token,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::cast_keys::CastKeys;
use super::group_watch::{GroupWatch, Heard};
use super::identity::Identity;
use super::interface::{Interface, InterfaceName};
use super::profiles::LearnedProfile;
use super::reader::source::PageSource;
use super::reader::stage::Stage;
use super::socket::{MulticastSocket, SocketConfig};
use super::threads::{ThreadWatch, set_niceness};
use crate::cast::{CastId, JoinRefusal, Joined, MemberKind, Principal, RepairSettings, Settings};
use crate::source::Version;
use driver::{Driver, Outcome};

/// Nice value of the sender thread. docs/SEMANTICS.md, "Priority".
const NICENESS: i32 = -10;

/// Source address of the datagrams. The sender thread updates it when the interface gets another
/// address, and join answers state it.
#[derive(Clone, Debug)]
pub struct SourceAddress(Arc<AtomicU32>);

impl SourceAddress {
    /// Creates a shared address with this value.
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
    /// What is announced for the served files.
    pub identity: Identity,
    /// Interface that multicast leaves by.
    pub interface: Interface,
    /// Address of the interface, as join answers state it.
    pub source_address: SourceAddress,
    /// Value of `--interface`; `None` for the default. Finds the interface again after it
    /// disappeared.
    pub interface_name: Option<InterfaceName>,
    /// An address of the group range, used to look up the route.
    pub any_group: Ipv4Addr,
    /// Options of the sending socket.
    pub socket: SocketConfig,
    /// Bytes of a full page.
    pub page_size: PageSize,
    /// Layout of the datagram headers.
    pub layout: Layout,
    /// Keys that tag the datagrams; `None` sends them without tags.
    pub keys: Option<CastKeys>,
    /// Takes the profiles that casts learned.
    pub profiles: UnboundedSender<LearnedProfile>,
}

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The scheduler refused the join. Trying again later may help.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// A cast of another version runs. Either it is outdated, or the file was replaced after the
    /// join opened it. Opening it again decides that: join with [`Join::newer_than`].
    #[error("the file was replaced meanwhile: try again")]
    Outdated {
        /// Version that is being sent.
        running: Version,
    },
    /// The file has too many pages of the configured size.
    #[error("the server's --page-size is too small for this file: {0}")]
    TooManyPages(#[from] TooManyPages),
    /// The sender thread did not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// Time to wait for an answer of the sender thread. It answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the sender thread did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The thread has ended.
    #[error("the server is stopping")]
    Stopped,
    /// No answer came within some seconds.
    #[error("the server is busy: try again later")]
    Busy,
}

/// Answer to a demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantAnswer {
    /// Time until the last demanded page is sent.
    pub queue_time: Duration,
    /// Pages that cannot be read, those of the demand first.
    pub unreadable: Vec<PageRange>,
}

/// Handle to the sender thread. A call usually takes milliseconds, and at most some seconds.
#[derive(Clone, Debug)]
pub struct SenderHandle {
    commands: mpsc::Sender<Command>,
    page_size: PageSize,
    layout: Layout,
    source_address: SourceAddress,
    repair: Option<RepairSettings>,
    keys: Option<CastKeys>,
}

/// A client that joins the cast of one version of a file.
#[derive(Clone, Debug)]
pub struct Join {
    /// Path of the file.
    pub path: RemotePath,
    /// The version to join.
    pub source: Arc<dyn PageSource>,
    /// Name of the membership.
    pub token: Token,
    /// What the client understands.
    pub kind: MemberKind,
    /// Whose client it is.
    pub principal: Principal,
    /// A version whose cast ran before this one was opened, and which is therefore outdated.
    pub newer_than: Option<Version>,
    /// Whether the client asked for leaf lists.
    pub wants_leaves: bool,
    /// Profile that earlier casts of this content learned, if the client asked for it. Such a
    /// client only demands, and holds nothing.
    pub profile: Option<Arc<Profile>>,
}

/// Command to the sender thread, with the channel for its answer.
#[derive(Debug)]
enum Command {
    Join {
        join: Join,
        etag: Etag,
        geometry: Geometry,
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
        reply: oneshot::Sender<Option<WantAnswer>>,
    },
    Manifest {
        path: RemotePath,
        etag: Etag,
        manifest: Arc<Manifest>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    /// Another sender was heard in the group of a cast.
    Heard(Heard),
    /// The reader stage has done a job for a cast.
    Outcome(CastId, Outcome),
    Stop,
}

/// Opens the socket, and starts the sender thread and its reader stage. [`SenderHandle::stop`] ends
/// them. The returned receiver resolves when the sender thread has ended.
pub fn spawn(
    config: SenderConfig,
    settings: Settings,
    watch: &ThreadWatch,
) -> std::io::Result<(SenderHandle, oneshot::Receiver<()>)> {
    let socket = MulticastSocket::open(&config.interface, &config.socket)?;
    let (commands, received) = mpsc::channel();
    let stage = Stage::start(watch.clone())?;
    let outcomes = commands.clone();
    let groups = GroupWatch::new(socket.own_sender(&config.interface)?);
    let heard = commands.clone();
    // Fails if the sender thread has already ended.
    groups.start(watch, move |other| drop(heard.send(Command::Heard(other))))?;
    let handle = SenderHandle {
        commands,
        page_size: config.page_size,
        layout: config.layout,
        source_address: config.source_address.clone(),
        repair: settings.repair,
        keys: config.keys.clone(),
    };
    let (ending, ended) = oneshot::channel();
    watch.spawn("sender", move || {
        // Dropped when the thread ends, also by a panic.
        let _ending: oneshot::Sender<()> = ending;
        // Wire time that the thread misses for lack of CPU is lost for all clients.
        set_niceness(NICENESS);
        Driver::new(config, settings, socket, stage, groups, outcomes).run(&received);
    })?;
    Ok((handle, ended))
}

impl SenderHandle {
    /// Joins the cast of this version of the file.
    pub async fn join(&self, join: Join) -> Result<JoinAnswer, JoinError> {
        let version = join.source.version();
        let etag = version.etag();
        let geometry = Geometry::new(version.size(), self.page_size)?;
        let (token, name) = (join.token.clone(), etag.clone());
        let join = |reply| Command::Join { join, etag: name, geometry, reply };
        let joined = self.request(join).await??;
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
                content_id: None,
                leaf_bytes: Some(LEAF_BYTES),
                members: Some(joined.members),
            },
        })
    }

    /// Ends a membership. Returns `false` if the token belongs to no member of a cast of this path.
    pub async fn leave(&self, path: RemotePath, token: Token) -> Result<bool, NoAnswer> {
        self.request(|reply| Command::Leave { path, token, reply }).await
    }

    /// Passes on a report. Returns pages that cannot be read; `None` if the token belongs to no
    /// member that may report to a cast of this path.
    pub async fn report(
        &self,
        path: RemotePath,
        token: Token,
        report: Report,
    ) -> Result<Option<Vec<PageRange>>, NoAnswer> {
        self.request(|reply| Command::Report { path, token, report, reply }).await
    }

    /// Passes on a demand. Returns `None` if the token belongs to no member that may demand from a
    /// cast of this path.
    pub async fn want(
        &self,
        path: RemotePath,
        token: Token,
        want: WantBody,
    ) -> Result<Option<WantAnswer>, NoAnswer> {
        self.request(|reply| Command::Want { path, token, want, reply }).await
    }

    /// Passes on the manifest of a version, for the cast of this version. Does not wait.
    pub fn attach_manifest(&self, path: RemotePath, etag: Etag, manifest: Arc<Manifest>) {
        // Fails if the thread has already ended.
        let _ = self.commands.send(Command::Manifest { path, etag, manifest });
    }

    /// Returns the status of the server: its casts and counters.
    pub async fn status(&self) -> Result<Status, NoAnswer> {
        self.request(|reply| Command::Status { reply }).await
    }

    /// Ends all casts, then the thread. Does not wait for that.
    pub fn stop(&self) {
        // Fails if the thread has already ended.
        let _ = self.commands.send(Command::Stop);
    }

    /// Sends a command and waits for its answer.
    async fn request<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        self.request_within(ANSWER_TIMEOUT, command).await
    }

    async fn request_within<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| NoAnswer::Stopped)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer.map_err(|_| NoAnswer::Stopped),
            Err(_) => Err(NoAnswer::Busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_to_a_sender_that_does_not_answer_times_out() {
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
        let answer = handle.request_within(Duration::ZERO, status).await;
        assert_eq!(answer, Err(NoAnswer::Busy));
        let Ok(Command::Status { reply }) = received.recv() else { panic!("another command") };
        assert!(reply.is_closed());
        drop(received);
        assert_eq!(handle.status().await, Err(NoAnswer::Stopped));
    }
}
