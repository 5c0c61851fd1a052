//! The daemon's door: `Put`, `Exchange`, `Ping`. Decodes, checks, hands to the store and to the chain; keeps what is in
//! memory for others within bounds.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_proto::chunk::chunk_server::Chunk;
use dfs_proto::chunk::{
    PingReply, PingRequest, PutFrame, PutReply, PutResult, ReadFrame, ReadRequest, SmallReply, SmallRequest,
    small_reply, small_request,
};
use dfs_proto::{Code, Failure};
use futures::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::forward::{Chain, Peers};
use crate::node::Node;
use crate::order::{PutOrder, ReadOrder, check_cluster};
use crate::store::{Blocks, Incoming};

/// How long a writer may leave us without a frame. A writer that is gone is noticed
/// sooner, by pings; this is longer than the node before us in a chain may wait for its own disk.
const PEER_DEADLINE: Duration = Duration::from_secs(40);
/// How long a request may wait for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// The longest chain behind a node: a redundancy has at most 5 shards.
const MAX_CHAIN: usize = 4;
/// Requests at work of one stream of small ones; more wait in the connection.
const MAX_EXCHANGED: usize = 32;
/// Puts at once, for each number of nodes behind this one.
const MAX_PUTS: usize = 32;
/// Frames in memory at once, for each number of nodes behind this one, in KiB.
const PUT_BUFFER_KIB: usize = 24 * 1024;
/// Answers to reads in memory at once, in KiB.
const READ_BUFFER_KIB: usize = 48 * 1024;

/// The service.
#[derive(Clone)]
pub(crate) struct ChunkService(Arc<Inner>);

pub(crate) struct Inner {
    node: Arc<Node>,
    peers: Peers,
    /// Becomes true when the daemon stops: then streams of requests take no more.
    stopping: watch::Receiver<bool>,
    /// By the number of nodes behind this one in the chain. Each level waits only for lower ones, here and on other nodes,
    /// so that chains in a circle can't wait for each other.
    levels: [Level; MAX_CHAIN + 1],
    read_buffer: Arc<Semaphore>,
}

struct Level {
    puts: Semaphore,
    buffer: Arc<Semaphore>,
}

impl ChunkService {
    pub(crate) fn new(node: Arc<Node>, stopping: watch::Receiver<bool>) -> Self {
        let level =
            |_| Level { puts: Semaphore::new(MAX_PUTS), buffer: Arc::new(Semaphore::new(PUT_BUFFER_KIB)) };
        let levels = std::array::from_fn(level);
        let read_buffer = Arc::new(Semaphore::new(READ_BUFFER_KIB));
        Self(Arc::new(Inner { node, peers: Peers::default(), stopping, levels, read_buffer }))
    }
}

impl std::ops::Deref for ChunkService {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    async fn receive(
        &self,
        mut frames: impl Stream<Item = Result<PutFrame, Status>> + Unpin,
    ) -> Result<PutReply, Failure> {
        let member = self.node.member()?;
        let first = next_frame(&mut frames).await?;
        let header = first.header.ok_or_else(|| invalid("the first frame of a put bears its header"))?;
        let mut order = PutOrder::parse(header, member.cluster, member.node)?;
        let level = &self.levels[order.chain.len()];
        let _turn = turn(level.puts.acquire()).await?;
        let mut put = Put {
            local: match self.node.check_may_write(Instant::now()) {
                Ok(()) => member.store.receive(order.header).await,
                Err(failure) => Err(failure),
            },
            chain: Chain::start(&self.peers, &order)?,
        };
        let mut frame = PutFrame { header: None, ..first };
        if frame.data.is_empty() {
            frame = next_frame(&mut frames).await?;
        }
        while !put.is_lost() {
            let blocks = Blocks { data: frame.data, crc32c: frame.block_crc32c, held: None };
            if let Err(failure) = take(&mut order, frame.header.is_some(), &blocks) {
                put.abort();
                return Err(failure);
            }
            let kib = blocks.data.len().div_ceil(1024) as u32;
            let held = turn(level.buffer.clone().acquire_many_owned(kib)).await;
            match held {
                Ok(held) => put.append(Blocks { held: Some(Arc::new(held)), ..blocks }).await,
                Err(failure) => {
                    put.abort();
                    return Err(failure);
                }
            }
            if order.is_complete() {
                break;
            }
            frame = match next_frame(&mut frames).await {
                Ok(frame) => frame,
                Err(failure) => {
                    put.abort();
                    return Err(failure);
                }
            };
        }
        // Nobody waits for the stream's end: every byte that the header told is here and verified.
        let this = PutResult { node: member.node.0, index: order.header.key.index.0, error: None };
        Ok(PutReply { results: put.finish(this).await })
    }

    /// One request of a stream of them. What holds the answer's memory comes with it.
    async fn answer(
        &self,
        request: Result<SmallRequest, Status>,
    ) -> Result<(SmallReply, Option<OwnedSemaphorePermit>), Status> {
        let SmallRequest { tag, op } = request?;
        let answer = match op {
            Some(small_request::Op::Put(frame)) => self.put_small(frame).await,
            Some(small_request::Op::Read(request)) => self.read(request).await,
            None => Err(Failure::new(Code::VersionUnknown, "this daemon does not know the operation")),
        };
        let (result, held) =
            answer.unwrap_or_else(|failure| (small_reply::Result::Error(failure.into()), None));
        Ok((SmallReply { tag, result: Some(result) }, held))
    }

    async fn put_small(&self, frame: PutFrame) -> Result<SmallAnswer, Failure> {
        if frame.header.as_ref().is_some_and(|header| !header.forward.is_empty()) {
            return Err(invalid("what is to be forwarded has a stream of its own"));
        }
        let reply = self.receive(stream::iter([Ok(frame)])).await?;
        Ok((small_reply::Result::Put(reply), None))
    }

    async fn read(&self, request: ReadRequest) -> Result<SmallAnswer, Failure> {
        let member = self.node.member()?;
        let order = ReadOrder::parse(&request, member.cluster)?;
        let kib = request.length.div_ceil(1024) as u32;
        let held = turn(self.read_buffer.clone().acquire_many_owned(kib)).await?;
        let store = member.store.clone();
        let here = store.read_now(order.key, |length| Some(order.offset..order.end(length).ok()?));
        if let Some((data, block_crc32c)) = here {
            return Ok((small_reply::Result::Read(ReadFrame { data, block_crc32c }), Some(held)));
        }
        let read = tokio::task::spawn_blocking(move || {
            let shard = store.open(order.key)?;
            let end = order.end(shard.header().length)?;
            store.read(&shard, order.offset, (end - order.offset) as usize)
        });
        let lost = |_| Failure::new(Code::InputOutput, "the thread that reads the shard has ended");
        let (data, block_crc32c) = read.await.map_err(lost)??;
        Ok((small_reply::Result::Read(ReadFrame { data, block_crc32c }), Some(held)))
    }
}

/// What is answered, and what holds its memory.
type SmallAnswer = (small_reply::Result, Option<OwnedSemaphorePermit>);

/// Both ways that a shard's blocks go.
struct Put {
    local: Result<Incoming, Failure>,
    chain: Option<Chain>,
}

impl Put {
    async fn append(&mut self, blocks: Blocks) {
        if let Some(chain) = &mut self.chain {
            chain.append(blocks.clone()).await;
        }
        if let Ok(incoming) = &mut self.local {
            incoming.append(blocks).await;
        }
    }

    /// Whether more blocks would change nothing.
    fn is_lost(&self) -> bool {
        self.chain.is_none() && self.local.as_ref().map_or(true, Incoming::has_failed)
    }

    async fn finish(self, this: PutResult) -> Vec<PutResult> {
        let local = async {
            match self.local {
                Ok(incoming) => incoming.finish().await,
                Err(failure) => Err(failure),
            }
        };
        let chain = async {
            match self.chain {
                Some(chain) => chain.finish().await,
                None => Vec::new(),
            }
        };
        let (local, chain) = tokio::join!(local, chain);
        let error = local.err().map(Into::into);
        std::iter::once(PutResult { error, ..this }).chain(chain).collect()
    }

    /// The writer is gone or wrong: nothing of the shard stays anywhere.
    fn abort(self) {
        if let Some(chain) = self.chain {
            chain.abort();
        }
    }
}

fn take(order: &mut PutOrder, second_header: bool, blocks: &Blocks) -> Result<(), Failure> {
    if second_header {
        return Err(invalid("only the first frame of a put bears a header"));
    }
    order.take(blocks)
}

async fn next_frame(
    frames: &mut (impl Stream<Item = Result<PutFrame, Status>> + Unpin),
) -> Result<PutFrame, Failure> {
    match tokio::time::timeout(PEER_DEADLINE, frames.next()).await {
        Ok(Some(Ok(frame))) => Ok(frame),
        Ok(None) => Err(invalid("the put ends before its shard does")),
        Ok(Some(Err(status))) => Err(status.into()),
        Err(_) => Err(Failure::new(
            Code::Unavailable,
            format!("the writer has sent nothing for {} seconds", PEER_DEADLINE.as_secs()),
        )),
    }
}

/// Waits for a place, but not for ever. UNAVAILABLE.
async fn turn<T, E>(place: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    match tokio::time::timeout(TURN_DEADLINE, place).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Failure::new(Code::Unavailable, "this node has too much to do: try again later")),
    }
}

fn invalid(message: &str) -> Failure {
    Failure::new(Code::Invalid, message)
}

#[tonic::async_trait]
impl Chunk for ChunkService {
    async fn put(&self, request: Request<Streaming<PutFrame>>) -> Result<Response<PutReply>, Status> {
        let reply = self.receive(request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<SmallReply, Status>> + Send>>;

    async fn exchange(
        &self,
        requests: Request<Streaming<SmallRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (service, mut stopping) = (self.clone(), self.stopping.clone());
        // What was taken before is still answered.
        let requests = requests
            .into_inner()
            .take_until(async move { stopping.wait_for(|stopping| *stopping).await.is_ok() });
        let answers = requests
            .map(move |request| {
                let service = service.clone();
                async move { service.answer(request).await }
            })
            .buffer_unordered(MAX_EXCHANGED)
            // Memory is held until the answer is taken to be sent.
            .map(|answer| answer.map(|(reply, _held)| reply));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let member = self.node.member()?;
        let told = request.into_inner().cluster;
        if !told.is_empty() {
            check_cluster(&told, member.cluster)?;
        }
        Ok(Response::new(PingReply {
            cluster: member.cluster.to_bytes(),
            node: member.node.0,
            version: env!("CARGO_PKG_VERSION").into(),
            shards: member.store.shards(),
        }))
    }
}
