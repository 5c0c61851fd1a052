//! Calls to the metadata server, of which there may be several addresses: the one that answered last is asked first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dfs_proto::limits::{MAX_MESSAGE, RPC_DEADLINE};
use dfs_proto::meta::meta_client::MetaClient;
use dfs_proto::meta::reply::Result as Answer;
use dfs_proto::meta::request::Op;
use dfs_proto::meta::{Reply, Request};
use dfs_proto::{ClusterId, Code, Failure};
use tonic::transport::{Channel, Endpoint};

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const PING_AFTER: Duration = Duration::from_secs(5);

/// The metadata server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MetaLink {
    servers: Arc<[(String, MetaClient<Channel>)]>,
    /// Which one to ask first.
    preferred: Arc<AtomicUsize>,
}

impl MetaLink {
    /// Connects at the first call. INVALID for a malformed address, or when there is none.
    pub(crate) fn new(addresses: &[String]) -> Result<Self, Failure> {
        let client = |address: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))
                .map_err(|_| Failure::new(Code::Invalid, format!("{address:?} is not HOST:PORT")))?
                .connect_timeout(CONNECT_DEADLINE)
                .timeout(RPC_DEADLINE)
                .http2_keep_alive_interval(PING_AFTER)
                .tcp_nodelay(true);
            let client = MetaClient::new(endpoint.connect_lazy())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            Ok((address.clone(), client))
        };
        let servers: Vec<_> = addresses.iter().map(client).collect::<Result<_, Failure>>()?;
        if servers.is_empty() {
            return Err(Failure::new(Code::Invalid, "no address of the metadata server is given"));
        }
        Ok(Self { servers: servers.into(), preferred: Arc::default() })
    }

    /// One operation that changes no session's state, with the boot number of the server that answered. Goes on to the
    /// next address while one can't be reached.
    pub(crate) async fn call(&self, cluster: Option<ClusterId>, op: Op) -> Result<(u64, Answer), Failure> {
        let cluster = cluster.map(ClusterId::to_bytes).unwrap_or_default();
        let request = Request { session: 0, epoch: 0, slot: 0, number: 0, cluster, op: Some(op) };
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.servers.len() {
            let which = (first + turn) % self.servers.len();
            let (address, client) = &self.servers[which];
            let answer = tokio::time::timeout(RPC_DEADLINE, client.clone().call(request.clone())).await;
            let failure = match answer {
                Ok(Ok(reply)) => {
                    self.preferred.store(which, Ordering::Relaxed);
                    return unpack(reply.into_inner());
                }
                Ok(Err(status)) => Failure::from(status),
                Err(_) => Failure::new(Code::Unavailable, "no answer within the deadline"),
            };
            let message = format!("the metadata server at {address}: {}", failure.message);
            last = Some(Failure { message, ..failure });
        }
        Err(last.expect("there is an address"))
    }
}

fn unpack(reply: Reply) -> Result<(u64, Answer), Failure> {
    match reply.result {
        Some(Answer::Error(error)) => Err(error.into()),
        Some(answer) => Ok((reply.boot, answer)),
        None => Err(Failure::new(Code::VersionUnknown, "the metadata server's answer is empty or unknown")),
    }
}
