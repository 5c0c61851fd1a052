//! What has no name lives as long as somebody has it open, through restarts, and not a moment longer than the purge
//! takes.

use std::time::Duration;

use super::super::Internal;
use super::super::shorthand::{ROOT, code};
use super::super::testing::{Bench, on_every_store};
use super::*;
use crate::live::Live;
use crate::live::sessions::SessionTable;
use crate::store::records;
use dfs_proto::Code;
use dfs_proto::meta::{Reclaim, request};

const GRACE: Duration = Duration::from_secs(1000);

/// The server starts again: what was in memory is gone, and these sessions may reclaim.
fn restart(bench: &mut Bench, sessions: &[u64]) {
    bench.live = Live::default();
    bench.uptime = Duration::ZERO;
    let stored = sessions.iter().map(|&id| (SessionId(id), records::Session::default()));
    bench.live.sessions = SessionTable::load(2, stored, GRACE);
}

fn reclaim(bench: &mut Bench, session: u64, open_inos: &[u64]) {
    let reclaim = Reclaim { open_inos: open_inos.to_vec(), complete: true, ..Reclaim::default() };
    bench.run_as(SessionId(session), request::Op::Reclaim(reclaim)).expect("reclaim");
}

#[test]
fn a_file_outlives_its_name_until_everybody_closed_it() {
    on_every_store(|bench| {
        let file = bench.make_file(ROOT, "file");
        bench.set_xattr(file, "user.x", b"1").unwrap();
        bench.open(file).unwrap();
        bench.open_as(2, file).unwrap();
        bench.unlink(ROOT, "file").unwrap();
        bench.check();
        bench.close(file);
        assert_eq!(bench.get_attr(file).unwrap().nlink, 0);
        assert_eq!(code(bench.open(file)), Code::Stale, "only who has it open opens it again");
        assert!(bench.open_as(2, file).is_ok());
        bench.check();
        bench.close_as(2, file);
        assert_eq!(code(bench.get_attr(file)), Code::Stale);
        bench.check();
    });
}

#[test]
fn the_last_close_gives_space_back() {
    let mut bench = Bench::with_nodes(3);
    let file = bench.make_file(ROOT, "file");
    let chunk = bench.write(Ino(file), &[(0, 100), (4096, 50)]);
    bench.open(file).unwrap();
    bench.unlink(ROOT, "file").unwrap();
    bench.check();
    assert_eq!(used_bytes(&mut bench), 150);
    bench.close(file);
    bench.check();
    assert_eq!(used_bytes(&mut bench), 0);
    let state = bench.with(SessionId(1), |cx| {
        Ok(cx.tx.get::<records::Chunk>(&keys::chunk(dfs_proto::ChunkId(chunk)))?.map(|chunk| chunk.state()))
    });
    assert_eq!(state.unwrap(), Some(records::ChunkState::Garbage));
}

fn used_bytes(bench: &mut Bench) -> u64 {
    bench.with(SessionId(1), |cx| Ok(counters::get(cx.tx, counters::USED_BYTES)?)).unwrap()
}

#[test]
fn much_data_goes_in_pieces() {
    let mut bench = Bench::with_nodes(3);
    let file = bench.make_file(ROOT, "file");
    let extents = PIECE as u64 * 2 + 10;
    let mut at = 0;
    while at < extents {
        let ranges: Vec<_> = (at..extents.min(at + 4000)).map(|i| (i * 10, 5)).collect();
        at += ranges.len() as u64;
        bench.write(Ino(file), &ranges);
    }
    bench.unlink(ROOT, "file").unwrap();
    assert_eq!(used_bytes(&mut bench), 5 * (extents - PIECE as u64), "the first piece went with the name");
    bench.check();
    assert_eq!(bench.run_internal(Internal::PurgeOrphans).unwrap(), Progress::More);
    bench.check();
    bench.finish(Internal::PurgeOrphans);
    assert_eq!(code(bench.get_attr(file)), Code::Stale);
    assert_eq!(used_bytes(&mut bench), 0);
    bench.check();
}

#[test]
fn nothing_is_destroyed_before_sessions_had_time_to_come_back() {
    let mut bench = Bench::new();
    let files: Vec<u64> = (0..4).map(|i| bench.make_file(ROOT, &format!("{i}"))).collect();
    for &file in &files[..3] {
        bench.open_as(2, file).unwrap();
    }
    bench.unlink(ROOT, "0").unwrap();
    restart(&mut bench, &[1, 2]);
    reclaim(&mut bench, 1, &[]);
    // Open in session 2, which has not said so yet.
    bench.unlink(ROOT, "1").unwrap();
    bench.unlink(ROOT, "2").unwrap();
    bench.unlink(ROOT, "3").unwrap();
    bench.finish(Internal::PurgeOrphans);
    for &file in &files {
        assert_eq!(bench.get_attr(file).unwrap().nlink, 0);
    }
    bench.check();
    reclaim(&mut bench, 2, &files[..2]);
    bench.finish(Internal::PurgeOrphans);
    bench.check();
    for &file in &files[..2] {
        assert_eq!(bench.get_attr(file).unwrap().nlink, 0, "brought back");
        bench.close_as(2, file);
    }
    for file in files {
        assert_eq!(code(bench.get_attr(file)), Code::Stale);
    }
    bench.check();
}

#[test]
fn a_close_in_the_grace_waits_for_the_others() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    bench.open_as(1, file).unwrap();
    bench.open_as(2, file).unwrap();
    bench.unlink(ROOT, "file").unwrap();
    restart(&mut bench, &[1, 2]);
    reclaim(&mut bench, 1, &[file]);
    bench.close_as(1, file);
    bench.check();
    reclaim(&mut bench, 2, &[file]);
    bench.finish(Internal::PurgeOrphans);
    assert_eq!(bench.get_attr(file).unwrap().nlink, 0);
    bench.close_as(2, file);
    assert_eq!(code(bench.get_attr(file)), Code::Stale);
    bench.check();
}

#[test]
fn what_a_dead_session_had_open_is_purged() {
    let mut bench = Bench::new();
    let (file, dir) = (bench.make_file(ROOT, "file"), bench.make_dir(ROOT, "dir"));
    let shared = bench.make_file(ROOT, "shared");
    for ino in [file, dir, shared] {
        bench.open_as(2, ino).unwrap();
    }
    bench.open(shared).unwrap();
    bench.unlink(ROOT, "file").unwrap();
    bench.unlink(ROOT, "shared").unwrap();
    bench.rmdir(ROOT, "dir").unwrap();
    // Session 2 is not in the table of sessions: it is over.
    bench.live.opens.remove_session(SessionId(2));
    bench.live.sessions.add(SessionId(1), &records::Session::default(), bench.uptime);
    bench.finish(Internal::AdoptOrphans);
    bench.check();
    bench.finish(Internal::PurgeOrphans);
    for ino in [file, dir] {
        assert_eq!(code(bench.get_attr(ino)), Code::Stale);
    }
    assert_eq!(bench.get_attr(shared).unwrap().nlink, 0);
    bench.close(shared);
    assert_eq!(code(bench.get_attr(shared)), Code::Stale);
    bench.check();
}
