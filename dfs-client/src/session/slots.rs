//! The numbered slots of one session: at most one changing request on each at a time.
//!
//! Guarantees that numbers on a slot only grow, so that a request that comes late can never be taken for a new one.
//! Never hands a slot out twice.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The free slots of a session.
pub(super) struct Slots {
    permits: Arc<Semaphore>,
    /// Last in, first out: a session that is mostly idle uses few slots.
    free: Mutex<Vec<Slot>>,
    count: u32,
}

struct Slot {
    index: u32,
    number: u64,
}

impl Slots {
    pub(super) fn new(count: u32) -> Arc<Self> {
        let free = (0..count).rev().map(|index| Slot { index, number: 0 }).collect();
        Arc::new(Self { permits: Arc::new(Semaphore::new(count as usize)), free: Mutex::new(free), count })
    }

    /// Waits for a free slot.
    pub(super) async fn take(self: &Arc<Self>) -> SlotLease {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let slot = self.free.lock().expect("no panic under this lock").pop();
        let slot = slot.expect("a permit stands for a free slot");
        SlotLease { slots: self.clone(), slot, _permit: permit }
    }

    /// Waits until no request is under way.
    pub(super) async fn idle(&self) {
        let _all = self.permits.acquire_many(self.count).await.expect("the semaphore is never closed");
    }
}

/// One slot, for one request until it is settled.
pub(super) struct SlotLease {
    slots: Arc<Slots>,
    slot: Slot,
    _permit: OwnedSemaphorePermit,
}

impl SlotLease {
    pub(super) fn index(&self) -> u32 {
        self.slot.index
    }

    /// A number never used before on this slot.
    pub(super) fn next_number(&mut self) -> u64 {
        self.slot.number += 1;
        self.slot.number
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        let slot = Slot { index: self.slot.index, number: self.slot.number };
        // Before the permit is given back: fields are dropped after this.
        self.slots.free.lock().expect("no panic under this lock").push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_comes_back_with_its_number_and_is_never_shared() {
        let slots = Slots::new(2);
        let mut first = slots.take().await;
        assert_eq!((first.index(), first.next_number(), first.next_number()), (0, 1, 2));
        let second = slots.take().await;
        assert_eq!(second.index(), 1);
        let third = slots.take();
        tokio::pin!(third);
        assert!(futures::poll!(&mut third).is_pending(), "two slots are two requests");
        drop(first);
        let mut third = third.await;
        assert_eq!((third.index(), third.next_number()), (0, 3));
    }
}
