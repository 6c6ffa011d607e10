//! How much memory does a client need for a large file?

use harness::{Lab, mib};

use crate::{read_all, wait_all};

const SIZE: u64 = mib(4096);

/// Measures the peak resident memory of `bootcastfs` while a file of 4 GiB arrives, in one run.
pub(crate) fn measure() -> String {
    let lab = Lab::builder().build();
    lab.put("image", SIZE);
    let _server = lab.server().option("--rate", "3gbit").start();
    let mut mount = lab.mount(1).start();
    wait_all(vec![read_all(lab.client(1), &mount.join("image"))]);
    let peak_mib = mount.proc().peak_rss_bytes() >> 20;
    format!(
        "\n## Memory of a client\n\n\
         Peak resident memory of `bootcastfs` (disk cache) for a file of 4 GiB: {peak_mib} MiB. \
         Goal: under 100 MiB.\n"
    )
}
