//! Arithmetic on extents: pure, no I/O. An extent maps a range of a file to a range of a chunk, byte by byte.

use std::ops::Range;

use crate::common::Code;
use crate::error::Failure;
use crate::limits::{MAX_CHUNK_LENGTH, MAX_FILE_SIZE};
use crate::meta::Extent;

impl Extent {
    /// Checks one from the wire: not empty, inside a file and inside a chunk.
    pub fn check(&self) -> Result<(), Failure> {
        let in_file = self.offset.checked_add(self.length).is_some_and(|end| end <= MAX_FILE_SIZE);
        let in_chunk = self.chunk_offset.checked_add(self.length).is_some_and(|end| end <= MAX_CHUNK_LENGTH);
        if self.length == 0 || !in_file || !in_chunk || self.chunk == 0 {
            return Err(Failure::new(Code::Invalid, format!("an extent out of bounds: {self:?}")));
        }
        Ok(())
    }

    /// The first byte of the file after the extent.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The range of the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }

    /// The part of the extent inside `range`, or `None`.
    pub fn clip(&self, range: &Range<u64>) -> Option<Extent> {
        let start = self.offset.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Extent {
            offset: start,
            length: end - start,
            chunk: self.chunk,
            chunk_offset: self.chunk_offset + (start - self.offset),
        })
    }

    /// What remains of the extent when `hole` is cut out of it: the part before and the part after.
    pub fn without(&self, hole: &Range<u64>) -> [Option<Extent>; 2] {
        [self.clip(&(0..hole.start)), self.clip(&(hole.end..u64::MAX))]
    }

    /// Whether `next` goes on where this one ends, in the file and in the same chunk.
    pub fn continues_into(&self, next: &Extent) -> bool {
        self.chunk == next.chunk
            && self.end() == next.offset
            && self.chunk_offset + self.length == next.chunk_offset
    }
}

/// Checks a list from the wire: each one in bounds, sorted, not overlapping.
pub fn check_all(extents: &[Extent]) -> Result<(), Failure> {
    let mut end = 0;
    for extent in extents {
        extent.check()?;
        if extent.offset < end {
            return Err(Failure::new(Code::Invalid, "extents overlap or are not sorted"));
        }
        end = extent.end();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(offset: u64, length: u64, chunk_offset: u64) -> Extent {
        Extent { offset, length, chunk: 7, chunk_offset }
    }

    /// The file's bytes as (file offset, chunk offset), which cutting must never change.
    fn bytes_of(extent: &Extent) -> Vec<(u64, u64)> {
        (0..extent.length).map(|i| (extent.offset + i, extent.chunk_offset + i)).collect()
    }

    proptest! {
        #[test]
        fn cutting_a_hole_keeps_every_other_byte_where_it_was(
            offset in 0u64..100, length in 1u64..100, chunk_offset in 0u64..50, start in 0u64..220, hole in 0u64..220,
        ) {
            let whole = extent(offset, length, chunk_offset);
            let hole = start..start + hole;
            let kept: Vec<_> = whole.without(&hole).iter().flatten().flat_map(bytes_of).collect();
            let expected: Vec<_> =
                bytes_of(&whole).into_iter().filter(|(at, _)| hole.is_empty() && *at != u64::MAX || !hole.contains(at)).collect();
            if hole.is_empty() {
                let mut kept = kept;
                kept.sort_unstable();
                prop_assert_eq!(kept, expected);
            } else {
                prop_assert_eq!(kept, expected);
            }
        }
    }

    #[test]
    fn lists_from_the_wire_are_checked() {
        assert!(check_all(&[extent(0, 4, 0), extent(4, 4, 4)]).is_ok());
        assert!(check_all(&[extent(0, 5, 0), extent(4, 4, 4)]).is_err());
        assert!(extent(0, 0, 0).check().is_err());
        assert!(extent(u64::MAX, 2, 0).check().is_err());
        assert!(extent(0, 1, MAX_CHUNK_LENGTH).check().is_err());
    }
}
