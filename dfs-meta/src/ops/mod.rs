//! One file per operation. Each is a function `run(context, request) -> reply` of (state, request, session, time): no
//! clock, no randomness, no I/O but through the context's transaction, so that it can be tested against a model and
//! replicated by its log.
//!
//! Adding one: a message in `proto/meta.proto`, a file here with its `run` and its tests, a line in [`run`].

mod get_attr;
pub mod inode;
mod lookup;

use std::time::Duration;

use dfs_proto::meta::{reply, request};
use dfs_proto::{Code, Failure, SessionId, Timestamp, limits};

use crate::live::Live;
use crate::machine::transaction::Transaction;

/// What an operation may look at and change.
pub struct Context<'a, 'b> {
    /// The durable state.
    pub tx: &'a mut Transaction<'b>,
    /// The state in memory. Change it only when nothing can fail any more.
    pub live: &'a mut Live,
    /// The time of the request.
    pub now: Timestamp,
    /// Who asks; 0: nobody with a session.
    pub session: SessionId,
    /// Settings.
    pub settings: &'a Settings,
}

/// Settings that operations depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a chunk that nothing points to is kept.
    pub garbage_grace: Duration,
    /// How long a planned chunk may wait for its commit.
    pub plan_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { garbage_grace: Duration::from_secs(15 * 60), plan_lifetime: limits::PLAN_LIFETIME }
    }
}

/// Runs one operation.
pub fn run(cx: &mut Context<'_, '_>, op: &request::Op) -> Result<reply::Result, Failure> {
    use request::Op;
    match op {
        Op::Lookup(request) => lookup::run(cx, request).map(reply::Result::Attr),
        Op::GetAttr(request) => get_attr::run(cx, request).map(reply::Result::Attr),
        _ => Err(Failure::new(Code::NotSupported, "this server does not know the operation")),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A state machine small enough for tests of single operations: one store, one live state, a clock by hand.

    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    /// State for tests.
    pub(crate) struct Bench {
        pub(crate) store: Box<dyn Store>,
        pub(crate) live: Live,
        pub(crate) now: Timestamp,
        pub(crate) settings: Settings,
    }

    impl Bench {
        /// A fresh filesystem in memory with its root directory.
        pub(crate) fn new() -> Self {
            Self::over(Box::new(MemoryStore::default()))
        }

        /// A fresh filesystem in `store`.
        pub(crate) fn over(store: Box<dyn Store>) -> Self {
            let now = Timestamp { seconds: 1_000_000, nanos: 0 };
            let mut tx = Transaction::new(&*store, Vec::new());
            inode::put_root(&mut tx, now);
            let (writes, _) = tx.finish();
            store.commit(&writes).expect("commit the root directory");
            Self { store, live: Live::default(), now, settings: Settings::default() }
        }

        /// Runs one operation as session 1, a second after the last one, and commits it.
        pub(crate) fn run(&mut self, op: request::Op) -> Result<reply::Result, Failure> {
            self.run_as(SessionId(1), op)
        }

        /// The same as another session.
        pub(crate) fn run_as(
            &mut self,
            session: SessionId,
            op: request::Op,
        ) -> Result<reply::Result, Failure> {
            self.now.seconds += 1;
            let mut tx = Transaction::new(&*self.store, Vec::new());
            let mut cx = Context {
                tx: &mut tx,
                live: &mut self.live,
                now: self.now,
                session,
                settings: &self.settings,
            };
            let result = super::run(&mut cx, &op)?;
            let (writes, _) = tx.finish();
            self.store.commit(&writes).expect("commit an operation");
            Ok(result)
        }
    }
}
