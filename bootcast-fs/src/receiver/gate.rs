//! Decides which datagrams belong to the present cast, by their sender and their tags.
//! docs/PROTOCOL.md, "Tags".

use std::net::{IpAddr, SocketAddr};

use bootcast_proto::{DatagramKey, JoinAnswer};

use super::senders::{SenderId, SenderTable};
use super::session::Counters;

/// Names one membership: its number among the joins of a receiver. Work that was handed out in one
/// membership comes back with its epoch, because another join may have changed the page size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u32);

/// Facts that the datagrams of one membership are checked against. Copies allow checks without a
/// lock on the receiver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    epoch: Epoch,
    /// Address of the server's datagrams, if announced.
    source: Option<IpAddr>,
    /// Sender of the present cast's datagrams, once one came; `None` where they have tags.
    /// A server that restarted, or another one that uses the same group, sends from another port.
    sender: Option<SocketAddr>,
    /// Key of the present cast's tags, if it has any.
    key: Option<DatagramKey>,
    /// Senders of the datagrams with tags.
    senders: SenderTable,
}

/// A datagram with the verdict of a [`Gate`].
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a> {
    pub(super) from: SocketAddr,
    pub(super) bytes: &'a [u8],
    epoch: Epoch,
    finding: Finding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Genuine,
    /// It comes from another address than the server's.
    Stranger,
    /// Its sender is not listened to any more, because it forged.
    Ignored,
    /// Its tag is wrong.
    Forged,
}

impl Gate {
    /// Starts another membership, in which nobody is ignored. If the wrong sender was ignored
    /// before, it is heard again.
    pub(super) fn begin(&mut self, answer: &JoinAnswer) {
        let (source, key) = (answer.extensions.source, answer.extensions.key);
        let epoch = Epoch(self.epoch.0 + 1);
        *self = Self { epoch, source, sender: None, key, senders: SenderTable::default() };
    }

    /// Names the present membership.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Checks a datagram. The cost grows with its length.
    pub fn check<'a>(&self, from: SocketAddr, bytes: &'a [u8]) -> Checked<'a> {
        let is_genuine = |key: DatagramKey| key.is_genuine(bytes);
        let finding = match self.check_sender(from) {
            Finding::Genuine if !self.key.is_none_or(is_genuine) => Finding::Forged,
            finding => finding,
        };
        Checked { from, bytes, epoch: self.epoch, finding }
    }

    /// Checks where a datagram comes from. Genuine ones may still have a wrong tag.
    fn check_sender(&self, from: SocketAddr) -> Finding {
        if !self.is_sender(from) {
            Finding::Stranger
        } else if self.senders.is_ignored(from) {
            Finding::Ignored
        } else {
            Finding::Genuine
        }
    }

    /// Checks several datagrams, in order; faster than one by one. Datagrams of strangers
    /// and of ignored senders cost nothing.
    pub fn check_all<'a>(&self, datagrams: &[(SocketAddr, &'a [u8])]) -> Vec<Checked<'a>> {
        let epoch = self.epoch;
        let mut checked: Vec<_> = datagrams
            .iter()
            .map(|&(from, bytes)| Checked { from, bytes, epoch, finding: self.check_sender(from) })
            .collect();
        let Some(key) = self.key else { return checked };
        let mut claimed = Vec::with_capacity(checked.len());
        claimed.extend(checked.iter_mut().filter(|it| it.finding == Finding::Genuine));
        let bytes: Vec<_> = claimed.iter().map(|it| it.bytes).collect();
        let verdicts = key.are_genuine(&bytes);
        // A datagram without a verdict would be believed.
        assert!(verdicts.len() == claimed.len(), "not every tag was checked");
        for (it, is_genuine) in claimed.iter_mut().zip(verdicts) {
            if !is_genuine {
                it.finding = Finding::Forged;
            }
        }
        checked
    }

    /// Whether the datagram may be believed; counts it if not. Verdicts of an outdated copy are
    /// ignored.
    pub(super) fn admits(&self, checked: &Checked<'_>, counters: &mut Counters) -> bool {
        let is_current =
            checked.epoch == self.epoch && self.check_sender(checked.from) == Finding::Genuine;
        let finding = if is_current {
            checked.finding
        } else {
            self.check(checked.from, checked.bytes).finding
        };
        match finding {
            Finding::Genuine => return true,
            Finding::Stranger => counters.strangers += 1,
            Finding::Ignored => counters.ignored += 1,
            Finding::Forged => counters.forged += 1,
        }
        false
    }

    /// Whether a datagram has the right tag, whatever address it comes from.
    pub(super) fn is_tagged(&self, checked: &Checked<'_>) -> bool {
        let is_genuine = |key: DatagramKey| key.is_genuine(checked.bytes);
        !self.senders.is_ignored(checked.from) && self.key.is_some_and(is_genuine)
    }

    /// Records the sender of a datagram that fits the present cast. Where datagrams have tags, the
    /// port does not matter: a stranger may have sent an old datagram again from another one.
    pub(super) fn record_sender(&mut self, sender: SocketAddr) {
        debug_assert!(self.is_sender(sender), "{sender} is a stranger");
        if self.key.is_none() {
            self.sender = Some(sender);
        }
    }

    /// Returns the sender of a page or symbol that is news; `None` where datagrams have no tags,
    /// so that there is only one.
    pub(super) fn learn_sender(&mut self, from: SocketAddr) -> Option<SenderId> {
        self.key.is_some().then(|| self.senders.learn(from))
    }

    /// Ignores a sender in the present membership.
    pub(super) fn ignore(&mut self, sender: SenderId) {
        self.senders.ignore(sender);
    }

    /// Address and port of a sender.
    pub(super) fn address(&self, sender: SenderId) -> Option<SocketAddr> {
        self.senders.address(sender)
    }

    /// Whether datagrams of the present cast may come from this address.
    fn is_sender(&self, from: SocketAddr) -> bool {
        let announced = self.source.is_none_or(|source| source == from.ip());
        announced && self.sender.is_none_or(|sender| sender == from)
    }
}

#[cfg(test)]
mod tests;
