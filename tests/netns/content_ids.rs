//! Content ids as extended attributes. docs/SEMANTICS.md, "Content ids".

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use bootcast_proto::JoinAnswer;
use harness::{Lab, Proc, SOON, digest_of, lab_or_skip, mib};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::proving::b3;
use crate::{TRANSFER, text};

const NAME: &str = "user.bootcast.b3";

/// Python program that prints the content id of a file.
const PRINT: &str = "import os, sys; print(os.getxattr(sys.argv[1], sys.argv[2]).decode())";

/// Returns the content id of a file in a mount, as `getfattr -n` gets it.
fn content_id(path: &Path) -> Result<String, Errno> {
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(path, NAME, &mut value[..])?;
    Ok(String::from_utf8(value[..len].to_vec()).unwrap())
}

/// Starts a program that prints the content id of a file.
fn print_content_id(lab: &Lab, path: &Path) -> Proc {
    lab.client(1).spawn("python3", ["-c", PRINT, text(path), NAME])
}

/// Returns the content id that the server states to who joins.
fn stated_to_members(lab: &Lab, name: &str) -> Option<String> {
    let url = lab.url(&format!("join/{name}"));
    let answer = JoinAnswer::parse(&lab.client(1).get_with(&url, &[("X-BOOTCAST", "1")]).body);
    answer.unwrap().extensions.content_id.map(|id| id.to_string())
}

#[test]
fn a_regular_file_has_its_content_id_as_an_attribute_that_is_not_listed() {
    let lab = lab_or_skip!(Lab::builder());
    let (image, empty) = (lab.put("dir/image", mib(9) + 1), lab.put("dir/empty", 0));
    symlink("image", lab.served().join("dir/link")).unwrap();
    let _server = lab.server().start();
    let mount = lab.mount(1).start();
    let path = mount.join("dir/image");
    assert_eq!(content_id(&path), Ok(b3(&image)));
    assert_eq!(content_id(&mount.join("dir/empty")), Ok(b3(&empty)));
    assert_eq!(content_id(&mount.join("dir/link")), Ok(b3(&image)), "the link is followed");

    let mut buffer = [0; 100];
    assert_eq!(rustix::fs::getxattr_query(&path, NAME), Ok(64));
    assert_eq!(rustix::fs::getxattr(&path, NAME, &mut buffer[..63]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, NAME, &mut buffer[..64]), Ok(64));
    assert_eq!(rustix::fs::listxattr_query(&path), Ok(0));
    assert_eq!(rustix::fs::listxattr(&path, &mut buffer[..]), Ok(0));
    for other in ["user.other", "user.bootcast.b3x", "trusted.x"] {
        let got = rustix::fs::getxattr(&path, other, &mut buffer[..]);
        assert_eq!(got, Err(Errno::NODATA), "{other}");
    }
    assert_eq!(content_id(&mount.join("dir")), Err(Errno::NODATA));
    let set = rustix::fs::setxattr(&path, NAME, b"x", XattrFlags::empty());
    assert_eq!(set, Err(Errno::ROFS));
    assert_eq!(rustix::fs::removexattr(&path, NAME), Err(Errno::ROFS));
}

#[test]
fn a_pinned_file_has_the_pin_and_others_have_no_content_id_that_could_be_believed() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1000);
    lab.put("unlisted", 1000);
    let mut server = lab.server().start();
    let pins = lab.client(1).fresh_path("pins");
    fs::write(&pins, format!("{}  image\n", b3(&image))).unwrap();
    let pins = format!("pins={}", text(&pins));
    let mount = lab.mount(1).option(&pins).option("attr_ttl=1h").start();
    assert!(mount.join("image").exists() && mount.join("unlisted").exists());
    server.kill();
    assert_eq!(content_id(&mount.join("image")), Ok(b3(&image)));
    assert_eq!(content_id(&mount.join("unlisted")), Err(Errno::ACCESS));
}

#[test]
fn a_program_that_asks_for_a_content_id_waits_for_the_server_and_can_be_killed() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("image", 1000);
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=1h").start();
    let path = mount.join("image");
    assert!(path.exists());
    server.kill();
    let (mut killed, mut waiting) = (print_content_id(&lab, &path), print_content_id(&lab, &path));
    mount.wait_parked(2);
    killed.kill_within(SOON);
    assert!(waiting.exited().is_none(), "{}", waiting.log());
    server.start();
    waiting.wait_success(TRANSFER);
    assert_eq!(waiting.log().trim(), b3(&image));
}

#[test]
fn under_soft_a_program_that_asks_for_a_content_id_gets_eio_in_the_end() {
    let lab = lab_or_skip!(Lab::builder());
    lab.put("image", 1000);
    let mut server = lab.server().start();
    let mount = lab.mount(1).option("attr_ttl=1h,soft,timeo=1").start();
    assert!(mount.join("image").exists());
    server.kill();
    assert_eq!(content_id(&mount.join("image")), Err(Errno::IO));
}

#[test]
fn the_content_id_is_that_of_the_version_that_the_name_or_descriptor_stands_for() {
    let lab = lab_or_skip!(Lab::builder());
    let old = lab.put("image", 1000);
    let _server = lab.server().start();
    // A verified read would have brought the content id, and so would a small file over HTTP.
    let mount = lab.mount(1).option("attr_ttl=1h,verify=tag,unicast=never").start();
    let path = mount.join("image");
    let file = File::open(&path).unwrap();
    assert_eq!(digest_of(&path), old.digest);
    let new = lab.put("image", 2000);
    let mut value = [0; 64];
    let of_old = rustix::fs::fgetxattr(&file, NAME, &mut value[..]);
    assert_eq!(of_old, Err(Errno::STALE));
    // The kernel looks the name up again.
    assert_eq!(content_id(&path), Ok(b3(&new)));
    // A content id that was stated earlier stays known.
    let file = File::open(&path).unwrap();
    lab.put("image", 3000);
    assert_eq!(rustix::fs::fgetxattr(&file, NAME, &mut value[..]), Ok(64));
    assert_eq!(value, b3(&new).as_bytes());
}

#[test]
fn programs_that_copy_attributes_copy_files_and_have_nothing_hashed() {
    let lab = lab_or_skip!(Lab::builder());
    let image = lab.put("dir/image", 100_000);
    let _server = lab.server().start();
    // Verified reads have the server hash what is read.
    let mount = lab.mount(1).option("verify=tag").start();
    let (host, from) = (lab.client(1), mount.join("dir"));
    let targets = ["cp", "tar"].map(|program| host.fresh_path(program));
    for target in &targets {
        fs::create_dir(target).unwrap();
    }
    let copied = host.run("cp", ["-a", "--preserve=xattr", text(&from), text(&targets[0])]);
    assert!(copied.status.success() && copied.stderr.is_empty(), "{copied:?}");
    let script = "tar -C \"$1\" --xattrs -cf - dir | tar -C \"$2\" --xattrs -xf -";
    let packed = host.run("sh", ["-c", script, "sh", text(mount.path()), text(&targets[1])]);
    assert!(packed.status.success() && packed.stderr.is_empty(), "{packed:?}");
    for target in &targets {
        assert_eq!(digest_of(target.join("dir/image")), image.digest);
        assert_eq!(content_id(&target.join("dir/image")), Err(Errno::NODATA));
    }
    assert_eq!(stated_to_members(&lab, "dir/image"), None);
    assert_eq!(content_id(&mount.join("dir/image")), Ok(b3(&image)));
    assert_eq!(stated_to_members(&lab, "dir/image"), Some(b3(&image)));
}
