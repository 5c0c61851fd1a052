//! Sends a coded chunk: some rows are encoded while the rows before them are on their way, to all nodes at once.

use std::ops::Range;

use dfs_proto::chunk::PutHeader;
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use dfs_proto::{Code, Failure, Stripe};
use futures::future::{join, join_all};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::packed::{Frame, PackedChunk};
use super::super::put::{Outcome, Target, put_to};
use crate::buffers::{Buffer, Buffers};
use crate::erasure::Encoder;

/// Cells of all shards encoded at once, at most: 6 MiB.
const CELLS_AT_ONCE: u32 = 96;
/// Rows encoded at once: as many as fill a frame. The fewer frames, the less often who receives them is woken up.
const ROWS_AT_ONCE: u32 = (MAX_FRAME_DATA / BLOCK_SIZE) as u32;
/// Frames of one shard that wait to be sent: what is encoded ahead.
const FRAMES_AHEAD: usize = 1;

/// Where a shard's cells are handed to; `None` once nobody takes them any more.
type Outlet = (u32, Option<mpsc::Sender<Frame>>);

/// Sends each of `targets` its shard; what became of it. `header` is a shard's, by its index and length.
pub(in super::super) async fn send(
    packed: &PackedChunk,
    stripe: &Stripe,
    header: impl Fn(u32, u64) -> PutHeader,
    targets: &[Target],
    buffers: &Buffers,
) -> Vec<Outcome> {
    let mut outlets: Vec<Outlet> = Vec::with_capacity(targets.len());
    let puts: Vec<_> = targets
        .iter()
        .map(|(index, node)| {
            let (outlet, frames) = mpsc::channel(FRAMES_AHEAD);
            outlets.push((*index, Some(outlet)));
            let put = put_to(node, header(*index, stripe.shard_length(*index)), ReceiverStream::new(frames));
            async move { Outcome::of(put.await, node, *index) }
        })
        .collect();
    let (encoded, outcomes) = join(encode(packed, stripe, outlets, buffers), join_all(puts)).await;
    match encoded {
        Ok(()) => outcomes,
        Err(failure) => {
            tracing::error!(%failure, "a chunk could not be encoded");
            targets.iter().map(|_| Outcome::Unknown).collect()
        }
    }
}

/// Encodes rows and hands each shard its cells, until all are taken or nobody takes any.
async fn encode(
    packed: &PackedChunk,
    stripe: &Stripe,
    mut outlets: Vec<Outlet>,
    buffers: &Buffers,
) -> Result<(), Failure> {
    let mut encoder = Encoder::new(*stripe)?;
    for rows in runs(stripe) {
        let (packed, stripe, buffers) = (packed.clone(), *stripe, buffers.clone());
        let encoding = tokio::task::spawn_blocking(move || {
            let frames = frames(&mut encoder, &packed, &stripe, &rows, &buffers);
            (encoder, frames)
        });
        let (same, frames) =
            encoding.await.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))?;
        encoder = same;
        let frames = frames?;
        for (index, outlet) in &mut outlets {
            if let (Some(open), Some(frame)) = (&*outlet, &frames[*index as usize])
                && open.send(frame.clone()).await.is_err()
            {
                *outlet = None;
            }
        }
        if outlets.iter().all(|(_, outlet)| outlet.is_none()) {
            break;
        }
    }
    Ok(())
}

/// The rows of a chunk, in runs that are encoded at once and of which each shard's cells fit a frame.
fn runs(stripe: &Stripe) -> impl Iterator<Item = Range<u32>> + use<> {
    let shards = stripe.data_shards() + stripe.parity_shards();
    let at_once = (CELLS_AT_ONCE / shards).clamp(1, ROWS_AT_ONCE);
    let rows = stripe.rows();
    (0..rows).step_by(at_once as usize).map(move |row| row..(row + at_once).min(rows))
}

/// The cells of all shards in some rows, by shard; `None` for a data shard behind the chunk's end.
fn frames(
    encoder: &mut Encoder,
    packed: &PackedChunk,
    stripe: &Stripe,
    rows: &Range<u32>,
    buffers: &Buffers,
) -> Result<Vec<Option<Frame>>, Failure> {
    let shards = 0..stripe.data_shards() + stripe.parity_shards();
    let mut frames: Vec<_> = shards.map(|shard| Filling::new(stripe, shard, rows, buffers)).collect();
    let (data, parity) = frames.split_at_mut(stripe.data_shards() as usize);
    let block = |block| packed.block(block).0;
    // Row by row: the code finds in the processor's cache what was copied just now.
    for row in rows.clone() {
        for (shard, frame) in (0..).zip(&mut *data).filter(|(shard, _)| stripe.cell_length(*shard, row) > 0) {
            let (block, crc32c) = packed.block(stripe.block_of(shard, row));
            frame.put(block, crc32c);
        }
        encoder
            .encode(&(row..row + 1), block, |shard, cell| parity[shard].put(cell, crc32c::crc32c(cell)))?;
    }
    Ok(frames.into_iter().map(Filling::done).collect())
}

/// A frame that is being filled.
struct Filling {
    data: Buffer,
    block_crc32c: Vec<u32>,
}

impl Filling {
    fn new(stripe: &Stripe, shard: u32, rows: &Range<u32>, buffers: &Buffers) -> Self {
        let data = buffers.take(stripe.part_length(shard, rows));
        Self { data, block_crc32c: Vec::with_capacity(rows.len()) }
    }

    fn put(&mut self, cell: &[u8], crc32c: u32) {
        self.data.put(cell);
        self.block_crc32c.push(crc32c);
    }

    /// `None` when nothing was put.
    fn done(self) -> Option<Frame> {
        let Self { data, block_crc32c } = self;
        (!block_crc32c.is_empty()).then(|| Frame { data: data.freeze(), block_crc32c })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dfs_proto::Redundancy;

    use super::*;
    use crate::chunk::lay_out;

    #[test]
    fn frames_are_the_shards_cut_at_blocks_with_their_checksums() {
        let (data, parity) = (4, 2);
        let buffers = Buffers::default();
        for length in [4 * BLOCK_SIZE, 4 * BLOCK_SIZE + 1, 200 * BLOCK_SIZE + 77] {
            let stripe = Stripe::new(Redundancy::Coded { data, parity }, length as u64).unwrap();
            let bytes: Bytes = (0..length).map(|at| (at / 251) as u8).collect();
            let packed = PackedChunk::new(lay_out(vec![bytes.clone()]));
            let mut encoder = Encoder::new(stripe).unwrap();
            let mut shards = vec![Vec::new(); (data + parity) as usize];
            for rows in runs(&stripe) {
                for (shard, frame) in
                    shards.iter_mut().zip(frames(&mut encoder, &packed, &stripe, &rows, &buffers).unwrap())
                {
                    let Some(frame) = frame else { continue };
                    assert!(frame.data.len() <= MAX_FRAME_DATA && shard.len() % BLOCK_SIZE == 0);
                    let sums: Vec<u32> = frame.data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
                    assert_eq!(frame.block_crc32c, sums);
                    shard.extend_from_slice(&frame.data);
                }
            }
            for (index, shard) in (0..).zip(&shards) {
                assert_eq!(shard.len() as u64, stripe.shard_length(index), "shard {index} of {length} bytes");
            }
            for (block, content) in (0..).zip(bytes.chunks(BLOCK_SIZE)) {
                let (shard, row) = stripe.place_of(block);
                let cell = &shards[shard as usize][row as usize * BLOCK_SIZE..][..content.len()];
                assert!(cell == content, "block {block} of {length} bytes");
            }
        }
    }
}
