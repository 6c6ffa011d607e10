//! Requests that names and attributes cost at the server.

use std::fs;
use std::path::Path;

use harness::capture::Capture;
use harness::{Lab, MountProc, SOON, lab_or_skip, wait_until};

use crate::text;

/// Requests for names that a client has sent.
struct Requests<'lab> {
    capture: Capture,
    mount: MountProc<'lab>,
    marks: u32,
    counted: usize,
}

impl<'lab> Requests<'lab> {
    fn of(lab: &'lab Lab, ttl: &str) -> Self {
        let mount = lab.mount(1).option(&format!("attr_ttl={ttl}")).start();
        let capture = Capture::start(lab.client(1), "tcp dst port 8888");
        Self { capture, mount, marks: 0, counted: 0 }
    }

    /// Runs `job`, and returns the paths that were asked for because of it.
    fn during(&mut self, job: impl FnOnce(&MountProc<'lab>)) -> Vec<String> {
        job(&self.mount);
        // A name that does not exist is asked for after everything else.
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        assert!(!self.mount.join(&mark).exists());
        self.capture.wait_text(&mark);
        let log = self.capture.log();
        let asked = log.lines().filter_map(|line| line.split_once("GET /meta/"));
        let asked = asked.filter_map(|(_, rest)| rest.split(' ').next());
        let fresh: Vec<_> = asked.skip(self.counted).map(str::to_owned).collect();
        self.counted += fresh.len();
        fresh.into_iter().filter(|path| !path.starts_with("mark-")).collect()
    }
}

/// Lists a tree with all attributes.
fn list_all(mount: &MountProc<'_>) -> usize {
    let output = mount.host().run_ok("ls", ["-lR", text(mount.path())]);
    output.lines().filter(|line| line.starts_with('-')).count()
}

fn create_files(directory: &Path, count: usize) {
    fs::create_dir_all(directory).unwrap();
    for name in 0..count {
        fs::write(directory.join(name.to_string()), b"x").unwrap();
    }
}

#[test]
fn listing_a_tree_costs_one_request_for_each_directory_and_none_the_next_time() {
    let lab = lab_or_skip!(Lab::builder());
    for directory in 0..10 {
        create_files(&lab.served().join(directory.to_string()), 200);
    }
    let _server = lab.server().start();
    let mut requests = Requests::of(&lab, "1h");
    let mut cold = requests.during(|mount| assert_eq!(list_all(mount), 2000));
    cold.sort();
    // The mounted directory, and the ten in it.
    let expected = ["", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    assert_eq!(cold, expected);
    let warm = requests.during(|mount| assert_eq!(list_all(mount), 2000));
    assert!(warm.is_empty(), "{warm:?}");
}

#[test]
fn a_name_or_its_absence_costs_one_request_that_lists_nothing() {
    let lab = lab_or_skip!(Lab::builder());
    create_files(&lab.served().join("many"), 1000);
    let _server = lab.server().start();
    let mut requests = Requests::of(&lab, "1h");
    let look = |mount: &MountProc<'_>, name: &str| mount.join("many").join(name).exists();
    let first = requests.during(|mount| assert!(look(mount, "7") && !look(mount, "none")));
    let expected = ["many?entries=0", "many/7?entries=0", "many/none?entries=0"];
    assert_eq!(first, expected);
    let again = requests.during(|mount| {
        assert!(look(mount, "7") && !look(mount, "none"));
        assert!(fs::metadata(mount.join("many")).unwrap().is_dir());
    });
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn a_listing_that_is_too_old_is_asked_for_again_and_shows_what_changed() {
    let lab = lab_or_skip!(Lab::builder());
    create_files(&lab.served().join("some"), 10);
    let _server = lab.server().start();
    let mut requests = Requests::of(&lab, "0s");
    for count in [10, 11] {
        create_files(&lab.served().join("some"), count);
        let asked = requests.during(|mount| {
            // The server may have the former listing for a moment.
            wait_until(SOON, "the new name is listed", || {
                fs::read_dir(mount.join("some")).unwrap().count() == count
            });
        });
        assert!(asked.iter().any(|path| path == "some"), "{asked:?}");
    }
}
