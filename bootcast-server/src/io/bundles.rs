//! Bundles: runs of small files of a directory, copied into memory and cast as one file.
//! docs/PROTOCOL.md, "Bundles".

mod making;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::RemotePath;
use bootcast_proto::bundle::{BUNDLE_PREFIX, BundleInfo};

use super::blocking_pool::BlockingPool;
use super::identity::Identity;
use super::listings::ListingError;
use crate::source::{OpenFile, SourceError, Version};
use making::{Listed, Run, make, plan};

/// Maximum number of bytes of all bundles together. Beyond that, those that were not used for
/// longest go.
const MAX_BYTES: u64 = 64 << 20;

/// Time after its last use for which a bundle is kept. A cast uses its bundle once a second.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Minimum time for which the division of a directory into bundles is kept.
const PLAN_TIME: Duration = Duration::from_secs(2);

/// The division is also kept for this many times as long as listing the directory took.
const PLAN_TIME_FACTOR: u32 = 10;

/// Time from the last request for a new bundle to the answer of all, if several hosts want files of
/// the directory. They then join at the same time, and the bundle is sent once.
const GATHER: Duration = Duration::from_millis(250);

/// Maximum time from the first request to the answer. Less than a client waits for it.
const GATHER_MAX: Duration = Duration::from_millis(750);

/// Maximum number of directories whose division is kept.
const MAX_PLANS: usize = 256;

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
        Some(
            file.try_clone()
                .map_err(SourceError::from)
                .and_then(|file| Ok(OpenFile::sealed(file)?)),
        )
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
    fn tidy(&self) {
        let now = Instant::now();
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
    pool: BlockingPool,
    /// Divisions of directories. Each is locked while its directory is listed, or one of its
    /// bundles is made, so that this happens once for all who ask at the same time.
    plans: Arc<Mutex<HashMap<RemotePath, Slot>>>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Plan>>>;

/// Division of a directory into bundles.
#[derive(Debug)]
struct Plan {
    until: Instant,
    runs: Vec<Run>,
}

impl Bundles {
    /// Makes bundles of the files that `identity` announces. `pool` has threads that read files.
    pub fn new(identity: Identity, pool: BlockingPool) -> Self {
        Self { identity, pool, plans: Arc::default() }
    }

    /// Returns the bundle that has the file of this path; `None` if there is none. Makes it if
    /// necessary. `gathers`: several hosts want files of the directory, so that the answer waits for
    /// a moment.
    pub async fn get(
        &self,
        path: &RemotePath,
        gathers: bool,
    ) -> Result<Option<BundleInfo>, ListingError> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let slot = self.slot(&directory);
        let mut plan = slot.lock().await;
        if plan.as_ref().is_none_or(|plan| plan.until <= Instant::now()) {
            *plan = Some(self.plan(&directory).await?);
        }
        let Some(Plan { runs, .. }) = &mut *plan else { return Ok(None) };
        let Some(found) = runs.iter().position(|run| run.has(name)) else { return Ok(None) };
        let next = runs.get(found + 1).and_then(Run::first).map(str::to_owned);
        let run = &mut runs[found];
        let is_here = |info: &BundleInfo| {
            let path = directory.join(info.name.as_bytes());
            path.is_ok_and(|path| self.identity.bundle_files().version(&path).is_some())
        };
        if !run.made.as_ref().is_some_and(is_here) {
            run.made = self.make(&directory, run.files.clone()).await?;
            run.made_at = Instant::now();
            run.gathered = run.made_at + if gathers { GATHER } else { Duration::ZERO };
        } else if Instant::now() < run.gathered {
            run.gathered = (Instant::now() + GATHER).min(run.made_at + GATHER_MAX);
        }
        let Some(made) = run.made.clone() else { return Ok(None) };
        let mut gathered = run.gathered;
        while Instant::now() < gathered {
            drop(plan);
            tokio::time::sleep_until(gathered.into()).await;
            plan = slot.lock().await;
            let run = plan.as_ref().and_then(|plan| plan.runs.get(found));
            gathered = run.map_or(gathered, |run| run.gathered);
        }
        Ok(Some(BundleInfo { next, ..made }))
    }

    /// Returns the place of a directory's division. Forgets divisions that are out of date.
    fn slot(&self, directory: &RemotePath) -> Slot {
        // A panic cannot leave the map half changed.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if !plans.contains_key(directory) {
            let now = Instant::now();
            plans.retain(|_, slot| match slot.try_lock() {
                Ok(plan) => plan.as_ref().is_some_and(|plan| now < plan.until),
                Err(_) => true,
            });
            if plans.len() >= MAX_PLANS {
                return Slot::default();
            }
        }
        plans.entry(directory.clone()).or_default().clone()
    }

    /// Lists a directory and divides it.
    async fn plan(&self, directory: &RemotePath) -> Result<Plan, ListingError> {
        self.identity.bundle_files().tidy();
        let began = Instant::now();
        let (identity, path) = (self.identity.clone(), directory.clone());
        let meta = self.pool.run(directory, move || identity.list(&path)).await??;
        let runs = plan(meta.entries.unwrap_or_default());
        let now = Instant::now();
        let kept = PLAN_TIME.max((now - began) * PLAN_TIME_FACTOR);
        Ok(Plan { until: now + kept, runs })
    }

    /// Makes the bundle of these files; `None` if none of them can be read.
    async fn make(
        &self,
        directory: &RemotePath,
        files: Arc<[Listed]>,
    ) -> Result<Option<BundleInfo>, ListingError> {
        let (identity, path) = (self.identity.clone(), directory.clone());
        Ok(self.pool.run(directory, move || make(&identity, &path, &files)).await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
