//! Hashing of a file near the stream of its cast, so that both read it once. docs/adr/0025.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bootcast_proto::{Manifest, RemotePath};
use tokio::sync::watch;

use super::memory::Entry;
use super::{Computed, ManifestError, Manifests, PoolError};
use crate::io::threads::at_low_priority;
use crate::source::{
    HashError, HashProgress, HashRun, Lead, OpenFile, VersionKey, hash_with_stream, may_go_on,
};

/// Maximum number of files that are hashed near their streams at a time. Each keeps up to 16 MiB in
/// memory. Others are hashed without regard to their streams.
pub(super) const LEADS: usize = 4;

/// Maximum number of members whose leaf lists may have to wait for the stream. Each fetches them
/// over HTTP, 0.2 % of the file, while the manifest is not known (ADR 25).
const MAX_MEMBERS: u32 = 8;

/// The same for a file that memory can hold: the stream finds in the page cache what the hasher
/// read, so that reading ahead without limit costs the disk nothing.
const MAX_MEMBERS_IN_MEMORY: u32 = 1;

/// Time in which a stream has to read on for a segment: 17 Mbit/s. Members do not wait for a slower
/// one: the file is hashed without regard to it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file that is being hashed. Shared with the thread that does the present step.
struct Work {
    open: OpenFile,
    progress: Arc<HashProgress>,
    lead: Arc<Lead>,
    run: Mutex<HashRun>,
}

impl Work {
    /// Hashes until the stream has to move, or the lead is closed; then returns `None`. Yields to
    /// what is asked for, unless the stream waits for it.
    fn step(&self) -> Result<Option<Manifest>, HashError> {
        let lead = Some(&*self.lead).filter(|lead| lead.is_open());
        let hash = || hash_with_stream(&self.open, &self.progress, lead, &mut self.lock());
        if lead.is_some() { hash() } else { at_low_priority(hash) }
    }

    /// Waits until a step would do something. Waits for the stream no more if it is slow.
    async fn wait_for_stream(&self, moved: &mut watch::Receiver<()>) {
        let may_go_on = || may_go_on(&self.progress, &self.lead, &self.lock());
        let waited = async {
            // The lead keeps the sender.
            while !may_go_on() && moved.changed().await.is_ok() {}
        };
        if tokio::time::timeout(PATIENCE, waited).await.is_err() {
            self.lead.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashRun> {
        // A panic of a step ends the work.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manifests {
    /// Returns the lead of a file whose hashing begins. It is closed if there is no stream, or no
    /// room.
    pub(super) fn new_lead(&self, open: &OpenFile, has_stream: bool) -> Lead {
        let room = has_stream.then(|| Arc::clone(&self.leads).try_acquire_owned().ok()).flatten();
        let size = open.version.size();
        let max_members = if size <= self.page_cache { MAX_MEMBERS_IN_MEMORY } else { MAX_MEMBERS };
        room.map_or_else(|| Lead::closed(size), |room| Lead::new(open, room, max_members))
    }

    /// Counts a member that asked for leaf lists of a version. If no stream brings it the file, it
    /// waits for none.
    pub(super) fn count_member(&self, key: &VersionKey, has_stream: bool) {
        // Pieces are freed without the lock.
        let lead = self.lock().lead(key).cloned();
        match lead {
            Some(lead) if has_stream => lead.add_member(),
            Some(lead) => lead.close(),
            None => {}
        }
    }

    /// Returns the lead over the stream of an open file that is being hashed.
    pub fn lead(&self, open: &OpenFile) -> Option<Arc<Lead>> {
        let key = open.version.key();
        let memory = self.lock();
        memory.lead(&key).filter(|lead| lead.is_for(&open.present)).map(Arc::clone)
    }

    /// Computes a manifest, step by step. No step waits for the stream, so that a slow one occupies
    /// no thread.
    pub(super) async fn compute(
        &self,
        path: &RemotePath,
        open: OpenFile,
        entry: &Entry,
    ) -> Result<Computed, ManifestError> {
        let Entry { progress, lead, .. } = entry.clone();
        let is_stable = open.present.unstable_for(SystemTime::now()).is_none();
        let mut moved = lead.subscribe();
        let work = Work { open, progress, lead, run: Mutex::default() };
        let (work, mut has_begun) = (Arc::new(work), false);
        let result = loop {
            let step = Arc::clone(&work);
            match self.hashers.run(path, move || step.step()).await {
                Ok(Ok(None)) => work.wait_for_stream(&mut moved).await,
                Ok(Ok(Some(manifest))) => break Ok(manifest),
                Ok(Err(error)) => break Err(Arc::new(error).into()),
                // What is hashed already is worth another attempt.
                Err(PoolError::Exhausted) if has_begun => {}
                Err(error) => break Err(error.into()),
            }
            has_begun = true;
        };
        end_lead(&work.lead, result.is_err());
        result.map(|manifest| Computed::new(&work.open, manifest, is_stable))
    }
}

/// Returns the size of a file that the page cache is taken to keep between two readings: a quarter
/// of the machine's memory.
pub(super) fn page_cache() -> u64 {
    let info = rustix::system::sysinfo();
    let memory = u128::from(info.totalram) * u128::from(info.mem_unit);
    u64::try_from(memory / 4).unwrap_or(u64::MAX)
}

/// Ends the lead of a file that is hashed. A stream gets the time to begin, and to take the rest.
fn end_lead(lead: &Arc<Lead>, has_failed: bool) {
    if has_failed {
        lead.close();
        return;
    }
    lead.end();
    let (lead, mut moved) = (Arc::clone(lead), lead.subscribe());
    tokio::spawn(async move {
        // One that stands still would keep other files from a lead for as long as its cast lasts.
        while lead.is_open() && tokio::time::timeout(PATIENCE, moved.changed()).await.is_ok() {}
        lead.close();
    });
}
