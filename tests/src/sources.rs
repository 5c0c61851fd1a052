//! A tree of source files as people have them, for tests of real work: unpacked crates of this workspace's own
//! dependencies, copied once to the local disk, with links, attributes and odd names added.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::programs;

/// At least so many files.
pub const FILES: usize = 3000;
/// Crates larger than this are left out: they hold prebuilt libraries.
const LARGE: u64 = 8 * 1024 * 1024;

/// The tree of at least [`FILES`] files, made below the target directory on first use. Nobody may change it.
///
/// # Panics
/// When there are not enough crates unpacked on this machine.
pub fn tree() -> PathBuf {
    let target = programs::target_directory();
    let tree = target.join("dfs-tests-sources");
    if !tree.exists() {
        let made = tempfile::Builder::new().prefix("sources-").tempdir_in(target).expect("make a directory");
        copy_to(&made.path().join("tree"));
        // Where another process was quicker, its tree is the same.
        if let Err(error) = fs::rename(made.path().join("tree"), &tree) {
            assert!(tree.exists(), "put the source tree in its place: {error}");
        }
    }
    tree
}

fn copy_to(target: &Path) {
    fs::create_dir(target).expect("make the tree's directory");
    let mut files = 0;
    for unpacked in crates() {
        if files >= FILES {
            break;
        }
        if size_below(&unpacked) <= LARGE {
            let name = unpacked.file_name().expect("a crate's directory has a name");
            files += copy(&unpacked, &target.join(name));
        }
    }
    assert!(files >= FILES, "only {files} files of crates are unpacked in {}", registry().display());
    add_oddities(target);
}

/// What source trees have beside plain files, and what a copy easily loses.
fn add_oddities(target: &Path) {
    let odd = target.join("odd things");
    fs::create_dir(&odd).expect("make a directory");
    fs::write(odd.join("read only"), "r").expect("write a file");
    fs::set_permissions(odd.join("read only"), fs::Permissions::from_mode(0o444)).expect("change a mode");
    fs::write(odd.join("script"), "#!/bin/sh\necho hello\n").expect("write a file");
    fs::set_permissions(odd.join("script"), fs::Permissions::from_mode(0o755)).expect("change a mode");
    fs::hard_link(odd.join("script"), odd.join("the same script")).expect("link a file");
    fs::write(odd.join("empty"), "").expect("write a file");
    fs::write(odd.join("naïve ☃ name\twith a tab"), "x").expect("write a file");
    symlink("script", odd.join("a link")).expect("make a link");
    symlink("../nowhere", odd.join("a dangling link")).expect("make a link");
    xattr::set(odd.join("script"), "user.comment", b"kept").expect("set an attribute");
    let sparse = fs::File::create(odd.join("sparse")).expect("write a file");
    sparse.set_len(50 << 20).expect("extend a file");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 30 << 20).expect("write a file");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(981_173_106_123_456_789);
    sparse.set_modified(old).expect("set a time");
    std::os::unix::fs::chown(odd.join("empty"), Some(1), Some(2)).expect("change an owner: this needs root");
}

/// The unpacked crates, in the order of their names.
fn crates() -> Vec<PathBuf> {
    let entries = |directory: &Path| {
        let list = fs::read_dir(directory).into_iter().flatten().flatten();
        list.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let mut found: Vec<PathBuf> = entries(&registry()).iter().flat_map(|index| entries(index)).collect();
    found.sort();
    found
}

fn registry() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    home.expect("there is a home directory").join("registry/src")
}

fn size_below(directory: &Path) -> u64 {
    crate::disks::files_below(directory).iter().map(|(_, length)| length).sum()
}

/// Copies a directory with modes and times, and tells how many files it held.
fn copy(from: &Path, to: &Path) -> usize {
    fs::create_dir(to).expect("make a directory");
    let mut files = 0;
    for entry in fs::read_dir(from).expect("list a directory") {
        let entry = entry.expect("list a directory");
        let target = to.join(entry.file_name());
        let metadata = entry.path().symlink_metadata().expect("look at a file");
        if metadata.is_dir() {
            files += copy(&entry.path(), &target);
        } else if metadata.is_file() {
            fs::copy(entry.path(), &target).expect("copy a file");
            let file = fs::File::open(&target).expect("open a file");
            file.set_modified(metadata.modified().expect("there is a time")).expect("set a time");
            assert_eq!(file.metadata().expect("look at a file").size(), metadata.size());
            files += 1;
        }
    }
    files
}
