//! Detects early that a fetch cannot succeed: no server is there, or the path is a directory.

use std::pin::Pin;
use std::time::Duration;

use bootcast_proto::api::Kind;

use super::error::ToolError;
use super::url::Target;
use crate::io::ControlError;

/// Longest wait for a better reason after a join was refused.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Request for the attributes of a file, sent at the same time as the join. The join does not wait
/// for it, because a listing can hang where a join works.
pub(super) struct Probe<'a>(Pin<Box<dyn Future<Output = ToolError> + 'a>>);

impl<'a> Probe<'a> {
    /// Creates the request. It is sent when it is first polled.
    pub(super) fn new(target: &'a Target) -> Self {
        Self(Box::pin(async {
            match target.control.attributes(&target.path).await {
                Err(error @ ControlError::Unreachable { is_connected: false, .. }) => error.into(),
                Ok(attributes) if attributes.kind == Kind::Directory => {
                    let path = &target.path;
                    ToolError::Refused(format!("{path} is a directory: list it with bootcast ls"))
                }
                // A plain server does not know this request. The join will show whether it works.
                _ => std::future::pending().await,
            }
        }))
    }

    /// Waits until the probe shows that the file cannot be fetched. Otherwise never resolves.
    pub(super) async fn failure(&mut self) -> ToolError {
        self.0.as_mut().await
    }

    /// Replaces the refusal of a join by a better reason, if the probe has one soon.
    pub(super) async fn explain(&mut self, error: ToolError) -> ToolError {
        if !matches!(error, ToolError::NotFound(_) | ToolError::Refused(_)) {
            return error;
        }
        tokio::time::timeout(EXPLAIN_TIMEOUT, self.failure()).await.unwrap_or(error)
    }
}
