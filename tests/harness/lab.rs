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
use crate::mount_namespace::{isolate_mounts, mountinfo};
use crate::requirements;
use crate::server::{ServerBuilder, ServerProc};
use crate::valve::Valve;
use crate::wait::{SOON, wait_until};

/// Prefix of the names of a lab's namespaces and directories. The process id of the test run
/// follows, by which `make clean-lab` finds those of killed runs.
pub const PREFIX: &str = "bct-";

/// Address of the head.
pub const HEAD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Time until the switch's querier is active: the response interval of `link::add_switch`, and a
/// margin. The kernel does not show when the querier becomes active, so labs wait for a fixed time.
const QUERIER_DELAY: Duration = Duration::from_millis(650);

/// Description of a lab to build.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    clients: u8,
    rate: Option<BitRate>,
    narrow: Option<BitRate>,
    cap_place: CapPlace,
    impairment: Impairment,
    /// A client with another loss rate: its number, and the rate in millionths.
    special_loss: Option<(u8, u32)>,
    shared_loss_ppm: u32,
    delay: Duration,
    snooping: bool,
    memory_disk: bool,
    has_valve: bool,
}

/// Place of the rate cap.
#[derive(Clone, Copy, Debug)]
enum CapPlace {
    /// In the head's interface. When its queue is full, the sender blocks.
    Head,
    /// Behind the switch's port. When its queue is full, packets are dropped.
    Switch,
}

/// The network of one test. Dropping it removes everything that it created.
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

    /// Caps the rate of the head's uplink, such as `200mbit`. Not capped by default.
    #[must_use]
    pub fn rate(mut self, rate: &str) -> Self {
        self.rate = Some(rate.parse().expect("a rate as traffic control writes it"));
        self
    }

    /// Caps the rate of every client's switch port, such as `50mbit`. The port drops what exceeds
    /// it. Not capped by default.
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

    /// Sets the share of packets to client `k` that is lost, in percent, instead of that of
    /// [`Self::loss`].
    #[must_use]
    pub fn loss_of(mut self, k: u8, percent: f64) -> Self {
        self.special_loss = Some((k, millionths(percent)));
        self
    }

    /// Loses this share of the packets from the head, in percent, the same ones for all clients.
    #[must_use]
    pub fn shared_loss(mut self, percent: f64) -> Self {
        self.shared_loss_ppm = millionths(percent);
        self
    }

    /// Loses `lost` packets in a row out of every `every` packets to a client, different ones for
    /// each client.
    #[must_use]
    pub fn bursts(mut self, lost: u32, every: u32) -> Self {
        assert!(0 < lost && lost <= every, "{lost} of {every}");
        self.impairment.burst = Some((lost, every));
        self
    }

    /// Adds outages of this many milliseconds. Each packet to a client starts one with this
    /// probability.
    #[must_use]
    pub fn outages(mut self, milliseconds: u32, percent: f64) -> Self {
        self.impairment.outage = Some((milliseconds, millionths(percent)));
        self
    }

    /// Places the rate cap behind the switch's port. Packets in excess are dropped there, and the
    /// head does not notice.
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

    /// Sets whether the switch sends a group only to its members (the default) or to every host.
    #[must_use]
    pub fn snooping(mut self, snooping: bool) -> Self {
        self.snooping = snooping;
        self
    }

    /// Places served files and caches in memory instead of the directory for temporary files.
    ///
    /// Uses a `tmpfs` with large pages. With ordinary ones, managing the pages of a large file
    /// costs more than copying its bytes.
    #[must_use]
    pub fn memory_disk(mut self) -> Self {
        self.memory_disk = true;
        self
    }

    /// Adds a valve to the head's uplink, for [`Lab::hold_multicast_after`].
    #[must_use]
    pub fn valve(mut self) -> Self {
        self.has_valve = true;
        self
    }

    /// Returns the reason why this machine cannot have this lab; `None` if it can.
    pub fn skip_reason(&self) -> Option<String> {
        let has_cap = self.rate.is_some() || self.narrow.is_some();
        requirements::skip_reason()
            .or_else(|| self.has_valve.then(requirements::valve_skip_reason).flatten())
            .or_else(|| has_cap.then(requirements::cap_skip_reason).flatten())
    }

    /// Whether this lab loses packets other than by a full queue of the whole uplink.
    fn loses_packets(&self) -> bool {
        self.impairment != Impairment::default()
            || self.special_loss.is_some()
            || self.shared_loss_ppm > 0
            || self.narrow.is_some()
    }

    /// Builds the lab. Panics on failure; ask [`LabBuilder::skip_reason`] first.
    pub fn build(self) -> Lab {
        static LABS: AtomicU32 = AtomicU32::new(0);
        isolate_mounts();
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
        // If the next step panics, dropping the lab removes what exists by then.
        lab.wire(&self);
        lab
    }
}

impl Lab {
    /// Describes a lab with one client and snooping, without caps and loss.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            clients: 1,
            rate: None,
            narrow: None,
            cap_place: CapPlace::Head,
            impairment: Impairment::default(),
            special_loss: None,
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

    /// Directory of the lab, which is removed with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that the server serves.
    pub fn served(&self) -> PathBuf {
        self.directory.path().join("served")
    }

    /// Creates a file of `size` random bytes in the served directory. Each file has other bytes.
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
        ServerBuilder::new(self, &self.head)
    }

    /// Prepares another server for the served directory, on client `k`.
    pub fn server_on(&self, k: usize) -> ServerBuilder<'_> {
        ServerBuilder::new(self, self.client(k))
    }

    /// Prepares a mount on client `k`.
    pub fn mount(&self, k: usize) -> MountBuilder<'_> {
        MountBuilder::new(self.client(k))
    }

    /// URL of `path` on the server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{HEAD_ADDRESS}:{}/{path}", bootcast_proto::DEFAULT_PORT)
    }

    /// Whether the switch sends the group to client `k`. It begins to some milliseconds after the
    /// client's socket has joined the group.
    pub fn switch_sends(&self, group: Ipv4Addr, k: usize) -> bool {
        let output = Command::new("bridge").args(["-n", &self.switch(), "mdb", "show"]).output();
        let output = output.expect("bridge comes with ip");
        let (port, group) = (format!(" port {} ", self.client(k)), format!(" grp {group} "));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line.contains(&port) && line.contains(&group))
    }

    /// Lets about the first `bytes` bytes of multicast from the head through, and holds the rest
    /// back until the valve is opened. For labs with a [`LabBuilder::valve`].
    pub fn hold_multicast_after(&self, bytes: u64) -> Valve<'_> {
        assert!(self.has_valve, "build the lab with LabBuilder::valve");
        Valve::close_after(&self.head, bytes)
    }

    /// Waits until all of these clients receive the cast of `path`: the server has as many members,
    /// and the switch sends the group to each client.
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

    /// Drops packets to client `k` that match `rule`, an expression of `nftables` such as `udp
    /// dport 9001`. Only for labs with loss: in others, GSO may have merged datagrams.
    pub fn drop_toward(&self, k: usize, rule: &str) {
        link::drop_toward(&self.switch(), &self.client(k).to_string(), rule);
    }

    /// Reverts [`Lab::drop_toward`].
    pub fn pass_toward(&self, k: usize) {
        link::pass_toward(&self.switch(), &self.client(k).to_string());
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.name)
    }

    /// Creates the namespaces and connects the hosts to the switch.
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
            self.plug(host);
        }
        self.attach_head(builder);
        for (client, number) in self.clients.iter().zip(1..) {
            link::attach(&switch, &client.to_string());
            let (address, head) = (client.address().to_string(), HEAD_ADDRESS.to_string());
            link::add_neighbour(self.head.namespace(), &address, &mac(client));
            link::add_neighbour(client.namespace(), &head, &mac(&self.head));
            let port = client.to_string();
            if let Some(rate) = builder.narrow {
                link::narrow(&switch, &port, rate);
            }
            if builder.loses_packets() {
                let has_queue = builder.narrow.is_some();
                link::gather_at_client(&switch, &port, client.namespace(), has_queue);
            }
            let mut impairment = builder.impairment;
            if let Some((_, loss_ppm)) = builder.special_loss.filter(|(k, _)| *k == number) {
                impairment.loss_ppm = loss_ppm;
            }
            impairment.install(&switch, &port, number.into());
        }
        if builder.snooping {
            sleep(QUERIER_DELAY.saturating_sub(querier_on.elapsed()));
        }
    }

    /// Connects a host to a port of the switch, which has no loss and no cap.
    fn plug(&self, host: &Host) {
        let cable = Cable {
            switch: &self.switch(),
            host: host.namespace(),
            port: &host.to_string(),
            address: &host.address().to_string(),
            mac: &mac(host),
        };
        cable.plug();
    }

    /// Removes `eth0` of a host, and makes it anew: another interface of the same name and address.
    pub fn replace_interface(&self, host: &Host) {
        host.run_ok("ip", ["link", "del", "eth0"]);
        self.plug(host);
        link::attach(&self.switch(), &host.to_string());
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

    /// Kills every process on the lab's hosts, such as daemons that outlive the program that
    /// started them.
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
        // Mounts first: removing the directory must not descend into one. Errors are ignored, so
        // that every step is tried; `make clean-lab` removes the rest.
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
    let mounts = mountinfo();
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

/// Returns a locally administered hardware address that ends with the last byte of the IP address.
fn mac(host: &Host) -> String {
    format!("02:bc:00:00:00:{:02x}", host.address().octets()[3])
}
