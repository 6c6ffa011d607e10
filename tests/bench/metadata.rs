//! How long do names and attributes take?

use std::fs::{self, File};

use harness::{Lab, MountProc};

use crate::{RUNS, median, timed};

/// Directories of the tree, and files in each.
const DIRECTORIES: usize = 100;
const FILES: usize = 100;

/// Names in a large directory.
const MANY: usize = 100_000;

/// Names that are looked up one after another.
const LOOKUPS: u16 = 1000;

/// Measures `ls -lR` of 10,000 files, and `stat` of single names among 100,000.
pub(crate) fn measure() -> String {
    let lab = Lab::builder().memory_disk().build();
    for directory in 0..DIRECTORIES {
        let directory = lab.served().join(format!("tree/{directory}"));
        fs::create_dir_all(&directory).unwrap();
        (0..FILES).for_each(|name| drop(File::create(directory.join(name.to_string())).unwrap()));
    }
    fs::create_dir(lab.served().join("many")).unwrap();
    (0..MANY).for_each(|name| {
        drop(File::create(lab.served().join(format!("many/{name}"))).unwrap());
    });
    let _server = lab.server().start();
    let mut figures: [Vec<f64>; 3] = Default::default();
    for _ in 0..RUNS {
        let mount = lab.mount(1).option("attr_ttl=1h").start();
        figures[0].push(list_seconds(&mount));
        figures[1].push(list_seconds(&mount));
        let lookups = timed(|| {
            for name in (0..MANY).step_by(MANY / usize::from(LOOKUPS)) {
                fs::metadata(mount.join(format!("many/{name}"))).unwrap();
            }
        });
        figures[2].push(lookups.as_secs_f64() * 1000.0 / f64::from(LOOKUPS));
        mount.umount();
    }
    let [cold, warm, lookup] = figures.map(median);
    format!(
        "\n## Names and attributes\n\n\
         | case | time | goal |\n|---|---|---|\n\
         | `ls -lR` of 10,000 files in 100 directories, cold | {cold:.2} s | 1 s |\n\
         | the same again within `attr_ttl=`, no request at the server | {warm:.2} s | |\n\
         | `stat` of one name among 100,000 | {lookup:.2} ms | no listing |\n"
    )
}

fn list_seconds(mount: &MountProc<'_>) -> f64 {
    let tree = mount.join("tree");
    timed(|| drop(mount.host().run_ok("ls", ["-lR", tree.to_str().unwrap()]))).as_secs_f64()
}
