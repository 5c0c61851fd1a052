//! A chunk node in memory: the real protocol on a port of its own, with faults.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::chunk::chunk_client::ChunkClient;
use dfs_proto::chunk::chunk_server::{Chunk, ChunkServer};
use dfs_proto::chunk::{
    PingReply, PingRequest, PutFrame, PutHeader, PutReply, PutResult, ReadFrame, ReadRequest, SmallReply,
    SmallRequest, small_reply, small_request,
};
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA, MAX_MESSAGE};
use dfs_proto::{Code, Failure, NodeAddress};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};

use super::CLUSTER;

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Every request waits so long first.
    Slow(Duration),
    /// Requests are taken and never answered.
    Hangs,
    /// Reads find a flipped bit.
    Corrupt,
    /// Reads find no shard.
    Forgets,
    /// The disk is full.
    Full,
    /// The disk fails.
    Broken,
}

/// A shard in a node's memory.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) index: u32,
    pub(crate) data: Bytes,
    pub(crate) sums: Vec<u32>,
}

/// A chunk node of the test's process. Stops answering when [`FakeNode::kill`]ed.
pub(crate) struct FakeNode {
    pub(crate) id: u64,
    address: String,
    state: Mutex<State>,
    /// Its own, so that its connections end with it.
    runtime: Mutex<Option<Runtime>>,
}

#[derive(Default)]
struct State {
    fault: Fault,
    shards: HashMap<u64, Stored>,
    puts: usize,
    blocks_read: usize,
}

/// The service's own handle on the node.
struct Door(Weak<FakeNode>);

impl Door {
    fn node(&self) -> Result<Arc<FakeNode>, Status> {
        self.0.upgrade().ok_or_else(|| Status::unavailable("the test is over"))
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

impl FakeNode {
    pub(super) fn start(id: u64) -> Arc<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for a fake node");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        listener.set_nonblocking(true).expect("a socket can be made not to block");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let node = Arc::new(Self { id, address, state: Mutex::default(), runtime: Mutex::new(None) });
        let service = ChunkServer::new(Door(Arc::downgrade(&node))).max_decoding_message_size(MAX_MESSAGE);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .add_service(service);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener that does not block");
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("the fake node serves");
        });
        *node.runtime.lock().expect("nothing panics while it starts a fake node") = Some(runtime);
        node
    }

    /// Closes the port and every connection.
    pub(crate) fn kill(&self) {
        let runtime = self.runtime.lock().expect("nothing panics while it stops a fake node").take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn break_with(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    pub(crate) fn place(&self) -> NodeAddress {
        NodeAddress { node: self.id, address: self.address.clone(), labels: None }
    }

    /// Puts other bytes in the place of a shard's, with checksums that fit them.
    pub(crate) fn forge(&self, chunk: u64, data: Bytes) {
        let sums = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        if let Some(stored) = self.lock().shards.get_mut(&chunk) {
            (stored.data, stored.sums) = (data, sums);
        }
    }

    pub(crate) fn shard(&self, chunk: u64) -> Option<Stored> {
        self.lock().shards.get(&chunk).cloned()
    }

    /// Other bytes in place of a shard, with checksums that are right for them.
    pub(crate) fn rewrite(&self, chunk: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let shard = state.shards.get_mut(&chunk).expect("a shard to rewrite");
        let mut data = shard.data.to_vec();
        change(&mut data);
        shard.sums = data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        shard.data = data.into();
    }

    /// Puts that were taken, and blocks that were read, since it was asked last.
    pub(crate) fn take_counts(&self) -> (usize, usize) {
        let mut state = self.lock();
        (std::mem::take(&mut state.puts), std::mem::take(&mut state.blocks_read))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds a fake node")
    }

    async fn wait(&self) -> Fault {
        let fault = self.lock().fault;
        match fault {
            Fault::Slow(wait) => tokio::time::sleep(wait).await,
            Fault::Hangs => std::future::pending().await,
            _ => {}
        }
        fault
    }

    /// Keeps a shard, after checking it as the real one does.
    fn keep(&self, header: &PutHeader, frames: &[PutFrame], fault: Fault) -> Result<(), Failure> {
        match fault {
            Fault::Full => return Err(Failure::new(Code::NoSpace, "the fake disk is full")),
            Fault::Broken => return Err(Failure::new(Code::InputOutput, "the fake disk failed")),
            _ => {}
        }
        let (mut data, mut sums) = (BytesMut::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            assert!(
                (1..=MAX_FRAME_DATA).contains(&frame.data.len()),
                "a frame of {} bytes",
                frame.data.len()
            );
            assert!(
                i + 1 == frames.len() || frame.data.len().is_multiple_of(BLOCK_SIZE),
                "a short frame inside"
            );
            let expected: Vec<u32> = frame.data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
            assert_eq!(expected, frame.block_crc32c, "checksums of a frame");
            data.extend_from_slice(&frame.data);
            sums.extend(expected);
        }
        assert_eq!(data.len() as u64, header.length, "the length in the header");
        let mut state = self.lock();
        state.puts += 1;
        if let Some(kept) = state.shards.get(&header.chunk) {
            assert!(kept.index == header.index && kept.data == data, "a chunk id was used twice");
            return Ok(());
        }
        state.shards.insert(header.chunk, Stored { index: header.index, data: data.freeze(), sums });
        Ok(())
    }
}

impl Door {
    async fn take(&self, mut frames: Vec<PutFrame>) -> Result<PutReply, Status> {
        let this = self.node()?;
        let fault = this.wait().await;
        let header =
            frames.first().and_then(|frame| frame.header.clone()).expect("the first frame has the header");
        assert_eq!(header.cluster, CLUSTER.to_bytes());
        let error = this.keep(&header, &frames, fault).err().map(Into::into);
        let mut results = vec![PutResult { node: this.id, index: header.index, error }];
        if let Some((next, rest)) = header.forward.split_first() {
            let node = next.node.clone().expect("a place to forward to");
            let forwarded = PutHeader { index: next.index, forward: rest.to_vec(), ..header.clone() };
            frames[0].header = Some(forwarded);
            let answer = async {
                let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).map_err(drop)?;
                let mut client = ChunkClient::new(endpoint.connect_lazy());
                let put = client.put(stream::iter(frames));
                tokio::time::timeout(Duration::from_secs(1), put).await.map_err(drop)?.map_err(drop)
            };
            match answer.await {
                Ok(answer) => results.extend(answer.into_inner().results),
                Err(()) => results.extend(header.forward.iter().map(|forward| PutResult {
                    node: forward.node.as_ref().map_or(0, |node| node.node),
                    index: forward.index,
                    error: Some(Failure::new(Code::Unavailable, "the chain broke").into()),
                })),
            }
        }
        Ok(PutReply { results })
    }

    async fn give(&self, request: ReadRequest) -> Result<ReadFrame, Status> {
        let this = self.node()?;
        let fault = this.wait().await;
        assert_eq!(request.cluster, CLUSTER.to_bytes());
        let Some(shard) = this.shard(request.chunk).filter(|_| fault != Fault::Forgets) else {
            return Err(Failure::new(Code::NotFound, "no such shard here").into());
        };
        assert_eq!(shard.index, request.index, "the shard that was asked for");
        let (from, to) = (request.offset as usize, (request.offset + request.length) as usize);
        assert!(from.is_multiple_of(BLOCK_SIZE) && from < to && to <= shard.data.len(), "{request:?}");
        assert!(to.is_multiple_of(BLOCK_SIZE) || to == shard.data.len(), "{request:?}");
        this.lock().blocks_read += (to - from).div_ceil(BLOCK_SIZE);
        assert!(to - from <= MAX_FRAME_DATA, "{request:?}");
        let sums = shard.sums[from / BLOCK_SIZE..to.div_ceil(BLOCK_SIZE)].to_vec();
        let mut data = shard.data.slice(from..to);
        if fault == Fault::Corrupt {
            let mut flipped = data.to_vec();
            flipped[0] ^= 1;
            data = flipped.into();
        }
        Ok(ReadFrame { data, block_crc32c: sums })
    }

    async fn answer(&self, op: Option<small_request::Op>) -> Result<small_reply::Result, Status> {
        match op.expect("an operation") {
            small_request::Op::Put(frame) => self.take(vec![frame]).await.map(small_reply::Result::Put),
            small_request::Op::Read(request) => self.give(request).await.map(small_reply::Result::Read),
        }
    }
}

#[tonic::async_trait]
impl Chunk for Door {
    async fn put(&self, request: Request<Streaming<PutFrame>>) -> Result<Response<PutReply>, Status> {
        let mut stream = request.into_inner();
        let mut frames = Vec::new();
        while let Some(frame) = stream.message().await? {
            frames.push(frame);
        }
        self.take(frames).await.map(Response::new)
    }

    type ExchangeStream = BoxStream<'static, Result<SmallReply, Status>>;

    async fn exchange(
        &self,
        requests: Request<Streaming<SmallRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let door = Self(self.0.clone());
        let answers = requests.into_inner().map(move |request| {
            let door = Self(door.0.clone());
            async move {
                let SmallRequest { tag, op } = request?;
                let result = door.answer(op).await;
                let result =
                    result.unwrap_or_else(|status| small_reply::Result::Error(Failure::from(status).into()));
                Ok(SmallReply { tag, result: Some(result) })
            }
        });
        Ok(Response::new(answers.buffer_unordered(64).boxed()))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let this = self.node()?;
        let shards = this.lock().shards.len() as u64;
        Ok(Response::new(PingReply {
            cluster: CLUSTER.to_bytes(),
            node: this.id,
            version: "test".into(),
            shards,
        }))
    }
}
