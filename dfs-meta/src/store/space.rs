//! Space set aside on the store's disk, so that deleting works when nothing else does: checked after every commit, and
//! every now and then for room that others freed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Store, StoreError};

/// The reserve of one store.
pub struct Space {
    store: Arc<dyn Store>,
    reserve_bytes: u64,
    nearly_full: AtomicBool,
}

impl Space {
    /// Sets `reserve_bytes` aside on the disk of `store`, where there is so much.
    pub fn set_aside(store: Arc<dyn Store>, reserve_bytes: u64) -> Result<Self, StoreError> {
        let space = Self { store, reserve_bytes, nearly_full: AtomicBool::new(false) };
        space.check()?;
        Ok(space)
    }

    /// Whether the reserve is all that is left: then nothing may be accepted but what frees space.
    pub fn is_nearly_full(&self) -> bool {
        self.nearly_full.load(Ordering::Relaxed)
    }

    /// Fills the reserve up, and finds out whether it is all that is left. Blocks; quick where nothing is to be done.
    pub fn check(&self) -> Result<(), StoreError> {
        let full = !self.store.reserve(self.reserve_bytes)?;
        if self.nearly_full.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::error!(
                    reserve_bytes = self.reserve_bytes,
                    "the metadata store's disk is nearly full: only what frees space is accepted"
                ),
                false => tracing::info!("the metadata store's disk has room again"),
            }
        }
        Ok(())
    }
}
