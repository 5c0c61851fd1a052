//! A name in a directory → the attributes of what it names.

use dfs_proto::meta::Lookup;
use dfs_proto::{Attr, Code, Failure, Ino, Name};

use super::{Context, inode};
use crate::store::keys;
use crate::store::records::Dentry;

/// ENOENT, ENOTDIR, ENAMETOOLONG; ESTALE when the directory is gone. "." and ".." are answered.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Lookup) -> Result<Attr, Failure> {
    let parent = Ino(request.parent);
    let directory = inode::load_directory(cx, parent)?;
    let ino = match &request.name[..] {
        b"." => parent,
        b".." => Ino(directory.parent),
        _ => {
            let name = Name::parse(request.name.clone())?;
            let dentry = cx.tx.get::<Dentry>(&keys::dentry(parent, &name))?;
            let missing = || Failure::new(Code::NotFound, format!("no {name} in directory {parent}"));
            Ino(dentry.ok_or_else(missing)?.ino)
        }
    };
    Ok(inode::attr(ino, &inode::load(cx, ino)?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;
    use super::*;
    use dfs_proto::meta::{reply, request};

    #[test]
    fn the_root_is_its_own_parent_and_strangers_are_not_found() {
        let mut bench = Bench::new();
        let mut lookup = |parent, name: &[u8]| {
            bench.run(request::Op::Lookup(Lookup { parent, name: name.to_vec().into() }))
        };
        for name in [&b"."[..], b".."] {
            let Ok(reply::Result::Attr(attr)) = lookup(1, name) else { panic!("{name:?} is there") };
            assert_eq!(attr.ino, 1);
        }
        assert_eq!(lookup(1, b"x").unwrap_err().code, Code::NotFound);
        assert_eq!(lookup(1, b"x/y").unwrap_err().code, Code::Invalid);
        assert_eq!(lookup(2, b"x").unwrap_err().code, Code::Stale);
    }
}
