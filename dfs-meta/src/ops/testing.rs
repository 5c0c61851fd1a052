//! A state machine small enough for tests of single operations: one store, one live state, clocks by hand.
//!
//! ```ignore
//! on_every_store(|bench| {
//!     bench.run(op).unwrap();
//! });
//! ```

use std::time::Duration;

mod cluster;

pub(crate) use cluster::{CAPACITY, answer};

use super::*;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::store::memory::MemoryStore;
use dfs_proto::Class;

/// State for tests.
pub(crate) struct Bench {
    pub(crate) store: Box<dyn Store>,
    pub(crate) live: Live,
    pub(crate) now: Timestamp,
    pub(crate) uptime: Duration,
    pub(crate) settings: Settings,
}

/// Runs a test over a fresh filesystem on each engine.
pub(crate) fn on_every_store(test: impl Fn(&mut Bench)) {
    test(&mut Bench::new());
    let directory = tempfile::tempdir().expect("make a temporary directory");
    let store = EmbeddedStore::open(directory.path(), 1 << 20).expect("open a fresh store");
    test(&mut Bench::over(Box::new(store)));
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
        inode::put_root(&mut tx, &Class::default(), now);
        let (writes, _) = tx.finish();
        store.commit(&writes, &mut || ()).expect("commit the root directory");
        let (live, settings) = (Live::default(), Settings::default());
        Self { store, live, now, uptime: Duration::ZERO, settings }
    }

    /// Runs one operation as session 1, a second after the last one, and commits it.
    pub(crate) fn run(&mut self, op: request::Op) -> Result<reply::Result, Failure> {
        self.run_as(SessionId(1), op)
    }

    /// The same as another session.
    pub(crate) fn run_as(&mut self, session: SessionId, op: request::Op) -> Result<reply::Result, Failure> {
        self.with(session, |cx| super::run(cx, &op))
    }

    /// Runs one internal operation.
    pub(crate) fn run_internal(&mut self, op: Internal) -> Result<Progress, Failure> {
        self.with(SessionId(0), |cx| super::run_internal(cx, op))
    }

    /// Runs internal operations of one kind until nothing is left to do.
    pub(crate) fn finish(&mut self, op: Internal) {
        while self.run_internal(op).expect("run an internal operation") == Progress::More {}
    }

    /// Looks at the state; what is written is committed.
    pub(crate) fn with<T>(
        &mut self,
        session: SessionId,
        run: impl FnOnce(&mut Context<'_, '_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.now.seconds += 1;
        self.uptime += Duration::from_secs(1);
        let mut tx = Transaction::new(&*self.store, Vec::new());
        let mut cx = Context {
            tx: &mut tx,
            live: &mut self.live,
            now: self.now,
            uptime: self.uptime,
            session,
            settings: &self.settings,
        };
        let result = run(&mut cx)?;
        let (writes, _) = tx.finish();
        self.store.commit(&writes, &mut || ()).expect("commit an operation");
        Ok(result)
    }
}
