//! The state of the cluster for operators: counted by reading the store beside the machine, so that asking never
//! stalls it, and counted at most once a second however many ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_proto::meta::{ClassStatus, ClusterStatus, SessionStatus};
use dfs_proto::{ChunkId, Class, Code, Failure};
use tokio::sync::Mutex;

use crate::live::Live;
use crate::machine::Handle;
use crate::ops::Settings;
use crate::store::records::{Chunk, ChunkState, Record};
use crate::store::{Store, keys};

/// How long a count is good.
const FRESH: Duration = Duration::from_secs(1);
/// Chunk records read at a time.
const PAGE: usize = 4096;

/// Counts the cluster.
pub struct StatusBoard {
    store: Arc<dyn Store>,
    handle: Handle,
    settings: Settings,
    nearly_full: Arc<AtomicBool>,
    counted: Mutex<Option<(Instant, Chunks)>>,
}

/// Chunks, counted.
#[derive(Clone, Default)]
struct Chunks {
    planned: u64,
    garbage: u64,
    classes: BTreeMap<String, ClassStatus>,
}

impl StatusBoard {
    /// Counts what is in `store`; asks the machine who is there.
    pub fn new(
        store: Arc<dyn Store>,
        handle: Handle,
        settings: Settings,
        nearly_full: Arc<AtomicBool>,
    ) -> Self {
        Self { store, handle, settings, nearly_full, counted: Mutex::new(None) }
    }

    /// The state of the cluster, at most a second old.
    pub async fn status(&self) -> Result<ClusterStatus, Failure> {
        let (sessions, uptime) = self.handle.inspect(|live, uptime| (sessions(live, uptime), uptime)).await?;
        let chunks = self.chunks().await?;
        let store_bytes = self.store.size_bytes()?;
        Ok(ClusterStatus {
            cluster: self.settings.cluster.to_bytes(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: uptime.as_millis() as u64,
            chunks_planned: chunks.planned,
            chunks_garbage: chunks.garbage,
            classes: chunks.classes.into_values().collect(),
            sessions,
            store_bytes,
            store_full: self.nearly_full.load(Ordering::Relaxed),
            ..ClusterStatus::default()
        })
    }

    /// Whoever comes while somebody counts waits for that count.
    async fn chunks(&self) -> Result<Chunks, Failure> {
        let mut counted = self.counted.lock().await;
        if let Some((when, chunks)) = &*counted
            && when.elapsed() < FRESH
        {
            return Ok(chunks.clone());
        }
        let store = self.store.clone();
        let task = tokio::task::spawn_blocking(move || count(&*store));
        let chunks = task.await.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))??;
        *counted = Some((Instant::now(), chunks.clone()));
        Ok(chunks)
    }
}

fn sessions(live: &Live, uptime: Duration) -> Vec<SessionStatus> {
    let sessions = live.sessions.iter().map(|(id, entry)| SessionStatus {
        session: id.0,
        client: entry.client.clone(),
        version: entry.version.clone(),
        heartbeat_age_ms: uptime.saturating_sub(entry.heard).as_millis() as u64,
        open_files: live.opens.count(id) as u64,
        locks: live.locks.count(id) as u64,
    });
    sessions.collect()
}

/// Reads all chunk records, a page at a time.
fn count(store: &dyn Store) -> Result<Chunks, Failure> {
    let mut chunks = Chunks::default();
    let mut range = keys::chunks(ChunkId(0), ChunkId(u64::MAX));
    loop {
        let page = store.scan(&range.start, &range.end, PAGE)?;
        for (key, value) in &page {
            let chunk = Chunk::from_value(key, value)?;
            match chunk.state() {
                ChunkState::Planned => chunks.planned += 1,
                ChunkState::Garbage | ChunkState::Removing => chunks.garbage += 1,
                ChunkState::Sealed => {
                    let class = chunks.classes.entry(chunk.class.clone()).or_default();
                    add(class, &chunk)?;
                }
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => {
                range.start = key.clone();
                range.start.push(0);
            }
            _ => return Ok(chunks),
        }
    }
}

/// Counts a sealed chunk in its class.
fn add(status: &mut ClassStatus, chunk: &Chunk) -> Result<(), Failure> {
    let class: Class = chunk.class.parse()?;
    status.class.clone_from(&chunk.class);
    status.chunks += 1;
    status.bytes += chunk.length;
    status.live_bytes += chunk.live_bytes;
    let present = chunk.shards.iter().filter(|shard| !shard.lost).count();
    let needed = class.needed_to_read() as usize;
    if present < class.shards() as usize {
        status.degraded += 1;
    }
    match present.checked_sub(needed) {
        None => status.missing += 1,
        Some(spare) => {
            if status.by_spare.len() <= spare {
                status.by_spare.resize(spare + 1, 0);
            }
            status.by_spare[spare] += 1;
        }
    }
    Ok(())
}
