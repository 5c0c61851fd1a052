//! A symbolic link's target: readlink(2).

use dfs_proto::meta::{ReadLink, Value};
use dfs_proto::{Code, Failure, FileKind, Ino};

use super::{Context, inode};

/// EINVAL for anything but a symbolic link; ESTALE when it is gone.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ReadLink) -> Result<Value, Failure> {
    let ino = Ino(request.ino);
    let inode = inode::load(cx, ino)?;
    match inode.kind() {
        FileKind::Symlink => Ok(Value { value: inode.target.into() }),
        _ => Err(Failure::new(Code::Invalid, format!("inode {ino} is not a symbolic link"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shorthand::{ROOT, code, new};
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::meta::{Create, request};

    #[test]
    fn only_a_symbolic_link_has_a_target() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let target = &b"../elsewhere/\xff"[..];
        let link = Create { target: target.into(), ..new(ROOT, "link", FileKind::Symlink) };
        let link = bench.create(link).unwrap().ino;
        let mut read = |ino| bench.value(request::Op::ReadLink(ReadLink { ino }));
        assert_eq!(read(link).unwrap().value, target);
        assert_eq!(code(read(file)), Code::Invalid);
        assert_eq!(code(read(ROOT)), Code::Invalid);
        assert_eq!(code(read(99)), Code::Stale);
    }
}
