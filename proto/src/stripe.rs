//! How a coded chunk lies on its shards.
//!
//! The chunk's bytes are cut into cells of one block each, and cells are dealt out in rows, one to each of the `k` data
//! shards; the `m` parity shards get a cell for each row, computed from the row's data cells:
//!
//! ```text
//! shard      0      1           k-1       k           k+m-1
//! row 0    cell 0  cell 1 ...  cell k-1  parity 0 ... parity m-1
//! row 1    cell k  cell k+1 .. cell 2k-1 parity 0 ... parity m-1
//! ```
//!
//! So one block of data is one block of one shard, and any `k` cells of a row give the others. In the last row cells may
//! be missing and the last one may be short: for the parity they count as filled up with zeros, and its cells are as long
//! as the row's first one, rounded up to [`SYMBOL`].

use std::ops::Range;

use crate::limits::BLOCK_SIZE;
use crate::redundancy::Redundancy;

/// What the code works on as a unit: parity cells are multiples of it, and every part of cells that starts and ends at one
/// can be computed by itself.
pub const SYMBOL: usize = 64;

/// The layout of one coded chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stripe {
    data: u32,
    parity: u32,
    length: u64,
}

impl Stripe {
    /// Of a chunk of `length` bytes; `None` when its redundancy is not coded, or when it doesn't fill a row.
    pub fn new(redundancy: Redundancy, length: u64) -> Option<Self> {
        match redundancy {
            Redundancy::Coded { data, parity } if redundancy.takes(length) => {
                Some(Self { data, parity, length })
            }
            _ => None,
        }
    }

    /// Shards with data, the first ones: 2..=16.
    pub fn data_shards(&self) -> u32 {
        self.data
    }

    /// Shards with parity, those behind: 1..=4.
    pub fn parity_shards(&self) -> u32 {
        self.parity
    }

    /// Cells of data.
    pub fn cells(&self) -> u32 {
        self.length.div_ceil(BLOCK_SIZE as u64) as u32
    }

    /// Rows, the last one perhaps not full.
    pub fn rows(&self) -> u32 {
        self.cells().div_ceil(self.data)
    }

    /// The data shard and the row of a block of the chunk.
    pub fn place_of(&self, block: u32) -> (u32, u32) {
        (block % self.data, block / self.data)
    }

    /// The block of the chunk that is a data shard's cell in a row.
    pub fn block_of(&self, shard: u32, row: u32) -> u32 {
        row * self.data + shard
    }

    /// The rows that hold some blocks of the chunk.
    pub fn rows_of(&self, blocks: &Range<u32>) -> Range<u32> {
        blocks.start / self.data..blocks.end.div_ceil(self.data)
    }

    /// The rows in which a data shard holds some of `blocks`.
    pub fn rows_on(&self, shard: u32, blocks: &Range<u32>) -> Range<u32> {
        let rows_before = |block: u32| (block + self.data - 1 - shard) / self.data;
        rows_before(blocks.start)..rows_before(blocks.end)
    }

    /// The bytes of a shard's cell in a row; 0 where the chunk has ended before.
    pub fn cell_length(&self, shard: u32, row: u32) -> usize {
        let first =
            u64::from(self.block_of(if shard < self.data { shard } else { 0 }, row)) * BLOCK_SIZE as u64;
        let length = self.length.saturating_sub(first).min(BLOCK_SIZE as u64) as usize;
        if shard < self.data { length } else { length.next_multiple_of(SYMBOL) }
    }

    /// The bytes of a shard's cells in some rows.
    pub fn part_length(&self, shard: u32, rows: &Range<u32>) -> usize {
        match rows.len() {
            0 => 0,
            rows_before @ 1.. => (rows_before - 1) * BLOCK_SIZE + self.cell_length(shard, rows.end - 1),
        }
    }

    /// The bytes that parity is computed from and comes to, for some rows: as [`Self::part_length`] of a parity shard.
    pub fn coded_length(&self, rows: &Range<u32>) -> usize {
        self.part_length(self.data, rows)
    }

    /// The bytes of a whole shard: 1..=64 MiB.
    pub fn shard_length(&self, shard: u32) -> u64 {
        // A row before the last is full.
        let last = self.rows() - 1;
        u64::from(last) * BLOCK_SIZE as u64 + self.cell_length(shard, last) as u64
    }
}

/// The bytes of one shard of a chunk of `length` bytes: all of them where it is kept as copies.
pub fn shard_length(redundancy: Redundancy, length: u64, shard: u32) -> u64 {
    Stripe::new(redundancy, length).map_or(length, |stripe| stripe.shard_length(shard))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MAX_CHUNK_LENGTH;

    fn stripe(data: u32, parity: u32, length: u64) -> Stripe {
        Stripe::new(Redundancy::Coded { data, parity }, length).expect("it fills a row")
    }

    #[test]
    fn a_chunk_that_ends_in_a_row_is_laid_out_as_drawn() {
        const BLOCK: u64 = BLOCK_SIZE as u64;
        let stripe = stripe(4, 2, 5 * BLOCK + 100);
        assert_eq!((stripe.rows(), stripe.cells()), (2, 6));
        let lengths: Vec<u64> = (0..6).map(|shard| stripe.shard_length(shard)).collect();
        assert_eq!(lengths, [2 * BLOCK, BLOCK + 100, BLOCK, BLOCK, 2 * BLOCK, 2 * BLOCK]);
        assert_eq!((stripe.place_of(5), stripe.block_of(1, 1)), ((1, 1), 5));
        assert_eq!(stripe.part_length(1, &(0..2)), BLOCK_SIZE + 100);
        assert_eq!(stripe.part_length(1, &(1..1)), 0);
        let short = self::stripe(4, 2, 4 * BLOCK + 100);
        assert_eq!(short.shard_length(4), BLOCK + 128, "parity is of whole symbols");
        assert_eq!(short.shard_length(1), BLOCK);
        assert_eq!(Stripe::new(Redundancy::Coded { data: 4, parity: 2 }, 4 * BLOCK - 1), None);
        assert_eq!(Stripe::new(Redundancy::default(), 1 << 20), None);
    }

    proptest! {
        #[test]
        fn every_byte_has_one_place(data in 2..=16_u32, parity in 1..=4_u32, more in 0..8_000_000_u64) {
            let length = (u64::from(data) * BLOCK_SIZE as u64 + more).min(MAX_CHUNK_LENGTH);
            let stripe = stripe(data, parity, length);
            let held: u64 = (0..data).map(|shard| stripe.shard_length(shard)).sum();
            prop_assert_eq!(held, length);
            for block in 0..stripe.cells() {
                let (shard, row) = stripe.place_of(block);
                prop_assert!(shard < data && row < stripe.rows());
                prop_assert_eq!(stripe.block_of(shard, row), block);
                prop_assert!(stripe.cell_length(shard, row) > 0);
            }
            let (from, to) = (stripe.cells() / 3, stripe.cells() / 3 * 2 + 1);
            for shard in 0..data {
                let held = |row: &u32| (from..to).contains(&stripe.block_of(shard, *row));
                let rows: Vec<u32> = (0..stripe.rows()).filter(held).collect();
                prop_assert_eq!(stripe.rows_on(shard, &(from..to)).collect::<Vec<_>>(), rows.clone());
                prop_assert!(rows.iter().all(|row| stripe.rows_of(&(from..to)).contains(row)));
            }
            for shard in 0..data + parity {
                let sum: usize = (0..stripe.rows()).map(|row| stripe.cell_length(shard, row)).sum();
                prop_assert_eq!(sum as u64, stripe.shard_length(shard));
                prop_assert!((1..=MAX_CHUNK_LENGTH).contains(&stripe.shard_length(shard)));
                prop_assert!(stripe.shard_length(shard) <= stripe.shard_length(data).next_multiple_of(SYMBOL as u64));
            }
        }
    }
}
