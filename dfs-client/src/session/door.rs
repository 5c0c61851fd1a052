//! One attempt at one call: channels to the metadata servers' addresses, of which one is in use at a time.
//!
//! Guarantees a deadline for every call, and tells the caller what a failed attempt means: answered, never sent, or in
//! doubt. Never retries by itself.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dfs_proto::limits::{DEFAULT_META_PORT, MAX_HTTP2_FRAME, MAX_MESSAGE, MAX_TAGGED, RPC_DEADLINE};
use dfs_proto::meta::meta_client::MetaClient;
use dfs_proto::meta::{Event, Reply, Request, TaggedReply, TaggedRequest, WatchRequest, reply};
use dfs_proto::{Code, Failure};
use prost::Message;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::line::{Line, Lost, Tagged};

/// How long a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that does not answer a ping for so long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Flow-control windows: metadata replies are small, but many are in flight.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Why an attempt brought no answer.
#[derive(Debug)]
pub(super) enum Missed {
    /// The request never left this machine.
    NotSent(Failure),
    /// It may or may not have been carried out.
    InDoubt(Failure),
    /// The server refused it for good: asking again cannot help.
    Refused(Failure),
}

impl Missed {
    pub(super) fn failure(&self) -> &Failure {
        match self {
            Self::NotSent(failure) | Self::InDoubt(failure) | Self::Refused(failure) => failure,
        }
    }
}

/// The way to the metadata server.
pub(super) struct Door {
    servers: Vec<Server>,
    current: AtomicUsize,
}

/// One address.
struct Server {
    name: String,
    client: MetaClient<Channel>,
    line: Line<TaggedRequest, TaggedReply>,
}

impl Tagged for TaggedRequest {
    fn tag(&mut self) -> &mut u64 {
        &mut self.tag
    }
}

impl Tagged for TaggedReply {
    fn tag(&mut self) -> &mut u64 {
        &mut self.tag
    }
}

impl Server {
    fn new(meta: &str) -> Result<Self, Failure> {
        Ok(Self { name: meta.to_owned(), client: client(meta)?, line: Line::new() })
    }

    async fn call(&self, request: Request) -> Result<Reply, Missed> {
        // It would end the whole stream.
        if request.encoded_len() > MAX_TAGGED {
            let message = "a request is longer than a message may be";
            return Err(Missed::Refused(Failure::new(Code::TooBig, message)));
        }
        let tagged = TaggedRequest { tag: 0, request: Some(request) };
        let mut client = self.client.clone();
        match self.line.call(tagged, async move |calls| client.calls(calls).await).await {
            Ok(TaggedReply { reply: Some(reply), .. }) => Ok(reply),
            Ok(TaggedReply { error, .. }) => {
                Err(classify(error.map_or_else(|| Code::VersionUnknown.into(), Failure::from).into()))
            }
            Err(Lost::NotSent(status)) => Err(match classify(status) {
                Missed::InDoubt(failure) => Missed::NotSent(failure),
                missed => missed,
            }),
            Err(Lost::UnderWay(status)) => Err(match classify(status) {
                Missed::NotSent(failure) | Missed::InDoubt(failure) | Missed::Refused(failure) => {
                    Missed::InDoubt(Failure::new(Code::Unavailable, failure.message))
                }
            }),
        }
    }
}

impl Door {
    /// Prepares connections; none is made yet. EINVAL for an address that is none.
    pub(super) fn new(metas: &[String]) -> Result<Self, Failure> {
        if metas.is_empty() {
            return Err(Failure::new(Code::Invalid, "no address of a metadata server is given"));
        }
        let servers = metas.iter().map(|meta| Server::new(meta)).collect::<Result<_, Failure>>()?;
        Ok(Self { servers, current: AtomicUsize::new(0) })
    }

    /// All addresses, for messages.
    pub(super) fn names(&self) -> String {
        self.servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// One attempt, at most `RPC_DEADLINE` long. After one that brought no answer the next address has its turn.
    pub(super) async fn call(&self, request: Request) -> Result<Reply, Missed> {
        self.call_within(request, RPC_DEADLINE).await
    }

    /// As [`Self::call`], with a shorter deadline.
    pub(super) async fn call_within(&self, request: Request, deadline: Duration) -> Result<Reply, Missed> {
        let index = self.current.load(Ordering::Relaxed);
        let call = self.servers[index].call(request);
        let missed = match tokio::time::timeout(deadline.min(RPC_DEADLINE), call).await {
            Ok(Ok(reply)) => {
                if is_foreign(&reply) {
                    // Perhaps only one of the addresses is wrong.
                    self.turn_from(index);
                }
                return Ok(reply);
            }
            Ok(Err(missed)) => missed,
            Err(_) => {
                Missed::InDoubt(Failure::new(Code::Unavailable, "no answer within the deadline of a call"))
            }
        };
        if !matches!(missed, Missed::Refused(_)) {
            self.turn_from(index);
        }
        Err(missed)
    }

    /// Opens the stream of events. It has no deadline of its own: pings find out when its peer is gone.
    pub(super) async fn watch(&self, request: WatchRequest) -> Result<Streaming<Event>, Failure> {
        let index = self.current.load(Ordering::Relaxed);
        let mut client = self.servers[index].client.clone();
        match tokio::time::timeout(RPC_DEADLINE, client.watch(request)).await {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Failure::new(Code::Unavailable, "no answer within the deadline of a call")),
        }
    }

    fn turn_from(&self, index: usize) {
        let next = (index + 1) % self.servers.len();
        // Lost races are fine: somebody else turned already.
        let _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Whether the answer comes from a server of another cluster.
pub(super) fn is_foreign(reply: &Reply) -> bool {
    matches!(&reply.result, Some(reply::Result::Error(error)) if error.code() == Code::WrongCluster)
}

fn client(meta: &str) -> Result<MetaClient<Channel>, Failure> {
    let bad = |why: &dyn std::fmt::Display| {
        Failure::new(
            Code::Invalid,
            format!("{meta:?} is not an address of a metadata server (host:port): {why}"),
        )
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", with_port(meta)))
        .map_err(|e| bad(&e))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEP_ALIVE))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_HTTP2_FRAME);
    let uri = endpoint.uri();
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none() || uri.path() != "/" {
        return Err(bad(&"there is no host, no port that can be one, or more than these"));
    }
    Ok(MetaClient::new(endpoint.connect_lazy())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE))
}

/// Adds the default port where none is written; a bare IPv6 address gets its brackets.
fn with_port(meta: &str) -> String {
    if meta.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{meta}]:{DEFAULT_META_PORT}");
    }
    let host_end = meta.rfind(']').map_or(0, |at| at + 1);
    if meta[host_end..].contains(':') { meta.to_owned() } else { format!("{meta}:{DEFAULT_META_PORT}") }
}

fn classify(status: tonic::Status) -> Missed {
    let refused = matches!(
        status.code(),
        tonic::Code::InvalidArgument
            | tonic::Code::OutOfRange
            | tonic::Code::FailedPrecondition
            | tonic::Code::Unimplemented
            | tonic::Code::PermissionDenied
            | tonic::Code::Unauthenticated
    );
    let not_sent = came_from_connecting(&status);
    let message = match status.source() {
        Some(source) => format!("{}: {}", status.message(), root_of(source)),
        None => status.message().to_owned(),
    };
    if refused {
        Missed::Refused(status.into())
    } else if not_sent {
        Missed::NotSent(Failure::new(Code::Unavailable, message))
    } else {
        Missed::InDoubt(Failure::new(Code::Unavailable, message))
    }
}

fn came_from_connecting(status: &tonic::Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn root_of<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_default_port() {
        assert_eq!(with_port("meta1"), "meta1:7600");
        assert_eq!(with_port("meta1:99"), "meta1:99");
        assert_eq!(with_port("::1"), "[::1]:7600");
        assert_eq!(with_port("[::1]"), "[::1]:7600");
        assert_eq!(with_port("[::1]:99"), "[::1]:99");
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_by_its_name() {
        for bad in ["", "a b", "host:99999", "host:1/path", ":7600"] {
            let Err(failure) = Door::new(&[bad.to_owned()]) else {
                panic!("{bad:?} was taken for an address")
            };
            assert_eq!(failure.code, Code::Invalid);
            assert!(failure.message.contains(&format!("{bad:?}")), "{}", failure.message);
        }
        assert!(Door::new(&[]).is_err());
    }

    #[tokio::test]
    async fn a_closed_port_is_told_apart_from_a_lost_answer_and_the_next_address_has_its_turn() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let door = Door::new(&[address, "127.0.0.1:1".into()]).unwrap();
        assert!(matches!(door.call(Request::default()).await, Err(Missed::NotSent(_))));
        assert_eq!(door.current.load(Ordering::Relaxed), 1);
    }
}
