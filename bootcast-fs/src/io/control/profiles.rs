//! Requests for profiles. docs/PROTOCOL.md, "Profile".

use bootcast_proto::manifest::ContentId;
use bootcast_proto::{Profile, RemotePath};

use super::{ANSWER_LIMIT, ANSWER_TIMEOUT, Control, ControlError};

impl Control {
    /// Fetches what the server has learned of a file's content: which leaves readers want first.
    pub async fn profile(&self, path: &RemotePath) -> Result<(ContentId, Profile), ControlError> {
        let response = self.send(self.get("profile", path).timeout(ANSWER_TIMEOUT)).await?;
        let text = self.text(response, ANSWER_LIMIT).await?;
        Profile::parse(&text).map_err(|error| self.garbled(&error))
    }
}
