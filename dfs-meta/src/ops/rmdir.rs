//! Removes an empty directory: rmdir(2).

use dfs_proto::meta::{Done, Rmdir};
use dfs_proto::{Code, Failure, FileKind, Ino, Name};

use super::{Context, directory, inode, orphan};

/// ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY; ESTALE when the parent is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Rmdir) -> Result<Done, Failure> {
    let name = Name::parse(request.name.clone())?;
    let parent = Ino(request.parent);
    let mut directory = inode::load_directory(cx, parent)?;
    let (ino, kind) = directory::get(cx, parent, &name)?;
    if kind != FileKind::Directory {
        return Err(Failure::new(Code::NotADirectory, format!("{name} is not a directory")));
    }
    directory::check_empty(cx, ino)?;
    let removed = inode::load(cx, ino)?;
    directory::remove(cx, parent, &name, ino);
    directory.nlink = directory.nlink.saturating_sub(1);
    inode::contents_changed(&mut directory, cx.now);
    inode::save(cx, parent, &directory);
    orphan::drop_link(cx, ino, removed)?;
    Ok(Done {})
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code};
    use super::super::testing::{Bench, on_every_store};
    use super::*;

    #[test]
    fn an_empty_directory_goes_and_its_parent_counts_one_less() {
        on_every_store(|bench| {
            let dir = bench.make_dir(ROOT, "dir");
            let sub = bench.make_dir(dir, "sub");
            assert_eq!(bench.get_attr(dir).unwrap().nlink, 3);
            assert_eq!(code(bench.rmdir(ROOT, "dir")), Code::NotEmpty);
            bench.rmdir(dir, "sub").unwrap();
            let left = bench.get_attr(dir).unwrap();
            assert_eq!((left.nlink, left.version), (2, 3));
            assert_eq!(code(bench.get_attr(sub)), Code::Stale);
            bench.check();
            bench.rmdir(ROOT, "dir").unwrap();
            assert_eq!(bench.get_attr(ROOT).unwrap().nlink, 2);
            bench.check();
        });
    }

    #[test]
    fn only_empty_directories_are_removed() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let dir = bench.make_dir(ROOT, "dir");
        bench.make_file(dir, "x");
        assert_eq!(code(bench.rmdir(ROOT, "file")), Code::NotADirectory);
        assert_eq!(code(bench.rmdir(ROOT, "dir")), Code::NotEmpty);
        assert_eq!(code(bench.rmdir(ROOT, "none")), Code::NotFound);
        assert_eq!(code(bench.rmdir(ROOT, ".")), Code::Invalid);
        assert_eq!(code(bench.rmdir(file, "x")), Code::NotADirectory);
        bench.check();
    }

    #[test]
    fn a_removed_directory_that_is_open_is_empty() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        bench.open(dir).unwrap();
        bench.rmdir(ROOT, "dir").unwrap();
        assert_eq!(bench.get_attr(dir).unwrap().nlink, 0);
        assert!(bench.names(dir, 0).is_empty());
        assert_eq!(bench.lookup(dir, "..").unwrap().ino, ROOT);
        bench.check();
        bench.close(dir);
        assert_eq!(code(bench.get_attr(dir)), Code::Stale);
        bench.check();
    }
}
