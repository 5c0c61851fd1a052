//! What the erasure code does alone, with a chunk laid out as it is kept, beside what its library does at its best with as
//! much data: whole shards in pieces of several lengths, by a coder that is used again, with no regard to rows, what it
//! computes left where it is. The best of the lengths counts; most often it is 64 KiB, which the processor's cache can hold.
//!
//! Ours is shown twice for encoding: "cells" leaves the parity where it was computed too; "frames" also puts it into the
//! buffers in which it is sent, which costs a copy, with as many rows at once as when
//! a chunk is sent. What is restored is always copied. Data per second on one core, medians
//! of measurements made in turns; in brackets beside the library's.
//!
//! `cargo bench -p dfs-client --bench codec`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_client::buffers::{Buffer, Buffers};
use dfs_client::erasure::{self, Encoder, Part};
use dfs_proto::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH};
use dfs_proto::{Redundancy, Stripe};
use rand::RngCore;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

const CODES: [(u32, u32); 5] = [(4, 2), (6, 3), (8, 3), (10, 4), (16, 4)];
/// Rows restored at once.
const RESTORED_ROWS: u32 = 16;
/// Pieces of shards that the library is given, and whole shards.
const PIECES: [usize; 4] = [32 * 1024, 64 * 1024, 1024 * 1024, usize::MAX];
/// How long each code is measured, each way.
const MEASURE_FOR: Duration = Duration::from_secs(8);

fn main() {
    println!("{:8} {:>44} {:>26}", "", "encode MB/s", "restore MB/s");
    println!(
        "{:8} {:>16} {:>16} {:>10} {:>14} {:>11}",
        "code", "dfs, cells", "dfs, frames", "library", "dfs", "library"
    );
    for (data, parity) in CODES {
        let rows = MAX_CHUNK_LENGTH as u32 / BLOCK_SIZE as u32 / data;
        let length = u64::from(rows * data) * BLOCK_SIZE as u64;
        let stripe = Stripe::new(Redundancy::Coded { data, parity }, length).expect("full rows");
        let chunk = noise(length as usize);
        let blocks: Vec<&[u8]> = chunk.chunks(BLOCK_SIZE).collect();
        let [cells, frames, library] = encode(&stripe, &blocks);
        let encoded = [cells, frames].map(|ours| beside(ours, library));
        let [ours, restored] = restore(&stripe, &blocks);
        println!(
            "{:8} {:>16} {:>16} {library:>10.0} {:>14} {restored:>11.0}",
            format!("ec:{data}+{parity}"),
            encoded[0],
            encoded[1],
            beside(ours, restored)
        );
    }
}

/// MB/s of cells, of frames, of the library.
fn encode(stripe: &Stripe, blocks: &[&[u8]]) -> [f64; 3] {
    let (data, parity) = (stripe.data_shards(), stripe.parity_shards());
    let block = |block: u32| blocks[block as usize];
    let runs = runs(stripe, (96 / (data + parity)).min(16));
    let cells = || {
        let mut encoder = Encoder::new(*stripe).expect("a code");
        for rows in &runs {
            encoder
                .encode(rows, block, |_, cell| {
                    black_box(cell);
                })
                .expect("parity");
        }
    };
    let buffers = Buffers::default();
    let frames = || {
        let mut encoder = Encoder::new(*stripe).expect("a code");
        for rows in &runs {
            let length = stripe.coded_length(rows);
            let mut frames: Vec<Buffer> = (0..parity).map(|_| buffers.take(length)).collect();
            let put = |shard: usize, cell: &[u8]| {
                frames[shard].put(cell);
            };
            encoder.encode(rows, block, put).expect("parity");
            black_box(frames.into_iter().map(Buffer::freeze).collect::<Vec<_>>());
        }
    };
    let shards: Vec<Bytes> = (0..data).map(|shard| data_shard(stripe, blocks, shard)).collect();
    let library = |piece: usize| {
        let shards = &shards;
        move || {
            let mut encoder = None;
            for part in pieces(shards[0].len(), piece) {
                let counts = (data as usize, parity as usize, part.len());
                let encoder = encoder.get_or_insert_with(|| {
                    ReedSolomonEncoder::new(counts.0, counts.1, counts.2).expect("a code")
                });
                encoder.reset(counts.0, counts.1, counts.2).expect("a code");
                for shard in shards {
                    encoder.add_original_shard(&shard[part.clone()]).expect("a shard");
                }
                let encoded = encoder.encode().expect("parity");
                black_box(encoded.recovery_iter().map(<[u8]>::len).sum::<usize>());
            }
        }
    };
    let mut library = PIECES.map(library);
    let bytes: usize = blocks.iter().map(|block| block.len()).sum();
    let mut ways: Vec<Box<dyn FnMut() + '_>> = vec![Box::new(cells), Box::new(frames)];
    ways.extend(library.iter_mut().map(|way| Box::new(way) as Box<dyn FnMut()>));
    let rates = measure(bytes, &mut ways);
    [rates[0], rates[1], best(&rates[2..])]
}

/// MB/s of ours, of the library, when as many data shards are lost as may be.
fn restore(stripe: &Stripe, blocks: &[&[u8]]) -> [f64; 2] {
    let (data, parity) = (stripe.data_shards(), stripe.parity_shards());
    let mut shards: Vec<Vec<u8>> = vec![Vec::new(); parity as usize];
    let mut encoder = Encoder::new(*stripe).expect("a code");
    let put = |shard: usize, cell: &[u8]| shards[shard].extend_from_slice(cell);
    encoder.encode(&(0..stripe.rows()), |block| blocks[block as usize], put).expect("parity");
    let left = (parity..data).map(|shard| (shard, data_shard(stripe, blocks, shard)));
    let shards: Vec<(u32, Bytes)> = left.chain((data..).zip(shards.into_iter().map(Bytes::from))).collect();
    let lost: Vec<u32> = (0..parity.min(data)).collect();

    let ours = || {
        for rows in runs(stripe, RESTORED_ROWS) {
            let part = |(shard, bytes): &(u32, Bytes)| {
                let start = rows.start as usize * BLOCK_SIZE;
                let data = bytes.slice(start..start + stripe.part_length(*shard, &rows));
                (*shard, Part { rows: rows.clone(), data })
            };
            let parts: BTreeMap<u32, Part> = shards.iter().map(part).collect();
            black_box(erasure::restore(stripe, &rows, &parts, &lost).expect("restored"));
        }
    };
    let library = |piece: usize| {
        let shards = &shards;
        move || {
            let mut decoder = None;
            for part in pieces(shards[0].1.len(), piece) {
                let counts = (data as usize, parity as usize, part.len());
                let decoder = decoder.get_or_insert_with(|| {
                    ReedSolomonDecoder::new(counts.0, counts.1, counts.2).expect("a code")
                });
                decoder.reset(counts.0, counts.1, counts.2).expect("a code");
                for (shard, bytes) in shards {
                    let bytes = &bytes[part.clone()];
                    match shard.checked_sub(data) {
                        None => decoder.add_original_shard(*shard as usize, bytes).expect("a shard"),
                        Some(parity) => {
                            decoder.add_recovery_shard(parity as usize, bytes).expect("a shard");
                        }
                    }
                }
                let restored = decoder.decode().expect("restored");
                black_box(restored.restored_original_iter().map(|(_, cells)| cells.len()).sum::<usize>());
            }
        }
    };
    let mut library = PIECES.map(library);
    let bytes: usize = blocks.iter().map(|block| block.len()).sum();
    let mut ways: Vec<Box<dyn FnMut() + '_>> = vec![Box::new(ours)];
    ways.extend(library.iter_mut().map(|way| Box::new(way) as Box<dyn FnMut()>));
    let rates = measure(bytes, &mut ways);
    [rates[0], best(&rates[1..])]
}

/// MB/s of each of several ways with so many bytes, measured in turns.
fn measure(bytes: usize, ways: &mut [Box<dyn FnMut() + '_>]) -> Vec<f64> {
    let mut rates = vec![Vec::new(); ways.len()];
    let started = Instant::now();
    while started.elapsed() < MEASURE_FOR || rates[0].len() < 5 {
        for (rates, way) in rates.iter_mut().zip(&mut *ways) {
            let begun = Instant::now();
            way();
            rates.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        }
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    rates.into_iter().map(median).collect()
}

fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}

fn beside(ours: f64, library: f64) -> String {
    format!("{ours:.0} ({:.2})", ours / library)
}

/// The rows of a chunk, some at once.
fn runs(stripe: &Stripe, at_once: u32) -> Vec<Range<u32>> {
    let rows = stripe.rows();
    (0..rows).step_by(at_once as usize).map(|row| row..(row + at_once).min(rows)).collect()
}

/// Something of this length in pieces.
fn pieces(length: usize, piece: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(piece).map(move |start| start..length.min(start.saturating_add(piece)))
}

fn data_shard(stripe: &Stripe, blocks: &[&[u8]], shard: u32) -> Bytes {
    (0..stripe.rows())
        .map(|row| blocks[stripe.block_of(shard, row) as usize])
        .collect::<Vec<_>>()
        .concat()
        .into()
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
