//! A page of a directory, in cookie order: getdents(2).
//!
//! Guarantees that an entry which is there all the time is listed, whatever others create and remove between two pages:
//! a cookie is a hash of the name, so it keeps its place. Names that share a hash come on one page, and whoever stops
//! between them gets them all again rather than missing one.

use dfs_proto::limits::MAX_DIRECTORY_ENTRIES;
use dfs_proto::meta::{DirectoryEntry, DirectoryPage, ReadDir};
use dfs_proto::{Attr, Failure, Ino};
use prost::Message;

use super::{Context, inode};
use crate::store::keys;
use crate::store::records::Dentry;

/// Where a page ends, in bytes: well below the largest message.
const PAGE_BYTES: usize = 1024 * 1024;
/// What an entry takes on a page beside its own bytes.
const ENTRY_FRAME: usize = 4;
/// More names than this never share the 62 bits of a hash, not even where somebody looks for such names.
const MAX_SHARED: usize = 16;

/// ENOTDIR; ESTALE when the directory is gone. One that was removed is empty.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &ReadDir) -> Result<DirectoryPage, Failure> {
    let parent = Ino(request.ino);
    let directory = inode::load_directory(cx, parent)?;
    let most = match request.max_entries {
        0 => MAX_DIRECTORY_ENTRIES,
        asked => asked.min(MAX_DIRECTORY_ENTRIES),
    } as usize;
    let limit = most + MAX_SHARED;
    let found = cx.tx.scan::<Dentry>(&keys::dentries_after(parent, request.cookie), limit)?;
    let mut end = found.len() < limit;
    let mut entries: Vec<DirectoryEntry> = Vec::new();
    let mut bytes = 0;
    for (key, dentry) in found {
        let (cookie, name) = keys::dentry_parts(&key);
        if let Some(last) = entries.last_mut() {
            if last.cookie == cookie {
                // Going on after this one alone would miss the next.
                last.cookie -= 1;
            } else if entries.len() >= most || bytes >= PAGE_BYTES {
                end = false;
                break;
            }
        }
        let entry = DirectoryEntry {
            name: name.to_vec().into(),
            ino: dentry.ino,
            kind: dentry.kind,
            cookie,
            attr: if request.with_attrs { Some(attr(cx, Ino(dentry.ino))?) } else { None },
        };
        bytes += entry.encoded_len() + ENTRY_FRAME;
        entries.push(entry);
    }
    Ok(DirectoryPage { entries, end, parent: directory.parent })
}

fn attr(cx: &mut Context<'_, '_>, ino: Ino) -> Result<Attr, Failure> {
    Ok(inode::attr(ino, &inode::load(cx, ino)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::shorthand::{ROOT, code};
    use super::super::testing::{Bench, on_every_store};
    use super::*;
    use crate::store::keys::Key;
    use dfs_proto::meta::request;
    use dfs_proto::{Code, FileKind, Name, SessionId};

    fn read(bench: &mut Bench, ino: u64, cookie: u64, max_entries: u32, with_attrs: bool) -> DirectoryPage {
        bench.page(request::Op::ReadDir(ReadDir { ino, cookie, max_entries, with_attrs })).unwrap()
    }

    #[test]
    fn pages_of_any_size_bring_every_name_once() {
        on_every_store(|bench| {
            let dir = bench.make_dir(ROOT, "dir");
            let mut names: Vec<String> = (0..50).map(|i| format!("file{i}")).collect();
            for name in &names {
                bench.make_file(dir, name);
            }
            names.sort();
            for page in [0, 1, 7, 49, 50, 51, u32::MAX] {
                assert_eq!(bench.names(dir, page), names, "pages of {page}");
            }
            let page = read(bench, dir, 0, 10, true);
            assert_eq!((page.entries.len(), page.end, page.parent), (10, false, ROOT));
            assert!(page.entries.is_sorted_by_key(|entry| entry.cookie));
            for entry in page.entries {
                let name = Name::parse(entry.name.clone()).unwrap();
                assert_eq!(entry.cookie, name.cookie());
                assert_eq!(entry.attr.unwrap(), bench.lookup(dir, &name.to_string()).unwrap());
            }
        });
    }

    #[test]
    fn what_stays_is_listed_once_while_others_change_the_directory() {
        let mut bench = Bench::new();
        for i in 0..200 {
            bench.make_file(ROOT, &format!("stays{i}"));
            bench.make_file(ROOT, &format!("goes{i}"));
        }
        let mut seen = Vec::new();
        let mut cookie = 0;
        for round in 0.. {
            let page = read(&mut bench, ROOT, cookie, 16, false);
            seen.extend(page.entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()));
            if page.end {
                break;
            }
            cookie = page.entries.last().unwrap().cookie;
            for i in 0..8 {
                bench.unlink(ROOT, &format!("goes{}", round * 8 + i)).unwrap();
                bench.make_file(ROOT, &format!("new{}", round * 8 + i));
            }
        }
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len(), "nothing comes twice");
        for i in 0..200 {
            assert!(unique.contains(&format!("stays{i}")), "stays{i} was missed");
        }
    }

    /// Where a dentry would be if its name hashed to `cookie`.
    fn key_with_cookie(name: &str, cookie: u64) -> Key {
        let name = Name::parse(name.as_bytes().to_vec()).unwrap();
        let mut key = keys::dentry(Ino(ROOT), &name);
        key[9..17].copy_from_slice(&cookie.to_be_bytes());
        key
    }

    #[test]
    fn names_that_share_a_cookie_are_not_missed() {
        let mut bench = Bench::new();
        let names = ["a", "b", "c", "d", "e", "f"];
        bench
            .with(SessionId(1), |cx| {
                for (name, cookie) in names.iter().zip([100, 200, 200, 200, 201, 300]) {
                    let dentry = Dentry { ino: ROOT, kind: FileKind::Directory.into() };
                    cx.tx.put(key_with_cookie(name, cookie), &dentry);
                }
                Ok(())
            })
            .unwrap();
        for page in 1..8 {
            assert_eq!(bench.names(ROOT, page), names, "pages of {page}");
        }
        // Whoever stops after any entry of a page, as a kernel does whose buffer is full, misses none of the rest.
        let page = read(&mut bench, ROOT, 0, 0, false);
        for (at, entry) in page.entries.iter().enumerate() {
            let rest = read(&mut bench, ROOT, entry.cookie, 0, false);
            let rest: BTreeSet<_> = rest.entries.iter().map(|entry| entry.name.clone()).collect();
            assert!(page.entries[at + 1..].iter().all(|entry| rest.contains(&entry.name)), "after {at}");
        }
    }

    #[test]
    fn pages_are_bounded_in_bytes() {
        let mut bench = Bench::new();
        for i in 0..4000 {
            bench.make_file(ROOT, &format!("{i:0>255}"));
        }
        let page = read(&mut bench, ROOT, 0, 0, true);
        assert!(!page.end);
        assert!(page.encoded_len() < PAGE_BYTES + 4096, "{}", page.encoded_len());
        assert_eq!(bench.names(ROOT, 0).len(), 4000);
    }

    #[test]
    fn only_directories_are_listed() {
        let mut bench = Bench::new();
        let file = bench.make_file(ROOT, "file");
        let mut read = |ino| bench.page(request::Op::ReadDir(ReadDir { ino, ..ReadDir::default() }));
        assert_eq!(code(read(file)), Code::NotADirectory);
        assert_eq!(code(read(99)), Code::Stale);
        assert_eq!(read(ROOT).unwrap().entries.len(), 1);
    }
}
