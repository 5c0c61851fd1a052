//! The paths by which an inode can be reached, for people and tools.

use dfs_proto::meta::{PathOf, Paths};
use dfs_proto::{Code, Failure, Ino};

use super::{Context, inode};
use crate::store::keys;

/// Paths told of one inode.
const MAX_PATHS: usize = 64;
/// The longest path told, in bytes.
const MAX_PATH: usize = 32 * 1024;

/// ENAMETOOLONG when it lies too deep to be told; ESTALE when the inode is gone. No paths: it is only open somewhere.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &PathOf) -> Result<Paths, Failure> {
    let ino = Ino(request.ino);
    inode::load(cx, ino)?;
    if ino == Ino::ROOT {
        return Ok(Paths { paths: vec![b"/"[..].into()] });
    }
    let mut paths = Vec::new();
    for key in cx.tx.scan_keys(&keys::back_pointers(ino), MAX_PATHS)? {
        let (parent, name) = keys::back_pointer_parts(&key);
        paths.push(path(cx, parent, name)?.into());
    }
    Ok(Paths { paths })
}

/// Walks up from a name in `directory` to the root. A directory has one name.
fn path(cx: &mut Context<'_, '_>, mut directory: Ino, name: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut names = vec![name.to_vec()];
    let mut length = 1 + name.len();
    while directory != Ino::ROOT {
        let keys = cx.tx.scan_keys(&keys::back_pointers(directory), 1)?;
        let Some(key) = keys.first() else {
            return Err(Failure::new(Code::Corrupt, format!("directory {directory} has no name")));
        };
        let (parent, name) = keys::back_pointer_parts(key);
        length += 1 + name.len();
        if length > MAX_PATH {
            return Err(Failure::new(Code::NameTooLong, format!("the path is longer than {MAX_PATH} bytes")));
        }
        names.push(name.to_vec());
        directory = parent;
    }
    let mut path = Vec::with_capacity(length);
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code};
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::meta::{RenameMode, reply, request};

    fn paths(bench: &mut Bench, ino: u64) -> Result<Vec<String>, Failure> {
        match bench.run(request::Op::PathOf(PathOf { ino }))? {
            reply::Result::Paths(paths) => {
                Ok(paths.paths.iter().map(|path| String::from_utf8(path.to_vec()).unwrap()).collect())
            }
            other => panic!("not paths: {other:?}"),
        }
    }

    #[test]
    fn every_name_is_a_path() {
        let mut bench = Bench::new();
        let (a, b) = (bench.make_dir(ROOT, "a"), bench.make_dir(ROOT, "b"));
        let c = bench.make_dir(a, "c");
        let file = bench.make_file(c, "file");
        bench.link(file, b, "link").unwrap();
        assert_eq!(paths(&mut bench, ROOT).unwrap(), ["/"]);
        assert_eq!(paths(&mut bench, c).unwrap(), ["/a/c"]);
        let mut both = paths(&mut bench, file).unwrap();
        both.sort();
        assert_eq!(both, ["/a/c/file", "/b/link"]);
        bench.rename((a, "c"), (b, "moved"), RenameMode::Replace).unwrap();
        assert!(paths(&mut bench, file).unwrap().contains(&"/b/moved/file".to_owned()));
        for i in 0..70 {
            bench.link(file, a, &format!("{i}")).unwrap();
        }
        assert_eq!(paths(&mut bench, file).unwrap().len(), MAX_PATHS);
    }

    #[test]
    fn what_has_no_name_or_lies_too_deep_has_no_path() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        bench.open(file).unwrap();
        bench.unlink(ROOT, "file").unwrap();
        assert!(paths(&mut bench, file).unwrap().is_empty());
        assert_eq!(code(paths(&mut bench, 99)), Code::Stale);
        let name = "x".repeat(255);
        let mut deep = ROOT;
        for _ in 0..128 {
            deep = bench.make_dir(deep, &name);
        }
        assert_eq!(paths(&mut bench, deep).unwrap()[0].len(), MAX_PATH);
        let deeper = bench.make_dir(deep, "x");
        assert_eq!(code(paths(&mut bench, deeper)), Code::NameTooLong);
    }
}
