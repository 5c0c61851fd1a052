//! Trees on the local disk: what changes a digest, and what does not.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Remembers everything.
#[derive(Default)]
struct Seen {
    files: usize,
    bytes: u64,
    objects: usize,
    failed: Vec<(PathBuf, String)>,
    mounts: Vec<PathBuf>,
}

impl Observer for Seen {
    fn file(&mut self, _ino: u64) {
        self.files += 1;
    }

    fn read(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    fn object(&mut self, _kind: FileType) {
        self.objects += 1;
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        self.failed.push((path.to_owned(), error.to_string()));
    }

    fn other_mount(&mut self, path: &Path) {
        self.mounts.push(path.to_owned());
    }
}

fn of(root: &Path) -> TreeDigest {
    let mut seen = Seen::default();
    let digest = digest(root, &mut seen);
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    digest.expect("the digest of a tree that can be read")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("change a mode");
}

fn fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("make a fifo");
}

/// One of everything, its parts made in the order of `order`.
fn make(root: &Path, order: &[usize]) {
    fs::create_dir_all(root.join("d/e")).expect("make directories");
    let parts: [&dyn Fn(); 7] = [
        &|| fs::write(root.join("file"), vec![7; 1_500_000]).expect("write a file"),
        &|| fs::write(root.join("d/small"), "small").expect("write a file"),
        &|| fs::write(root.join("d/e/empty"), "").expect("write a file"),
        &|| symlink("d/small", root.join("link")).expect("make a link"),
        &|| symlink("..", root.join("d/e/up")).expect("make a link"),
        &|| fifo(&root.join("d/fifo")),
        &|| fs::write(root.join("d/\u{e9} and\nmore"), "name").expect("write a file"),
    ];
    order.iter().for_each(|part| parts[*part]());
    for (path, mode) in [("file", 0o640), ("d/small", 0o4755), ("d/e/empty", 0), ("d", 0o1777), ("", 0o755)] {
        chmod(&root.join(path), mode);
    }
}

#[test]
fn the_same_tree_has_the_same_digest_wherever_and_in_whatever_order_it_was_made() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (one, other) = (scratch.path().join("one"), scratch.path().join("deeper/other"));
    make(&one, &[0, 1, 2, 3, 4, 5, 6]);
    make(&other, &[6, 3, 5, 0, 4, 2, 1]);
    assert_eq!(of(&one), of(&other));
    // Times, and which names are links to one file, are no part of it.
    fs::remove_file(other.join("file")).expect("remove a file");
    fs::hard_link(one.join("file"), other.join("file")).expect("make a hard link");
    assert_eq!(of(&one), of(&other));
    let mut seen = Seen::default();
    digest(&one, &mut seen).expect("a digest");
    assert_eq!((seen.files, seen.objects), (3, 10), "empty files have no chunks");
    assert_eq!(seen.bytes, 1_500_000 + 5 + 4);
    assert_ne!(of(&one.join("file")), of(&one.join("d/small")), "a file alone has one, too");
}

#[test]
fn every_change_gives_another_digest_and_undoing_it_the_same_again() {
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().join("tree");
    make(&root, &[0, 1, 2, 3, 4, 5, 6]);
    let whole = of(&root);
    let mut seen = HashMap::from([(whole, "nothing".to_owned())]);
    let mut differs = |what: String| {
        let digest = of(&root);
        if let Some(before) = seen.insert(digest, what.clone()) {
            panic!("{what} gives the same digest as {before}");
        }
    };
    for name in ["file", "d/small"] {
        let path = root.join(name);
        let (content, mode) =
            (fs::read(&path).expect("read"), fs::metadata(&path).expect("look").permissions());
        for at in [0, content.len() / 2, content.len() - 1] {
            let mut changed = content.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).expect("write");
            fs::set_permissions(&path, mode.clone()).expect("restore a mode");
            differs(format!("byte {at} of {name}"));
        }
        for (what, changed) in [
            ("one byte more", [&content[..], &[0]].concat()),
            ("one byte less", content[..content.len() - 1].to_vec()),
            ("nothing left", Vec::new()),
        ] {
            fs::write(&path, &changed).expect("write");
            fs::set_permissions(&path, mode.clone()).expect("restore a mode");
            differs(format!("{what} of {name}"));
        }
        fs::write(&path, &content).expect("write");
        fs::set_permissions(&path, mode).expect("restore a mode");
    }
    assert_eq!(of(&root), whole);
    for name in ["", "file", "d", "d/small", "d/e", "d/e/empty", "d/fifo"] {
        let path = root.join(name);
        let mode = fs::metadata(&path).expect("look").permissions().mode() & MODE_BITS;
        for bit in 0..12 {
            // Not what would keep a test that is not root's from reading on.
            if bit == 8 || bit == 6 && mode & 0o700 == 0o700 {
                continue;
            }
            chmod(&path, mode ^ 1 << bit);
            differs(format!("bit {bit} of the mode of {name:?}"));
        }
        chmod(&path, mode);
    }
    let moves =
        [("file", "filf"), ("d/small", "small"), ("d/e", "d/f"), ("link", "linl"), ("d/e/up", "d/up")];
    for (from, to) in moves {
        fs::rename(root.join(from), root.join(to)).expect("rename");
        differs(format!("{from} is {to}"));
        fs::rename(root.join(to), root.join(from)).expect("rename");
    }
    let link = root.join("link");
    for target in ["d/smalm", "d", "d/small/"] {
        fs::remove_file(&link).expect("remove a link");
        symlink(target, &link).expect("make a link");
        differs(format!("a link to {target}"));
    }
    fs::remove_file(&link).expect("remove a link");
    differs("no link".into());
    fs::write(&link, "d/small").expect("write");
    chmod(&link, 0o777);
    differs("a file in place of a link".into());
    fs::remove_file(&link).expect("remove");
    fs::create_dir(&link).expect("make a directory");
    differs("a directory in place of a link".into());
    fs::remove_dir(&link).expect("remove");
    symlink("d/small", &link).expect("make a link");
    let empty = root.join("d/e/empty");
    fs::remove_file(&empty).expect("remove");
    fifo(&empty);
    chmod(&empty, 0);
    differs("a fifo in place of an empty file".into());
    fs::remove_file(&empty).expect("remove");
    fs::write(&empty, "").expect("write");
    chmod(&empty, 0);
    assert_eq!(of(&root), whole);
}

#[test]
fn what_cannot_be_read_is_named_and_leaves_no_digest() {
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().join("tree");
    fs::create_dir(&root).expect("make a directory");
    fs::write(root.join("readable"), "bytes").expect("write");
    let mut deep = root.clone();
    for _ in 0..MAX_DEPTH + 1 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("make directories");
    let mut seen = Seen::default();
    assert_eq!(digest(&root, &mut seen), None);
    assert_eq!((seen.failed.len(), seen.files), (1, 1), "{:?}", seen.failed);
    assert!(seen.failed[0].0 == deep && seen.failed[0].1.contains("deep"), "{:?}", seen.failed);
    let mut seen = Seen::default();
    assert_eq!(digest(&root.join("absent"), &mut seen), None);
    assert_eq!(seen.failed.len(), 1);
    assert!(seen.mounts.is_empty());
    // Names in the order of their bytes, whatever the order of the listing.
    let names: BTreeMap<&[u8], ()> = [(&b"a"[..], ()), (b"a b", ()), (b"ab", ())].into();
    let ordered = scratch.path().join("ordered");
    fs::create_dir(&ordered).expect("make a directory");
    chmod(&ordered, 0o755);
    let mut expected = DirectoryDigest::new(0o755, names.len() as u64);
    for name in names.keys() {
        fifo(&ordered.join(std::ffi::OsStr::from_bytes(name)));
        chmod(&ordered.join(std::ffi::OsStr::from_bytes(name)), 0o600);
        expected.add(name, &of_leaf(0o600, Leaf::Fifo));
    }
    assert_eq!(of(&ordered), expected.finish());
}
