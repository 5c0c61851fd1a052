//! Open directories: listings that stream through bounded memory.
//!
//! A position in a listing is the server's cookie, which stays true whatever others create and remove, so any request can
//! be answered from its offset alone: rewinddir(3) and seekdir(3) need no state. What a handle keeps is the rest of the
//! last page, for the request that most probably comes next. Cookies 1 and 2 stand after "." and "..".
//!
//! Attributes are handed out only if nothing changed through this mount since they were fetched: the kernel would take
//! them for newer than what it knows from its own writes.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dfs_proto::meta::{DirectoryEntry, DirectoryPage};
use dfs_proto::{Code, Failure, Ino};

use super::told::{Asked, Told};

/// Entries asked for at once, and kept by an open directory at most.
pub(super) const PAGE_ENTRIES: u32 = 512;
/// Directories that may be open at the same time.
const MAX_OPEN: usize = 1 << 20;

const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;

/// Counts what this mount changes: before a change is sent and when it is answered.
#[derive(Debug, Default)]
pub(super) struct Changes(AtomicU64);

impl Changes {
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// All open directories of a mount, by handle.
#[derive(Debug, Default)]
pub(super) struct Directories {
    table: Mutex<HashMap<u64, Arc<Directory>>>,
    next: AtomicU64,
}

/// One open directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) ino: Ino,
    listing: tokio::sync::Mutex<Listing>,
}

/// The rest of a page.
#[derive(Debug, Default)]
struct Listing {
    /// The cookie after which `entries` go on; `None`: nothing is kept.
    position: Option<u64>,
    entries: VecDeque<DirectoryEntry>,
    end: bool,
    parent: Ino,
    fetched: Option<Fetched>,
}

/// When and how a page with attributes came.
#[derive(Clone, Copy, Debug)]
struct Fetched {
    asked: Asked,
    changes: u64,
    with_attrs: bool,
}

/// What goes into a reply.
#[derive(Debug)]
pub(super) enum Item<'a> {
    /// "." or "..": the kernel takes no attributes of them.
    Special { name: &'static str, ino: Ino, cookie: u64 },
    /// A name, with attributes as they were when the page was asked for.
    Entry { entry: &'a DirectoryEntry, asked: Asked },
}

impl Directories {
    pub(super) fn open(&self, ino: Ino) -> Result<u64, Failure> {
        let mut table = self.table();
        if table.len() >= MAX_OPEN {
            return Err(Failure::new(Code::NoSpace, format!("more than {MAX_OPEN} directories are open")));
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        table.insert(handle, Arc::new(Directory { ino, listing: tokio::sync::Mutex::default() }));
        Ok(handle)
    }

    pub(super) fn get(&self, handle: u64) -> Result<Arc<Directory>, Failure> {
        let found = self.table().get(&handle).cloned();
        found.ok_or_else(|| Failure::new(Code::Invalid, format!("no open directory has the handle {handle}")))
    }

    pub(super) fn close(&self, handle: u64) {
        self.table().remove(&handle);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Arc<Directory>>> {
        self.table.lock().expect("no panic while the table is locked")
    }
}

impl Directory {
    /// Hands items after `offset` to `add` until that says the reply is full, the kept page is used up or the directory
    /// ends. At least one item, unless the directory has ended. `fetch` gets the page after a cookie.
    pub(super) async fn list<F>(
        &self,
        offset: u64,
        with_attrs: bool,
        changes: &Changes,
        told: &Told,
        fetch: impl Fn(u64) -> F,
        mut add: impl FnMut(Item<'_>) -> Result<bool, Failure>,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<DirectoryPage, Failure>>,
    {
        let mut listing = self.listing.lock().await;
        if offset == 0 || !listing.goes_on_at(offset, with_attrs, changes) {
            listing.load(offset, with_attrs, changes, told, &fetch).await?;
        }
        if offset < AFTER_DOT && add(Item::Special { name: ".", ino: self.ino, cookie: AFTER_DOT })? {
            return Ok(());
        }
        let parent = listing.parent;
        if offset < AFTER_DOT_DOT && add(Item::Special { name: "..", ino: parent, cookie: AFTER_DOT_DOT })? {
            return Ok(());
        }
        while listing.entries.is_empty() && !listing.end && offset >= AFTER_DOT_DOT {
            let position = listing.position.unwrap_or(offset);
            listing.load(position, with_attrs, changes, told, &fetch).await?;
        }
        let Some(Fetched { asked, .. }) = listing.fetched else { return Ok(()) };
        while let Some(entry) = listing.entries.front() {
            if add(Item::Entry { entry, asked })? {
                return Ok(());
            }
            listing.position = Some(entry.cookie);
            listing.entries.pop_front();
        }
        Ok(())
    }
}

impl Listing {
    /// Whether what is kept answers a request at this offset.
    fn goes_on_at(&self, offset: u64, with_attrs: bool, changes: &Changes) -> bool {
        let Some(fetched) = self.fetched else { return false };
        let here = self.position == Some(offset.max(AFTER_DOT_DOT));
        let fresh =
            fetched.with_attrs && fetched.changes == changes.count() && !fetched.asked.trust().is_zero();
        here && (!with_attrs || fresh || self.entries.is_empty())
    }

    async fn load<F>(
        &mut self,
        offset: u64,
        with_attrs: bool,
        changes: &Changes,
        told: &Told,
        fetch: &impl Fn(u64) -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<DirectoryPage, Failure>>,
    {
        *self = Self::default();
        let fetched = Fetched { asked: told.ask(), changes: changes.count(), with_attrs };
        let cookie = if offset <= AFTER_DOT_DOT { 0 } else { offset };
        let page = fetch(cookie).await?;
        // A page that neither ends nor goes on would be asked for again and again.
        if page.entries.is_empty() && !page.end {
            return Err(Failure::new(Code::InputOutput, "the metadata server sent an empty directory page"));
        }
        if page.entries.iter().any(|entry| entry.cookie <= cookie) {
            return Err(Failure::new(
                Code::InputOutput,
                "the metadata server sent a directory page out of order",
            ));
        }
        self.position = Some(offset.max(AFTER_DOT_DOT));
        self.entries = page.entries.into();
        self.end = page.end;
        self.parent = Ino(page.parent);
        self.fetched = Some(fetched);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Attr;

    use super::super::convert::NodeIds;
    use super::*;

    /// A directory of the names 10, 20, … as cookies, in pages of three.
    fn page(cookie: u64, count: u64) -> DirectoryPage {
        let entries: Vec<_> = (1..=count)
            .map(|number| number * 10)
            .filter(|&number| number > cookie)
            .take(3)
            .map(|number| DirectoryEntry {
                name: number.to_string().into_bytes().into(),
                ino: number,
                kind: 1,
                cookie: number,
                attr: Some(Attr { ino: number, ..Attr::default() }),
            })
            .collect();
        let end = entries.last().is_none_or(|last| last.cookie == count * 10);
        DirectoryPage { entries, end, parent: 5 }
    }

    struct Fixture {
        directory: Directory,
        changes: Changes,
        told: Told,
        fetches: AtomicU64,
        count: u64,
    }

    impl Fixture {
        fn new(count: u64) -> Self {
            let directory = Directory { ino: Ino(7), listing: tokio::sync::Mutex::default() };
            let told = Told::new(NodeIds::new(Ino(1)));
            Self { directory, changes: Changes::default(), told, fetches: AtomicU64::new(0), count }
        }

        /// One request with room for so many items: names and cookies.
        async fn ask(&self, offset: u64, with_attrs: bool, room: usize) -> Vec<(String, u64)> {
            let mut items = Vec::new();
            let fetch = |cookie| {
                self.fetches.fetch_add(1, Ordering::Relaxed);
                let page = page(cookie, self.count);
                async move { Ok(page) }
            };
            let add = |item: Item<'_>| {
                if items.len() == room {
                    return Ok(true);
                }
                items.push(match item {
                    Item::Special { name, cookie, .. } => (name.to_owned(), cookie),
                    Item::Entry { entry, .. } => {
                        (String::from_utf8(entry.name.to_vec()).unwrap(), entry.cookie)
                    }
                });
                Ok(false)
            };
            self.directory.list(offset, with_attrs, &self.changes, &self.told, fetch, add).await.unwrap();
            items
        }

        async fn all(&self, with_attrs: bool, room: usize) -> Vec<String> {
            let (mut names, mut offset) = (Vec::new(), 0);
            loop {
                let items = self.ask(offset, with_attrs, room).await;
                let Some((_, cookie)) = items.last() else { return names };
                offset = *cookie;
                names.extend(items.into_iter().map(|(name, _)| name));
            }
        }

        fn fetched(&self) -> u64 {
            self.fetches.swap(0, Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn every_name_comes_once_whatever_the_room() {
        for count in [0, 1, 2, 3, 4, 6, 10] {
            for room in 1..=12 {
                let fixture = Fixture::new(count);
                let expected: Vec<_> = [".".to_owned(), "..".to_owned()]
                    .into_iter()
                    .chain((1..=count).map(|number| (number * 10).to_string()))
                    .collect();
                assert_eq!(
                    fixture.all(room % 2 == 0, room).await,
                    expected,
                    "{count} names, room for {room}"
                );
                assert_eq!(fixture.fetched(), count.div_ceil(3).max(1), "each page is fetched once");
            }
        }
    }

    #[tokio::test]
    async fn any_offset_is_answered_by_itself() {
        let fixture = Fixture::new(10);
        fixture.all(false, 4).await;
        fixture.fetched();
        assert_eq!(fixture.ask(45, false, 1).await, [("50".to_owned(), 50)], "a name that was removed");
        assert_eq!(fixture.ask(10, false, 1).await, [("20".to_owned(), 20)]);
        assert_eq!(fixture.ask(1, false, 2).await, [("..".to_owned(), 2), ("10".to_owned(), 10)]);
        assert_eq!(fixture.ask(100, false, 9).await, []);
        assert_eq!(fixture.fetched(), 4);
        fixture.ask(0, false, 2).await;
        fixture.ask(0, false, 2).await;
        assert_eq!(fixture.fetched(), 2, "rewinding looks again");
    }

    #[tokio::test]
    async fn attributes_older_than_a_change_are_fetched_again() {
        let fixture = Fixture::new(10);
        fixture.ask(0, true, 3).await;
        fixture.ask(10, true, 1).await;
        assert_eq!(fixture.fetched(), 1);
        fixture.changes.note();
        assert_eq!(fixture.ask(20, true, 1).await, [("30".to_owned(), 30)]);
        assert_eq!(fixture.fetched(), 1, "a change");
        fixture.changes.note();
        fixture.ask(30, false, 1).await;
        assert_eq!(fixture.fetched(), 0, "names alone stay true");
        fixture.ask(40, true, 1).await;
        assert_eq!(fixture.fetched(), 1, "attributes changed");
    }

    #[tokio::test]
    async fn pages_that_lead_nowhere_are_refused() {
        let fixture = Fixture::new(1);
        let empty = |_| async { Ok(DirectoryPage::default()) };
        let failure =
            fixture.directory.list(0, false, &fixture.changes, &fixture.told, empty, |_| Ok(false)).await;
        assert_eq!(failure.unwrap_err().code, Code::InputOutput);
        let backwards = |_| async { Ok(page(0, 3)) };
        let failure = fixture
            .directory
            .list(20, false, &fixture.changes, &fixture.told, backwards, |_| Ok(false))
            .await;
        assert_eq!(failure.unwrap_err().code, Code::InputOutput);
    }

    #[test]
    fn handles_live_until_closed() {
        let directories = Directories::default();
        let (first, second) = (directories.open(Ino(7)).unwrap(), directories.open(Ino(7)).unwrap());
        assert_ne!(first, second);
        assert_eq!(directories.get(first).unwrap().ino, Ino(7));
        directories.close(first);
        assert_eq!(directories.get(first).unwrap_err().code, Code::Invalid);
        assert!(directories.get(second).is_ok());
    }
}
