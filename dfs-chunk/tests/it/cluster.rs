//! Joining, heartbeats, orders, inventories, and what happens while the metadata server is away.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use dfs_chunk::daemon;
use dfs_proto::limits::MAX_INVENTORY_PAGE;
use dfs_proto::{ClusterId, Code};

use crate::client::{Daemon, config, connect, content, read};
use crate::meta::FakeMeta;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_its_id_and_tells_what_it_is() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    let b = Daemon::start(&meta).await;
    let ids = (a.running.node, b.running.node);
    assert_ne!(ids.0, ids.1);
    {
        let state = meta.state();
        let join = &state.joins[0];
        assert_eq!(join.address, a.running.address.to_string());
        assert_eq!((join.node, join.disk.len()), (0, 16));
        assert_eq!(join.labels.as_ref().unwrap().rack, "r");
        assert!(join.available_bytes > 0 && join.capacity_bytes >= join.available_bytes);
    }
    a.put(1, &content(1, 100_000), vec![]).await.unwrap();
    let a = a.restart(&meta).await;
    assert_eq!(a.running.node, ids.0);
    assert_eq!(meta.state().joins.last().unwrap().node, ids.0.0);
    let heartbeat = meta.next_heartbeat().await;
    assert!(!heartbeat.read_only && heartbeat.capacity_bytes > 0);
    meta.until("its shard is counted", |state| {
        state.heartbeats.iter().any(|heartbeat| heartbeat.node == ids.0.0 && heartbeat.shards == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_to_delete_are_carried_out_and_confirmed() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    for chunk in 1..=3 {
        a.put(chunk, &content(chunk, 200_000), vec![]).await.unwrap();
    }
    // More than one heartbeat takes, most of them not here.
    meta.state().delete = (2..3000).collect();
    meta.until("all is confirmed", |state| state.delete.is_empty()).await;
    assert!(a.get(1, 0, 0, 200_000).await.is_ok());
    for chunk in [2, 3] {
        assert_eq!(a.get(chunk, 0, 0, 200_000).await.unwrap_err().code, Code::NotFound);
    }
    assert_eq!(meta.next_heartbeat().await.shards, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inventory_covers_every_chunk_id() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    // More shards than a page takes.
    let count = MAX_INVENTORY_PAGE as u64 + 300;
    let puts = (0..8).map(|part| {
        let a = &a;
        async move {
            for chunk in (1..=count).filter(|chunk| chunk % 8 == part) {
                assert_eq!(a.put(chunk * 3, &content(chunk, 10), vec![]).await.unwrap(), [None]);
            }
        }
    });
    futures::future::join_all(puts).await;
    meta.state().want_inventory = true;
    meta.until("the last page", |state| state.pages.iter().any(|page| page.last == u64::MAX)).await;
    let state = meta.state();
    assert!(state.pages.len() >= 2);
    assert_eq!(state.pages[0].first, 0);
    for two in state.pages.windows(2) {
        assert_eq!(two[0].last + 1, two[1].first, "no gap between pages");
    }
    for page in &state.pages {
        assert!(page.shards.len() <= MAX_INVENTORY_PAGE);
        assert!(page.shards.iter().all(|shard| (page.first..=page.last).contains(&shard.chunk)));
        assert!(page.shards.iter().all(|shard| shard.length == 10 && shard.age_ms < 600_000));
    }
    let chunks: Vec<_> = state.pages.iter().flat_map(|page| &page.shards).map(|shard| shard.chunk).collect();
    assert_eq!(chunks, (1..=count).map(|chunk| chunk * 3).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_node_and_a_server_that_starts_afresh_bring_a_new_join() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    meta.state().refuse = true;
    meta.until("a second join", |state| state.joins.len() == 2).await;
    meta.state().boot = 2;
    meta.until("a third join", |state| state.joins.len() == 3).await;
    meta.next_heartbeat().await;
    assert_eq!(meta.state().joins.len(), 3, "and no more");
    assert_eq!(a.put(1, b"data", vec![]).await.unwrap(), [None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_metadata_server_reads_are_served_and_writes_are_not() {
    let mut meta = FakeMeta::start().await;
    meta.state().timeout = Duration::from_millis(1500);
    let a = Daemon::start(&meta).await;
    let data = content(1, 300_000);
    assert_eq!(a.put(1, &data, vec![]).await.unwrap(), [None]);
    meta.go_away();
    assert_eq!(a.put(2, &data, vec![]).await.unwrap(), [None], "not for a moment's absence");
    tokio::time::sleep(Duration::from_millis(1700)).await;
    assert_eq!(a.put(3, &data, vec![]).await.unwrap(), [Some(Code::Unavailable)]);
    assert!(a.get(1, 0, 0, 300_000).await.unwrap() == data);
    meta.go_on().await;
    meta.next_heartbeat().await;
    assert_eq!(a.put(3, &data, vec![]).await.unwrap(), [None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_knows_its_cluster_serves_reads_before_the_server_is_back() {
    let mut meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    let data = content(1, 300_000);
    a.put(1, &data, vec![]).await.unwrap();
    let Daemon { running, directory, .. } = a;
    running.stop().await;
    meta.go_away();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config(&meta, directory.path());
    config.listen = port;
    let starting = tokio::spawn(async move { daemon::start(&config).await });
    let mut tries = 0;
    let got = loop {
        match read(connect(port), 1, 0, 0, 300_000).await {
            Ok(got) => break got,
            Err(failure) => assert!(tries < 500, "{failure}"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(got == data && !starting.is_finished());
    meta.go_on().await;
    let running = starting.await.unwrap().unwrap();
    assert_eq!(meta.state().joins.len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_another_cluster_is_refused() {
    let meta = FakeMeta::start().await;
    let Daemon { running, directory, .. } = Daemon::start(&meta).await;
    running.stop().await;
    let other = FakeMeta::start().await;
    other.state().cluster = ClusterId([9; 16]);
    let forgetful = FakeMeta::start().await;
    let mut directory = Some(directory);
    // Several times: whoever is refused leaves no thread behind that is still at the disk.
    for _ in 0..5 {
        let disk = directory.take().expect("given back below");
        let refused = daemon::start(&config(&other, disk.path())).await.err().unwrap();
        assert_eq!(refused.code, Code::WrongCluster);
        // Its own cluster, whose metadata has forgotten it.
        let refused = daemon::start(&config(&forgetful, disk.path())).await.err().unwrap();
        assert_eq!(refused.code, Code::NodeRefused);
        // As it was, it is welcome at home.
        let Daemon { running, directory: disk, .. } = Daemon::start_on(&meta, disk).await;
        running.stop().await;
        directory = Some(disk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_at_the_next_heartbeat_and_a_disk_has_one_daemon() {
    let meta = FakeMeta::start().await;
    let a = Daemon::start(&meta).await;
    a.put(7, &content(7, 200_000), vec![]).await.unwrap();
    let path = a.directory.path().join("shards/00/0000000000000007.0");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 8], 5000).unwrap();
    assert_eq!(a.get(7, 0, 0, 200_000).await.unwrap_err().code, Code::Corrupt);
    meta.until("the damage is told", |state| {
        state.heartbeats.iter().any(|heartbeat| heartbeat.corrupt == [7])
    })
    .await;
    let second = daemon::start(&config(&meta, a.directory.path())).await.err().unwrap();
    assert_eq!(second.code, Code::Busy);
}
