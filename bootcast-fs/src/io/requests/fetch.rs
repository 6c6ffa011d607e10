//! Fetches a part of a file over HTTP and stores it in its object.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use reqwest::Response;
use tracing::debug;

use crate::io::control::Control;
use crate::object::{Fetched, Object, Ready};
use crate::receiver::{Fetch, FetchError};

/// Most bytes stored in one step. A fetch needs a few times as much memory.
const STORE_LEN: usize = 256 << 10;

/// Fetches a part of the file and stores bytes as they arrive. Calls `answer` with the reads that
/// they complete.
pub(super) async fn fetch(
    control: &Control,
    object: &Arc<Object>,
    fetch: &Fetch,
    answer: impl Fn(Vec<Ready>),
) -> Result<(), FetchError> {
    let path = &object.key().path;
    // Bytes of an unnamed version could belong to another content.
    let etag = object.snapshot().etag.ok_or(FetchError::Changed)?;
    let mut response = control.file_range(path, &fetch.bytes, &etag).await?;
    let (mut offset, mut bytes) = (fetch.bytes.start, Vec::new());
    let mut received = more(&mut response, &mut bytes).await;
    loop {
        bytes.truncate(usize::try_from(fetch.bytes.end - offset).unwrap_or(usize::MAX));
        // Receives the next bytes while these are stored.
        let mut next = Vec::new();
        let stored = {
            let storing = pin!(async {
                let (fetched, rest) = store(object.clone(), fetch.id, offset, bytes).await?;
                answer(fetched.ready);
                let end = offset + fetched.used as u64;
                let is_over = !fetched.wants_more || end >= fetch.bytes.end;
                Ok::<_, FetchError>((!is_over).then_some((end, rest)))
            });
            match received {
                Ok(true) => {
                    let receiving = pin!(more(&mut response, &mut next));
                    match select(storing, receiving).await {
                        Either::Left((stored, receiving)) => {
                            let stored = stored?;
                            if stored.is_some() {
                                received = receiving.await;
                            }
                            stored
                        }
                        Either::Right((result, storing)) => {
                            received = result;
                            storing.await?
                        }
                    }
                }
                // Bytes that are still missing are requested again later.
                Ok(false) => return storing.await.map(drop),
                Err(error) => {
                    debug!(%path, %error, "fetch interrupted");
                    storing.await?;
                    return Err(FetchError::Retry { after: Duration::ZERO });
                }
            }
        };
        let Some((end, rest)) = stored else { return Ok(()) };
        (offset, bytes) = (end, rest);
        bytes.append(&mut next);
    }
}

/// Waits for bytes of the body, then takes all that have arrived, up to about [`STORE_LEN`].
/// Returns `false` at the end of the body.
async fn more(response: &mut Response, bytes: &mut Vec<u8>) -> Result<bool, reqwest::Error> {
    let mut piece = response.chunk().await?;
    while let Some(some) = piece {
        bytes.extend_from_slice(&some);
        if bytes.len() >= STORE_LEN {
            return Ok(true);
        }
        // Dropping the future of an incomplete chunk loses nothing: the body keeps its bytes.
        match response.chunk().now_or_never() {
            Some(next) => piece = next?,
            None => return Ok(true),
        }
    }
    Ok(false)
}

/// Stores bytes on a thread that may block on the disk. Returns the bytes that the object did not
/// take.
async fn store(
    object: Arc<Object>,
    id: u64,
    offset: u64,
    mut bytes: Vec<u8>,
) -> Result<(Fetched, Vec<u8>), FetchError> {
    let storing = tokio::task::spawn_blocking(move || {
        let fetched = object.store_fetched(id, offset, &bytes);
        bytes.drain(..fetched.used);
        (fetched, bytes)
    });
    // Fails only if the runtime is shutting down.
    storing.await.map_err(|_| FetchError::Store)
}
