//! The data plane over a cluster in memory: against a model, with nodes and servers that fail.

mod coded;
mod encoded;
mod failures;
mod model;
mod reading;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use super::{DataPlane, DataSettings, InodeData, WriteAt};
use crate::testing::{CLUSTER, FakeMeta, FakeNode, cluster};

const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;

/// A cluster and one client of it.
struct Bench {
    meta: Arc<FakeMeta>,
    nodes: Vec<Arc<FakeNode>>,
    plane: Arc<DataPlane>,
}

impl Bench {
    async fn new(nodes: u64) -> Self {
        Self::with(nodes, DataSettings::default()).await
    }

    async fn with(nodes: u64, settings: DataSettings) -> Self {
        let (meta, nodes) = cluster(nodes);
        let plane = DataPlane::new(Arc::clone(&meta) as _, CLUSTER, meta.keys(), settings);
        Self { meta, nodes, plane }
    }

    /// A fresh file, open on this client.
    fn create(&self, ino: u64) -> Arc<InodeData> {
        self.create_as(ino, "replicated:3")
    }

    /// The same, of a class.
    fn create_as(&self, ino: u64, class: &str) -> Arc<InodeData> {
        self.plane.open(&self.meta.create(ino, class), None)
    }

    /// Another client of the same cluster, which has nothing cached.
    fn another(&self) -> Arc<DataPlane> {
        DataPlane::new(Arc::clone(&self.meta) as _, CLUSTER, self.meta.keys(), DataSettings::default())
    }

    /// The file as a client sees it that has nothing cached.
    async fn read_elsewhere(&self, ino: u64) -> Vec<u8> {
        read_all(&self.another().open(&self.meta.attr(ino), None)).await
    }
}

/// The whole file, read in pieces.
async fn read_all(file: &Arc<InodeData>) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let piece = file.read(bytes.len() as u64, 300_000).await.expect("a read");
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&piece);
    }
}

/// Bytes that differ everywhere and between salts.
fn pattern(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(salt * 97) >> 7) as u8).collect()
}

async fn write(file: &InodeData, offset: usize, data: &[u8]) {
    let at = file.write(WriteAt::Offset(offset as u64), data, false).await.expect("a write");
    assert_eq!(at, offset as u64);
}

/// Waits until `done`, for some seconds at most.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}
