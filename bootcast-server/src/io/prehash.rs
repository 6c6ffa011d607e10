//! `--prehash`: computes the manifests of the served files before anybody asks for them.
//!
//! One thread walks the tree and hashes one file at a time. It runs at idle priority, so it may
//! lose the CPU at any moment, for long. Therefore it takes no lock that requests need: a second
//! thread at normal priority, the *clerk*, looks into the memory of [`Manifests`] for it.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, SystemTime};

use bootcast_proto::RemotePath;
use bootcast_proto::api::Kind;
use bootcast_proto::path::decode_segment;
use rustix::fs::Advice;

use super::manifests::{self, Manifests};
use super::sys;
use super::threads::ThreadWatch;
use crate::source::{Source, Version, VersionKey};

/// Pause between two walks of the tree, which find files that are new or changed.
const PAUSE: Duration = Duration::from_secs(60);

/// The threads that hash ahead. They stop soon after this is dropped; nobody waits for them,
/// because a disk may hang.
#[derive(Debug)]
pub struct Prehash {
    /// Stops the threads when dropped.
    _running: Sender<()>,
}

/// Starts to hash the files of `source`.
pub fn start(
    source: Arc<Source>,
    manifests: Manifests,
    watch: &ThreadWatch,
) -> io::Result<Prehash> {
    let (running, stopped) = channel();
    let clerk = Clerk::start(manifests.clone(), watch)?;
    let walker = Walker { source, manifests, clerk, stopped, hashed: HashSet::new() };
    watch.spawn("prehash", move || {
        if let Err(error) = sys::become_idle() {
            tracing::warn!(%error, "--prehash: hashing at normal priority");
        }
        walker.run();
    })?;
    Ok(Prehash { _running: running })
}

/// Hashes all files, again and again.
struct Walker {
    source: Arc<Source>,
    manifests: Manifests,
    clerk: Clerk,
    /// Disconnected when the server stops.
    stopped: Receiver<()>,
    /// Versions that the last walk met, and that need no hashing.
    hashed: HashSet<VersionKey>,
}

/// The server stops.
#[derive(Debug)]
struct Stopped;

/// What a walk did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walk {
    /// Versions that need no hashing in the next walk.
    hashed: HashSet<VersionKey>,
    /// Number of files that it hashed.
    files: u64,
    /// Bytes of these files.
    bytes: u64,
    /// Number of files that were hashed before, by this process or another one.
    known: u64,
    /// Number of files that cannot be read.
    failed: u64,
}

impl Walker {
    fn run(mut self) {
        tracing::info!("--prehash: hashing the served files ahead");
        let mut is_first = true;
        while let Ok(walk) = self.walk() {
            let Walk { hashed, files, bytes, known, failed } = walk;
            if is_first || files > 0 {
                tracing::info!(files, bytes, known, failed, "--prehash: all files are hashed");
            }
            is_first = false;
            self.hashed = hashed;
            match self.stopped.recv_timeout(PAUSE) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Hashes the files of the tree that need it, in the order of their names. Does not follow
    /// symbolic links: what they lead to is in the tree, or not served.
    fn walk(&self) -> Result<Walk, Stopped> {
        let mut walk = Walk::default();
        let mut directories = vec![RemotePath::root()];
        while let Some(directory) = directories.pop() {
            // It may be gone, or not for the server to read.
            let entries = self
                .source
                .list(&directory, &|_, version| version)
                .ok()
                .and_then(|meta| meta.entries);
            let mut below = Vec::new();
            for entry in entries.unwrap_or_default() {
                self.check_stopped()?;
                let name = decode_segment(&entry.name).unwrap_or_default();
                // A name that is invalid in a path cannot be served.
                let Ok(path) = directory.join(&name) else { continue };
                match entry.attributes.kind {
                    Kind::Directory => below.push(path),
                    Kind::File => self.visit(&path, &mut walk)?,
                    Kind::Symlink | Kind::Other => {}
                }
            }
            directories.extend(below.into_iter().rev());
        }
        Ok(walk)
    }

    /// Hashes a file if it needs it.
    fn visit(&self, path: &RemotePath, walk: &mut Walk) -> Result<(), Stopped> {
        let Ok(version) = self.source.version(path) else { return Ok(()) };
        if self.hashed.contains(&version.key()) {
            walk.hashed.insert(version.key());
        } else if self.manifests.is_kept(&version) || self.clerk.is_known(version)? {
            walk.hashed.insert(version.key());
            walk.known += 1;
        } else {
            // A hash of a version that is not stable could not be kept.
            if let Some(wait) = version.unstable_for(SystemTime::now()) {
                std::thread::sleep(wait);
            }
            self.hash(path, walk)?;
        }
        Ok(())
    }

    fn hash(&self, path: &RemotePath, walk: &mut Walk) -> Result<(), Stopped> {
        let Ok(open) = self.source.open(path) else {
            walk.failed += 1;
            return Ok(());
        };
        let version = open.version;
        // Pages of running casts should stay in memory. Kernels before 6.3 ignore this.
        let _ = rustix::fs::fadvise(&open.file, 0, None, Advice::NoReuse);
        let is_unchanged = || Version::of_file(&open.file).is_ok_and(|present| present == version);
        let go_on = |_| self.check_stopped().is_ok() && is_unchanged();
        match manifests::hash_while(&open, go_on) {
            Ok(Some(computed)) => {
                walk.files += 1;
                walk.bytes += version.size();
                walk.hashed.insert(version.key());
                let is_kept = self.manifests.keep_on_disk(path, &version, &computed);
                self.clerk.remember(version, computed, is_kept)
            }
            // The next walk hashes the version of that time.
            Ok(None) => self.check_stopped(),
            Err(error) => {
                tracing::debug!(%path, %error, "cannot hash a file ahead");
                walk.failed += 1;
                walk.hashed.insert(version.key());
                Ok(())
            }
        }
    }

    fn check_stopped(&self) -> Result<(), Stopped> {
        match self.stopped.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Ok(()) | Err(TryRecvError::Disconnected) => Err(Stopped),
        }
    }
}

/// The thread that uses the memory of [`Manifests`] for the idle one.
struct Clerk {
    jobs: Sender<Job>,
}

type Job = Box<dyn FnOnce(&Manifests) + Send>;

impl Clerk {
    fn start(manifests: Manifests, watch: &ThreadWatch) -> io::Result<Self> {
        let (jobs, received) = channel::<Job>();
        let work = move || received.iter().for_each(|job| job(&manifests));
        watch.spawn("prehash-clerk", work)?;
        Ok(Self { jobs })
    }

    /// Whether a version was hashed, or is being hashed for a request.
    fn is_known(&self, version: Version) -> Result<bool, Stopped> {
        self.run(move |manifests| manifests.is_known(&version))
    }

    fn remember(
        &self,
        version: Version,
        computed: manifests::Computed,
        is_kept: bool,
    ) -> Result<(), Stopped> {
        let manifest = computed.manifest;
        self.run(move |manifests| manifests.remember_ahead(&version, manifest, is_kept))
    }

    /// Runs `work` on the clerk's thread, and waits for it. Fails only if that thread panicked.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Manifests) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = channel();
        let job = move |manifests: &Manifests| {
            // The walker waits for it.
            let _ = reply.send(work(manifests));
        };
        self.jobs.send(Box::new(job)).map_err(|_| Stopped)?;
        answer.recv().map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use tempfile::TempDir;

    use super::super::state_dir::StateDir;
    use super::*;

    /// Creates the walker of a directory, and what stops it when dropped.
    fn walker(served: &Path, state: Option<&Path>) -> (Walker, Sender<()>) {
        let manifests = Manifests::new(state.map(|path| StateDir::open(path).unwrap()));
        let source = Arc::new(Source::new(served).unwrap());
        let clerk = Clerk::start(manifests.clone(), &ThreadWatch::new().0).unwrap();
        let (running, stopped) = channel();
        (Walker { source, manifests, clerk, stopped, hashed: HashSet::new() }, running)
    }

    fn counts(walk: &Walk) -> (u64, u64, u64, u64) {
        (walk.files, walk.bytes, walk.known, walk.failed)
    }

    /// Writes a file with these permissions, and waits until its version is stable.
    fn write_with(mode: u32, path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        let file = fs::File::open(path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        while let Some(wait) = Version::of_file(&file).unwrap().unstable_for(SystemTime::now()) {
            std::thread::sleep(wait);
        }
    }

    fn write(path: &Path, bytes: &[u8]) {
        write_with(0o644, path, bytes);
    }

    fn walk(walker: &mut Walker) -> (u64, u64, u64, u64) {
        let walk = walker.walk().unwrap();
        let counts = counts(&walk);
        walker.hashed = walk.hashed;
        counts
    }

    async fn content_id(walker: &Walker, name: &str) -> Option<String> {
        let version = walker.source.version(&RemotePath::decode(name).unwrap()).unwrap();
        Some(walker.manifests.content_id(version).await?.to_string())
    }

    fn b3(bytes: &[u8]) -> String {
        blake3::hash(bytes).to_hex().to_string()
    }

    #[tokio::test]
    async fn each_version_in_the_tree_is_hashed_once_and_nothing_outside_of_it() {
        let (served, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::create_dir_all(served.path().join("a/b")).unwrap();
        write(&outside.path().join("secret"), b"secret");
        symlink(outside.path(), served.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), served.path().join("link")).unwrap();
        write(&served.path().join("a/b/file"), b"abc");
        write(&served.path().join("z"), b"12");
        for state in [None, Some(TempDir::new().unwrap())] {
            let (mut walker, _running) = walker(served.path(), state.as_ref().map(TempDir::path));
            assert_eq!(walk(&mut walker), (2, 5, 0, 0));
            assert_eq!(walk(&mut walker), (0, 0, 0, 0));
            write(&served.path().join("z"), b"123");
            assert_eq!(walk(&mut walker), (1, 3, 0, 0));
            assert!(walker.clerk.is_known(version(&walker, "z")).unwrap());
            assert_eq!(content_id(&walker, "a/b/file").await, Some(b3(b"abc")));
            assert_eq!(content_id(&walker, "z").await, Some(b3(b"123")));
            write(&served.path().join("z"), b"12");
        }
    }

    fn version(walker: &Walker, name: &str) -> Version {
        walker.source.version(&RemotePath::decode(name).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn what_the_state_directory_has_is_not_hashed_again() {
        let (served, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(&served.path().join("file"), b"abc");
        let (mut first, _running) = walker(served.path(), Some(state.path()));
        assert_eq!(walk(&mut first), (1, 3, 0, 0));
        let (mut second, _running) = walker(served.path(), Some(state.path()));
        assert_eq!(walk(&mut second), (0, 0, 1, 0));
        assert_eq!(content_id(&second, "file").await, Some(b3(b"abc")));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_counted_and_the_others_are_hashed() {
        let served = TempDir::new().unwrap();
        write_with(0, &served.path().join("a"), b"abc");
        write(&served.path().join("b"), b"abc");
        // Root can read it all the same.
        let is_readable = fs::read(served.path().join("a")).is_ok();
        let (mut walker, _running) = walker(served.path(), None);
        let expected = if is_readable { (2, 6, 0, 0) } else { (1, 3, 0, 1) };
        assert_eq!(walk(&mut walker), expected);
    }

    #[test]
    fn a_walk_ends_when_the_server_stops() {
        let served = TempDir::new().unwrap();
        // It would take minutes to hash.
        fs::File::create(served.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
        let (walker, running) = walker(served.path(), None);
        let walking = std::thread::spawn(move || walker.run());
        drop(running);
        walking.join().unwrap();
    }
}
