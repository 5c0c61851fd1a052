//! How a chunk lies on its shards, copies and coded ones alike: in frames, and what a frame of every shard must be.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use dfs_proto::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH, MAX_FRAME_DATA};
use dfs_proto::{Failure, Redundancy, Stripe};

use super::super::read::bytes_of;
use crate::erasure::{self, Encoder, Part};

/// Blocks in a frame of copies, and of the data of a coded chunk: what a reader asks for at once.
const FRAME_BLOCKS: u32 = (MAX_FRAME_DATA / BLOCK_SIZE) as u32;

/// The layout of one chunk.
pub(super) enum Layout {
    Copies { copies: u32, length: u64 },
    Coded(Stripe),
}

/// What every shard must be in one frame, if the shards that it was put together from are right.
pub(super) struct Truth {
    /// By shard; of copies there is one for all.
    shards: Vec<Bytes>,
}

impl Layout {
    /// `None` when no chunk can be kept so.
    pub(super) fn new(redundancy: Redundancy, length: u64) -> Option<Self> {
        if !(1..=MAX_CHUNK_LENGTH).contains(&length) {
            return None;
        }
        match redundancy {
            Redundancy::Replicated { copies } => Some(Self::Copies { copies, length }),
            Redundancy::Coded { .. } => Stripe::new(redundancy, length).map(Self::Coded),
        }
    }

    pub(super) fn is_copies(&self) -> bool {
        matches!(self, Self::Copies { .. })
    }

    /// How many there should be.
    pub(super) fn shards(&self) -> u32 {
        match self {
            Self::Copies { copies, .. } => *copies,
            Self::Coded(stripe) => stripe.data_shards() + stripe.parity_shards(),
        }
    }

    /// How many it takes to read.
    pub(super) fn needed(&self) -> u32 {
        match self {
            Self::Copies { .. } => 1,
            Self::Coded(stripe) => stripe.data_shards(),
        }
    }

    /// How many may be lost.
    pub(super) fn spare(&self) -> u32 {
        self.shards() - self.needed()
    }

    /// Frames, each as many blocks or rows of every shard.
    pub(super) fn frames(&self) -> u32 {
        match self {
            Self::Copies { length, .. } => (length.div_ceil(BLOCK_SIZE as u64) as u32).div_ceil(FRAME_BLOCKS),
            Self::Coded(stripe) => stripe.rows().div_ceil(self.rows_in_frame()),
        }
    }

    fn rows_in_frame(&self) -> u32 {
        (FRAME_BLOCKS / self.needed()).max(1)
    }

    /// The blocks of a shard, or rows, that are a frame.
    fn rows(&self, frame: u32) -> Range<u32> {
        let (each, all) = match self {
            Self::Copies { length, .. } => (FRAME_BLOCKS, length.div_ceil(BLOCK_SIZE as u64) as u32),
            Self::Coded(stripe) => (self.rows_in_frame(), stripe.rows()),
        };
        (frame * each).min(all)..((frame + 1) * each).min(all)
    }

    /// Offset and length in a shard of its part of a frame; a length of 0 where it has ended before.
    pub(super) fn part(&self, shard: u32, frame: u32) -> (u64, u64) {
        match self {
            Self::Copies { length, .. } => bytes_of(*length, &self.rows(frame)),
            Self::Coded(stripe) => bytes_of(stripe.shard_length(shard), &self.rows(frame)),
        }
    }

    /// Puts a frame together from parts of shards, as long as [`Self::part`] says. `None`: they are too few.
    pub(super) fn assemble(
        &self,
        encoder: &mut Option<Encoder>,
        frame: u32,
        parts: &BTreeMap<u32, Bytes>,
    ) -> Result<Option<Truth>, Failure> {
        let Self::Coded(stripe) = self else {
            return Ok(parts.values().next().map(|part| Truth { shards: vec![part.clone()] }));
        };
        let rows = self.rows(frame);
        let of = |data: &Bytes| Part { rows: rows.clone(), data: data.clone() };
        let mut parts: BTreeMap<u32, Part> = parts.iter().map(|(shard, data)| (*shard, of(data))).collect();
        let is_lost = |shard: &u32| stripe.part_length(*shard, &rows) > 0 && !parts.contains_key(shard);
        let lost: Vec<u32> = (0..stripe.data_shards()).filter(is_lost).collect();
        let counts = |shard: &u32| stripe.part_length(*shard, &rows) == 0 || parts.contains_key(shard);
        if ((0..self.shards()).filter(counts).count() as u32) < self.needed() {
            return Ok(None);
        }
        if !lost.is_empty() {
            parts.extend(erasure::restore(stripe, &rows, &parts, &lost)?);
        }
        let encoder = match encoder {
            Some(encoder) => encoder,
            none => none.insert(Encoder::new(*stripe)?),
        };
        let block = |block| {
            let (shard, row) = stripe.place_of(block);
            parts[&shard].within(stripe, shard, &(row..row + 1))
        };
        let mut parity =
            vec![Vec::with_capacity(stripe.coded_length(&rows)); stripe.parity_shards() as usize];
        encoder.encode(&rows, block, |shard, cell| parity[shard].extend_from_slice(cell))?;
        let data = (0..stripe.data_shards())
            .map(|shard| parts.remove(&shard).map_or_else(Bytes::new, |part| part.data));
        Ok(Some(Truth { shards: data.chain(parity.into_iter().map(Bytes::from)).collect() }))
    }

    /// The chunk's bytes in a frame, in order.
    pub(super) fn data<'a>(&self, frame: u32, truth: &'a Truth) -> Vec<&'a [u8]> {
        match self {
            Self::Copies { .. } => vec![&truth.shards[0]],
            Self::Coded(stripe) => {
                let rows = self.rows(frame);
                let first = stripe.block_of(0, rows.start);
                let end = stripe.block_of(0, rows.end).min(stripe.cells());
                let cell = |block| {
                    let (shard, row) = stripe.place_of(block);
                    let start = (row - rows.start) as usize * BLOCK_SIZE;
                    &truth.shards[shard as usize][start..start + stripe.cell_length(shard, row)]
                };
                (first..end).map(cell).collect()
            }
        }
    }
}

impl Truth {
    /// What a shard must be.
    pub(super) fn of(&self, layout: &Layout, shard: u32) -> &Bytes {
        &self.shards[if layout.is_copies() { 0 } else { shard as usize }]
    }
}
