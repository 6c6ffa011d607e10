//! Waits until the version of a file identifies its content.

use std::io;
use std::time::SystemTime;

use crate::source::{OpenFile, Version};

/// How often the version of a file that is being written is checked again.
const TRIES: u32 = 3;

/// Waits until a later write would change the version. A file that is written to all the time is
/// returned as it is: its cast ends soon.
pub async fn settled(mut open: OpenFile) -> io::Result<OpenFile> {
    for _ in 0..TRIES {
        let Some(wait) = open.version.unsettled_for(SystemTime::now()) else { break };
        tokio::time::sleep(wait).await;
        let look = move || {
            let version = Version::of_file(&open.file)?;
            io::Result::Ok(OpenFile { version, ..open })
        };
        open = tokio::task::spawn_blocking(look).await.map_err(io::Error::other)??;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_after_the_version_was_taken_is_seen_in_it_however_soon_it_comes() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        for round in 0..20 {
            std::fs::write(&path, b"old").unwrap();
            let file = std::fs::File::open(&path).unwrap();
            let version = Version::of_file(&file).unwrap();
            let open = settled(OpenFile { file, version }).await.unwrap();
            assert_eq!(open.version.unsettled_for(SystemTime::now()), None);
            std::fs::write(&path, b"new").unwrap();
            assert_ne!(Version::of_file(&open.file).unwrap(), open.version, "round {round}");
        }
    }
}
