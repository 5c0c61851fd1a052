//! The client library against real daemons: random operations beside the model, two clients, restarts of every daemon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_client::fs::{FileSystem, HandleId, OpenOptions, Settings};
use dfs_client::session::SessionSettings;
use dfs_proto::Ino;
use dfs_proto::meta::{LockKind, LockRange};
use dfs_tests::cluster::{Cluster, block_on};
use dfs_tests::library_target::{LibraryTarget, regular_file};
use dfs_tests::random::{Run, seed};

const READ_WRITE: OpenOptions = OpenOptions {
    read: true,
    write: true,
    append: false,
    truncate: false,
    kill_set_id: false,
    direct: false,
    sync: false,
};

async fn make(fs: &Arc<FileSystem>, name: &str) -> (Ino, HandleId) {
    let made = fs.create_open(fs.root(), name.as_bytes(), regular_file(0o644), READ_WRITE, true);
    let (attr, handle, _) = made.await.expect("create a file");
    (Ino(attr.ino), handle)
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

#[test]
fn random_operations_end_as_in_the_model_and_are_there_after_reconnecting() {
    let cluster = Cluster::start();
    let mut run = Run::new(LibraryTarget::connect(cluster.address()), seed());
    for _ in 0..8 {
        run.batch(60);
        run.close_all();
        run.target.reconnect();
        run.note("the client is shut down and connected again");
        run.compare();
    }
}

#[test]
fn what_one_client_closed_the_other_sees() {
    let cluster = Cluster::start();
    let mut other = LibraryTarget::connect(cluster.address());
    let mut run = Run::new(LibraryTarget::connect(cluster.address()), seed());
    for _ in 0..6 {
        run.batch(40);
        run.close_all();
        run.compare_with(&mut other);
    }
}

#[test]
fn random_operations_survive_kills_and_restarts_of_every_daemon() {
    let cluster = Cluster::start();
    let mut run = Run::new(LibraryTarget::connect(cluster.address()), seed());
    for _ in 0..8 {
        run.batch(25);
        let member = match run.choose(4) {
            0 => cluster.meta(),
            at => cluster.chunk(at - 1),
        };
        run.note(&format!("{} is killed and started again", member.address()));
        member.kill();
        member.start_again();
        cluster.wait_for_nodes(3);
        run.compare();
    }
}

#[test]
fn a_lock_orders_the_writes_of_two_clients() {
    let cluster = Cluster::start();
    let clients = [LibraryTarget::connect(cluster.address()), LibraryTarget::connect(cluster.address())];
    let (ino, _) = clients[0].run(make(&clients[0].fs(), "counter"));
    const EACH: u64 = 40;
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                client.run(async {
                    let fs = client.fs();
                    let (handle, _) = fs.open(ino, READ_WRITE).await.expect("open the counter");
                    for _ in 0..EACH {
                        fs.set_lock(handle, exclusive(1), true).await.expect("lock");
                        let bytes = fs.read(handle, 0, 8).await.expect("read the counter");
                        let count = <[u8; 8]>::try_from(&bytes[..]).map_or(0, u64::from_le_bytes);
                        fs.write(handle, 0, &(count + 1).to_le_bytes(), false).await.expect("count");
                        let unlock = LockRange { kind: LockKind::Unlock.into(), ..exclusive(1) };
                        fs.set_lock(handle, unlock, false).await.expect("unlock");
                    }
                    fs.flush(handle, 1).await.expect("close");
                    fs.release(handle, None).await;
                });
            });
        }
    });
    clients[0].run(async {
        let fs = clients[0].fs();
        let (handle, _) = fs.open(ino, READ_WRITE).await.expect("open the counter");
        let bytes = fs.read(handle, 0, 8).await.expect("read the counter");
        assert_eq!(bytes[..], (2 * EACH).to_le_bytes(), "no count is lost");
        fs.release(handle, None).await;
    });
}

#[test]
fn a_lock_outlives_the_metadata_server_and_dies_with_its_client() {
    let cluster = Cluster::start();
    let (one, two) = (LibraryTarget::connect(cluster.address()), LibraryTarget::connect(cluster.address()));
    let (ino, held) = one.run(make(&one.fs(), "locked"));
    one.run(one.fs().set_lock(held, exclusive(1), false)).expect("lock");
    let (wanted, _) = two.run(two.fs().open(ino, READ_WRITE)).expect("open");
    cluster.meta().kill();
    cluster.meta().start_again();
    let refused = two.run(two.fs().set_lock(wanted, exclusive(1), false)).expect_err("it is still held");
    assert_eq!(refused.errno(), libc::EAGAIN, "{refused}");
    let start = Instant::now();
    let (done, freed) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            two.run(two.fs().set_lock(wanted, exclusive(1), true)).expect("it is free at last");
            done.send(start.elapsed()).expect("somebody waits");
        });
        std::thread::sleep(Duration::from_millis(300));
        one.run(one.fs().shutdown()).expect("shut the client down");
    });
    let took = freed.recv().expect("the lock was taken");
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn an_unlinked_file_that_is_open_outlives_a_restart_of_the_metadata_server() {
    let cluster = Cluster::start();
    let client = LibraryTarget::connect(cluster.address());
    client.run(async {
        let fs = client.fs();
        let (ino, handle) = make(&fs, "gone").await;
        fs.write(handle, 0, b"still here", false).await.expect("write");
        fs.fsync(handle, false).await.expect("fsync");
        fs.unlink(fs.root(), b"gone").await.expect("unlink");
        cluster.meta().kill();
        cluster.meta().start_again();
        assert_eq!(fs.getattr(ino).await.expect("it is open").nlink, 0);
        assert_eq!(&fs.read(handle, 0, 100).await.expect("read")[..], b"still here");
        fs.write(handle, 10, b"!", false).await.expect("write");
        fs.fsync(handle, false).await.expect("fsync");
        fs.release(handle, None).await;
    });
}

#[test]
fn a_client_that_was_fenced_lost_its_locks_and_goes_on() {
    let cluster = Cluster::with().meta_args(["--session-timeout", "4s", "--heartbeat", "1s"]).start();
    let session = SessionSettings { metas: vec![cluster.address().into()], ..Default::default() };
    block_on(async {
        let settings = Settings { session, ..Default::default() };
        let fs = FileSystem::connect(settings).await.expect("connect");
        let (locked_ino, locked) = make(&fs, "locked").await;
        let (_, free) = make(&fs, "free").await;
        fs.set_lock(locked, exclusive(1), false).await.expect("lock");
        fs.write(locked, 0, b"under the lock", false).await.expect("write");
        fs.write(free, 0, b"without one", false).await.expect("write");
        // This runtime has one thread: while it sleeps there are no heartbeats.
        std::thread::sleep(Duration::from_secs(7));
        // The new session is there when a changing request went through.
        make(&fs, "another").await;
        let failure = fs.fsync(locked, false).await.expect_err("its lock is lost");
        assert_eq!(failure.errno(), libc::EIO, "{failure}");
        assert!(fs.write(locked, 0, b"x", false).await.is_err());
        fs.fsync(free, false).await.expect("no lock was lost here");
        fs.release(locked, Some(1)).await;
        let (again, _) = fs.open(locked_ino, READ_WRITE).await.expect("opened again");
        assert!(
            fs.read(again, 0, 100).await.expect("read").is_empty(),
            "what the lock covered was not written"
        );
        assert_eq!(&fs.read(free, 0, 100).await.expect("read")[..], b"without one");
        fs.release(again, None).await;
        fs.shutdown().await.expect("shut down");
    });
}
