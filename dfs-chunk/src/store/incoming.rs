//! A shard on its way in. Small ones go to a segment, large ones to a file of their own:
//! temporary name → data → `fdatasync` → final name → `fsync` of the directory → acknowledged.
//!
//! Frames are verified before they get here. What is dropped half way leaves nothing but a temporary file, which the
//! writing thread removes. Whoever stops waiting does not stop what has begun: a shard whose bytes are all here is
//! finished and entered in the index.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::{Code, Failure};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Store;
use super::claims::Claim;
use super::disk::ReadAhead;
use super::segments::{self, Offer, Outcome};
use super::shard_file::{ShardHeader, ShardWriter, WrittenShard};
use super::shared::{Kept, Promise, Shared, shard_directory, shard_path};

/// Frames between the one who receives and the thread that writes.
const QUEUED_FRAMES: usize = 4;
/// How long a disk may take for one step before the put is given up. The thread itself can't be interrupted.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// Blocks of a shard with their verified checksums.
#[derive(Clone)]
pub struct Blocks {
    /// Whole blocks but for the shard's last.
    pub data: Bytes,
    /// One for each block.
    pub crc32c: Vec<u32>,
    /// Whatever must live as long as the data is in memory.
    pub held: Option<Arc<dyn Send + Sync>>,
}

/// A shard being received.
pub struct Incoming(Way);

enum Way {
    /// It is here already: only its checksums are compared.
    Known { known: Box<[u32]>, told: Vec<u32> },
    /// Gathered for a segment.
    Small { store: Arc<Store>, header: ShardHeader, ticket: Ticket, data: BytesMut, crc32c: Vec<u32> },
    /// The disk did not take a frame in time: what comes after it would be in the wrong place.
    Hanging,
    /// Written by a thread.
    Large { frames: mpsc::Sender<Blocks>, thread: JoinHandle<Result<(), Failure>> },
}

/// What a write under way holds.
struct Ticket {
    claim: Claim,
    promise: Promise,
}

impl Store {
    /// Begins to receive a shard. The same shard again is accepted when its bytes are the same. EXISTS, NO_SPACE, BUSY,
    /// INPUT_OUTPUT when the disk is fenced.
    pub async fn receive(self: &Arc<Self>, header: ShardHeader) -> Result<Incoming, Failure> {
        let claim = self.claims.claim(header.key).await?;
        if let Some(known) = self.known_table(header).await? {
            return Ok(Incoming(Way::Known { known, told: Vec::new() }));
        }
        self.shared.check_writable()?;
        let promise = self.shared.promise(header.file_length())?;
        let ticket = Ticket { claim, promise };
        if header.length <= segments::MAX_LENGTH {
            let data = BytesMut::with_capacity(header.length as usize);
            return Ok(Incoming(Way::Small {
                store: self.clone(),
                header,
                ticket,
                data,
                crc32c: Vec::new(),
            }));
        }
        Ok(Incoming(self.write_file(header, ticket)))
    }

    /// The checksums of a shard that is here, or `None`; EXISTS when it is another than this header tells.
    async fn known_table(self: &Arc<Self>, header: ShardHeader) -> Result<Option<Box<[u32]>>, Failure> {
        let different = || {
            Failure::new(
                Code::Exists,
                format!("{} is here already, with other content: chunks never change", header.key),
            )
        };
        match self.shared.index().get(header.key) {
            None => return Ok(None),
            Some(held) if held.corrupt => return Ok(None),
            Some(held) if held.length != header.length => return Err(different()),
            Some(_) => {}
        }
        let store = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            store.open(header.key).map(|shard| (*shard.header(), shard.table().into()))
        });
        match opened.await.map_err(|_| lost_thread())? {
            Ok((known, table)) if known == header => Ok(Some(table)),
            Ok(_) => Err(different()),
            // Damaged: the new copy heals it.
            Err(_) => Ok(None),
        }
    }

    fn write_file(self: &Arc<Self>, header: ShardHeader, ticket: Ticket) -> Way {
        let temporary = self.temporary_path();
        let shared = self.shared.clone();
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        let thread =
            tokio::task::spawn_blocking(move || write_and_name(&shared, header, ticket, &temporary, queue));
        Way::Large { frames, thread }
    }
}

impl Incoming {
    /// Whether it is known already that it will not end well.
    pub fn has_failed(&self) -> bool {
        match &self.0 {
            Way::Hanging => true,
            Way::Large { thread, .. } => thread.is_finished(),
            Way::Known { .. } | Way::Small { .. } => false,
        }
    }

    /// Takes the next blocks. An error is told at the end; until then blocks are taken and dropped.
    pub async fn append(&mut self, blocks: Blocks) {
        match &mut self.0 {
            Way::Known { told, .. } => told.extend_from_slice(&blocks.crc32c),
            Way::Small { data, crc32c, .. } => {
                data.extend_from_slice(&blocks.data);
                crc32c.extend_from_slice(&blocks.crc32c);
            }
            Way::Hanging => {}
            Way::Large { frames, thread } => {
                // The queue is closed when the thread has ended with an error, which is told at the end.
                let taken = tokio::time::timeout(DISK_DEADLINE, frames.send(blocks)).await;
                if taken.is_err() && !thread.is_finished() {
                    self.0 = Way::Hanging;
                }
            }
        }
    }

    /// Returns when the shard, all of whose blocks have been taken, is durable under its name. EXISTS, NO_SPACE,
    /// INPUT_OUTPUT.
    pub async fn finish(self) -> Result<(), Failure> {
        match self.0 {
            Way::Known { known, told } if *known == *told => Ok(()),
            Way::Known { .. } => Err(Failure::new(
                Code::Exists,
                "the shard is here already, with other content: chunks never change",
            )),
            Way::Small { store, header, ticket: Ticket { claim, promise }, data, crc32c } => {
                let offer = Offer { header, data: data.freeze(), crc32c: crc32c[0], promise, claim };
                let put = tokio::time::timeout(DISK_DEADLINE, store.segments.put(offer));
                match put.await.map_err(|_| disk_hangs())?? {
                    Outcome::Durable => Ok(()),
                    Outcome::Full(Offer { data, crc32c, promise, claim, .. }) => {
                        let way = store.write_file(header, Ticket { claim, promise });
                        let mut plain = Incoming(way);
                        plain.append(Blocks { data, crc32c: vec![crc32c], held: None }).await;
                        Box::pin(plain.finish()).await
                    }
                }
            }
            Way::Hanging => Err(disk_hangs()),
            Way::Large { frames, thread } => {
                drop(frames);
                let ended = tokio::time::timeout(DISK_DEADLINE, thread).await;
                ended.map_err(|_| disk_hangs())?.map_err(|_| lost_thread())?
            }
        }
    }
}

/// The thread of a large shard.
fn write_and_name(
    shared: &Arc<Shared>,
    header: ShardHeader,
    _ticket: Ticket,
    temporary: &Path,
    queue: mpsc::Receiver<Blocks>,
) -> Result<(), Failure> {
    let written = write_file(shared, header, temporary, queue).inspect_err(|_| {
        if let Err(error) = shared.disk.remove(temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %temporary.display(), "a temporary file is left until the next start");
        }
    })?;
    let path = shard_path(header.key);
    let input = {
        let _names = shared.names();
        let named = shared.disk.rename(temporary, &path);
        named.map_err(|error| shared.write_failed("name a shard file", &error))?;
        // Kept open, with its table at hand: finding both on a disk again costs the first reader some reads, one behind
        // the other. When it can't be opened now, that reader opens it.
        shared.disk.open(&path, ReadAhead::Never).ok()
    };
    let directory = shared.disk.sync_directory(&shard_directory(header.key.chunk));
    directory.map_err(|error| shared.sync_failed("make a shard file's name durable", &error))?;
    let file = input.map(|input| written.into_readable(input));
    shared.add(header.key, header.length, Kept::File(file));
    Ok(())
}

fn write_file(
    shared: &Arc<Shared>,
    header: ShardHeader,
    temporary: &Path,
    mut queue: mpsc::Receiver<Blocks>,
) -> Result<WrittenShard, Failure> {
    let failed = |error: std::io::Error| shared.write_failed("write a shard file", &error);
    let output = shared.disk.create(temporary, header.file_length()).map_err(failed)?;
    let mut writer = ShardWriter::new(output, header).map_err(failed)?;
    while let Some(blocks) = queue.blocking_recv() {
        shared.check_writable()?;
        writer.append(&blocks.data, &blocks.crc32c).map_err(failed)?;
    }
    if !writer.is_complete() {
        return Err(Failure::new(Code::Interrupted, "the writer went away before the end of the shard"));
    }
    let mut written = writer.end().map_err(failed)?;
    shared.check_writable()?;
    written.sync().map_err(|error| shared.sync_failed("make a shard file durable", &error))?;
    Ok(written)
}

fn disk_hangs() -> Failure {
    let seconds = DISK_DEADLINE.as_secs();
    Failure::new(Code::InputOutput, format!("the node's disk has not answered for {seconds} seconds"))
}

fn lost_thread() -> Failure {
    Failure::new(Code::InputOutput, "the thread that writes the shard has ended")
}
