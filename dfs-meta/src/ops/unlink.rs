//! Removes a name of a file, and with the last one the file, unless it is open: unlink(2).

use dfs_proto::meta::{Done, Unlink};
use dfs_proto::{Code, Failure, FileKind, Ino, Name};

use super::{Context, directory, inode, orphan};

/// EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR; ESTALE when the directory is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Unlink) -> Result<Done, Failure> {
    let name = Name::parse(request.name.clone())?;
    let parent = Ino(request.parent);
    let mut directory = inode::load_directory(cx, parent)?;
    let (ino, kind) = directory::get(cx, parent, &name)?;
    if kind == FileKind::Directory {
        return Err(Failure::new(Code::IsADirectory, format!("{name} is a directory")));
    }
    let unlinked = inode::load(cx, ino)?;
    directory::remove(cx, parent, &name, ino);
    inode::contents_changed(&mut directory, cx.now);
    inode::save(cx, parent, &directory);
    orphan::drop_link(cx, ino, unlinked)?;
    Ok(Done {})
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code};
    use super::super::testing::{Bench, on_every_store};
    use super::*;

    #[test]
    fn the_last_name_takes_the_file_along() {
        on_every_store(|bench| {
            let file = bench.make_file(ROOT, "a");
            bench.set_xattr(file, "user.x", b"1").unwrap();
            bench.link(file, ROOT, "b").unwrap();
            bench.unlink(ROOT, "a").unwrap();
            let left = bench.get_attr(file).unwrap();
            assert_eq!((left.nlink, left.version, left.ctime), (1, 4, Some(bench_time(bench, 1))));
            assert_eq!(code(bench.lookup(ROOT, "a")), Code::NotFound);
            bench.check();
            bench.unlink(ROOT, "b").unwrap();
            assert_eq!(code(bench.get_attr(file)), Code::Stale);
            let root = bench.get_attr(ROOT).unwrap();
            assert_eq!((root.mtime, root.ctime), (root.ctime, Some(bench_time(bench, 2))));
            bench.check();
        });
    }

    fn bench_time(bench: &Bench, ago: i64) -> dfs_proto::Time {
        dfs_proto::Time { seconds: bench.now.seconds - ago, nanos: 0 }
    }

    #[test]
    fn only_files_are_unlinked() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        bench.make_dir(ROOT, "dir");
        assert_eq!(code(bench.unlink(ROOT, "dir")), Code::IsADirectory);
        assert_eq!(code(bench.unlink(ROOT, "none")), Code::NotFound);
        assert_eq!(code(bench.unlink(file, "x")), Code::NotADirectory);
        assert_eq!(code(bench.unlink(99, "x")), Code::Stale);
        assert_eq!(code(bench.unlink(ROOT, "..")), Code::Invalid);
        assert_eq!(code(bench.unlink(ROOT, &"x".repeat(256))), Code::NameTooLong);
        bench.check();
    }
}
