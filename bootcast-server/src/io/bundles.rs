//! Bundles: runs of small files of a directory, copied into memory and cast as one file.
//! docs/PROTOCOL.md, "Bundles".

mod gathering;
mod making;

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;
use bootcast_proto::bundle::{BUNDLE_PREFIX, BundleInfo};
use bootcast_proto::path::encode_name;
use lru::LruCache;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};

use super::blocking_pool::{BlockingPool, PoolError};
use super::identity::Identity;
use super::listings::ListingError;
use crate::source::{OpenFile, SourceError, Version};
use gathering::Gathering;
use making::{Run, divide, make};

/// Maximum number of bytes of all bundles together. Beyond that, those that were not used for
/// longest go.
const MAX_BYTES: u64 = 64 << 20;

/// Time after its last use for which a bundle is kept. A cast uses its bundle once a second.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Minimum time for which a plan is kept.
const PLAN_TIME: Duration = Duration::from_secs(2);

/// A plan is also kept for this many times as long as listing its directory took.
const PLAN_TIME_FACTOR: u32 = 10;

/// Maximum number of directories whose plans are kept.
const MAX_PLANS: NonZeroUsize = NonZeroUsize::new(256).expect("not 0");

/// Maximum memory in bytes that the names of all plans take. A directory with more names has no
/// bundles of the last ones.
const MAX_NAME_BYTES: usize = 32 << 20;

/// Period in which bundles and plans are dropped that are not used any more.
const TIDY_PERIOD: Duration = Duration::from_secs(10);

/// Maximum number of directories that are listed or copied at a time. Each needs memory for all its
/// entries, or for a bundle.
const THREADS: usize = 8;

/// Bundles in memory, which others open by their paths.
#[derive(Clone, Debug, Default)]
pub struct BundleFiles(Arc<Mutex<HashMap<RemotePath, BundleFile>>>);

#[derive(Debug)]
struct BundleFile {
    file: Arc<File>,
    version: Version,
    used: Instant,
}

impl BundleFiles {
    /// Opens the bundle of this path; `None` if there is none.
    pub fn open(&self, path: &RemotePath) -> Option<Result<OpenFile, SourceError>> {
        let file = self.find(path, |bundle| Arc::clone(&bundle.file))?;
        let open = || Ok(OpenFile::sealed(file.try_clone()?)?);
        Some(open())
    }

    /// Returns the version of the bundle of this path; `None` if there is none.
    pub fn version(&self, path: &RemotePath) -> Option<Version> {
        self.find(path, |bundle| bundle.version)
    }

    /// Returns something of a bundle, which counts as used.
    fn find<T>(&self, path: &RemotePath, get: impl FnOnce(&BundleFile) -> T) -> Option<T> {
        if !path.file_name()?.starts_with(BUNDLE_PREFIX.as_bytes()) {
            return None;
        }
        let mut bundles = self.lock();
        let bundle = bundles.get_mut(path)?;
        bundle.used = Instant::now();
        Some(get(bundle))
    }

    /// Adds a bundle, unless there is one of this path, which has the same bytes. Returns the
    /// version of the bundle. Removes others that were not used for longest if there is no room.
    fn add(&self, path: &RemotePath, file: File, version: Version) -> Version {
        let mut bundles = self.lock();
        let new = BundleFile { file: Arc::new(file), version, used: Instant::now() };
        let version = bundles.entry(path.clone()).or_insert(new).version;
        while bundles.values().map(|bundle| bundle.version.size()).sum::<u64>() > MAX_BYTES {
            let others = bundles.iter().filter(|(other, _)| *other != path);
            let oldest = others.min_by_key(|(_, bundle)| bundle.used).map(|(path, _)| path.clone());
            let Some(oldest) = oldest else { break };
            bundles.remove(&oldest);
        }
        version
    }

    /// Removes the bundles that were not used for long.
    fn tidy(&self, now: Instant) {
        self.lock().retain(|_, bundle| now < bundle.used + KEPT_FOR);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RemotePath, BundleFile>> {
        // A panic cannot leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes bundles on request.
#[derive(Clone, Debug)]
pub struct Bundles {
    identity: Identity,
    /// Threads that list directories and copy files.
    pool: BlockingPool,
    /// Places for the plans of the directories that were asked for last.
    plans: Arc<Mutex<LruCache<RemotePath, Slot>>>,
    /// Permits for the memory that the names of all plans take, in bytes.
    names: Arc<Semaphore>,
}

/// Place for the plan of a directory. It is locked while the directory is listed, or one of its
/// bundles is made, so that this happens once for all who ask at the same time.
type Slot = Arc<tokio::sync::Mutex<Option<Plan>>>;

/// Division of a directory into bundles.
#[derive(Debug)]
struct Plan {
    /// When the directory must be listed again, unless requests for a bundle are being gathered.
    until: Instant,
    /// In the order of the listing.
    runs: Vec<Run>,
    /// Memory that the names take.
    _names: OwnedSemaphorePermit,
}

impl Plan {
    /// Whether a request for the bundle that has the file of this encoded name is answered from the
    /// plan. Requests that are gathered get the same answer, however long that takes.
    fn is_good_for(&self, name: &str, now: Instant) -> bool {
        let mut made =
            self.runs.iter().filter(|run| run.has(name)).filter_map(|run| run.made.as_ref());
        now < self.until || made.any(|(_, gathering)| gathering.is_waiting(now))
    }
}

impl Bundles {
    /// Makes bundles of the files that `identity` announces.
    ///
    /// # Panics
    ///
    /// If it is called outside of a runtime.
    pub fn new(identity: Identity) -> Self {
        let this = Self {
            identity,
            pool: BlockingPool::new(THREADS),
            plans: Arc::new(Mutex::new(LruCache::new(MAX_PLANS))),
            names: Arc::new(Semaphore::new(MAX_NAME_BYTES)),
        };
        tokio::spawn(this.clone().run());
        this
    }

    /// Returns the bundle that has the file of this path; `None` if there is none. Makes it if
    /// necessary. `gathers`: several hosts want files of the directory, so that a new bundle is
    /// named to all of them at the same moment.
    ///
    /// What a request began is finished even if nobody waits for it any more.
    pub async fn get(
        &self,
        path: &RemotePath,
        gathers: bool,
    ) -> Result<Option<BundleInfo>, ListingError> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let slot = self.slot(&directory).lock_owned().await;
        let finding = self.clone().find(slot, directory, encode_name(name), gathers);
        let found = tokio::spawn(finding).await.map_err(|_| PoolError::Stopped)??;
        let Some((info, answers_at)) = found else { return Ok(None) };
        gathering::wait(answers_at).await;
        Ok(Some(info))
    }

    fn slot(&self, directory: &RemotePath) -> Slot {
        Arc::clone(self.plans().get_or_insert(directory.clone(), Slot::default))
    }

    /// Returns the bundle that has the file of this encoded name, and the time of the answer. Lists
    /// the directory and makes the bundle if necessary.
    async fn find(
        self,
        mut slot: OwnedMutexGuard<Option<Plan>>,
        directory: RemotePath,
        name: String,
        gathers: bool,
    ) -> Result<Option<(BundleInfo, watch::Receiver<Instant>)>, ListingError> {
        let plan = match slot.take().filter(|plan| plan.is_good_for(&name, Instant::now())) {
            Some(plan) => plan,
            None => self.plan(&directory).await?,
        };
        let Plan { runs, .. } = slot.insert(plan);
        let Some(found) = runs.iter().position(|run| run.has(&name)) else { return Ok(None) };
        let next = runs.get(found + 1).and_then(Run::first).map(str::to_owned);
        let run = &mut runs[found];
        let made = run.made.as_ref().filter(|(info, _)| self.has(&directory, info));
        if let Some((_, gathering)) = made {
            gathering.handle_request(Instant::now());
        } else {
            let made = self.make(&directory, Arc::clone(&run.files)).await?;
            let gathering = if gathers { Gathering::new } else { Gathering::ended };
            run.made = made.map(|info| (info, gathering(Instant::now())));
        }
        let Some((info, gathering)) = &run.made else { return Ok(None) };
        Ok(Some((BundleInfo { next, ..info.clone() }, gathering.answers_at())))
    }

    /// Whether this bundle is in memory.
    fn has(&self, directory: &RemotePath, info: &BundleInfo) -> bool {
        let path = directory.join(info.name.as_bytes()).ok();
        let version = path.and_then(|path| self.identity.bundle_files().version(&path));
        version.is_some_and(|version| version.etag() == info.etag)
    }

    /// Lists a directory and divides it.
    async fn plan(&self, directory: &RemotePath) -> Result<Plan, ListingError> {
        let began = Instant::now();
        let (identity, path) = (self.identity.clone(), directory.clone());
        let list =
            move || identity.list(&path).map(|meta| divide(meta.entries.unwrap_or_default()));
        let (runs, bytes) = self.pool.run(directory, list).await??;
        let names = self.reserve(bytes).ok_or(PoolError::Exhausted)?;
        let now = Instant::now();
        let until = now + PLAN_TIME.max((now - began) * PLAN_TIME_FACTOR);
        Ok(Plan { until, runs, _names: names })
    }

    /// Reserves memory for names. Forgets the plans that were not used for longest until there is
    /// enough; returns `None` if those that requests still use leave too little.
    fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        loop {
            if let Ok(permit) = Arc::clone(&self.names).try_acquire_many_owned(bytes) {
                return Some(permit);
            }
            self.plans().pop_lru()?;
        }
    }

    /// Makes the bundle of these files; `None` if none of them can be read.
    async fn make(
        &self,
        directory: &RemotePath,
        files: Arc<[Box<str>]>,
    ) -> Result<Option<BundleInfo>, ListingError> {
        let (identity, path) = (self.identity.clone(), directory.clone());
        Ok(self.pool.run(directory, move || make(&identity, &path, &files)).await??)
    }

    /// Runs for ever: drops what is not used any more.
    async fn run(self) {
        let mut ticks = tokio::time::interval(TIDY_PERIOD);
        loop {
            ticks.tick().await;
            self.tidy(Instant::now());
        }
    }

    /// Drops bundles that were not used for long, and plans that are out of date.
    fn tidy(&self, now: Instant) {
        self.identity.bundle_files().tidy(now);
        for (_, slot) in self.plans().iter() {
            if let Ok(mut plan) = slot.try_lock() {
                // By then no requests are gathered any more.
                plan.take_if(|plan| plan.until + TIDY_PERIOD <= now);
            }
        }
    }

    fn plans(&self) -> MutexGuard<'_, LruCache<RemotePath, Slot>> {
        // A panic cannot leave the cache half changed.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::FutureExt;
    use tempfile::TempDir;

    use super::*;
    use crate::io::manifests::Manifests;
    use crate::source::Source;

    /// Returns what is announced for a new directory that has these files.
    pub(super) fn served(files: &[(&str, &str)]) -> (TempDir, Identity) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let source = Arc::new(Source::new(dir.path()).unwrap());
        let identity = Identity::new(source, Manifests::new(None));
        files.last().inspect(|(name, _)| settle(&identity, name));
        (dir, identity)
    }

    /// Waits until what was written has its final version.
    pub(super) fn settle(identity: &Identity, name: &str) {
        let path = RemotePath::decode(name).unwrap();
        while identity.open(&path).unwrap().present.unstable_for(SystemTime::now()).is_some() {
            std::thread::yield_now();
        }
    }

    async fn wait_until(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_request_began_is_finished_without_it() {
        let (_dir, identity) = served(&[("a", "one")]);
        let bundles = Bundles::new(identity.clone());
        let request = bundles.get(&RemotePath::decode("a").unwrap(), false).now_or_never();
        assert!(request.is_none(), "the client goes away while the directory is listed");
        wait_until(|| identity.bundle_files().lock().len() == 1).await;
    }

    #[tokio::test]
    async fn requests_are_gathered_beyond_the_time_of_a_plan() {
        let (_dir, identity) = served(&[("a", "one")]);
        let bundles = Bundles::new(identity);
        let slot = async || bundles.slot(&RemotePath::root()).lock_owned().await;
        let answers_at = async || {
            let found = bundles.clone().find(slot().await, RemotePath::root(), "a".into(), true);
            found.await.unwrap().unwrap().1
        };
        loop {
            let first = answers_at().await;
            slot().await.as_mut().unwrap().until = Instant::now();
            let second = answers_at().await;
            // A busy machine may be slower than the first answer.
            if Instant::now() < *first.borrow() {
                assert!(second.same_channel(&first));
                break;
            }
        }
    }

    #[tokio::test]
    async fn bundles_and_plans_that_are_not_used_take_no_memory() {
        let (_dir, identity) = served(&[("a", "one")]);
        let bundles = Bundles::new(identity.clone());
        bundles.get(&RemotePath::decode("a").unwrap(), false).await.unwrap().unwrap();
        let in_use = || {
            let names = MAX_NAME_BYTES - bundles.names.available_permits();
            (identity.bundle_files().lock().len(), names > 0)
        };
        bundles.tidy(Instant::now());
        assert_eq!(in_use(), (1, true));
        bundles.tidy(Instant::now() + KEPT_FOR);
        assert_eq!(in_use(), (0, false));
    }

    #[tokio::test]
    async fn plans_that_were_not_used_for_longest_make_room_for_the_names_of_others() {
        let (_dir, identity) = served(&[("a/1", ""), ("b/1", ""), ("b/2", ""), ("c/1", "")]);
        let bundles = Bundles::new(identity);
        let path = |name| RemotePath::decode(name).unwrap();
        let bundle = async |name| bundles.get(&path(name), false).await.unwrap().unwrap();
        bundle("a/1").await;
        let name_bytes = MAX_NAME_BYTES - bundles.names.available_permits();
        let rest = bundles.names.available_permits() - 2 * name_bytes;
        let _taken = bundles.names.try_acquire_many(u32::try_from(rest).unwrap()).unwrap();
        let is_kept = |name| bundles.plans().contains(&path(name));
        bundle("b/1").await;
        bundle("a/1").await;
        assert!(is_kept("a") && is_kept("b"), "there is room for three names");
        bundle("c/1").await;
        assert!(is_kept("a") && !is_kept("b") && is_kept("c"));
    }

    fn add(bundles: &BundleFiles, name: &str, size: u64) -> RemotePath {
        let path = RemotePath::decode(&format!("d/{BUNDLE_PREFIX}{name}")).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let version = Version::of_file(&file).unwrap();
        bundles.add(&path, file, version);
        path
    }

    #[test]
    fn the_bundles_that_were_not_used_for_longest_make_room() {
        let bundles = BundleFiles::default();
        let first = add(&bundles, "1", MAX_BYTES / 2);
        let second = add(&bundles, "2", MAX_BYTES / 2);
        assert!(bundles.open(&first).unwrap().is_ok(), "it is used now");
        let third = add(&bundles, "3", 1);
        let is_there = [&first, &second, &third].map(|path| bundles.version(path).is_some());
        assert_eq!(is_there, [true, false, true]);
        add(&bundles, "4", MAX_BYTES + 1);
        assert_eq!(bundles.lock().len(), 1, "the newest one stays");
    }
}
