//! The state of the cluster for operators: counted by reading the store beside the machine, so that asking never
//! stalls it, and not again before a while has passed, however many ask.

mod count;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::meta::{
    ClusterStatus, FsStats, NodeState, NodeStatus, Reply, Request, SessionStatus, StatFs, reply, request,
};
use dfs_proto::{Code, Failure, NodeId};
use tokio::sync::Mutex;

use self::count::Chunks;
use crate::live::{Live, nodes};
use crate::machine::Handle;
use crate::ops::Settings;
use crate::store::records::{Node, Record};
use crate::store::space::Space;
use crate::store::{Store, keys};

/// How long a count of the chunks is good at least.
const FRESH: Duration = Duration::from_secs(1);
/// And so many times as long as it took, so that counting is never most of what the server does.
const FRESH_FACTOR: u32 = 10;

/// Tells the state of the cluster.
pub struct StatusBoard {
    store: Arc<dyn Store>,
    handle: Handle,
    settings: Settings,
    space: Arc<Space>,
    counted: Mutex<Option<Count>>,
}

/// Chunks, and until when they count as counted.
struct Count {
    chunks: Chunks,
    good_until: Instant,
}

/// What the machine knows of who is there.
struct Present {
    uptime: Duration,
    nodes: Vec<NodeStatus>,
    sessions: Vec<SessionStatus>,
}

impl StatusBoard {
    /// Counts what is in `store`; asks the machine who is there.
    pub fn new(store: Arc<dyn Store>, handle: Handle, settings: Settings, space: Arc<Space>) -> Self {
        Self { store, handle, settings, space, counted: Mutex::new(None) }
    }

    /// The state of the cluster now; its chunks as they were counted a moment ago.
    pub async fn status(&self) -> Result<ClusterStatus, Failure> {
        let stats = self.stats().await?;
        let patience = self.settings.patience();
        let mut present =
            self.handle.inspect(move |live, uptime| Present::look(live, uptime, patience)).await?;
        self.add_unheard(&mut present)?;
        let Chunks { planned, garbage, classes } = self.chunks(&present.nodes).await?;
        Ok(ClusterStatus {
            cluster: self.settings.cluster.to_bytes(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: milliseconds(present.uptime),
            files: stats.files,
            used_bytes: stats.used_bytes,
            total_bytes: stats.total_bytes,
            available_bytes: stats.available_bytes,
            chunks_planned: planned,
            chunks_garbage: garbage,
            nodes: present.nodes,
            classes: classes.into_values().collect(),
            sessions: present.sessions,
            store_bytes: self.store.size_bytes()?,
            store_full: self.space.is_nearly_full(),
        })
    }

    async fn stats(&self) -> Result<FsStats, Failure> {
        let request = Request { op: Some(request::Op::StatFs(StatFs {})), ..Request::default() };
        match self.handle.call(request).await? {
            Reply { result: Some(reply::Result::FsStats(stats)), .. } => Ok(stats),
            Reply { result: Some(reply::Result::Error(error)), .. } => Err(error.into()),
            other => Err(Failure::new(Code::InputOutput, format!("statfs answered {other:?}"))),
        }
    }

    /// Nodes that were not heard of since this server started: only the store knows them.
    fn add_unheard(&self, present: &mut Present) -> Result<(), Failure> {
        let range = keys::nodes();
        for (key, value) in self.store.scan(&range.start, &range.end, usize::MAX)? {
            let id = keys::node_id(&key);
            if present.nodes.iter().any(|node| address_of(node) == id) {
                continue;
            }
            let record = Node::from_value(&key, &value)?;
            present.nodes.push(NodeStatus {
                node: Some(nodes::address(id, &record)),
                state: NodeState::Down.into(),
                capacity_bytes: record.capacity_bytes,
                version: record.version,
                heartbeat_age_ms: milliseconds(present.uptime),
                ..NodeStatus::default()
            });
        }
        present.nodes.sort_by_key(address_of);
        Ok(())
    }

    /// Whoever comes while somebody counts waits for that count.
    async fn chunks(&self, nodes: &[NodeStatus]) -> Result<Chunks, Failure> {
        let mut counted = self.counted.lock().await;
        let started = Instant::now();
        if let Some(count) = &*counted
            && started < count.good_until
        {
            return Ok(count.chunks.clone());
        }
        let serving = nodes.iter().filter(|node| node.state() != NodeState::Down).map(address_of).collect();
        let store = self.store.clone();
        let task = tokio::task::spawn_blocking(move || count::count(&*store, &serving));
        let chunks = task.await.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))??;
        let good_until = Instant::now() + FRESH.max(started.elapsed() * FRESH_FACTOR);
        *counted = Some(Count { chunks: chunks.clone(), good_until });
        Ok(chunks)
    }
}

impl Present {
    fn look(live: &Live, uptime: Duration, patience: nodes::Patience) -> Self {
        let since = |heard| milliseconds(uptime.saturating_sub(heard));
        let nodes = live.nodes.iter().map(|(_, node)| NodeStatus {
            node: Some(node.address.clone()),
            state: node.state(uptime, patience).into(),
            capacity_bytes: node.fill.capacity_bytes,
            available_bytes: node.fill.available_bytes,
            shards: node.fill.shards,
            version: node.version.clone(),
            heartbeat_age_ms: since(node.heard),
        });
        let sessions = live.sessions.iter().map(|(id, entry)| SessionStatus {
            session: id.0,
            client: entry.client.clone(),
            version: entry.version.clone(),
            heartbeat_age_ms: since(entry.heard),
            open_files: live.opens.count(id) as u64,
            locks: live.locks.count(id) as u64,
        });
        Self { uptime, nodes: nodes.collect(), sessions: sessions.collect() }
    }
}

fn address_of(node: &NodeStatus) -> NodeId {
    NodeId(node.node.as_ref().map_or(0, |address| address.node))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
