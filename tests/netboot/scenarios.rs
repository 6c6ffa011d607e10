//! What guests are put through.

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use harness::lab::HEAD_ADDRESS;
use harness::{Lab, Proc, SOON, ServerProc, wait_until};

use crate::IMAGE;
use crate::guest::{Boot, Family, Guest};

/// Time in which all guests are up.
const UP_DEADLINE: Duration = Duration::from_secs(900);

/// One boot of one or several guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One guest, which is powered off
    One,
    /// Several at once
    Several,
    /// One guest that fetches what it reads, and is restarted
    OneDemand,
    /// Several at once that fetch what they read
    SeveralDemand,
    /// One guest with the other family of initramfs, which is restarted
    Dracut,
    /// The image is fetched into memory first
    Ram,
    /// The image is fetched onto a disk first
    Disk,
    /// The head is killed in the middle of the boot, and started again
    HeadAway,
    /// Firmware, DHCP, iPXE, kernel: everything over the network
    Pxe,
    /// The head has another image than the kernel command line names, and gets the right one later
    WrongImage,
}

/// Network and files of a scenario.
pub(crate) struct Site<'a> {
    pub(crate) lab: &'a Lab,
    /// Directory with kernel, initial RAM disks and image.
    pub(crate) files: &'a Path,
    pub(crate) rate: &'a str,
}

/// What a boot cost.
pub(crate) struct Cost {
    /// Bytes that the head sent.
    sent: u64,
    /// Time until each guest was up, in ascending order.
    boots: Vec<Duration>,
}

impl Cost {
    /// Returns the row of the table. `data` is the size of the image.
    pub(crate) fn row(&self, title: &str, data: u64) -> String {
        let boots: Vec<_> =
            self.boots.iter().map(|it| format!("{:.1}", it.as_secs_f64())).collect();
        let share = self.sent * 100 / data.max(1);
        format!("| {title} | {} MiB | {share} % | {} |\n", self.sent >> 20, boots.join(", "))
    }
}

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Number of guests, if several of them are `several`.
    pub(crate) fn guests(self, several: u8) -> u8 {
        if matches!(self, Self::Several | Self::SeveralDemand) { several } else { 1 }
    }

    pub(crate) fn title(self, several: u8) -> String {
        match self {
            Self::One => "1".into(),
            Self::Several => format!("{several} at once"),
            Self::OneDemand => "1, `fill=demand`".into(),
            Self::SeveralDemand => format!("{several} at once, `fill=demand`"),
            Self::Dracut => "1, dracut".into(),
            Self::Ram => "1, `bootcast.mode=ram`".into(),
            Self::Disk => "1, `bootcast.mode=disk:`".into(),
            Self::HeadAway => "1, head killed and back".into(),
            Self::Pxe => "1, from power-on by iPXE".into(),
            Self::WrongImage => "1, `b3=`, wrong image at first".into(),
        }
    }

    /// Boots the guests, and checks what the scenario is for.
    pub(crate) fn run(self, site: &Site<'_>) -> Cost {
        match self {
            Self::One => site.boot_and_end("", "poweroff", Family::InitramfsTools),
            Self::OneDemand => site.boot_and_end(",fill=demand", "reboot", Family::InitramfsTools),
            Self::Dracut => site.boot_and_end("", "reboot", Family::Dracut),
            Self::Several => site.boot_all(""),
            Self::SeveralDemand => site.boot_all(",fill=demand"),
            Self::Ram => site.boot_without_head("ram"),
            Self::Disk => site.boot_without_head("disk:/dev/vda"),
            Self::HeadAway => site.lose_the_head(),
            Self::Pxe => site.boot_from_nothing(),
            Self::WrongImage => site.refuse_the_wrong_image(),
        }
    }
}

impl Site<'_> {
    /// Boots one guest, and has it power off or restart.
    fn boot_and_end(&self, options: &str, how: &str, family: Family) -> Cost {
        let _server = self.serve();
        let mut guest = self.start(1, family, options, &format!("netboot.then={how}"));
        let up = guest.wait_up();
        let cost = self.cost(vec![up]);
        assert_eq!(daemons(&guest), 1, "one process serves the root");
        guest.wait_end();
        let console = guest.console();
        let last = if how == "reboot" { "reboot: Restarting system" } else { "reboot: Power down" };
        assert!(console.contains(last), "not {last:?} but:\n{console}");
        let failed = console.lines().find(|line| line.contains("Failed unmounting"));
        assert_eq!(failed, None, "nothing is left to unmount");
        cost
    }

    /// Boots a guest on each client at once.
    fn boot_all(&self, options: &str) -> Cost {
        let _server = self.serve();
        let clients = 1..=self.lab.clients().len();
        let start = |k| self.start(k, Family::InitramfsTools, options, "quiet");
        let mut guests: Vec<_> = clients.map(start).collect();
        wait_until(UP_DEADLINE, "all guests are up", || {
            guests.iter_mut().filter_map(Guest::up_after).count() == guests.len()
        });
        let mut boots: Vec<_> = guests.iter_mut().filter_map(Guest::up_after).collect();
        boots.sort_unstable();
        self.cost(boots)
    }

    /// Boots a guest that fetches the whole image first. The head goes away before it is up.
    fn boot_without_head(&self, mode: &str) -> Cost {
        let mut server = self.serve();
        let mut guest = self.start(1, Family::InitramfsTools, "", &format!("bootcast.mode={mode}"));
        guest.wait_line("bootcast: the root is");
        server.stop();
        let up = guest.wait_up();
        assert_eq!(daemons(&guest), 0, "nothing of bootcast runs:\n{}", guest.console());
        self.cost(vec![up])
    }

    /// Boots a guest whose head is killed when the system starts, and comes back.
    fn lose_the_head(&self) -> Cost {
        let mut server = self.serve();
        let mut guest = self.start(1, Family::InitramfsTools, ",fill=demand", "");
        guest.wait_line("bootcast: the root is");
        server.kill();
        guest.wait_line("trying again");
        assert_eq!(guest.up_after(), None, "it cannot be up without the head");
        server.start();
        let up = guest.wait_up();
        self.cost(vec![up])
    }

    /// Boots a guest that shall have the image, from a head with another one.
    fn refuse_the_wrong_image(&self) -> Cost {
        let (wrong, right) = (self.lab.served().join(IMAGE), self.lab.directory().join("right"));
        let mut server = self.serve();
        fs::rename(&wrong, &right).expect("the image is put aside");
        let hash = blake3::Hasher::new().update(&fs::read(&right).expect("the image")).finalize();
        let mut bytes = fs::read(&right).expect("the image");
        *bytes.last_mut().expect("an image is not empty") ^= 1;
        fs::write(&wrong, bytes).expect("the wrong image");
        let mut guest = self.start(1, Family::InitramfsTools, &format!(",b3={hash}"), "quiet");
        guest.wait_line(&format!("bootcast: refused: /{IMAGE} on {HEAD_ADDRESS}"));
        fs::rename(&right, &wrong).expect("the right image takes its place");
        let up = guest.wait_up();
        server.stop();
        self.cost(vec![up])
    }

    /// Boots a guest whose firmware knows nothing but its network card, with the files of
    /// docs/examples.
    fn boot_from_nothing(&self) -> Cost {
        let served = self.lab.served();
        for directory in ["boot", "images"] {
            fs::create_dir(served.join(directory)).expect("a directory on the head");
        }
        let copy = |from: &str, to: &str| {
            fs::copy(self.files.join(from), served.join(to)).expect("a copy on the head");
        };
        copy("vmlinuz", "boot/vmlinuz");
        copy(Family::InitramfsTools.initrd(), "boot/initrd");
        copy(IMAGE, &format!("images/{IMAGE}"));
        let script = include_str!("../../docs/examples/boot.ipxe");
        let script = script.replace(" ip=dhcp ", " ip=dhcp console=ttyS0 ");
        fs::write(served.join("boot/boot.ipxe"), script).expect("the script of iPXE");
        let _server = self.lab.server().option("--rate", self.rate).start();
        let _dhcp = self.serve_addresses();
        let mut guest = Guest::start(self.lab.client(1), 1, &Boot::Network);
        println!("  guest 1 is switched on");
        let up = guest.wait_up();
        self.cost(vec![up])
    }

    /// Starts dnsmasq on the head, with the file of docs/examples.
    fn serve_addresses(&self) -> Proc {
        let example = include_str!("../../docs/examples/netboot-dnsmasq.conf");
        let config = self.lab.head().fresh_path("dnsmasq.conf");
        let tftp = format!("tftp-root={}", self.lab.directory().display());
        let text = example.replace("10.0.0.", "10.77.0.").replace("tftp-root=/usr/lib/ipxe", &tftp);
        fs::write(&config, text).expect("the configuration of dnsmasq");
        let leases = self.lab.head().fresh_path("leases");
        let args = ["--keep-in-foreground", "--log-facility=-", "--user=root", "--pid-file"];
        let files = [
            format!("--conf-file={}", config.display()),
            format!("--dhcp-leasefile={}", leases.display()),
        ];
        let dnsmasq =
            self.lab.head().spawn("dnsmasq", args.map(str::to_owned).iter().chain(&files));
        wait_until(SOON, "dnsmasq gives addresses", || dnsmasq.log().contains("DHCP, IP range"));
        dnsmasq
    }

    /// Serves a copy of the image.
    fn serve(&self) -> ServerProc<'_> {
        let copied = fs::copy(self.files.join(IMAGE), self.lab.served().join(IMAGE));
        copied.expect("a copy of the image");
        self.lab.server().option("--rate", self.rate).start()
    }

    fn start(&self, k: usize, family: Family, options: &str, more: &str) -> Guest {
        let append = format!("root=bootcast:{HEAD_ADDRESS}:/{IMAGE}{options} {more}");
        let (kernel, initrd) = (self.files.join("vmlinuz"), self.files.join(family.initrd()));
        let boot = Boot::Kernel { kernel, initrd, append };
        let guest = Guest::start(self.lab.client(k), k, &boot);
        println!("  guest {k} is switched on");
        guest
    }

    /// Returns the cost of a boot that is over now.
    fn cost(&self, boots: Vec<Duration>) -> Cost {
        Cost { sent: self.lab.head().counters().tx_bytes, boots }
    }
}

/// Number of processes of bootcast in a guest that is up, as it says itself.
fn daemons(guest: &Guest) -> usize {
    let console = guest.console();
    let number = console.split(", bootcast processes: ").nth(1).unwrap_or_default();
    let number = number.split_whitespace().next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no number of processes:\n{console}"))
}
