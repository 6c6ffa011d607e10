//! A member forges pages, or repair symbols, with the right key as fast as the server sends. The
//! others get the right bytes, and by multicast. docs/PROTOCOL.md, "Senders that forge".

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};

use bootcast_proto::fec::RepairIndex;
use bootcast_proto::wire::{Layout, symbol_header};
use bootcast_proto::{BlockLayout, DatagramKey, Geometry, JoinAnswer, PageIndex, Token};
use harness::content::Image;
use harness::lab::HEAD_ADDRESS;
use harness::{Forger, Lab, SOON, ServerProc, lab_or_skip, mib, sending_socket, wait_until};

use crate::proving::b3;
use crate::transfers::{Copy, Get};
use crate::{SetOnDrop, text};

/// Number of pages by which the forger is ahead of the server.
const AHEAD: u64 = 64;

/// UDP payload of a full page.
const DATAGRAM_BYTES: u64 = 1472;

/// Datagrams that a member forges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forgery {
    /// Each page of the file.
    Pages,
    /// As many symbols of each block as it has pages.
    Symbols,
}

/// A member that forges datagrams of one cast.
struct Member {
    forger: Forger,
    forgery: Forgery,
    pages: SocketAddrV4,
    symbols: SocketAddrV4,
    key: DatagramKey,
    geometry: Geometry,
    layout: BlockLayout,
    token: Token,
}

impl Member {
    /// Joins on client 3, which tells the key. It will send from `source`.
    fn join(lab: &Lab, image: &Image, source: SocketAddrV4, forgery: Forgery) -> Self {
        let (host, name) = (lab.client(3), text(&image.name));
        let answer = host.get_with(&lab.url(&format!("join/{name}")), &[("X-BOOTCAST", "1")]);
        let answer = JoinAnswer::parse(&answer.body).unwrap();
        let forger = host.enter(|| Forger::new(source));
        let pages = answer.connect;
        Self {
            forger,
            forgery,
            pages,
            symbols: SocketAddrV4::new(*pages.ip(), answer.extensions.repair.unwrap()),
            key: answer.extensions.key.unwrap(),
            geometry: answer.geometry().unwrap(),
            layout: answer.block_layout().unwrap(),
            token: answer.token,
        }
    }

    fn leave(self, lab: &Lab, image: &Image) {
        let url = lab.url(&format!("leave/{}", text(&image.name)));
        let token = [("X-TOKEN", self.token.as_str())];
        assert_eq!(lab.client(3).get_with(&url, &token).status, 204);
    }

    fn forge(&self, page: u64) {
        let pages = self.geometry.pages();
        let page = PageIndex(u32::try_from(page % u64::from(pages)).unwrap());
        let (group, mut datagram) = match self.forgery {
            Forgery::Pages => {
                let payload = vec![0xee; self.geometry.page_len(page).unwrap() as usize];
                let header = Layout::Base.header(page, pages, &payload);
                (self.pages, [&header[..], &payload].concat())
            }
            Forgery::Symbols => {
                let (block, source) = self.layout.place(page);
                let header = symbol_header(block, RepairIndex::new(source.get()).unwrap(), 255);
                let payload = vec![0xee; self.geometry.page_size().get() as usize];
                (self.symbols, [&header[..], &payload].concat())
            }
        };
        self.key.seal(&mut datagram);
        self.forger.send(group, &datagram);
    }

    /// Forges a datagram for each page that the server sends, a little earlier, until told
    /// otherwise.
    fn run(&self, server: &ServerProc<'_>, image: &Image, done: &AtomicBool) {
        let mut next = 0;
        while !done.load(Ordering::Relaxed) {
            let cast = server.cast_of(text(&image.name));
            let sent = cast.map_or(next, |cast| cast.pages_sent);
            (next..sent + AHEAD).for_each(|page| self.forge(page));
            next = next.max(sent + AHEAD);
        }
    }
}

/// Needs of two members beside a member that forges.
struct Needed {
    /// Bytes that left the head otherwise than in pages and symbols: most are sent over HTTP.
    http: u64,
    logs: [String; 2],
}

/// Fetches and copies an image on two clients, while client 3 forges from the server's port, or
/// from another one.
fn fetch_beside_a_forger(
    lab: &Lab,
    image: &Image,
    forgery: Forgery,
    from_servers_port: bool,
) -> Needed {
    let server = lab.server().option("--rate", "50mbit").start();
    let valve = lab.hold_multicast_after(0);
    let mount = lab.mount(1).option("unicast=never").start();
    let server_socket = sending_socket(&server);
    let other = SocketAddrV4::new(HEAD_ADDRESS, 4242);
    let source = if from_servers_port { server_socket } else { other };
    let member = Member::join(lab, image, source, forgery);
    let before = lab.head().counters().tx_bytes;
    let mut copy = Copy::start_on(mount, image);
    // Who knows the hash of the content finds the forger out like others.
    let mut get = Get::start_with(lab, 2, image, &["-v", "--b3", &b3(image)]);
    // Soon after the last join, or the client fetches the file because nothing comes.
    lab.wait_members(&server, text(&image.name), 1..=2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| lab.client(3).enter(|| member.run(&server, image, &done)));
        let _done = SetOnDrop(&done);
        valve.open();
        copy.finish(image);
        get.finish(image);
    });
    member.leave(lab, image);
    wait_until(SOON, "the mount has left", || copy.mount.log().contains("ignored="));
    server.wait_no_members();
    let totals = server.status().totals;
    let cast = (totals.pages_sent + totals.symbols_sent) * DATAGRAM_BYTES;
    let http = (lab.head().counters().tx_bytes - before).saturating_sub(cast);
    Needed { http, logs: [copy.mount.log(), get.proc.log()] }
}

/// Returns the log of the mount, and that of the fetch unless it gave multicast up before the cast
/// began, as it does after a second on a busy machine.
fn heard(logs: &[String; 2]) -> impl Iterator<Item = &String> {
    let [mount, get] = logs;
    std::iter::once(mount).chain(Some(get).filter(|log| !log.contains("no multicast from")))
}

#[test]
fn a_member_that_forges_at_the_rate_of_the_cast_is_not_listened_to_for_long() {
    let lab = lab_or_skip!(Lab::builder().clients(3).valve());
    let image = lab.put("image", mib(16));
    let Needed { http, logs } = fetch_beside_a_forger(&lab, &image, Forgery::Pages, false);
    for log in heard(&logs) {
        assert!(log.contains("10.77.0.1:4242 sends wrong pages"), "{log}");
    }
    assert!(!logs[0].contains("ignored=0"), "{}", logs[0]);
    // If it were listened to, each of the two would fetch the whole file.
    assert!(http < image.size, "{http} bytes over HTTP");
}

/// Requires that a forger in the name of the server's socket is heard, and puts no wrong byte into
/// files. Otherwise panics with `unheard`.
fn assert_no_wrong_byte_from_the_servers_socket(lab: &Lab, forgery: Forgery, unheard: &str) {
    let image = lab.put("image", mib(16));
    let Needed { http, logs } = fetch_beside_a_forger(lab, &image, forgery, true);
    for log in heard(&logs) {
        assert!(log.contains("wrong bytes"), "{unheard}: {log}");
        assert!(!log.contains("is not listened to"), "the server was ignored: {log}");
    }
    // How much it is depends on how soon this machine checks the first leaves: the simulation has
    // the limit. Each of the two fetches the file once at most, and what belongs to the requests.
    assert!(http < 3 * image.size, "{http} bytes over HTTP");
}

#[test]
fn a_member_that_forges_in_the_name_of_the_servers_socket_puts_no_wrong_byte_into_files() {
    let lab = lab_or_skip!(Lab::builder().clients(3).valve());
    let unheard = "the forger was not heard";
    assert_no_wrong_byte_from_the_servers_socket(&lab, Forgery::Pages, unheard);
}

#[test]
fn a_member_that_forges_repair_symbols_is_not_listened_to_for_long() {
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(2.0).valve());
    let image = lab.put("image", mib(16));
    let Needed { http, logs } = fetch_beside_a_forger(&lab, &image, Forgery::Symbols, false);
    for log in heard(&logs) {
        assert!(log.contains("wrong bytes"), "no block was rebuilt wrong: {log}");
        assert!(log.contains("10.77.0.1:4242 sends wrong pages"), "{log}");
    }
    assert!(http < image.size, "{http} bytes over HTTP");
}

#[test]
fn a_member_that_forges_repair_symbols_of_the_servers_socket_puts_no_wrong_byte_into_files() {
    let lab = lab_or_skip!(Lab::builder().clients(3).loss(2.0).valve());
    let unheard = "no block was rebuilt wrong";
    assert_no_wrong_byte_from_the_servers_socket(&lab, Forgery::Symbols, unheard);
}
