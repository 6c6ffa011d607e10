//! A virtual machine with a network card and an empty disk.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use harness::lab::HEAD_ADDRESS;
use harness::{Host, Proc, wait_until};

/// Time in which a guest does what is waited for. Emulated, four of them share two cores.
const DEADLINE: Duration = Duration::from_secs(600);

/// Size of a guest's disk, which is empty at first and sparse.
const DISK_BYTES: u64 = 1 << 30;

/// Memory of a guest in MiB. The unpacked system takes a half of it.
const MEMORY: &str = "1536";

/// Line on the console of a guest that is up.
const UP: &str = "multi-user after";

/// Lines on the console of a guest that will never be up.
const LOST: [&str; 4] = ["Kernel panic - not", "(initramfs)", "emergency mode", "emergency shell"];

/// Family of initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// Debian's own
    InitramfsTools,
    /// dracut, with systemd inside
    Dracut,
}

impl Family {
    /// File name of its initial RAM disk.
    pub(crate) fn initrd(self) -> &'static str {
        match self {
            Self::InitramfsTools => "initrd.initramfs-tools",
            Self::Dracut => "initrd.dracut",
        }
    }
}

/// What a guest boots.
#[derive(Clone, Debug)]
pub(crate) enum Boot {
    /// QEMU loads the kernel.
    Kernel {
        kernel: PathBuf,
        initrd: PathBuf,
        /// Kernel command line, without console and address.
        append: String,
        /// Whether DHCP gives the address; otherwise it is on the kernel command line.
        dhcp: bool,
    },
    /// The firmware of the network card asks DHCP.
    Network,
}

impl Boot {
    /// Returns the arguments of QEMU for machine `k` of the network.
    fn arguments(&self, k: usize) -> Vec<String> {
        let Self::Kernel { kernel, initrd, append, dhcp } = self else {
            return vec!["-boot".into(), "n".into()];
        };
        let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
        let address = if *dhcp {
            format!("ip=dhcp BOOTIF=01-{}", hardware_address(k).replace(':', "-"))
        } else {
            format!("ip=10.77.0.{}::{HEAD_ADDRESS}:255.255.255.0::eth0:off", 100 + k)
        };
        let append = format!("console=ttyS0 net.ifnames=0 {address} {append}");
        let (kernel, initrd) = (text(kernel), text(initrd));
        [("-kernel", kernel), ("-initrd", initrd), ("-append", append)]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }
}

/// A running guest. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    qemu: Proc,
    begin: Instant,
    /// Time from power-on until the guest was up.
    up_after: Option<Duration>,
}

impl Guest {
    /// Starts a guest behind the network card of a host, as machine `k` of the network.
    pub(crate) fn start(host: &Host, k: usize, boot: &Boot) -> Self {
        plug(host);
        let card = format!("virtio-net-pci,netdev=cable,mac={}", hardware_address(k));
        let machine = ["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", MEMORY];
        let console = ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"];
        let cable = "tap,id=cable,ifname=tap0,script=no,downscript=no";
        let network = ["-netdev", cable, "-device", &card];
        let disk = host.fresh_path("disk");
        File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
        let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
        let disk = ["-drive", &drive];
        let args =
            machine.iter().chain(&console).chain(&network).chain(&disk).map(|&arg| arg.to_owned());
        let args = args.chain(boot.arguments(k));
        let qemu = host.spawn("qemu-system-x86_64", args);
        Self { qemu, begin: Instant::now(), up_after: None }
    }

    /// Console of the guest so far.
    pub(crate) fn console(&self) -> String {
        self.qemu.log()
    }

    /// Looks whether the guest is up, and returns after what time it was.
    pub(crate) fn up_after(&mut self) -> Option<Duration> {
        if self.up_after.is_none() {
            let console = self.console();
            if let Some(lost) = LOST.iter().find(|lost| console.contains(**lost)) {
                panic!("{lost}: the console says:\n{console}");
            }
            self.up_after = console.contains(UP).then(|| self.begin.elapsed());
        }
        self.up_after
    }

    /// Waits until the guest is up.
    pub(crate) fn wait_up(&mut self) -> Duration {
        wait_until(DEADLINE, "the guest is up", || self.up_after().is_some() || self.has_ended());
        self.up_after().unwrap_or_else(|| panic!("the guest ended:\n{}", self.console()))
    }

    /// Waits until the console has this line.
    pub(crate) fn wait_line(&self, line: &str) {
        let what = format!("the console says {line:?}");
        wait_until(DEADLINE, &what, || self.console().contains(line));
    }

    /// Waits until the guest has ended by itself: powered off or, since QEMU runs with -no-reboot,
    /// asked for a reboot.
    pub(crate) fn wait_end(&mut self) {
        self.qemu.wait_success(DEADLINE);
    }

    fn has_ended(&mut self) -> bool {
        self.qemu.exited().is_some()
    }
}

/// Hardware address of machine `k` of the network.
fn hardware_address(k: usize) -> String {
    format!("52:54:00:77:00:{k:02x}")
}

/// Takes the network card of a host for a guest: frames pass between card and guest.
fn plug(host: &Host) {
    let bridge = ["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"];
    // A guest that was here before has left the bridge.
    if !host.run("ip", ["link", "show", "br0"]).status.success() {
        host.run_ok("ip", bridge.iter().chain(&["stp_state", "0", "forward_delay", "0"]));
        host.run_ok("ip", ["tuntap", "add", "tap0", "mode", "tap"]);
        host.run_ok("ip", ["address", "flush", "dev", "eth0"]);
        for port in ["eth0", "tap0"] {
            host.run_ok("ip", ["link", "set", port, "master", "br0", "up"]);
        }
        host.run_ok("ip", ["link", "set", "br0", "up"]);
    }
}
