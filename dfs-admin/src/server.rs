//! A caller of the metadata server without a session: for administrators, who read, and change what needs no session.
//!
//! Every call has a deadline, and an address that does not answer is told with a sentence. Several addresses are tried
//! in order.

use std::time::Duration;

use dfs_proto::common::Code;
use dfs_proto::limits::{MAX_MESSAGE, RPC_DEADLINE};
use dfs_proto::meta::meta_client::MetaClient;
use dfs_proto::meta::{ClusterStatus, Reply, Request, StatFs, Status, reply, request};
use dfs_proto::{ClusterId, Failure};
use tonic::transport::{Channel, Endpoint};

/// How long an address may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// A connection to the metadata server.
#[derive(Clone, Debug)]
pub struct Server {
    client: MetaClient<Channel>,
    address: String,
}

impl Server {
    /// Connects to the first of `addresses` (host:port) that answers as a metadata server does.
    pub async fn connect(addresses: &[String]) -> Result<Self, Failure> {
        let mut reasons = Vec::new();
        for address in addresses {
            match Self::try_connect(address).await {
                Ok(server) => return Ok(server),
                Err(failure) if failure.code == Code::Invalid => return Err(failure),
                Err(failure) => reasons.push(format!("{address}: {failure}")),
            }
        }
        let message = format!("no metadata server answers ({})", reasons.join("; "));
        Err(Failure::new(Code::Unavailable, message))
    }

    async fn try_connect(address: &str) -> Result<Self, Failure> {
        let bad = || Failure::new(Code::Invalid, format!("{address:?} is not an address: write HOST:PORT"));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
        let endpoint = endpoint.connect_timeout(CONNECT_DEADLINE).timeout(RPC_DEADLINE);
        let unreachable = |error| Failure::new(Code::Unavailable, innermost(&error));
        let channel = endpoint.connect().await.map_err(unreachable)?;
        let client = MetaClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let server = Self { client, address: address.to_owned() };
        // Something else may listen on that port; a metadata server answers, whatever it says.
        server.exchange(request::Op::StatFs(StatFs {})).await?;
        Ok(server)
    }

    /// The address that answered.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One operation that needs no session: one that changes nothing, or nothing more when it is asked for again. An error in
    /// the reply is the failure returned.
    pub async fn call(&self, op: request::Op) -> Result<reply::Result, Failure> {
        match self.exchange(op).await? {
            reply::Result::Error(error) => Err(error.into()),
            result => Ok(result),
        }
    }

    async fn exchange(&self, op: request::Op) -> Result<reply::Result, Failure> {
        let request = Request { op: Some(op), ..Request::default() };
        let Reply { result, .. } = self.client.clone().call(request).await?.into_inner();
        result.ok_or_else(|| Failure::new(Code::VersionUnknown, "the metadata server's reply is empty"))
    }

    /// The state of the whole cluster.
    pub async fn status(&self) -> Result<ClusterStatus, Failure> {
        match self.call(request::Op::Status(Status {})).await? {
            reply::Result::ClusterStatus(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }
}

/// The failure for a reply of another kind than was asked for.
pub fn unexpected(result: &reply::Result) -> Failure {
    let kind = format!("{result:?}");
    let kind = kind.split('(').next().unwrap_or_default();
    Failure::new(
        Code::VersionUnknown,
        format!("the metadata server answered with {kind}, which was not asked for"),
    )
}

/// A cluster's id for people, or a note that the bytes are not one.
pub fn cluster_name(bytes: &[u8]) -> String {
    ClusterId::from_slice(bytes).map_or_else(|| "unknown".to_owned(), |cluster| cluster.to_string())
}

/// The root cause: tonic's own words are only "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_told_with_every_address_and_reason() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let failure = Server::connect(&[free.clone(), "127.0.0.1:1".into()]).await.unwrap_err();
        assert_eq!(failure.code, Code::Unavailable);
        assert!(failure.message.contains(&free) && failure.message.contains("refused"), "{failure}");
        let failure = Server::connect(&["not an address".into()]).await.unwrap_err();
        assert_eq!(failure.code, Code::Invalid, "{failure}");
    }
}
