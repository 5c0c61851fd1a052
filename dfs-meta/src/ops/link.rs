//! Another name for a file: link(2).

use dfs_proto::meta::Link;
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, Name, limits};

use super::{Context, directory, inode};

/// EEXIST, EMLINK, ENAMETOOLONG, ENOENT (the file has no name any more, or the directory was removed), ENOTDIR, EPERM
/// (a directory); ESTALE when either is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Link) -> Result<Attr, Failure> {
    let name = Name::parse(request.name.clone())?;
    let (ino, parent) = (Ino(request.ino), Ino(request.parent));
    let mut linked = inode::load(cx, ino)?;
    let mut directory = directory::load_living(cx, parent)?;
    if directory::find(cx, parent, &name)?.is_some() {
        return Err(directory::taken(parent, &name));
    }
    if linked.kind() == FileKind::Directory {
        return Err(Failure::new(Code::NotPermitted, "a directory has only one name"));
    }
    match linked.nlink {
        0 => return Err(Failure::new(Code::NotFound, format!("inode {ino} has no name any more"))),
        limits::MAX_LINKS.. => {
            return Err(Failure::new(Code::TooManyLinks, format!("inode {ino} cannot have more names")));
        }
        _ => linked.nlink += 1,
    }
    inode::changed(&mut linked, cx.now);
    inode::save(cx, ino, &linked);
    directory::add(cx, parent, &name, ino, linked.kind());
    inode::contents_changed(&mut directory, cx.now);
    inode::save(cx, parent, &directory);
    Ok(inode::attr(ino, &linked))
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code};
    use super::super::testing::{Bench, on_every_store};
    use super::*;
    use crate::store::keys;
    use crate::store::records::Inode;
    use dfs_proto::SessionId;

    #[test]
    fn a_file_has_as_many_links_as_names() {
        on_every_store(|bench| {
            let file = bench.make_file(ROOT, "a");
            let dir = bench.make_dir(ROOT, "dir");
            let before = bench.get_attr(dir).unwrap();
            let linked = bench.link(file, dir, "b").unwrap();
            assert_eq!((linked.ino, linked.nlink, linked.version), (file, 2, 2));
            assert_eq!(linked.ctime, Some(bench.now.into()));
            assert_ne!(linked.mtime, linked.ctime);
            assert_eq!(bench.lookup(dir, "b").unwrap(), linked);
            let after = bench.get_attr(dir).unwrap();
            assert_eq!(
                (after.mtime, after.ctime, after.version),
                (linked.ctime, linked.ctime, before.version + 1)
            );
            bench.check();
        });
    }

    #[test]
    fn directories_and_unnamed_files_get_no_names() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        let file = bench.make_file(ROOT, "file");
        assert_eq!(code(bench.link(dir, ROOT, "x")), Code::NotPermitted);
        assert_eq!(code(bench.link(file, ROOT, "dir")), Code::Exists);
        assert_eq!(code(bench.link(file, file, "x")), Code::NotADirectory);
        assert_eq!(code(bench.link(file, ROOT, "a/b")), Code::Invalid);
        assert_eq!(code(bench.link(99, ROOT, "x")), Code::Stale);
        bench.open(file).unwrap();
        bench.unlink(ROOT, "file").unwrap();
        assert_eq!(code(bench.link(file, ROOT, "x")), Code::NotFound);
        bench.open(dir).unwrap();
        bench.rmdir(ROOT, "dir").unwrap();
        let other = bench.make_file(ROOT, "other");
        assert_eq!(code(bench.link(other, dir, "x")), Code::NotFound);
        bench.check();
    }

    #[test]
    fn links_are_limited() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let key = keys::inode(Ino(file));
        bench
            .with(SessionId(1), |cx| {
                let inode = cx.tx.get::<Inode>(&key)?.expect("just made");
                cx.tx.put(key.clone(), &Inode { nlink: limits::MAX_LINKS - 1, ..inode });
                Ok(())
            })
            .unwrap();
        assert_eq!(bench.link(file, ROOT, "one").unwrap().nlink, limits::MAX_LINKS);
        assert_eq!(code(bench.link(file, ROOT, "more")), Code::TooManyLinks);
    }
}
