//! Joins and leaves. docs/PROTOCOL.md, "Join" and "Leave".

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use bootcast_proto::manifest::ContentId;
use bootcast_proto::{
    FILL_DEMAND, HEADER_EXTENSIONS, HEADER_FILL, HEADER_LEAVES, HEADER_PROFILE, HEADER_RESUME,
    HEADER_TOKEN, Profile, RemotePath, Token,
};

use super::{ApiError, ApiState, remote_path};
use crate::cast::{MemberKind, Principal};
use crate::io::client_stream::StreamWatch;
use crate::io::peers::Peer;
use crate::io::reader::source::FileSource;
use crate::io::sender::{Join, JoinError};
use crate::source::{OpenFile, SourceError};

/// Maximum number of attempts at a join whose file is replaced meanwhile.
const JOIN_TRIES: u32 = 4;

/// Answers `GET /join/`.
pub(super) async fn join(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Extension(client): Extension<StreamWatch>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    // A plain client may close its sending half alone, and wait. Others do not, so the member would
    // never leave.
    let is_plain = member_kind(&headers) == MemberKind::Plain;
    tokio::select! {
        biased;
        answer = join_cast(state, peer, uri, headers) => answer,
        () = client.closed(), if !is_plain => Err(ApiError::Closed),
    }
}

/// Joins a cast. Dropping the future undoes a join that is not answered yet.
async fn join_cast(
    state: ApiState,
    Peer(host): Peer,
    uri: Uri,
    headers: HeaderMap,
) -> Result<impl IntoResponse + use<>, ApiError> {
    let principal = Principal::from(host);
    let path = remote_path(&uri, "/join/")?;
    let kind = member_kind(&headers);
    let asks = headers.get(HEADER_LEAVES).is_some_and(|it| it == "1");
    let wants_leaves = kind != MemberKind::Plain && asks;
    let asks = headers.get(HEADER_PROFILE).is_some_and(|it| it == "1");
    let wants_profile = kind == MemberKind::Demand && asks;
    let mut tries = 1;
    let mut newer_than = None;
    let mut content_id;
    let mut answer = loop {
        let open = super::open(&state, &path).await?;
        // Before the join, because the cast may begin right after it.
        content_id = state.manifests.content_id(open.version).await;
        let profile = if wants_profile {
            Some(known_profile(&state, content_id, open.version.size()).await)
        } else {
            None
        };
        // Without a descriptor the cast goes on without leaf values.
        let again = wants_leaves.then(|| open.try_clone().ok()).flatten();
        let source = Arc::new(FileSource::new(path.clone(), open, state.identity.clone()));
        let token = random_token()?;
        let name = path.clone();
        let join =
            Join { path: name, source, token, kind, principal, newer_than, wants_leaves, profile };
        match state.sender.join(join).await {
            // What is opened from now on is newer than the version that is being sent.
            Err(JoinError::Outdated { running }) if tries < JOIN_TRIES => {
                tries += 1;
                newer_than = Some(running);
            }
            answer => {
                let answer = answer?;
                if let Some(open) = again {
                    attach_manifest(&state, &path, open, kind);
                }
                break answer;
            }
        }
    };
    answer.extensions.content_id = content_id;
    let headers = [(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, answer.encode()))
}

/// Returns what earlier casts learned of a content. The profile is empty if the id is not known.
async fn known_profile(state: &ApiState, id: Option<ContentId>, size: u64) -> Arc<Profile> {
    match id {
        Some(id) => state.profiles.get(id, size).await,
        None => Arc::new(Profile::new(size)),
    }
}

/// Attaches the manifest of a file to its cast, as soon as it is known. Computes it if necessary:
/// near the stream if that brings the member the whole file.
fn attach_manifest(state: &ApiState, path: &RemotePath, open: OpenFile, kind: MemberKind) {
    let (sender, name, etag) = (state.sender.clone(), path.clone(), open.etag());
    let attach = move |manifest| sender.attach_manifest(name, etag, manifest);
    state.manifests.when_known(path, open, kind == MemberKind::Extended, attach);
}

/// Answers `GET /leave/`.
pub(super) async fn leave(
    State(state): State<ApiState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let path = remote_path(&uri, "/leave/")?;
    // Unlike other errors, this one has no body (docs/PROTOCOL.md, "Leave").
    let Some(token) = headers.get(HEADER_TOKEN) else { return Ok(StatusCode::BAD_REQUEST) };
    // A malformed token counts as unknown.
    if let Some(token) = token.to_str().ok().and_then(|text| Token::parse(text.trim()).ok()) {
        state.sender.leave(path, token).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Reads the kind of member from the headers. A client with another version of the extensions
/// counts as plain; an unknown fill counts as absent.
fn member_kind(headers: &HeaderMap) -> MemberKind {
    let fill = headers.get(HEADER_FILL);
    match headers.get(HEADER_EXTENSIONS) {
        Some(version) if version == "1" => match fill {
            Some(fill) if fill == FILL_DEMAND => MemberKind::Demand,
            Some(_) | None if headers.get(HEADER_RESUME).is_some_and(|it| it == "1") => {
                MemberKind::Resuming
            }
            Some(_) | None => MemberKind::Extended,
        },
        Some(_) | None => MemberKind::Plain,
    }
}

fn random_token() -> Result<Token, SourceError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| SourceError::from(std::io::Error::from(error)))?;
    Ok(Token::from_random(u128::from_ne_bytes(bits)))
}
