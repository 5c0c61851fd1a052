//! Small shards: many of them in one file.
//!
//! Making a file durable costs a commit of the filesystem's journal and another for its name, and removing it one more;
//! overwriting blocks that are there already costs one flush, shared by all that wait for it. So a shard of one block is a
//! record in a segment, a file that was written full of zeros before. One segment takes new records ([`append`]) until
//! it is full; then another, which a second thread ([`tidy`]) has made meanwhile, takes its place. Where there is none,
//! because the disk is too full or too slow, shards go the plain way, as large ones do.
//!
//! The table of shards says which record is whose. That thread also gives the pages of records that were deleted back to
//! the disk, and removes a segment when its last one is: nothing is ever copied. At start all segments are read
//! ([`load`]). A shard that was deleted just before a crash may come back by it; the metadata server then orders it away
//! again.

mod append;
mod format;
mod load;
mod tidy;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bytes::Bytes;
use dfs_proto::{Code, Failure};
use lru::LruCache;
use tokio::sync::oneshot;

use self::append::{Appender, Request};
use super::buffers::Buffers;
use super::claims::Claim;
use super::disk::{Disk, Input, Log, ReadAhead};
use super::index::{self, Place};
use super::shard_file::{ShardHeader, ShardKey};
use super::shared::{Promise, Shared};

pub(super) use self::format::Record;
pub(super) use self::load::load;

/// The longest shard that takes this way.
pub(super) const MAX_LENGTH: u32 = format::MAX_DATA as u32;
const DIRECTORY: &str = "segments";
/// The length of a segment on a disk that is large enough.
const SEGMENT_LENGTH: u64 = 16 << 20;
/// On a smaller disk, a segment takes this part of it, and on a very small one none is made.
const SEGMENT_PART_OF_DISK: u64 = 64;
const MIN_SEGMENT_LENGTH: u64 = 1 << 20;
/// Shards waiting to be written; who finds no place among them goes the plain way.
const MAX_WAITING: usize = 1024;
/// Segments kept open for reading.
const MAX_OPEN: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// What became of a shard offered to the segments.
pub(super) enum Outcome {
    /// It would survive a power cut, and is in the index.
    Durable,
    /// There was no room: it must go the plain way.
    Full(Offer),
}

/// A shard for a segment, with what it holds until it is durable.
pub(super) struct Offer {
    pub(super) header: ShardHeader,
    pub(super) data: Bytes,
    pub(super) crc32c: u32,
    pub(super) promise: Promise,
    pub(super) claim: Claim,
}

/// The segments with their two threads.
pub(super) struct Segments {
    core: Arc<Core>,
    requests: Option<SyncSender<Request>>,
    append: Option<JoinHandle<()>>,
    tidy: Option<JoinHandle<()>>,
}

struct Core {
    shared: Arc<Shared>,
    /// Of segments to be made; `None` on a disk too small for any.
    length: Option<u64>,
    state: Mutex<State>,
    /// Rings when the spare segment is taken, or when all is to end.
    work: Condvar,
    /// For reading.
    inputs: Mutex<LruCache<u32, Arc<dyn Input>>>,
}

struct State {
    segments: BTreeMap<u32, Segment>,
    spare: Option<Spare>,
    /// None could be made when it was tried last.
    lacking: bool,
    next_id: u32,
    ending: bool,
}

/// What is known of a segment beside what the table of shards says.
#[derive(Default)]
struct Segment {
    /// Records that are not deleted.
    live: usize,
    /// No more records are added to it.
    sealed: bool,
    /// Pages to give back to the disk.
    dead: Vec<Range<u32>>,
}

/// A segment that is full of zeros, but for its header.
struct Spare {
    id: u32,
    mark: format::Mark,
    length: u64,
    log: Box<dyn Log>,
}

fn path(id: u32) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id:08x}"))
}

/// The length of segments on this disk; `None` on one that is too small for any. INPUT_OUTPUT.
fn segment_length(disk: &dyn Disk) -> Result<Option<u64>, Failure> {
    let space = disk.space().map_err(|error| {
        Failure::new(Code::InputOutput, format!("cannot ask the disk for its space: {error}"))
    })?;
    let page = format::PAGE as u64;
    let length = (space.total_bytes / SEGMENT_PART_OF_DISK).min(SEGMENT_LENGTH) / page * page;
    Ok((length >= MIN_SEGMENT_LENGTH).then_some(length))
}

impl Segments {
    /// Starts on the segments that were loaded; new records go to a new one.
    pub(super) fn start(
        shared: Arc<Shared>,
        loaded: load::Loaded,
        buffers: &Buffers,
    ) -> Result<Self, Failure> {
        let load::Loaded { segments, next_id } = loaded;
        let length = segment_length(&*shared.disk)?;
        let state = State { segments, spare: None, lacking: false, next_id, ending: false };
        let core = Arc::new(Core {
            shared,
            length,
            state: Mutex::new(state),
            work: Condvar::new(),
            inputs: Mutex::new(LruCache::new(MAX_OPEN)),
        });
        // The first shards need not go the plain way.
        core.make_spare();
        let (requests, waiting) = sync_channel(MAX_WAITING);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(run)
                .map_err(|error| Failure::new(Code::InputOutput, format!("cannot start a thread: {error}")))
        };
        let mut appender = Appender::new(core.clone(), buffers.take());
        let tidy = core.clone();
        let mut this = Self { core, requests: Some(requests), append: None, tidy: None };
        this.append = Some(spawn("append", Box::new(move || appender.run(&waiting)))?);
        this.tidy = Some(spawn("tidy", Box::new(move || tidy.run_tidy()))?);
        Ok(this)
    }

    /// Makes a shard durable and enters it in the index, even when nobody waits any more.
    pub(super) async fn put(&self, offer: Offer) -> Result<Outcome, Failure> {
        let gone = || Failure::new(Code::InputOutput, "the thread that writes small shards has ended");
        let (reply, answer) = oneshot::channel();
        match self.requests.as_ref().ok_or_else(gone)?.try_send(Request { offer, reply }) {
            Ok(()) => answer.await.map_err(|_| gone())?,
            Err(TrySendError::Full(request)) => Ok(Outcome::Full(request.offer)),
            Err(TrySendError::Disconnected(_)) => Err(gone()),
        }
    }

    /// Reads and verifies a record; blocking. `InvalidData` when it is damaged.
    pub(super) fn read(&self, key: ShardKey, place: Place, length: u32) -> io::Result<Record> {
        let input = match self.opened(place) {
            Some(input) => input,
            None => {
                let input = self.core.shared.disk.open(&path(place.segment), ReadAhead::AsUsual)?;
                let input: Arc<dyn Input> = input.into();
                self.core.inputs().put(place.segment, input.clone());
                if !self.core.state().segments.contains_key(&place.segment) {
                    // Removed meanwhile: its space would stay taken.
                    self.core.inputs().pop(&place.segment);
                }
                input
            }
        };
        let mut bytes = record_buffer(length);
        input.read_at(&mut bytes, offset(place))?;
        let record = Record::decode(bytes, self.core.shared.cluster, key);
        record.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its record is damaged"))
    }

    /// The same if it takes no wait for the disk. `None`: ask [`Self::read`].
    pub(super) fn read_now(&self, key: ShardKey, place: Place, length: u32) -> Option<Record> {
        let input = self.opened(place)?;
        let mut bytes = record_buffer(length);
        let read = input.read_now(&mut bytes, offset(place));
        read.then(|| Record::decode(bytes, self.core.shared.cluster, key))?
    }

    /// Whether a segment waits for records.
    #[cfg(test)]
    pub(super) fn has_room(&self) -> bool {
        self.core.state().spare.is_some()
    }

    fn opened(&self, place: Place) -> Option<Arc<dyn Input>> {
        self.core.inputs().get(&place.segment).cloned()
    }
}

fn record_buffer(data_length: u32) -> Vec<u8> {
    vec![0; format::RECORD_HEADER + data_length as usize]
}

fn offset(place: Place) -> u64 {
    u64::from(place.page) * index::PAGE
}

impl Drop for Segments {
    fn drop(&mut self) {
        self.requests = None;
        // First the one that appends, whose segment the other then leaves tidy.
        let panicked = self.append.take().is_some_and(|thread| thread.join().is_err());
        self.core.state().ending = true;
        self.core.work.notify_all();
        if panicked | self.tidy.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread of the segments ended by a panic");
        }
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic left the state of the segments half changed")
    }

    fn inputs(&self) -> MutexGuard<'_, LruCache<u32, Arc<dyn Input>>> {
        self.inputs.lock().expect("a panic left the table of open segments half changed")
    }
}
