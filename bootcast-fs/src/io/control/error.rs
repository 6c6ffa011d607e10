//! Errors of requests.

use std::ops::Range;
use std::time::Duration;

use bootcast_proto::limits::RETRY_AFTER_MAX;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There was no answer. Another attempt may succeed.
    #[error("cannot reach {base}: {reason}")]
    Unreachable {
        /// Base URL of the server.
        base: String,
        /// Innermost cause.
        reason: String,
        /// Whether a connection was established: something listens there, and may answer later.
        is_connected: bool,
    },
    /// The server refused.
    #[error("{message}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// The first line of the server's text, or the text of the status code.
        message: String,
        /// Pause that the server requests before another attempt, or zero.
        retry_after: Duration,
    },
    /// The server cannot read a part of the file.
    #[error("{message}")]
    Unreadable {
        /// Bytes of the file that the server cannot read.
        bytes: Range<u64>,
        /// The first line of the server's text, or the text of the status code.
        message: String,
    },
    /// The answer does not follow the protocol.
    #[error("{base} does not answer as a bootcast server: {reason}")]
    Garbled {
        /// Base URL of the server.
        base: String,
        /// Part of the answer that breaks the protocol.
        reason: String,
    },
}

impl ControlError {
    /// Returns whether the server has no such file or member.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Returns whether the same request may succeed later, because the server is away or
    /// overloaded.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Garbled { .. } | Self::Unreadable { .. } => false,
        }
    }

    /// Returns the pause that the server requests before another attempt, up to the longest that a
    /// client obeys.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => (*retry_after).min(RETRY_AFTER_MAX),
            Self::Unreachable { .. } | Self::Garbled { .. } | Self::Unreadable { .. } => {
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_requests_are_temporary_and_their_pause_is_obeyed_up_to_a_limit() {
        let refused = |status, seconds| ControlError::Refused {
            status,
            message: "too many requests".into(),
            retry_after: Duration::from_secs(seconds),
        };
        assert!(refused(429, 1).is_temporary() && refused(503, 1).is_temporary());
        assert!(!refused(403, 1).is_temporary());
        assert_eq!(refused(429, 7).retry_after(), Duration::from_secs(7));
        assert_eq!(refused(503, 9999).retry_after(), RETRY_AFTER_MAX);
        let unreachable = ControlError::Unreachable {
            base: "http://head".into(),
            reason: "refused".into(),
            is_connected: false,
        };
        assert_eq!(unreachable.retry_after(), Duration::ZERO);
    }
}
