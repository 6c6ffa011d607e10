//! `bootcast get` installs images: compressed ones are expanded on the way, and blocks of a device
//! that hold zeros are freed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::binaries::binary;
use harness::{Lab, digest_of, lab_or_skip, mib};

use crate::outputs::LoopDevice;
use crate::text;

/// Runs `bootcast get` on client 1, in a new directory. Returns that, too.
fn get(lab: &Lab, args: &[&str]) -> (PathBuf, Output) {
    let directory = lab.client(1).fresh_path("fetched");
    fs::create_dir(&directory).unwrap();
    let mut command = lab.client(1).command(binary("bootcast"));
    command.args(["get", "--interface", "eth0"]).args(args).current_dir(&directory);
    (directory, command.output().unwrap())
}

/// Compresses a served file. Returns the path of the result.
fn compress(path: &Path) -> PathBuf {
    let compressed = path.with_extension("gz");
    let output = File::create(&compressed).unwrap();
    let status = Command::new("gzip").arg("-1c").arg(path).stdout(output).status().unwrap();
    assert!(status.success());
    compressed
}

/// Writes a file of 24 MiB: three parts of data with holes between them and at the end.
fn put_sparse(lab: &Lab) -> PathBuf {
    let image = lab.put("image", mib(3));
    let data = fs::read(&image.path).unwrap();
    let file = OpenOptions::new().write(true).truncate(true).open(&image.path).unwrap();
    file.set_len(mib(24)).unwrap();
    for (part, place) in data.chunks(1 << 20).zip([0, mib(9) + 1000, mib(20)]) {
        file.write_all_at(part, place).unwrap();
    }
    image.path
}

/// Transfers of a file: by multicast, over HTTP, proven.
fn ways(b3: &str) -> [Vec<&str>; 3] {
    [vec![], vec!["--unicast"], vec!["--b3", b3]]
}

#[test]
fn a_compressed_file_is_expanded_to_a_file_and_a_pipe() {
    let lab = lab_or_skip!(Lab::builder().loss(2.0));
    let image = lab.put("image", mib(12) + 77);
    let compressed = compress(&image.path);
    let _server = lab.server().start();
    let (url, id) = (lab.url("image.gz"), b3_of(&compressed));
    for way in ways(&id) {
        let (directory, output) = get(&lab, &[&way[..], &["--decompress", &url]].concat());
        assert!(output.status.success(), "{way:?}: {output:?}");
        assert_eq!(digest_of(directory.join("image")), image.digest, "{way:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "{way:?}");
        let (_, output) = get(&lab, &[&way[..], &["--decompress", &url, "-O", "-"]].concat());
        assert!(output.status.success(), "{way:?}: {:?}", output.status);
        assert!(output.stdout == fs::read(&image.path).unwrap(), "{way:?}");
    }
}

fn b3_of(path: &Path) -> String {
    digest_of(path).to_hex().to_string()
}

#[test]
fn a_sparse_image_frees_the_blocks_of_a_device_that_it_has_no_data_for() {
    let lab = lab_or_skip!(Lab::builder().loss(1.0));
    let image = put_sparse(&lab);
    let compressed = compress(&image);
    let _server = lab.server().start();
    let Some(device) = LoopDevice::attach(lab.directory(), 40) else { return };
    let backing = LoopDevice::backing(lab.directory());
    let expected = fs::read(&image).unwrap();
    let target = text(&device.0);
    for (file, more) in [(&image, &[][..]), (&image, &["--unicast"]), (&compressed, &["-d"])] {
        let id = b3_of(file);
        let url = lab.url(text(file.strip_prefix(lab.served()).unwrap()));
        for discard in [true, false] {
            let case = format!("{url} {more:?}, discard: {discard}");
            fill(&device.0, mib(40));
            let args = [&[&url, "-O", target, "--b3", &id][..], more];
            let freeing = if discard { &["--discard"][..] } else { &[] };
            let (_, output) = get(&lab, &[args.concat(), freeing.to_vec()].concat());
            assert!(output.status.success(), "{case}: {output:?}");
            let written = fs::read(&device.0).unwrap();
            assert!(written[..expected.len()] == expected, "{case}");
            let behind = if discard { 0 } else { OLD };
            assert!(written[expected.len()..].iter().all(|byte| *byte == behind), "{case}");
            let allocated = fs::metadata(&backing).unwrap().blocks() * 512;
            assert_eq!(allocated < mib(4), discard, "{case}: {allocated} bytes are allocated");
        }
    }
}

#[test]
fn zeros_behind_the_end_of_a_device_are_an_error() {
    let lab = lab_or_skip!(Lab::builder());
    let image = put_sparse(&lab);
    let compressed = compress(&image);
    let _server = lab.server().start();
    // All data of the image fits.
    let Some(device) = LoopDevice::attach(lab.directory(), 22) else { return };
    for (file, more) in [(&image, &[][..]), (&image, &["--unicast"]), (&compressed, &["-d"])] {
        let url = lab.url(text(file.strip_prefix(lab.served()).unwrap()));
        for freeing in [&[][..], &["--discard"]] {
            let (_, output) = get(&lab, &[&[&url, "-O", text(&device.0)], more, freeing].concat());
            let errors = String::from_utf8(output.stderr).unwrap();
            let case = format!("{url} {more:?} {freeing:?}: {errors}");
            assert_eq!((output.status.code(), errors.lines().count()), (Some(2), 1), "{case}");
        }
    }
}

/// What a device holds before an image is written.
const OLD: u8 = 0xa5;

fn fill(device: &Path, size: u64) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(&vec![OLD; usize::try_from(size).unwrap()], 0).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_cannot_be_expanded_is_one_line_and_no_file() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", mib(2));
    let compressed = compress(&image.path);
    let bytes = fs::read(&compressed).unwrap();
    fs::write(lab.served().join("cut.gz"), &bytes[..bytes.len() / 2]).unwrap();
    let _server = lab.server().start();
    for (name, reason) in [("image", "neither zstd, gzip nor xz"), ("cut.gz", "ends in the middle")]
    {
        for way in [&[][..], &["--unicast"]] {
            let (directory, output) = get(&lab, &[way, &["-d", &lab.url(name)]].concat());
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), errors.lines().count()), (Some(8), 1), "{errors}");
            assert!(errors.contains(reason), "{errors}");
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        }
    }
    let (_, output) = get(&lab, &[&lab.url("image"), "--discard", "-O", "file"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
