//! Fetches parts of files over HTTP into their objects.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use reqwest::Response;
use tracing::debug;

use super::control::Control;
use crate::object::{Fetched, Object, Ready};
use crate::receiver::{Fetch, FetchError};

/// Most bytes stored in one step. A fetch takes a few times as much memory.
const STORED_AT_ONCE: usize = 256 << 10;

/// Fetches a part of the file and stores bytes as they arrive. `hand_out` gets the reads that they
/// complete.
pub(super) async fn fetch(
    control: &Control,
    object: &Arc<Object>,
    fetch: &Fetch,
    hand_out: impl Fn(Vec<Ready>),
) -> Result<(), FetchError> {
    let path = &object.key().path;
    // Without a version nothing may be fetched.
    let etag = object.etag().ok_or(FetchError::Changed)?;
    let mut response = control.part(path, &fetch.bytes, &etag).await?;
    let (mut offset, mut bytes) = (fetch.bytes.start, Vec::new());
    let mut received = more(&mut response, &mut bytes).await;
    loop {
        bytes.truncate(usize::try_from(fetch.bytes.end - offset).unwrap_or(usize::MAX));
        // Receives the next bytes while these are stored. Readers wait for neither.
        let mut next = Vec::new();
        let stored = {
            let storing = pin!(async {
                let (fetched, rest) = store(object.clone(), fetch.id, offset, bytes).await?;
                hand_out(fetched.ready);
                let end = offset + fetched.taken as u64;
                let is_over = !fetched.goes_on || end >= fetch.bytes.end;
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
                // Whatever is still missing is requested again.
                Ok(false) => return storing.await.map(drop),
                Err(error) => {
                    debug!(%path, %error, "a fetch broke off");
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

/// Waits for bytes of the body and takes all that are there. Returns `false` at the end of the
/// body.
async fn more(response: &mut Response, bytes: &mut Vec<u8>) -> Result<bool, reqwest::Error> {
    let mut piece = response.chunk().await?;
    while let Some(some) = piece {
        bytes.extend_from_slice(&some);
        if bytes.len() >= STORED_AT_ONCE {
            return Ok(true);
        }
        // A chunk that is not complete yet is not lost: the body keeps its part.
        match response.chunk().now_or_never() {
            Some(next) => piece = next?,
            None => return Ok(true),
        }
    }
    Ok(false)
}

/// Stores bytes on a thread that may wait for the disk. Returns the bytes that were not taken.
async fn store(
    object: Arc<Object>,
    id: u64,
    offset: u64,
    mut bytes: Vec<u8>,
) -> Result<(Fetched, Vec<u8>), FetchError> {
    let storing = tokio::task::spawn_blocking(move || {
        let fetched = object.fetched(id, offset, &bytes);
        bytes.drain(..fetched.taken);
        (fetched, bytes)
    });
    // Awaiting fails only if the runtime is ending.
    storing.await.map_err(|_| FetchError::Store)
}
