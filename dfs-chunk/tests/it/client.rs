//! A writer and reader of shards, as a client is one, and daemons to try them on.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dfs_chunk::config::Config;
use dfs_chunk::daemon::{self, Running};
use dfs_chunk::store::Reserve;
use dfs_proto::chunk::chunk_client::ChunkClient;
use dfs_proto::chunk::{
    ForwardTo, PutFrame, PutHeader, PutReply, ReadFrame, ReadRequest, SmallReply, SmallRequest, small_reply,
    small_request,
};
use dfs_proto::limits::{BLOCK_SIZE, MAX_FRAME_DATA};
use dfs_proto::{Code, Failure, Labels, NodeAddress};
use futures::stream;
use tonic::transport::{Channel, Endpoint};

use crate::meta::{CLUSTER, FakeMeta};

/// A daemon in this process, on a disk of its own.
pub(crate) struct Daemon {
    pub(crate) running: Running,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) client: ChunkClient<Channel>,
}

pub(crate) fn config(meta: &FakeMeta, data: &Path) -> Config {
    Config {
        meta: vec![meta.address.to_string()],
        data: data.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        labels: Labels { host: "h".into(), rack: "r".into(), zone: "z".into() },
        local_reads: true,
        reserve: Reserve::Bytes(1 << 20),
        log_level: "info".into(),
        log_json: false,
        ready_file: None,
    }
}

pub(crate) fn connect(address: impl std::fmt::Display) -> ChunkClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    ChunkClient::new(endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy())
}

impl Daemon {
    pub(crate) async fn start(meta: &FakeMeta) -> Self {
        Self::start_on(meta, tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn start_on(meta: &FakeMeta, directory: tempfile::TempDir) -> Self {
        let running = daemon::start(&config(meta, directory.path())).await.unwrap();
        let client = connect(running.address);
        Self { running, directory, client }
    }

    /// Stops it cleanly and starts it again on the same disk.
    pub(crate) async fn restart(self, meta: &FakeMeta) -> Self {
        let Self { running, directory, .. } = self;
        running.stop().await;
        Self::start_on(meta, directory).await
    }

    pub(crate) fn as_next(&self, index: u32) -> ForwardTo {
        next(self.running.node.0, self.running.address, index)
    }

    pub(crate) async fn put(
        &self,
        chunk: u64,
        data: &[u8],
        forward: Vec<ForwardTo>,
    ) -> Result<Vec<Option<Code>>, Failure> {
        let mut client = self.client.clone();
        let reply = client.put(tokio_stream::iter(frames(header(chunk, data.len(), forward), data))).await?;
        Ok(codes(&reply.into_inner()))
    }

    pub(crate) async fn get(
        &self,
        chunk: u64,
        index: u32,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, Failure> {
        read(self.client.clone(), chunk, index, offset, length).await
    }
}

pub(crate) fn next(node: u64, address: impl ToString, index: u32) -> ForwardTo {
    let node = NodeAddress { node, address: address.to_string(), labels: None };
    ForwardTo { node: Some(node), index }
}

pub(crate) fn header(chunk: u64, length: usize, forward: Vec<ForwardTo>) -> PutHeader {
    PutHeader {
        cluster: CLUSTER.to_bytes(),
        chunk,
        index: 0,
        redundancy: "replicated:3".into(),
        length: length as u64,
        forward,
    }
}

/// What became of each node: `None` is durable.
pub(crate) fn codes(reply: &PutReply) -> Vec<Option<Code>> {
    let code = |error: &dfs_proto::Error| Failure::from(error.clone()).code;
    reply.results.iter().map(|result| result.error.as_ref().map(code)).collect()
}

/// The frames of a whole put.
pub(crate) fn frames(header: PutHeader, data: &[u8]) -> Vec<PutFrame> {
    let mut header = Some(header);
    let frame = |part: &[u8]| PutFrame {
        header: header.take(),
        data: Bytes::copy_from_slice(part),
        block_crc32c: part.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect(),
    };
    data.chunks(MAX_FRAME_DATA).map(frame).collect()
}

/// Bytes that differ from chunk to chunk.
pub(crate) fn content(chunk: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i * 11 + chunk * 17 + i / 65_536) as u8).collect()
}

pub(crate) async fn read(
    mut client: ChunkClient<Channel>,
    chunk: u64,
    index: u32,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, Failure> {
    let (mut data, mut offset, mut left) = (Vec::new(), offset, length);
    loop {
        let length = left.min(MAX_FRAME_DATA as u64);
        let request = ReadRequest { cluster: CLUSTER.to_bytes(), chunk, index, offset, length };
        let answer = exchange(&mut client, Some(small_request::Op::Read(request))).await?;
        let small_reply::Result::Read(ReadFrame { data: part, block_crc32c }) = answer else {
            panic!("a read is answered with {answer:?}")
        };
        let crcs: Vec<_> = part.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect();
        assert_eq!(crcs, block_crc32c);
        data.extend_from_slice(&part);
        (offset, left) = (offset + length, left - length);
        if left == 0 {
            return Ok(data);
        }
    }
}

/// One request on a stream of its own.
pub(crate) async fn exchange(
    client: &mut ChunkClient<Channel>,
    op: Option<small_request::Op>,
) -> Result<small_reply::Result, Failure> {
    let request = SmallRequest { tag: 7, op };
    let mut answers = client.exchange(stream::iter([request])).await?.into_inner();
    let SmallReply { tag, result } = answers.message().await?.expect("each request is answered");
    assert_eq!(tag, 7);
    assert_eq!(answers.message().await?, None, "once");
    match result.expect("with something") {
        small_reply::Result::Error(error) => Err(error.into()),
        result => Ok(result),
    }
}
