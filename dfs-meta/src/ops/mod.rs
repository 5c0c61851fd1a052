//! One file per operation. Each is a function `run(context, request) -> reply` of (state, request, session, time): no
//! clock, no randomness, no I/O but through the context's transaction, so that it can be tested against a model and
//! replicated by its log.
//!
//! Adding one: a message in `proto/meta.proto`, a file here with its `run` and its tests, a line in [`run`].

mod close_session;
pub mod counters;
mod get_attr;
mod heartbeat;
pub mod inode;
mod lookup;
mod open_session;
mod reclaim;

use std::time::Duration;

use dfs_proto::meta::{reply, request};
use dfs_proto::{ClusterId, Code, Failure, SessionId, Timestamp, limits};

use crate::live::Live;
use crate::machine::transaction::Transaction;

/// What an operation may look at and change.
pub struct Context<'a, 'b> {
    /// The durable state.
    pub tx: &'a mut Transaction<'b>,
    /// The state in memory. Change it only when nothing can fail any more.
    pub live: &'a mut Live,
    /// The time of the request, by the wall clock; never before that of an earlier one.
    pub now: Timestamp,
    /// The same by a clock that nobody sets: since this server started. For what was heard of when.
    pub uptime: Duration,
    /// Who asks; 0: nobody with a session.
    pub session: SessionId,
    /// Settings.
    pub settings: &'a Settings,
}

/// Settings that operations depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose metadata this is.
    pub cluster: ClusterId,
    /// A session that is not heard of for so long is fenced.
    pub session_timeout: Duration,
    /// How often sessions and chunk daemons are to say that they live.
    pub heartbeat: Duration,
    /// A chunk daemon is suspect after so long without a heartbeat.
    pub node_suspect_after: Duration,
    /// A chunk daemon is down after so long without a heartbeat.
    pub node_dead_after: Duration,
    /// How long a chunk that nothing points to is kept.
    pub garbage_grace: Duration,
    /// How long a planned chunk may wait for its commit.
    pub plan_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: ClusterId([0; 16]),
            session_timeout: limits::SESSION_TIMEOUT,
            heartbeat: limits::HEARTBEAT,
            node_suspect_after: limits::NODE_SUSPECT_AFTER,
            node_dead_after: limits::SESSION_TIMEOUT,
            garbage_grace: Duration::from_secs(15 * 60),
            plan_lifetime: limits::PLAN_LIFETIME,
        }
    }
}

/// What the server asks of itself: background work in bounded pieces, run like anybody's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Internal {
    /// Fence sessions that are not heard of any more.
    ExpireSessions,
    /// Take over the unnamed inodes of sessions that are over.
    AdoptOrphans,
}

/// How an internal operation left its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do now.
    Idle,
    /// There may be more: ask again soon.
    More,
}

/// Runs one internal operation.
pub fn run_internal(cx: &mut Context<'_, '_>, op: Internal) -> Result<Progress, Failure> {
    match op {
        Internal::ExpireSessions => close_session::expire(cx),
        Internal::AdoptOrphans => close_session::adopt_orphans(cx),
    }
}

/// Runs one operation.
pub fn run(cx: &mut Context<'_, '_>, op: &request::Op) -> Result<reply::Result, Failure> {
    use request::Op;
    match op {
        Op::OpenSession(request) => open_session::run(cx, request).map(reply::Result::SessionOpened),
        Op::CloseSession(request) => close_session::run(cx, request).map(reply::Result::Done),
        Op::Heartbeat(request) => heartbeat::run(cx, request).map(reply::Result::Done),
        Op::Reclaim(request) => reclaim::run(cx, request).map(reply::Result::Reclaimed),
        Op::Lookup(request) => lookup::run(cx, request).map(reply::Result::Attr),
        Op::GetAttr(request) => get_attr::run(cx, request).map(reply::Result::Attr),
        _ => Err(Failure::new(Code::NotSupported, "this server does not know the operation")),
    }
}

#[cfg(test)]
pub(crate) mod testing;
