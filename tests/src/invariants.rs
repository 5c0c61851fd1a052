//! What must hold of a cluster whenever nothing is in flight, checked from outside: by the metadata server's own figures
//! beside the tree that a mount shows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_admin::server::Server;
use dfs_proto::meta::{PathOf, reply, request};

use crate::cluster::{Cluster, block_on};
use crate::tree::{Content, Tree};

/// How long figures may lag behind: heartbeats and the collection of garbage go their own pace.
const SETTLE: Duration = Duration::from_secs(30);

/// Checks the whole cluster against what a mount of its root shows.
///
/// # Panics
/// At the first invariant that does not hold.
pub fn check(cluster: &Cluster, mount: &Path) {
    let tree = Tree::read(mount);
    check_links(&tree);
    check_paths(cluster, mount, &tree);
    check_figures(cluster, &tree);
}

/// Each inode's number of links is the number of its names; a directory's, 2 and one for each directory in it.
fn check_links(tree: &Tree) {
    let mut names: BTreeMap<&PathBuf, u64> = BTreeMap::new();
    let mut children: BTreeMap<&Path, u64> = BTreeMap::new();
    for (path, entry) in &tree.0 {
        *names.entry(&entry.same_as).or_default() += 1;
        if let (Content::Directory, Some(parent)) = (&entry.content, path.parent()) {
            *children.entry(parent).or_default() += 1;
        }
    }
    for (path, entry) in &tree.0 {
        let expected = match entry.content {
            Content::Directory => 2 + children.get(path.as_path()).copied().unwrap_or(0),
            _ => names[&entry.same_as],
        };
        assert_eq!(entry.nlink, expected, "the links of {path:?}");
    }
}

/// The server knows every inode by the same paths as the mount shows.
fn check_paths(cluster: &Cluster, mount: &Path, tree: &Tree) {
    let mut shown: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for path in tree.0.keys().filter(|path| !path.as_os_str().is_empty()) {
        let ino = mount.join(path).symlink_metadata().expect("stat what was just listed").ino();
        let absolute = Path::new("/").join(path);
        shown.entry(ino).or_default().insert(absolute.as_os_str().as_bytes().to_vec());
    }
    block_on(async {
        let server = Server::connect(&[cluster.address().to_owned()]).await.expect("the server answers");
        for (ino, paths) in &shown {
            let known = match server.call(request::Op::PathOf(PathOf { ino: *ino })).await {
                Ok(reply::Result::Paths(known)) => known.paths,
                other => panic!("the paths of inode {ino} ({paths:?}): {other:?}"),
            };
            let known: BTreeSet<Vec<u8>> = known.iter().map(|path| path.to_vec()).collect();
            assert_eq!(&known, paths, "the paths of inode {ino}");
        }
    });
}

/// Nothing is missing, and the totals are those of the tree.
fn check_figures(cluster: &Cluster, tree: &Tree) {
    let inodes: BTreeSet<&PathBuf> = tree.0.values().map(|entry| &entry.same_as).collect();
    let files = inodes.len() as u64;
    cluster.wait_for(&format!("{files} files and no chunk missing"), SETTLE, |status| {
        status.classes.iter().all(|class| class.missing == 0) && status.files == files
    });
}
