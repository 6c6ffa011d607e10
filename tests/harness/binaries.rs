//! Finds the programs under test.

use std::path::PathBuf;

/// Returns the path of the program `name`, in the build profile of the running test or benchmark.
///
/// Cargo places test programs in `target/<profile>/deps` and the workspace's programs one level up.
/// The environment variable `BOOTCAST_BIN_DIR` names another directory.
pub fn binary(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(
        path.exists(),
        "{} does not exist: run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

/// Directory of the programs under test.
pub fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("BOOTCAST_BIN_DIR") {
        return directory.into();
    }
    let test = std::env::current_exe().expect("the path of the running test");
    let deps = test.parent().expect("a program lies in a directory");
    if deps.ends_with("deps") { deps.parent().unwrap_or(deps).into() } else { deps.into() }
}

/// Returns the path of a Python program of this package, such as `plain_client.py`.
pub fn peer(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}
