//! Profiles: what readers of a content wanted first comes to later hosts unasked.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Output;

use bootcast_proto::Profile;
use harness::binaries::binary;
use harness::{Host, Lab, MountProc, SOON, ServerProc, lab_or_skip, mib, wait_until};

const LEAF: u64 = 16 << 10;

/// Leaves that the tests read: spread over 64 MiB, in no ascending order.
fn leaves() -> impl Iterator<Item = u64> {
    (0..60).map(|k| (k * 1531 + 7) % 4096)
}

/// Reads 4096 bytes in the middle of each leaf, and compares them with the served file.
fn read_all(mount: &MountProc<'_>, content: &[u8]) {
    let file = File::open(mount.join("image")).unwrap();
    for leaf in leaves() {
        let (offset, mut bytes) = (leaf * LEAF + 8192, [0; 4096]);
        file.read_exact_at(&mut bytes, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == content[start..start + 4096], "leaf {leaf}");
    }
}

fn bootcast(host: &Host, args: &[&str]) -> Output {
    host.run(binary("bootcast"), args)
}

/// Pages of the profile that the server has sent since its start. No stream runs in these tests.
fn unasked(server: &ServerProc<'_>) -> u64 {
    let totals = server.status().totals;
    totals.pages_sent - totals.demanded
}

/// Waits until the server has a profile of the file in its state directory.
fn wait_kept(lab: &Lab) {
    let is_kept = || lab.client(1).get(&lab.url("profile/image")).status == 200;
    wait_until(SOON, "the profile is kept", is_kept);
}

/// Waits until the server has sent the profile, and everything that it sent is stored and verified.
fn wait_profile(server: &ServerProc<'_>, mount: &MountProc<'_>) {
    wait_until(SOON, "the profile is stored and verified", || {
        let file = mount.status().files.into_iter().find(|file| file.path == "image");
        unasked(server) > 0
            && file.is_some_and(|file| file.verified.is_some_and(|it| it >= 60 * LEAF))
    });
}

#[test]
fn a_fresh_host_gets_what_earlier_hosts_wanted_first_without_asking() {
    let lab = lab_or_skip!(Lab::builder().clients(3).valve());
    let image = lab.put("image", mib(64));
    let content = fs::read(&image.path).unwrap();
    let mut server = lab.server().option("--rate", "200mbit").start();
    let url = lab.url("image");
    let none = bootcast(lab.client(1), &["profile", &url]);
    assert_eq!(none.status.code(), Some(5), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("no profile yet"), "{none:?}");

    let mounts = [1, 2, 3].map(|k| lab.mount(k).option("fill=demand").option("linger=0s").start());
    read_all(&mounts[0], &content);
    server.wait_no_members();
    assert_eq!(unasked(&server), 0, "there was no profile");
    let wanted = server.status().totals.demanded;
    wait_kept(&lab);
    server.stop();
    server.start();

    let fresh = &mounts[1..];
    let valve = lab.hold_multicast_after(0);
    let _open = fresh.iter().map(|it| File::open(it.join("image")).unwrap()).collect::<Vec<_>>();
    lab.wait_members(&server, "image", 2..=3);
    valve.open();
    for mount in fresh {
        wait_profile(&server, mount);
    }
    let reads_waited = || fresh.iter().map(|it| it.status().totals.reads_waited).sum::<u64>();
    let before = reads_waited();
    for mount in fresh {
        read_all(mount, &content);
    }
    let totals = server.status().totals;
    assert_eq!(totals.demanded, 0, "a read found nothing");
    assert_eq!(reads_waited(), before, "a read waited");
    assert!(totals.pages_sent <= wanted, "{} pages for both, of {wanted}", totals.pages_sent);

    let answer = lab.client(1).get(&lab.url("profile/image"));
    let (_, profile) = Profile::parse(&answer.body).unwrap();
    assert_eq!(
        profile.runs().iter().cloned().flatten().collect::<Vec<_>>(),
        leaves().collect::<Vec<_>>()
    );
    let shown = bootcast(lab.client(1), &["profile", &url]);
    assert!(shown.status.success(), "{shown:?}");
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("960.00 KiB, 1 % of the file, in 60 parts")
    );
    let order = bootcast(lab.client(1), &["profile", "--order", &url]);
    let first = String::from_utf8_lossy(&order.stdout).lines().next().unwrap().to_owned();
    assert_eq!(first, format!("{}-{}", 7 * LEAF, 8 * LEAF - 1));
}

#[test]
fn what_gets_lost_of_a_profile_is_demanded() {
    let lab = lab_or_skip!(Lab::builder().clients(2).loss(5.0).valve());
    let image = lab.put("image", mib(64));
    let content = fs::read(&image.path).unwrap();
    let server = lab.server().option("--rate", "200mbit").start();
    let mounts = [1, 2].map(|k| lab.mount(k).option("fill=demand").option("linger=0s").start());
    read_all(&mounts[0], &content);
    server.wait_no_members();
    wait_kept(&lab);
    let learned = server.status().totals.demanded;
    let valve = lab.hold_multicast_after(0);
    let _open = File::open(mounts[1].join("image")).unwrap();
    lab.wait_members(&server, "image", 2..=2);
    valve.open();
    // A leaf is of 12 or 13 pages.
    wait_until(SOON, "the profile was sent", || unasked(&server) >= 60 * 12);
    read_all(&mounts[1], &content);
    let lost = server.status().totals.demanded - learned;
    assert!(lost * 2 < learned, "{lost} pages demanded, with the profile of {learned}");
}
