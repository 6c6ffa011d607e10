//! Checks the source tree: dependencies between crates, their licences, and paths in files.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates that `proto` may use: encoders, derive macros, a hash, and detection of CPU features.
/// None of them opens a socket or reads a clock. `cpufeatures` names `libc` only for CPUs that
/// `proto` does not use it on.
const PROTO_MAY_USE: [&str; 16] = [
    "arrayvec",
    "blake3",
    "cfg-if",
    "constant_time_eq",
    "cpufeatures",
    "libc",
    "percent-encoding",
    "proc-macro2",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "syn",
    "thiserror",
    "thiserror-impl",
    "unicode-ident",
];

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn name_of<'a>(metadata: &'a Value, id: &str) -> &'a str {
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["id"] == id).unwrap();
    package["name"].as_str().unwrap()
}

/// Returns the names of all crates that `package` depends on, directly or not. Dependencies of
/// tests and build scripts do not count.
fn dependencies_of(metadata: &Value, package: &str) -> BTreeSet<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut names = BTreeSet::new();
    let mut pending = vec![package.to_owned()];
    while let Some(name) = pending.pop() {
        let node =
            nodes.iter().find(|node| name_of(metadata, node["id"].as_str().unwrap()) == name);
        for dependency in node.unwrap()["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            let dependency = name_of(metadata, dependency["pkg"].as_str().unwrap());
            let is_normal = kinds.iter().any(|kind| kind["kind"].is_null());
            if is_normal && names.insert(dependency.to_owned()) {
                pending.push(dependency.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = fs::read_to_string(workspace_root().join("deny.toml")).unwrap();
    let deny: toml::Table = deny.parse().unwrap();
    let allowed: Vec<spdx::Licensee> = deny["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|licence| spdx::Licensee::parse(licence.as_str().unwrap()).unwrap())
        .collect();
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let name = &package["name"];
        let licence = package["license"].as_str().unwrap_or_default();
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
        let expression = expression.unwrap_or_else(|error| panic!("{name}: {licence:?}: {error}"));
        let is_allowed =
            |wanted: &spdx::LicenseReq| allowed.iter().any(|one| one.satisfies(wanted));
        assert!(expression.evaluate(is_allowed), "{name} is under {licence}");
    }
}

#[test]
fn proto_depends_on_nothing_that_does_io() {
    let used = dependencies_of(&metadata(), "bootcast-proto");
    let forbidden: Vec<_> =
        used.iter().filter(|name| !PROTO_MAY_USE.contains(&name.as_str())).collect();
    assert!(forbidden.is_empty(), "proto must not depend on {forbidden:?}");
}

#[test]
fn proto_uses_no_std_outside_tests() {
    let root = fs::read_to_string(workspace_root().join("proto/src/lib.rs")).unwrap();
    assert!(root.lines().any(|line| line == "#![no_std]"));
    let lines: Vec<&str> = root.lines().collect();
    for (line, before) in lines.iter().skip(1).zip(&lines) {
        assert!(*line != "extern crate std;" || *before == "#[cfg(test)]", "std outside tests");
    }
}

/// Returns all packages with their features, for builds that follow these kinds of dependencies.
fn packages_with_features(edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--no-dedupe", "--prefix=none", "--edges", edges])
        .args(["--format", "{p} {f}"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Otherwise `cargo test` would build those packages, and all that depend on them, a second time.
#[test]
fn programs_and_tests_are_built_from_the_same_packages_with_the_same_features() {
    let programs = packages_with_features("normal,build");
    let with_tests = packages_with_features("normal,build,dev");
    let rebuilt: Vec<_> = programs.difference(&with_tests).collect();
    assert!(rebuilt.is_empty(), "built again for the tests, with other features: {rebuilt:?}");
}

#[test]
fn server_and_client_do_not_depend_on_each_other() {
    let metadata = metadata();
    assert!(!dependencies_of(&metadata, "bootcast-server").contains("bootcast-fs"));
    assert!(!dependencies_of(&metadata, "bootcast-fs").contains("bootcast-server"));
}

#[test]
fn testing_md_names_every_part_of_the_benchmark() {
    let read = |path: &str| fs::read_to_string(workspace_root().join(path)).unwrap();
    let (code, page) = (read("tests/bench/main.rs"), read("docs/TESTING.md"));
    let parts = code.split("const PARTS").nth(1).unwrap().split("];").next().unwrap();
    let names: Vec<_> = parts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next())
        .collect();
    assert!(!names.is_empty());
    for name in names {
        assert!(page.contains(&format!("| `{name}` | ")), "{name} is not in TESTING.md");
    }
}

#[test]
fn no_file_contains_a_path_of_this_machine() {
    let root = workspace_root();
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(&root).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else {
        return harness::requirements::report_skipped("not a git checkout");
    };
    let home = std::env::var("HOME").unwrap_or_default();
    let forbidden: Vec<String> = [home.as_str(), root.to_str().unwrap()]
        .into_iter()
        .filter(|path| path.len() > 1)
        .map(|path| format!("{path}/"))
        .collect();
    for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        // A file that is deleted but still in the index reads as empty.
        let text = fs::read(root.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for path in &forbidden {
            assert!(!begins_in(&text, path), "{name} contains {path}");
        }
    }
}

/// Whether `text` has a path that begins with `path`, and not only a path that has it inside.
fn begins_in(text: &str, path: &str) -> bool {
    let goes_on = |char: char| char.is_alphanumeric() || "._-/}".contains(char);
    text.match_indices(path).any(|(at, _)| !text[..at].ends_with(goes_on))
}
