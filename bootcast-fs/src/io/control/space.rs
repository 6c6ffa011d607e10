//! Capacity of the server's file system, as the answers about the mounted directory state it.

use std::sync::{Arc, Mutex};

use bootcast_proto::RemotePath;
use bootcast_proto::space::{HEADER_SPACE, Space};
use reqwest::Response;
use reqwest::header::HeaderName;

use super::Control;
use super::answers::header;
use crate::panics::lock;

/// The latest capacity, shared by all clones of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct LatestSpace(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Directory whose file system counts; `None` for none.
    directory: Option<RemotePath>,
    space: Option<Space>,
}

impl LatestSpace {
    /// Takes the capacity from an answer about `path`, if it is the directory that counts.
    pub(super) fn record(&self, path: &RemotePath, response: &Response) {
        let mut state = lock(&self.0);
        if state.directory.as_ref() != Some(path) {
            return;
        }
        let stated = header(response, HeaderName::from_static(HEADER_SPACE));
        if let Some(space) = stated.and_then(|text| Space::decode(&text)) {
            state.space = Some(space);
        }
    }
}

impl Control {
    /// Sets the directory whose file system [`Self::space`] describes.
    pub fn watch_space_of(&self, directory: &RemotePath) {
        let mut state = lock(&self.space.0);
        if state.directory.as_ref() != Some(directory) {
            *state = State { directory: Some(directory.clone()), space: None };
        }
    }

    /// Returns the capacity that the server stated last; `None` if it never did.
    pub fn space(&self) -> Option<Space> {
        lock(&self.space.0).space
    }
}
