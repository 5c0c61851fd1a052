//! The whole daemon: claim the disk → listen → serve reads of what is here → join → serve everything → until told to stop.
//!
//! A disk that knows its cluster serves reads before the metadata server has answered: clients that know where a chunk
//! is must not wait for it.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dfs_proto::{ClusterId, Code, Failure, NodeId};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::background::heartbeat::{Heartbeats, Introduction};
use crate::config::{Config, with_port};
use crate::local::LocalDoor;
use crate::meta_link::MetaLink;
use crate::node::{Member, Node};
use crate::server;
use crate::store::disk::Disk;
use crate::store::identity::ClaimedDisk;
use crate::store::{Buffers, Reserve, Room, Store};

/// How long requests under way may take to end when the daemon is told to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether the disk is still in use.
const RELEASE_POLL: Duration = Duration::from_millis(5);

/// A daemon that serves and is in its cluster.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its id in the cluster.
    pub node: NodeId,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    heartbeats: tokio::task::JoinHandle<()>,
    disk: Weak<dyn Disk>,
}

/// Starts a daemon; returns when it has joined and serves. While the metadata server is away, it waits, serving reads.
pub async fn start(config: &Config) -> Result<Running, Failure> {
    let root = config.data.clone();
    let buffers = Buffers::default();
    let claim = {
        let buffers = buffers.clone();
        move || {
            let claimed = ClaimedDisk::claim(&root)?;
            let disk: Arc<dyn Disk> = Arc::new(claimed.open(buffers)?);
            Ok((claimed, disk))
        }
    };
    let (claimed, disk) = blocking(claim).await?;
    let in_use = Arc::downgrade(&disk);
    let running = serve(config, claimed, disk, buffers).await;
    if running.is_err() {
        released(&in_use).await;
    }
    running
}

/// Everything behind the claim.
async fn serve(
    config: &Config,
    mut claimed: ClaimedDisk,
    disk: Arc<dyn Disk>,
    buffers: Buffers,
) -> Result<Running, Failure> {
    let listener = server::listen(config.listen).await.map_err(|error| {
        Failure::new(Code::Unavailable, format!("listen: cannot listen on {}: {error}", config.listen))
    })?;
    let address = local_address(&listener)?;
    let link = MetaLink::new(&config.meta)?;
    let introduction = Introduction {
        disk: claimed.disk(),
        address: advertised(config.advertise.as_deref(), address, &config.meta),
        labels: config.labels.clone(),
    };

    let node = Arc::new(Node::default());
    let enter = async |cluster: ClusterId, id: NodeId| {
        let (disk, reserve, buffers) = (disk.clone(), config.reserve, buffers.clone());
        let store = blocking(move || Store::start(disk, cluster, reserve, buffers)).await?;
        // Without it, clients on this machine read through the network, as all others do.
        let open = || LocalDoor::open(cluster, id, store.clone());
        let local = config.local_reads.then(open).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "no door to clients on this machine");
            None
        });
        node.become_member(Member { cluster, node: id, store });
        Ok::<_, Failure>(local)
    };
    let known = claimed.membership();
    let mut local = None;
    if let Some((cluster, id)) = known {
        local = enter(cluster, id).await?;
    }
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(server::serve(node.clone(), listener, async {
        // Told, or nobody is left to tell.
        let _ = stopped.await;
    }));
    tracing::info!(%address, advertised = introduction.address, "listening");

    let room = || match node.member() {
        Ok(member) => member.store.room(),
        Err(_) => empty_room(&*disk, config.reserve),
    };
    let joined = introduction.join(&link, known, room).await?;
    blocking(move || claimed.join(joined.cluster, joined.node)).await?;
    if known.is_none() {
        local = enter(joined.cluster, joined.node).await?;
    }
    joined.apply(&node);
    let member = node.member()?;
    let heartbeats = Heartbeats::new(link, introduction, node.clone(), joined, member);
    let heartbeats = tokio::spawn(async move {
        let _open = local;
        heartbeats.run().await;
    });
    tracing::info!(cluster = %joined.cluster, node = %joined.node, "joined");
    Ok(Running { address, node: joined.node, stop, server, heartbeats, disk: Arc::downgrade(&disk) })
}

impl Running {
    /// Lets requests under way end, within a bound, and stops; then the disk is free for the next one.
    pub async fn stop(self) {
        drop(self.stop);
        let mut server = self.server;
        match tokio::time::timeout(STOP_DEADLINE, &mut server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(%error, "the server ended with an error"),
            Ok(Err(error)) => tracing::error!(%error, "the server ended by a panic"),
            Err(_) => {
                server.abort();
                tracing::warn!("requests that took too long are broken off");
            }
        }
        self.heartbeats.abort();
        // It was aborted: its result says nothing.
        let _ = self.heartbeats.await;
        released(&self.disk).await;
    }

    /// Returns when it has ended without being told, and why.
    pub async fn ended(&mut self) -> Failure {
        let why = tokio::select! {
            server = &mut self.server => match server {
                Ok(Ok(())) => "the server ended".to_owned(),
                Ok(Err(error)) => format!("the server ended: {error}"),
                Err(error) => format!("the server ended: {error}"),
            },
            Err(error) = &mut self.heartbeats => format!("the heartbeats ended: {error}"),
        };
        Failure::new(Code::InputOutput, why)
    }
}

/// Waits, within a bound, until nobody uses the disk any more: a thread may just be at it.
async fn released(disk: &Weak<dyn Disk>) {
    let deadline = Instant::now() + STOP_DEADLINE;
    while disk.strong_count() > 0 {
        if Instant::now() > deadline {
            tracing::warn!("the disk is still in use");
            return;
        }
        tokio::time::sleep(RELEASE_POLL).await;
    }
}

/// Tells whoever started us that we are ready: a line on standard output, a file, systemd.
pub fn announce(running: &Running, ready_file: Option<&Path>) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "dfs-chunk: node {} listening on {}", running.node, running.address)?;
    out.flush()?;
    if let Some(path) = ready_file {
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, format!("{}\n", running.address))?;
        std::fs::rename(&temporary, path)?;
    }
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
}

/// The space of a disk without shards.
fn empty_room(disk: &dyn Disk, reserve: Reserve) -> Result<Room, Failure> {
    let space = disk.space().map_err(|error| {
        Failure::new(Code::InputOutput, format!("cannot ask the disk for its space: {error}"))
    })?;
    let available_bytes = space.free_bytes.saturating_sub(reserve.bytes(space.total_bytes));
    Ok(Room { capacity_bytes: available_bytes, available_bytes })
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| {
        Failure::new(Code::InputOutput, format!("cannot ask for the address that was bound: {error}"))
    })
}

/// What others are told: what the settings say, or where we listen; when that is everywhere, the address from which the
/// metadata server is reached.
fn advertised(setting: Option<&str>, listening: SocketAddr, meta: &[String]) -> String {
    if let Some(address) = setting {
        return with_port(address, listening.port());
    }
    if !listening.ip().is_unspecified() {
        return listening.to_string();
    }
    // Connecting a datagram socket sends nothing, but chooses the route.
    let route = |server: &String| {
        let socket = UdpSocket::bind((listening.ip(), 0)).ok()?;
        socket.connect(server).ok()?;
        socket.local_addr().ok()
    };
    match meta.iter().find_map(route) {
        Some(local) => SocketAddr::new(local.ip(), listening.port()).to_string(),
        None => {
            let name = nix::unistd::gethostname().unwrap_or_else(|_| "localhost".into());
            with_port(&name.to_string_lossy(), listening.port())
        }
    }
}

/// Runs what may wait for a disk or a name server.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(Code::InputOutput, format!("a thread ended: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_they_can_use() {
        let meta = ["127.0.0.1:7600".to_owned()];
        let listening = |text: &str| text.parse().unwrap();
        assert_eq!(advertised(None, listening("10.1.2.3:5"), &meta), "10.1.2.3:5");
        assert_eq!(advertised(Some("name"), listening("0.0.0.0:5"), &meta), "name:5");
        assert_eq!(advertised(Some("name:6"), listening("0.0.0.0:5"), &meta), "name:6");
        assert_eq!(advertised(None, listening("0.0.0.0:5"), &meta), "127.0.0.1:5");
    }
}
