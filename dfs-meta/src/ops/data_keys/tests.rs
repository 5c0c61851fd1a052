use dfs_proto::encoding::{SALT_LENGTH, WRAPPED_LENGTH};
use dfs_proto::meta::*;
use dfs_proto::{Code, Failure, FileKind, Ino};

use super::super::shorthand::{ROOT, code, new};
use super::super::testing::{Bench, answer};
use super::super::{Internal, check_class};
use crate::store::records;

fn key(name: &str, check: u8) -> Key {
    Key { name: name.into(), check: vec![check; 32].into(), generation: 1, ..Key::default() }
}

fn create(bench: &mut Bench, key: Key) -> Result<(), Failure> {
    bench.done(request::Op::CreateKey(CreateKey { key: Some(key) })).map(drop)
}

fn wrapped(name: &str, generation: u32, id: u64) -> DataKey {
    DataKey { id, key: name.into(), generation, wrapped: vec![generation as u8; WRAPPED_LENGTH].into() }
}

fn set_class(bench: &mut Bench, ino: u64, class: &str, data_key: Option<DataKey>) -> Result<u64, Failure> {
    let (name, value) = ("dfs.class".into(), class.to_owned().into());
    let set = SetXattr { ino, name, value, data_key, ..SetXattr::default() };
    bench.attr(request::Op::SetXattr(set)).map(|attr| attr.data_key)
}

fn keys(bench: &mut Bench) -> Vec<(String, u32, u64)> {
    let keys = answer!(bench.run(request::Op::ListKeys(ListKeys {})), Keys).unwrap().keys;
    keys.into_iter().map(|key| (key.name, key.generation, key.data_keys)).collect()
}

fn remove(bench: &mut Bench, name: &str) -> Result<(), Failure> {
    bench.done(request::Op::RemoveKey(RemoveKey { name: name.into() })).map(drop)
}

fn data_keys(bench: &mut Bench, key: &str, after: u64) -> Result<Vec<DataKey>, Failure> {
    let list = ListDataKeys { key: key.into(), after };
    Ok(answer!(bench.run(request::Op::ListDataKeys(list)), DataKeys)?.data_keys)
}

/// A cluster with the key "k" and a directory whose class encrypts with it; and that directory's data key.
fn with_encrypted_directory() -> (Bench, u64, u64) {
    let mut bench = Bench::with_nodes(3);
    create(&mut bench, key("k", 1)).unwrap();
    let directory = bench.create(new(ROOT, "d", FileKind::Directory)).unwrap().ino;
    let data_key =
        set_class(&mut bench, directory, "replicated:3,encrypt=k", Some(wrapped("k", 1, 0))).unwrap();
    (bench, directory, data_key)
}

/// Writes some bytes of a file into a chunk that is encrypted with this data key.
fn write(bench: &mut Bench, ino: u64, data_key: u64) -> Result<u64, Failure> {
    let plan = bench.allocate(1)?.chunks.remove(0);
    let salt = vec![1; SALT_LENGTH].into();
    let encoding = Encoding { length: 100, data_key, salt, ..Encoding::default() };
    let sealed = SealedChunk { encoding: Some(encoding), ..Bench::sealed(&plan, 116) };
    let extents = vec![Extent { offset: 0, length: 100, chunk: plan.chunk, chunk_offset: 0 }];
    let files = vec![FileCommit { ino, extents, size: 100, ..FileCommit::default() }];
    bench.commit(Commit { chunks: vec![sealed], files }).map(|_| plan.chunk)
}

#[test]
fn a_key_is_made_once_and_told() {
    let mut bench = Bench::with_nodes(3);
    create(&mut bench, key("k", 1)).unwrap();
    create(&mut bench, key("k", 1)).expect("the same again is done already");
    assert_eq!(code(create(&mut bench, key("k", 2))), Code::Exists);
    let passphrase = Key {
        source: KeySource::Passphrase.into(),
        salt: vec![9; 16].into(),
        rounds: 600_000,
        ..key("phrase", 3)
    };
    create(&mut bench, passphrase.clone()).unwrap();
    for bad in [
        key("", 1),
        key("a/b", 1),
        Key { check: vec![1; 31].into(), ..key("b", 1) },
        Key { salt: vec![1; 16].into(), ..key("b", 1) },
        Key { source: 9, ..key("b", 1) },
        Key { rounds: 599_999, name: "b".into(), ..passphrase.clone() },
        Key { salt: vec![1; 15].into(), name: "b".into(), ..passphrase },
    ] {
        assert_eq!(code(create(&mut bench, bad.clone())), Code::Invalid, "{bad:?}");
    }
    assert_eq!(keys(&mut bench), [("k".into(), 1, 0), ("phrase".into(), 1, 0)]);
    remove(&mut bench, "phrase").unwrap();
    assert_eq!(code(remove(&mut bench, "phrase")), Code::NoKey);
    for at in 0..dfs_proto::limits::MAX_KEYS - 1 {
        create(&mut bench, key(&format!("n{at}"), 1)).unwrap();
    }
    assert_eq!(code(create(&mut bench, key("more", 1))), Code::NoSpace);
}

#[test]
fn a_class_that_encrypts_needs_a_key_and_a_data_key_of_it() {
    let (mut bench, directory, data_key) = with_encrypted_directory();
    let with_k = "ec:2+1,encrypt=k";
    for (class, given, expected) in [
        ("replicated:3,encrypt=other", Some(wrapped("other", 1, 0)), Code::NoKey),
        (with_k, None, Code::NoKey),
        (with_k, Some(wrapped("other", 1, 0)), Code::NoKey),
        (with_k, Some(wrapped("k", 2, 0)), Code::Stale),
        (with_k, Some(DataKey { wrapped: vec![1; 59].into(), ..wrapped("k", 1, 0) }), Code::Invalid),
    ] {
        assert_eq!(code(set_class(&mut bench, directory, class, given)), expected, "{class}");
    }
    let check = |cx: &mut super::Context<'_, '_>| check_class::check(cx, "replicated:3,encrypt=x").map(drop);
    assert_eq!(code(bench.with(dfs_proto::SessionId(1), check)), Code::NoKey);
    assert_eq!(keys(&mut bench), [("k".into(), 1, 1)]);
    // What is made below has the directory's.
    let sub = bench.create(new(directory, "sub", FileKind::Directory)).unwrap();
    let file = bench.create(new(sub.ino, "file", FileKind::Regular)).unwrap();
    assert_eq!((sub.data_key, file.data_key), (data_key, data_key));
    bench.check();
    // Each time it is set there is another data key, and the one before goes when nothing names it any more.
    let other = set_class(&mut bench, directory, with_k, Some(wrapped("k", 1, 0))).unwrap();
    assert_ne!(other, data_key);
    assert_eq!(keys(&mut bench), [("k".into(), 1, 2)]);
    assert_eq!(set_class(&mut bench, directory, "replicated:3", None).unwrap(), 0);
    assert_eq!(keys(&mut bench), [("k".into(), 1, 1)]);
    bench.check();
}

#[test]
fn who_lacks_the_key_sees_and_removes_but_does_not_open() {
    let (mut bench, directory, _) = with_encrypted_directory();
    let with_key = |keys: &[&str], create: Create| Create {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        open: true,
        ..create
    };
    let file = new(directory, "file", FileKind::Regular);
    assert_eq!(code(bench.create(with_key(&[], file.clone()))), Code::NoKey);
    assert_eq!(code(bench.lookup(directory, "file")), Code::NotFound, "nothing was made");
    let made = bench.create(with_key(&["j", "k"], file.clone())).unwrap().ino;
    let again = Create { exclusive: false, ..with_key(&["j"], file) };
    assert_eq!(code(bench.create(again)), Code::NoKey);
    for truncate in [false, true] {
        let open = Open { ino: made, truncate, ..Open::default() };
        assert_eq!(code(bench.opened(request::Op::Open(open.clone()))), Code::NoKey);
        let keys = vec!["k".into()];
        bench.opened(request::Op::Open(Open { keys, ..open })).unwrap();
    }
    bench
        .opened(request::Op::Open(Open { ino: directory, ..Open::default() }))
        .expect("a directory is listed");
    assert_eq!(bench.lookup(directory, "file").unwrap().ino, made);
    bench.unlink(directory, "file").unwrap();
}

#[test]
fn a_key_is_in_use_until_the_last_chunk_is_removed() {
    let (mut bench, directory, data_key) = with_encrypted_directory();
    let file = bench.create(new(directory, "file", FileKind::Regular)).unwrap().ino;
    assert_eq!(code(write(&mut bench, file, data_key + 1)), Code::NotFound, "there is no such data key");
    let chunk = write(&mut bench, file, data_key).unwrap();
    assert_eq!(bench.chunk(chunk).unwrap().content_length(), 100);
    assert_eq!(bench.plan(Ino(file)).chunks[0].encoding.as_ref().unwrap().data_key, data_key);
    bench.check();
    let get = GetDataKey { id: data_key };
    let told = answer!(bench.run(request::Op::GetDataKey(get)), DataKeys).unwrap().data_keys;
    assert_eq!(told, [wrapped("k", 1, data_key)]);
    bench.unlink(directory, "file").unwrap();
    bench.rmdir(ROOT, "d").unwrap();
    bench.check();
    assert_eq!(code(remove(&mut bench, "k")), Code::Busy, "the chunk is garbage, but there");
    bench.now.seconds += 3600;
    bench.finish(Internal::CollectGarbage);
    for node in 1..=3 {
        let beat = |deleted| NodeHeartbeat { node, epoch: 1, deleted, ..NodeHeartbeat::default() };
        assert_eq!(code(remove(&mut bench, "k")), Code::Busy);
        bench.run(request::Op::NodeHeartbeat(beat(vec![chunk]))).unwrap();
    }
    assert_eq!(code(bench.run(request::Op::GetDataKey(get))), Code::NotFound);
    bench.check();
    remove(&mut bench, "k").unwrap();
}

#[test]
fn a_rotation_changes_the_key_and_all_its_data_keys_or_nothing() {
    let (mut bench, directory, first) = with_encrypted_directory();
    create(&mut bench, key("j", 5)).unwrap();
    set_class(&mut bench, ROOT, "replicated:3,encrypt=j", Some(wrapped("j", 1, 0))).unwrap();
    let sub = bench.create(new(directory, "sub", FileKind::Directory)).unwrap().ino;
    let second = set_class(&mut bench, sub, "replicated:2,encrypt=k", Some(wrapped("k", 1, 0))).unwrap();
    let ids = |list: Vec<DataKey>| list.iter().map(|data_key| data_key.id).collect::<Vec<_>>();
    assert_eq!(ids(data_keys(&mut bench, "k", 0).unwrap()), [first, second]);
    assert_eq!(ids(data_keys(&mut bench, "k", first).unwrap()), [second]);
    assert_eq!(code(data_keys(&mut bench, "x", 0)), Code::NoKey);

    let mut rotate = |generation: u32, of: &[u64]| {
        let key = Key { generation, ..key("k", 2) };
        let data_keys = of.iter().map(|id| wrapped("k", generation, *id)).collect();
        bench.done(request::Op::RotateKey(RotateKey { key: Some(key), data_keys })).map(drop)
    };
    assert_eq!(code(rotate(3, &[first, second])), Code::Stale, "a generation was left out");
    assert_eq!(code(rotate(2, &[first])), Code::Stale, "one is missing");
    assert_eq!(code(rotate(2, &[first, first])), Code::Stale);
    assert_eq!(code(rotate(2, &[first, first + 1])), Code::Stale, "that is another key's");
    rotate(2, &[second, first]).unwrap();
    rotate(2, &[]).expect("the same again is done already");
    assert_eq!(data_keys(&mut bench, "k", 0).unwrap(), [wrapped("k", 2, first), wrapped("k", 2, second)]);
    assert_eq!(keys(&mut bench), [("j".into(), 1, 1), ("k".into(), 2, 2)]);
    let stale = set_class(&mut bench, sub, "replicated:3,encrypt=k", Some(wrapped("k", 1, 0)));
    assert_eq!(code(stale), Code::Stale, "a mount with the key as it was");
    bench.check();
}

#[test]
fn a_list_of_data_keys_has_pages() {
    let (mut bench, directory, first) = with_encrypted_directory();
    let page = dfs_proto::limits::MAX_DATA_KEYS_PAGE as u64;
    // Another key's between them.
    create(&mut bench, key("j", 5)).unwrap();
    for at in 0..page + 5 {
        let name = if at % 2 == 0 { "k" } else { "j" };
        let sub = bench.create(new(directory, &format!("s{at}"), FileKind::Directory)).unwrap().ino;
        set_class(&mut bench, sub, &format!("replicated:3,encrypt={name}"), Some(wrapped(name, 1, 0)))
            .unwrap();
    }
    let of_k = data_keys(&mut bench, "k", 0).unwrap();
    assert_eq!(of_k.len() as u64, 1 + (page + 5).div_ceil(2));
    assert_eq!(data_keys(&mut bench, "k", of_k[9].id).unwrap(), of_k[10..]);
    assert_eq!(data_keys(&mut bench, "j", first).unwrap().len() as u64, (page + 5) / 2);
    let master: records::MasterKey =
        bench.with(dfs_proto::SessionId(1), |cx| super::load_master(cx, "k")).expect("the key is there");
    assert_eq!(master.data_keys, of_k.len() as u64);
}
