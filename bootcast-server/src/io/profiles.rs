//! Profiles of contents: kept beside the manifests in the state directory, and the recent ones in
//! memory. docs/PROTOCOL.md, "Profile".

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Profile, RemotePath};
use lru::LruCache;
use tokio::sync::mpsc::UnboundedReceiver;

use super::blocking_pool::BlockingPool;
use super::manifests::Manifests;
use crate::source::{Version, VersionKey};

/// Maximum number of profiles in memory. Each takes up to a megabyte.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(32).expect("not 0");

/// Time that a join waits for the state directory. Then it is answered without a profile.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of profiles that wait until the content of their file is known.
const UNNAMED_MAX: usize = 32;

/// Time after which the content ids of these files are looked up again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Thread that uses the state directory.
    thread: BlockingPool,
    recent: Arc<Mutex<LruCache<ContentId, Arc<Profile>>>>,
}

impl Profiles {
    /// Keeps profiles in the state directory of the manifests, if they have one.
    pub fn new(manifests: Manifests) -> Self {
        let recent = Arc::new(Mutex::new(LruCache::new(IN_MEMORY)));
        Self { manifests, thread: BlockingPool::new(1), recent }
    }

    /// Returns the profile of a content of `size` bytes, empty if nothing was learned. Waits for
    /// the state directory for at most a second.
    pub async fn get(&self, id: ContentId, size: u64) -> Arc<Profile> {
        // Goes on after the timeout, so that a later join finds the profile in memory.
        let loading = tokio::spawn(self.clone().load(id, size));
        let loaded = tokio::time::timeout(LOAD_TIMEOUT, loading).await;
        loaded.ok().and_then(Result::ok).unwrap_or_else(|| Arc::new(Profile::new(size)))
    }

    /// Keeps the profiles that casts learn, until all senders are gone. If the content of a file is
    /// still being hashed, its profile is kept once the content id is known.
    pub async fn keep(self, mut learned: UnboundedReceiver<LearnedProfile>) {
        let mut unnamed: HashMap<VersionKey, LearnedProfile> = HashMap::new();
        loop {
            match tokio::time::timeout(RETRY_INTERVAL, learned.recv()).await {
                Ok(Some(more)) if unnamed.len() < UNNAMED_MAX => {
                    unnamed.insert(more.version.key(), more);
                }
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => break,
            }
            self.keep_known(&mut unnamed).await;
        }
        self.keep_known(&mut unnamed).await;
    }

    /// Keeps and removes the profiles whose content is known.
    async fn keep_known(&self, unnamed: &mut HashMap<VersionKey, LearnedProfile>) {
        for (key, LearnedProfile { version, profile }) in std::mem::take(unnamed) {
            match self.manifests.content_id(version).await {
                Some(id) => self.add(id, profile).await,
                None => drop(unnamed.insert(key, LearnedProfile { version, profile })),
            }
        }
    }

    /// Adds what a cast learned to what is known of a content.
    async fn add(&self, id: ContentId, learned: Profile) {
        let mut profile = Arc::unwrap_or_clone(self.clone().load(id, learned.size()).await);
        if !profile.merge(&learned) {
            return;
        }
        let profile = Arc::new(profile);
        self.lock().put(id, Arc::clone(&profile));
        let this = self.clone();
        let store = move || this.manifests.state().map(|state| state.store_profile(&id, &profile));
        if let Ok(Some(Err(error))) = self.thread.run(&RemotePath::root(), store).await {
            tracing::warn!(content = %id, %error, "cannot keep the profile of a file");
        }
    }

    /// Returns a profile from memory or the state directory, or an empty one. Loads it into memory.
    async fn load(self, id: ContentId, size: u64) -> Arc<Profile> {
        if let Some(recent) = self.recent_of(id) {
            return recent;
        }
        let this = self.clone();
        let load = move || {
            let recent = this.recent_of(id);
            recent.unwrap_or_else(|| {
                let kept = this.manifests.state().and_then(|state| state.load_profile(&id, size));
                let profile = Arc::new(kept.unwrap_or_else(|| Profile::new(size)));
                this.lock().put(id, Arc::clone(&profile));
                profile
            })
        };
        let loaded = self.thread.run(&RemotePath::root(), load).await;
        loaded.unwrap_or_else(|_| Arc::new(Profile::new(size)))
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
}
