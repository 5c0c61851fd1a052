//! The rest of a chain: frames go to the next node while they arrive here, and its answer tells what became of all
//! nodes behind it. A next node that is dead, hangs or answers as somebody else fails the rest of the chain and nothing
//! else: this node's own shard goes on.
//!
//! Nodes with the same number of nodes behind them share a connection, and only those. So a connection to the last
//! node of chains never waits for anything but that node's disk, one to the node before it waits for that only, and
//! chains that run in circles can't block each other by filling a connection that both need.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dfs_proto::chunk::{ForwardTo, PutFrame, PutHeader, PutResult};
use dfs_proto::limits::MAX_HTTP2_FRAME;
use dfs_proto::{Code, Failure, NodeAddress, put};
use lru::LruCache;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::order::{Next, PutOrder};
use crate::server::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::store::Blocks;

/// A host that does not answer is given up after this.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A connection on which nothing comes is asked after `PING_AFTER` and given up `PING_DEADLINE` later, so that a dead
/// node is known after 3 seconds however long its disk may take when it lives.
const PING_AFTER: Duration = Duration::from_secs(1);
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// How long a node that lives may take to accept a frame.
const FRAME_DEADLINE: Duration = Duration::from_secs(30);
/// How long it may take to answer when it has all frames; the more nodes behind it, the longer, so that the node next to
/// the trouble tells of it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(35);
const ANSWER_DEADLINE_PER_NODE: Duration = Duration::from_secs(3);
/// Frames between the one who receives and the connection.
const QUEUED_FRAMES: usize = 4;
/// Connections kept.
const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Connections to other nodes, by address and number of nodes behind.
pub(crate) struct Peers {
    channels: Mutex<LruCache<(String, usize), Channel>>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { channels: Mutex::new(LruCache::new(MAX_CONNECTIONS)) }
    }
}

impl Peers {
    /// A connection; it connects when it is first used, and again after a failure. INVALID for a malformed address.
    fn channel(&self, address: &str, nodes_behind: usize) -> Result<Channel, Failure> {
        let key = (address.to_owned(), nodes_behind);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| Failure::new(Code::Invalid, format!("{address:?} is not an address")))?
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_DEADLINE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_HTTP2_FRAME)
            .tcp_nodelay(true);
        let channel = endpoint.connect_lazy();
        channels.put(key, channel.clone());
        Ok(channel)
    }
}

/// A chain being written to.
pub(crate) struct Chain {
    nodes: Vec<Next>,
    /// Goes with the first frame.
    header: Option<PutHeader>,
    frames: mpsc::Sender<Forwarded>,
    answer: JoinHandle<Result<Vec<PutResult>, Failure>>,
}

struct Forwarded {
    header: Option<PutHeader>,
    blocks: Blocks,
}

impl Chain {
    /// Begins to forward; `None` when this node is the last.
    pub(crate) fn start(peers: &Peers, order: &PutOrder) -> Result<Option<Self>, Failure> {
        let Some((next, behind)) = order.chain.split_first() else { return Ok(None) };
        let header = PutHeader {
            cluster: order.header.cluster.to_bytes(),
            chunk: order.header.key.chunk.0,
            index: next.index.0,
            redundancy: order.header.redundancy.to_string(),
            length: order.header.length.into(),
            forward: behind.iter().map(forward_to).collect(),
        };
        let channel = peers.channel(&next.address, behind.len())?;
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        // What is held for a frame is given back when the connection takes it.
        let queue = ReceiverStream::new(queue).map(|Forwarded { header, blocks }| PutFrame {
            header,
            data: blocks.data,
            block_crc32c: blocks.crc32c,
        });
        let answer = tokio::spawn(async move { Ok(put::put(channel, queue).await?.results) });
        Ok(Some(Self { nodes: order.chain.clone(), header: Some(header), frames, answer }))
    }

    /// Hands the next blocks on. Errors are told at the end.
    pub(crate) async fn append(&mut self, blocks: Blocks) {
        if self.answer.is_finished() {
            return;
        }
        let frame = Forwarded { header: self.header.take(), blocks };
        if tokio::time::timeout(FRAME_DEADLINE, self.frames.send(frame)).await.is_err() {
            self.answer.abort();
        }
    }

    /// What became of each node of the chain, when all blocks have been handed on.
    pub(crate) async fn finish(self) -> Vec<PutResult> {
        let Self { nodes, frames, mut answer, .. } = self;
        drop(frames);
        let deadline = ANSWER_DEADLINE + ANSWER_DEADLINE_PER_NODE * nodes.len() as u32;
        let answered = match tokio::time::timeout(deadline, &mut answer).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) => Err(Failure::new(Code::Unavailable, "it took a frame's deadline to accept none")),
            Err(_) => {
                answer.abort();
                Err(Failure::new(Code::Unavailable, format!("no answer for {} s", deadline.as_secs())))
            }
        };
        match answered.and_then(|results| check(&nodes, results)) {
            Ok(results) => results,
            Err(failure) => {
                let next = &nodes[0];
                tracing::warn!(node = %next.node, address = next.address, %failure, "forwarding failed");
                let behind = |node: &Next| Failure {
                    code: failure.code,
                    message: format!("node {} at {}: {}", node.node, node.address, failure.message),
                };
                let failure: dfs_proto::Error = behind(next).into();
                nodes.iter().map(|node| result(node, Some(failure.clone()))).collect()
            }
        }
    }

    /// Gives the chain up: the next node finds the stream broken.
    pub(crate) fn abort(self) {
        self.answer.abort();
    }
}

fn forward_to(next: &Next) -> ForwardTo {
    let node = NodeAddress { node: next.node.0, address: next.address.clone(), labels: None };
    ForwardTo { node: Some(node), index: next.index.0 }
}

fn result(node: &Next, error: Option<dfs_proto::Error>) -> PutResult {
    PutResult { node: node.node.0, index: node.index.0, error }
}

/// An answer counts when it is of the nodes that were asked: a port may have gone to another daemon.
fn check(nodes: &[Next], results: Vec<PutResult>) -> Result<Vec<PutResult>, Failure> {
    let same =
        |(node, result): (&Next, &PutResult)| node.node.0 == result.node && node.index.0 == result.index;
    match nodes.len() == results.len() && nodes.iter().zip(&results).all(same) {
        true => Ok(results),
        false => Err(Failure::new(Code::NodeRefused, "it answers as another node")),
    }
}
