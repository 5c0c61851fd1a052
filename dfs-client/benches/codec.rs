//! What the erasure code does alone, beside what its library does with the same bytes laid out as it likes best: whole
//! shards, one behind the other. Data per second on one core, medians.
//!
//! `cargo bench -p dfs-client --bench codec`

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_client::erasure::{self, Encoder, Part};
use dfs_proto::limits::BLOCK_SIZE;
use dfs_proto::{Redundancy, Stripe};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

const CODES: [(u32, u32); 5] = [(4, 2), (6, 3), (8, 3), (10, 4), (16, 4)];
/// Rows restored at once.
const RESTORED_ROWS: u32 = 16;
/// How long each thing is measured.
const MEASURE_FOR: Duration = Duration::from_millis(1500);

fn main() {
    println!("{:8} {:>28} {:>28}", "code", "encode MB/s: dfs, library", "restore MB/s: dfs, library");
    for (data, parity) in CODES {
        let rows = 64 * 1024 * 1024 / BLOCK_SIZE as u32 / data;
        let length = u64::from(rows * data) * BLOCK_SIZE as u64;
        let stripe = Stripe::new(Redundancy::Coded { data, parity }, length).expect("full rows");
        let chunk = pattern(length as usize);
        let blocks: Vec<&[u8]> = chunk.chunks(BLOCK_SIZE).collect();
        let shards: Vec<Bytes> = (0..data).map(|shard| data_shard(&stripe, &blocks, shard)).collect();

        let at_once = 96 / (data + parity);
        let ours = || {
            let mut encoder = Encoder::new(stripe).expect("a code");
            for row in (0..rows).step_by(at_once as usize) {
                let run = row..(row + at_once).min(rows);
                black_box(encoder.encode(&run, |block| blocks[block as usize]).expect("parity"));
            }
        };
        let library = || {
            let length = shards[0].len();
            let mut encoder =
                ReedSolomonEncoder::new(data as usize, parity as usize, length).expect("a code");
            shards.iter().for_each(|shard| encoder.add_original_shard(shard).expect("a shard"));
            black_box(encoder.encode().expect("parity").recovery_iter().map(<[u8]>::len).sum::<usize>());
        };
        let encode = compare(length, ours, library);

        // All that may be lost is, of the data.
        let mut encoder = Encoder::new(stripe).expect("a code");
        let run = 0..RESTORED_ROWS.min(rows);
        let cells = encoder.encode(&run, |block| blocks[block as usize]).expect("parity");
        let part = |data: Bytes| Part { rows: run.clone(), data };
        let left = (parity..data)
            .map(|shard| (shard, part(shards[shard as usize].slice(..stripe.part_length(shard, &run)))));
        let parts: BTreeMap<u32, Part> = left.chain((data..).zip(cells.iter().cloned().map(part))).collect();
        let lost: Vec<u32> = (0..parity.min(data)).collect();
        let ours = || {
            black_box(erasure::restore(&stripe, &run, &parts, &lost).expect("restored"));
        };
        let library = || {
            let length = stripe.coded_length(&run);
            let mut decoder =
                ReedSolomonDecoder::new(data as usize, parity as usize, length).expect("a code");
            for (shard, part) in &parts {
                match shard.checked_sub(data) {
                    None => decoder.add_original_shard(*shard as usize, &part.data).expect("a shard"),
                    Some(parity) => {
                        decoder.add_recovery_shard(parity as usize, &part.data).expect("a shard");
                    }
                }
            }
            let restored = decoder.decode().expect("restored");
            black_box(restored.restored_original_iter().map(|(_, cells)| cells.len()).sum::<usize>());
        };
        let bytes = u64::from(data) * stripe.coded_length(&run) as u64;
        let restore = compare(bytes, ours, library);
        let shown = |[ours, library]: [f64; 2]| format!("{ours:.0}, {library:.0} ({:.2})", ours / library);
        println!("{:8} {:>28} {:>28}", format!("ec:{data}+{parity}"), shown(encode), shown(restore));
    }
}

/// MB/s of two ways, measured in turns.
fn compare(bytes: u64, mut ours: impl FnMut(), mut library: impl FnMut()) -> [f64; 2] {
    let mut rates = [Vec::new(), Vec::new()];
    let started = Instant::now();
    while started.elapsed() < 2 * MEASURE_FOR || rates[0].len() < 5 {
        for (rates, way) in rates.iter_mut().zip([&mut ours as &mut dyn FnMut(), &mut library]) {
            let begun = Instant::now();
            way();
            rates.push(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());
        }
    }
    rates.map(|mut rates| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    })
}

fn data_shard(stripe: &Stripe, blocks: &[&[u8]], shard: u32) -> Bytes {
    (0..stripe.rows())
        .map(|row| blocks[stripe.block_of(shard, row) as usize])
        .collect::<Vec<_>>()
        .concat()
        .into()
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
