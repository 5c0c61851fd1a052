//! Shards over the wire: chains, what happens when a node of one is dead or hangs, and bad input.

use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::chunk::{
    PingRequest, PutFrame, PutHeader, ReadRequest, SmallRequest, small_reply, small_request,
};
use dfs_proto::limits::{BLOCK_SIZE, MAX_CHUNK_LENGTH, MAX_FRAME_DATA};
use dfs_proto::{Code, Failure};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Daemon, codes, connect, content, exchange, frames, header, next, read};
use crate::meta::{CLUSTER, FakeMeta};

/// "A dead next node must be reported within about three seconds", and some for a busy machine.
const DEAD_NODE: Duration = Duration::from_secs(6);

async fn three() -> (FakeMeta, [Daemon; 3]) {
    let meta = FakeMeta::start().await;
    let daemons = [Daemon::start(&meta).await, Daemon::start(&meta).await, Daemon::start(&meta).await];
    (meta, daemons)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_stores_the_shard_on_every_node() {
    let (_meta, [a, b, c]) = three().await;
    for (chunk, length) in
        [(1, 1), (2, 5000), (3, BLOCK_SIZE + 1), (4, 5_000_001), (5, MAX_CHUNK_LENGTH as usize)]
    {
        let data = content(chunk, length);
        let results = a.put(chunk, &data, vec![b.as_next(1), c.as_next(2)]).await.unwrap();
        assert_eq!(results, [None, None, None], "{length} bytes");
        for (index, daemon) in (0..).zip([&a, &b, &c]) {
            assert!(daemon.get(chunk, index, 0, length as u64).await.unwrap() == data);
        }
    }
    let ping = a.client.clone().ping(PingRequest { cluster: CLUSTER.to_bytes() }).await.unwrap().into_inner();
    assert_eq!((ping.node, ping.shards), (a.running.node.0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_shard_are_read() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    let length = 40 * BLOCK_SIZE + 123;
    let data = content(1, length);
    a.put(1, &data, vec![]).await.unwrap();
    let block = BLOCK_SIZE as u64;
    for (offset, read_length) in
        [(0, block), (3 * block, 20 * block), (40 * block, 123), (39 * block, 2 * block)]
    {
        let end = (offset + read_length).min(length as u64);
        let got = a.get(1, 0, offset, read_length).await.unwrap();
        assert!(got == data[offset as usize..end as usize], "{read_length} bytes at {offset}");
    }
    let code =
        async |chunk, index, offset, length| a.get(chunk, index, offset, length).await.unwrap_err().code;
    assert_eq!(code(2, 0, 0, block).await, Code::NotFound);
    assert_eq!(code(1, 1, 0, block).await, Code::NotFound);
    assert_eq!(code(1, 0, 1, block).await, Code::Invalid);
    assert_eq!(code(1, 0, 41 * block, block).await, Code::Invalid);
    assert_eq!(code(1, 0, 0, 100 * block).await, Code::Invalid, "never fewer bytes than asked for");
    assert_eq!(code(1, 0, 0, u64::MAX).await, Code::Invalid);
    assert_eq!(code(1, 0, 0, 0).await, Code::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_fails_alone() {
    let (_meta, [a, b, c]) = three().await;
    let data = content(1, 3_000_000);
    let (dead, dead_id) = (c.running.address, c.running.node.0);
    c.running.stop().await;

    let started = Instant::now();
    let results = a.put(1, &data, vec![b.as_next(1), next(dead_id, dead, 2)]).await.unwrap();
    assert_eq!(results, [None, None, Some(Code::Unavailable)]);
    // In the middle, it takes those behind it along: the writer sees to them.
    let results = a.put(2, &data, vec![next(dead_id, dead, 2), b.as_next(1)]).await.unwrap();
    assert_eq!(results, [None, Some(Code::Unavailable), Some(Code::Unavailable)]);
    assert!(started.elapsed() < DEAD_NODE, "{:?}", started.elapsed());
    assert!(a.get(2, 0, 0, data.len() as u64).await.unwrap() == data);
    assert_eq!(b.get(2, 1, 0, data.len() as u64).await.unwrap_err().code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_is_given_up() {
    let (_meta, [a, b, _c]) = three().await;
    // Takes connections and never says a word, as a stopped process does.
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap();
    let data = content(1, 40 << 20);
    for chunk in [1, 2] {
        let started = Instant::now();
        let results = a.put(chunk, &data, vec![b.as_next(1), next(9, address, 2)]).await.unwrap();
        assert_eq!(results, [None, None, Some(Code::Unavailable)]);
        assert!(started.elapsed() < DEAD_NODE, "{:?}", started.elapsed());
    }
    // Nobody there at all, and no answer that says so.
    let started = Instant::now();
    let results = a.put(3, &data, vec![next(9, "192.0.2.1:9", 1)]).await.unwrap();
    assert_eq!(results, [None, Some(Code::Unavailable)]);
    assert!(started.elapsed() < DEAD_NODE, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_somebody_elses_is_found_out() {
    let (_meta, [a, b, c]) = three().await;
    // b's address under c's name.
    let wrong = next(c.running.node.0, b.running.address, 1);
    let results = a.put(1, b"data", vec![wrong]).await.unwrap();
    assert_eq!(results, [None, Some(Code::NodeRefused)]);
    let malformed = next(c.running.node.0, "not an address", 1);
    assert_eq!(a.put(2, b"data", vec![malformed]).await.unwrap_err().code, Code::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_in_all_directions_at_once_end() {
    let (_meta, daemons) = three().await;
    let daemons = std::sync::Arc::new(daemons);
    let puts: Vec<_> = (0..24)
        .map(|i: usize| {
            let daemons = daemons.clone();
            tokio::spawn(async move {
                let [a, b, c] = [0, 1, 2].map(|step| &daemons[(i + step * (1 + i % 2)) % 3]);
                let data = content(i as u64, 8 << 20);
                a.put(1 + i as u64, &data, vec![b.as_next(1), c.as_next(2)]).await.unwrap()
            })
        })
        .collect();
    for put in puts {
        assert_eq!(put.await.unwrap(), [None, None, None]);
    }
}

/// Sends frames as they are and returns what the first node says.
async fn send(daemon: &Daemon, frames: Vec<PutFrame>) -> Result<Vec<Option<Code>>, Failure> {
    let reply = daemon.client.clone().put(tokio_stream::iter(frames)).await?;
    Ok(codes(&reply.into_inner()))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_puts_are_refused_and_leave_nothing() {
    let (_meta, [a, b, _c]) = three().await;
    let data = content(1, 2_500_000);
    let good = || frames(header(1, data.len(), vec![b.as_next(1)]), &data);
    let code = async |frames| send(&a, frames).await.unwrap_err().code;

    let with_header = |header: PutHeader| {
        let mut frames = good();
        frames[0].header = Some(header);
        frames
    };
    let other = header(1, data.len(), vec![]);
    let cluster = Bytes::from_static(&[1; 16]);
    assert_eq!(code(with_header(PutHeader { cluster, ..other.clone() })).await, Code::WrongCluster);
    assert_eq!(code(with_header(PutHeader { length: u64::MAX, ..other.clone() })).await, Code::Invalid);
    assert_eq!(code(with_header(PutHeader { length: 0, ..other.clone() })).await, Code::Invalid);
    assert_eq!(code(with_header(PutHeader { index: 3, ..other.clone() })).await, Code::Invalid);
    assert_eq!(
        code(with_header(PutHeader { redundancy: "raid5".into(), ..other.clone() })).await,
        Code::Invalid
    );
    assert_eq!(code(with_header(PutHeader { length: 1_000_000, ..other.clone() })).await, Code::Invalid);
    assert_eq!(code(vec![]).await, Code::Invalid);

    let damaged = |change: fn(&mut Vec<PutFrame>)| {
        let mut frames = good();
        change(&mut frames);
        frames
    };
    assert_eq!(code(damaged(|frames| frames[0].header = None)).await, Code::Invalid);
    assert_eq!(code(damaged(|frames| frames[1].header = Some(header(2, 10, vec![])))).await, Code::Invalid);
    assert_eq!(code(damaged(|frames| frames.truncate(2))).await, Code::Invalid, "too short");
    assert_eq!(code(damaged(|frames| frames[2].block_crc32c[1] ^= 1)).await, Code::Corrupt);
    assert_eq!(code(damaged(|frames| frames[1].block_crc32c.truncate(3))).await, Code::Invalid);
    assert_eq!(code(damaged(|frames| drop(frames.remove(1)))).await, Code::Invalid);
    assert_eq!(
        code(damaged(|frames| {
            // Blocks that are whole, in a frame that is too large.
            frames[0].data = vec![0; MAX_FRAME_DATA + BLOCK_SIZE].into();
        }))
        .await,
        Code::Invalid
    );
    for (daemon, index) in [(&a, 0), (&b, 1)] {
        assert_eq!(daemon.get(1, index, 0, data.len() as u64).await.unwrap_err().code, Code::NotFound);
        let temporary = daemon.directory.path().join("tmp");
        let left = || std::fs::read_dir(&temporary).unwrap().count();
        for _ in 0..200 {
            if left() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert_eq!(left(), 0, "temporary files are removed");
    }
    assert_eq!(send(&a, good()).await.unwrap(), [None, None], "and the next one is served");
    let mut header_first = good();
    let header = header_first[0].header.take();
    header_first.insert(0, PutFrame { header, ..PutFrame::default() });
    assert_eq!(send(&a, header_first).await.unwrap(), [None, None], "a header may come alone");

    let wrong = PingRequest { cluster: Bytes::from_static(&[1; 16]) };
    let refused = Failure::from(a.client.clone().ping(wrong).await.unwrap_err());
    assert_eq!(refused.code, Code::WrongCluster);
    let wrong = ReadRequest { cluster: Bytes::new(), chunk: 1, index: 0, offset: 0, length: 65_536 };
    let refused = exchange(&mut a.client.clone(), Some(small_request::Op::Read(wrong))).await.unwrap_err();
    assert_eq!(refused.code, Code::WrongCluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_goes_away_leaves_nothing() {
    let (_meta, [a, b, _c]) = three().await;
    let data = content(1, 8 << 20);
    let (sender, stream) = mpsc::channel(1);
    let mut client = connect(a.running.address);
    let put = tokio::spawn(async move { client.put(ReceiverStream::new(stream)).await.map(|_| ()) });
    for frame in frames(header(1, data.len(), vec![b.as_next(1)]), &data).into_iter().take(5) {
        sender.send(frame).await.unwrap();
    }
    let written = |daemon: &Daemon| std::fs::read_dir(daemon.directory.path().join("tmp")).unwrap().count();
    while written(&a) == 0 || written(&b) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    put.abort();
    drop(sender);
    for _ in 0..500 {
        if written(&a) + written(&b) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!((written(&a), written(&b)), (0, 0));
    assert_eq!(read(a.client.clone(), 1, 0, 0, 65_536).await.unwrap_err().code, Code::NotFound);
    assert_eq!(a.put(1, &data, vec![b.as_next(1)]).await.unwrap(), [None, None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_one_stream_are_answered_each_by_itself() {
    let (_meta, [a, b, _c]) = three().await;
    let put = |chunk: u64, forward| {
        let data = content(chunk, 5000);
        small_request::Op::Put(frames(header(chunk, data.len(), forward), &data).remove(0))
    };
    let read = |chunk, length| {
        let cluster = CLUSTER.to_bytes();
        small_request::Op::Read(ReadRequest { cluster, chunk, index: 0, offset: 0, length })
    };
    let mut short = content(9, 5000);
    short.truncate(100);
    let short = small_request::Op::Put(frames(header(9, 5000, Vec::new()), &short).remove(0));
    let ops = [
        Some(put(1, Vec::new())),
        Some(put(2, vec![b.as_next(1)])),
        Some(short),
        Some(read(77, 65_536)),
        Some(read(77, (1 << 20) + 65_536)),
        None,
        Some(put(3, Vec::new())),
    ];
    let requests = ops.into_iter().zip(1..).map(|(op, tag)| SmallRequest { tag, op });
    let mut client = a.client.clone();
    let answers = client.exchange(stream::iter(requests.collect::<Vec<_>>())).await.unwrap().into_inner();
    let answers: std::collections::BTreeMap<_, _> = answers
        .map(|answer| answer.map(|answer| (answer.tag, answer.result.unwrap())).unwrap())
        .collect()
        .await;
    let outcome = |tag: u64| match answers[&tag].clone() {
        small_reply::Result::Put(reply) => Ok(codes(&reply)),
        small_reply::Result::Error(error) => Err(Failure::from(error).code),
        small_reply::Result::Read(_) => panic!("nothing of that was written"),
    };
    assert_eq!(outcome(1), Ok(vec![None]));
    assert_eq!(outcome(2), Err(Code::Invalid), "who forwards streams");
    assert_eq!(outcome(3), Err(Code::Invalid), "less than its header says");
    assert_eq!(outcome(4), Err(Code::NotFound));
    assert_eq!(outcome(5), Err(Code::Invalid), "more than a frame");
    assert_eq!(outcome(6), Err(Code::VersionUnknown));
    assert_eq!(outcome(7), Ok(vec![None]), "bad requests spoil nothing for others");
    assert_eq!(a.get(3, 0, 0, 65_536).await.unwrap(), content(3, 5000));
}
