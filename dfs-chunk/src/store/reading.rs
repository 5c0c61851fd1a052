//! Reading shards: from segments, or from their files, a bounded number of which stay open.
//!
//! A shard that can't be read as it should is noted, so that the metadata server hears of it.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{Code, Failure};

use super::Store;
use super::buffers::{BUFFER_SIZE, Buffers};
use super::disk::ReadAhead;
use super::index::Held;
use super::segments::Record;
use super::shard_file::{ShardFile, ShardHeader, ShardKey};
use super::shared::shard_path;

/// Buffers smaller than this are not worth the pool.
const POOLED_FROM: usize = 128 * 1024;

/// The longest read that is answered from memory by the thread that takes requests.
const MAX_AT_ONCE: usize = 128 * 1024;

/// A shard that can be read.
#[derive(Clone)]
pub enum OpenShard {
    /// In a segment, and read already.
    Record(Record),
    /// In its file.
    File(Arc<ShardFile>),
}

impl OpenShard {
    /// What the shard says of itself.
    pub fn header(&self) -> &ShardHeader {
        match self {
            Self::Record(record) => record.header(),
            Self::File(file) => file.header(),
        }
    }

    /// The checksums of its blocks.
    pub fn table(&self) -> &[u32] {
        match self {
            Self::Record(record) => record.table(),
            Self::File(file) => file.table(),
        }
    }

    fn read(&self, offset: u64, length: usize, buffers: &Buffers) -> Result<(Bytes, Vec<u32>), Failure> {
        match self {
            Self::Record(record) => {
                assert!(offset == 0 && length == record.data().len(), "a record is one block");
                Ok((record.data().clone(), record.table().to_vec()))
            }
            Self::File(file) if length < POOLED_FROM => {
                let mut data = vec![0; length];
                let table = file.read(offset, &mut data)?.to_vec();
                Ok((data.into(), table))
            }
            Self::File(file) => {
                assert!(length <= BUFFER_SIZE, "a read fits a buffer");
                let mut buffer = buffers.take();
                let table = file.read(offset, &mut buffer[..length])?.to_vec();
                Ok((Bytes::from_owner(buffer).slice(..length), table))
            }
        }
    }
}

impl Store {
    /// Opens a shard; blocking. NOT_FOUND when it is not here, CORRUPT when it should be.
    pub fn open(&self, key: ShardKey) -> Result<OpenShard, Failure> {
        let Some(held) = self.shared.index().get(key) else {
            return Err(Failure::new(Code::NotFound, format!("{key} is not on this node")));
        };
        if let Some(place) = held.place {
            let read = self.segments.read(key, place, held.length).map(OpenShard::Record);
            return read.map_err(|error| self.open_failed(key, held, &error));
        }
        if let Some(file) = self.opened(key) {
            return Ok(OpenShard::File(file));
        }
        let input = self.shared.disk.open(&shard_path(key), ReadAhead::Never);
        let input = input.map_err(|error| self.open_failed(key, held, &error))?;
        let file = ShardFile::open(input, self.shared.cluster, key);
        let file = Arc::new(file.inspect_err(|failure| self.note_damage(key, failure))?);
        self.shared.open_files().put(key, file.clone());
        Ok(OpenShard::File(file))
    }

    fn opened(&self, key: ShardKey) -> Option<Arc<ShardFile>> {
        self.shared.open_files().get(&key).cloned()
    }

    /// Opens and reads, as [`Self::open`] and [`Self::read`] do, if that takes no wait and not long. `range` tells the
    /// bytes for a shard of a length. `None`: ask those two, which have the reason if there is another one.
    pub fn read_now(
        &self,
        key: ShardKey,
        range: impl FnOnce(u32) -> Option<Range<u64>>,
    ) -> Option<(Bytes, Vec<u32>)> {
        let held = self.shared.index().get(key)?;
        let range = range(held.length)?;
        let length = usize::try_from(range.end - range.start).ok().filter(|length| *length <= MAX_AT_ONCE)?;
        if let Some(place) = held.place {
            let shard = OpenShard::Record(self.segments.read_now(key, place, held.length)?);
            return shard.read(range.start, length, &self.buffers).ok();
        }
        let file = self.opened(key)?;
        let mut data = vec![0; length];
        let table = file.read_now(range.start, &mut data)?.to_vec();
        Some((data.into(), table))
    }

    fn open_failed(&self, key: ShardKey, held: Held, error: &std::io::Error) -> Failure {
        if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOMEM)) {
            return Failure::new(Code::Unavailable, format!("cannot open {key} now: {error}"));
        }
        match self.shared.index().get(key) {
            None => return Failure::new(Code::NotFound, format!("{key} has just been deleted")),
            Some(now) if now.place != held.place => {
                return Failure::new(Code::Unavailable, format!("{key} has just been written anew"));
            }
            Some(_) => {}
        }
        let code = match error.kind() {
            ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Code::Corrupt,
            _ => Code::InputOutput,
        };
        let failure = Failure::new(code, format!("{key} cannot be read: {error}"));
        self.note_damage(key, &failure);
        failure
    }

    /// Reads and verifies whole blocks, at most 1 MiB; blocking. `offset` and `length` were checked against the header.
    pub fn read(&self, shard: &OpenShard, offset: u64, length: usize) -> Result<(Bytes, Vec<u32>), Failure> {
        let read = shard.read(offset, length, &self.buffers);
        read.inspect_err(|failure| self.note_damage(shard.header().key, failure))
    }

    fn note_damage(&self, key: ShardKey, failure: &Failure) {
        if matches!(failure.code, Code::Corrupt | Code::InputOutput) {
            self.shared.note_corrupt(key, failure);
        }
    }
}
