//! Requests to the server and other work in the background, as tasks on the runtime.
//!
//! | module | holds |
//! |---|---|
//! | `membership` | join, leave, report, demand |
//! | `fetching` | fetching a part of a file over HTTP |
//! | `storing` | rebuilding pages, and checkpoints |
//! | `verifying` | checking leaves, their hashes, and leaves that arrived wrong |
//! | `zeros` | pages that consist of zeros by the zero map |
//!
//! Each task passes its result to its object, and then has the receive thread attend to it.

mod fetch;
mod fetching;
mod in_flight;
mod membership;
mod storing;
mod verifying;
mod zeros;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bootcast_proto::Token;
use bootcast_proto::api::{Report, Want};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::answers::Answers;
use super::control::Control;
use super::receive::Inbox;
use super::reception::MulticastMonitor;
use super::sharing;
use crate::object::{Object, Ready, Rebuilding, Reusing, Sharing, Verifying};
use crate::panics;
use crate::receiver::{Fetch, HashRequest, ListRequest, Replacement};

pub(super) use in_flight::{InFlight, InFlightCount};

/// Something to do for an object in the background. The token names the membership.
#[derive(Debug)]
pub(super) enum Request {
    /// Join the cast.
    Join,
    /// Leave the cast, and make a checkpoint.
    Leave(Token),
    /// Send a report.
    Report(Token, Report),
    /// Demand pages.
    Want(Token, Want),
    /// Fetch bytes over HTTP.
    Fetch(Fetch),
    /// Rebuild pages from repair symbols.
    Rebuild(Rebuilding),
    /// Check leaves.
    Verify(Verifying),
    /// Copy leaves from an older version.
    Reuse(Reusing),
    /// Get hashes.
    Lists(ListRequest),
    /// Get the zero map, and take its pages.
    ZeroMap,
    /// Get the hashes of pages.
    PageHashes(HashRequest),
    /// Fetch a leaf that arrived wrong.
    Replace(Replacement),
    /// Share the file with other processes of this machine.
    Share(Sharing),
}

/// Sends requests to the task that starts them. The task ends when all clones are dropped.
///
/// The channel has no limit of its own. An object has at most a few requests in flight.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    queue: mpsc::UnboundedSender<(Arc<Object>, Request, InFlight)>,
    in_flight: InFlightCount,
}

impl Requests {
    /// Starts the task.
    pub(super) fn start(runtime: &Handle, context: Context) -> Self {
        let (queue, mut queued) = mpsc::unbounded_channel();
        let in_flight = context.in_flight.clone();
        let context = Arc::new(context);
        runtime.spawn(async move {
            while let Some((object, request, in_flight)) = queued.recv().await {
                Job { context: context.clone(), object }.start(request, in_flight);
            }
        });
        Self { queue, in_flight }
    }

    /// Starts a request for `object`. Never waits.
    pub(super) fn send(&self, object: &Arc<Object>, request: Request) {
        // Fails only if the runtime is gone, and with it the program's work.
        let _ = self.queue.send((object.clone(), request, self.in_flight.begin()));
    }
}

/// Address at which the server was last reached.
#[derive(Debug, Default)]
pub(super) struct ServerAddress(Mutex<Option<SocketAddr>>);

impl ServerAddress {
    /// Returns the address; `None` before the first answer.
    pub(super) fn last(&self) -> Option<SocketAddr> {
        *panics::lock(&self.0)
    }

    fn set(&self, address: SocketAddr) {
        *panics::lock(&self.0) = Some(address);
    }
}

/// The parts of the intake that requests use.
#[derive(Debug)]
pub(super) struct Context {
    /// Client for requests to the server.
    pub(super) control: Control,
    /// Queue of the receive thread.
    pub(super) inbox: Arc<Inbox>,
    /// Queue of the answer thread.
    pub(super) answers: Answers,
    /// Address of the server, set by joins.
    pub(super) server: Arc<ServerAddress>,
    /// Whether multicast arrives.
    pub(super) multicast: Arc<MulticastMonitor>,
    /// Number of requests in flight.
    pub(super) in_flight: InFlightCount,
}

/// Work in the background for one object.
#[derive(Debug)]
struct Job {
    context: Arc<Context>,
    object: Arc<Object>,
}

impl Job {
    /// Starts a task for `request`.
    fn start(self, request: Request, in_flight: InFlight) {
        match request {
            Request::Join => spawn(in_flight, self.join()),
            Request::Report(token, report) => spawn(in_flight, self.report(token, report)),
            Request::Want(token, want) => spawn(in_flight, self.want(token, want)),
            Request::Leave(token) => drop(tokio::spawn(self.leave(token, in_flight))),
            // An orderly end does not wait for a fetch: what arrived counts.
            Request::Fetch(part) => drop(tokio::spawn(self.fetch(part))),
            Request::Rebuild(rebuilding) => drop(tokio::task::spawn_blocking(move || {
                self.rebuild(rebuilding);
                drop(in_flight);
            })),
            Request::Verify(verifying) => drop(tokio::task::spawn_blocking(move || {
                self.verify(verifying);
                drop(in_flight);
            })),
            Request::Reuse(reusing) => drop(tokio::task::spawn_blocking(move || {
                self.reuse(reusing);
                drop(in_flight);
            })),
            // An orderly end does not wait for what only readers need.
            Request::Lists(request) => drop(tokio::spawn(self.lists(request))),
            Request::ZeroMap => drop(tokio::spawn(self.zero_map())),
            Request::PageHashes(request) => drop(tokio::spawn(self.page_hashes(request))),
            Request::Replace(leaf) => drop(tokio::spawn(self.replace(leaf))),
            // The task ends with the object, to which it holds no strong reference.
            Request::Share(Sharing::Hold(holding)) => {
                drop(tokio::spawn(sharing::hold(self.context, holding)));
            }
            Request::Share(Sharing::Follow(following)) => {
                drop(tokio::spawn(sharing::follow(self.context, following)));
            }
        }
    }

    /// Has reads answered whose pages have arrived.
    fn answer(&self, reads: Vec<Ready>) {
        self.context.answers.queue(&self.object, reads);
    }

    /// Makes the receive thread attend to the object.
    fn attend(&self) {
        self.context.inbox.attend(&self.object, self.context.in_flight.begin());
    }
}

/// Demands pages without the receive thread.
pub(super) fn want(context: &Arc<Context>, object: &Arc<Object>, token: Token, want: Want) {
    let job = Job { context: context.clone(), object: object.clone() };
    spawn(context.in_flight.begin(), job.want(token, want));
}

/// Starts a task that counts as in flight until it ends.
fn spawn(in_flight: InFlight, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        work.await;
        drop(in_flight);
    });
}
