//! A file that changes during each of its casts. Readers never get a mixture of versions, and the
//! server pauses between its casts. docs/PROTOCOL.md, "End of a cast".

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::content::{Image, try_digest_of};
use harness::{Lab, ServerProc, digest_of, lab_or_skip, mib, wait_for};

use crate::transfers::Get;
use crate::{SetOnDrop, TRANSFER};

const ESTALE: i32 = 116;

/// Text with which the server refuses joins between casts.
const REFUSAL: &str = "casts of this file keep ending";

/// Number of casts that end because the file changed. A pause follows the third, and one of twice
/// the length the fourth.
const CHANGES: u32 = 4;

/// Waits until pages of a version other than `before` are being sent. Returns that version.
fn wait_next_cast(server: &ServerProc<'_>, before: Option<&String>) -> String {
    wait_for(TRANSFER, "the next version is being sent", || {
        let cast = server.cast_of("image").filter(|cast| cast.pages_sent > 0)?;
        Some(cast.etag.to_string()).filter(|etag| Some(etag) != before)
    })
}

/// Replaces `image` by another file of `size` bytes, and adds it to `versions`.
fn replace(lab: &Lab, image: &Image, size: u64, versions: &Mutex<Vec<Image>>) -> Image {
    let new = lab.put("new-version", size);
    versions.lock().unwrap().push(new.clone());
    fs::rename(&new.path, &image.path).unwrap();
    Image { name: image.name.clone(), path: image.path.clone(), ..new }
}

#[test]
fn versions_of_a_file_that_changes_in_every_cast_never_mix_and_the_last_one_arrives() {
    let lab = lab_or_skip!(Lab::builder().clients(2));
    let image = lab.put("image", mib(4));
    // A cast takes 8 s, so the test sees each of them before it is over.
    let server = lab.server().option("--rate", "4mbit").start();
    let mount = lab.mount(1).option("attr_ttl=0").start();
    let versions = Mutex::new(vec![image.clone()]);
    let done = AtomicBool::new(false);
    let mut get = Get::start_with(&lab, 2, &image, &["-v"]);
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match try_digest_of(&mount.join("image")) {
                    Ok(digest) => {
                        let versions = versions.lock().unwrap();
                        assert!(versions.iter().any(|it| it.digest == digest), "a mixture");
                    }
                    Err(error) => assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}"),
                }
            }
        });
        let _done = SetOnDrop(&done);
        let mut etag = None;
        let mut last = image.clone();
        for change in 1..=CHANGES {
            etag = Some(wait_next_cast(&server, etag.as_ref()));
            let size = if change == CHANGES { 100_000 } else { mib(4) };
            last = replace(&lab, &image, size, &versions);
        }
        get.finish(&last);
        last
    });
    assert_eq!(digest_of(mount.join("image")), last.digest);

    // The file changes no more, so one cast is enough for a further get.
    server.wait_no_members();
    let casts = server.status().totals.casts;
    Get::start(&lab, 2, &last).finish(&last);
    assert!(server.status().totals.casts <= casts + 1);
    // One cast for each version that was sent, and up to two for the last, which two clients want.
    assert!(casts <= u64::from(CHANGES) + 2, "{}", server.log());
    // Whether a join is refused depends on when it comes. If one is, server and client say so, once
    // a minute.
    let is_refused = [mount.log(), get.proc.log()].iter().any(|log| log.contains(REFUSAL));
    let warnings = server.log().matches(REFUSAL).count();
    assert!(warnings >= usize::from(is_refused), "{}", server.log());
    let minutes = usize::try_from(server.status().uptime_s / 60).unwrap();
    assert!(warnings <= 1 + minutes, "{}", server.log());
    for log in [server.log(), mount.log()] {
        assert!(log.lines().count() < 70, "{log}");
    }
}
