//! Waits until the version of a file is stable, so that it identifies the content.

use std::io;
use std::time::SystemTime;

use crate::source::OpenFile;

/// Maximum number of waits for a file that is being written.
const MAX_WAITS: u32 = 3;

/// Waits until every later write would change the version, and returns the file with the version of
/// that time. Gives up on a file that is written all the time: its cast ends soon anyway.
pub async fn await_stable_version(mut open: OpenFile) -> io::Result<OpenFile> {
    for _ in 0..MAX_WAITS {
        let wait = open.present.unstable_for(SystemTime::now()).filter(|_| !open.is_sealed);
        let Some(wait) = wait else { break };
        tokio::time::sleep(wait).await;
        let reread = move || io::Result::Ok(OpenFile::new(open.file)?);
        open = tokio::task::spawn_blocking(reread).await.map_err(io::Error::other)??;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Version;

    #[tokio::test]
    async fn a_write_right_after_a_stable_version_changes_the_version() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        for round in 0..20 {
            std::fs::write(&path, b"old").unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let open = await_stable_version(OpenFile::new(file).unwrap()).await.unwrap();
            assert_eq!(open.version.unstable_for(SystemTime::now()), None);
            std::fs::write(&path, b"new").unwrap();
            assert_ne!(Version::of_file(&open.file).unwrap(), open.version, "round {round}");
        }
    }
}
