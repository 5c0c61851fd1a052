//! The rules of chmod(2), chown(2), truncate(2) and utimensat(2), one by one.

use super::super::acl::tests::bytes as acl;
use super::super::shorthand::{ROOT, code, new};
use super::super::testing::{Bench, on_every_store};
use super::*;
use dfs_proto::meta::Create;

fn set(ino: u64) -> SetAttr {
    SetAttr { ino, ..SetAttr::default() }
}

fn mode(ino: u64, mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..set(ino) }
}

fn size(ino: u64, size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..set(ino) }
}

#[test]
fn a_change_sets_what_it_names_and_the_change_time() {
    on_every_store(|bench| {
        let file = bench.make_file(ROOT, "file");
        let before = bench.get_attr(file).unwrap();
        let change = SetAttr { mode: Some(0o1640), uid: Some(1), gid: Some(2), ..set(file) };
        let after = bench.set_attr(change).unwrap();
        assert_eq!((after.mode, after.uid, after.gid), (0o1640, 1, 2));
        assert_eq!((after.mtime, after.atime, after.size), (before.mtime, before.atime, 0));
        assert_eq!((after.ctime, after.version), (Some(bench.now.into()), before.version + 1));
        assert_eq!(bench.get_attr(file).unwrap(), after);
        bench.check();
    });
}

#[test]
fn times_are_set_to_values_and_to_now() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let value = |seconds, nanos| Some(TimeChange { now: false, value: Some(Time { seconds, nanos }) });
    let now = Some(TimeChange { now: true, value: None });
    let after = bench.set_attr(SetAttr { atime: value(-5, 999_999_999), mtime: now, ..set(file) }).unwrap();
    assert_eq!(after.atime, Some(Time { seconds: -5, nanos: 999_999_999 }));
    assert_eq!((after.mtime, after.ctime), (Some(bench.now.into()), Some(bench.now.into())));
    let ctime = Some(Time { seconds: 77, nanos: 1 });
    let after = bench.set_attr(SetAttr { mtime: value(9, 0), ctime, ..set(file) }).unwrap();
    assert_eq!((after.mtime, after.ctime), (Some(Time { seconds: 9, nanos: 0 }), ctime));
    for bad in [
        value(1, 1_000_000_000),
        Some(TimeChange { now: true, value: Some(Time::default()) }),
        Some(TimeChange::default()),
    ] {
        assert_eq!(code(bench.set_attr(SetAttr { atime: bad, ..set(file) })), Code::Invalid);
    }
}

#[test]
fn giving_a_file_away_takes_its_set_id_bits_and_capabilities() {
    let mut bench = Bench::new();
    let file = bench.create(Create { mode: 0o6755, ..new(ROOT, "file", FileKind::Regular) }).unwrap().ino;
    bench.set_xattr(file, "security.capability", b"caps").unwrap();
    bench.set_xattr(file, "user.kept", b"1").unwrap();
    let after = bench.set_attr(SetAttr { gid: Some(5), ..set(file) }).unwrap();
    assert_eq!((after.mode, after.gid), (0o755, 5));
    assert_eq!(bench.list_xattr(file), ["user.kept"]);
    bench.set_attr(mode(file, 0o6644)).unwrap();
    assert_eq!(bench.set_attr(SetAttr { uid: Some(5), ..set(file) }).unwrap().mode, 0o2644);
    // chmod and chown in one: the mode asked for is the mode set.
    let both = SetAttr { uid: Some(6), ..mode(file, 0o4711) };
    assert_eq!(bench.set_attr(both).unwrap().mode, 0o4711);
    let dir = bench.create(Create { mode: 0o2755, ..new(ROOT, "dir", FileKind::Directory) }).unwrap().ino;
    assert_eq!(bench.set_attr(SetAttr { gid: Some(5), ..set(dir) }).unwrap().mode, 0o2755);
    bench.check();
}

#[test]
fn a_size_is_cut_and_extended() {
    on_every_store(|bench| {
        for node in 1..=3 {
            bench.join(node, &format!("host{node}"));
        }
        let file = bench.make_file(ROOT, "file");
        bench.write(Ino(file), &[(0, 100), (100, 100), (1000, 100)]);
        let before = bench.get_attr(file).unwrap();
        let cut = bench.set_attr(size(file, 150)).unwrap();
        let now = Some(bench.now.into());
        assert_eq!((cut.size, cut.allocated_bytes, cut.version), (150, 150, before.version + 1));
        assert_eq!((cut.mtime, cut.ctime), (now, now));
        bench.check();
        let grown = bench.set_attr(size(file, 5000)).unwrap();
        assert_eq!((grown.size, grown.allocated_bytes), (5000, 150), "what is new is a hole");
        bench.check();
        bench.set_attr(size(file, 0)).unwrap();
        assert!(bench.plan(Ino(file)).extents.is_empty());
        bench.check();
    });
}

#[test]
fn the_same_size_again_changes_nothing_by_itself() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let before = bench.set_attr(size(file, 10)).unwrap();
    assert_eq!(bench.set_attr(size(file, 10)).unwrap(), before, "truncate(2)");
    let now = Some(TimeChange { now: true, value: None });
    let after = bench.set_attr(SetAttr { mtime: now, ..size(file, 10) }).unwrap();
    assert_eq!(after.mtime, Some(bench.now.into()), "ftruncate(2)");
    assert_eq!(after.version, before.version + 1);
}

#[test]
fn a_change_of_nothing_is_a_change() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let after = bench.set_attr(set(file)).unwrap();
    assert_eq!((after.ctime, after.version), (Some(bench.now.into()), 2), "chown(2) with -1 and -1");
}

#[test]
fn sizes_are_checked() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let fifo = bench.create(new(ROOT, "fifo", FileKind::Fifo)).unwrap().ino;
    assert_eq!(bench.set_attr(size(file, limits::MAX_FILE_SIZE)).unwrap().size, limits::MAX_FILE_SIZE);
    assert_eq!(code(bench.set_attr(size(file, limits::MAX_FILE_SIZE + 1))), Code::TooBig);
    assert_eq!(code(bench.set_attr(size(ROOT, 0))), Code::IsADirectory);
    assert_eq!(code(bench.set_attr(size(fifo, 0))), Code::Invalid);
    assert_eq!(code(bench.set_attr(size(99, 0))), Code::Stale);
    bench.check();
}

#[test]
fn truncating_takes_set_id_bits_where_asked() {
    let mut bench = Bench::new();
    let file = bench.create(Create { mode: 0o6755, ..new(ROOT, "file", FileKind::Regular) }).unwrap().ino;
    assert_eq!(bench.set_attr(size(file, 10)).unwrap().mode, 0o6755);
    let kill = SetAttr { kill_set_id: true, ..size(file, 10) };
    assert_eq!(bench.set_attr(kill).unwrap().mode, 0o755);
}

#[test]
fn modes_are_checked_and_access_lists_follow() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let none = u32::MAX;
    let list = |owner, mask, other| {
        acl(&[(1, owner, none), (2, 7, 1000), (4, 5, none), (16, mask, none), (32, other, none)])
    };
    bench.set_xattr(file, "system.posix_acl_access", &list(7, 7, 5)).unwrap();
    assert_eq!(bench.get_attr(file).unwrap().mode, 0o775);
    bench.set_attr(mode(file, 0o640)).unwrap();
    assert_eq!(bench.get_xattr(file, "system.posix_acl_access").unwrap(), list(6, 4, 0));
    assert_eq!(code(bench.set_attr(mode(file, 0o100_644))), Code::Invalid);
    let link = Create { target: "x".into(), ..new(ROOT, "link", FileKind::Symlink) };
    let link = bench.create(link).unwrap().ino;
    assert_eq!(code(bench.set_attr(mode(link, 0o600))), Code::NotSupported);
    bench.set_attr(SetAttr { uid: Some(3), ..set(link) }).unwrap();
    assert_eq!(bench.get_attr(link).unwrap().mode, 0o777);
    bench.check();
}
