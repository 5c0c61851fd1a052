//! The gRPC server and what both ends of a connection agree on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::chunk::chunk_server::ChunkServer;
use dfs_proto::limits::{MAX_HTTP2_FRAME, MAX_MESSAGE};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::node::Node;
use crate::service::ChunkService;

/// What may be under way on one stream, and on one connection.
pub(crate) const STREAM_WINDOW: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 1024;
/// A silent connection is asked whether its other end lives, and closed when it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Listens. Port 0 lets the kernel choose.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop` is ready and the requests of then are answered.
pub(crate) async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (stop_taking, stopping) = watch::channel(false);
    let stop = async move {
        stop.await;
        stop_taking.send_replace(true);
    };
    let service = ChunkServer::new(ChunkService::new(node, stopping))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_HTTP2_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
}
