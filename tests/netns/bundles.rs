//! Trees of small files: many hosts that read one at the same moment get one copy of its bytes.
//! docs/PROTOCOL.md, "Bundles".

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use harness::{Lab, MountProc, lab_or_skip};

/// Creates a directory of small files, each with its own bytes.
fn put_tree(lab: &Lab, files: usize, size: usize) {
    let directory = lab.served().join("tree");
    fs::create_dir(&directory).unwrap();
    for k in 0..files {
        let bytes: Vec<u8> =
            (0..size).map(|byte| ((byte * 7) ^ (k * 31 + byte / 256)) as u8).collect();
        fs::write(directory.join(format!("file-{k:05}")), bytes).unwrap();
    }
}

/// Starts `tar` of the tree, with a checksum of all names and bytes as output.
fn start_tar(mount: &MountProc<'_>) -> Child {
    let script = "tar -C \"$1\" --sort=name --mtime=@0 --mode=0 -cf - tree | sha256sum";
    let mut command = mount.host().command("sh");
    command.args(["-c", script, "sh"]).arg(mount.path());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn sum_of(tar: Child) -> String {
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Prints how long `tar` of 2,000 files takes, and what the head sends.
#[test]
#[ignore = "measures"]
fn measure() {
    for clients in [1u8, 8] {
        let lab = lab_or_skip!(Lab::builder().clients(clients).memory_disk());
        put_tree(&lab, 2000, 4096);
        let server = lab.server().start();
        let mounts: Vec<_> = (1..=clients.into()).map(|k| lab.mount(k).start()).collect();
        let (before, began) = (lab.head().counters().tx_bytes, Instant::now());
        let tars: Vec<_> = mounts.iter().map(start_tar).collect();
        let sums: Vec<_> = tars.into_iter().map(sum_of).collect();
        let took = began.elapsed();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        std::thread::sleep(Duration::from_millis(500));
        let sent = lab.head().counters().tx_bytes - before;
        let cpu: Duration = mounts.into_iter().map(|mut it| it.proc().cpu_time()).sum();
        println!(
            "{clients} clients: {took:?}, {sent} bytes sent, CPU server {:?} mounts {cpu:?}, {:?}",
            server.proc().cpu_time(),
            server.status().totals,
        );
    }
}
