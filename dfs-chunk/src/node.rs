//! What this daemon is: nothing yet, or a node of a cluster with its store; and whether it may take writes, which it may
//! only while the metadata server has been heard of within the session timeout. After that others may have been given its
//! place, so it serves reads of what is sealed and nothing else.

use std::sync::Arc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dfs_proto::{ClusterId, Code, Failure, NodeId};

use crate::store::Store;

/// A daemon's place in a cluster.
pub(crate) struct Member {
    /// The cluster.
    pub(crate) cluster: ClusterId,
    /// This node's id in it.
    pub(crate) node: NodeId,
    /// What it stores.
    pub(crate) store: Arc<Store>,
}

/// This daemon.
#[derive(Default)]
pub(crate) struct Node {
    member: OnceLock<Member>,
    /// Until when writes are taken.
    writable_until: Mutex<Option<Instant>>,
}

impl Node {
    /// Enters the cluster; once in a process's life.
    pub(crate) fn become_member(&self, member: Member) {
        if self.member.set(member).is_err() {
            unreachable!("a daemon becomes a member once");
        }
    }

    /// Its place, or UNAVAILABLE before the first join.
    pub(crate) fn member(&self) -> Result<&Member, Failure> {
        self.member.get().ok_or_else(|| {
            Failure::new(Code::Unavailable, "this chunk daemon has not joined its cluster yet")
        })
    }

    /// The metadata server has answered a request that was sent at `sent`.
    pub(crate) fn heard(&self, sent: Instant, timeout: Duration) {
        let mut until = self.writable_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Some(sent + timeout));
    }

    /// Whether writes may be taken now. UNAVAILABLE.
    pub(crate) fn check_may_write(&self, now: Instant) -> Result<(), Failure> {
        match *self.writable_until.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(until) if now < until => Ok(()),
            _ => Err(Failure::new(
                Code::Unavailable,
                "this node has not heard from the metadata server for too long and takes no writes until it does",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_end_when_the_server_is_not_heard_of() {
        let node = Node::default();
        let start = Instant::now();
        let timeout = Duration::from_secs(20);
        assert_eq!(node.check_may_write(start).unwrap_err().code, Code::Unavailable);
        node.heard(start, timeout);
        assert!(node.check_may_write(start + Duration::from_secs(19)).is_ok());
        assert!(node.check_may_write(start + timeout).is_err());
        node.heard(start + Duration::from_secs(5), timeout);
        node.heard(start, timeout);
        assert!(
            node.check_may_write(start + timeout).is_ok(),
            "an answer that comes late takes nothing back"
        );
    }
}
