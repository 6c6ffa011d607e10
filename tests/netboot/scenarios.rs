//! What guests are put through.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bootcast_proto::wire::Layout;
use bootcast_proto::{JoinAnswer, PageIndex};
use clap::ValueEnum;
use harness::lab::{HEAD_ADDRESS, LabBuilder};
use harness::{Forger, Lab, Proc, SOON, ServerProc, sending_socket, wait_until};

use crate::guest::{Boot, Family, Guest};
use crate::{ARCHIVE, FIRST_STAGE, IMAGE, SMALL_KERNEL};

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
    /// 2 % of the packets are lost
    Loss,
    /// Another host forges pages of the image, which the kernel command line names by its hash
    Forged,
    /// Two heads, the first of which is away
    TwoHeads,
    /// DHCP gives address and head
    DhcpHead,
    /// The same with the other family of initramfs
    DhcpHeadDracut,
    /// DHCP gives address and root
    DhcpRoot,
    /// The same with the other family of initramfs
    DhcpRootDracut,
    /// The image is an archive
    Archive,
    /// The same with the other family of initramfs
    ArchiveDracut,
    /// From power-on, with a kernel and an initramfs that come by the cast
    Kexec,
    /// Several of these at once
    KexecSeveral,
    /// The head has another kernel than the kernel command line names, and gets the right one later
    KexecWrongKernel,
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
    /// Those of them that went by multicast.
    multicast: u64,
    /// Time until each guest was up, in ascending order.
    boots: Vec<Duration>,
}

impl Cost {
    /// Returns the row of the table. `data` is the size of the image.
    pub(crate) fn row(&self, title: &str, data: u64) -> String {
        let boots: Vec<_> =
            self.boots.iter().map(|it| format!("{:.1}", it.as_secs_f64())).collect();
        let share = self.sent * 100 / data.max(1);
        let (sent, boots, unicast) = (self.sent >> 20, boots.join(", "), self.unicast());
        let unicast = format!("{}.{} MB", unicast / 1_000_000, unicast / 100_000 % 10);
        format!("| {title} | {sent} MiB | {share} % | {unicast} | {boots} |\n")
    }

    /// Returns the bytes that the head sent to one of the guests alone.
    fn unicast(&self) -> u64 {
        self.sent.saturating_sub(self.multicast) / self.boots.len().max(1) as u64
    }
}

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Describes the network, where several guests are `several`.
    pub(crate) fn lab(self, several: u8) -> LabBuilder {
        let lab = Lab::builder();
        match self {
            Self::Several | Self::SeveralDemand | Self::KexecSeveral => lab.clients(several),
            Self::Forged => lab.clients(2),
            Self::Loss => lab.loss(2.0),
            _ => lab,
        }
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
            Self::Loss => "1, 2 % loss".into(),
            Self::Forged => "1, `b3=`, forged pages".into(),
            Self::TwoHeads => "1, first of two heads away".into(),
            Self::DhcpHead => "1, head from DHCP".into(),
            Self::DhcpHeadDracut => "1, head from DHCP, dracut".into(),
            Self::DhcpRoot => "1, `root=dhcp`".into(),
            Self::DhcpRootDracut => "1, `root=dhcp`, dracut".into(),
            Self::Archive => "1, archive".into(),
            Self::ArchiveDracut => "1, archive, dracut".into(),
            Self::Kexec => "1, from power-on, `bootcast.mode=kexec`".into(),
            Self::KexecSeveral => format!("{several} at once, the same"),
            Self::KexecWrongKernel => "1, `mode=kexec`, `b3=`, wrong kernel at first".into(),
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
            Self::Loss => site.lose_packets(),
            Self::Forged => site.hear_a_forger(),
            Self::TwoHeads => site.try_two_heads(),
            Self::DhcpHead => site.ask_dhcp(Family::InitramfsTools, &head_left_out()),
            Self::DhcpHeadDracut => site.ask_dhcp(Family::Dracut, &head_left_out()),
            Self::DhcpRoot => site.ask_dhcp(Family::InitramfsTools, "dhcp"),
            Self::DhcpRootDracut => site.ask_dhcp(Family::Dracut, "dhcp"),
            Self::Archive => site.unpack(Family::InitramfsTools),
            Self::ArchiveDracut => site.unpack(Family::Dracut),
            Self::Kexec | Self::KexecSeveral => site.boot_by_first_stage(),
            Self::KexecWrongKernel => site.refuse_the_wrong_kernel(),
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
        let refused = format!("bootcast: refused: /{IMAGE} on {HEAD_ADDRESS}");
        guest.wait_line(&refused);
        fs::rename(&right, &wrong).expect("the right image takes its place");
        let up = guest.wait_up();
        server.stop();
        let waited = guest.console().lines().filter(|line| line.contains("bootcast: ")).count();
        assert_eq!(waited, 1, "one line tells it:\n{}", guest.console());
        self.cost(vec![up])
    }

    /// Boots a guest that misses packets.
    fn lose_packets(&self) -> Cost {
        let _server = self.serve();
        let mut guest = self.start(1, Family::InitramfsTools, "", "");
        let up = guest.wait_up();
        assert!(self.lab.lost_packets(1) > 0, "no packet was lost");
        self.cost(vec![up])
    }

    /// Boots a guest while another member of the cast sends wrong pages with the right tag.
    fn hear_a_forger(&self) -> Cost {
        let server = self.serve();
        let image = fs::read(self.lab.served().join(IMAGE)).expect("the image");
        let hash = blake3::hash(&image);
        let mut guest = self.start(1, Family::InitramfsTools, &format!(",b3={hash}"), "");
        self.lab.wait_members(&server, IMAGE, 1..=1);
        let done = AtomicBool::new(false);
        let up = std::thread::scope(|scope| {
            scope.spawn(|| self.forge(&server, &done));
            let done = SetOnDrop(&done);
            guest.wait_line("wrong bytes");
            drop(done);
            guest.wait_up()
        });
        self.cost(vec![up])
    }

    /// Sends wrong pages of the image from client 2 until `done`.
    fn forge(&self, server: &ServerProc<'_>, done: &AtomicBool) {
        let host = self.lab.client(2);
        let join = self.lab.url(&format!("join/{IMAGE}"));
        let own = host.get_with(&join, &[("X-BOOTCAST", "1")]);
        let own = JoinAnswer::parse(&own.body).expect("an answer to a join");
        let payload = vec![0xee; own.page_size.get() as usize];
        let source = sending_socket(server);
        host.enter(|| {
            let forger = Forger::new(source);
            for page in (0..own.pages - 1).cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let header = Layout::Base.header(PageIndex(page), own.pages, &payload);
                let mut datagram = [&header[..], &payload].concat();
                own.extensions.key.inspect(|key| key.seal(&mut datagram));
                forger.send(SocketAddrV4::new(*own.connect.ip(), 9000), &datagram);
                // The request is a pause: an emulated machine takes hardly more than the cast.
                if page % 10 == 0 {
                    server.status();
                }
            }
        });
    }

    /// Boots a guest that has two heads on its kernel command line. The first does not answer.
    fn try_two_heads(&self) -> Cost {
        let _server = self.serve();
        let root = format!("bootcast:10.77.0.99,{HEAD_ADDRESS}:/{IMAGE}");
        let mut guest = self.start_root(1, Family::InitramfsTools, &root, "", false);
        let up = guest.wait_up();
        self.cost(vec![up])
    }

    /// Boots a guest that has its address, and what `root` leaves out, from DHCP.
    fn ask_dhcp(&self, family: Family, root: &str) -> Cost {
        let _server = self.serve();
        let root_path = format!("bootcast:{HEAD_ADDRESS}:/{IMAGE}");
        let _dhcp = self.serve_addresses(&format!("dhcp-option=option:root-path,{root_path}\n"));
        let mut guest = self.start_root(1, family, root, "", true);
        let up = guest.wait_up();
        self.cost(vec![up])
    }

    /// Boots a guest that unpacks an archive into its memory.
    fn unpack(&self, family: Family) -> Cost {
        let copied = fs::copy(self.files.join(ARCHIVE), self.lab.served().join(ARCHIVE));
        copied.expect("a copy of the archive");
        let mut server = self.lab.server().option("--rate", self.rate).start();
        let root = format!("bootcast:{HEAD_ADDRESS}:/{ARCHIVE}");
        let mut guest = self.start_root(1, family, &root, "", false);
        guest.wait_line("bootcast: the root is");
        server.stop();
        let up = guest.wait_up();
        assert_eq!(daemons(&guest), 0, "nothing of bootcast runs:\n{}", guest.console());
        self.cost(vec![up])
    }

    /// Boots a guest whose firmware knows nothing but its network card, with the files of
    /// docs/examples.
    fn boot_from_nothing(&self) -> Cost {
        self.fill_boot_directory(include_str!("../../docs/examples/boot.ipxe"));
        let _server = self.lab.server().option("--rate", self.rate).start();
        let _dhcp = self.serve_addresses("");
        let mut guest = Guest::start(self.lab.client(1), 1, &Boot::Network);
        println!("  guest 1 is switched on");
        let up = guest.wait_up();
        self.cost(vec![up])
    }

    /// Copies kernel, initial RAM disk and image to the head, below the directories of
    /// docs/NETBOOT.md, and has iPXE run this script.
    fn fill_boot_directory(&self, script: &str) {
        let served = self.lab.served();
        for directory in ["boot", "images"] {
            fs::create_dir(served.join(directory)).expect("a directory on the head");
        }
        self.copy("vmlinuz", "boot/vmlinuz");
        self.copy(Family::InitramfsTools.initrd(), "boot/initrd");
        self.copy(IMAGE, &format!("images/{IMAGE}"));
        let script = script.replace(" ip=dhcp ", " ip=dhcp console=ttyS0 ");
        fs::write(served.join("boot/boot.ipxe"), script).expect("the script of iPXE");
    }

    /// Copies a file to the head.
    fn copy(&self, from: &str, to: &str) -> u64 {
        let copied = fs::copy(self.files.join(from), self.lab.served().join(to));
        copied.unwrap_or_else(|error| panic!("a copy of {from} on the head: {error}"))
    }

    /// Boots a guest on each client at once. iPXE fetches a first stage, and everything else comes
    /// by the cast.
    fn boot_by_first_stage(&self) -> Cost {
        self.fill_boot_directory(include_str!("../../docs/examples/first-stage.ipxe"));
        let first = self.copy(self.first_kernel(), "boot/first-kernel")
            + self.copy(FIRST_STAGE, "boot/first-stage");
        println!("  kernel and initramfs of the first stage have {first} bytes");
        let _server = self.lab.server().option("--rate", self.rate).start();
        let _dhcp = self.serve_addresses("");
        let clients = 1..=self.lab.clients().len();
        let start = |k| Guest::start(self.lab.client(k), k, &Boot::Network);
        let mut guests: Vec<_> = clients.map(start).collect();
        println!("  {} guests are switched on", guests.len());
        wait_until(UP_DEADLINE, "all guests are up", || {
            guests.iter_mut().filter_map(Guest::up_after).count() == guests.len()
        });
        let mut boots: Vec<_> = guests.iter_mut().filter_map(Guest::up_after).collect();
        boots.sort_unstable();
        let cost = self.cost(boots);
        for guest in &guests {
            let console = guest.console();
            assert!(console.contains("bootcast: starting the kernel"), "no kexec:\n{console}");
            assert_eq!(daemons(guest), 1, "one process serves the root");
        }
        // Beside the first stage there are headers and requests, but no kernel and no initramfs.
        let most = first
            + (fs::metadata(self.lab.served().join("boot/vmlinuz")))
                .map_or(0, |kernel| kernel.len() / 2);
        assert!(cost.unicast() < most, "{} bytes by unicast to each guest", cost.unicast());
        cost
    }

    /// Returns the name of the kernel of the first stage.
    fn first_kernel(&self) -> &'static str {
        if self.files.join(SMALL_KERNEL).exists() { SMALL_KERNEL } else { "vmlinuz" }
    }

    /// Boots a guest that shall start a certain kernel, from a head with another one.
    fn refuse_the_wrong_kernel(&self) -> Cost {
        let _server = self.serve();
        self.copy(Family::InitramfsTools.initrd(), "initrd");
        let mut bytes = fs::read(self.files.join("vmlinuz")).expect("the kernel");
        let hash = blake3::hash(&bytes);
        let initrd = fs::read(self.files.join(Family::InitramfsTools.initrd()));
        let initrd = blake3::hash(&initrd.expect("the initial RAM disk"));
        *bytes.last_mut().expect("a kernel is not empty") ^= 1;
        fs::write(self.lab.served().join("vmlinuz"), bytes).expect("the wrong kernel");
        let append = format!(
            "quiet root=bootcast:{HEAD_ADDRESS}:/{IMAGE} bootcast.mode=kexec \
             bootcast.kernel=/vmlinuz,b3={hash} bootcast.initrd=/initrd,b3={initrd}"
        );
        let (kernel, initrd) = (self.files.join(self.first_kernel()), self.files.join(FIRST_STAGE));
        let boot = Boot::Kernel { kernel, initrd, append, dhcp: false };
        let mut guest = Guest::start(self.lab.client(1), 1, &boot);
        println!("  guest 1 is switched on");
        guest.wait_line(&format!("bootcast: refused: /vmlinuz on {HEAD_ADDRESS}"));
        self.copy("vmlinuz", "right");
        let right = self.lab.served().join("right");
        fs::rename(right, self.lab.served().join("vmlinuz")).expect("the right kernel");
        let up = guest.wait_up();
        let lines = guest.console().lines().filter(|line| line.contains("bootcast: ")).count();
        assert_eq!(lines, 1, "one line tells it:\n{}", guest.console());
        self.cost(vec![up])
    }

    /// Starts dnsmasq on the head, with the file of docs/examples and more lines.
    fn serve_addresses(&self, more: &str) -> Proc {
        let example = include_str!("../../docs/examples/netboot-dnsmasq.conf");
        let config = self.lab.head().fresh_path("dnsmasq.conf");
        let tftp = format!("tftp-root={}", self.lab.directory().display());
        let text = example.replace("10.0.0.", "10.77.0.").replace("tftp-root=/usr/lib/ipxe", &tftp);
        fs::write(&config, text + more).expect("the configuration of dnsmasq");
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
        let root = format!("bootcast:{HEAD_ADDRESS}:/{IMAGE}{options}");
        self.start_root(k, family, &root, more, false)
    }

    /// Starts a guest with this `root=` and more on its kernel command line. `dhcp` says whether it
    /// asks DHCP for its address.
    fn start_root(&self, k: usize, family: Family, root: &str, more: &str, dhcp: bool) -> Guest {
        let append = format!("root={root} {more}");
        let (kernel, initrd) = (self.files.join("vmlinuz"), self.files.join(family.initrd()));
        let boot = Boot::Kernel { kernel, initrd, append, dhcp };
        let guest = Guest::start(self.lab.client(k), k, &boot);
        println!("  guest {k} is switched on");
        guest
    }

    /// Returns the cost of a boot that is over now.
    fn cost(&self, boots: Vec<Duration>) -> Cost {
        let multicast = self.lab.head().multicast_bytes();
        Cost { sent: self.lab.head().counters().tx_bytes, multicast, boots }
    }
}

/// Ends a thread also if a wait for it panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Value of `root=` that leaves the head to DHCP.
fn head_left_out() -> String {
    format!("bootcast:/{IMAGE}")
}

/// Number of processes of bootcast in a guest that is up, as it says itself.
fn daemons(guest: &Guest) -> usize {
    let console = guest.console();
    let number = console.split(", bootcast processes: ").nth(1).unwrap_or_default();
    let number = number.split_whitespace().next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no number of processes:\n{console}"))
}
