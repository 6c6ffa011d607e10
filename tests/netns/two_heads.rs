//! Two servers on one network that lend the same group. docs/PROTOCOL.md, "Two senders in one
//! group".

use harness::content::Image;
use harness::{Lab, SOON, ServerProc, lab_or_skip, mib, wait_until};

use crate::transfers::Get;
use crate::{TRANSFER, text};

/// Group of the first server's cast. It has no other.
const GROUP: &str = "239.255.7.3";

/// Groups of the second server, which lends them from a random one on.
const GROUPS: &str = "239.255.7.0/29";

/// Most starts of the second server. Three casts of it begin in three of six groups, so each start
/// is as likely to succeed as not.
const ATTEMPTS: u32 = 60;

/// Returns the group of the running cast of a file.
fn group_of(server: &ServerProc<'_>, image: &Image) -> Option<String> {
    let cast = server.cast_of(text(&image.name))?;
    Some(cast.group.split_once(':').expect("a group and a port").0.to_owned())
}

/// Starts a second server on client 2, and fetches files of it on client 3 until the cast of one
/// begins in [`GROUP`]. Returns the server, and what fetches this file.
fn collide<'lab>(lab: &'lab Lab, images: &[Image]) -> (ServerProc<'lab>, Get, usize) {
    for _ in 0..ATTEMPTS {
        let server = lab.server_on(2).option("--rate", "4mbit").option("--groups", GROUPS).start();
        for (nth, image) in images.iter().enumerate() {
            let get = Get::start_of(lab, 3, &server.url(text(&image.name)), &[]);
            let mut group = None;
            wait_until(SOON, "the cast begins", || {
                group = group_of(&server, image);
                // A cast that had to move left the group to the log.
                group.is_some() || server.log().contains("another sender")
            });
            let began = format!("group={GROUP}:");
            if server.log().contains(&began) {
                return (server, get, nth);
            }
        }
    }
    panic!("no cast began in the group at {ATTEMPTS} attempts");
}

#[test]
fn of_two_servers_in_one_group_the_one_with_the_higher_address_moves_its_cast() {
    let lab = lab_or_skip!(Lab::builder().clients(3));
    let image = lab.put("image", mib(16));
    let others: Vec<_> = (0..3).map(|nth| lab.put(&format!("other{nth}"), mib(2))).collect();
    let only = format!("{GROUP}/32");
    let first = lab.server().option("--rate", "4mbit").option("--groups", &only).start();
    let mut fetched = Get::start(&lab, 1, &image);
    first.wait_cast("image", "pages are sent", |cast| cast.pages_sent > 100);

    let (second, mut moved, nth) = collide(&lab, &others);
    wait_until(TRANSFER, "the cast is in another group", || {
        second.log().contains("another sender uses this group")
            && group_of(&second, &others[nth]).is_some_and(|group| group != GROUP)
    });
    moved.finish(&others[nth]);
    assert_eq!(group_of(&first, &image).as_deref(), Some(GROUP), "{}", first.log());
    fetched.finish(&image);
    assert_eq!(first.status().totals.casts, 1, "{}", first.log());
}
