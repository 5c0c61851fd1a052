//! Classes that compress and encrypt: what the nodes get, what is read of it, and what comes of bytes that are not what was
//! written although their checksums fit.

use std::collections::HashSet;

use dfs_proto::limits::BLOCK_SIZE;

use super::*;

const ENCRYPTED: &str = "replicated:2,encrypt=k";

/// The chunk that a file of one extent is in.
fn chunk_of(bench: &Bench, ino: u64) -> u64 {
    bench.meta.extents(ino)[0].chunk
}

fn impatient() -> DataSettings {
    DataSettings { timeout: Duration::from_millis(300), ..DataSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_neither_a_byte_of_content_nor_a_salt_twice() {
    let bench = Bench::new(3).await;
    let words = b"words that are nobody else's business ";
    let mut expected = Vec::new();
    for ino in 10..60 {
        let file = bench.create_as(
            ino,
            ["replicated:2,encrypt=k", "replicated:2,compress=zstd,encrypt=k"][ino as usize % 2],
        );
        let text = words.repeat(1 + ino as usize * 37);
        write(&file, 0, &text).await;
        file.flush().await.unwrap();
        expected.push((ino, text));
    }
    for (ino, text) in &expected {
        assert!(bench.read_elsewhere(*ino).await == *text);
    }
    let mut salts = HashSet::new();
    for (chunk, plan) in bench.meta.sealed() {
        let encoding = plan.encoding.expect("a class that encrypts");
        assert!(salts.insert(encoding.salt), "a salt came again");
        for node in &bench.nodes {
            let Some(shard) = node.shard(chunk) else { continue };
            assert!(
                !shard.data.windows(8).any(|window| window == &words[..8]),
                "chunk {chunk} has plain text"
            );
        }
    }
    assert_eq!(salts.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_read_takes_one_block_and_the_index_once() {
    let bench = Bench::new(3).await;
    let bytes = pattern(4 * MIB, 1);
    let file = bench.create_as(7, ENCRYPTED);
    write(&file, 0, &bytes).await;
    file.flush().await.unwrap();
    let cold = bench.another().open(&bench.meta.attr(7), None);
    let blocks_read = || bench.nodes.iter().map(|node| node.take_counts().1).sum::<usize>();
    blocks_read();
    for (block, expected) in [(17, 2), (40, 1), (3, 1)] {
        let at = block * BLOCK_SIZE + 300;
        assert!(cold.read(at as u64, 4096).await.unwrap() == bytes[at..at + 4096]);
        if cold.plane.io.hedges() == 0 {
            assert_eq!(blocks_read(), expected, "block {block}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pays_is_compressed_and_what_does_not_is_not() {
    let bench = Bench::new(3).await;
    let text = b"line after line after line\n".repeat(50_000);
    let stored = async |ino: u64, class: &str, bytes: &[u8]| {
        let file = bench.create_as(ino, class);
        write(&file, 0, bytes).await;
        file.flush().await.unwrap();
        assert!(bench.read_elsewhere(ino).await == bytes);
        bench.meta.sealed()[&chunk_of(&bench, ino)].length as usize
    };
    for (ino, class) in [(10, "replicated:2,compress=lz4"), (20, "replicated:2,compress=zstd")] {
        assert!(stored(ino, class, &text).await < text.len() / 20);
        let noise: Vec<u8> = (0..300_000).map(|_| rand::random()).collect();
        let taken = stored(ino + 1, class, &noise).await;
        assert_eq!(taken, noise.len() + noise.len().div_ceil(BLOCK_SIZE) * 4, "nothing but an index more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_fit_their_checksums_and_are_not_what_was_written_are_found() {
    for (nodes, class) in
        [(3, "replicated:3,encrypt=k"), (6, "ec:4+2,encrypt=k"), (6, "ec:4+2,compress=zstd,encrypt=k")]
    {
        let bench = Bench::with(nodes, impatient()).await;
        // Some of it can be compressed.
        let content = || [(0..MIB).map(|_| rand::random()).collect(), pattern(MIB / 2, 1)].concat();
        let (old, new): (Vec<u8>, Vec<u8>) = (content(), content());
        let file = bench.create_as(7, class);
        write(&file, 0, &old).await;
        file.flush().await.unwrap();
        let before = chunk_of(&bench, 7);
        write(&file, 0, &new).await;
        file.flush().await.unwrap();
        let chunk = chunk_of(&bench, 7);
        let spare = 2;
        for (node, lost) in bench.nodes.iter().zip(1..) {
            // An older content, with all that belongs to it; or the same with two blocks in each other's place.
            let shard = node.shard(chunk).expect("every node has one");
            let old = node.shard(before).expect("every node has one").data;
            let mut forged = if lost % 2 == 0 { old.to_vec() } else { shard.data.to_vec() };
            forged.resize(shard.data.len(), 0);
            if lost % 2 != 0 {
                for at in 0..BLOCK_SIZE.min(forged.len() - BLOCK_SIZE) {
                    forged.swap(at, BLOCK_SIZE + at);
                }
            }
            node.forge(chunk, forged.into());
            let cold = DataPlane::new(Arc::clone(&bench.meta) as _, CLUSTER, bench.meta.keys(), impatient())
                .open(&bench.meta.attr(7), None);
            let mut failed = 0;
            for at in (0..new.len()).step_by(BLOCK_SIZE) {
                match cold.read(at as u64, BLOCK_SIZE).await {
                    Ok(read) => {
                        assert!(read == new[at..at + BLOCK_SIZE], "wrong bytes at {at}, {lost} forged")
                    }
                    Err(failure) => {
                        assert!(failure.errno() == 5 && lost > spare, "{class}, {lost} forged: {failure}");
                        failed += 1;
                    }
                }
            }
            if lost as u64 == nodes {
                assert!(failed > 0, "nothing is left of {class}");
                if nodes == 3 {
                    let told = || bench.meta.reports().iter().any(|report| report.chunk == chunk);
                    eventually("the copies that are not what was written are told", told).await;
                }
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_key_nothing_is_read_and_nothing_is_written() {
    let bench = Bench::new(3).await;
    let file = bench.create_as(7, ENCRYPTED);
    write(&file, 0, &pattern(1000, 1)).await;
    file.flush().await.unwrap();
    let keys = Arc::new(crate::keys::Keyring::empty(Arc::clone(&bench.meta) as _));
    let plane = DataPlane::new(Arc::clone(&bench.meta) as _, CLUSTER, keys, impatient());
    let keyless = plane.open(&bench.meta.attr(7), None);
    assert_eq!(keyless.read(0, 100).await.unwrap_err().code, dfs_proto::Code::NoKey);
    keyless.write(WriteAt::Offset(0), b"x", false).await.unwrap();
    assert_eq!(keyless.flush().await.unwrap_err().code, dfs_proto::Code::NoKey);
    assert!(bench.read_elsewhere(7).await == pattern(1000, 1));
}
