//! How much memory dirty data may take over the whole mount. Writers take from it before they copy a byte in; a flush
//! gives back what it committed. First come, first served, so that a large write is not starved by small ones.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Below this a single write would not fit.
const LEAST_BUDGET: usize = 4 * 1024 * 1024;
/// Permits are counted in 32 bits.
const MOST_BUDGET: usize = u32::MAX as usize;

/// Bytes that may be dirty.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    limit: usize,
}

/// A part of the budget taken and not yet spent: given back when dropped.
#[derive(Debug)]
pub(super) struct Reserved(OwnedSemaphorePermit);

impl Reserved {
    /// Bytes taken.
    pub(super) fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Spends `bytes` of it, which [`Budget::release`] gives back later; the rest is given back now.
    pub(super) fn spend(mut self, bytes: usize) {
        if let Some(spent) = self.0.split(bytes) {
            spent.forget();
        }
    }
}

impl Budget {
    /// A budget of `limit` bytes (at least 4 MiB, less than 4 GiB).
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.clamp(LEAST_BUDGET, MOST_BUDGET);
        Self { bytes: Arc::new(Semaphore::new(limit)), limit }
    }

    /// Takes `bytes` at once, or `None` when they are not there.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Reserved> {
        match Arc::clone(&self.bytes).try_acquire_many_owned(self.count(bytes)) {
            Ok(permit) => Some(Reserved(permit)),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => None,
        }
    }

    /// Waits for `bytes`.
    pub(super) async fn reserve(&self, bytes: usize) -> Reserved {
        let permit = Arc::clone(&self.bytes).acquire_many_owned(self.count(bytes)).await;
        Reserved(permit.expect("the budget is never closed"))
    }

    /// Gives spent bytes back.
    pub(super) fn release(&self, bytes: usize) {
        self.bytes.add_permits(bytes);
    }

    /// Whether more than half of it is taken: time to write back.
    pub(super) fn is_tight(&self) -> bool {
        self.bytes.available_permits() < self.limit / 2
    }

    fn count(&self, bytes: usize) -> u32 {
        bytes.min(self.limit) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spent_comes_back_only_by_release() {
        let budget = Budget::new(LEAST_BUDGET);
        let reserved = budget.try_reserve(LEAST_BUDGET).expect("all is free");
        assert!(budget.try_reserve(1).is_none());
        reserved.spend(1000);
        assert!(budget.try_reserve(LEAST_BUDGET - 1000).is_some(), "the unspent part came back");
        assert!(budget.try_reserve(LEAST_BUDGET - 999).is_none());
        budget.release(1000);
        assert_eq!(budget.reserve(LEAST_BUDGET).await.bytes(), LEAST_BUDGET);
    }

    #[tokio::test]
    async fn more_than_there_is_waits_for_all_of_it_instead_of_for_ever() {
        let budget = Budget::new(LEAST_BUDGET);
        assert_eq!(budget.reserve(usize::MAX).await.bytes(), LEAST_BUDGET);
    }
}
