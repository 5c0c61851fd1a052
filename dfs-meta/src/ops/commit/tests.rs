use dfs_proto::Attr;
use dfs_proto::meta::{ChunkPlan, SealedShard, SetAttr, SetXattr, request};

use super::super::testing::Bench;
use super::*;

fn extent(offset: u64, length: u64, chunk: u64, chunk_offset: u64) -> Extent {
    Extent { offset, length, chunk, chunk_offset }
}

/// A commit of one chunk and one extent at the start of a file.
fn simple(plan: &ChunkPlan, ino: Ino, length: u64) -> Commit {
    let extents = vec![extent(0, length, plan.chunk, 0)];
    let file = FileCommit { ino: ino.0, extents, size: length, ..FileCommit::default() };
    Commit { chunks: vec![Bench::sealed(plan, length)], files: vec![file] }
}

#[test]
fn what_is_written_is_found_again_with_its_nodes() {
    let mut bench = Bench::with_nodes(4);
    let ino = bench.file("f");
    let before = bench.plan(ino).attr.unwrap();
    let chunk = bench.write(ino, &[(0, 100), (100, 50), (4096, 10)]);
    let plan = bench.plan(ino);
    assert_eq!(plan.extents, [extent(0, 150, chunk, 0), extent(4096, 10, chunk, 150)], "neighbours are one");
    let attr = plan.attr.unwrap();
    assert_eq!((attr.size, attr.allocated_bytes, attr.version), (4106, 160, before.version + 1));
    assert!(attr.mtime.unwrap().seconds > before.mtime.unwrap().seconds);
    let [found] = &plan.chunks[..] else { panic!("one chunk, not {:?}", plan.chunks) };
    assert_eq!((found.chunk, found.length, found.shards.len()), (chunk, 160, 3));
    let nodes: HashSet<_> = found.shards.iter().map(|shard| shard.node.clone().unwrap().node).collect();
    assert_eq!(nodes.len(), 3);
    assert!(found.shards.iter().all(|shard| shard.node.as_ref().unwrap().address.ends_with(":7610")));
    bench.check();
}

#[test]
fn what_is_overwritten_is_garbage_when_nothing_of_it_is_left() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let old = bench.write(ino, &[(0, 300)]);
    let new = bench.write(ino, &[(100, 100)]);
    let extents = bench.plan(ino).extents;
    assert_eq!(extents, [extent(0, 100, old, 0), extent(100, 100, new, 0), extent(200, 100, old, 200)]);
    assert_eq!(bench.chunk(old).unwrap().live_bytes, 200);
    bench.write(ino, &[(0, 100)]);
    bench.write(ino, &[(150, 200)]);
    let old = bench.chunk(old).unwrap();
    assert_eq!((old.state(), old.live_bytes), (ChunkState::Garbage, 0));
    assert_eq!(bench.chunk(new).unwrap().live_bytes, 50);
    bench.check();
}

#[test]
fn a_commit_that_is_wrong_anywhere_changes_nothing() {
    let mut bench = Bench::with_nodes(4);
    let ino = bench.file("f");
    let plan = bench.allocate(1).unwrap().chunks.remove(0);
    let good = simple(&plan, ino, 100);
    let chunk = |change: &dyn Fn(&mut SealedChunk)| {
        let mut commit = good.clone();
        change(&mut commit.chunks[0]);
        commit
    };
    let file = |change: &dyn Fn(&mut FileCommit)| {
        let mut commit = good.clone();
        change(&mut commit.files[0]);
        commit
    };
    let elsewhere =
        (1..=4).find(|node| plan.shards.iter().all(|shard| shard.node.as_ref().unwrap().node != *node));
    let bad = [
        chunk(&|chunk| chunk.length = 0),
        chunk(&|chunk| chunk.length = limits::MAX_CHUNK_LENGTH + 1),
        chunk(&|chunk| chunk.length = 99),
        chunk(&|chunk| chunk.sha256 = vec![1; 31].into()),
        chunk(&|chunk| chunk.shards.truncate(1)),
        chunk(&|chunk| chunk.shards[1] = chunk.shards[0]),
        chunk(&|chunk| chunk.shards[1].index = 9),
        chunk(&|chunk| chunk.shards[1] = SealedShard { index: 1, node: elsewhere.unwrap() }),
        file(&|file| file.extents[0].chunk += 1),
        file(&|file| file.extents[0].chunk_offset = 1),
        file(&|file| file.extents[0].length = 0),
        file(&|file| file.extents[0].offset = u64::MAX),
        file(&|file| file.extents.push(file.extents[0])),
        file(&|file| file.size = 99),
        file(&|file| file.size = u64::MAX),
        file(&|file| file.append_base = Some(1)),
        Commit { chunks: vec![good.chunks[0].clone(), good.chunks[0].clone()], ..good.clone() },
        Commit { files: vec![good.files[0].clone(), good.files[0].clone()], ..good.clone() },
        Commit { files: vec![FileCommit::default(); limits::MAX_COMMIT_FILES + 1], ..good.clone() },
        file(&|file| file.extents = vec![Extent::default(); limits::MAX_COMMIT_EXTENTS + 1]),
    ];
    for (at, commit) in bad.into_iter().enumerate() {
        assert_eq!(bench.commit(commit).unwrap_err().code, Code::Invalid, "number {at}");
    }
    let strange = chunk(&|chunk| chunk.chunk = 999);
    assert_eq!(bench.commit(strange).unwrap_err().code, Code::ChunkRefused);
    assert!(bench.plan(ino).extents.is_empty());
    assert_eq!(bench.commit(good.clone()).unwrap().files[0].code(), Code::Ok);
    assert_eq!(bench.commit(good).unwrap_err().code, Code::ChunkRefused, "sealed already");
    bench.check();
}

#[test]
fn a_file_that_is_gone_fails_alone_and_unused_chunks_are_garbage() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let plan = bench.allocate(1).unwrap().chunks.remove(0);
    let mut commit = simple(&plan, ino, 100);
    commit.files.insert(0, FileCommit { ino: 999, ..commit.files[0].clone() });
    commit.files.push(FileCommit { ino: 1, ..commit.files[0].clone() });
    let results = bench.commit(commit).unwrap().files;
    let codes: Vec<_> = results.iter().map(FileResult::code).collect();
    assert_eq!(codes, [Code::Stale, Code::Ok, Code::Invalid]);
    assert_eq!(results[1].attr.as_ref().unwrap().size, 100);

    let plan = bench.allocate(1).unwrap().chunks.remove(0);
    let mut commit = simple(&plan, ino, 100);
    commit.files[0].ino = 999;
    assert_eq!(bench.commit(commit).unwrap().files[0].code(), Code::Stale);
    assert_eq!(bench.chunk(plan.chunk).unwrap().state(), ChunkState::Garbage);
    bench.check();
}

#[test]
fn appended_bytes_go_to_the_end_wherever_that_is_by_now() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    bench.write(ino, &[(0, 50)]);
    let mut append = |base: u64, length: u64| {
        let plan = bench.allocate(1).unwrap().chunks.remove(0);
        let mut commit = simple(&plan, ino, length);
        let file = &mut commit.files[0];
        file.extents[0].offset = base;
        file.size = base + length;
        file.append_base = Some(base);
        let result = bench.commit(commit).unwrap().files.remove(0);
        (result.code(), result.shifted as i64, result.attr.map_or(0, |attr| attr.size))
    };
    assert_eq!(append(50, 10), (Code::Ok, 0, 60));
    assert_eq!(append(50, 10), (Code::Ok, 10, 70), "somebody was faster");
    assert_eq!(append(500, 10), (Code::Ok, -430, 80), "somebody cut the file");
    let ends: Vec<_> = bench.plan(ino).extents.iter().map(Extent::range).collect();
    assert_eq!(ends, [0..50, 50..60, 60..70, 70..80]);
    bench.check();
}

#[test]
fn a_write_takes_away_what_lets_the_file_run_with_anothers_rights() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let chmod = SetAttr { ino: ino.0, mode: Some(0o6755), ..SetAttr::default() };
    bench.run(request::Op::SetAttr(chmod)).unwrap();
    let name: bytes::Bytes = b"security.capability".to_vec().into();
    let grant =
        SetXattr { ino: ino.0, name: name.clone(), value: b"x".to_vec().into(), ..SetXattr::default() };
    bench.run(request::Op::SetXattr(grant)).unwrap();
    bench.write(ino, &[(0, 10)]);
    assert_eq!(bench.plan(ino).attr.unwrap().mode, 0o6755, "root keeps them");
    let get = dfs_proto::meta::GetXattr { ino: ino.0, name };
    assert_eq!(bench.run(request::Op::GetXattr(get)).unwrap_err().code, Code::NoData);
    let plan = bench.allocate(1).unwrap().chunks.remove(0);
    let mut commit = simple(&plan, ino, 10);
    commit.files[0].kill_set_id = true;
    bench.commit(commit).unwrap();
    assert_eq!(bench.plan(ino).attr.unwrap().mode, 0o755);
}

#[test]
fn times_are_those_of_the_write_and_ctime_never_goes_back() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let seconds = |attr: &Attr| (attr.mtime.unwrap().seconds, attr.ctime.unwrap().seconds);
    let (_, created) = seconds(&bench.plan(ino).attr.unwrap());
    let mut write_at = |mtime: i64| {
        let plan = bench.allocate(1).unwrap().chunks.remove(0);
        let mut commit = simple(&plan, ino, 10);
        commit.files[0].mtime = Some(dfs_proto::Time { seconds: mtime, nanos: 7 });
        seconds(&bench.commit(commit).unwrap().files[0].attr.clone().unwrap())
    };
    assert_eq!(write_at(created + 100), (created + 100, created + 100));
    assert_eq!(write_at(created + 50), (created + 50, created + 100));
}

#[test]
fn packed_writes_scatter_over_large_files_without_reading_them() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    const EXTENTS: u64 = 8192;
    let every_other: Vec<_> = (0..EXTENTS).map(|at| (at * 8192, 4096)).collect();
    let first = bench.write(ino, &every_other);
    bench.write(ino, &every_other);
    assert_eq!(bench.chunk(first).unwrap().state(), ChunkState::Garbage);
    let sparse: Vec<_> = (0..EXTENTS / 64).map(|at| (at * 64 * 8192 + 2048, 4096)).collect();
    bench.write(ino, &sparse);
    bench.write(ino, &[(1000, 32 << 20)]);
    let attr = bench.plan(ino).attr.unwrap();
    let tail = (EXTENTS * 8192 - (32 << 20)) / 2;
    assert!(attr.allocated_bytes.abs_diff((32 << 20) + tail) < EXTENTS * 64, "{}", attr.allocated_bytes);
    bench.check();
}

#[test]
fn node_records_and_promises_follow_a_commit() {
    let mut bench = Bench::with_nodes(3);
    let ino = bench.file("f");
    let free = |bench: &Bench| bench.live.nodes.get(NodeId(1)).unwrap().free_bytes();
    let all = free(&bench);
    let plan = bench.allocate(1).unwrap().chunks.remove(0);
    assert_eq!(free(&bench), all - limits::MAX_CHUNK_LENGTH, "nobody knows how long it will be");
    bench.commit(simple(&plan, ino, 100)).unwrap();
    assert_eq!(free(&bench), all - 100);
    let held = bench.with(dfs_proto::SessionId(0), |cx| {
        Ok(cx.tx.get::<Held>(&keys::held(NodeId(1), ChunkId(plan.chunk)))?)
    });
    assert_eq!(held.unwrap().map(|held| (held.length, held.lost)), Some((100, false)));
}
