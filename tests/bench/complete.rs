//! Are reads of a complete file through the mount as fast as reads of its cache file?

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use harness::{Lab, digest_of, mib};

use crate::{RUNS, median, timed};

const SIZE: u64 = mib(1024);

/// Number of reads of each kind. More than the usual [`RUNS`], because each read takes only a
/// fraction of a second.
const TURNS: usize = 3 * RUNS;

/// Reads the same bytes in the same way, by turns through the mount and from the cache file.
pub(crate) fn measure() -> String {
    let lab = Lab::builder().build();
    let image = lab.put("image", SIZE);
    let _server = lab.server().option("--rate", "3gbit").start();
    let mount = lab.mount(1).start();
    let mounted = mount.join("image");
    assert_eq!(digest_of(&mounted), image.digest);
    let cached = largest_file_below(mount.cache()).expect("the disk cache holds the file");

    let (mut through_mount, mut from_cache) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        through_mount.push(gigabytes_per_second(&mounted));
        from_cache.push(gigabytes_per_second(&cached));
    }
    let (mount, cache) = (median(through_mount), median(from_cache));
    format!(
        "\n## A complete file\n\n\
         1 GiB in reads of 1 MiB, from the page cache, by turns.\n\n\
         | through the mount, GB/s | the cache file itself, GB/s | ratio |\n|---|---|---|\n\
         | {mount:.2} | {cache:.2} | {:.3} |\n\nGoal: 0.95.\n",
        mount / cache
    )
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn gigabytes_per_second(path: &Path) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    let time = timed(|| {
        let mut file = File::open(path).unwrap();
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                len => total += len as u64,
            }
        }
    });
    assert_eq!(total, SIZE);
    SIZE as f64 / 1e9 / time.as_secs_f64()
}

fn largest_file_below(directory: &Path) -> Option<PathBuf> {
    let mut largest = None;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in directory.read_dir().unwrap() {
            let entry = entry.unwrap();
            let attributes = entry.metadata().unwrap();
            if attributes.is_dir() {
                pending.push(entry.path());
            } else {
                largest = largest.max(Some((attributes.len(), entry.path())));
            }
        }
    }
    largest.map(|(_, path)| path)
}
