//! A set of chunk ids in bounded memory: one bit for each, in pages, since the chunks of a tree lie close together.

use std::collections::BTreeMap;

/// Ids in one page.
const PAGE_IDS: u64 = 4096;
/// Pages at most, 64 MiB of them: of chunks that lie close together, more than 500 million.
const MAX_PAGES: usize = 128 * 1024;

type Page = Box<[u64; PAGE_IDS as usize / 64]>;

/// The set.
#[derive(Clone, Debug, Default)]
pub(super) struct ChunkSet {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

/// The set has as many pages as it may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl ChunkSet {
    /// Adds an id, if it is not there.
    pub(super) fn insert(&mut self, id: u64) -> Result<(), Full> {
        let (page, word, bit) = place(id);
        if self.pages.len() >= MAX_PAGES && !self.pages.contains_key(&page) {
            return Err(Full);
        }
        let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE_IDS as usize / 64]));
        self.len += u64::from(page[word] & bit == 0);
        page[word] |= bit;
        Ok(())
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        let (page, word, bit) = place(id);
        self.pages.get(&page).is_some_and(|page| page[word] & bit != 0)
    }

    /// How many ids are in it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many of its ids are `from` or larger, and `to` or smaller.
    pub(super) fn count(&self, from: u64, to: u64) -> u64 {
        let mut count = 0;
        let mut next = self.first_from(from);
        while let Some(id) = next.filter(|id| *id <= to) {
            count += 1;
            next = id.checked_add(1).and_then(|id| self.first_from(id));
        }
        count
    }

    /// The smallest id that is not smaller than this one.
    pub(super) fn first_from(&self, id: u64) -> Option<u64> {
        let (first, word, bit) = place(id);
        for (number, page) in self.pages.range(first..) {
            let from = if *number == first { word } else { 0 };
            for (at, bits) in page.iter().enumerate().skip(from) {
                let bits = if *number == first && at == word { bits & !(bit - 1) } else { *bits };
                if bits != 0 {
                    return Some(number * PAGE_IDS + at as u64 * 64 + u64::from(bits.trailing_zeros()));
                }
            }
        }
        None
    }
}

/// The page, the word in it, and the bit in that.
fn place(id: u64) -> (u64, usize, u64) {
    (id / PAGE_IDS, (id % PAGE_IDS / 64) as usize, 1 << (id % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_again_in_order() {
        let ids = [1, 2, 63, 64, 65, 4095, 4096, 70_000, u64::MAX - 1, u64::MAX];
        let mut set = ChunkSet::default();
        assert_eq!(set.first_from(0), None);
        for id in ids.iter().rev().chain(&ids) {
            assert_eq!(set.insert(*id), Ok(()));
        }
        assert_eq!(set.len(), ids.len() as u64);
        let (mut found, mut next) = (Vec::new(), Some(0));
        while let Some(id) = next.and_then(|from| set.first_from(from)) {
            assert!(set.contains(id));
            found.push(id);
            next = id.checked_add(1);
        }
        assert_eq!(found, ids);
        assert!(!set.contains(3) && !set.contains(66) && !set.contains(100_000));
        assert_eq!((set.count(0, u64::MAX), set.count(2, 64), set.count(66, 4094)), (10, 3, 0));
    }

    #[test]
    fn it_does_not_grow_beyond_its_bound() {
        let mut set = ChunkSet::default();
        for page in 0..MAX_PAGES as u64 {
            assert_eq!(set.insert(page * PAGE_IDS), Ok(()));
        }
        assert_eq!(set.insert(u64::MAX), Err(Full));
        assert_eq!(set.insert(7), Ok(()), "on a page that is there");
    }
}
