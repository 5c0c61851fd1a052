//! A session's last handles on some inodes are closed. What has no name any more goes with its last close.

use dfs_proto::meta::{Close, Done};
use dfs_proto::{Code, Failure, Ino, Timestamp, limits};

use super::{Context, inode, orphan};
use crate::store::keys;
use crate::store::records::Inode;

/// EINVAL for too many at once. Inodes that are gone, or not open, are passed over: a close never fails for its file.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Close) -> Result<Done, Failure> {
    let most = limits::MAX_RECLAIM_ITEMS;
    if request.files.len() > most {
        return Err(Failure::new(Code::Invalid, format!("a close names at most {most} inodes")));
    }
    for file in &request.files {
        let ino = Ino(file.ino);
        let Some(mut inode) = cx.tx.get::<Inode>(&keys::inode(ino))? else { continue };
        if inode.nlink == 0 {
            orphan::release(cx, cx.session, ino, inode)?;
        } else if let Some(atime) = file.atime.map(Timestamp::from)
            && atime > inode.atime.into()
            // Closes come a little late: whoever changed the inode after that read, perhaps this very time, goes before.
            && atime > inode.ctime.into()
        {
            // Reading is no change: neither ctime nor version.
            inode.atime = atime.into();
            inode::save(cx, ino, &inode);
        }
    }
    for file in &request.files {
        cx.live.opens.close(cx.session, Ino(file.ino));
    }
    Ok(Done {})
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code};
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::meta::{ClosedFile, SetAttr, TimeChange, request};
    use dfs_proto::{SessionId, Time};

    #[test]
    fn many_are_closed_at_once_whatever_became_of_them() {
        let mut bench = Bench::new();
        let (a, b) = (bench.make_file(ROOT, "a"), bench.make_file(ROOT, "b"));
        bench.open(a).unwrap();
        bench.open(b).unwrap();
        bench.unlink(ROOT, "b").unwrap();
        let closed = |ino| ClosedFile { ino, atime: None };
        let files = vec![closed(a), closed(99), closed(b), closed(b), closed(ROOT)];
        bench.done(request::Op::Close(Close { files })).unwrap();
        assert_eq!(bench.live.opens.count(SessionId(1)), 0);
        assert_eq!(code(bench.get_attr(b)), Code::Stale);
        bench.check();
        let files = vec![closed(a); limits::MAX_RECLAIM_ITEMS + 1];
        assert_eq!(code(bench.done(request::Op::Close(Close { files }))), Code::Invalid);
    }

    #[test]
    fn the_access_time_only_goes_forward_and_is_no_change() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let before = bench.get_attr(file).unwrap();
        let mut close = |seconds| {
            let atime = Some(Time { seconds, nanos: 5 });
            let files = vec![ClosedFile { ino: file, atime }];
            bench.done(request::Op::Close(Close { files })).unwrap();
            bench.get_attr(file).unwrap()
        };
        let read = close(2_000_000);
        assert_eq!(read.atime, Some(Time { seconds: 2_000_000, nanos: 5 }));
        assert_eq!((read.ctime, read.mtime, read.version), (before.ctime, before.mtime, before.version));
        assert_eq!(close(1_500_000), read);
    }

    #[test]
    fn a_close_that_comes_late_does_not_undo_a_time_that_was_set_meanwhile() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let read_at: Time = bench.now.into();
        bench.now = Timestamp { seconds: bench.now.seconds + 10, ..bench.now };
        let past = Time { seconds: 5, nanos: 0 };
        let atime = Some(TimeChange { now: false, value: Some(past) });
        bench.set_attr(SetAttr { ino: file, atime, ..SetAttr::default() }).unwrap();
        let files =
            vec![ClosedFile { ino: file, atime: Some(Time { seconds: read_at.seconds + 1, ..read_at }) }];
        bench.done(request::Op::Close(Close { files })).unwrap();
        assert_eq!(bench.get_attr(file).unwrap().atime, Some(past));
    }
}
