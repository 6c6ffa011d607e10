//! Many readers of one file, and of many small ones. docs/SEMANTICS.md, "Filling", "Small files".

use std::fs;

use harness::host::Host;
use harness::{Lab, digest_of, lab_or_skip, mib};

use crate::text;

#[test]
fn a_hundred_readers_of_a_file_that_arrives_get_its_bytes_from_one_membership() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(8));
    let server = lab.server().option("--rate", "100mbit").start();
    let mount = lab.mount(1).start();
    let path = mount.join("image");
    let digests = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..100).map(|_| scope.spawn(|| digest_of(&path))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(digests.iter().all(|digest| *digest == image.digest));
    assert_eq!(server.status().totals.joins, 1);
}

/// Returns the checksums that eight processes compute of all files below a directory.
fn checksums(host: &Host, directory: &str) -> String {
    let script = "cd \"$1\" && find . -type f -print0 | xargs -0 -P 8 -n 25 sha256sum | sort -k 2";
    let output = host.run("sh", ["-c", script, "sh", directory]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_thousand_small_files_in_some_directories_have_the_right_checksums() {
    let lab = lab_or_skip!(Lab::builder());
    for k in 0_u32..1000 {
        let directory = lab.served().join(format!("tree/{}", k % 7));
        fs::create_dir_all(&directory).unwrap();
        let bytes: Vec<u8> = k.to_le_bytes().into_iter().cycle().take(k as usize * 40).collect();
        fs::write(directory.join(k.to_string()), bytes).unwrap();
    }
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let host = lab.client(1);
    let right = checksums(host, text(&lab.served().join("tree")));
    assert_eq!(right.lines().count(), 1000);
    for _ in 0..2 {
        assert!(checksums(host, text(&mount.join("tree"))) == right, "{}", mount.log());
    }
}
