//! The intake: small shards become durable in a log first, and their own files soon after.
//!
//! Making a new file durable costs a commit of the filesystem's journal and another for its name; overwriting a
//! preallocated log costs one flush, shared by all that wait for it. So a shard of one block is appended to a log,
//! acknowledged when the log is durable, and kept in memory to be read; a second thread ([`settle`]) later writes many
//! such shards as files, makes them durable together, and frees their log. There are two logs: one fills while the other
//! is being emptied. When both are full, shards go the plain way, as large ones do.
//!
//! After a crash the logs are replayed ([`replay`]) before anything else: what was acknowledged is in a log or in a
//! file. A shard deleted while in a log may come back by it; the metadata server then orders it away again.

mod format;
mod settle;

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::{ClusterId, Code, Failure};
use tokio::sync::oneshot;
use uuid::Uuid;

use self::format::{PAGE, Record, Round};
use super::claims::Claim;
use super::disk::{Disk, Log, Space};
use super::shard_file::{ShardHeader, ShardKey};
use super::shared::{Promise, Shared};

/// The longest shard that takes this way.
pub(super) const MAX_LENGTH: u32 = format::MAX_DATA as u32;
const LOGS: [&str; 2] = ["intake/0.log", "intake/1.log"];
/// The length of one log on a disk that is large enough.
const LOG_LENGTH: u64 = 16 << 20;
/// On a smaller disk, a log takes this part of it, and on a very small one there is none.
const LOG_PART_OF_DISK: u64 = 64;
const MIN_LOG_LENGTH: u64 = 1 << 20;
/// A log that was made by hand is not read into memory whatever its length.
const MAX_LOG_LENGTH: u64 = 256 << 20;
/// Shards waiting for the log; who finds no place among them goes the plain way.
const MAX_WAITING: usize = 1024;
/// What is written and made durable at once.
const MAX_GROUP_BYTES: usize = 2 << 20;
/// A log is emptied when it is full, or when its first record is so old.
const SETTLE_AFTER: Duration = Duration::from_secs(5);

/// Both logs with their lengths.
pub(super) type Logs = [(Box<dyn Log>, u64); 2];

/// What became of a shard offered to the intake.
pub(super) enum Outcome {
    /// It would survive a power cut, and is in the index.
    Durable,
    /// There was no room: it must go the plain way.
    Full(Offer),
}

/// A shard for the intake, with what it holds until it is durable.
pub(super) struct Offer {
    pub(super) header: ShardHeader,
    pub(super) data: Bytes,
    pub(super) crc32c: u32,
    pub(super) promise: Promise,
    pub(super) claim: Claim,
}

struct Request {
    offer: Offer,
    reply: oneshot::Sender<Result<Outcome, Failure>>,
}

/// A shard in a log, without a file of its own yet.
pub(super) struct Logged {
    record: Record,
    /// Room for the file that it becomes.
    _promise: Promise,
}

impl Logged {
    pub(super) fn header(&self) -> &ShardHeader {
        &self.record.header
    }

    pub(super) fn data(&self) -> &Bytes {
        &self.record.data
    }

    pub(super) fn crc32c(&self) -> u32 {
        self.record.crc32c
    }
}

/// The logs with their two threads.
pub(super) struct Intake {
    core: Arc<Core>,
    requests: Option<SyncSender<Request>>,
    threads: Vec<JoinHandle<()>>,
}

struct Core {
    shared: Arc<Shared>,
    logs: Logs,
    state: Mutex<State>,
    /// Rings when a log is full, or when all is to end.
    work: Condvar,
}

struct State {
    segments: [Segment; 2],
    /// The one that records are appended to.
    active: usize,
    entries: HashMap<ShardKey, Arc<Logged>>,
    ending: bool,
}

/// One log's present round.
struct Segment {
    round: Round,
    /// Where the next record goes, and its number.
    end: u64,
    next_number: u32,
    keys: Vec<ShardKey>,
    first_at: Option<Instant>,
    full: bool,
}

impl Segment {
    fn new() -> Self {
        let round = Uuid::new_v4().into_bytes();
        Self { round, end: PAGE as u64, next_number: 0, keys: Vec::new(), first_at: None, full: false }
    }
}

/// Opens the logs, or makes them; `None` on a disk too small for them.
pub(super) fn open_logs(disk: &dyn Disk) -> Result<Option<Logs>, Failure> {
    let failed = |what: &str, error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::StorageFull => Code::NoSpace,
            _ => Code::InputOutput,
        };
        Failure::new(code, format!("cannot {what}: {error}"))
    };
    let Space { total_bytes, .. } =
        disk.space().map_err(|error| failed("ask the disk for its space", error))?;
    let length = (total_bytes / LOG_PART_OF_DISK).min(LOG_LENGTH) / PAGE as u64 * PAGE as u64;
    if length < MIN_LOG_LENGTH {
        return Ok(None);
    }
    disk.create_directory(Path::new("intake")).map_err(|error| failed("make the intake directory", error))?;
    let open = |name: &str| {
        let (log, length) =
            disk.open_log(Path::new(name), length).map_err(|error| failed("open an intake log", error))?;
        if !(MIN_LOG_LENGTH..=MAX_LOG_LENGTH).contains(&length) || length % PAGE as u64 != 0 {
            let why = format!("the intake log {name} is {length} bytes long: it is not one of ours");
            return Err(Failure::new(Code::Corrupt, why));
        }
        Ok((log, length))
    };
    Ok(Some([open(LOGS[0])?, open(LOGS[1])?]))
}

/// Writes what the logs hold as files, durably. What is there already and whole is left alone.
pub(super) fn replay(disk: &dyn Disk, cluster: ClusterId, logs: &Logs) -> Result<usize, Failure> {
    let mut written = 0;
    for (log, length) in logs {
        for record in format::replay(&**log, *length, cluster)? {
            if !settle::is_settled(disk, &record) {
                settle::write(disk, &record).map_err(|error| replay_failed(&error))?;
                written += 1;
            }
        }
    }
    if written > 0 {
        disk.sync_all().map_err(|error| replay_failed(&error))?;
    }
    Ok(written)
}

fn replay_failed(error: &std::io::Error) -> Failure {
    let code =
        if error.kind() == std::io::ErrorKind::StorageFull { Code::NoSpace } else { Code::InputOutput };
    Failure::new(code, format!("cannot write what the intake logs hold as shard files: {error}"))
}

impl Intake {
    /// Starts on logs that were replayed: both begin a new round.
    pub(super) fn start(shared: Arc<Shared>, logs: Logs) -> Result<Self, Failure> {
        let segments = [Segment::new(), Segment::new()];
        let state = State { segments, active: 0, entries: HashMap::new(), ending: false };
        let core = Arc::new(Core { shared, logs, state: Mutex::new(state), work: Condvar::new() });
        for which in 0..2 {
            core.begin_round(which).map_err(|error| {
                Failure::new(Code::InputOutput, format!("cannot write to an intake log: {error}"))
            })?;
        }
        let (requests, waiting) = sync_channel(MAX_WAITING);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(run)
                .map_err(|error| Failure::new(Code::InputOutput, format!("cannot start a thread: {error}")))
        };
        let (append, settle) = (core.clone(), core.clone());
        let threads = vec![
            spawn("intake", Box::new(move || append.run(&waiting)))?,
            spawn("settle", Box::new(move || settle.run_settle()))?,
        ];
        Ok(Self { core, requests: Some(requests), threads })
    }

    /// Makes a shard durable and enters it in the index, even when nobody waits any more.
    pub(super) async fn put(&self, offer: Offer) -> Result<Outcome, Failure> {
        let gone = || Failure::new(Code::InputOutput, "the intake of small shards has ended");
        let (reply, answer) = oneshot::channel();
        match self.requests.as_ref().ok_or_else(gone)?.try_send(Request { offer, reply }) {
            Ok(()) => answer.await.map_err(|_| gone())?,
            Err(TrySendError::Full(request)) => Ok(Outcome::Full(request.offer)),
            Err(TrySendError::Disconnected(_)) => Err(gone()),
        }
    }

    /// A shard that has no file yet.
    pub(super) fn get(&self, key: ShardKey) -> Option<Arc<Logged>> {
        self.core.state().entries.get(&key).cloned()
    }

    /// Forgets a shard that is deleted; the caller holds the store's `names`, so that it is not being settled.
    pub(super) fn forget(&self, key: ShardKey) {
        self.core.state().entries.remove(&key);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.requests = None;
        self.core.state().ending = true;
        self.core.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the intake ended by a panic");
            }
        }
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic left the intake's state half changed")
    }

    /// Writes the header of a segment's round. It becomes durable with the round's first record.
    fn begin_round(&self, which: usize) -> std::io::Result<()> {
        let round = self.state().segments[which].round;
        self.logs[which].0.write_at(&format::encode_header(self.shared.cluster, &round), 0)
    }

    /// The thread that appends: takes whatever waits, makes it durable with one flush, answers.
    fn run(&self, waiting: &Receiver<Request>) {
        let mut bytes = Vec::with_capacity(MAX_GROUP_BYTES + format::MAX_DATA + 2 * PAGE);
        loop {
            let mut group = match waiting.recv_timeout(SETTLE_AFTER / 5) {
                Ok(request) => vec![request],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let length = |request: &Request| Record::padded_length(request.offer.data.len());
            let mut group_bytes: usize = group.iter().map(length).sum();
            while !group.is_empty() && group_bytes < MAX_GROUP_BYTES {
                match waiting.try_recv() {
                    Ok(request) => {
                        group_bytes += length(&request);
                        group.push(request);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            let mut rest = group.into_iter().peekable();
            while rest.peek().is_some() {
                let mut fitting = Vec::new();
                let mut end = self.state().active_end();
                while let Some(request) =
                    rest.next_if(|next| end + length(next) as u64 <= self.active_length())
                {
                    end += length(&request) as u64;
                    fitting.push(request);
                }
                if !fitting.is_empty() {
                    self.append(fitting, &mut bytes);
                } else if !self.turn_over() {
                    for request in rest.by_ref() {
                        let _ = request.reply.send(Ok(Outcome::Full(request.offer)));
                    }
                }
            }
            let old = |segment: &Segment| segment.first_at.is_some_and(|at| at.elapsed() >= SETTLE_AFTER);
            let turn = {
                let state = self.state();
                old(&state.segments[state.active])
            };
            if turn {
                self.turn_over();
            }
        }
    }

    fn active_length(&self) -> u64 {
        let active = self.state().active;
        self.logs[active].1
    }

    /// Hands the active log to be emptied and goes on with the other, unless that is not empty yet.
    fn turn_over(&self) -> bool {
        let mut state = self.state();
        let (active, other) = (state.active, 1 - state.active);
        if state.segments[other].full {
            return false;
        }
        state.segments[active].full = true;
        state.active = other;
        self.work.notify_all();
        true
    }

    /// Makes a group durable in the active log, which has room for it, and answers those who wait.
    fn append(&self, group: Vec<Request>, bytes: &mut Vec<u8>) {
        bytes.clear();
        let (active, round, start, first_number) = {
            let state = self.state();
            let segment = &state.segments[state.active];
            (state.active, segment.round, segment.end, segment.next_number)
        };
        let mut records = Vec::with_capacity(group.len());
        for (number, Request { offer, reply }) in (first_number..).zip(group) {
            let record = Record { header: offer.header, data: offer.data, crc32c: offer.crc32c };
            record.encode(&round, number, bytes);
            records.push((record, offer.promise, offer.claim, reply));
        }
        let log = &self.logs[active].0;
        let result = self.shared.check_writable().and_then(|()| {
            let result = log.write_at(bytes, start).and_then(|()| log.sync());
            result.map_err(|error| self.shared.sync_failed("make the intake log durable", &error))
        });
        if let Err(failure) = result {
            for (.., reply) in records {
                let _ = reply.send(Err(failure.clone()));
            }
            return;
        }
        let mut state = self.state();
        let segment = &mut state.segments[active];
        segment.end = start + bytes.len() as u64;
        segment.next_number = first_number + records.len() as u32;
        segment.first_at.get_or_insert_with(Instant::now);
        segment.keys.extend(records.iter().map(|(record, ..)| record.header.key));
        let mut answers = Vec::with_capacity(records.len());
        for (record, promise, claim, reply) in records {
            let (key, length) = (record.header.key, record.header.length);
            // Readable first, then known: who finds it in the index finds it here too.
            state.entries.insert(key, Arc::new(Logged { record, _promise: promise }));
            self.shared.add(key, length, None);
            answers.push((claim, reply));
        }
        drop(state);
        for (claim, reply) in answers {
            drop(claim);
            // Who does not wait any more asks again and is told that it is here.
            let _ = reply.send(Ok(Outcome::Durable));
        }
    }
}

impl State {
    fn active_end(&self) -> u64 {
        self.segments[self.active].end
    }
}
