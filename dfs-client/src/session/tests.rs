use std::sync::Mutex;
use std::time::Instant;

use dfs_proto::meta::request::Op;
use dfs_proto::meta::{Create, GetAttr, LockKind, LockRange, Lookup, SetLock};
use dfs_proto::{Code, FileKind};
use tokio::time::sleep;

use super::*;
use crate::fake::{FakeMeta, Fault};

async fn connect(fake: &FakeMeta) -> Session {
    connect_for(fake, Duration::from_secs(5)).await
}

async fn connect_for(fake: &FakeMeta, timeout: Duration) -> Session {
    let settings = SessionSettings {
        metas: vec![fake.address.clone()],
        client: "a test".into(),
        timeout: Some(timeout),
    };
    Session::connect(settings).await.expect("the fake server answers")
}

fn create(name: &str) -> Op {
    let name = name.to_owned().into_bytes().into();
    Op::Create(Create {
        parent: 1,
        name,
        kind: FileKind::Regular.into(),
        exclusive: true,
        ..Default::default()
    })
}

fn attr_of(result: Result<reply::Result, Failure>) -> dfs_proto::Attr {
    match result.expect("the request succeeds") {
        reply::Result::Attr(attr) => attr,
        other => panic!("not attributes: {other:?}"),
    }
}

/// Waits for something that other tasks bring about; a minute is as good as never.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never came true: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Default)]
struct Held {
    inos: Vec<Ino>,
    locks: Vec<HeldLock>,
    gone: Mutex<Vec<Ino>>,
    lost: Mutex<usize>,
    refuse: bool,
}

impl Holdings for Held {
    fn open_inos(&self) -> Vec<Ino> {
        self.inos.clone()
    }
    fn locks(&self) -> Vec<HeldLock> {
        self.locks.clone()
    }
    fn not_reclaimed(&self, gone: &[Ino], _lost: &[HeldLock]) {
        self.gone.lock().unwrap().extend(gone);
    }
    fn session_lost(&self) {
        *self.lost.lock().unwrap() += 1;
    }
    fn unlocked(&self, _ino: Option<Ino>) {}
    fn allows(&self, _op: &Op) -> Result<(), Failure> {
        if self.refuse { Err(Code::InputOutput.into()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_takes_effect_once() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    fake.break_next("create", &[Fault::LoseAnswer, Fault::LoseRequest, Fault::LoseAnswer]);
    let attr = attr_of(session.change(create("a")).await);
    assert_eq!(fake.count_received("create"), 4);
    assert_eq!(fake.count_applied("create"), 1);
    assert!(fake.state().has_inode(attr.ino));
    // The slot goes on with a new number.
    attr_of(session.change(create("b")).await);
    assert_eq!(fake.count_applied("create"), 2);
}

#[tokio::test]
async fn a_change_that_nobody_waits_for_is_settled_all_the_same() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    fake.break_next("create", &[Fault::LoseRequest; 3]);
    drop(session.change(create("a")));
    eventually("the change was applied", || fake.count_applied("create") == 1).await;
    assert_eq!(fake.count_received("create"), 4);
}

#[tokio::test]
async fn more_changes_than_slots_wait_their_turn() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    fake.break_next("create", &[Fault::LoseAnswer; 10]);
    let ops: Vec<_> = (0..50).map(|i| session.change(create(&format!("f{i}")))).collect();
    for result in futures::future::join_all(ops).await {
        attr_of(result);
    }
    assert_eq!(fake.count_applied("create"), 50);
}

#[tokio::test]
async fn errors_of_the_operation_are_not_retried_and_not_now_is() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    attr_of(session.change(create("a")).await);
    let failure = session.change(create("a")).await.unwrap_err();
    assert_eq!(failure.code, Code::Exists);
    assert_eq!(fake.count_received("create"), 2);
    fake.break_next("create", &[Fault::Answer(Code::Grace), Fault::Answer(Code::Unavailable)]);
    attr_of(session.change(create("b")).await);
    // The same request would go on naming the same nodes: who asked has to ask otherwise.
    fake.break_next("create", &[Fault::Answer(Code::TooFewNodes)]);
    assert_eq!(session.change(create("c")).await.unwrap_err().code, Code::TooFewNodes);
    let lookup = Op::Lookup(Lookup { parent: 1, name: "none".into() });
    assert_eq!(session.read(lookup).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn an_operation_fails_when_its_time_is_over() {
    let fake = FakeMeta::start().await;
    let session = connect_for(&fake, Duration::from_millis(300)).await;
    fake.break_next("get_attr", &[Fault::LoseRequest; 1000]);
    let start = Instant::now();
    let failure = session.read(Op::GetAttr(GetAttr { ino: 1 })).await.unwrap_err();
    assert_eq!((failure.code, failure.errno()), (Code::Unavailable, 5));
    assert!(failure.message.contains(&fake.address) && failure.message.contains("the connection broke"));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn without_a_server_connecting_fails_with_a_sentence() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let settings = SessionSettings {
        metas: vec![address.clone()],
        timeout: Some(Duration::from_millis(200)),
        ..Default::default()
    };
    let Err(failure) = Session::connect(settings).await else { panic!("connected to nobody") };
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.message.contains(&address), "{failure}");
}

#[tokio::test]
async fn the_second_address_serves_when_the_first_does_not() {
    let fake = FakeMeta::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let settings = SessionSettings { metas: vec![nobody, fake.address.clone()], ..Default::default() };
    let session = Session::connect(settings).await.unwrap();
    attr_of(session.change(create("a")).await);
}

#[tokio::test]
async fn after_a_restart_what_is_held_is_reclaimed_before_changes_go_on() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let ino = attr_of(session.change(create("a")).await).ino;
    let lock = LockRange { kind: LockKind::Exclusive.into(), owner: 3, end: 10, ..Default::default() };
    let held = Arc::new(Held {
        inos: vec![Ino(ino), Ino(999)],
        locks: vec![HeldLock { ino, lock: Some(lock) }],
        ..Default::default()
    });
    session.attach(Arc::downgrade(&held) as _);
    let generation = session.generation();
    fake.restart();
    attr_of(session.change(create("b")).await);
    assert_eq!(fake.open_inos(), [ino]);
    assert_eq!(fake.locks(), [(ino, lock)]);
    assert_eq!(*held.gone.lock().unwrap(), [Ino(999)]);
    assert_eq!(*held.lost.lock().unwrap(), 0, "the session itself goes on");
    assert!(session.generation() > generation);
}

#[tokio::test]
async fn a_heartbeat_finds_the_restart_without_any_request() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let ino = attr_of(session.change(create("a")).await).ino;
    let held = Arc::new(Held { inos: vec![Ino(ino)], ..Default::default() });
    session.attach(Arc::downgrade(&held) as _);
    fake.restart();
    eventually("the inode is open again", || fake.open_inos() == [ino]).await;
}

#[tokio::test]
async fn an_expired_session_is_replaced_and_what_was_surely_not_done_is_sent_again() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let ino = attr_of(session.change(create("a")).await).ino;
    let held = Arc::new(Held { inos: vec![Ino(ino)], ..Default::default() });
    session.attach(Arc::downgrade(&held) as _);
    fake.expire_sessions();
    attr_of(session.change(create("b")).await);
    assert_eq!(*held.lost.lock().unwrap(), 1);
    assert_eq!(fake.open_inos(), [ino]);
    assert_eq!(fake.session_count(), 1);
}

#[tokio::test]
async fn a_change_in_doubt_is_never_sent_under_the_next_session() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    fake.break_next("create", &[Fault::LoseAnswer]);
    let change = session.change(create("a"));
    eventually("the first attempt arrived", || fake.count_applied("create") == 1).await;
    fake.expire_sessions();
    let failure = change.await.unwrap_err();
    assert_eq!((failure.code, failure.errno()), (Code::SessionExpired, 5));
    assert_eq!(fake.count_applied("create"), 1);
    assert_eq!(
        fake.state()
            .last_requests
            .iter()
            .filter(|request| request.number > 0 && request.session == 2)
            .count(),
        0
    );
}

#[tokio::test]
async fn a_fenced_session_opens_a_new_one_at_once() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let held = Arc::new(Held::default());
    session.attach(Arc::downgrade(&held) as _);
    // The stream stands when its hello was heard; a heartbeat is later than that.
    eventually("heartbeats come", || fake.count_received("heartbeat") > 1).await;
    fake.fence();
    eventually("a new session", || fake.session_count() == 1).await;
    attr_of(session.change(create("a")).await);
    assert_eq!(*held.lost.lock().unwrap(), 1);
}

#[tokio::test]
async fn what_the_owner_forbids_is_not_sent() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let held = Arc::new(Held { refuse: true, ..Default::default() });
    session.attach(Arc::downgrade(&held) as _);
    assert_eq!(session.change(create("a")).await.unwrap_err().code, Code::InputOutput);
    assert_eq!(fake.count_received("create"), 0);
}

#[tokio::test]
async fn closing_waits_for_changes_and_ends_the_session() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    fake.break_next("create", &[Fault::LoseRequest; 2]);
    drop(session.change(create("a")));
    // The task has to have its slot before closing looks.
    eventually("the change is under way", || fake.count_received("create") > 0).await;
    session.close().await.unwrap();
    assert_eq!((fake.count_applied("create"), fake.session_count()), (1, 0));
}

#[tokio::test]
async fn requests_name_the_cluster_and_another_cluster_is_a_hard_error() {
    let fake = FakeMeta::start().await;
    let session = connect(&fake).await;
    let lock = SetLock { ino: 1, lock: None, wait: false };
    fake.break_next("set_lock", &[Fault::Answer(Code::WrongCluster)]);
    assert_eq!(session.change(Op::SetLock(lock)).await.unwrap_err().code, Code::WrongCluster);
    assert_eq!(fake.count_received("set_lock"), 1);
    let named = fake
        .state()
        .last_requests
        .iter()
        .filter(|request| request.session != 0)
        .all(|request| request.cluster[..] == crate::fake::CLUSTER);
    assert!(named);
}
