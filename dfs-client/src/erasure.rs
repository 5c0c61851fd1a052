//! The erasure code of chunks: parity from data, and lost data from what is left. Pure: cells in, cells out, in the layout
//! that [`dfs_proto::stripe`] draws.
//!
//! Parity is computed row by row, straight from the chunk's blocks: what the code works on stays in the processor's cache.
//! The code works on [`SYMBOL`]s, each at its own place of the cells, so that cells one behind the other are as good as one
//! long cell, and any part of it that starts and ends at a symbol can be restored by itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::stripe::SYMBOL;
use dfs_proto::{Code, Failure, Stripe};
use reed_solomon_simd::ReedSolomonEncoder;
use reed_solomon_simd::engine::{
    DefaultEngine, Engine, GF_MODULUS, GF_ORDER, GfElement, ShardsRefMut, tables,
};
use reed_solomon_simd::rate::{DefaultRateDecoder, RateDecoder};

/// Of each shard so much is restored at once, as much as is encoded: what the code works on stays in the processor's cache.
const RESTORED_AT_ONCE: usize = BLOCK_SIZE;

type Decoder = DefaultRateDecoder<FewShards>;

/// Cells of one shard, one behind the other.
#[derive(Clone, Debug)]
pub struct Part {
    /// Their rows.
    pub rows: Range<u32>,
    /// As long as the layout says.
    pub data: Bytes,
}

impl Part {
    /// Whether it has all of these rows.
    pub fn covers(&self, rows: &Range<u32>) -> bool {
        rows.is_empty() || (self.rows.start <= rows.start && rows.end <= self.rows.end)
    }

    /// Some of its rows.
    pub fn within(&self, stripe: &Stripe, shard: u32, rows: &Range<u32>) -> &[u8] {
        let start = (rows.start - self.rows.start) as usize * BLOCK_SIZE;
        &self.data[start..start + stripe.part_length(shard, rows)]
    }
}

/// Computes the parity of a chunk.
pub struct Encoder {
    stripe: Stripe,
    code: ReedSolomonEncoder,
    /// Of the cells that `code` is set up for.
    cell_length: usize,
}

impl Encoder {
    /// For a chunk laid out so.
    pub fn new(stripe: Stripe) -> Result<Self, Failure> {
        let (data, parity) = counts(&stripe);
        let code = ReedSolomonEncoder::new(data, parity, BLOCK_SIZE).map_err(broken)?;
        Ok(Self { stripe, code, cell_length: BLOCK_SIZE })
    }

    /// Hands the parity cells of some rows to `take`, row by row, with the number of their parity shard from 0 on. They lie
    /// where they were computed, until `take` is done. `block` gives the chunk's blocks by their number.
    pub fn encode<'a>(
        &mut self,
        rows: &Range<u32>,
        block: impl Fn(u32) -> &'a [u8],
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(), Failure> {
        let (data, parity) = counts(&self.stripe);
        for row in rows.clone() {
            let cell_length = self.stripe.coded_length(&(row..row + 1));
            if cell_length != self.cell_length {
                self.code.reset(data, parity, cell_length).map_err(broken)?;
                self.cell_length = cell_length;
            }
            for shard in 0..self.stripe.data_shards() {
                let cell = match self.stripe.cell_length(shard, row) {
                    0 => &[],
                    _ => block(self.stripe.block_of(shard, row)),
                };
                self.code.add_original_shard(padded(cell, cell_length)).map_err(broken)?;
            }
            let encoded = self.code.encode().map_err(broken)?;
            encoded.recovery_iter().enumerate().for_each(|(shard, cell)| take(shard, cell));
        }
        Ok(())
    }
}

fn counts(stripe: &Stripe) -> (usize, usize) {
    (stripe.data_shards() as usize, stripe.parity_shards() as usize)
}

/// Restores the cells of the data shards `lost` in some rows from parts that cover these rows, by shard. It takes as many
/// shards as there are data shards; those behind the chunk's end count. UNAVAILABLE when there are fewer.
pub fn restore(
    stripe: &Stripe,
    rows: &Range<u32>,
    parts: &BTreeMap<u32, Part>,
    lost: &[u32],
) -> Result<Vec<(u32, Part)>, Failure> {
    let (data, parity) = (stripe.data_shards(), stripe.parity_shards());
    let given = (0..data + parity).filter_map(|shard| match parts.get(&shard) {
        Some(part) if part.covers(rows) => Some((shard, part.within(stripe, shard, rows))),
        _ if stripe.part_length(shard, rows) == 0 => Some((shard, &[][..])),
        _ => None,
    });
    let given: Vec<(u32, &[u8])> = given.take(data as usize).collect();
    if given.len() < data as usize {
        let message = format!("{} shards are there, {data} are needed", given.len());
        return Err(Failure::new(Code::Unavailable, message));
    }
    let length = stripe.coded_length(rows);
    let new = |length| Decoder::new(data as usize, parity as usize, length, FewShards::default(), None);
    let mut decoder = new(length.min(RESTORED_AT_ONCE)).map_err(broken)?;
    let mut restored: Vec<(u32, BytesMut)> =
        lost.iter().map(|&shard| (shard, BytesMut::with_capacity(length))).collect();
    for start in (0..length).step_by(RESTORED_AT_ONCE) {
        let end = length.min(start + RESTORED_AT_ONCE);
        if end - start < RESTORED_AT_ONCE && start > 0 {
            decoder.reset(data as usize, parity as usize, end - start).map_err(broken)?;
        }
        for &(shard, part) in &given {
            let part = padded(&part[start.min(part.len())..end.min(part.len())], end - start);
            match shard.checked_sub(data) {
                None => decoder.add_original_shard(shard as usize, part).map_err(broken)?,
                Some(parity) => decoder.add_recovery_shard(parity as usize, part).map_err(broken)?,
            }
        }
        let decoded = decoder.decode().map_err(broken)?;
        for (shard, cells) in &mut restored {
            cells.put_slice(decoded.restored_original(*shard as usize).unwrap_or_default());
        }
    }
    let whole = |(shard, mut cells): (u32, BytesMut)| {
        cells.truncate(stripe.part_length(shard, rows));
        (shard, Part { rows: rows.clone(), data: cells.freeze() })
    };
    // What was not lost is not there.
    Ok(restored.into_iter().filter(|(_, cells)| cells.len() == length).map(whole).collect())
}

/// Cells as the code sees them: filled up with zeros.
fn padded(part: &[u8], length: usize) -> Cow<'_, [u8]> {
    debug_assert!(part.len() <= length && length.is_multiple_of(SYMBOL));
    match part.len() == length {
        true => Cow::Borrowed(part),
        false => {
            let mut cells = Vec::with_capacity(length);
            cells.extend_from_slice(part);
            cells.resize(length, 0);
            Cow::Owned(cells)
        }
    }
}

/// The library's engine, but for how it finds what the lost shards have to be multiplied with: it has up to 65536 shards in
/// mind and transforms the field as a whole, in half a millisecond. We have 20.
#[derive(Default)]
struct FewShards(DefaultEngine);

impl FewShards {
    /// Of up to so many shards the sums are formed one by one.
    const FEW: usize = 64;
}

impl Engine for FewShards {
    fn fft(&self, cells: &mut ShardsRefMut, pos: usize, size: usize, truncated_size: usize, skew: usize) {
        self.0.fft(cells, pos, size, truncated_size, skew);
    }

    fn ifft(&self, cells: &mut ShardsRefMut, pos: usize, size: usize, truncated_size: usize, skew: usize) {
        self.0.ifft(cells, pos, size, truncated_size, skew);
    }

    fn mul(&self, cells: &mut [[u8; SYMBOL]], log_m: GfElement) {
        self.0.mul(cells, log_m);
    }

    /// For each place the logarithm of the product of its distances to those erased, which are in the field the exclusive
    /// or of the places. Only the first `truncated_size` places are erased, or looked at afterwards.
    fn eval_poly(erasures: &mut [GfElement; GF_ORDER], truncated_size: usize) {
        if truncated_size > Self::FEW {
            return DefaultEngine::eval_poly(erasures, truncated_size);
        }
        let log = &tables::get_exp_log().log;
        let places = &mut erasures[..truncated_size];
        let erased: Vec<usize> = (0..places.len()).filter(|&place| places[place] != 0).collect();
        for (place, product) in places.iter_mut().enumerate() {
            let others = erased.iter().filter(|&&other| other != place);
            let sum: u32 = others.map(|other| u32::from(log[place ^ other])).sum();
            *product = (sum % u32::from(GF_MODULUS)) as GfElement;
        }
    }
}

/// Lengths and counts come from the layout, which keeps to what the code can do.
fn broken(error: reed_solomon_simd::Error) -> Failure {
    Failure::new(Code::InputOutput, format!("erasure coding failed: {error}"))
}

#[cfg(test)]
mod tests {
    use dfs_proto::Redundancy;
    use proptest::prelude::*;

    use super::*;

    /// The whole shards of a chunk.
    fn shards(stripe: &Stripe, chunk: &[u8]) -> Vec<Vec<u8>> {
        let block =
            |number: u32| chunk.chunks(BLOCK_SIZE).nth(number as usize).expect("a block that is there");
        let mut shards = vec![Vec::new(); (stripe.data_shards() + stripe.parity_shards()) as usize];
        let (data, parity) = shards.split_at_mut(stripe.data_shards() as usize);
        for number in 0..stripe.cells() {
            data[stripe.place_of(number).0 as usize].extend_from_slice(block(number));
        }
        let mut encoder = Encoder::new(*stripe).unwrap();
        for rows in (0..stripe.rows()).step_by(3).map(|row| row..(row + 3).min(stripe.rows())) {
            encoder.encode(&rows, block, |shard, cell| parity[shard].extend_from_slice(cell)).unwrap();
        }
        shards
    }

    fn pattern(length: usize, salt: u64) -> Vec<u8> {
        let mut state = salt | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..length).map(|_| next() as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_shards_but_as_many_as_there_is_parity_may_be_lost(
            data in 2..=16_u32,
            parity in 1..=4_u32,
            more in prop_oneof![0..200_u64, 0..3_000_000_u64],
            salt in any::<u64>(),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 4),
            from in any::<prop::sample::Index>(),
            count in 1..20_u32,
        ) {
            let length = u64::from(data) * BLOCK_SIZE as u64 + more;
            let stripe = Stripe::new(Redundancy::Coded { data, parity }, length).unwrap();
            let bytes = pattern(length as usize, salt);
            let shards = shards(&stripe, &bytes);
            for (index, shard) in (0..).zip(&shards) {
                prop_assert_eq!(shard.len() as u64, stripe.shard_length(index));
            }
            // As many shards as there is parity are lost, wherever they are.
            let mut left: Vec<u32> = (0..data + parity).collect();
            for pick in &picks[..parity as usize] {
                left.remove(pick.index(left.len()));
            }
            // Some rows alone are restored.
            let start = from.index(stripe.rows() as usize) as u32;
            let rows = start..(start + count).min(stripe.rows());
            let parts = left.iter().map(|&shard| {
                let start = rows.start as usize * BLOCK_SIZE;
                let cells = &shards[shard as usize][start..start + stripe.part_length(shard, &rows)];
                (shard, Part { rows: rows.clone(), data: Bytes::copy_from_slice(cells) })
            });
            let parts: BTreeMap<u32, Part> = parts.collect();
            let lost: Vec<u32> =
                (0..data).filter(|shard| !left.contains(shard) && stripe.part_length(*shard, &rows) > 0).collect();
            let restored = restore(&stripe, &rows, &parts, &lost).unwrap();
            prop_assert_eq!(restored.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), lost.clone());
            for (shard, part) in restored {
                for row in rows.clone() {
                    let length = stripe.cell_length(shard, row);
                    let at = stripe.block_of(shard, row) as usize * BLOCK_SIZE;
                    let cell = part.within(&stripe, shard, &(row..row + 1));
                    prop_assert!(length == 0 || cell == &bytes[at..at + length], "shard {} row {}", shard, row);
                }
            }
            // One fewer, and nothing is made up.
            let fewer: BTreeMap<u32, Part> = parts.into_iter().skip(1).collect();
            let needed = (0..data).filter(|shard| stripe.part_length(*shard, &rows) > 0).count();
            if needed == data as usize {
                prop_assert_eq!(restore(&stripe, &rows, &fewer, &lost).unwrap_err().code, Code::Unavailable);
            }
        }
    }
}
