//! Inherited descriptors, which have no safe form.
#![expect(unsafe_code, reason = "descriptors by number")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that the service manager opened for this process. Must be called once for
/// each.
pub(super) fn inherited(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the environment states that the descriptor is open and meant for this process, and
    // nothing else here uses it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
