//! The session with the metadata server: calls, numbered slots, heartbeats, reclaim after a restart.
//!
//! Everything above asks the metadata server through [`MetaCalls`] alone, so that tests can put a server of their own
//! behind it.

use dfs_proto::Failure;
use dfs_proto::meta::{reply, request};
use futures::future::BoxFuture;

/// What the library asks of the metadata server.
///
/// Failed operations come back as the server's own [`Failure`]; an answer of another kind than the operation has is
/// the caller's to refuse.
pub trait MetaCalls: Send + Sync + 'static {
    /// A request that changes nothing durable. Retried until it is answered or the timeout is over; dropping the
    /// future gives the request up.
    fn read(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>>;

    /// A changing request: numbered, so that it takes effect once however often it is sent. It goes on in a task of
    /// its own: when the future is dropped the request is still settled, only nobody learns how.
    fn change(&self, op: request::Op) -> BoxFuture<'_, Result<reply::Result, Failure>>;
}
