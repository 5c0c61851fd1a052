//! The server's door: gRPC in, the machine behind. A failed operation is a reply with an error; a gRPC status means
//! that a request did not reach the machine.

use std::net::SocketAddr;
use std::sync::Arc;

use dfs_proto::limits::{MAX_HTTP2_FRAME, MAX_MESSAGE, RPC_DEADLINE};
use dfs_proto::meta::meta_server::{Meta, MetaServer};
use dfs_proto::meta::{Event, Reply, Request, WatchRequest, reply, request};
use dfs_proto::{Code, Epoch, Failure, SessionId};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status};

use crate::machine::Handle;
use crate::status::StatusBoard;

/// Requests of one connection at work at a time; more wait in the connection.
const STREAMS: u32 = 256;
/// What one stream and one connection may send ahead.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long requests at work may take to finish when the server stops.
const LINGER: std::time::Duration = std::time::Duration::from_secs(3);
/// A connection whose peer does not answer is closed after so long twice.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(10);

/// The gRPC service.
pub struct Service {
    handle: Handle,
    status: Arc<StatusBoard>,
}

impl Service {
    /// Answers from the machine and the status board.
    pub fn new(handle: Handle, status: Arc<StatusBoard>) -> Self {
        Self { handle, status }
    }

    /// Serves `listener` until `stop` resolves; then refuses new requests, ends what sessions watch, and finishes the
    /// requests at work, for as long as [`LINGER`].
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let handle = self.handle.clone();
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let stop = async move {
            stop.await;
            // A machine that has ended by itself has nobody to tell.
            let _ = handle.inspect(|live, _| live.sessions.end_watches()).await;
            // Nobody waits any more only when serving has failed.
            let _ = stopping.send(());
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
            match stopped.await {
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
}

#[tonic::async_trait]
impl Meta for Service {
    async fn call(&self, request: tonic::Request<Request>) -> Result<Response<Reply>, Status> {
        // A request that waits longer was given up by its sender.
        let answer = tokio::time::timeout(RPC_DEADLINE, self.answer(request.into_inner())).await;
        let late = || Failure::new(Code::Unavailable, "the metadata server did not answer in time");
        Ok(Response::new(answer.unwrap_or_else(|_| Err(late()))?))
    }

    type WatchStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Event, Status>> + Send>>;

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
        let events = tokio_stream::StreamExt::map(ReceiverStream::new(watch?), Ok);
        Ok(Response::new(Box::pin(events)))
    }
}

/// Listens on `address`.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
