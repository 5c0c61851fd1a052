//! Telling the kernel to drop what it caches of an inode.
//!
//! Attributes are dropped at once: that takes no lock in the kernel. Dropping pages waits for their locks, which a read
//! or a write in flight holds, so it happens on a blocking thread and never on one that serves requests.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_proto::Ino;
use fuser::{INodeNo, Notifier};
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::convert::NodeIds;

/// Pages are dropped of so many inodes at the same time.
const MAX_AT_ONCE: usize = 16;
/// Who waits for pages to be dropped goes on after so long: a read whose servers are away may hold them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Offsets of FUSE_NOTIFY_INVAL_INODE: pages from there on go too, and none with a negative one.
const ATTRIBUTES_ALONE: i64 = -1;
const FROM_THE_START: i64 = 0;

/// The kernel's cache of one mount; knows the kernel only once the mount is there, and before that nothing is cached.
#[derive(Clone, Debug)]
pub(crate) struct KernelCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kernel: OnceLock<(Notifier, NodeIds)>,
    at_once: Arc<Semaphore>,
}

impl Default for KernelCache {
    fn default() -> Self {
        let shared = Shared { kernel: OnceLock::new(), at_once: Arc::new(Semaphore::new(MAX_AT_ONCE)) };
        Self { shared: Arc::new(shared) }
    }
}

impl KernelCache {
    /// Names the kernel's side, once.
    pub(super) fn connect(&self, notifier: Notifier, nodes: NodeIds) {
        assert!(self.shared.kernel.set((notifier, nodes)).is_ok(), "a mount has one kernel");
    }

    /// Drops attributes and ACLs of an inode. Takes no lock in the kernel, so that any task may call it; never a thread
    /// that reads requests.
    pub(super) fn forget_attributes(&self, ino: Ino) {
        if let Some((notifier, nodes)) = self.shared.kernel.get() {
            drop_cached(notifier, nodes.node_of(ino), ATTRIBUTES_ALONE);
        }
    }

    /// Drops attributes, ACLs and pages of an inode; resolves when they are gone.
    pub(crate) fn invalidate(&self, ino: Ino) -> BoxFuture<'static, ()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let Some((notifier, nodes)) = shared.kernel.get() else { return };
            let node = nodes.node_of(ino);
            drop_cached(notifier, node, ATTRIBUTES_ALONE);
            let notifier = notifier.clone();
            let at_once = shared.at_once.clone();
            let pages = tokio::spawn(async move {
                let _permit = at_once.acquire_owned().await;
                tokio::task::spawn_blocking(move || drop_cached(&notifier, node, FROM_THE_START)).await
            });
            if timeout(PATIENCE, pages).await.is_err() {
                tracing::warn!(%ino, "the kernel still holds pages of an inode that changed: a read of it hangs");
            }
        })
    }
}

fn drop_cached(notifier: &Notifier, node: INodeNo, offset: i64) {
    if let Err(error) = notifier.inval_inode(node, offset, 0) {
        // After the unmount there is nobody to tell, and nothing cached.
        tracing::debug!(node = node.0, "invalidate in the kernel: {error}");
    }
}
