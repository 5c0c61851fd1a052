//! Deleting, on a task of its own: unlinking a thousand large files takes seconds, and no heartbeat may wait for it.
//!
//! What was deleted is told until a heartbeat with it is answered. Nothing is kept over a restart: the metadata server
//! orders again what was not confirmed.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfs_proto::ChunkId;
use tokio::sync::Notify;

use crate::store::Store;

/// Orders taken at most; the others are given again.
const MAX_ORDERS: usize = 16_384;
/// Confirmations in one heartbeat.
const MAX_CONFIRMED: usize = 4096;
/// Files unlinked before another task gets the thread.
const BATCH: usize = 32;

/// Orders and what became of them.
#[derive(Default)]
pub(super) struct Deletions {
    state: Mutex<State>,
    /// Rings when an order comes.
    ordered: Notify,
    /// Rings when the last order is done.
    all_done: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<ChunkId>,
    /// Waiting, being deleted, or deleted and not told yet: what need not be ordered again.
    known: BTreeSet<ChunkId>,
    deleted: BTreeSet<ChunkId>,
}

impl State {
    /// Whether every order is carried out.
    fn is_idle(&self) -> bool {
        self.known.len() == self.deleted.len()
    }
}

impl Deletions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes orders.
    pub(super) fn order(&self, chunks: impl IntoIterator<Item = ChunkId>) {
        let mut state = self.state();
        for chunk in chunks {
            if state.known.len() < MAX_ORDERS && state.known.insert(chunk) {
                state.waiting.push_back(chunk);
            }
        }
        drop(state);
        self.ordered.notify_one();
    }

    /// What to confirm in the next heartbeat.
    pub(super) fn deleted(&self) -> Vec<ChunkId> {
        self.state().deleted.iter().take(MAX_CONFIRMED).copied().collect()
    }

    /// These have been confirmed.
    pub(super) fn told(&self, chunks: &[ChunkId]) {
        let mut state = self.state();
        for chunk in chunks {
            state.deleted.remove(chunk);
            state.known.remove(chunk);
        }
    }

    /// Returns when nothing is waiting.
    pub(super) async fn wait(&self) {
        loop {
            let done = self.all_done.notified();
            if self.state().is_idle() {
                return;
            }
            done.await;
        }
    }

    /// Deletes what is ordered, for ever.
    pub(super) async fn run(self: Arc<Self>, store: Arc<Store>) {
        loop {
            let batch: Vec<_> = {
                let mut state = self.state();
                let count = state.waiting.len().min(BATCH);
                state.waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                self.all_done.notify_waiters();
                self.ordered.notified().await;
                continue;
            }
            let (this, store) = (self.clone(), store.clone());
            let deleting = tokio::task::spawn_blocking(move || {
                for chunk in batch {
                    let result = store.delete(chunk);
                    let mut state = this.state();
                    match result {
                        Ok(()) => {
                            state.deleted.insert(chunk);
                        }
                        Err(failure) => {
                            // Not confirmed, so it is ordered again.
                            state.known.remove(&chunk);
                            tracing::warn!(%chunk, %failure, "a chunk could not be deleted");
                        }
                    }
                }
            });
            if deleting.await.is_err() {
                tracing::error!("the thread that deletes has ended by a panic");
            }
        }
    }
}
