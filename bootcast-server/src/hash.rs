//! `bootcast-server hash`: prints hashes of files, and keeps their manifests for the server.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bootcast_proto::manifest::ContentId;

use crate::cli::HashArgs;
use crate::io::manifests;
use crate::io::stable_version::await_stable_version;
use crate::io::state_dir::StateDir;
use crate::source::{HashProgress, OpenFile};

/// Prints a line for each file that can be hashed, in the form of `b3sum`. A directory stands for
/// the regular files below it, in the order of their names; links in it are not followed. Calls
/// `report` for each file that cannot be hashed, and if a manifest cannot be kept. Returns whether
/// all files were hashed. Fails if standard output cannot be written.
pub async fn run(args: HashArgs, report: impl Fn(&anyhow::Error)) -> anyhow::Result<bool> {
    let state = open_state(args.directories.state_dir).await;
    let state = state.map(Arc::new).map_err(|error| report(&error)).ok();
    let mut is_complete = true;
    let mut pending: Vec<_> = args.paths.into_iter().rev().collect();
    while let Some(path) = pending.pop() {
        match visit(args.directories.dir.join(&path), state.clone()).await {
            Ok(Visited::File(hashed)) => {
                print(hashed.id, &path)?;
                if let Err(error) = hashed.kept {
                    let path = path.display();
                    report(&error.context(format!("{path}: cannot keep the hash for the server")));
                }
            }
            Ok(Visited::Directory(names)) => {
                pending.extend(names.into_iter().rev().map(|name| path.join(name)));
            }
            Err(error) => {
                is_complete = false;
                report(&error.context(path.display().to_string()));
            }
        }
    }
    Ok(is_complete)
}

/// What a path leads to.
enum Visited {
    File(Hashed),
    /// Names of the regular files and directories in a directory, in order.
    Directory(Vec<OsString>),
}

/// A file that was hashed.
struct Hashed {
    id: ContentId,
    /// Whether its manifest is in the state directory, if there is one.
    kept: anyhow::Result<()>,
}

async fn open_state(path: PathBuf) -> anyhow::Result<StateDir> {
    let error = format!(
        "cannot keep hashes for the server in {} (choose a directory with --state-dir)",
        path.display()
    );
    tokio::task::spawn_blocking(move || StateDir::open(&path)).await?.context(error)
}

/// Hashes a file, or lists a directory.
async fn visit(path: PathBuf, state: Option<Arc<StateDir>>) -> anyhow::Result<Visited> {
    let listed = path.clone();
    let names = tokio::task::spawn_blocking(move || names_in(&listed)).await?;
    match names.context("cannot list the directory")? {
        Some(names) => Ok(Visited::Directory(names)),
        None => hash(path, state).await.map(Visited::File),
    }
}

/// Returns the names of the regular files and directories in a directory, in order; `None` if the
/// path is no directory.
fn names_in(path: &Path) -> io::Result<Option<Vec<OsString>>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() || kind.is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// Loads or computes the manifest of a file, and keeps it.
async fn hash(path: PathBuf, state: Option<Arc<StateDir>>) -> anyhow::Result<Hashed> {
    let open = tokio::task::spawn_blocking(move || OpenFile::open_local(&path)).await??;
    // As the server does: the manifest must be that of a stable version.
    let open = await_stable_version(open).await?;
    tokio::task::spawn_blocking(move || {
        let state = state.as_deref();
        if let Some(kept) = state.and_then(|state| state.load(&open.version)) {
            return Ok(Hashed { id: kept.id(), kept: Ok(()) });
        }
        let computed = manifests::hash(&open, &HashProgress::new(open.version.size()))?;
        let kept = match state {
            Some(state) if computed.is_lasting => state.store(&open.version, &computed.manifest),
            Some(_) => Err(io::Error::other("it may change without a later change time")),
            None => Ok(()),
        };
        Ok(Hashed { id: computed.manifest.id(), kept: kept.map_err(Into::into) })
    })
    .await?
}

/// Prints a line that `b3sum --check` accepts.
fn print(id: ContentId, path: &Path) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", line(id, path)).and_then(|()| stdout.flush()).context("standard output")
}

/// Writes backslashes and line feeds of a name as `\\` and `\n`. A backslash before the hash says
/// so. Like `b3sum`, replaces what is not UTF-8.
fn line(id: ContentId, path: &Path) -> String {
    let name = path.to_string_lossy();
    if name.contains(['\\', '\n']) {
        let name = name.replace('\\', "\\\\").replace('\n', "\\n");
        return format!("\\{id}  {name}");
    }
    format!("{id}  {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_b3sum_escapes_them() {
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let line = |name: &str| line(hash.parse().unwrap(), Path::new(name));
        assert_eq!(line("a/b c"), format!("{hash}  a/b c"));
        assert_eq!(line("a\\b\nc"), format!("\\{hash}  a\\\\b\\nc"));
    }
}
