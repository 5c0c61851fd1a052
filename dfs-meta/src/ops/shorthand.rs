//! Operations as one-liners, for tests.

use std::fmt::Debug;

use dfs_proto::meta::*;
use dfs_proto::{Attr, Code, Failure, FileKind, SessionId};

use super::check;
use super::testing::Bench;
use crate::machine::transaction::Transaction;

pub(crate) const ROOT: u64 = 1;

/// The code of a failure that has to be one.
pub(crate) fn code<T: Debug>(result: Result<T, Failure>) -> Code {
    result.expect_err("this must fail").code
}

/// A regular file or a directory to be made by root with every permission, as mkdir(2) and creat(2) ask for it.
pub(crate) fn new(parent: u64, name: &str, kind: FileKind) -> Create {
    Create {
        parent,
        name: name.as_bytes().to_vec().into(),
        kind: kind.into(),
        mode: 0o777,
        exclusive: true,
        ..Create::default()
    }
}

fn bytes(name: &str) -> bytes::Bytes {
    name.as_bytes().to_vec().into()
}

macro_rules! answers {
    ($($name:ident: $kind:ident -> $type:ty;)*) => {
        $(pub(crate) fn $name(&mut self, op: request::Op) -> Result<$type, Failure> {
            match self.run(op)? {
                reply::Result::$kind(value) => Ok(value),
                other => panic!("not the answer to this operation: {other:?}"),
            }
        })*
    };
}

impl Bench {
    answers! {
        attr: Attr -> Attr;
        done: Done -> Done;
        page: DirectoryPage -> DirectoryPage;
        opened: Opened -> Opened;
        value: Value -> Value;
    }

    pub(crate) fn create(&mut self, create: Create) -> Result<Attr, Failure> {
        self.attr(request::Op::Create(create))
    }

    /// A new regular file's inode number.
    pub(crate) fn make_file(&mut self, parent: u64, name: &str) -> u64 {
        self.create(new(parent, name, FileKind::Regular)).expect("make a file").ino
    }

    /// A new directory's inode number.
    pub(crate) fn make_dir(&mut self, parent: u64, name: &str) -> u64 {
        self.create(new(parent, name, FileKind::Directory)).expect("make a directory").ino
    }

    pub(crate) fn link(&mut self, ino: u64, parent: u64, name: &str) -> Result<Attr, Failure> {
        self.attr(request::Op::Link(Link { ino, parent, name: bytes(name) }))
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &str) -> Result<Done, Failure> {
        self.done(request::Op::Unlink(Unlink { parent, name: bytes(name) }))
    }

    pub(crate) fn rmdir(&mut self, parent: u64, name: &str) -> Result<Done, Failure> {
        self.done(request::Op::Rmdir(Rmdir { parent, name: bytes(name) }))
    }

    pub(crate) fn rename(
        &mut self,
        (parent, name): (u64, &str),
        (new_parent, new_name): (u64, &str),
        mode: RenameMode,
    ) -> Result<Done, Failure> {
        let (name, new_name, mode) = (bytes(name), bytes(new_name), mode.into());
        self.done(request::Op::Rename(Rename { parent, name, new_parent, new_name, mode }))
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Result<Attr, Failure> {
        self.attr(request::Op::Lookup(Lookup { parent, name: bytes(name) }))
    }

    pub(crate) fn get_attr(&mut self, ino: u64) -> Result<Attr, Failure> {
        self.attr(request::Op::GetAttr(GetAttr { ino }))
    }

    pub(crate) fn set_attr(&mut self, change: SetAttr) -> Result<Attr, Failure> {
        self.attr(request::Op::SetAttr(change))
    }

    pub(crate) fn open(&mut self, ino: u64) -> Result<Opened, Failure> {
        self.opened(request::Op::Open(Open { ino, ..Open::default() }))
    }

    pub(crate) fn open_as(&mut self, session: u64, ino: u64) -> Result<reply::Result, Failure> {
        self.run_as(SessionId(session), request::Op::Open(Open { ino, ..Open::default() }))
    }

    pub(crate) fn close(&mut self, ino: u64) {
        self.close_as(1, ino);
    }

    pub(crate) fn close_as(&mut self, session: u64, ino: u64) {
        let files = vec![ClosedFile { ino, atime: None }];
        self.run_as(SessionId(session), request::Op::Close(Close { files })).expect("close");
    }

    pub(crate) fn set_xattr(&mut self, ino: u64, name: &str, value: &[u8]) -> Result<Attr, Failure> {
        self.set_xattr_mode(ino, name, value, XattrMode::Set)
    }

    pub(crate) fn set_xattr_mode(
        &mut self,
        ino: u64,
        name: &str,
        value: &[u8],
        mode: XattrMode,
    ) -> Result<Attr, Failure> {
        let (name, value, mode) = (bytes(name), value.to_vec().into(), mode.into());
        self.attr(request::Op::SetXattr(SetXattr { ino, name, value, mode, ..SetXattr::default() }))
    }

    pub(crate) fn get_xattr(&mut self, ino: u64, name: &str) -> Result<Vec<u8>, Failure> {
        let op = request::Op::GetXattr(GetXattr { ino, name: bytes(name) });
        self.value(op).map(|value| value.value.to_vec())
    }

    pub(crate) fn remove_xattr(&mut self, ino: u64, name: &str) -> Result<Attr, Failure> {
        self.attr(request::Op::RemoveXattr(RemoveXattr { ino, name: bytes(name) }))
    }

    pub(crate) fn list_xattr(&mut self, ino: u64) -> Vec<String> {
        match self.run(request::Op::ListXattr(ListXattr { ino })).expect("list attributes") {
            reply::Result::Names(names) => {
                names.names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
            }
            other => panic!("not names: {other:?}"),
        }
    }

    /// All names in a directory, sorted, read in pages of `page`.
    pub(crate) fn names(&mut self, ino: u64, page: u32) -> Vec<String> {
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let read = ReadDir { ino, cookie, max_entries: page, with_attrs: false };
            let read = self.page(request::Op::ReadDir(read)).expect("read a directory");
            names.extend(read.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
            cookie = read.entries.last().map_or(cookie, |entry| entry.cookie);
            if read.end {
                names.sort();
                return names;
            }
            assert!(!read.entries.is_empty(), "a page that is not the last brings one on");
        }
    }

    /// Panics with what is wrong with the store, if anything is.
    pub(crate) fn check(&self) {
        let mut tx = Transaction::new(&*self.store, Vec::new());
        let problems = check::check(&mut tx).expect("read the store");
        assert!(problems.is_empty(), "the store is damaged:\n{}", problems.join("\n"));
    }
}
