//! The two halves that serve all objects, and the channels between them.
//!
//! ```text
//! fs, tool ---attend---> receive (a thread) ---Request---> requests (tasks on the runtime)
//!     |                     ^                                |     ^
//!     |                     '------------attend--------------'     |
//!     '-----------------------follow_up-----------------------------'
//! ```
//!
//! A third part, the answer thread, copies bytes to readers, so that this does not delay the
//! sockets.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::debug;

use super::answers::Answers;
use super::control::Control;
use super::interface::InterfaceChoice;
use super::receive::{Inbox, Receiving, Subscriber};
use super::reception::MulticastMonitor;
use super::requests::{Context, InFlightCount, Request, Requests, ServerAddress};
use crate::object::{FollowUp, Object};

/// Configuration of the receive thread and of the requests.
#[derive(Clone, Debug)]
pub struct IntakeConfig {
    /// Client for requests to the server.
    pub control: Control,
    /// Interface that datagrams arrive on.
    pub interface: InterfaceChoice,
    /// Runtime for the requests.
    pub runtime: Handle,
}

/// The receive thread, the answer thread and the requests. Dropping it ends all three.
#[derive(Debug)]
pub struct Intake {
    inbox: Arc<Inbox>,
    requests: Requests,
    in_flight: InFlightCount,
    multicast: Arc<MulticastMonitor>,
    thread: Option<JoinHandle<()>>,
}

impl Intake {
    /// Starts both threads and the task that sends requests.
    pub fn start(config: IntakeConfig) -> io::Result<Self> {
        let IntakeConfig { control, interface, runtime } = config;
        let answers = Answers::start()?;
        let inbox = Arc::new(Inbox::new()?);
        let server = Arc::new(ServerAddress::default());
        let multicast = Arc::new(MulticastMonitor::new(control.server()));
        let in_flight = InFlightCount::default();
        let context = Context {
            control,
            inbox: inbox.clone(),
            answers: answers.clone(),
            server: server.clone(),
            multicast: multicast.clone(),
            in_flight: in_flight.clone(),
        };
        let requests = Requests::start(&runtime, context);
        let receiving = Receiving {
            inbox: inbox.clone(),
            requests: requests.clone(),
            answers,
            multicast: multicast.clone(),
            subscriber: Subscriber { interface, server },
        };
        let thread = receiving.start()?;
        Ok(Self { inbox, requests, in_flight, multicast, thread: Some(thread) })
    }

    /// Makes the receive thread attend to `object`, which was opened, closed or answered.
    pub fn attend(&self, object: &Arc<Object>) {
        // Counts as a request from here on, so that `drain` waits for leaves that this may cause.
        self.inbox.attend(object, self.in_flight.begin());
    }

    /// Does what a read makes necessary. A demand is sent without involving the receive thread.
    pub fn follow_up(&self, object: &Arc<Object>, follow_up: FollowUp) {
        if let Some((token, want)) = follow_up.want {
            self.requests.send(object, Request::Want(token, want));
        }
        if follow_up.attend {
            self.attend(object);
        }
    }

    /// Returns for how long files have been fetched over HTTP because no multicast arrives, and the
    /// cause; `None` if multicast arrives, or nothing is known.
    pub fn multicast_outage(&self, now: Instant) -> Option<(Duration, String)> {
        self.multicast.outage(now)
    }

    /// Waits until no request is in flight, or until `timeout` is over.
    pub async fn drain(&self, timeout: Duration) {
        if tokio::time::timeout(timeout, self.in_flight.drained()).await.is_err() {
            debug!("ended with requests still in flight");
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.inbox.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
