//! One file per operation. Each is a function `run(context, request) -> reply` of (state, request, session, time): no
//! clock, no randomness, no I/O but through the context's transaction, so that it can be tested against a model and
//! replicated by its log.
//!
//! Adding one: a message in `proto/meta.proto`, a file here with its `run` and its tests, a line in [`run`].

mod acl;
mod allocate;
pub mod check;
mod check_class;
mod close;
mod close_session;
mod commit;
mod copy_range;
pub mod counters;
mod create;
mod create_key;
mod data_keys;
mod directory;
pub mod extents;
mod fallocate;
pub mod garbage;
mod get_attr;
mod get_data_key;
mod get_lock;
mod get_xattr;
mod heartbeat;
pub mod inode;
mod link;
mod list_chunks;
mod list_data_keys;
mod list_keys;
mod list_xattr;
mod lookup;
mod node_heartbeat;
mod node_inventory;
mod node_join;
mod open;
mod open_session;
mod orphan;
mod path_of;
pub mod plan;
mod read_dir;
mod read_link;
mod reclaim;
mod remove_key;
mod remove_xattr;
mod rename;
mod replace;
mod report_shard;
mod rmdir;
mod rotate_key;
mod seek;
mod set_attr;
mod set_lock;
mod set_xattr;
mod shard_health;
mod stat_fs;
mod unlink;
mod xattrs;

use std::time::Duration;

use dfs_proto::meta::{reply, request};
use dfs_proto::{ClusterId, Code, Failure, Ino, SessionId, Timestamp, limits};

use crate::cluster::Policy;
use crate::live::Live;
use crate::live::nodes::Patience;
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

impl Context<'_, '_> {
    /// The time of the request in ms since 1970, as deadlines in the store are.
    pub fn now_ms(&self) -> u64 {
        let seconds = u64::try_from(self.now.seconds).unwrap_or(0);
        seconds.saturating_mul(1000).saturating_add(u64::from(self.now.nanos / 1_000_000))
    }
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
    /// How often each chunk daemon is asked for the full list of its shards, beside when it joins.
    pub inventory_interval: Duration,
    /// Which nodes get a chunk's shards.
    pub placement: Policy,
    /// Put a chunk's first shard on the writer's host when it has a node.
    pub place_near_writer: bool,
}

impl Settings {
    /// When a chunk daemon counts as what.
    pub fn patience(&self) -> Patience {
        Patience { suspect_after: self.node_suspect_after, down_after: self.node_dead_after }
    }
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
            inventory_interval: Duration::from_secs(6 * 3600),
            placement: Policy::Spread,
            place_near_writer: false,
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
    /// Remove chunks that nothing points to and whose time has come.
    CollectGarbage,
    /// Destroy unnamed inodes that nobody has open any more.
    PurgeOrphans,
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
        Internal::CollectGarbage => garbage::collect(cx),
        Internal::PurgeOrphans => orphan::purge(cx),
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
        Op::Plan(request) => plan::run(cx, request).map(reply::Result::Plan),
        Op::Allocate(request) => allocate::run(cx, request).map(reply::Result::Allocated),
        Op::Replace(request) => replace::run(cx, request).map(reply::Result::Allocated),
        Op::Commit(request) => commit::run(cx, request).map(reply::Result::Committed),
        Op::Fallocate(request) => fallocate::run(cx, request),
        Op::CopyRange(request) => copy_range::run(cx, request).map(reply::Result::Copied),
        Op::Seek(request) => seek::run(cx, request).map(reply::Result::Offset),
        Op::GetLock(request) => get_lock::run(cx, request).map(reply::Result::LockState),
        Op::SetLock(request) => set_lock::run(cx, request),
        Op::NodeJoin(request) => node_join::run(cx, request).map(reply::Result::NodeJoined),
        Op::NodeHeartbeat(request) => node_heartbeat::run(cx, request).map(reply::Result::NodeOrders),
        Op::NodeInventory(request) => node_inventory::run(cx, request).map(reply::Result::Done),
        Op::ReportShard(request) => report_shard::run(cx, request).map(reply::Result::Done),
        Op::SetAttr(request) => set_attr::run(cx, request).map(reply::Result::Attr),
        Op::Create(request) => create::run(cx, request).map(reply::Result::Attr),
        Op::Link(request) => link::run(cx, request).map(reply::Result::Attr),
        Op::Unlink(request) => unlink::run(cx, request).map(reply::Result::Done),
        Op::Rmdir(request) => rmdir::run(cx, request).map(reply::Result::Done),
        Op::Rename(request) => rename::run(cx, request).map(reply::Result::Done),
        Op::ReadDir(request) => read_dir::run(cx, request).map(reply::Result::DirectoryPage),
        Op::ReadLink(request) => read_link::run(cx, request).map(reply::Result::Value),
        Op::GetXattr(request) => get_xattr::run(cx, request).map(reply::Result::Value),
        Op::ListXattr(request) => list_xattr::run(cx, request).map(reply::Result::Names),
        Op::SetXattr(request) => set_xattr::run(cx, request).map(reply::Result::Attr),
        Op::RemoveXattr(request) => remove_xattr::run(cx, request).map(reply::Result::Attr),
        Op::Open(request) => open::run(cx, request).map(reply::Result::Opened),
        Op::Close(request) => close::run(cx, request).map(reply::Result::Done),
        Op::StatFs(_) => stat_fs::run(cx).map(reply::Result::FsStats),
        Op::PathOf(request) => path_of::run(cx, request).map(reply::Result::Paths),
        Op::CheckClass(request) => check_class::run(cx, request).map(reply::Result::Done),
        Op::ListChunks(request) => list_chunks::run(cx, request).map(reply::Result::ChunkPage),
        Op::CreateKey(request) => create_key::run(cx, request).map(reply::Result::Done),
        Op::ListKeys(_) => list_keys::run(cx).map(reply::Result::Keys),
        Op::RemoveKey(request) => remove_key::run(cx, request).map(reply::Result::Done),
        Op::RotateKey(request) => rotate_key::run(cx, request).map(reply::Result::Done),
        Op::GetDataKey(request) => get_data_key::run(cx, request).map(reply::Result::DataKeys),
        Op::ListDataKeys(request) => list_data_keys::run(cx, request).map(reply::Result::DataKeys),
        _ => Err(Failure::new(Code::NotSupported, "this server does not know the operation")),
    }
}

/// Before a stored answer is given once more: brings back what the operation had done to the state in memory.
pub fn repeat(cx: &mut Context<'_, '_>, op: &request::Op, answer: &reply::Result) -> Result<(), Failure> {
    match (op, answer) {
        (request::Op::Create(create), reply::Result::Attr(attr)) if create.open => {
            open::again(cx, Ino(attr.ino))
        }
        (request::Op::Open(request), reply::Result::Opened(_)) => open::again(cx, Ino(request.ino)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod shorthand;
#[cfg(test)]
pub(crate) mod testing;
