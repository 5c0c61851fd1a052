//! The rules of rename(2), one by one.

use super::super::shorthand::{ROOT, code};
use super::super::testing::{Bench, on_every_store};
use super::*;
use RenameMode::{Exchange, NoReplace, Replace};
use dfs_proto::meta::request;

#[test]
fn a_name_moves_between_directories_and_both_say_when() {
    on_every_store(|bench| {
        let (from, to) = (bench.make_dir(ROOT, "from"), bench.make_dir(ROOT, "to"));
        let file = bench.make_file(from, "a");
        let made = bench.get_attr(file).unwrap();
        bench.rename((from, "a"), (to, "b"), Replace).unwrap();
        let now = Some(bench.now.into());
        assert_eq!(code(bench.lookup(from, "a")), Code::NotFound);
        let moved = bench.lookup(to, "b").unwrap();
        assert_eq!((moved.ino, moved.nlink, moved.ctime), (file, 1, now));
        assert_eq!((moved.mtime, moved.version), (made.mtime, made.version + 1));
        for directory in [from, to] {
            let attr = bench.get_attr(directory).unwrap();
            assert_eq!((attr.mtime, attr.ctime, attr.nlink), (now, now, 2));
        }
        bench.check();
    });
}

#[test]
fn a_directory_that_moves_has_a_new_parent() {
    let mut bench = Bench::new();
    let (from, to) = (bench.make_dir(ROOT, "from"), bench.make_dir(ROOT, "to"));
    let dir = bench.make_dir(from, "dir");
    bench.make_dir(dir, "below");
    bench.rename((from, "dir"), (to, "moved"), Replace).unwrap();
    assert_eq!(bench.lookup(dir, "..").unwrap().ino, to);
    assert_eq!((bench.get_attr(from).unwrap().nlink, bench.get_attr(to).unwrap().nlink), (2, 3));
    bench.check();
    bench.rename((to, "moved"), (to, "again"), Replace).unwrap();
    assert_eq!(bench.get_attr(to).unwrap().nlink, 3);
    bench.check();
}

#[test]
fn what_is_replaced_loses_its_name() {
    let mut bench = Bench::new();
    let a = bench.make_file(ROOT, "a");
    let b = bench.make_file(ROOT, "b");
    bench.link(b, ROOT, "other").unwrap();
    bench.rename((ROOT, "a"), (ROOT, "b"), Replace).unwrap();
    assert_eq!(bench.lookup(ROOT, "b").unwrap().ino, a);
    let left = bench.get_attr(b).unwrap();
    assert_eq!((left.nlink, left.ctime), (1, bench.get_attr(a).unwrap().ctime));
    bench.open(b).unwrap();
    bench.rename((ROOT, "b"), (ROOT, "other"), Replace).unwrap();
    assert_eq!(bench.get_attr(b).unwrap().nlink, 0, "it is open");
    bench.check();
    bench.close(b);
    assert_eq!(code(bench.get_attr(b)), Code::Stale);
    bench.check();
}

#[test]
fn a_directory_replaces_an_empty_one_only() {
    let mut bench = Bench::new();
    let (a, b) = (bench.make_dir(ROOT, "a"), bench.make_dir(ROOT, "b"));
    let full = bench.make_dir(ROOT, "full");
    bench.make_file(full, "x");
    bench.make_file(ROOT, "file");
    assert_eq!(code(bench.rename((ROOT, "a"), (ROOT, "full"), Replace)), Code::NotEmpty);
    assert_eq!(code(bench.rename((ROOT, "a"), (ROOT, "file"), Replace)), Code::NotADirectory);
    assert_eq!(code(bench.rename((ROOT, "file"), (ROOT, "a"), Replace)), Code::IsADirectory);
    bench.check();
    bench.rename((ROOT, "a"), (ROOT, "b"), Replace).unwrap();
    assert_eq!(bench.lookup(ROOT, "b").unwrap().ino, a);
    assert_eq!(code(bench.get_attr(b)), Code::Stale);
    assert_eq!(bench.get_attr(ROOT).unwrap().nlink, 4);
    bench.check();
    // Over an empty directory elsewhere: that one's parent loses one and gains one.
    let sub = bench.make_dir(full, "sub");
    bench.rename((ROOT, "b"), (full, "sub"), Replace).unwrap();
    assert_eq!((bench.get_attr(ROOT).unwrap().nlink, bench.get_attr(full).unwrap().nlink), (3, 3));
    assert_eq!(code(bench.get_attr(sub)), Code::Stale);
    bench.check();
}

#[test]
fn two_names_of_one_file_stay() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "a");
    bench.link(file, ROOT, "b").unwrap();
    let before = (bench.get_attr(file).unwrap(), bench.get_attr(ROOT).unwrap());
    for mode in [Replace, Exchange] {
        bench.rename((ROOT, "a"), (ROOT, "b"), mode).unwrap();
        bench.rename((ROOT, "a"), (ROOT, "a"), mode).unwrap();
    }
    assert_eq!(code(bench.rename((ROOT, "a"), (ROOT, "b"), NoReplace)), Code::Exists);
    assert_eq!(code(bench.rename((ROOT, "a"), (ROOT, "a"), NoReplace)), Code::Exists);
    assert_eq!((bench.get_attr(file).unwrap(), bench.get_attr(ROOT).unwrap()), before);
    assert_eq!(bench.names(ROOT, 0), ["a", "b"]);
    bench.check();
}

#[test]
fn nothing_moves_below_itself() {
    let mut bench = Bench::new();
    let a = bench.make_dir(ROOT, "a");
    let b = bench.make_dir(a, "b");
    let c = bench.make_dir(b, "c");
    let file = bench.make_file(c, "file");
    for below in [a, b, c] {
        assert_eq!(code(bench.rename((ROOT, "a"), (below, "x"), Replace)), Code::Invalid);
        assert_eq!(code(bench.rename((ROOT, "a"), (below, "x"), NoReplace)), Code::Invalid);
    }
    assert_eq!(code(bench.rename((b, "c"), (ROOT, "a"), Replace)), Code::NotEmpty);
    assert_eq!(code(bench.rename((b, "c"), (ROOT, "a"), Exchange)), Code::Invalid);
    assert_eq!(code(bench.rename((ROOT, "a"), (b, "c"), Exchange)), Code::Invalid);
    assert_eq!(code(bench.rename((c, "file"), (ROOT, "a"), Exchange)), Code::Invalid, "a would be in c");
    bench.check();
    bench.rename((b, "c"), (ROOT, "c"), Replace).unwrap();
    bench.rename((ROOT, "a"), (c, "a"), Replace).unwrap();
    assert_eq!(bench.lookup(c, "a").unwrap().ino, a);
    assert_eq!(bench.lookup(c, "file").unwrap().ino, file);
    bench.check();
}

#[test]
fn exchanged_names_keep_their_kinds_apart() {
    on_every_store(|bench| {
        let (left, right) = (bench.make_dir(ROOT, "left"), bench.make_dir(ROOT, "right"));
        let file = bench.make_file(left, "x");
        let dir = bench.make_dir(right, "y");
        bench.make_file(dir, "inside");
        bench.rename((left, "x"), (right, "y"), Exchange).unwrap();
        let now = Some(bench.now.into());
        assert_eq!(
            (bench.lookup(left, "x").unwrap().ino, bench.lookup(right, "y").unwrap().ino),
            (dir, file)
        );
        assert_eq!((bench.get_attr(left).unwrap().nlink, bench.get_attr(right).unwrap().nlink), (3, 2));
        assert_eq!(bench.lookup(dir, "..").unwrap().ino, left);
        for ino in [left, right, file, dir] {
            assert_eq!(bench.get_attr(ino).unwrap().ctime, now);
        }
        bench.check();
        let other = bench.make_dir(right, "z");
        bench.rename((left, "x"), (right, "z"), Exchange).unwrap();
        assert_eq!(
            (bench.lookup(left, "x").unwrap().ino, bench.lookup(right, "z").unwrap().ino),
            (other, dir)
        );
        bench.rename((right, "y"), (right, "z"), Exchange).unwrap();
        assert_eq!(bench.lookup(right, "y").unwrap().ino, dir);
        bench.check();
        assert_eq!(code(bench.rename((right, "y"), (right, "none"), Exchange)), Code::NotFound);
    });
}

#[test]
fn names_and_directories_are_checked() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let dir = bench.make_dir(ROOT, "dir");
    for mode in [Replace, NoReplace, Exchange] {
        assert_eq!(code(bench.rename((ROOT, "none"), (ROOT, "x"), mode)), Code::NotFound);
        assert_eq!(code(bench.rename((file, "x"), (ROOT, "x"), mode)), Code::NotADirectory);
        assert_eq!(code(bench.rename((ROOT, "file"), (file, "x"), mode)), Code::NotADirectory);
        assert_eq!(code(bench.rename((ROOT, "file"), (99, "x"), mode)), Code::Stale);
        assert_eq!(code(bench.rename((ROOT, "file"), (ROOT, ".."), mode)), Code::Invalid);
        assert_eq!(code(bench.rename((ROOT, "."), (ROOT, "x"), mode)), Code::Invalid);
        let long = "x".repeat(256);
        assert_eq!(code(bench.rename((ROOT, "file"), (ROOT, &long), mode)), Code::NameTooLong);
    }
    assert_eq!(code(bench.rename((ROOT, "file"), (ROOT, "dir"), NoReplace)), Code::Exists);
    bench.open(dir).unwrap();
    bench.rmdir(ROOT, "dir").unwrap();
    assert_eq!(code(bench.rename((ROOT, "file"), (dir, "x"), Replace)), Code::NotFound);
    let unknown =
        Rename { parent: ROOT, name: "file".into(), new_parent: ROOT, new_name: "x".into(), mode: 3 };
    assert_eq!(code(bench.done(request::Op::Rename(unknown))), Code::Invalid);
    bench.rename((ROOT, "file"), (ROOT, "x"), NoReplace).unwrap();
    bench.check();
}
