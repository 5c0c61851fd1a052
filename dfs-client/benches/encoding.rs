//! What compressing and encrypting a chunk's content costs, and reading it back in frames: content per second on one core,
//! medians. For encryption alone, compare with `openssl speed -evp aes-256-gcm -bytes 65536 -seconds 2` on the same machine.
//!
//! `cargo bench -p dfs-client --bench encoding`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_client::buffers::Buffers;
use dfs_client::encoding::{Decoder, Manner};
use dfs_client::keys::DataKey;
use dfs_proto::limits::MAX_FRAME_DATA;
use dfs_proto::meta::Compression;
use rand::RngCore;

/// What a stream of writes is cut into.
const CONTENT: usize = 16 * 1024 * 1024;
const FRAME_BLOCKS: u32 = 16;
/// How long each thing is measured.
const MEASURE_FOR: Duration = Duration::from_millis(1500);

fn main() {
    let data_key = Arc::new(DataKey::random().expect("random bytes"));
    let encrypted = || Some((1, Arc::clone(&data_key)));
    let manners = [
        ("encrypt", Compression::Uncompressed, encrypted()),
        ("lz4", Compression::Lz4, None),
        ("zstd", Compression::Zstd, None),
        ("zstd, encrypt", Compression::Zstd, encrypted()),
    ];
    let buffers = Buffers::default();
    println!("{:14} {:6} {:>12} {:>12} {:>8}", "manner", "of", "encode MB/s", "decode MB/s", "stored");
    for (name, compression, data_key) in manners {
        let manner = Manner { compression, data_key };
        for (what, content) in [("noise", noise(CONTENT)), ("text", text(CONTENT))] {
            let frames: Vec<Bytes> = content.chunks(MAX_FRAME_DATA).map(Bytes::copy_from_slice).collect();
            let encode = rate(|| {
                black_box(manner.encode(&frames, &buffers).expect("encoded"));
            });
            let (stored, encoding) = manner.encode(&frames, &buffers).expect("encoded");
            let stored = stored.concat();
            let key = manner.data_key.as_ref().map(|(_, key)| &**key);
            let decode = rate(|| {
                let mut blocks = 0..0;
                loop {
                    // As it is read: frame by frame, with nothing kept but the index.
                    let decoder = Decoder::new(&encoding, stored.len() as u64, key).expect("a layout");
                    let layout = decoder.layout();
                    blocks = blocks.end..(blocks.end + FRAME_BLOCKS).min(layout.blocks());
                    if blocks.is_empty() {
                        break;
                    }
                    let at = layout.index();
                    let index = layout.parse(&stored[at.start as usize..at.end as usize]).expect("an index");
                    let range = index.range(&blocks);
                    let part = &stored[range.start as usize..range.end as usize];
                    black_box(decoder.decode(&index, blocks.clone(), part).expect("decoded"));
                }
            });
            let share = stored.len() as f64 / content.len() as f64;
            println!("{name:14} {what:6} {encode:>12.0} {decode:>12.0} {:>7.1}%", share * 100.0);
        }
    }
}

/// MB/s of the content.
fn rate(mut way: impl FnMut()) -> f64 {
    let mut rates = Vec::new();
    let started = Instant::now();
    while started.elapsed() < MEASURE_FOR || rates.len() < 5 {
        let begun = Instant::now();
        way();
        rates.push(CONTENT as f64 / 1e6 / begun.elapsed().as_secs_f64());
    }
    rates.sort_unstable_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// Words of a few letters in an order that does not repeat.
fn text(length: usize) -> Vec<u8> {
    let order = noise(length);
    let words: Vec<Vec<u8>> = (0..256_u32)
        .map(|word| {
            (0..2 + word % 9).map(|at| b'a' + ((word * 31 + at * 7) % 26) as u8).chain([b' ']).collect()
        })
        .collect();
    let mut text: Vec<u8> =
        order.iter().flat_map(|word| &words[usize::from(*word)]).copied().take(length).collect();
    text.truncate(length);
    text
}
