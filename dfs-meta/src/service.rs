//! The server's door: gRPC in, the machine behind. A failed operation is a reply with an error; a gRPC status means
//! that a request did not reach the machine.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use dfs_proto::limits::{MAX_HTTP2_FRAME, MAX_MESSAGE, MAX_TAGGED, RPC_DEADLINE};
use dfs_proto::meta::meta_server::{Meta, MetaServer};
use dfs_proto::meta::{Event, Reply, Request, TaggedReply, TaggedRequest, WatchRequest, reply, request};
use dfs_proto::{Code, Epoch, Failure, SessionId};
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status, Streaming};

use crate::machine::Handle;
use crate::status::StatusBoard;

/// Requests of one connection, and of one stream of calls, at work at a time; more wait in the connection.
const STREAMS: u32 = 256;
/// What one stream and one connection may send ahead.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long requests at work may take to finish when the server stops.
const LINGER: std::time::Duration = std::time::Duration::from_secs(3);
/// A connection whose peer does not answer is closed after so long twice.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);

/// The gRPC service.
#[derive(Clone)]
pub struct Service {
    handle: Handle,
    status: Arc<StatusBoard>,
    /// Becomes true when the server stops: then streams of calls take no more.
    stopping: Arc<watch::Sender<bool>>,
}

impl Service {
    /// Answers from the machine and the status board.
    pub fn new(handle: Handle, status: Arc<StatusBoard>) -> Self {
        Self { handle, status, stopping: Arc::new(watch::Sender::new(false)) }
    }

    /// Serves `listener` until `stop` resolves; then refuses new requests, ends what sessions watch, and finishes the
    /// requests at work, for as long as [`LINGER`].
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let handle = self.handle.clone();
        let (stopping, mut stopped) = (self.stopping.clone(), self.stopping.subscribe());
        let stop = async move {
            stop.await;
            // A machine that has ended by itself has nobody to tell.
            let _ = handle.inspect(|live, _| live.sessions.end_watches()).await;
            stopping.send_replace(true);
        };
        let service = MetaServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        // Answers are small: held back to be joined with later ones, each would wait for a delayed acknowledgement.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let served = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_HTTP2_FRAME)
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop);
        let overdue = async {
            match stopped.wait_for(|stopping| *stopping).await.map(drop) {
                Ok(()) => tokio::time::sleep(LINGER).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            served = served => served,
            () = overdue => Ok(()),
        }
    }

    async fn answer(&self, request: Request) -> Result<Reply, Failure> {
        if let Some(request::Op::Status(_)) = request.op {
            let result = self.status.status().await.map(reply::Result::ClusterStatus);
            let result = result.unwrap_or_else(|failure| reply::Result::Error(failure.into()));
            let boot = self.handle.inspect(|live, _| live.sessions.boot()).await?;
            return Ok(Reply { boot, result: Some(result) });
        }
        self.handle.call(request).await
    }

    /// A request that waits longer than this was given up by its sender.
    async fn answer_in_time(&self, request: Request) -> Result<Reply, Failure> {
        let answer = tokio::time::timeout(RPC_DEADLINE, self.answer(request)).await;
        answer.unwrap_or_else(|_| {
            Err(Failure::new(Code::Unavailable, "the metadata server did not answer in time"))
        })
    }

    /// A request of a stream of calls.
    async fn answer_tagged(self, request: Result<TaggedRequest, Status>) -> Result<TaggedReply, Status> {
        let TaggedRequest { tag, request } = request?;
        let answer = self.answer_in_time(request.unwrap_or_default()).await;
        let (reply, error) = match answer.and_then(fitting) {
            Ok(reply) => (Some(reply), None),
            Err(failure) => (None, Some(failure.into())),
        };
        Ok(TaggedReply { tag, reply, error })
    }
}

/// A reply that is too long to be sent would end the whole stream.
fn fitting(reply: Reply) -> Result<Reply, Failure> {
    match reply.encoded_len() <= MAX_TAGGED {
        true => Ok(reply),
        false => Err(Failure::new(Code::TooBig, "the answer is longer than a message may be")),
    }
}

#[tonic::async_trait]
impl Meta for Service {
    async fn call(&self, request: tonic::Request<Request>) -> Result<Response<Reply>, Status> {
        Ok(Response::new(self.answer_in_time(request.into_inner()).await?))
    }

    type CallsStream = Pin<Box<dyn Stream<Item = Result<TaggedReply, Status>> + Send>>;

    async fn calls(
        &self,
        requests: tonic::Request<Streaming<TaggedRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let (service, mut stopping) = (self.clone(), self.stopping.subscribe());
        // What was taken before is still answered.
        let requests = requests
            .into_inner()
            .take_until(async move { stopping.wait_for(|stopping| *stopping).await.is_ok() });
        let answers = requests.map(move |request| service.clone().answer_tagged(request));
        Ok(Response::new(Box::pin(answers.buffer_unordered(STREAMS as usize))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(
        &self,
        request: tonic::Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { session, epoch } = request.into_inner();
        let watch = self
            .handle
            .inspect(move |live, uptime| {
                let events = live.sessions.watch(SessionId(session), Epoch(epoch));
                live.sessions.heard(SessionId(session), uptime);
                events
            })
            .await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(watch?).map(Ok))))
    }
}

/// Listens on `address`.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
