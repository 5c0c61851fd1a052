//! The machine's own promises, on a store whose commits wait, fail or pass as the test says.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dfs_proto::meta::{
    CloseSession, Create, GetAttr, Heartbeat, Lookup, OpenSession, Reclaim, Reply, Request, SessionOpened,
    reply, request,
};
use dfs_proto::{Class, ClusterId, Code, Failure, PROTOCOL_VERSION, SessionId, Timestamp, limits};

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{Batch, Pair, keys};

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A store in memory whose commits pass one at a time.
#[derive(Default)]
struct GatedStore {
    inner: MemoryStore,
    gate: Mutex<Gate>,
    moved: Condvar,
}

#[derive(Default)]
struct Gate {
    shut: bool,
    broken: bool,
    full: bool,
    cold: bool,
    /// What is durable stays out of sight.
    hidden: bool,
    /// Keys that were read, and whether by one of the machine's threads.
    read: Vec<(Vec<u8>, bool)>,
    waiting: usize,
    batches: Vec<usize>,
}

impl GatedStore {
    fn set(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.lock().unwrap());
        self.moved.notify_all();
    }

    fn wait(&self, until: impl Fn(&Gate) -> bool) {
        let gate = self.gate.lock().unwrap();
        let (_gate, late) =
            self.moved.wait_timeout_while(gate, Duration::from_secs(10), |gate| !until(gate)).unwrap();
        assert!(!late.timed_out(), "the store was not used as expected");
    }
}

impl Store for GatedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let by_machine = std::thread::current().name().is_some_and(|name| name.starts_with("machine-"));
        self.gate.lock().unwrap().read.push((key.to_vec(), by_machine));
        self.inner.get(key)
    }
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.inner.scan(start, end, limit)
    }
    fn last(&self, start: &[u8], end: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.inner.last(start, end)
    }
    fn commit(&self, batch: &Batch, durable: &mut dyn FnMut()) -> Result<(), StoreError> {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.moved.notify_all();
        let mut gate = self.moved.wait_while(gate, |gate| gate.shut).unwrap();
        gate.waiting -= 1;
        gate.batches.push(batch.len());
        if gate.broken {
            return Err(StoreError::Io("pulled out".into()));
        }
        drop(gate);
        durable();
        let gate = self.gate.lock().unwrap();
        let _gate = self.moved.wait_while(gate, |gate| gate.hidden).unwrap();
        self.inner.commit(batch, &mut || ())
    }
    fn fits_in_memory(&self) -> bool {
        !self.gate.lock().unwrap().cold
    }
    fn reserve(&self, _bytes: u64) -> Result<bool, StoreError> {
        Ok(!self.gate.lock().unwrap().full)
    }
    fn size_bytes(&self) -> Result<u64, StoreError> {
        self.inner.size_bytes()
    }
}

struct Rig {
    store: Arc<GatedStore>,
    machine: Machine,
}

impl Rig {
    fn start(store: Arc<GatedStore>) -> Self {
        let mut settings = Settings::default();
        let live =
            startup::prepare(&*store, &mut settings, CLUSTER, &Class::default(), Timestamp::now()).unwrap();
        let space = Arc::new(Space::set_aside(store.clone(), 1).unwrap());
        let machine = Machine::start(store.clone(), live, settings, space).unwrap();
        Self { store, machine }
    }

    fn fresh() -> Self {
        Self::start(Arc::default())
    }

    async fn call(&self, request: Request) -> Result<reply::Result, Failure> {
        unwrap(self.machine.handle().call(request).await?)
    }

    /// A call that runs on its own.
    fn send(&self, request: Request) -> tokio::task::JoinHandle<Result<reply::Result, Failure>> {
        let handle = self.machine.handle();
        tokio::spawn(async move { unwrap(handle.call(request).await?) })
    }

    /// Waits until the machine has so many unanswered requests.
    async fn queued(&self, requests: usize) {
        while self.machine.handle().permits.available_permits() > PERMITS - requests {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until the store shows everything that was answered.
    async fn settled(&self) {
        let is_in_store = |group: &Arc<core::InFlight>| group.in_store.load(Ordering::Acquire);
        while !self
            .machine
            .handle
            .shared
            .state
            .lock()
            .unwrap()
            .core
            .in_flight
            .as_ref()
            .is_none_or(is_in_store)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn open_session(&self) -> SessionOpened {
        match self.call(open_session()).await.unwrap() {
            reply::Result::SessionOpened(opened) => opened,
            other => panic!("{other:?}"),
        }
    }
}

fn unwrap(reply: Reply) -> Result<reply::Result, Failure> {
    match reply.result.expect("a reply has a result") {
        reply::Result::Error(error) => Err(error.into()),
        result => Ok(result),
    }
}

fn request(op: request::Op) -> Request {
    Request { op: Some(op), ..Request::default() }
}

fn open_session() -> Request {
    request(request::Op::OpenSession(OpenSession { protocol: PROTOCOL_VERSION, ..OpenSession::default() }))
}

/// A changing request: the first one on slot 2.
fn first_on_slot_2(opened: &SessionOpened) -> Request {
    let op = request::Op::Reclaim(Reclaim { open_inos: vec![1, 99], ..Reclaim::default() });
    Request { session: opened.session, epoch: opened.epoch, slot: 2, number: 1, ..request(op) }
}

fn root() -> Request {
    request(request::Op::GetAttr(GetAttr { ino: 1 }))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_wait_for_their_commit_and_reads_of_durable_state_do_not() {
    let rig = Rig::fresh();
    let before = rig.store.gate.lock().unwrap().batches.len();
    rig.store.set(|gate| gate.shut = true);
    let first = rig.send(open_session());
    rig.store.wait(|gate| gate.waiting == 1);
    // While the first group is being committed the next one gathers, and reads go on.
    let others: Vec<_> = (0..10).map(|_| rig.send(open_session())).collect();
    rig.queued(11).await;
    rig.call(root()).await.unwrap();
    assert!(!first.is_finished() && others.iter().all(|call| !call.is_finished()));
    rig.store.set(|gate| gate.shut = false);
    first.await.unwrap().unwrap();
    for call in others {
        call.await.unwrap().unwrap();
    }
    let commits = rig.store.gate.lock().unwrap().batches.len() - before;
    assert_eq!(commits, 2, "what arrives during a commit is one group");
    assert_eq!(rig.machine.stop(), End::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_rests_on_what_is_not_durable_waits_for_it() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    let numbered = first_on_slot_2(&opened);
    rig.store.set(|gate| gate.shut = true);
    let first = rig.send(numbered.clone());
    rig.store.wait(|gate| gate.waiting == 1);
    // The repeat reads the reply that is being committed.
    let repeat = rig.send(numbered.clone());
    rig.queued(2).await;
    let next = rig.send(Request { number: 2, ..numbered.clone() });
    rig.queued(3).await;
    rig.call(root()).await.unwrap();
    assert!(!first.is_finished() && !repeat.is_finished() && !next.is_finished());
    rig.store.set(|gate| gate.shut = false);
    let answer = first.await.unwrap().unwrap();
    assert_eq!(repeat.await.unwrap().unwrap(), answer);
    next.await.unwrap().unwrap();
    assert_eq!(rig.call(numbered).await.unwrap_err().code, Code::Invalid, "number 2 was there");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_leave_when_durable_and_are_built_upon_before_the_store_shows_them() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    rig.settled().await;
    let numbered = first_on_slot_2(&opened);
    rig.store.set(|gate| gate.hidden = true);
    let answer = rig.call(numbered.clone()).await.unwrap();
    // The repeat rests on the reply that the store doesn't show yet.
    assert_eq!(rig.call(numbered.clone()).await.unwrap(), answer);
    let slot = keys::slot(SessionId(opened.session), 2);
    assert_eq!(rig.store.inner.get(&slot).unwrap(), None);
    rig.store.set(|gate| gate.hidden = false);
    rig.call(Request { number: 2, ..numbered }).await.unwrap();
    assert!(rig.store.inner.get(&slot).unwrap().is_some());
    assert_eq!(rig.machine.stop(), End::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_run_by_whoever_brings_it_unless_something_is_uncommitted() {
    let rig = Rig::fresh();
    let by_machine = |rig: &Rig| {
        let read = std::mem::take(&mut rig.store.gate.lock().unwrap().read);
        assert!(!read.is_empty());
        read.iter().any(|(_, by_machine)| *by_machine)
    };
    rig.open_session().await;
    rig.settled().await;
    rig.store.set(|gate| gate.read.clear());
    rig.call(root()).await.unwrap();
    assert!(!by_machine(&rig));
    rig.store.set(|gate| gate.shut = true);
    let change = rig.send(open_session());
    rig.store.wait(|gate| gate.waiting == 1);
    rig.store.set(|gate| gate.read.clear());
    rig.call(root()).await.unwrap();
    assert!(by_machine(&rig));
    rig.store.set(|gate| gate.shut = false);
    change.await.unwrap().unwrap();
    assert_eq!(rig.machine.stop(), End::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_replies_outlive_a_restart() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    let op = request::Op::Reclaim(Reclaim { open_inos: vec![99], complete: true, ..Reclaim::default() });
    let numbered =
        Request { session: opened.session, epoch: opened.epoch, slot: 0, number: 7, ..request(op) };
    let answer = rig.call(numbered.clone()).await.unwrap();
    let store = rig.store.clone();
    assert_eq!(rig.machine.stop(), End::Stopped);
    let rig = Rig::start(store);
    // Another operation under the same number: the stored reply tells that it did not run.
    let op = request::Op::Reclaim(Reclaim { open_inos: vec![1, 2, 3], ..Reclaim::default() });
    let reply = rig.machine.handle().call(Request { op: Some(op), ..numbered }).await.unwrap();
    assert_eq!(reply.boot, 2);
    assert_eq!(reply.result, Some(answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_checked_before_they_run() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    let good = Request {
        session: opened.session,
        epoch: opened.epoch,
        cluster: opened.cluster.clone(),
        ..request(request::Op::Heartbeat(Heartbeat {}))
    };
    rig.call(good.clone()).await.unwrap();
    let unlink = Some(request::Op::Unlink(Default::default()));
    for (bad, code) in [
        (Request { epoch: 0, ..good.clone() }, Code::SessionExpired),
        (Request { session: 99, ..good.clone() }, Code::SessionExpired),
        (Request { session: 0, ..good.clone() }, Code::Invalid),
        (Request { cluster: vec![1; 16].into(), ..good.clone() }, Code::WrongCluster),
        (Request { cluster: vec![7].into(), ..good.clone() }, Code::WrongCluster),
        (Request { op: None, ..good.clone() }, Code::VersionUnknown),
        (Request { op: unlink.clone(), ..good.clone() }, Code::Invalid),
        (Request { op: unlink, number: 1, slot: limits::SESSION_SLOTS, ..good.clone() }, Code::Invalid),
        (Request { number: 1, ..root() }, Code::Invalid),
    ] {
        assert_eq!(rig.call(bad.clone()).await.unwrap_err().code, code, "{bad:?}");
    }
    let close = Request { op: Some(request::Op::CloseSession(CloseSession {})), ..good.clone() };
    rig.call(close).await.unwrap();
    assert_eq!(rig.call(good).await.unwrap_err().code, Code::SessionExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_only_what_frees_space_runs() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    let numbered =
        |number, op| Request { session: opened.session, epoch: opened.epoch, number, ..request(op) };
    let create = numbered(1, request::Op::Create(Default::default()));
    let unlink = numbered(2, request::Op::Unlink(Default::default()));
    // Found out with each commit.
    rig.store.set(|gate| gate.full = true);
    rig.open_session().await;
    rig.settled().await;
    assert_eq!(rig.call(create.clone()).await.unwrap_err().code, Code::NoSpace);
    assert_ne!(rig.call(unlink).await.unwrap_err().code, Code::NoSpace);
    rig.store.set(|gate| gate.full = false);
    rig.open_session().await;
    rig.settled().await;
    assert_ne!(rig.call(create).await.unwrap_err().code, Code::NoSpace);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_cold_is_read_by_others_before_the_machine() {
    let rig = Rig::fresh();
    let opened = rig.open_session().await;
    let mut number = 0;
    let mut numbered = |op| {
        number += 1;
        Request { session: opened.session, epoch: opened.epoch, number, ..request(op) }
    };
    for cold in [false, true] {
        rig.store.set(|gate| gate.cold = cold);
        let name = format!("cold-{cold}");
        let create = Create {
            parent: dfs_proto::Ino::ROOT.0,
            name: name.clone().into_bytes().into(),
            kind: dfs_proto::FileKind::Regular.into(),
            ..Default::default()
        };
        rig.call(numbered(request::Op::Create(create))).await.unwrap();
        rig.settled().await;
        let lookup = Lookup { parent: dfs_proto::Ino::ROOT.0, name: name.into_bytes().into() };
        rig.store.set(|gate| gate.read.clear());
        rig.call(request(request::Op::Lookup(lookup))).await.unwrap();
        let read = std::mem::take(&mut rig.store.gate.lock().unwrap().read);
        let (mine, others): (Vec<_>, Vec<_>) = read.iter().partition(|(_, by_machine)| *by_machine);
        assert!(!others.is_empty() && mine.is_empty() != cold, "{read:?}");
        if cold {
            assert!(!read[0].1, "the others come first");
            let keys =
                |reads: &[&(Vec<u8>, bool)]| reads.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
            assert_eq!(keys(&mine), keys(&others), "and read the same");
        }
    }
    assert_eq!(numbered(request::Op::StatFs(Default::default())).number, 3, "each change was made once");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_commit_nothing_is_answered() {
    let rig = Rig::fresh();
    rig.store.set(|gate| gate.shut = true);
    let doomed = rig.send(open_session());
    rig.store.wait(|gate| gate.waiting == 1);
    let behind = rig.send(open_session());
    rig.queued(2).await;
    rig.call(root()).await.unwrap();
    rig.store.set(|gate| (gate.shut, gate.broken) = (false, true));
    assert_eq!(doomed.await.unwrap().unwrap_err().code, Code::Unavailable);
    assert_eq!(behind.await.unwrap().unwrap_err().code, Code::Unavailable);
    assert!(
        matches!(rig.machine.handle().ended().await, End::Failed(reason) if reason.contains("pulled out"))
    );
    assert_eq!(rig.call(root()).await.unwrap_err().code, Code::Unavailable);
    assert!(matches!(rig.machine.stop(), End::Failed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_the_machine_instead_of_stalling_it() {
    let rig = Rig::fresh();
    let handle = rig.machine.handle();
    let looked = handle.inspect(|_, _| -> () { panic!("a test's panic") }).await;
    assert_eq!(looked.unwrap_err().code, Code::Unavailable);
    assert_eq!(handle.ended().await, End::Failed(PANICKED.into()));
    assert_eq!(rig.call(root()).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(rig.machine.stop(), End::Failed(PANICKED.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_is_queued() {
    let rig = Rig::fresh();
    rig.store.set(|gate| gate.shut = true);
    let first = rig.send(open_session());
    rig.store.wait(|gate| gate.waiting == 1);
    let second = rig.send(open_session());
    rig.queued(2).await;
    rig.call(root()).await.unwrap();
    let store = rig.store.clone();
    let handle = rig.machine.handle();
    let stop = tokio::task::spawn_blocking(move || rig.machine.stop());
    while handle.call(root()).await.is_ok() {}
    store.set(|gate| gate.shut = false);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(stop.await.unwrap(), End::Stopped);
}
