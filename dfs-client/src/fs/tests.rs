use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_proto::meta::{LockKind, LockRange, SetAttr, TimeChange, XattrMode};
use dfs_proto::{Code, FileKind, Timestamp};
use tokio::time::{sleep, timeout};

use super::*;
use crate::fake::{FakeMeta, Fault};

/// What the kernel was told to drop.
type Dropped = Arc<Mutex<Vec<Ino>>>;

async fn mount_with(fake: &FakeMeta, change: impl FnOnce(&mut Settings)) -> Arc<FileSystem> {
    let mut settings = Settings::default();
    settings.session.metas = vec![fake.address.clone()];
    settings.session.timeout = Some(Duration::from_secs(5));
    change(&mut settings);
    FileSystem::connect(settings).await.expect("the fake server answers")
}

async fn mount(fake: &FakeMeta) -> Arc<FileSystem> {
    mount_with(fake, |_| {}).await
}

async fn mount_watched(fake: &FakeMeta) -> (Arc<FileSystem>, Dropped) {
    let dropped = Dropped::default();
    let told = dropped.clone();
    let invalidate: Invalidate = Arc::new(move |ino| {
        let told = told.clone();
        Box::pin(async move { told.lock().unwrap().push(ino) })
    });
    (mount_with(fake, |settings| settings.invalidate = Some(invalidate)).await, dropped)
}

fn file(kind: FileKind) -> NewFile {
    NewFile { kind, mode: 0o644, umask: 0o022, uid: 0, gid: 0, rdev: 0, target: Default::default() }
}

const READ: OpenOptions = OpenOptions {
    read: true,
    write: false,
    append: false,
    truncate: false,
    kill_set_id: false,
    direct: false,
    sync: false,
};
const WRITE: OpenOptions = OpenOptions { read: true, write: true, ..READ };

async fn make(fs: &Arc<FileSystem>, name: &str) -> (Ino, HandleId) {
    let root = fs.root();
    let (attr, handle, _) = fs
        .create_open(root, name.as_bytes(), file(FileKind::Regular), WRITE, true)
        .await
        .expect("the file is made");
    (Ino(attr.ino), handle)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "never came true: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn exclusive(owner: u64) -> LockRange {
    LockRange {
        kind: LockKind::Exclusive.into(),
        owner,
        start: 0,
        end: i64::MAX as u64,
        ..Default::default()
    }
}

fn unlock(owner: u64) -> LockRange {
    LockRange { kind: LockKind::Unlock.into(), ..exclusive(owner) }
}

#[tokio::test]
async fn names_are_made_found_and_listed() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let made = fs.create(fs.root(), b"a", file(FileKind::Fifo)).await.unwrap();
    assert_eq!(fs.lookup(fs.root(), b"a").await.unwrap().ino, made.ino);
    assert_eq!(fs.create(fs.root(), b"a", file(FileKind::Regular)).await.unwrap_err().code, Code::Exists);
    assert_eq!(fs.lookup(fs.root(), b"b").await.unwrap_err().code, Code::NotFound);
    assert_eq!(fs.lookup(fs.root(), b"a/b").await.unwrap_err().code, Code::Invalid);
    assert_eq!(fs.lookup(fs.root(), &[b'n'; 256]).await.unwrap_err().code, Code::NameTooLong);
    let page = fs.readdir(fs.root(), 0, 100, true).await.unwrap();
    assert!(page.end);
    assert_eq!(page.entries.len(), 1);
    assert_eq!(page.entries[0].attr.as_ref().unwrap().ino, made.ino);
    assert!(fs.readdir(fs.root(), page.entries[0].cookie, 100, true).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_subdirectory_is_the_root_of_its_mount() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let dir = fs.create(fs.root(), b"dir", file(FileKind::Directory)).await.unwrap();
    let below = fs.create(Ino(dir.ino), b"below", file(FileKind::Directory)).await.unwrap();
    fs.create(fs.root(), b"file", file(FileKind::Regular)).await.unwrap();
    let sub = mount_with(&fake, |settings| settings.subdir = b"/dir//below/".to_vec()).await;
    assert_eq!(sub.root(), Ino(below.ino));
    assert_eq!(sub.lookup(sub.root(), b"..").await.unwrap().ino, below.ino, "nothing is above the root");
    assert_eq!(sub.readdir(sub.root(), 0, 10, false).await.unwrap().parent, below.ino);
    for (path, code, word) in [("dir/none/x", Code::NotFound, "none"), ("file", Code::NotADirectory, "file")]
    {
        let mut settings = Settings { subdir: path.into(), ..Default::default() };
        settings.session.metas = vec![fake.address.clone()];
        let Err(failure) = FileSystem::connect(settings).await else { panic!("{path} was mounted") };
        assert_eq!(failure.code, code);
        assert!(failure.message.contains(path) && failure.message.contains(word), "{failure}");
    }
}

#[tokio::test]
async fn an_unlinked_file_lives_until_its_last_handle_is_released() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, first) = make(&fs, "a").await;
    let (second, _) = fs.open(ino, READ).await.unwrap();
    fs.unlink(fs.root(), b"a").await.unwrap();
    fs.release(first, None).await;
    sleep(Duration::from_millis(200)).await;
    assert!(fake.state().has_inode(ino.0), "one handle is left");
    assert_eq!(fs.getattr(ino).await.unwrap().nlink, 0);
    fs.release(second, None).await;
    eventually("the inode is gone", || !fake.state().has_inode(ino.0)).await;
}

#[tokio::test]
async fn closes_are_sent_together_and_not_at_all_when_the_file_is_opened_again_soon() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let mut handles = Vec::new();
    for i in 0..20 {
        handles.push(make(&fs, &format!("f{i}")).await);
    }
    let (again, _) = handles[0];
    for (_, handle) in handles {
        fs.release(handle, None).await;
    }
    let (handle, _) = fs.open(again, READ).await.unwrap();
    eventually("all others are closed", || fake.open_inos() == [again.0]).await;
    assert!(fake.count_received("close") <= 3, "{} calls for 19 files", fake.count_received("close"));
    fs.release(handle, None).await;
    eventually("all are closed", || fake.open_inos().is_empty()).await;
}

#[tokio::test]
async fn an_open_waits_for_a_close_that_is_on_its_way() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    fake.break_next("close", &[Fault::LoseRequest; 4]);
    fs.release(handle, None).await;
    eventually("the close is on its way", || fake.count_received("close") > 0).await;
    let (_handle, _) = fs.open(ino, READ).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.open_inos(), [ino.0], "the close did not overtake the open");
}

#[tokio::test]
async fn an_open_that_nobody_waits_for_is_closed_again() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    fs.release(handle, None).await;
    eventually("it is closed", || fake.open_inos().is_empty()).await;
    fake.break_next("open", &[Fault::LoseRequest; 3]);
    assert!(timeout(Duration::from_millis(10), fs.open(ino, READ)).await.is_err());
    eventually("it was opened all the same", || fake.count_applied("open") == 1).await;
    eventually("and closed", || fake.open_inos().is_empty()).await;
}

#[tokio::test]
async fn the_kernel_keeps_its_pages_unless_somebody_else_changed_the_file() {
    let fake = FakeMeta::start().await;
    let (fs, dropped) = mount_watched(&fake).await;
    let (ino, _first) = make(&fs, "a").await;
    assert!(fs.open(ino, READ).await.unwrap().1);
    fs.setattr(SetAttr { ino: ino.0, mode: Some(0o600), ..Default::default() }).await.unwrap();
    assert!(fs.open(ino, READ).await.unwrap().1, "our own change");
    fake.state().touch(ino.0);
    assert!(!fs.open(ino, READ).await.unwrap().1);
    assert!(fs.open(ino, READ).await.unwrap().1);
    assert!(dropped.lock().unwrap().is_empty(), "opening says it by itself");
    fake.state().touch(ino.0);
    fs.getattr(ino).await.unwrap();
    eventually("the open file's pages are dropped", || *dropped.lock().unwrap() == [ino]).await;
}

#[tokio::test]
async fn access_times_are_shown_at_once_and_sent_with_the_close() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    let open = fs.mounted.inodes.get(ino).unwrap();
    let now = Timestamp { seconds: 1_000_000, nanos: 5 };
    assert!(open.atime_is_due(now), "never read");
    open.accessed(now);
    assert!(!open.atime_is_due(now));
    assert!(open.atime_is_due(Timestamp { seconds: 1_000_000 + 24 * 60 * 60, nanos: 0 }), "a day later");
    drop(open);
    assert_eq!(fs.getattr(ino).await.unwrap().atime, Some(now.into()));
    fs.release(handle, None).await;
    assert_eq!(fs.getattr(ino).await.unwrap().atime, Some(now.into()), "while the close waits, too");
    eventually("the server knows", || fake.state().attr(ino.0).atime == Some(now.into())).await;
}

#[tokio::test]
async fn setting_the_access_time_wins_over_an_earlier_read() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, _handle) = make(&fs, "a").await;
    fs.mounted.inodes.get(ino).unwrap().accessed(Timestamp::now());
    let past = Timestamp { seconds: 5, nanos: 0 }.into();
    let atime = Some(TimeChange { now: false, value: Some(past) });
    fs.setattr(SetAttr { ino: ino.0, atime, ..Default::default() }).await.unwrap();
    assert_eq!(fs.getattr(ino).await.unwrap().atime, Some(past));
}

#[tokio::test]
async fn nothing_is_changed_on_a_mount_that_is_read_only() {
    let fake = FakeMeta::start().await;
    let (ino, _) = make(&mount(&fake).await, "a").await;
    let fs = mount_with(&fake, |settings| settings.read_only = true).await;
    let root = fs.root();
    let read_only = |failure: Failure| assert_eq!(failure.errno(), 30, "EROFS: {failure}");
    read_only(fs.create(root, b"b", file(FileKind::Regular)).await.unwrap_err());
    read_only(fs.create_open(root, b"b", file(FileKind::Regular), WRITE, true).await.unwrap_err());
    read_only(fs.open(ino, WRITE).await.unwrap_err());
    read_only(fs.setattr(SetAttr { ino: ino.0, ..Default::default() }).await.unwrap_err());
    read_only(fs.link(ino, root, b"c").await.unwrap_err());
    read_only(fs.unlink(root, b"a").await.unwrap_err());
    read_only(fs.rmdir(root, b"a").await.unwrap_err());
    read_only(fs.rename(root, b"a", root, b"b", Default::default()).await.unwrap_err());
    read_only(fs.setxattr(ino, b"user.a", b"1", XattrMode::Set, false).await.unwrap_err());
    read_only(fs.removexattr(ino, b"user.a").await.unwrap_err());
    assert!(fs.open(ino, READ).await.is_ok());
}

#[tokio::test]
async fn a_waiting_lock_is_granted_as_soon_as_it_is_free() {
    let fake = FakeMeta::start().await;
    let (one, two) = (mount(&fake).await, mount(&fake).await);
    let (ino, a) = make(&one, "a").await;
    let (b, _) = two.open(ino, WRITE).await.unwrap();
    one.set_lock(a, exclusive(1), false).await.unwrap();
    assert_eq!(two.set_lock(b, exclusive(1), false).await.unwrap_err().errno(), 11, "EAGAIN");
    assert_eq!(two.get_lock(ino, exclusive(1)).await.unwrap().map(|lock| lock.owner), Some(1));
    // The stream of events stands by the second heartbeat.
    let heartbeats = fake.count_received("heartbeat");
    eventually("heartbeats", || fake.count_received("heartbeat") > heartbeats + 4).await;
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.set_lock(b, exclusive(1), true).await }
    });
    let asked = fake.count_received("set_lock");
    eventually("it asked", || fake.count_received("set_lock") > asked).await;
    let start = Instant::now();
    one.set_lock(a, unlock(1), false).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_millis(900), "woken, not asked again after a second");
    assert_eq!(fake.locks(), [(ino.0, exclusive(1))]);
}

#[tokio::test]
async fn a_lock_granted_after_its_wait_was_interrupted_is_given_back() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (_ino, handle) = make(&fs, "a").await;
    fake.break_next("set_lock", &[Fault::LoseRequest; 3]);
    assert!(timeout(Duration::from_millis(10), fs.set_lock(handle, exclusive(1), true)).await.is_err());
    eventually("granted and given back", || fake.count_applied("set_lock") == 2).await;
    eventually("nothing is locked", || fake.locks().is_empty() && fs.mounted.locks.held().is_empty()).await;
}

#[tokio::test]
async fn acquiring_a_lock_drops_the_pages_that_somebody_else_made_stale_before_it_returns() {
    let fake = FakeMeta::start().await;
    let (fs, dropped) = mount_watched(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    fs.set_lock(handle, exclusive(1), false).await.unwrap();
    assert!(dropped.lock().unwrap().is_empty());
    fs.set_lock(handle, unlock(1), false).await.unwrap();
    fake.state().touch(ino.0);
    fs.set_lock(handle, exclusive(1), false).await.unwrap();
    assert_eq!(*dropped.lock().unwrap(), [ino]);
}

#[tokio::test]
async fn closing_gives_back_the_owners_locks_and_only_those() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    let lower = LockRange { end: 9, ..exclusive(1) };
    let upper = LockRange { start: 10, end: 19, ..exclusive(2) };
    let flock = LockRange { space: 1, ..exclusive(3) };
    for lock in [lower, upper, flock] {
        fs.set_lock(handle, lock, false).await.unwrap();
    }
    fs.flush(handle, 1).await.unwrap();
    assert_eq!(fake.locks(), [(ino.0, upper), (ino.0, flock)]);
    let asked = fake.count_received("set_lock");
    fs.flush(handle, 7).await.unwrap();
    assert_eq!(fake.count_received("set_lock"), asked, "nothing held, nothing asked");
    fs.release(handle, Some(3)).await;
    assert_eq!(fake.locks(), [(ino.0, upper)]);
}

#[tokio::test]
async fn open_files_and_locks_outlive_a_restart_of_the_server() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (ino, handle) = make(&fs, "a").await;
    fs.set_lock(handle, exclusive(1), false).await.unwrap();
    fs.unlink(fs.root(), b"a").await.unwrap();
    fake.restart();
    fs.create(fs.root(), b"b", file(FileKind::Regular)).await.unwrap();
    assert_eq!((fake.open_inos(), fake.locks()), (vec![ino.0], vec![(ino.0, exclusive(1))]));
    assert!(fs.fsync(handle, false).await.is_ok());
}

#[tokio::test]
async fn a_lock_lost_with_the_session_makes_its_file_fail_until_it_is_closed() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    let (locked, handle) = make(&fs, "a").await;
    let (_other, free) = make(&fs, "b").await;
    fs.set_lock(handle, exclusive(1), false).await.unwrap();
    fake.expire_sessions();
    fs.create(fs.root(), b"c", file(FileKind::Regular)).await.unwrap();
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno(), 5, "EIO");
    assert_eq!(fs.read(handle, 0, 1).await.unwrap_err().errno(), 5);
    assert_eq!(fs.set_lock(handle, exclusive(1), false).await.unwrap_err().errno(), 5);
    assert!(fs.set_lock(handle, unlock(1), false).await.is_ok(), "there is nothing left to give back");
    assert!(fs.fsync(free, false).await.is_ok(), "others go on");
    assert_eq!(fs.open(locked, READ).await.unwrap_err().errno(), 5);
    fs.release(handle, None).await;
    assert!(fs.open(locked, READ).await.is_ok(), "closed and opened again");
}

#[tokio::test]
async fn shutting_down_closes_everything_and_the_session() {
    let fake = FakeMeta::start().await;
    let fs = mount(&fake).await;
    make(&fs, "a").await;
    let (_, gone) = make(&fs, "b").await;
    fs.release(gone, None).await;
    fs.shutdown().await.unwrap();
    assert_eq!((fake.session_count(), fake.count_applied("close_session")), (0, 1));
    let closed: usize = fake
        .state()
        .applied
        .iter()
        .map(|op| match op {
            request::Op::Close(close) => close.files.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(closed, 2);
}
