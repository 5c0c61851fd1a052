use super::*;

fn all(store: &EmbeddedStore) -> Vec<Pair> {
    store.scan(b"", b"\xff", usize::MAX).unwrap()
}

fn put(key: &[u8], value: &[u8]) -> Batch {
    Batch::from([(key.to_vec(), Some(value.to_vec()))])
}

#[test]
fn a_second_server_is_told_that_the_store_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let first = EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
    let refused = EmbeddedStore::open(directory.path(), 1 << 20).err().unwrap();
    assert!(
        matches!(&refused, StoreError::InUse(why) if why.contains("another metadata server")),
        "{refused}"
    );
    drop(first);
    EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
}

#[test]
fn commits_outlive_full_journals_and_batches_longer_than_one() {
    let directory = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open_with_journal(directory.path(), 1 << 20, 8192).unwrap();
    let mut store = open();
    let mut expected = std::collections::BTreeMap::new();
    for number in 0..100u8 {
        // Each tenth is longer than the journal.
        let length = if number % 10 == 9 { 300_000 } else { 500 };
        let batch = Batch::from([
            (vec![number], Some(vec![number; length])),
            (b"newest".to_vec(), Some(vec![number])),
        ]);
        store.commit(&batch, &mut || ()).unwrap();
        expected.extend(batch.into_iter().map(|(key, value)| (key, value.unwrap())));
        assert!(all(&store).into_iter().eq(expected.clone()), "after commit {number}");
        if number % 7 == 0 || number % 10 == 9 {
            drop(store);
            store = open();
            assert!(all(&store).into_iter().eq(expected.clone()), "opened again after commit {number}");
        }
    }
}

#[test]
fn the_journal_of_a_small_disk_is_small() {
    for (reserve, journal) in [(0, 1), (16 << 20, 4), (1 << 30, 16)] {
        let directory = tempfile::tempdir().unwrap();
        drop(EmbeddedStore::open_within(directory.path(), 1 << 20, reserve).unwrap());
        let made = std::fs::metadata(directory.path().join("journal")).unwrap().len();
        assert_eq!(made, journal << 20, "a reserve of {reserve}");
    }
}

#[test]
fn what_only_the_journal_has_is_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
    for value in [b"one", b"two"] {
        let batch = Batch::from([(b"k".to_vec(), Some(value.to_vec())), (value.to_vec(), None)]);
        store.commit(&batch, &mut || ()).unwrap();
    }
    assert_eq!(store.parts.tree.get(b"k").unwrap(), None, "nothing was applied yet");
    // Replayed, and replayed once more.
    let mut store = Some(store);
    for _ in 0..3 {
        drop(store.take());
        let again = EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(again.parts.tree.get(b"k").unwrap(), Some(b"two".to_vec()));
        assert_eq!(all(&again), [(b"k".to_vec(), b"two".to_vec())]);
        store = Some(again);
    }
}

#[test]
fn what_was_changed_often_is_applied_once_and_in_the_background() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with_journal(directory.path(), 1 << 20, 1 << 20).unwrap();
    let mut turns = 0;
    for number in 0..20_000_u32 {
        let before = store.parts.progress().applying;
        let batch = Batch::from([
            (b"often".to_vec(), Some(number.to_be_bytes().to_vec())),
            (number.to_be_bytes().to_vec(), Some(vec![1; 100])),
            (number.wrapping_sub(1).to_be_bytes().to_vec(), None),
        ]);
        store.commit(&batch, &mut || ()).unwrap();
        turns += u32::from(!before && store.parts.progress().applying);
        assert_eq!(store.get(b"often").unwrap(), Some(number.to_be_bytes().to_vec()));
    }
    assert!(turns >= 2, "the journal was filled {turns} times");
    assert_eq!(all(&store).len(), 2);
    drop(store.parts.applied().unwrap());
    assert!(store.parts.tree.get(b"often").unwrap().is_some());
    let in_tree = store.parts.tree.range(b"", b"\xff").count();
    assert!(in_tree <= 2 + turns as usize, "{in_tree} keys were written for 2");
}

/// Deleting and looking for what is before it, again and again: a search that walks over what was deleted takes minutes.
#[test]
fn what_was_deleted_is_in_nobodys_way() {
    const KEYS: u32 = 40_000;
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), 64 << 20).unwrap();
    let all: Batch = (0..KEYS).map(|key| (key.to_be_bytes().to_vec(), Some(vec![1; 8]))).collect();
    store.commit(&all, &mut || ()).unwrap();
    let started = std::time::Instant::now();
    for key in (1..KEYS).rev() {
        store.commit_in_memory(&Batch::from([(key.to_be_bytes().to_vec(), None)]));
        let before = store.last(b"", &KEYS.to_be_bytes()).unwrap().unwrap();
        assert_eq!(before.0, (key - 1).to_be_bytes());
    }
    for key in 1..KEYS {
        store.commit_in_memory(&Batch::from([(key.to_be_bytes().to_vec(), Some(vec![2; 8]))]));
    }
    for key in 0..KEYS {
        store.commit_in_memory(&Batch::from([(key.to_be_bytes().to_vec(), None)]));
        let first = store.scan(b"", b"\xff", 1).unwrap();
        assert_eq!(
            first.first().map(|(key, _)| &key[..]),
            (key + 1 < KEYS).then_some(&(key + 1).to_be_bytes()[..])
        );
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

impl EmbeddedStore {
    /// As a commit, without waiting for the disk.
    fn commit_in_memory(&self, batch: &Batch) {
        self.parts.show(batch).unwrap();
    }
}

#[test]
fn a_panic_while_applying_ends_commits_and_lets_nobody_wait() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with_journal(directory.path(), 1 << 20, 8192).unwrap();
    store.commit(&put(b"k", b"v"), &mut || ()).unwrap();
    assert!(!store.parts.note(|| panic!("while applying")));
    let failed = store.commit(&put(b"k", &[0; 5000]), &mut || ());
    assert!(matches!(&failed, Err(StoreError::Io(why)) if why.contains("a panic")), "{failed:?}");
}

#[test]
fn a_tree_that_fails_ends_commits_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
    store.commit(&put(b"k", b"v"), &mut || ()).unwrap();
    {
        let mut progress = store.parts.progress();
        progress.failure = Some(StoreError::Full);
    }
    assert!(matches!(store.commit(&put(b"k", b"w"), &mut || ()), Err(StoreError::Full)));
    assert_eq!(store.get(b"k").unwrap(), Some(b"v".to_vec()));
    drop(store);
    let store = EmbeddedStore::open(directory.path(), 1 << 20).unwrap();
    assert_eq!(all(&store), [(b"k".to_vec(), b"v".to_vec())]);
}
