//! Makes a file of any kind: open(2) with O_CREAT, mkdir(2), mknod(2), symlink(2).

use dfs_proto::meta::Create;
use dfs_proto::{Attr, Code, Failure, FileKind, Ino, Name, limits};

use super::{Context, acl, counters, data_keys, directory, inode, xattrs};
use crate::store::records::Inode;

/// EEXIST, EINVAL, EMLINK, ENAMETOOLONG, ENOENT (the directory was removed), ENOKEY (opened, and the client can't write to it),
/// ENOTDIR; ESTALE when it is gone.
///
/// Without `exclusive` a regular file that is there already is returned as it is; anything else of that name is ESTALE,
/// upon which the kernel looks the name up again and goes the way of what it finds.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Create) -> Result<Attr, Failure> {
    let name = Name::parse(request.name.clone())?;
    let kind = check(request)?;
    let parent = Ino(request.parent);
    if request.open {
        cx.live.opens.check_room(cx.session)?;
    }
    let mut directory = directory::load_living(cx, parent)?;
    if let Some(found) = directory::find(cx, parent, &name)? {
        return take_existing(cx, request, &name, found);
    }

    if request.open {
        data_keys::check_has(cx, directory.data_key, &request.keys)?;
    }
    let ino = Ino(counters::take(cx, counters::LAST_INO)?);
    let mut new = Inode {
        kind: kind.into(),
        uid: request.uid,
        gid: request.gid,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        rdev: request.rdev,
        size: request.target.len() as u64,
        atime: cx.now.into(),
        mtime: cx.now.into(),
        ctime: cx.now.into(),
        version: 1,
        class: directory.class.clone(),
        target: request.target.to_vec(),
        parent: if kind == FileKind::Directory { parent.0 } else { 0 },
        data_key: directory.data_key,
        ..Inode::default()
    };
    set_mode(cx, parent, &directory, request, ino, &mut new)?;
    inode::save(cx, ino, &new);
    data_keys::hold(cx, new.data_key)?;
    counters::add(cx, counters::FILES, 1)?;

    directory::add(cx, parent, &name, ino, kind);
    if kind == FileKind::Directory {
        directory::add_subdirectory(&mut directory)?;
    }
    inode::contents_changed(&mut directory, cx.now);
    inode::save(cx, parent, &directory);
    if request.open {
        cx.live.opens.open(cx.session, ino);
    }
    Ok(inode::attr(ino, &new))
}

/// The kind, and what must fit it.
fn check(request: &Create) -> Result<FileKind, Failure> {
    let kind = request.kind();
    let bad = |message: &str| Err(Failure::new(Code::Invalid, message));
    match kind {
        FileKind::Unknown => return bad("a file of unknown kind cannot be made"),
        FileKind::Symlink if request.target.is_empty() => {
            return Err(Failure::new(Code::NotFound, "a symbolic link's target may not be empty"));
        }
        FileKind::Symlink if request.target.len() > limits::MAX_SYMLINK => {
            let message = format!("a symbolic link's target is at most {} bytes long", limits::MAX_SYMLINK);
            return Err(Failure::new(Code::NameTooLong, message));
        }
        FileKind::Symlink if request.target.contains(&0) => return bad("a target may not contain NUL"),
        FileKind::Symlink => {}
        _ if !request.target.is_empty() => return bad("only a symbolic link has a target"),
        _ => {}
    }
    if request.rdev != 0 && !matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
        return bad("only a device file has a device number");
    }
    if request.open && kind != FileKind::Regular {
        return bad("only a regular file is opened as it is made");
    }
    if request.mode & !inode::MODE_BITS != 0 {
        return bad("a mode has no bits but 07777");
    }
    Ok(kind)
}

/// The name is taken.
fn take_existing(
    cx: &mut Context<'_, '_>,
    request: &Create,
    name: &Name,
    (ino, kind): (Ino, FileKind),
) -> Result<Attr, Failure> {
    match kind {
        _ if request.exclusive || request.kind() != FileKind::Regular => {
            Err(directory::taken(Ino(request.parent), name))
        }
        FileKind::Regular => {
            let found = inode::load(cx, ino)?;
            if request.open {
                data_keys::check_has(cx, found.data_key, &request.keys)?;
                cx.live.opens.open(cx.session, ino);
            }
            Ok(inode::attr(ino, &found))
        }
        FileKind::Directory => Err(Failure::new(Code::IsADirectory, format!("{name} is a directory"))),
        _ => Err(Failure::new(Code::Stale, format!("{name} is there by now and not a regular file"))),
    }
}

/// Mode, group and ACLs, after the kernel's `inode_init_owner` and `posix_acl_create`. In a set-group-id directory
/// everything gets the directory's group, and directories the bit as well. Whether the caller may give the bit to a
/// file it does not share a group with depends on the caller's groups, which the kernel knows and has decided on.
fn set_mode(
    cx: &mut Context<'_, '_>,
    parent: Ino,
    directory: &Inode,
    request: &Create,
    ino: Ino,
    new: &mut Inode,
) -> Result<(), Failure> {
    let is_directory = new.kind() == FileKind::Directory;
    if new.kind() == FileKind::Symlink {
        new.mode = 0o777;
    } else {
        let inherited = acl::inherit(cx, parent, directory, request.mode, request.umask, is_directory)?;
        new.mode = inherited.mode;
        for (name, list) in [(xattrs::ACCESS_ACL, inherited.access), (xattrs::DEFAULT_ACL, inherited.default)]
        {
            if let Some(list) = list {
                xattrs::put(cx, ino, new, name, list.to_bytes());
            }
        }
    }
    if directory.mode & inode::S_ISGID != 0 {
        new.gid = directory.gid;
        if is_directory {
            new.mode |= inode::S_ISGID;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::acl::tests::bytes as acl;
    use super::super::shorthand::{ROOT, code, new};
    use super::super::testing::{Bench, on_every_store};
    use super::*;
    use dfs_proto::meta::{SetAttr, request};
    use dfs_proto::{SessionId, Timestamp};

    #[test]
    fn every_kind_is_made_as_asked() {
        on_every_store(|bench| {
            for kind in 1..=7 {
                let kind = FileKind::try_from(kind).unwrap();
                let name = format!("{kind:?}");
                let target = if kind == FileKind::Symlink { "to" } else { "" };
                let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
                let made = bench
                    .create(Create {
                        uid: 7,
                        gid: 8,
                        umask: 0o027,
                        target: target.into(),
                        rdev: if device { 0x0103 } else { 0 },
                        ..new(ROOT, &name, kind)
                    })
                    .unwrap();
                assert_eq!(made.kind(), kind);
                assert_eq!((made.uid, made.gid), (7, 8));
                let symlink = kind == FileKind::Symlink;
                assert_eq!(made.mode, if symlink { 0o777 } else { 0o750 }, "a symlink has no umask");
                assert_eq!(made.nlink, if kind == FileKind::Directory { 2 } else { 1 });
                assert_eq!((made.size, made.version), (target.len() as u64, 1));
                assert_eq!(made.rdev, if device { 0x0103 } else { 0 });
                let now = Some(bench.now.into());
                assert_eq!((made.atime, made.mtime, made.ctime), (now, now, now));
                assert_eq!(bench.lookup(ROOT, &name).unwrap(), made);
            }
            let root = bench.get_attr(ROOT).unwrap();
            assert_eq!((root.nlink, root.version), (3, 8), "one subdirectory, seven changes");
            assert_eq!(root.mtime, root.ctime);
            bench.check();
        });
    }

    #[test]
    fn names_and_requests_are_checked() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let mut failure = |create: Create| code(bench.create(create));
        let regular = |name: &str| new(ROOT, name, FileKind::Regular);
        assert_eq!(failure(regular("")), Code::Invalid);
        assert_eq!(failure(regular("..")), Code::Invalid);
        assert_eq!(failure(regular("a/b")), Code::Invalid);
        assert_eq!(failure(regular(&"x".repeat(256))), Code::NameTooLong);
        assert_eq!(failure(regular("file")), Code::Exists);
        assert_eq!(failure(new(file, "x", FileKind::Regular)), Code::NotADirectory);
        assert_eq!(failure(new(99, "x", FileKind::Regular)), Code::Stale);
        assert_eq!(failure(new(ROOT, "x", FileKind::Unknown)), Code::Invalid);
        assert_eq!(failure(new(ROOT, "x", FileKind::Symlink)), Code::NotFound, "an empty target");
        let symlink = |target: Vec<u8>| Create { target: target.into(), ..new(ROOT, "x", FileKind::Symlink) };
        assert_eq!(failure(symlink(vec![b'x'; 4096])), Code::NameTooLong);
        assert_eq!(failure(symlink(b"a\0b".to_vec())), Code::Invalid);
        assert_eq!(failure(Create { target: "x".into(), ..regular("x") }), Code::Invalid);
        assert_eq!(failure(Create { rdev: 1, ..regular("x") }), Code::Invalid);
        assert_eq!(failure(Create { mode: 0o100_644, ..regular("x") }), Code::Invalid);
        assert_eq!(failure(Create { open: true, ..new(ROOT, "x", FileKind::Fifo) }), Code::Invalid);
        assert!(bench.create(symlink(vec![b'x'; 4095])).is_ok());
        bench.check();
    }

    #[test]
    fn what_is_there_is_opened_unless_it_must_be_new() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        bench.make_dir(ROOT, "dir");
        bench.create(Create { target: "file".into(), ..new(ROOT, "link", FileKind::Symlink) }).unwrap();
        let version = bench.get_attr(ROOT).unwrap().version;
        let shared = |name| Create { exclusive: false, open: true, ..new(ROOT, name, FileKind::Regular) };
        assert_eq!(bench.create(shared("file")).unwrap().ino, file);
        assert_eq!(bench.live.opens.count(SessionId(1)), 1);
        assert_eq!(bench.get_attr(ROOT).unwrap().version, version, "nothing was made");
        assert_eq!(code(bench.create(shared("dir"))), Code::IsADirectory);
        assert_eq!(code(bench.create(shared("link"))), Code::Stale);
        assert_eq!(code(bench.create(Create { exclusive: true, ..shared("file") })), Code::Exists);
        let again = Create { exclusive: false, ..new(ROOT, "dir", FileKind::Directory) };
        assert_eq!(code(bench.create(again)), Code::Exists, "mkdir(2) never takes what is there");
        let made = bench.create(shared("new")).unwrap();
        assert_eq!(bench.live.opens.sessions_of(Ino(made.ino)).count(), 1);
        assert_eq!(code(bench.run_as(SessionId(0), request::Op::Create(shared("other")))), Code::Invalid);
    }

    #[test]
    fn a_directory_that_was_removed_takes_nothing() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        bench.open(dir).unwrap();
        bench.rmdir(ROOT, "dir").unwrap();
        assert_eq!(code(bench.create(new(dir, "x", FileKind::Regular))), Code::NotFound);
        bench.close(dir);
        assert_eq!(code(bench.create(new(dir, "x", FileKind::Regular))), Code::Stale);
        bench.check();
    }

    #[test]
    fn a_set_group_id_directory_passes_on_its_group() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        bench
            .set_attr(SetAttr { ino: dir, gid: Some(50), mode: Some(0o2775), ..SetAttr::default() })
            .unwrap();
        let file = bench.create(Create { gid: 8, ..new(dir, "file", FileKind::Regular) }).unwrap();
        assert_eq!((file.gid, file.mode), (50, 0o777));
        let sub = bench.create(Create { gid: 8, ..new(dir, "sub", FileKind::Directory) }).unwrap();
        assert_eq!((sub.gid, sub.mode), (50, 0o2777));
        let link = Create { gid: 8, target: "x".into(), ..new(dir, "link", FileKind::Symlink) };
        assert_eq!(bench.create(link).unwrap().gid, 50);
    }

    #[test]
    fn a_default_acl_takes_the_place_of_the_umask() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        let none = u32::MAX;
        let default = acl(&[(1, 7, none), (2, 6, 1000), (4, 5, none), (16, 6, none), (32, 1, none)]);
        bench.set_xattr(dir, "system.posix_acl_default", &default).unwrap();
        let file =
            bench.create(Create { mode: 0o666, umask: 0o077, ..new(dir, "f", FileKind::Regular) }).unwrap();
        assert_eq!(file.mode, 0o660);
        let access = acl(&[(1, 6, none), (2, 6, 1000), (4, 5, none), (16, 6, none), (32, 0, none)]);
        assert_eq!(bench.get_xattr(file.ino, "system.posix_acl_access").unwrap(), access);
        assert_eq!(code(bench.get_xattr(file.ino, "system.posix_acl_default")), Code::NoData);
        let sub = bench.create(Create { mode: 0o777, ..new(dir, "sub", FileKind::Directory) }).unwrap();
        assert_eq!(sub.mode, 0o761);
        assert_eq!(bench.get_xattr(sub.ino, "system.posix_acl_default").unwrap(), default);
        let link = Create { target: "x".into(), ..new(dir, "link", FileKind::Symlink) };
        assert_eq!(bench.create(link).unwrap().mode, 0o777);

        let plain = acl(&[(1, 7, none), (4, 5, none), (32, 0, none)]);
        bench.set_xattr(dir, "system.posix_acl_default", &plain).unwrap();
        let file = bench.create(Create { mode: 0o666, ..new(dir, "g", FileKind::Regular) }).unwrap();
        assert_eq!(file.mode, 0o640);
        assert!(bench.list_xattr(file.ino).is_empty(), "the mode says it all");
        bench.check();
    }

    #[test]
    fn the_class_is_inherited() {
        let mut bench = Bench::new();
        let dir = bench.make_dir(ROOT, "dir");
        assert_eq!(bench.get_attr(dir).unwrap().class, "replicated:3");
        bench.set_xattr(dir, "dfs.class", b"replicated:2").unwrap();
        let sub = bench.make_dir(dir, "sub");
        let file = bench.make_file(sub, "file");
        assert_eq!(bench.get_attr(file).unwrap().class, "replicated:2");
        bench.set_xattr(dir, "dfs.class", b"replicated:1").unwrap();
        assert_eq!(bench.get_attr(sub).unwrap().class, "replicated:2", "what is there stays as it is");
    }

    #[test]
    fn a_failed_create_leaves_nothing_behind() {
        let mut bench = Bench::new();
        bench.make_file(ROOT, "file");
        let before = bench.get_attr(ROOT).unwrap();
        assert!(bench.create(new(ROOT, "file", FileKind::Regular)).is_err());
        assert_eq!(bench.get_attr(ROOT).unwrap(), before);
        assert_eq!(Timestamp::from(before.mtime.unwrap()).seconds, bench.now.seconds - 3);
    }
}
