//! Refuses the requests of hosts that send too many. docs/PROTOCOL.md, "Requests a second".

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;
use crate::cast::Principal;
use crate::io::peers::Peer;
use crate::io::request_limits::{RequestKind, RequestLimits};

/// Answers a request, or refuses it.
pub(super) async fn guard(
    State(limits): State<RequestLimits>,
    Extension(Peer(host)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let kind = RequestKind::of(request.uri().path());
    if !limits.admit(Principal::from(host), kind) {
        return Err(ApiError::TooManyRequests(kind));
    }
    Ok(next.run(request).await)
}
