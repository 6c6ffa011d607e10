//! Faults of all kinds at random moments, while two clients read one file after another. Every byte
//! is right, nothing hangs, and no program panics.
//!
//! `BOOTCAST_FAULTS` is the number of faults, a few by default; `BOOTCAST_SEED` repeats the choices
//! of a run. `make chaos` runs more of them.
#![expect(clippy::disallowed_methods, reason = "how long a fault lasts is a part of it")]

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use harness::content::Image;
use harness::{
    Forger, Host, Lab, MountProc, Proc, Random, SOON, ServerProc, digest_of, lab_or_skip, mib,
    sending_socket, wait_until,
};
use rustix::process::Signal;

use crate::{TRANSFER, readers, text};

/// Faults where the environment names no other number.
const FAULTS: u64 = 8;

/// Sizes of the files, in bytes, from and to.
const SIZES: [u64; 2] = [mib(4), mib(16)];

/// Maximum number of faults while one file is read.
const FAULTS_AT_A_FILE: u64 = 4;

/// Longest fault, and longest time between two of them, in milliseconds.
const LONGEST_MS: u64 = 1500;

/// Requests of a flood.
const FLOOD: u32 = 100;

/// Everything that goes wrong, one after the other. Whatever a fault changes is put right at its
/// end.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server is killed and started again.
    ServerKilled,
    /// A mount is killed, mounted again with the same cache, and its file is read from the start.
    MountKilled,
    /// The server stands still.
    ServerFrozen,
    /// A mount stands still.
    MountFrozen,
    /// The link of the head is down.
    HeadLinkDown,
    /// The link of a client is down.
    ClientLinkDown,
    /// The interface of the head is removed and made anew.
    HeadInterface,
    /// The interface of a client is removed and made anew.
    ClientInterface,
    /// A client gets no multicast.
    NoMulticast,
    /// A client gets no answers over HTTP.
    NoAnswers,
    /// A host forges datagrams without the key.
    Forged,
    /// A host joins again and again, and never leaves.
    Flood,
}

/// All kinds of faults.
const KINDS: [Fault; 12] = [
    Fault::ServerKilled,
    Fault::MountKilled,
    Fault::ServerFrozen,
    Fault::MountFrozen,
    Fault::HeadLinkDown,
    Fault::ClientLinkDown,
    Fault::HeadInterface,
    Fault::ClientInterface,
    Fault::NoMulticast,
    Fault::NoAnswers,
    Fault::Forged,
    Fault::Flood,
];

/// A mount that reads the present file.
struct Reader<'lab> {
    mount: MountProc<'lab>,
    copy: Proc,
    target: PathBuf,
}

/// A lab in which faults happen.
struct Chaos<'lab> {
    lab: &'lab Lab,
    server: ServerProc<'lab>,
    random: Random,
}

impl<'lab> Chaos<'lab> {
    /// Mounts on client `k` with its cache, and starts to copy `image`.
    fn read(&self, k: usize, image: &Image) -> Reader<'lab> {
        let host = self.lab.client(k);
        // The server is not asked anew within a round, so that a killed one fails no lookup.
        let cache = format!("cache_dir={},attr_ttl=1h", text(&host.fresh_path("chaos-cache")));
        let mount = self.lab.mount(k).option(&cache).start();
        Self::read_on(mount, image)
    }

    fn read_on(mount: MountProc<'lab>, image: &Image) -> Reader<'lab> {
        let target = mount.host().fresh_path("copy");
        let copy = readers::copy(mount.host(), &mount.join(&image.name), &target);
        Reader { mount, copy, target }
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(self.random.below(LONGEST_MS)));
    }

    fn with_link_down(&mut self, host: &Host) {
        host.run_ok("ip", ["link", "set", "eth0", "down"]);
        self.pause();
        host.run_ok("ip", ["link", "set", "eth0", "up"]);
    }

    /// Lets a fault happen, and puts it right.
    fn cause(&mut self, fault: Fault, k: usize, reader: &mut Reader<'lab>, image: &Image) {
        let client = self.lab.client(k);
        match fault {
            Fault::ServerKilled => {
                self.server.kill();
                self.pause();
                self.server.start();
            }
            Fault::MountKilled => {
                let cache = format!("cache_dir={},attr_ttl=1h", text(reader.mount.cache()));
                reader.mount.proc().kill_within(SOON);
                reader.copy.wait(TRANSFER);
                let mount = self.lab.mount(k).option(&cache).start();
                *reader = Self::read_on(mount, image);
            }
            Fault::ServerFrozen => {
                self.server.proc().signal(Signal::STOP);
                self.pause();
                self.server.proc().signal(Signal::CONT);
            }
            Fault::MountFrozen => {
                reader.mount.proc().signal(Signal::STOP);
                self.pause();
                reader.mount.proc().signal(Signal::CONT);
            }
            Fault::HeadLinkDown => self.with_link_down(self.lab.head()),
            Fault::ClientLinkDown => self.with_link_down(client),
            Fault::HeadInterface => self.lab.replace_interface(self.lab.head()),
            Fault::ClientInterface => self.lab.replace_interface(client),
            Fault::NoMulticast => {
                client.drop_multicast();
                self.pause();
                client.pass_multicast();
            }
            Fault::NoAnswers => {
                self.lab.drop_toward(k, "tcp sport 8888");
                self.pause();
                self.lab.pass_toward(k);
            }
            Fault::Forged => self.forge(),
            Fault::Flood => {
                for _ in 0..FLOOD {
                    self.lab.client(3).get(&self.lab.url(&format!("join/{}", text(&image.name))));
                }
            }
        }
    }

    /// Sends datagrams of both channels in the name of the server.
    fn forge(&mut self) {
        let Some(cast) = self.server.status().casts.pop() else { return };
        let group: SocketAddrV4 = cast.group.parse().unwrap();
        let source = sending_socket(&self.server);
        self.lab.client(3).enter(|| {
            let forger = Forger::new(source);
            for _ in 0..200 {
                let page = u32::try_from(1 + self.random.below(u64::from(cast.pages))).unwrap();
                let mut datagram = vec![0; 16 + cast.page_size as usize];
                datagram[..4].copy_from_slice(&cast.page_size.to_be_bytes());
                datagram[4..8].copy_from_slice(&page.to_be_bytes());
                forger.send(group, &datagram);
                datagram[0] = self.random.below(5).to_le_bytes()[0];
                forger.send(SocketAddrV4::new(*group.ip(), group.port() + 1), &datagram);
            }
        });
    }

    /// Reads a new file on two clients, beside `faults` faults.
    fn round(&mut self, name: &str, faults: u64) {
        let size = SIZES[0] + self.random.below(SIZES[1] - SIZES[0]);
        let image = self.lab.put(name, size);
        let mut read = [1, 2].map(|k| self.read(k, &image));
        for _ in 0..faults {
            self.pause();
            let fault = KINDS[usize::try_from(self.random.below(KINDS.len() as u64)).unwrap()];
            let k = usize::try_from(self.random.below(2)).unwrap();
            println!("{name}: {fault:?} at client {}", k + 1);
            self.cause(fault, k + 1, &mut read[k], &image);
        }
        for mut reader in read {
            reader.copy.wait_success(TRANSFER);
            assert_eq!(digest_of(&reader.target), image.digest, "{name}: {}", reader.mount.log());
            let log = reader.mount.log();
            assert!(!log.contains("panicked") && !log.contains("error in this program"), "{log}");
            std::fs::remove_file(&reader.target).unwrap();
            reader.mount.umount();
        }
        let log = self.server.log();
        assert!(!log.contains("panicked"), "{log}");
        std::fs::remove_file(&image.path).unwrap();
    }
}

#[test]
fn every_byte_is_right_whatever_goes_wrong_on_the_way() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let mut faults = std::env::var("BOOTCAST_FAULTS").map_or(FAULTS, |text| text.parse().unwrap());
    let server = lab.server().option("--rate", "40mbit").start();
    let mut chaos = Chaos { lab: &lab, server, random: Random::new() };
    for round in 0.. {
        let now = (1 + chaos.random.below(FAULTS_AT_A_FILE)).min(faults);
        chaos.round(&format!("image-{round}"), now);
        faults -= now;
        if faults == 0 {
            break;
        }
    }
    // A flood of joins must not keep the server from being asked.
    wait_until(SOON, "the server answers", || chaos.server.status().totals.joins > 0);
}
