//! What is fuzzed: functions that take arbitrary bytes and must not panic.
//!
//! Used by the smoke test beside this directory, and by the fuzzer in `libfuzzer/`.

mod datagrams;
mod input;
mod receiver;
mod scheduler;
mod text;

/// A fuzzed function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Name, which is that of its directory in `corpus/`.
    pub(crate) name: &'static str,
    /// Runs it once.
    pub(crate) run: fn(&[u8]),
}

/// All targets.
pub(crate) const TARGETS: [Target; 22] = [
    // Datagrams, and the machines that take them.
    target("page", datagrams::page),
    target("repair", datagrams::repair),
    target("leaf_list", datagrams::leaf_list),
    target("fec", datagrams::fec),
    target("receiver", receiver::run),
    // What the server answers.
    target("join_answer", text::join_answer),
    target("meta", text::meta),
    target("listing", bootcast_fs::fuzz::listing),
    target("headers", text::headers),
    target("zero_map", text::zero_map),
    target("profile", text::profile),
    target("bundle_index", bootcast_fs::fuzz::bundle_index),
    // What clients ask.
    target("scheduler", scheduler::run),
    target("http_target", bootcast_server::fuzz::http_target),
    target("http_range", bootcast_server::fuzz::http_range),
    // What lies on disks.
    target("cache_state", bootcast_fs::fuzz::cache_state),
    target("cache_names", bootcast_fs::fuzz::cache_names),
    target("journal", bootcast_fs::fuzz::journal),
    target("holder", bootcast_fs::fuzz::holder),
    target("state_dir", bootcast_server::fuzz::state_dir),
    // What people type.
    target("mount_options", bootcast_fs::fuzz::mount_options),
    target("arguments", text::arguments),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}
