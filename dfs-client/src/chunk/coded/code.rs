//! The code itself: parity from data, and lost data from what is left. CPU only, for some rows of a chunk at a time.
//!
//! Many rows are computed in one go: the code works on [`SYMBOL`]s, each at its own place of the cells, so that cells one
//! behind the other are as good as one long cell, and what a call costs by itself is paid once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use dfs_proto::stripe::SYMBOL;
use dfs_proto::{Code, Failure, Stripe};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use super::super::packed::{Frame, PackedChunk};

/// Cells of all shards encoded at once, so many that a call of the code is worth it: 6 MiB.
const CELLS_AT_ONCE: u32 = 96;

/// Cells of one shard, one behind the other.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Their rows.
    pub(super) rows: Range<u32>,
    /// As long as the layout says.
    pub(super) data: Bytes,
}

impl Part {
    /// Whether it has all of these rows.
    pub(super) fn covers(&self, rows: &Range<u32>) -> bool {
        rows.is_empty() || (self.rows.start <= rows.start && rows.end <= self.rows.end)
    }

    /// Some of its rows.
    pub(super) fn within(&self, stripe: &Stripe, shard: u32, rows: &Range<u32>) -> &[u8] {
        let start = (rows.start - self.rows.start) as usize * BLOCK_SIZE;
        &self.data[start..start + stripe.part_length(shard, rows)]
    }
}

/// The rows of a chunk, in runs that are encoded at once and of which each shard's cells fit a frame.
pub(super) fn runs(stripe: &Stripe) -> impl Iterator<Item = Range<u32>> + use<> {
    let shards = stripe.data_shards() + stripe.parity_shards();
    let at_once = (CELLS_AT_ONCE / shards).clamp(1, (MAX_FRAME_DATA / BLOCK_SIZE) as u32);
    let rows = stripe.rows();
    (0..rows).step_by(at_once as usize).map(move |row| row..(row + at_once).min(rows))
}

/// The cells of all shards in some rows, by shard; `None` for a data shard behind the chunk's end.
pub(super) fn encode(
    stripe: &Stripe,
    packed: &PackedChunk,
    rows: &Range<u32>,
) -> Result<Vec<Option<Frame>>, Failure> {
    let mut frames: Vec<Option<Frame>> =
        (0..stripe.data_shards()).map(|shard| data_frame(stripe, packed, shard, rows)).collect();
    let length = stripe.coded_length(rows);
    let (data, parity) = (stripe.data_shards() as usize, stripe.parity_shards() as usize);
    let mut encoder = ReedSolomonEncoder::new(data, parity, length).map_err(broken)?;
    for frame in &frames {
        let part = frame.as_ref().map_or(&[][..], |frame| &frame.data);
        encoder.add_original_shard(padded(part, length)).map_err(broken)?;
    }
    let encoded = encoder.encode().map_err(broken)?;
    frames.extend(encoded.recovery_iter().map(|cells| Some(Frame::new(Bytes::copy_from_slice(cells)))));
    Ok(frames)
}

fn data_frame(stripe: &Stripe, packed: &PackedChunk, shard: u32, rows: &Range<u32>) -> Option<Frame> {
    let length = stripe.part_length(shard, rows);
    if length == 0 {
        return None;
    }
    let mut data = BytesMut::with_capacity(length);
    let mut block_crc32c = Vec::with_capacity(rows.len());
    for row in rows.clone() {
        if stripe.cell_length(shard, row) > 0 {
            let (block, crc32c) = packed.block(stripe.block_of(shard, row));
            data.put_slice(block);
            block_crc32c.push(crc32c);
        }
    }
    Some(Frame { data: data.freeze(), block_crc32c })
}

/// Restores the cells of the data shards `lost` in some rows from parts that cover these rows, by shard. It takes as many
/// shards as there are data shards; those behind the chunk's end count. UNAVAILABLE when there are fewer.
pub(super) fn restore(
    stripe: &Stripe,
    rows: &Range<u32>,
    parts: &BTreeMap<u32, Part>,
    lost: &[u32],
) -> Result<Vec<(u32, Part)>, Failure> {
    let length = stripe.coded_length(rows);
    let (data, parity) = (stripe.data_shards(), stripe.parity_shards());
    let mut decoder = ReedSolomonDecoder::new(data as usize, parity as usize, length).map_err(broken)?;
    let mut given = 0;
    for shard in 0..data + parity {
        let part = match parts.get(&shard) {
            Some(part) if part.covers(rows) => part.within(stripe, shard, rows),
            _ if stripe.part_length(shard, rows) == 0 => &[],
            _ => continue,
        };
        if given == data {
            break;
        }
        given += 1;
        let part = padded(part, length);
        match shard.checked_sub(data) {
            None => decoder.add_original_shard(shard as usize, part).map_err(broken)?,
            Some(parity) => decoder.add_recovery_shard(parity as usize, part).map_err(broken)?,
        }
    }
    if given < data {
        let message = format!("{given} shards are there, {data} are needed");
        return Err(Failure::new(Code::Unavailable, message));
    }
    let restored = decoder.decode().map_err(broken)?;
    let part = |&shard: &u32| {
        let cells = restored.restored_original(shard as usize)?;
        let data = Bytes::copy_from_slice(&cells[..stripe.part_length(shard, rows)]);
        Some((shard, Part { rows: rows.clone(), data }))
    };
    Ok(lost.iter().filter_map(part).collect())
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
    fn shards(stripe: &Stripe, packed: &PackedChunk) -> Vec<Vec<u8>> {
        let mut shards = vec![Vec::new(); (stripe.data_shards() + stripe.parity_shards()) as usize];
        for rows in runs(stripe) {
            for (shard, frame) in shards.iter_mut().zip(encode(stripe, packed, &rows).unwrap()) {
                let Some(frame) = frame else { continue };
                assert!(frame.data.len() <= MAX_FRAME_DATA);
                let sums: Vec<u32> = frame.data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
                assert_eq!(frame.block_crc32c, sums);
                shard.extend_from_slice(&frame.data);
            }
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
            let packed = PackedChunk::new(vec![Bytes::from(bytes.clone())]);
            let shards = shards(&stripe, &packed);
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
