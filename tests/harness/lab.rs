//! The network of a test: a head, clients and a switch, each in its own network namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bootcast_proto::BitRate;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::content::{Content, Image};
use crate::delay_line::DelayLine;
use crate::host::{Host, NAMESPACES};
use crate::impairment::{Impairment, lose_for_all, lost_packets};
use crate::link::{self, Cable};
use crate::mount::MountBuilder;
use crate::requirements;
use crate::server::{ServerBuilder, ServerProc};
use crate::valve::Valve;
use crate::wait::{SOON, wait_until};

/// Prefix of the names of everything that a lab makes. The owner's process id follows, so that
/// `make clean-lab` can tell what a killed run left behind.
pub const PREFIX: &str = "bct-";

/// Address of the head.
pub const HEAD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The response interval of `link::add_switch`, and a little more. Nothing in the kernel's answers
/// tells when the querier starts to count, so this waits for a fixed time.
const QUERIER_DELAY: Duration = Duration::from_millis(650);

/// Description of a lab.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    clients: u8,
    rate: Option<BitRate>,
    narrow: Option<BitRate>,
    cap_place: CapPlace,
    impairment: Impairment,
    /// A client with a loss of its own.
    lossier: Option<(u8, u32)>,
    shared_loss_ppm: u32,
    delay: Duration,
    snooping: bool,
    memory_disk: bool,
    has_valve: bool,
}

/// Where the rate cap is.
#[derive(Clone, Copy, Debug)]
enum CapPlace {
    /// In the head's interface, whose full queue holds the sender back.
    Head,
    /// Behind the switch's port, where a full queue drops.
    Switch,
}

/// The network of one test. Everything is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: TempDir,
    head: Host,
    clients: Vec<Host>,
    delay_line: Option<DelayLine>,
    files: AtomicU32,
    has_valve: bool,
}

impl LabBuilder {
    /// Sets the number of clients; 1 by default.
    #[must_use]
    pub fn clients(mut self, clients: u8) -> Self {
        self.clients = clients;
        self
    }

    /// Caps the head's uplink: `200mbit`. Not capped by default.
    #[must_use]
    pub fn rate(mut self, rate: &str) -> Self {
        self.rate = Some(rate.parse().expect("a rate as traffic control writes it"));
        self
    }

    /// Caps every client's port of the switch, which drops the rest: `50mbit`. Not capped by
    /// default.
    #[must_use]
    pub fn narrow(mut self, rate: &str) -> Self {
        self.narrow = Some(rate.parse().expect("a rate as traffic control writes it"));
        self
    }

    /// Loses this share of the packets to each client, independently, in percent.
    #[must_use]
    pub fn loss(mut self, percent: f64) -> Self {
        self.impairment.loss_ppm = millionths(percent);
        self
    }

    /// Loses another share of the packets to client `k`, in percent.
    #[must_use]
    pub fn loss_of(mut self, k: u8, percent: f64) -> Self {
        self.lossier = Some((k, millionths(percent)));
        self
    }

    /// Loses this share of what the head sends, the same packets for all, in percent.
    #[must_use]
    pub fn shared_loss(mut self, percent: f64) -> Self {
        self.shared_loss_ppm = millionths(percent);
        self
    }

    /// Loses `lost` packets in a row of every `every` to a client; different packets for each
    /// client.
    #[must_use]
    pub fn bursts(mut self, lost: u32, every: u32) -> Self {
        assert!(0 < lost && lost <= every, "{lost} of {every}");
        self.impairment.burst = Some((lost, every));
        self
    }

    /// Starts an outage of this many milliseconds with each packet to a client, with this
    /// probability.
    #[must_use]
    pub fn outages(mut self, milliseconds: u32, percent: f64) -> Self {
        self.impairment.outage = Some((milliseconds, millionths(percent)));
        self
    }

    /// Places the rate cap behind the switch's port: excess is dropped there, and the head does not
    /// notice.
    #[must_use]
    pub fn cap_at_switch(mut self) -> Self {
        self.cap_place = CapPlace::Switch;
        self
    }

    /// Sets the delay between head and switch, in either direction.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets whether the switch sends a group only to its members (the default) or floods.
    #[must_use]
    pub fn snooping(mut self, snooping: bool) -> Self {
        self.snooping = snooping;
        self
    }

    /// Places served files and caches in memory, with large pages: for large files, the pages of an
    /// ordinary `tmpfs` cost more than their bytes. By default they lie in the directory for
    /// temporary files.
    #[must_use]
    pub fn memory_disk(mut self) -> Self {
        self.memory_disk = true;
        self
    }

    /// Gives the head's uplink a valve, for [`Lab::hold_multicast_after`].
    #[must_use]
    pub fn valve(mut self) -> Self {
        self.has_valve = true;
        self
    }

    /// Why this machine cannot have this lab; `None` if it can.
    pub fn skip_reason(&self) -> Option<String> {
        let has_cap = self.rate.is_some() || self.narrow.is_some();
        requirements::skip_reason()
            .or_else(|| self.has_valve.then(requirements::valve_skip_reason).flatten())
            .or_else(|| has_cap.then(requirements::cap_skip_reason).flatten())
    }

    /// Whether anything in this lab loses packets, other than a full queue of the whole uplink.
    fn loses_packets(&self) -> bool {
        self.impairment != Impairment::default()
            || self.lossier.is_some()
            || self.shared_loss_ppm > 0
            || self.narrow.is_some()
    }

    /// Builds the lab. Panics on failure; ask [`LabBuilder::skip_reason`] first.
    pub fn build(self) -> Lab {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let is_capped = self.rate.is_some() || !self.delay.is_zero();
        assert!(!self.has_valve || !is_capped, "the uplink has one queue: either a cap or a valve");
        let name =
            format!("{PREFIX}{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir()
            .expect("a directory for the lab");
        if self.memory_disk {
            let (path, options) = (directory.path(), Some(c"huge=within_size"));
            mount("bootcast", path, "tmpfs", MountFlags::empty(), options).expect("a memory disk");
        }
        fs::create_dir(directory.path().join("served")).expect("the served directory");
        let host = |node: &str, address| {
            Host::new(format!("{name}-{node}"), address, directory.path().into())
        };
        let clients = (1..=self.clients).map(|k| host(&format!("c{k}"), client_address(k)));
        let mut lab = Lab {
            head: host("head", HEAD_ADDRESS),
            clients: clients.collect(),
            delay_line: None,
            files: AtomicU32::new(0),
            has_valve: self.has_valve,
            directory,
            name,
        };
        // From here on, dropping the lab removes what was made if the next step panics.
        lab.wire(&self);
        lab
    }
}

impl Lab {
    /// Describes one client, without cap and loss, with snooping.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            clients: 1,
            rate: None,
            narrow: None,
            cap_place: CapPlace::Head,
            impairment: Impairment::default(),
            lossier: None,
            shared_loss_ppm: 0,
            delay: Duration::ZERO,
            snooping: true,
            memory_disk: false,
            has_valve: false,
        }
    }

    /// Host of the server.
    pub fn head(&self) -> &Host {
        &self.head
    }

    /// Host of client `k`, counted from 1.
    pub fn client(&self, k: usize) -> &Host {
        &self.clients[k - 1]
    }

    /// Hosts of all clients.
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// A directory that is removed with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that the server serves.
    pub fn served(&self) -> PathBuf {
        self.directory.path().join("served")
    }

    /// Creates a file of `size` random bytes in the served directory. Each call gives other bytes.
    pub fn put(&self, name: &str, size: u64) -> Image {
        let seed = u64::from(self.files.fetch_add(1, Ordering::Relaxed));
        let path = self.served().join(name);
        fs::create_dir_all(path.parent().expect("a path in the served directory"))
            .expect("a directory in the served directory");
        let content = Content::new(size, seed);
        content.write_to(&path);
        Image { name: name.into(), path, size, digest: content.digest() }
    }

    /// Prepares a server for the served directory.
    pub fn server(&self) -> ServerBuilder<'_> {
        ServerBuilder::new(self)
    }

    /// Prepares a mount on client `k`.
    pub fn mount(&self, k: usize) -> MountBuilder<'_> {
        MountBuilder::new(self.client(k))
    }

    /// URL on the head.
    pub fn url(&self, path: &str) -> String {
        format!("http://{HEAD_ADDRESS}:{}/{path}", bootcast_proto::DEFAULT_PORT)
    }

    /// Whether the switch knows that client `k` wants the group. It learns this some milliseconds
    /// after the socket joins.
    pub fn switch_sends(&self, group: Ipv4Addr, k: usize) -> bool {
        let output = Command::new("bridge").args(["-n", &self.switch(), "mdb", "show"]).output();
        let output = output.expect("bridge comes with ip");
        let (port, group) = (format!(" port {} ", self.client(k)), format!(" grp {group} "));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line.contains(&port) && line.contains(&group))
    }

    /// Holds all multicast of the head back, but for about the first `bytes`, until the valve is
    /// opened. For labs with a [`LabBuilder::valve`].
    pub fn hold_multicast_after(&self, bytes: u64) -> Valve<'_> {
        assert!(self.has_valve, "a lab with a valve was not asked for");
        Valve::close_after(&self.head, bytes)
    }

    /// Waits until all of these clients hear the cast of `path`: members for the server, and
    /// receivers for the switch.
    #[track_caller]
    pub fn wait_members(
        &self,
        server: &ServerProc<'_>,
        path: &str,
        clients: RangeInclusive<usize>,
    ) {
        let count = clients.clone().count();
        server.wait_cast(path, &format!("{count} are members"), |cast| {
            usize::try_from(cast.members).is_ok_and(|members| members >= count)
        });
        let group = server.cast_of(path).map(|cast| cast.group).expect("its members are there");
        let group: SocketAddrV4 = group.parse().expect("a group and a port");
        for k in clients {
            wait_until(SOON, &format!("the switch sends to client {k}"), || {
                self.switch_sends(*group.ip(), k)
            });
        }
    }

    /// Packets that the switch has lost on the way to client `k`.
    pub fn lost_packets(&self, k: usize) -> u64 {
        lost_packets(&self.switch(), &self.client(k).to_string()).unwrap_or_default()
    }

    /// Has the switch drop what matches `rule` on its way to client `k`: a match of `nftables` such
    /// as `udp dport 9001`. Not for labs without loss, where datagrams may come in one piece.
    pub fn drop_toward(&self, k: usize, rule: &str) {
        link::drop_toward(&self.switch(), &self.client(k).to_string(), rule);
    }

    /// Takes [`Lab::drop_toward`] back.
    pub fn pass_toward(&self, k: usize) {
        link::pass_toward(&self.switch(), &self.client(k).to_string());
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.name)
    }

    fn wire(&mut self, builder: &LabBuilder) {
        let switch = self.switch();
        let hosts: Vec<&Host> = std::iter::once(&self.head).chain(&self.clients).collect();
        link::add_namespace(&switch);
        for host in &hosts {
            link::add_namespace(host.namespace());
        }
        link::add_switch(&switch, builder.snooping);
        let querier_on = Instant::now();
        for host in &hosts {
            let cable = Cable {
                switch: &switch,
                host: host.namespace(),
                port: &host.to_string(),
                address: &host.address().to_string(),
                mac: &mac(host),
            };
            cable.plug();
        }
        self.attach_head(builder);
        for (client, number) in self.clients.iter().zip(1..) {
            link::attach(&switch, &client.to_string());
            let (here, there) = (client.address().to_string(), HEAD_ADDRESS.to_string());
            link::add_neighbour(self.head.namespace(), &here, &mac(client));
            link::add_neighbour(client.namespace(), &there, &mac(&self.head));
            let port = client.to_string();
            if let Some(rate) = builder.narrow {
                link::narrow(&switch, &port, rate);
            }
            if builder.loses_packets() {
                let has_queue = builder.narrow.is_some();
                link::gather_at_client(&switch, &port, client.namespace(), has_queue);
            }
            let mut impairment = builder.impairment;
            if let Some((_, loss_ppm)) = builder.lossier.filter(|(k, _)| *k == number) {
                impairment.loss_ppm = loss_ppm;
            }
            impairment.put(&switch, &port, number.into());
        }
        if builder.snooping {
            sleep(QUERIER_DELAY.saturating_sub(querier_on.elapsed()));
        }
    }

    /// Connects the head to the switch, with cap and delay.
    fn attach_head(&mut self, builder: &LabBuilder) {
        if builder.loses_packets() {
            link::send_single_datagrams(self.head.namespace());
        }
        let (switch, port) = (self.switch(), self.head.to_string());
        let mut last = port.as_str();
        if let Some(rate) = builder.rate {
            match builder.cap_place {
                CapPlace::Head => link::cap_rate(self.head.namespace(), rate),
                CapPlace::Switch => last = link::cap_behind(&switch, last, rate),
            }
        }
        if !builder.delay.is_zero() {
            let taps = link::add_taps(&switch, last);
            let namespace = Path::new(NAMESPACES).join(&switch);
            self.delay_line = Some(DelayLine::start(&namespace, taps, builder.delay));
            last = taps[1];
        }
        link::attach(&switch, last);
        if builder.shared_loss_ppm > 0 {
            lose_for_all(&switch, &port, builder.shared_loss_ppm);
        }
    }

    /// Ends every process on the lab's hosts, such as daemons that outlive their starter.
    fn end_processes(&self) {
        for host in std::iter::once(&self.head).chain(&self.clients) {
            let listed = Command::new("ip").args(["netns", "pids", host.namespace()]).output();
            let listed = listed.map(|output| output.stdout).unwrap_or_default();
            for pid in String::from_utf8_lossy(&listed).split_whitespace() {
                if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                    // Fails if the process has ended, which is fine.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.delay_line = None;
        // Mounts first: removing the directory must not walk into one. Each step is tried even if
        // others failed; `make clean-lab` removes the rest.
        for mount in mounts_below(self.directory.path()) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        self.end_processes();
        for mount in mounts_below(self.directory.path()) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        let hosts = self.clients.iter().chain([&self.head]).map(|host| host.namespace().to_owned());
        for namespace in hosts.chain([self.switch()]) {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
    }
}

/// Mount points below `directory`, the last mounted first.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(directory))
        .collect();
    below.reverse();
    below
}

fn millionths(percent: f64) -> u32 {
    assert!((0.0..=100.0).contains(&percent), "{percent} percent");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1e6 by the check above"
    )]
    let ppm = (percent * 10_000.0) as u32;
    ppm
}

fn client_address(k: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, k + 10)
}

/// A locally administered hardware address with the last bytes of the IP address.
fn mac(host: &Host) -> String {
    format!("02:bc:00:00:00:{:02x}", host.address().octets()[3])
}
