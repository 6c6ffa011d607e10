//! Profiles of contents: kept beside the manifests in the state directory, and the recent ones in
//! memory. docs/PROTOCOL.md, "Profile".

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bootcast_proto::log_limit::Limiter;
use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Profile, RemotePath};
use lru::LruCache;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::MissedTickBehavior;

use super::blocking_pool::BlockingPool;
use super::manifests::Manifests;
use crate::source::{Version, VersionKey};

/// Maximum number of profiles in memory. Each takes up to a megabyte.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(32).expect("not 0");

/// Time that a join waits for the state directory. Then it is answered without a profile.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of learned profiles that cannot be kept yet, because the content id of their file
/// is not known, or the state directory does not answer. One more replaces the oldest.
const WAITING_MAX: NonZeroUsize = NonZeroUsize::new(32).expect("not 0");

/// Interval at which the server tries again to keep the profiles that wait.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Limits warnings to one a minute for each error: attempts are repeated.
static WARNINGS: Mutex<Limiter<String, Instant>> = Mutex::new(Limiter::new());

/// A profile that a cast learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedProfile {
    /// Version that the cast sends.
    pub version: Version,
    /// All that is known of its content, in the order of the first wants.
    pub profile: Profile,
}

/// Profiles of contents.
#[derive(Clone, Debug)]
pub struct Profiles {
    manifests: Manifests,
    /// Threads that use the state directory.
    threads: BlockingPool,
    recent: Arc<Mutex<LruCache<ContentId, Arc<Profile>>>>,
}

impl Profiles {
    /// Keeps profiles in the state directory of the manifests, if they have one.
    pub fn new(manifests: Manifests) -> Self {
        let recent = Arc::new(Mutex::new(LruCache::new(IN_MEMORY)));
        Self { manifests, threads: BlockingPool::new(1), recent }
    }

    /// Returns the profile of a content of `size` bytes, empty if nothing was learned. Waits for
    /// the state directory for at most a second.
    pub async fn get(&self, id: ContentId, size: u64) -> Arc<Profile> {
        // Goes on after the timeout, so that a later join finds the profile in memory.
        let loading = tokio::spawn(self.clone().load(id, size));
        let loaded = tokio::time::timeout(LOAD_TIMEOUT, loading).await;
        let loaded = loaded.ok().and_then(Result::ok).flatten();
        loaded.unwrap_or_else(|| Arc::new(Profile::new(size)))
    }

    /// Keeps the profiles that casts learn, until all senders are gone. If the content of a file is
    /// still being hashed, its profile is kept once the content id is known.
    pub async fn keep(self, mut learned: UnboundedReceiver<LearnedProfile>) {
        let mut waiting: LruCache<VersionKey, LearnedProfile> = LruCache::new(WAITING_MAX);
        let mut retry = tokio::time::interval(RETRY_INTERVAL);
        // While nothing waits, no attempt is missed.
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                next = learned.recv() => {
                    let Some(next) = next else { break };
                    // What the same cast learned earlier is part of it.
                    waiting.pop(&next.version.key());
                    self.keep_or_wait(next, &mut waiting).await;
                }
                _ = retry.tick(), if !waiting.is_empty() => self.keep_all(&mut waiting).await,
            }
        }
        self.keep_all(&mut waiting).await;
    }

    /// Keeps the profiles that wait, as far as that is possible now.
    async fn keep_all(&self, waiting: &mut LruCache<VersionKey, LearnedProfile>) {
        let mut pending = std::mem::replace(waiting, LruCache::new(WAITING_MAX));
        while let Some((_, learned)) = pending.pop_lru() {
            self.keep_or_wait(learned, waiting).await;
        }
    }

    /// Keeps a profile, or lets it wait.
    async fn keep_or_wait(
        &self,
        learned: LearnedProfile,
        waiting: &mut LruCache<VersionKey, LearnedProfile>,
    ) {
        let id = self.manifests.content_id(learned.version).await;
        let is_kept = match id {
            Some(id) => self.add(id, &learned.profile).await,
            None => false,
        };
        if !is_kept {
            waiting.put(learned.version.key(), learned);
        }
    }

    /// Adds what a cast learned to what is known of a content. Returns `false` if that cannot be
    /// read now, so that nothing is replaced, or if the sum cannot be stored.
    async fn add(&self, id: ContentId, learned: &Profile) -> bool {
        let Some(known) = self.clone().load(id, learned.size()).await else { return false };
        let mut profile = Arc::unwrap_or_clone(known);
        if !profile.merge(learned) {
            return true;
        }
        let profile = Arc::new(profile);
        self.lock().put(id, Arc::clone(&profile));
        let this = self.clone();
        let store = move || this.manifests.state().map(|state| state.store_profile(&id, &profile));
        let stored = self.threads.run(&RemotePath::root(), store).await;
        let error = match stored {
            Ok(None | Some(Ok(()))) => return true,
            Ok(Some(Err(error))) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = warnings.allow(&error, Instant::now()) {
            tracing::warn!(content = %id, suppressed, "cannot keep the profile of a file: {error}");
        }
        drop(warnings);
        // The next attempt begins with what is in the state directory.
        self.lock().pop(&id);
        false
    }

    /// Returns a profile from memory or the state directory; an empty one if there is none, and
    /// `None` if the state directory cannot be read. Loads it into memory.
    async fn load(self, id: ContentId, size: u64) -> Option<Arc<Profile>> {
        if let Some(recent) = self.recent_of(id) {
            return Some(recent);
        }
        let this = self.clone();
        let load = move || {
            let kept = match this.manifests.state() {
                Some(state) => state.load_profile(&id, size).ok()?,
                None => None,
            };
            // A newer one may have come into memory meanwhile.
            let kept = || Arc::new(kept.unwrap_or_else(|| Profile::new(size)));
            Some(Arc::clone(this.lock().get_or_insert(id, kept)))
        };
        self.threads.run(&RemotePath::root(), load).await.ok().flatten()
    }

    fn recent_of(&self, id: ContentId) -> Option<Arc<Profile>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<ContentId, Arc<Profile>>> {
        // A panic cannot leave the map half changed.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::io::state_dir::StateDir;
    use crate::source::OpenFile;

    const SIZE: usize = 1 << 20;

    fn file() -> OpenFile {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![7; SIZE]).unwrap();
        OpenFile::new(file).unwrap()
    }

    async fn content_of(manifests: &Manifests, open: OpenFile) -> ContentId {
        let path = RemotePath::decode("file").unwrap();
        manifests.get(&path, open).await.unwrap().id()
    }

    /// A file whose manifest is known.
    async fn known_file(manifests: &Manifests) -> (Version, ContentId) {
        let open = file();
        (open.version, content_of(manifests, open).await)
    }

    fn profile(runs: &[(u64, u64)]) -> Profile {
        let mut profile = Profile::new(SIZE as u64);
        for (first, count) in runs {
            profile.extend(*first..first + count);
        }
        profile
    }

    #[tokio::test]
    async fn what_casts_learn_is_merged_and_survives_a_restart() {
        let dir = TempDir::new().unwrap();
        let manifests = || Manifests::new(Some(StateDir::open(dir.path()).unwrap()));
        let first = manifests();
        let (version, id) = known_file(&first).await;
        let profiles = Profiles::new(first);
        assert!(profiles.get(id, SIZE as u64).await.is_empty());
        let (sender, received) = unbounded_channel();
        for runs in [&[(9, 2), (3, 1)][..], &[(3, 2)]] {
            sender.send(LearnedProfile { version, profile: profile(runs) }).unwrap();
        }
        drop(sender);
        profiles.clone().keep(received).await;
        let merged = profile(&[(9, 2), (3, 1), (4, 1)]);
        for profiles in [profiles, Profiles::new(manifests())] {
            assert_eq!(*profiles.get(id, SIZE as u64).await, merged);
        }
    }

    #[tokio::test]
    async fn without_a_state_directory_profiles_are_kept_in_memory() {
        let manifests = Manifests::new(None);
        let (version, id) = known_file(&manifests).await;
        let profiles = Profiles::new(manifests);
        let (sender, received) = unbounded_channel();
        sender.send(LearnedProfile { version, profile: profile(&[(9, 2)]) }).unwrap();
        drop(sender);
        profiles.clone().keep(received).await;
        assert_eq!(*profiles.get(id, SIZE as u64).await, profile(&[(9, 2)]));
    }

    #[tokio::test]
    async fn the_profile_of_a_file_that_is_not_hashed_yet_is_kept_when_it_is() {
        let manifests = Manifests::new(None);
        let open = file();
        let version = open.version;
        let profiles = Profiles::new(manifests.clone());
        let (sender, received) = unbounded_channel();
        sender.send(LearnedProfile { version, profile: profile(&[(9, 2)]) }).unwrap();
        let keeping = tokio::spawn(profiles.clone().keep(received));
        tokio::task::yield_now().await;
        let id = content_of(&manifests, open).await;
        drop(sender);
        keeping.await.unwrap();
        assert_eq!(*profiles.get(id, SIZE as u64).await, profile(&[(9, 2)]));
    }

    #[tokio::test]
    async fn files_that_are_never_hashed_do_not_keep_profiles_of_others_from_being_kept() {
        let manifests = Manifests::new(None);
        // Open until the end: another file could get the inode of one that is closed.
        let files: Vec<_> = (0..2 * WAITING_MAX.get()).map(|_| file()).collect();
        let (version, id) = known_file(&manifests).await;
        let profiles = Profiles::new(manifests);
        let (sender, received) = unbounded_channel();
        for OpenFile { version, .. } in &files {
            let learned = LearnedProfile { version: *version, profile: profile(&[(1, 1)]) };
            sender.send(learned).unwrap();
        }
        sender.send(LearnedProfile { version, profile: profile(&[(9, 2)]) }).unwrap();
        drop(sender);
        profiles.clone().keep(received).await;
        assert_eq!(*profiles.get(id, SIZE as u64).await, profile(&[(9, 2)]));
    }

    #[tokio::test]
    async fn a_kept_profile_that_cannot_be_read_now_is_not_replaced() {
        let dir = TempDir::new().unwrap();
        let manifests = Manifests::new(Some(StateDir::open(dir.path()).unwrap()));
        let (version, id) = known_file(&manifests).await;
        // Reading a directory fails, also for root.
        let kept = dir.path().join(format!("{id}.profile"));
        std::fs::create_dir(&kept).unwrap();
        let profiles = Profiles::new(manifests);
        let learned = LearnedProfile { version, profile: profile(&[(9, 2)]) };
        assert!(!profiles.add(id, &learned.profile).await);
        assert!(profiles.get(id, SIZE as u64).await.is_empty());
        std::fs::remove_dir(kept).unwrap();
        assert!(profiles.add(id, &learned.profile).await);
        assert_eq!(*profiles.get(id, SIZE as u64).await, learned.profile);
    }

    #[tokio::test]
    async fn a_profile_that_cannot_be_stored_now_is_stored_later() {
        let dir = TempDir::new().unwrap();
        let manifests = || Manifests::new(Some(StateDir::open(dir.path()).unwrap()));
        let (first, learned) = (manifests(), profile(&[(9, 2)]));
        let (_, id) = known_file(&first).await;
        let profiles = Profiles::new(first);
        assert!(profiles.get(id, SIZE as u64).await.is_empty(), "in memory now");
        // Renaming a file over a directory fails, also for root.
        let kept = dir.path().join(format!("{id}.profile"));
        std::fs::create_dir(&kept).unwrap();
        assert!(!profiles.add(id, &learned).await);
        std::fs::remove_dir(kept).unwrap();
        assert!(profiles.add(id, &learned).await);
        assert_eq!(*Profiles::new(manifests()).get(id, SIZE as u64).await, learned);
    }
}
