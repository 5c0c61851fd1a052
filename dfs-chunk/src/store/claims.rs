//! One writer a shard: who comes second waits until the first is done, and then finds the shard here or not.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dfs_proto::{Code, Failure};
use tokio::sync::Notify;

use super::shard_file::ShardKey;

/// How long the second one waits.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The shards being written.
#[derive(Default)]
pub(super) struct Claims {
    claimed: Mutex<HashSet<ShardKey>>,
    freed: Notify,
}

/// The right to write a shard, until dropped.
pub(super) struct Claim {
    claims: Arc<Claims>,
    key: ShardKey,
}

impl Claims {
    /// Waits for the shard's turn. BUSY.
    pub(super) async fn claim(self: &Arc<Self>, key: ShardKey) -> Result<Claim, Failure> {
        let wait = async {
            loop {
                let freed = self.freed.notified();
                if self.claimed().insert(key) {
                    return Claim { claims: self.clone(), key };
                }
                freed.await;
            }
        };
        tokio::time::timeout(MAX_WAIT, wait).await.map_err(|_| {
            Failure::new(Code::Busy, format!("{key} is being written by another request: try again later"))
        })
    }

    fn claimed(&self) -> MutexGuard<'_, HashSet<ShardKey>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.claimed().remove(&self.key);
        self.claims.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::{ChunkId, ShardIndex};

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let claims = Arc::new(Claims::default());
        let key = ShardKey { chunk: ChunkId(1), index: ShardIndex(0) };
        let first = claims.claim(key).await.unwrap();
        let other = claims.claim(ShardKey { index: ShardIndex(1), ..key }).await.unwrap();
        let mut second = std::pin::pin!(claims.claim(key));
        tokio::select! {
            biased;
            _ = &mut second => panic!("two claims on one shard"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        drop(other);
        drop(first);
        assert!(second.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let claims = Arc::new(Claims::default());
        let key = ShardKey { chunk: ChunkId(1), index: ShardIndex(0) };
        let _first = claims.claim(key).await.unwrap();
        assert_eq!(claims.claim(key).await.err().unwrap().code, Code::Busy);
    }
}
