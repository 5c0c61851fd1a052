//! What every engine must do, run over each of them.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::embedded::EmbeddedStore;
use super::memory::MemoryStore;
use super::*;

/// Runs a test over a fresh store of each engine; `reopen` closes a store and opens it again, where it can be.
fn on_every_engine(test: impl Fn(Box<dyn Store>, &dyn Fn(Box<dyn Store>) -> Box<dyn Store>)) {
    test(Box::new(MemoryStore::default()), &|store| store);
    let directory = tempfile::tempdir().unwrap();
    let open = || Box::new(EmbeddedStore::open_within(directory.path(), 1 << 20, 0).unwrap());
    test(open(), &|store| {
        drop(store);
        open()
    });
}

fn put(pairs: &[(&[u8], &[u8])]) -> Batch {
    pairs.iter().map(|(key, value)| (key.to_vec(), Some(value.to_vec()))).collect()
}

#[test]
fn pairs_are_read_in_order_within_bounds() {
    on_every_engine(|store, reopen| {
        store.commit(&put(&[(b"a", b"1"), (b"b", b"2"), (b"b\0", b""), (b"c", b"4")]), &mut || ()).unwrap();
        let store = reopen(store);
        assert_eq!(store.get(b"b").unwrap(), Some(b"2".to_vec()));
        assert_eq!(store.get(b"b\0").unwrap(), Some(vec![]), "an empty value is a value");
        assert_eq!(store.get(b"bb").unwrap(), None);
        let keys = |pairs: Vec<Pair>| pairs.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(store.scan(b"b", b"c", 9).unwrap()), [b"b".to_vec(), b"b\0".to_vec()]);
        assert_eq!(keys(store.scan(b"", b"\xff", 2).unwrap()), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(store.last(b"a", b"c").unwrap(), Some((b"b\0".to_vec(), vec![])));
        for (start, end) in [(&b"c"[..], &b"a"[..]), (b"a", b"a"), (b"x", b"z")] {
            assert!(store.scan(start, end, 9).unwrap().is_empty());
            assert_eq!(store.last(start, end).unwrap(), None);
        }
        assert!(store.scan(b"", b"\xff", 0).unwrap().is_empty());
        assert!(store.size_bytes().unwrap() > 0);
        assert!(store.reserve(4096).unwrap());
    });
}

#[test]
fn random_commits_read_as_a_map_does() {
    let seed = rand::random();
    println!("seed {seed}");
    on_every_engine(|mut store, reopen| {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let key = |random: &mut SmallRng| vec![random.random_range(0..40u8); random.random_range(1..3)];
        for round in 0..300 {
            let mut batch = Batch::new();
            for _ in 0..random.random_range(0..20) {
                // Some values are so large that an engine may treat them apart.
                let length = *[0, 10, 300, 70_000].get(random.random_range(0..40)).unwrap_or(&50);
                let value = random.random_bool(0.7).then(|| vec![random.random(); length]);
                batch.insert(key(&mut random), value);
            }
            store.commit(&batch, &mut || ()).unwrap();
            for (key, value) in batch {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
            if round % 100 == 99 {
                store = reopen(store);
            }
            let (start, end) = (key(&mut random), key(&mut random));
            let limit = random.random_range(0..30);
            let inside = || model.range(start.clone()..end.clone().max(start.clone()));
            let expected: Vec<Pair> = inside().take(limit).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert!(store.scan(&start, &end, limit).unwrap() == expected, "round {round}");
            let last = inside().next_back().map(|(k, v)| (k.clone(), v.clone()));
            assert!(store.last(&start, &end).unwrap() == last, "round {round}");
            assert!(store.get(&start).unwrap().as_ref() == model.get(&start), "round {round}");
        }
    });
}
