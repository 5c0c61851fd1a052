//! A session opens an inode: fresh attributes (close-to-open coherence) and the head of its extents.

use dfs_proto::meta::{Open, Opened};
use dfs_proto::{Code, Failure, FileKind, Ino};

use super::{Context, data_keys, inode, orphan, plan, set_attr};
use crate::store::keys;
use crate::store::records::Inode;

/// EISDIR (truncating a directory), EINVAL, ENOKEY (a regular file encrypted with a key that the client lacks); ESTALE when the inode is gone or lost its last name.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Open) -> Result<Opened, Failure> {
    let ino = Ino(request.ino);
    cx.live.opens.check_room(cx.session)?;
    let mut inode = inode::load(cx, ino)?;
    if inode.nlink == 0 && !cx.live.opens.sessions_of(ino).any(|session| session == cx.session) {
        // Whoever has it open may open it again, through /proc/self/fd; to others it is gone.
        return Err(Failure::new(Code::Stale, format!("inode {ino} has no name any more")));
    }
    if inode.kind() == FileKind::Regular {
        data_keys::check_has(cx, inode.data_key, &request.keys)?;
    }
    if request.truncate {
        // O_TRUNC counts as a change even where the file is empty already.
        set_attr::set_size(cx, ino, &mut inode, 0)?;
        if request.kill_set_id {
            inode::kill_set_id(cx, ino, &mut inode)?;
        }
        inode::contents_changed(&mut inode, cx.now);
        inode::save(cx, ino, &inode);
    }
    let plan = match inode.kind() {
        FileKind::Regular => Some(plan::head(cx, ino, &inode)?),
        _ => None,
    };
    cx.live.opens.open(cx.session, ino);
    Ok(Opened { attr: Some(inode::attr(ino, &inode)), plan })
}

/// An open or a create that was answered before is asked for again. Its answer is stored, but who has what open is not:
/// where the server was started anew in between, the session has to be told to have it open once more.
pub(super) fn again(cx: &mut Context<'_, '_>, ino: Ino) -> Result<(), Failure> {
    // Where the inode is gone meanwhile, the session learns it from its next operation on it.
    if let Some(inode) = cx.tx.get::<Inode>(&keys::inode(ino))? {
        if inode.nlink == 0 {
            orphan::adopt(cx, ino);
        }
        cx.live.opens.open(cx.session, ino);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code, new};
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::SessionId;
    use dfs_proto::meta::{Create, SetAttr, request};

    fn truncate(bench: &mut Bench, ino: u64, kill_set_id: bool) -> Result<Opened, Failure> {
        bench.opened(request::Op::Open(Open { ino, truncate: true, kill_set_id, ..Open::default() }))
    }

    #[test]
    fn an_open_brings_attributes_and_extents_of_one_version() {
        let mut bench = Bench::with_nodes(3);
        let file = bench.make_file(ROOT, "file");
        bench.write(Ino(file), &[(0, 10), (100, 10)]);
        let opened = bench.open(file).unwrap();
        let (attr, plan) = (opened.attr.unwrap(), opened.plan.unwrap());
        assert_eq!(attr, bench.get_attr(file).unwrap());
        assert_eq!((plan.extents.len(), plan.attr), (2, Some(attr)));
        assert!(bench.open(ROOT).unwrap().plan.is_none(), "a directory has no extents");
        assert_eq!(bench.live.opens.count(SessionId(1)), 2);
    }

    #[test]
    fn truncating_counts_as_a_change_even_of_an_empty_file() {
        let mut bench = Bench::with_nodes(3);
        let file = bench.make_file(ROOT, "file");
        bench.write(Ino(file), &[(0, 10)]);
        for _ in 0..2 {
            let before = bench.get_attr(file).unwrap();
            let opened = truncate(&mut bench, file, false).unwrap();
            let attr = opened.attr.unwrap();
            let now = Some(bench.now.into());
            assert_eq!((attr.size, attr.allocated_bytes, attr.mtime, attr.ctime), (0, 0, now, now));
            assert_eq!(attr.version, before.version + 1);
            assert!(opened.plan.unwrap().extents.is_empty());
            bench.check();
        }
        assert_eq!(code(truncate(&mut bench, ROOT, false)), Code::IsADirectory);
        let fifo = bench.create(new(ROOT, "fifo", FileKind::Fifo)).unwrap().ino;
        assert_eq!(code(truncate(&mut bench, fifo, false)), Code::Invalid);
    }

    #[test]
    fn truncating_takes_set_id_bits_from_those_who_may_not_keep_them() {
        let mut bench = Bench::new();
        let file = bench.create(Create { mode: 0o6755, ..new(ROOT, "file", FileKind::Regular) }).unwrap().ino;
        assert_eq!(truncate(&mut bench, file, false).unwrap().attr.unwrap().mode, 0o6755);
        assert_eq!(truncate(&mut bench, file, true).unwrap().attr.unwrap().mode, 0o755);
        bench.set_attr(SetAttr { ino: file, mode: Some(0o6644), ..SetAttr::default() }).unwrap();
        let mode = truncate(&mut bench, file, true).unwrap().attr.unwrap().mode;
        assert_eq!(mode, 0o2644, "without group execution the bit gives no rights");
    }

    #[test]
    fn an_answer_that_is_repeated_after_a_restart_opens_again() {
        let mut bench = Bench::new();
        let create = request::Op::Create(Create { open: true, ..new(ROOT, "file", FileKind::Regular) });
        let answer = bench.run(create.clone()).unwrap();
        let file = bench.lookup(ROOT, "file").unwrap().ino;
        bench.live.opens.remove_session(SessionId(1));
        bench.with(SessionId(1), |cx| crate::ops::repeat(cx, &create, &answer)).unwrap();
        bench.unlink(ROOT, "file").unwrap();
        assert_eq!(bench.get_attr(file).unwrap().nlink, 0);
        // And once more, as if it had lost its name before.
        bench.live.opens.remove_session(SessionId(1));
        bench.with(SessionId(1), |cx| crate::ops::repeat(cx, &create, &answer)).unwrap();
        bench.check();
        bench.close(file);
        assert_eq!(code(bench.get_attr(file)), Code::Stale);
        bench.with(SessionId(1), |cx| crate::ops::repeat(cx, &create, &answer)).unwrap();
        assert_eq!(bench.live.opens.count(SessionId(1)), 0, "it is gone");
        bench.check();
    }

    #[test]
    fn only_sessions_open_what_is_there() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        assert_eq!(code(bench.open(99)), Code::Stale);
        assert_eq!(code(bench.open_as(0, file)), Code::Invalid);
    }
}
