//! The rules of setxattr(2), getxattr(2), listxattr(2) and removexattr(2), one by one.

use super::super::acl::tests::bytes as acl;
use super::super::shorthand::{ROOT, code, new};
use super::super::testing::{Bench, on_every_store};
use super::*;
use dfs_proto::meta::{Create, SetAttr, request};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NONE: u32 = u32::MAX;

#[test]
fn values_are_kept_as_given() {
    on_every_store(|bench| {
        let file = bench.make_file(ROOT, "file");
        let before = bench.get_attr(file).unwrap();
        let after = bench.set_xattr(file, "user.a", b"\0\xff").unwrap();
        assert_eq!((after.ctime, after.mtime), (Some(bench.now.into()), before.mtime));
        assert_eq!(after.version, before.version + 1);
        bench.set_xattr(file, "trusted.b", b"").unwrap();
        bench.set_xattr(file, "security.c", b"3").unwrap();
        assert_eq!(bench.get_xattr(file, "user.a").unwrap(), b"\0\xff");
        assert_eq!(bench.get_xattr(file, "trusted.b").unwrap(), b"");
        assert_eq!(bench.list_xattr(file), ["security.c", "trusted.b", "user.a"]);
        bench.set_xattr(file, "user.a", b"new").unwrap();
        assert_eq!(bench.get_xattr(file, "user.a").unwrap(), b"new");
        bench.check();
        for name in ["user.a", "trusted.b", "security.c"] {
            let removed = bench.remove_xattr(file, name).unwrap();
            assert_eq!(removed.ctime, Some(bench.now.into()));
            assert_eq!(code(bench.get_xattr(file, name)), Code::NoData);
            assert_eq!(code(bench.remove_xattr(file, name)), Code::NoData);
            bench.check();
        }
        assert!(bench.list_xattr(file).is_empty());
    });
}

#[test]
fn create_and_replace_look_first() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let set = |bench: &mut Bench, mode| bench.set_xattr_mode(file, "user.a", b"1", mode);
    assert_eq!(code(set(&mut bench, XattrMode::ReplaceOnly)), Code::NoData);
    set(&mut bench, XattrMode::Create).unwrap();
    assert_eq!(code(set(&mut bench, XattrMode::Create)), Code::Exists);
    set(&mut bench, XattrMode::ReplaceOnly).unwrap();
}

#[test]
fn names_namespaces_and_kinds_are_checked() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let fifo = bench.create(new(ROOT, "fifo", FileKind::Fifo)).unwrap().ino;
    let link = bench.create(Create { target: "x".into(), ..new(ROOT, "l", FileKind::Symlink) }).unwrap().ino;
    for (name, expected) in [
        ("", Code::Range),
        ("user.", Code::Invalid),
        ("other.x", Code::NotSupported),
        ("system.x", Code::NotSupported),
    ] {
        assert_eq!(code(bench.set_xattr(file, name, b"")), expected, "{name:?}");
        assert_eq!(code(bench.get_xattr(file, name)), expected, "{name:?}");
        assert_eq!(code(bench.remove_xattr(file, name)), expected, "{name:?}");
    }
    let long = format!("user.{}", "x".repeat(251));
    assert_eq!(code(bench.set_xattr(file, &long, b"")), Code::Range);
    bench.set_xattr(file, &long[..255], b"").unwrap();
    for special in [fifo, link] {
        assert_eq!(code(bench.set_xattr(special, "user.x", b"")), Code::NotPermitted);
        assert_eq!(code(bench.remove_xattr(special, "user.x")), Code::NotPermitted);
        assert_eq!(code(bench.get_xattr(special, "user.x")), Code::NoData);
        bench.set_xattr(special, "trusted.x", b"").unwrap();
        bench.set_xattr(special, "security.x", b"").unwrap();
    }
    bench.set_xattr(ROOT, "user.x", b"").unwrap();
    assert_eq!(code(bench.set_xattr(99, "user.x", b"")), Code::Stale);
    bench.check();
}

#[test]
fn attributes_are_bounded() {
    let mut bench = Bench::new();
    let file = bench.make_file(ROOT, "file");
    let value = vec![7; limits::MAX_XATTR_VALUE];
    assert_eq!(code(bench.set_xattr(file, "user.x", &[&value[..], b"1"].concat())), Code::ArgumentTooLong);
    for i in 0..3 {
        bench.set_xattr(file, &format!("user.{i}"), &value).unwrap();
    }
    assert_eq!(code(bench.set_xattr(file, "user.3", &value)), Code::NoAttributeSpace);
    bench.set_xattr(file, "user.0", &value).unwrap();
    bench.set_xattr(file, "user.3", &value[..1000]).unwrap();

    let other = bench.make_file(ROOT, "other");
    let most = xattrs::MAX_NAMES_TOTAL / 256;
    for i in 0..most {
        bench.set_xattr(other, &format!("user.{i:0>250}"), b"").unwrap();
    }
    assert_eq!(code(bench.set_xattr(other, "user.x", b"")), Code::NoAttributeSpace);
    assert_eq!(bench.list_xattr(other).len(), most);
    bench.check();
}

#[test]
fn an_access_list_sets_the_mode_and_is_kept_when_it_says_more() {
    let mut bench = Bench::new();
    let file = bench.create(Create { mode: 0o2755, ..new(ROOT, "file", FileKind::Regular) }).unwrap().ino;
    let named = acl(&[(1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (16, 5, NONE), (32, 1, NONE)]);
    assert_eq!(bench.set_xattr(file, ACCESS, &named).unwrap().mode, 0o2651);
    assert_eq!(bench.get_xattr(file, ACCESS).unwrap(), named);
    assert_eq!(bench.list_xattr(file), [ACCESS]);
    let kill = SetXattr {
        ino: file,
        name: ACCESS.into(),
        value: named.clone().into(),
        kill_set_gid: true,
        ..SetXattr::default()
    };
    assert_eq!(bench.attr(request::Op::SetXattr(kill)).unwrap().mode, 0o651);

    let plain = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 0, NONE)]);
    assert_eq!(bench.set_xattr(file, ACCESS, &plain).unwrap().mode, 0o750);
    assert_eq!(code(bench.get_xattr(file, ACCESS)), Code::NoData, "the mode says it all");
    bench.set_xattr(file, ACCESS, &named).unwrap();
    assert_eq!(bench.remove_xattr(file, ACCESS).unwrap().mode, 0o651, "the mode stays");
    assert!(bench.remove_xattr(file, ACCESS).is_ok(), "nothing to remove is no error");
    bench.set_xattr(file, ACCESS, &named).unwrap();
    bench.set_xattr(file, ACCESS, &acl(&[])).unwrap();
    assert!(bench.list_xattr(file).is_empty(), "an empty list is none");
    assert_eq!(
        code(bench.set_xattr(file, ACCESS, b"nonsense")),
        Code::NotSupported,
        "its version is unknown"
    );
    assert_eq!(code(bench.set_xattr(file, ACCESS, &named[..20])), Code::Invalid);
    bench.check();
}

#[test]
fn default_lists_are_for_directories() {
    let mut bench = Bench::new();
    let (file, dir) = (bench.make_file(ROOT, "file"), bench.make_dir(ROOT, "dir"));
    let link = bench.create(Create { target: "x".into(), ..new(ROOT, "l", FileKind::Symlink) }).unwrap().ino;
    let plain = acl(&[(1, 7, NONE), (4, 5, NONE), (32, 0, NONE)]);
    let before = bench.get_attr(dir).unwrap().mode;
    assert_eq!(bench.set_xattr(dir, DEFAULT, &plain).unwrap().mode, before);
    assert_eq!(bench.get_xattr(dir, DEFAULT).unwrap(), plain, "kept even where a mode could say it");
    assert_eq!(code(bench.set_xattr(file, DEFAULT, &plain)), Code::AccessDenied);
    assert_eq!(code(bench.set_xattr(link, DEFAULT, &plain)), Code::NotSupported);
    assert_eq!(code(bench.set_xattr(link, ACCESS, &plain)), Code::NotSupported);
    bench.remove_xattr(dir, DEFAULT).unwrap();
    assert!(bench.list_xattr(dir).is_empty());
    bench.check();
}

#[test]
fn a_class_that_the_cluster_cannot_hold_is_refused() {
    let mut bench = Bench::with_nodes(5);
    let dir = bench.make_dir(ROOT, "dir");
    let failure = bench.set_xattr(dir, "dfs.class", b"ec:4+2").unwrap_err();
    assert_eq!(failure.code, Code::Invalid);
    assert!(failure.message.contains("needs 6 chunk daemons, and there are 5"), "{failure}");
    assert_eq!(bench.get_xattr(dir, "dfs.class").unwrap(), b"replicated:3");
    bench.join(6, "host6");
    bench.set_xattr(dir, "dfs.class", b"ec:4+2").unwrap();
    let failure = bench.set_xattr(dir, "dfs.class", b"auto,zone=moon").unwrap_err();
    assert!(failure.message.contains("in the zone \"moon\""), "{failure}");
}

#[test]
fn the_class_is_shown_everywhere_and_set_on_directories() {
    let mut bench = Bench::new();
    let dir = bench.make_dir(ROOT, "dir");
    let file = bench.make_file(dir, "file");
    assert_eq!(bench.get_xattr(file, "dfs.class").unwrap(), b"replicated:3");
    let before = bench.get_attr(dir).unwrap();
    let after = bench.set_xattr(dir, "dfs.class", b"replicated:2\n").unwrap();
    assert_eq!((after.class.as_str(), after.version), ("replicated:2", before.version + 1));
    assert_eq!(bench.get_xattr(dir, "dfs.class").unwrap(), b"replicated:2");
    for bad in [&b"replicated:9"[..], b"", b"\xff"] {
        assert_eq!(code(bench.set_xattr(dir, "dfs.class", bad)), Code::Invalid);
    }
    assert_eq!(code(bench.set_xattr(file, "dfs.class", b"replicated:1")), Code::NotSupported);
    assert_eq!(code(bench.remove_xattr(dir, "dfs.class")), Code::NotPermitted);
    let create = bench.set_xattr_mode(dir, "dfs.class", b"replicated:1", XattrMode::Create);
    assert_eq!(code(create), Code::Exists);
    assert!(bench.list_xattr(dir).is_empty(), "programs that copy attributes do not find it");
    let chmod = SetAttr { ino: dir, mode: Some(0o700), ..SetAttr::default() };
    assert_eq!(bench.set_attr(chmod).unwrap().class, "replicated:2");
}
