//! Which operations need a session, which need a number, and which still run when the store's disk is nearly full.

use dfs_proto::meta::request::Op;

/// What an operation asks of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// It acts for a session.
    pub(super) session: bool,
    /// Doing it twice is not the same as doing it once.
    pub(super) number: bool,
    /// It makes the store larger. The others run even when the disk is nearly full, so that deleting always works.
    pub(super) grows: bool,
}

/// Changes nothing, or nothing that asking again would change once more.
const ANYBODY: Rules = Rules { session: false, number: false, grows: false };
/// Asked for by somebody without a session, and nothing is changed once more by asking again.
const ANYBODY_GROWS: Rules = Rules { session: false, number: false, grows: true };
const SESSION: Rules = Rules { session: true, number: false, grows: false };
const CHANGE: Rules = Rules { session: true, number: true, grows: false };
const GROW: Rules = Rules { session: true, number: true, grows: true };

/// Whether an operation writes nothing to the store and is soon done.
pub(super) fn only_reads(op: &Op) -> bool {
    match op {
        Op::Lookup(_) | Op::GetAttr(_) | Op::ReadLink(_) | Op::GetXattr(_) | Op::ListXattr(_) => true,
        Op::StatFs(_) | Op::Plan(_) | Op::Seek(_) | Op::GetLock(_) => true,
        Op::Open(open) => !open.truncate,
        _ => false,
    }
}

/// The rules for an operation.
pub(super) fn rules(op: &Op) -> Rules {
    match op {
        Op::OpenSession(_) => ANYBODY,
        Op::CloseSession(_) | Op::Heartbeat(_) | Op::Reclaim(_) => SESSION,

        Op::Lookup(_) | Op::GetAttr(_) | Op::ReadDir(_) | Op::ReadLink(_) => ANYBODY,
        Op::GetXattr(_) | Op::ListXattr(_) | Op::StatFs(_) => ANYBODY,
        Op::SetAttr(_) | Op::Unlink(_) | Op::Rmdir(_) | Op::Rename(_) | Op::RemoveXattr(_) => CHANGE,
        Op::Create(_) | Op::Link(_) | Op::SetXattr(_) => GROW,
        Op::Open(open) if open.truncate => CHANGE,
        Op::Open(_) | Op::Close(_) => SESSION,

        Op::Plan(_) | Op::Seek(_) => ANYBODY,
        Op::Allocate(_) | Op::Replace(_) | Op::Commit(_) | Op::CopyRange(_) => GROW,
        Op::Fallocate(_) => CHANGE,

        Op::GetLock(_) | Op::SetLock(_) => SESSION,

        Op::NodeJoin(_) | Op::NodeHeartbeat(_) | Op::NodeInventory(_) | Op::ReportShard(_) => ANYBODY,
        Op::Status(_) | Op::PathOf(_) | Op::CheckClass(_) | Op::ListChunks(_) => ANYBODY,

        Op::ListKeys(_) | Op::GetDataKey(_) | Op::ListDataKeys(_) | Op::RemoveKey(_) => ANYBODY,
        Op::CreateKey(_) | Op::RotateKey(_) => ANYBODY_GROWS,
    }
}
