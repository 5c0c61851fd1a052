use std::sync::{Arc, Mutex};

use dfs_proto::{ChunkId, Redundancy, ShardIndex};
use proptest::prelude::*;

use super::*;

/// A file in memory, to write, damage and read.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Output for Memory {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Input for Memory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let part = bytes.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.read_at(buffer, offset).is_ok()
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

const CLUSTER: ClusterId = ClusterId([3; 16]);
const KEY: ShardKey = ShardKey { chunk: ChunkId(77), index: ShardIndex(1) };

fn bytes_of(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i / 65536) as u8).collect()
}

fn write(data: &[u8]) -> Memory {
    let memory = Memory::default();
    let redundancy = Redundancy::Replicated { copies: 3 };
    let header = ShardHeader { cluster: CLUSTER, key: KEY, redundancy, length: data.len() as u32 };
    let mut writer = ShardWriter::new(Box::new(memory.clone()), header).unwrap();
    for frame in data.chunks(3 * BLOCK_SIZE) {
        let crcs: Vec<_> = frame.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        assert!(!writer.is_complete());
        writer.append(frame, &crcs).unwrap();
    }
    writer.end().unwrap().sync().unwrap();
    memory
}

/// Opens the file and reads all of it.
fn read_all(memory: &Memory) -> Result<Vec<u8>, Failure> {
    let file = ShardFile::open(Box::new(memory.clone()), CLUSTER, KEY)?;
    let mut data = vec![0; file.header().length as usize];
    file.read(0, &mut data)?;
    Ok(data)
}

#[test]
fn lengths_around_a_block_come_back() {
    let block = BLOCK_SIZE;
    for length in [1, 2, 4095, 4096, block - 1, block, block + 1, 2 * block - 1, 2 * block, 3 * block + 7] {
        let data = bytes_of(length);
        let memory = write(&data);
        assert!(read_all(&memory).unwrap() == data, "length {length}");
        let on_disk = memory.length().unwrap();
        assert_eq!(on_disk, file_length(length as u32));
        assert_eq!(data_length(on_disk), Some(length as u32));
    }
}

#[test]
fn the_longest_shard_has_its_length() {
    let longest = MAX_CHUNK_LENGTH as u32;
    assert_eq!(data_length(file_length(longest)), Some(longest));
    assert_eq!(data_length(file_length(longest) + 5), None);
    for impossible in [0, 4096, file_length(1) - 1, file_length(BLOCK_SIZE as u32) + 1, u64::MAX] {
        assert_eq!(data_length(impossible), None, "{impossible}");
    }
}

#[test]
fn the_bytes_on_disk_never_change() {
    // Another layout needs another format version.
    let memory = write(b"hello");
    let bytes = memory.0.lock().unwrap();
    assert_eq!(bytes.len(), 4096 + 5 + 4 + 16);
    assert_eq!(&bytes[..16], b"DFSSHARD\x01\0\0\0\x01\0\0\0");
    assert_eq!(bytes[16..32], CLUSTER.0);
    assert_eq!(bytes[32..40], 77u64.to_le_bytes());
    assert_eq!(bytes[40..48], 5u64.to_le_bytes());
    assert_eq!(bytes[48..52], 12u32.to_le_bytes());
    assert_eq!(&bytes[52..65], b"replicated:3\0");
    assert_eq!(bytes[4092..4096], crc32c::crc32c(&bytes[..4092]).to_le_bytes());
    assert_eq!(&bytes[4096..4101], b"hello");
    assert_eq!(bytes[4101..4105], crc32c::crc32c(b"hello").to_le_bytes());
    assert_eq!(&bytes[4105..4117], b"DFSTABLE\x01\0\0\0");
}

#[test]
fn parts_of_a_shard_are_read_with_their_checksums() {
    let data = bytes_of(3 * BLOCK_SIZE + 100);
    let file = ShardFile::open(Box::new(write(&data)), CLUSTER, KEY).unwrap();
    let mut last = vec![0; BLOCK_SIZE + 100];
    let crcs = file.read(2 * BLOCK_SIZE as u64, &mut last).unwrap();
    assert!(last == data[2 * BLOCK_SIZE..]);
    assert_eq!(crcs, &file.table()[2..]);
    assert_eq!(crcs[1], crc32c::crc32c(&data[3 * BLOCK_SIZE..]));
}

#[test]
fn a_bad_block_spoils_only_reads_that_return_it() {
    let data = bytes_of(3 * BLOCK_SIZE);
    let memory = write(&data);
    memory.0.lock().unwrap()[HEADER_LENGTH + BLOCK_SIZE + 5] ^= 1;
    let file = ShardFile::open(Box::new(memory), CLUSTER, KEY).unwrap();
    let mut block = vec![0; BLOCK_SIZE];
    assert!(file.read(0, &mut block).is_ok());
    let bad = file.read(BLOCK_SIZE as u64, &mut block).unwrap_err();
    assert_eq!(bad.code, Code::Corrupt);
    assert!(bad.message.contains("block 1 "), "{bad}");
    assert!(file.read(2 * BLOCK_SIZE as u64, &mut block).is_ok());
}

#[test]
fn files_of_others_are_refused() {
    let memory = write(b"data");
    let open = |cluster, key| ShardFile::open(Box::new(memory.clone()), cluster, key).err().unwrap().code;
    assert_eq!(open(ClusterId([4; 16]), KEY), Code::WrongCluster);
    assert_eq!(open(CLUSTER, ShardKey { chunk: ChunkId(78), ..KEY }), Code::Corrupt);
    assert_eq!(open(CLUSTER, ShardKey { index: ShardIndex(0), ..KEY }), Code::Corrupt);
}

/// Changes the header and makes its checksum right again.
fn with_header(change: impl FnOnce(&mut [u8])) -> Result<Vec<u8>, Failure> {
    let memory = write(b"data");
    {
        let mut bytes = memory.0.lock().unwrap();
        change(&mut bytes[..HEADER_CRC_AT]);
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..HEADER_LENGTH].copy_from_slice(&crc.to_le_bytes());
    }
    read_all(&memory)
}

#[test]
fn unknown_versions_and_impossible_headers_are_refused() {
    let code = |change: fn(&mut [u8])| with_header(change).unwrap_err().code;
    assert_eq!(code(|bytes| bytes[8] = 2), Code::VersionUnknown);
    assert_eq!(code(|bytes| bytes[52] = b'X'), Code::VersionUnknown, "a redundancy of later days");
    assert_eq!(code(|bytes| bytes[48] = 255), Code::VersionUnknown);
    assert_eq!(code(|bytes| bytes[40..48].fill(0)), Code::Corrupt);
    assert_eq!(code(|bytes| bytes[40..48].fill(0xff)), Code::Corrupt, "no memory is taken for this");
    assert_eq!(code(|bytes| bytes[40] = 5), Code::Corrupt, "the file is shorter");
    assert_eq!(code(|bytes| bytes[200] = 1), Code::Corrupt, "the table is of another header");
    assert_eq!(with_header(|_| {}).unwrap(), b"data");
}

proptest! {
    #[test]
    fn every_length_has_one_file_length(length in 1..=MAX_CHUNK_LENGTH as u32) {
        prop_assert_eq!(data_length(file_length(length)), Some(length));
        prop_assert!(data_length(file_length(length) + 1).is_none_or(|next| next == length + 1));
    }

    #[test]
    fn any_damage_is_found(
        length in 1usize..200_000, bits in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let memory = write(&bytes_of(length));
        let damaged = {
            let mut bytes = memory.0.lock().unwrap();
            let before = bytes.clone();
            for (at, bit) in &bits {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            *bytes != before
        };
        prop_assert_eq!(read_all(&memory).is_err(), damaged);
    }

    #[test]
    fn a_torn_file_is_never_read(length in 1usize..200_000, kept in any::<prop::sample::Index>(), zeros: bool) {
        let memory = write(&bytes_of(length));
        let torn = {
            let mut bytes = memory.0.lock().unwrap();
            let whole = bytes.clone();
            bytes.truncate(kept.index(whole.len()));
            if zeros {
                // As a preallocated file is after a power cut. Bytes that were zeros are no loss.
                bytes.resize(whole.len(), 0);
            }
            *bytes != whole
        };
        prop_assert_eq!(read_all(&memory).is_err(), torn);
    }
}
