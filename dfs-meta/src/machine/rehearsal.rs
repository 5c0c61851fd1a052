//! Rehearsals: where the store is larger than its cache, a request is first run on a thread of a pool, beside the machine
//! and with a state in memory of nobody. Its result and its writes are thrown away; what it reads is in the store's cache
//! afterwards, so that the machine, which runs it for real, need not wait for a disk.

use dfs_proto::meta::Request;
use dfs_proto::meta::request::Op;
use dfs_proto::{SessionId, Timestamp};

use super::transaction::Transaction;
use crate::live::Live;
use crate::ops::{self, Context, Settings};
use crate::store::Store;

/// Whether a rehearsal would read what may not be in the cache: what belongs to files, of which there may be very many.
pub(super) fn is_of_use(request: &Request) -> bool {
    match &request.op {
        None => false,
        Some(op) => match op {
            Op::Lookup(_) | Op::GetAttr(_) | Op::ReadDir(_) | Op::ReadLink(_) | Op::PathOf(_) => true,
            Op::GetXattr(_) | Op::ListXattr(_) | Op::SetXattr(_) | Op::RemoveXattr(_) => true,
            Op::Create(_) | Op::Link(_) | Op::Unlink(_) | Op::Rmdir(_) | Op::Rename(_) => true,
            Op::Open(_) | Op::Close(_) | Op::SetAttr(_) | Op::Plan(_) | Op::Seek(_) => true,
            Op::Commit(_) | Op::CopyRange(_) | Op::Fallocate(_) | Op::ListChunks(_) => true,
            Op::OpenSession(_) | Op::CloseSession(_) | Op::Heartbeat(_) | Op::Reclaim(_) => false,
            Op::StatFs(_) | Op::Status(_) | Op::CheckClass(_) | Op::Allocate(_) | Op::Replace(_) => false,
            Op::GetLock(_) | Op::SetLock(_) => false,
            Op::GetDataKey(_) | Op::ListDataKeys(_) | Op::RotateKey(_) => true,
            Op::CreateKey(_) | Op::ListKeys(_) | Op::RemoveKey(_) => false,
            Op::NodeJoin(_) | Op::NodeHeartbeat(_) | Op::NodeInventory(_) | Op::ReportShard(_) => false,
        },
    }
}

/// Runs a request for what it reads; blocking.
pub(super) fn rehearse(store: &dyn Store, settings: &Settings, request: &Request) {
    let Some(op) = &request.op else { return };
    let mut tx = Transaction::new(store, Vec::new());
    let mut cx = Context {
        tx: &mut tx,
        live: &mut Live::default(),
        now: Timestamp::now(),
        uptime: std::time::Duration::ZERO,
        session: SessionId(request.session),
        settings,
    };
    // Right or wrong, nobody is told.
    drop(ops::run(&mut cx, op));
}
