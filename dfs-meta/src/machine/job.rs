//! What waits in the machine's queue, and the answers that wait for their group to be durable.

use std::time::Duration;

use dfs_proto::Failure;
use dfs_proto::meta::{Reply, Request};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::live::Live;
use crate::ops::{Internal, Progress};

/// One thing for the machine to do. Its permit is given back when it is answered.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Looks at the state in memory; is given the machine's uptime too.
pub(super) type Look = Box<dyn FnOnce(&mut Live, Duration) + Send>;

/// Kinds of work.
pub(super) enum Work {
    /// A request from outside.
    Call(Box<Request>, oneshot::Sender<Box<Reply>>),
    /// A piece of background work.
    Internal(Internal, oneshot::Sender<Result<Progress, Failure>>),
    /// A look at the state in memory, which is never durable.
    Inspect(Look),
}

/// An answer that is ready to leave as soon as what it rests on is durable.
pub(super) struct Answer {
    pub(super) content: Content,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// What is answered to whom.
pub(super) enum Content {
    Reply(Box<Reply>, oneshot::Sender<Box<Reply>>),
    Progress(Result<Progress, Failure>, oneshot::Sender<Result<Progress, Failure>>),
}

impl Answer {
    /// Lets it go. Whoever asked may have given up waiting, which is no concern of the machine's.
    pub(super) fn send(self) {
        match self.content {
            Content::Reply(reply, to) => drop(to.send(reply)),
            Content::Progress(progress, to) => drop(to.send(progress)),
        }
        drop(self.permit);
    }
}
