//! Opens the sockets of an object, and has it hear why one cannot be opened.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use rustix::event::epoll;
use tracing::debug;

use super::super::group_socket::GroupSocket;
use super::super::now;
use super::{Channel, Ear, Shared};
use crate::object::Object;

/// Listens to a port of the object's group; `None` where that cannot be.
pub(super) fn hear(
    shared: &Shared,
    epoll: &OwnedFd,
    object: &Object,
    group: SocketAddrV4,
    channel: Channel,
) -> Option<Ear> {
    let data = epoll::EventData::new_u64(object.id() * 2 + channel as u64);
    match subscribe(shared, epoll, data, group) {
        Ok(socket) => {
            if let (Channel::Pages, Ok(mtu)) = (channel, socket.mtu()) {
                object.heard_by(mtu, now());
            }
            Some(Ear { socket, drops: 0 })
        }
        Err(error) => {
            debug!(path = %object.key().path, %group, %error, "cannot listen to the group");
            let is_repair = matches!(channel, Channel::Repair);
            object.has_no_socket(is_repair, &error.to_string(), now());
            None
        }
    }
}

fn subscribe(
    shared: &Shared,
    epoll: &OwnedFd,
    data: epoll::EventData,
    group: SocketAddrV4,
) -> io::Result<GroupSocket> {
    let server = *shared.server.lock().unwrap_or_else(PoisonError::into_inner);
    let interface = match server {
        Some(server) => shared.config.interface.index(server)?,
        None => 0,
    };
    let socket = GroupSocket::subscribe(group, interface)?;
    epoll::add(epoll, &socket, data, epoll::EventFlags::IN)?;
    Ok(socket)
}
