//! Detects at once what waiting would not cure: no server, or a directory.

use std::pin::Pin;
use std::time::Duration;

use bootcast_proto::api::Kind;

use super::error::ToolError;
use super::url::Target;
use crate::io::ControlError;

/// How long a join that was refused waits for the answer that says why.
const REASON_PATIENCE: Duration = Duration::from_secs(2);

/// Request for the attributes of a file, made while it is joined. The join does not wait for it,
/// because listings can hang where joins work.
pub(super) struct Probe<'a>(Pin<Box<dyn Future<Output = ToolError> + 'a>>);

impl<'a> Probe<'a> {
    /// Creates the request, which is sent when it is polled.
    pub(super) fn new(target: &'a Target) -> Self {
        Self(Box::pin(async {
            match target.control.attributes(&target.path).await {
                Err(error @ ControlError::Unreachable { is_connected: false, .. }) => error.into(),
                Ok(attributes) if attributes.kind == Kind::Directory => {
                    ToolError::Refused(format!("{} is a directory: see bootcast ls", target.path))
                }
                // A plain server does not know this request; there the join finds out.
                _ => std::future::pending().await,
            }
        }))
    }

    /// Resolves only if the file cannot be fetched.
    pub(super) async fn hopeless(&mut self) -> ToolError {
        self.0.as_mut().await
    }

    /// Replaces a refusal of the join by a better reason, if the answer comes soon.
    pub(super) async fn explain(&mut self, error: ToolError) -> ToolError {
        if !matches!(error, ToolError::NotFound(_) | ToolError::Refused(_)) {
            return error;
        }
        tokio::time::timeout(REASON_PATIENCE, self.hopeless()).await.unwrap_or(error)
    }
}
