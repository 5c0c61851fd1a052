//! Reading shards: from memory while they are in the intake, else from their files, a bounded number of which stay open.
//!
//! A shard that can't be read as it should is noted, so that the metadata server hears of it.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{Code, Failure};

use super::Store;
use super::buffers::{BUFFER_SIZE, Buffers};
use super::intake::Logged;
use super::shard_file::{ShardFile, ShardHeader, ShardKey, first_bad_block};
use super::shared::shard_path;

/// Buffers smaller than this are not worth the pool.
const POOLED_FROM: usize = 128 * 1024;

/// The longest read that is answered from memory by the thread that takes requests.
const MAX_AT_ONCE: usize = 128 * 1024;

/// A shard that can be read.
#[derive(Clone)]
pub enum OpenShard {
    /// In memory and in a log.
    Logged(LoggedShard),
    /// In its file.
    File(Arc<ShardFile>),
}

/// A shard in the intake.
#[derive(Clone)]
pub struct LoggedShard {
    logged: Arc<Logged>,
    table: [u32; 1],
}

impl OpenShard {
    /// What the shard says of itself.
    pub fn header(&self) -> &ShardHeader {
        match self {
            Self::Logged(shard) => shard.logged.header(),
            Self::File(file) => file.header(),
        }
    }

    /// The checksums of its blocks.
    pub fn table(&self) -> &[u32] {
        match self {
            Self::Logged(shard) => &shard.table,
            Self::File(file) => file.table(),
        }
    }

    fn read(&self, offset: u64, length: usize, buffers: &Buffers) -> Result<(Bytes, Vec<u32>), Failure> {
        match self {
            Self::Logged(shard) => {
                let data = shard.logged.data();
                assert!(offset == 0 && length == data.len(), "a logged shard is one block");
                if first_bad_block(data, &shard.table).is_some() {
                    return Err(Failure::new(Code::Corrupt, "a shard in memory does not match its checksum"));
                }
                Ok((data.clone(), shard.table.to_vec()))
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
        if self.shared.index().get(key).is_none() {
            return Err(Failure::new(Code::NotFound, format!("{key} is not on this node")));
        }
        if let Some(shard) = self.at_hand(key) {
            return Ok(shard);
        }
        let input = match self.shared.disk.open(&shard_path(key)) {
            Ok(input) => input,
            Err(error) => return Err(self.open_failed(key, &error)),
        };
        let file = ShardFile::open(input, self.shared.cluster, key);
        let file = Arc::new(file.inspect_err(|failure| self.note_damage(key, failure))?);
        self.shared.open_files().put(key, file.clone());
        Ok(OpenShard::File(file))
    }

    /// A shard that is open, or in memory.
    fn at_hand(&self, key: ShardKey) -> Option<OpenShard> {
        if let Some(logged) = self.intake.as_ref().and_then(|intake| intake.get(key)) {
            let table = [logged.crc32c()];
            return Some(OpenShard::Logged(LoggedShard { logged, table }));
        }
        self.shared.open_files().get(&key).map(|file| OpenShard::File(file.clone()))
    }

    /// Opens and reads, as [`Self::open`] and [`Self::read`] do, if that takes no wait and not long. `range` tells the
    /// bytes for a shard of a length. `None`: ask those two, which have the reason if there is another one.
    pub fn read_now(
        &self,
        key: ShardKey,
        range: impl FnOnce(u32) -> Option<Range<u64>>,
    ) -> Option<(Bytes, Vec<u32>)> {
        self.shared.index().get(key)?;
        let shard = self.at_hand(key)?;
        let range = range(shard.header().length)?;
        let length = usize::try_from(range.end - range.start).ok().filter(|length| *length <= MAX_AT_ONCE)?;
        match &shard {
            OpenShard::Logged(_) => shard.read(range.start, length, &self.buffers).ok(),
            OpenShard::File(file) => {
                let mut data = vec![0; length];
                let table = file.read_now(range.start, &mut data)?.to_vec();
                Some((data.into(), table))
            }
        }
    }

    fn open_failed(&self, key: ShardKey, error: &std::io::Error) -> Failure {
        if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOMEM)) {
            return Failure::new(Code::Unavailable, format!("cannot open {key} now: {error}"));
        }
        if self.shared.index().get(key).is_none() {
            return Failure::new(Code::NotFound, format!("{key} has just been deleted"));
        }
        let code = match error.kind() {
            ErrorKind::NotFound => Code::Corrupt,
            _ => Code::InputOutput,
        };
        let failure = Failure::new(code, format!("the file of {key} cannot be opened: {error}"));
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
