//! Backing files: files that the kernel reads itself.
//!
//! Their numbers belong to the connection, and outlive the process that registered them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::BackingId;
use tracing::debug;

use super::sys;

/// Backing file that is registered with the kernel. Dropping it ends the registration; the kernel
/// keeps the file for those that have it open.
#[derive(Debug)]
pub(super) struct Backing {
    device: Arc<OwnedFd>,
    id: u32,
}

impl Backing {
    /// Registers `file`.
    pub(super) fn register(device: &Arc<OwnedFd>, file: impl AsFd) -> io::Result<Self> {
        let id = BackingId::create_raw(device, file)?;
        Ok(Self { device: device.clone(), id })
    }

    /// Takes over a registration of the previous process.
    pub(super) fn restore(device: &Arc<OwnedFd>, id: u32) -> Self {
        Self { device: device.clone(), id }
    }

    /// Number of the backing file.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // Fails after an unmount, which has ended the registration.
        if let Err(error) = sys::close_backing(&self.device, self.id) {
            debug!(id = self.id, %error, "cannot close a backing file");
        }
    }
}
