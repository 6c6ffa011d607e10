//! Listens to the groups of casts for other senders. docs/PROTOCOL.md, "Two senders in one group".
//!
//! One thread listens to one group at a time, and for a moment only: while this host is a member of
//! a group, the kernel hands it everything that it sends there.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockFilter, Socket, Type};

use super::threads::ThreadWatch;
use crate::cast::CastId;

/// Time for which the thread listens to a group. A stream of 200 kbit/s sends [`MIN_DATAGRAMS`] in
/// it.
const LISTEN_TIME: Duration = Duration::from_millis(200);

/// Pause between two groups, unless a cast has just begun.
const PAUSE: Duration = Duration::from_secs(2);

/// Datagrams of one sender that make it one. A single one may have strayed.
const MIN_DATAGRAMS: u32 = 3;

/// Maximum number of senders that are counted in one group at a time. Anyone can forge more.
const MAX_SENDERS: usize = 16;

/// Sender and interface of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnSender {
    /// Address and port that the datagrams come from.
    pub address: SocketAddrV4,
    /// Index of the interface.
    pub interface: u32,
}

/// A cast, and another sender that uses its group.
pub type Heard = (CastId, SocketAddrV4);

/// Groups that are listened to. Without [`Self::start`] nobody does.
#[derive(Clone, Debug)]
pub struct GroupWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    own: OwnSender,
    groups: BTreeMap<CastId, SocketAddrV4>,
    /// Casts that have just begun.
    fresh: VecDeque<CastId>,
    /// Cast that was listened to last.
    last: Option<CastId>,
    is_stopped: bool,
}

impl GroupWatch {
    /// Creates a watch of no groups.
    pub fn new(own: OwnSender) -> Self {
        let (groups, fresh) = (BTreeMap::new(), VecDeque::new());
        let state = State { own, groups, fresh, last: None, is_stopped: false };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Starts the thread that listens, until [`Self::stop`] is called. It hands other senders to
    /// `report`.
    pub fn start(
        &self,
        watch: &ThreadWatch,
        report: impl Fn(Heard) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        watch.spawn("groups", move || {
            while let Some((cast, group, own)) = shared.next() {
                match listen(group, own) {
                    Ok(Some(other)) => report((cast, other)),
                    Ok(None) => {}
                    // Another program may have the port for itself, or the interface is down.
                    Err(error) => tracing::debug!(%group, %error, "cannot listen to a group"),
                }
            }
        })
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.change(|state| state.is_stopped = true);
    }

    /// Changes the own sender: its datagrams are not those of a stranger.
    pub fn set_own(&self, own: OwnSender) {
        self.change(|state| state.own = own);
    }

    /// Listens to the group of a cast from now on, and at once.
    pub fn begin(&self, cast: CastId, group: SocketAddrV4) {
        self.change(|state| {
            state.groups.insert(cast, group);
            state.fresh.push_back(cast);
        });
    }

    /// Listens to the group of a cast no more.
    pub fn end(&self, cast: CastId) {
        self.change(|state| {
            state.groups.remove(&cast);
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock());
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next group to listen to; `None` if the watch is stopped.
    fn next(&self) -> Option<(CastId, SocketAddrV4, OwnSender)> {
        let idle = |state: &mut State| state.fresh.is_empty() && !state.is_stopped;
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, PAUSE, idle)
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.is_stopped {
                return None;
            }
            if let Some((cast, group)) = state.take() {
                return Some((cast, group, state.own));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// Chooses a cast that has just begun, or else the one after the last one.
    fn take(&mut self) -> Option<(CastId, SocketAddrV4)> {
        while let Some(cast) = self.fresh.pop_front() {
            if let Some(group) = self.groups.get(&cast) {
                return Some((cast, *group));
            }
        }
        let after = self.last.and_then(|last| self.groups.range(last..).find(|it| *it.0 != last));
        let (&cast, &group) = after.or_else(|| self.groups.first_key_value())?;
        self.last = Some(cast);
        Some((cast, group))
    }
}

/// Listens to a group for [`LISTEN_TIME`]. Returns another sender as soon as one is heard.
fn listen(group: SocketAddrV4, own: OwnSender) -> io::Result<Option<SocketAddrV4>> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_multicast_all_v4(false)?;
    // Without it the kernel would divide the own batches before the filter drops them.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    socket.attach_filter(&all_but(own.address))?;
    socket.bind(&group.into())?;
    socket.join_multicast_v4_n(group.ip(), &InterfaceIndexOrAddress::Index(own.interface))?;
    let socket = std::net::UdpSocket::from(socket);
    let end = Instant::now() + LISTEN_TIME;
    let mut counts: BTreeMap<SocketAddrV4, u32> = BTreeMap::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let from = match socket.recv_from(&mut [0; 1]) {
            Ok((_, SocketAddr::V4(from))) if from != own.address => from,
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if counts.len() >= MAX_SENDERS && !counts.contains_key(&from) {
            continue;
        }
        let count = counts.entry(from).or_default();
        *count += 1;
        if *count >= MIN_DATAGRAMS {
            return Ok(Some(from));
        }
    }
}

/// Filter of a UDP socket that drops what this sender sends (linux/filter.h). So its own stream
/// does not fill the socket's buffer.
fn all_but(sender: SocketAddrV4) -> [SockFilter; 6] {
    let op = |code: u32, jt, jf, k| SockFilter::new(u16::try_from(code).unwrap_or(0), jt, jf, k);
    let load = |size| libc::BPF_LD | size | libc::BPF_ABS;
    let jump_if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let leave = libc::BPF_RET | libc::BPF_K;
    // Offset of the source address in the IPv4 header. The UDP header is at 0.
    let source = libc::SKF_NET_OFF.cast_unsigned().wrapping_add(12);
    [
        op(load(libc::BPF_W), 0, 0, source),
        op(jump_if_equal, 0, 2, sender.ip().to_bits()),
        op(load(libc::BPF_H), 0, 0, 0),
        op(jump_if_equal, 1, 0, sender.port().into()),
        op(leave, 0, 0, u32::MAX),
        op(leave, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::sync::mpsc;

    use bootcast_host::interface::index_of;

    use super::*;

    /// A sender to groups on loopback.
    fn sender() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_multicast_loop_v4(true).unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("IPv4") };
        let socket = Socket::from(socket);
        socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
        (socket.into(), address)
    }

    /// A group that no other test uses, with a free port.
    fn group() -> SocketAddrV4 {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        SocketAddrV4::new(Ipv4Addr::new(239, 254, 19, 1), port)
    }

    /// Sends to the group until the returned guard is dropped.
    fn send_always(socket: UdpSocket, group: SocketAddrV4) -> mpsc::Sender<()> {
        let (guard, dropped) = mpsc::channel::<()>();
        let pause = Duration::from_millis(5);
        std::thread::spawn(move || {
            while dropped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = socket.send_to(&[7; 100], group);
            }
        });
        guard
    }

    #[test]
    fn another_sender_is_heard_and_the_own_one_is_not() {
        let (socket, address) = sender();
        let own = OwnSender { address, interface: index_of("lo").unwrap() };
        let watch = GroupWatch::new(own);
        let (report, heard) = mpsc::channel();
        watch.start(&ThreadWatch::new().0, move |it| report.send(it).unwrap()).unwrap();
        let (quiet, taken) = (group(), group());
        let _own = send_always(socket, quiet);
        watch.begin(CastId(1), quiet);
        let (socket, stranger) = sender();
        let _stranger = send_always(socket, taken);
        watch.begin(CastId(2), taken);
        let patience = Duration::from_secs(20);
        // The own datagrams come first: they would be reported before.
        assert_eq!(heard.recv_timeout(patience), Ok((CastId(2), stranger)));
        watch.end(CastId(2));
        watch.stop();
        // Without the cast, the thread ends without another report.
        let rest: Vec<_> = std::iter::from_fn(|| heard.recv_timeout(patience).ok()).collect();
        assert!(rest.iter().all(|(cast, _)| *cast == CastId(2)), "{rest:?}");
    }

    #[test]
    fn casts_that_have_just_begun_come_first_and_then_all_in_turn() {
        let own = OwnSender { address: "127.0.0.1:1".parse().unwrap(), interface: 1 };
        let watch = GroupWatch::new(own);
        for cast in [1, 2, 3] {
            watch.begin(CastId(cast), group());
        }
        let mut state = watch.0.lock();
        let mut take = || state.take().map(|(cast, _)| cast.0);
        assert_eq!([(); 8].map(|()| take()), [1, 2, 3, 1, 2, 3, 1, 2].map(Some));
        state.groups.remove(&CastId(3));
        let mut take = || state.take().map(|(cast, _)| cast.0);
        assert_eq!([(); 2].map(|()| take()), [1, 2].map(Some));
    }
}
