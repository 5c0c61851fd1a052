use dfs_proto::limits::{MAX_CONTENT_LENGTH, MAX_FRAME_DATA};
use proptest::prelude::*;

use super::*;

fn manner(compression: Compression, data_key: Option<Arc<DataKey>>) -> Manner {
    Manner { compression, data_key: data_key.map(|key| (7, key)) }
}

fn data_key() -> Arc<DataKey> {
    Arc::new(DataKey::random().unwrap())
}

/// Text, numbers and noise in turns.
fn content(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt | 1;
    let mut bytes = Vec::with_capacity(length + 1000);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 3 {
            0 => bytes.extend_from_slice(&b"the quick brown fox ".repeat(state as usize / 3 % 5000)),
            1 => bytes.extend((0..state / 3 % 30_000).map(|at| (at / 100) as u8)),
            _ => (0..state / 3 % 8000).for_each(|at| {
                bytes.extend_from_slice(
                    &(state.wrapping_mul(at | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes(),
                );
            }),
        }
    }
    bytes.truncate(length);
    bytes
}

fn frames(content: &[u8]) -> Vec<Bytes> {
    content.chunks(MAX_FRAME_DATA).map(Bytes::copy_from_slice).collect()
}

/// What is stored of a content, in one piece.
fn encode(manner: &Manner, content: &[u8]) -> (Vec<u8>, Encoding) {
    let (stored, encoding) = manner.encode(&frames(content), &Buffers::default()).unwrap();
    let (last, full) = stored.split_last().unwrap();
    assert!(
        full.iter().all(|frame| frame.len() == MAX_FRAME_DATA) && (1..=MAX_FRAME_DATA).contains(&last.len())
    );
    (stored.concat(), encoding)
}

fn index_of(decoder: &Decoder, stored: &[u8]) -> Result<Index, Failure> {
    let range = decoder.layout().index();
    decoder.layout().parse(&stored[range.start as usize..range.end as usize])
}

fn decode(decoder: &Decoder, stored: &[u8], blocks: Range<u32>) -> Result<Bytes, Failure> {
    let index = index_of(decoder, stored)?;
    let range = index.range(&blocks);
    decoder.decode(&index, blocks, &stored[range.start as usize..range.end as usize])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_encoded_is_decoded_block_by_block(
        length in prop_oneof![1..200_usize, 1..3_000_000_usize],
        salt in any::<u64>(),
        compression in prop_oneof![
            Just(Compression::Uncompressed), Just(Compression::Lz4), Just(Compression::Zstd),
        ],
        is_encrypted: bool,
        from in any::<prop::sample::Index>(),
        count in 1..16_u32,
        flipped in any::<prop::sample::Index>(),
    ) {
        let key = data_key();
        let manner = manner(compression, is_encrypted.then(|| Arc::clone(&key)));
        prop_assume!(!manner.is_plain());
        let plain = content(length, salt);
        let (stored, encoding) = encode(&manner, &plain);
        prop_assert_eq!(encoding.length as usize, length);
        let decoder = Decoder::new(&encoding, stored.len() as u64, Some(&key)).unwrap();
        let blocks = decoder.layout().blocks();
        let start = from.index(blocks as usize) as u32;
        let range = start..(start + count).min(blocks);
        let expected = &plain[start as usize * BLOCK_SIZE..(range.end as usize * BLOCK_SIZE).min(length)];
        prop_assert!(decode(&decoder, &stored, range).unwrap() == expected);
        prop_assert!(decode(&decoder, &stored, 0..blocks).unwrap() == plain);

        // A bit somewhere: where it is encrypted nothing but an error comes of it.
        let mut damaged = stored.clone();
        let at = flipped.index(damaged.len());
        damaged[at] ^= 1 << (salt % 8);
        match decode(&decoder, &damaged, 0..blocks) {
            Err(failure) => prop_assert_eq!(failure.code, Code::Corrupt),
            Ok(bytes) => prop_assert!(!is_encrypted && bytes.len() == length, "wrong bytes came out"),
        }
        if is_encrypted {
            let other = Decoder::new(&encoding, stored.len() as u64, Some(&data_key())).unwrap();
            prop_assert_eq!(decode(&other, &stored, 0..blocks).unwrap_err().code, Code::Corrupt);
            prop_assert!(Decoder::new(&encoding, stored.len() as u64, None).is_err());
        }
    }
}

#[test]
fn neither_swapped_nor_older_nor_cut_blocks_pass() {
    let key = data_key();
    let manner = manner(Compression::Uncompressed, Some(Arc::clone(&key)));
    let (old, new) = (vec![1; 4 * BLOCK_SIZE], vec![2; 4 * BLOCK_SIZE]);
    let (before, _) = encode(&manner, &old);
    let (stored, encoding) = encode(&manner, &new);
    let decoder = Decoder::new(&encoding, stored.len() as u64, Some(&key)).unwrap();
    let refused = |bytes: &[u8]| assert_eq!(decode(&decoder, bytes, 0..4).unwrap_err().code, Code::Corrupt);
    // Two blocks in each other's place, with their tags.
    let mut swapped = stored.clone();
    let index = decoder.layout().index().start as usize;
    for (first, second, length) in [(0, BLOCK_SIZE, BLOCK_SIZE), (index, index + 16, 16)] {
        for at in 0..length {
            swapped.swap(first + at, second + at);
        }
    }
    refused(&swapped);
    // A block of the content as it was before, with its tag; and all of it.
    let mut replayed = stored.clone();
    replayed[..BLOCK_SIZE].copy_from_slice(&before[..BLOCK_SIZE]);
    replayed[index..index + 16].copy_from_slice(&before[index..index + 16]);
    refused(&replayed);
    refused(&before);
    // A content of which the end is missing.
    let short = Encoding { length: 3 * BLOCK_SIZE as u64, ..encoding.clone() };
    let mut cut = stored[..3 * BLOCK_SIZE].to_vec();
    cut.extend_from_slice(&stored[index..index + 48]);
    let decoder = Decoder::new(&short, cut.len() as u64, Some(&key)).unwrap();
    assert_eq!(decode(&decoder, &cut, 0..3).unwrap_err().code, Code::Corrupt);
}

#[test]
fn neither_the_content_nor_the_key_is_stored() {
    let key = data_key();
    let words = b"a sentence that nobody else may read. ";
    let plain = words.repeat(20_000);
    for compression in [Compression::Uncompressed, Compression::Lz4, Compression::Zstd] {
        let (stored, _) = encode(&manner(compression, Some(Arc::clone(&key))), &plain);
        let found = |needle: &[u8]| stored.windows(needle.len()).any(|window| window == needle);
        assert!(!found(&words[..12]) && !found(&key.expose()[..8]));
        if compression != Compression::Uncompressed {
            assert!(stored.len() < plain.len() / 10, "compressed before it was encrypted");
        }
    }
}

#[test]
fn the_longest_content_fits_a_chunk() {
    let plain = content(MAX_CONTENT_LENGTH as usize, 3);
    let key = data_key();
    for compression in [Compression::Uncompressed, Compression::Lz4] {
        let (stored, encoding) = encode(&manner(compression, Some(Arc::clone(&key))), &plain);
        assert!(encoding.layout(stored.len() as u64).is_ok());
    }
}
