//! Keys: who has one reads and writes what is encrypted with it, who has not sees names and sizes, and the servers see no
//! more than that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dfs_admin::server::Server;
use dfs_client::keys::MasterKey;
use dfs_proto::meta::{DataKey, Key, ListDataKeys, ListKeys, reply, request};
use dfs_tests::cluster::{Builder, Cluster, block_on};
use dfs_tests::commands::run;
use dfs_tests::disks::{files_below, write_durably};
use dfs_tests::mounted::{Mount, is_mounted, require_fuse};
use dfs_tests::operation::Data;
use dfs_tests::programs;
use dfs_tests::search::{Search, files_ending};
use dfs_tests::terminal::Terminal;
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// What is deleted is gone soon.
const QUICK: [&str; 6] = ["--garbage-grace", "1s", "--heartbeat", "300ms", "--node-suspect-after", "5s"];
const ENOKEY: Option<i32> = Some(libc::ENOKEY);

/// A cluster, and a directory for keys that is none of its own.
struct Keyed {
    cluster: Cluster,
    keys: TempDir,
}

impl Keyed {
    fn start() -> Self {
        Self::of(Cluster::with().meta_args(QUICK))
    }

    fn of(cluster: Builder) -> Self {
        Self { cluster: cluster.start(), keys: tempfile::tempdir().unwrap() }
    }

    /// The path of a key file.
    fn file(&self, name: &str) -> PathBuf {
        self.keys.path().join(name)
    }

    /// A file with a secret, of these permissions.
    fn write(&self, name: &str, secret: &[u8], mode: u32) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::program("dfs-admin"));
        command.arg("key").args(arguments).args(["--meta", self.cluster.address()]);
        command
    }

    fn key(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments), PATIENCE)
    }

    /// `dfs-admin key …`, which must succeed. What it said.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.key(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    /// `dfs-admin key …`, which must be refused for this reason.
    fn refused(&self, arguments: &[&str], why: &str) {
        let output = self.key(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(why), "{arguments:?}: {why:?} is not in {}", said(&output));
    }

    /// Makes a key whose file has its name.
    fn create(&self, name: &str) -> PathBuf {
        self.done(&["create", name, "--file", text(&self.file(name))]);
        self.file(name)
    }

    fn list(&self) -> Value {
        serde_json::from_str(&self.done(&["list", "--json"])).unwrap()
    }

    fn mount_with(&self, name: &str, file: &Path) -> Mount {
        self.cluster.mount_with("/", &format!("key={name}:{},timeout=20", file.display()))
    }

    /// Mounts as mount(8) does, which must be refused for this reason and leave nothing mounted.
    fn mount_refused(&self, options: &str, why: &str) {
        require_fuse();
        let point = tempfile::Builder::new().prefix("dfs-tests-").tempdir().unwrap();
        let mut command = Command::new(programs::program("dfs-fuse"));
        command.arg(format!("{}:/", self.cluster.address())).arg(point.path());
        let output = run(command.args(["-o", &format!("timeout=20,{options}")]), PATIENCE);
        assert!(!is_mounted(point.path()), "{options}");
        assert_eq!(output.status.code(), Some(32), "{options}: {}", said(&output));
        assert!(said(&output).contains(why), "{options}: {why:?} is not in {}", said(&output));
    }

    /// What the metadata server tells of a key, and all data keys that are encrypted with it.
    fn known(&self, name: &str) -> (Key, Vec<DataKey>) {
        block_on(async {
            let server = Server::connect(&[self.cluster.address().to_owned()]).await.unwrap();
            let reply::Result::Keys(keys) = server.call(request::Op::ListKeys(ListKeys {})).await.unwrap()
            else {
                panic!("not keys")
            };
            let key = keys.keys.into_iter().find(|key| key.name == name).unwrap();
            let list = ListDataKeys { key: name.to_owned(), after: 0 };
            match server.call(request::Op::ListDataKeys(list)).await.unwrap() {
                reply::Result::DataKeys(found) => (key, found.data_keys),
                other => panic!("{other:?}"),
            }
        })
    }

    /// All that chunk daemons have stored.
    fn stored(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let all = self.cluster.chunks().iter().flat_map(|chunk| {
            ["shards", "segments"]
                .map(|name| chunk.data().join(name))
                .into_iter()
                .filter(|path| path.is_dir())
        });
        all.flat_map(|path| files_below(&path))
            .map(|(path, _)| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    Data { seed, length }.bytes()
}

fn set_class(directory: &Path, class: &str) -> io::Result<()> {
    xattr::set(directory, "dfs.class", class.as_bytes())
}

fn make_directory(path: PathBuf, class: &str) -> PathBuf {
    fs::create_dir(&path).unwrap();
    set_class(&path, class).unwrap();
    path
}

#[test]
fn a_key_is_made_once_and_listed_and_forgotten() {
    let keyed = Keyed::start();
    let file = keyed.file("k");
    let create = ["create", "k", "--file", text(&file)];
    let told = keyed.done(&create);
    assert!(told.contains(&format!("-o key=k:{}", file.display())) && told.contains("is lost"), "{told}");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (32, 0o600));
    keyed.done(&create);
    let other = keyed.file("other");
    keyed.refused(&["create", "k", "--file", text(&other)], "there is a key \"k\" already");
    assert!(!other.exists(), "a file is made for nothing");
    keyed.write("other", &[7; 32], 0o600);
    keyed.refused(&["create", "k", "--file", text(&other)], "there is a key \"k\" already");

    let passphrase = keyed.write("passphrase", b"correct horse battery\n", 0o400);
    keyed.done(&["create", "p", "--passphrase", "--passphrase-file", text(&passphrase)]);
    let used = keyed.write("used", &[9; 32], 0o600);
    keyed.done(&["create", "u", "--file", text(&used)]);
    assert_eq!(fs::read(&used).unwrap(), [9; 32], "a file that is there is used as it is");
    let row =
        |key: &str, source: &str| json!({ "key": key, "source": source, "generation": 1, "data_keys": 0 });
    assert_eq!(keyed.list(), json!([row("k", "file"), row("p", "passphrase"), row("u", "file")]));
    let table = keyed.done(&["list"]);
    assert!(table.contains("GENERATION") && table.contains("passphrase"), "{table}");

    let short = keyed.write("short", &[7; 31], 0o600);
    keyed.refused(&["create", "s", "--file", text(&short)], "a key has 32 bytes, here are 31");
    let open = keyed.write("open", &[7; 32], 0o640);
    keyed.refused(&["create", "o", "--file", text(&open)], "chmod 600");
    let empty = keyed.write("empty", b"\n", 0o600);
    let passphrase_in = |file| ["create", "e", "--passphrase", "--passphrase-file", file];
    keyed.refused(&passphrase_in(text(&empty)), "the passphrase is empty");
    keyed.refused(&passphrase_in("/none/there"), "/none/there");
    keyed.refused(&["create", "a/b", "--file", text(&file)], "can't be the name of a key");
    keyed.refused(&["create", "n", "--file", "/none/there/n"], "cannot be made");
    keyed.refused(&["create", "t", "--passphrase"], "--passphrase-file FILE");
    let neither = keyed.key(&["create", "n"]);
    assert!(!neither.status.success() && said(&neither).contains("--file"), "{}", said(&neither));

    assert!(keyed.done(&["rm", "u"]).contains("forgotten"));
    keyed.refused(&["rm", "u"], "there is no key \"u\"");
    assert_eq!(
        keyed.list(),
        json!([row("k", "file"), row("p", "passphrase")]),
        "what was refused changed nothing"
    );
}

#[test]
fn who_has_another_key_or_none_mounts_nothing() {
    let keyed = Keyed::start();
    let key = keyed.create("k");
    let passphrase = keyed.write("p", b"correct horse battery", 0o600);
    keyed.done(&["create", "p", "--passphrase", "--passphrase-file", text(&passphrase)]);

    let with = |name: &str, file: &Path| format!("key={name}:{}", file.display());
    let wrong = keyed.write("wrong-key", &[7; 32], 0o600);
    keyed.mount_refused(&with("k", &wrong), "that is not the key \"k\": these bytes are another key");
    let wrong = keyed.write("wrong-passphrase", b"incorrect horse battery", 0o600);
    keyed.mount_refused(&with("p", &wrong), "the passphrase is another one");
    let open = keyed.write("open", &fs::read(&key).unwrap(), 0o604);
    keyed.mount_refused(&with("k", &open), "others than its owner may use it (mode 604): `chmod 600` it");
    keyed.mount_refused("key=k:/none/there", "/none/there");
    keyed.mount_refused(&with("unknown", &key), "the cluster has no key \"unknown\"");
    keyed.mount_refused("keys=/none/there", "the key directory /none/there cannot be read");
    keyed.mount_refused(&format!("{},{}", with("k", &key), with("p", &key)), "the passphrase is another one");

    // Both are right; so is a directory with them, whatever else is in it.
    let both = format!("{},{}", with("k", &key), with("p", &passphrase));
    drop(keyed.cluster.mount_with("/", &both));
    let mount = keyed.cluster.mount_with("/", &format!("keys={}", keyed.keys.path().display()));
    make_directory(mount.join("d"), "replicated:1,encrypt=k");
    make_directory(mount.join("e"), "replicated:1,encrypt=p");
    assert!(mount.log().contains("a key is left out"), "{}", mount.log());
}

#[test]
fn a_passphrase_is_asked_for_twice_and_not_shown() {
    let keyed = Keyed::start();
    let create = |first: &str, second: &str| {
        let mut terminal = Terminal::start(keyed.command(&["create", "p", "--passphrase"]));
        terminal.answer("Passphrase:", first);
        terminal.answer("again:", second);
        terminal.finish()
    };
    let (status, shown) = create("correct horse", "correct house");
    assert!(!status.success() && shown.contains("the two passphrases are different"), "{shown}");
    assert_eq!(keyed.list(), json!([]));
    let (status, shown) = create("correct horse", "correct horse");
    assert!(status.success() && shown.contains("the key \"p\" is made"), "{shown}");
    assert!(!shown.contains("horse"), "{shown}");
    let mount = keyed.mount_with("p", &keyed.write("p", b"correct horse\n", 0o600));
    make_directory(mount.join("d"), "replicated:1,encrypt=p");

    // Who rotates it is asked for the present one.
    let rotate = |present: &str| {
        let mut terminal =
            Terminal::start(keyed.command(&["rotate", "p", "--file", text(&keyed.file("new"))]));
        terminal.answer("Present passphrase:", present);
        terminal.finish()
    };
    let (status, shown) = rotate("correct house");
    assert!(!status.success() && shown.contains("the passphrase is another one"), "{shown}");
    assert!(!keyed.file("new").exists(), "a key is made for nothing");
    let (status, shown) = rotate("correct horse");
    assert!(status.success() && !shown.contains("horse"), "{shown}");
    drop(keyed.mount_with("p", &keyed.file("new")));
}

#[test]
fn without_the_key_names_and_sizes_are_seen_and_nothing_else() {
    let keyed = Keyed::start();
    let key = keyed.create("k");
    let mount = keyed.mount_with("k", &key);
    let directory = make_directory(mount.join("d"), "replicated:2,encrypt=k");
    let (large, small) = (bytes(1, 700_000), bytes(2, 300));
    write_durably(&directory.join("large"), &large).unwrap();
    write_durably(&directory.join("small"), &small).unwrap();
    let other = keyed.mount_with("k", &key);
    assert!(
        fs::read(other.join("d/large")).unwrap() == large
            && fs::read(other.join("d/small")).unwrap() == small
    );

    let without = keyed.cluster.mount();
    let mut seen: Vec<(String, u64)> = fs::read_dir(without.join("d"))
        .unwrap()
        .map(Result::unwrap)
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    seen.sort();
    assert_eq!(seen, [("large".to_owned(), 700_000), ("small".to_owned(), 300)]);
    for name in ["d/large", "d/small"] {
        assert_eq!(File::open(without.join(name)).unwrap_err().raw_os_error(), ENOKEY, "{name}");
        let truncate = OpenOptions::new().write(true).truncate(true).open(without.join(name));
        assert_eq!(truncate.unwrap_err().raw_os_error(), ENOKEY, "{name}");
        assert_eq!(File::create(without.join(name)).unwrap_err().raw_os_error(), ENOKEY, "{name}");
    }
    assert_eq!(File::create(without.join("d/new")).unwrap_err().raw_os_error(), ENOKEY);
    assert!(!without.join("d/new").exists(), "what can't be written is not made");
    assert!(fs::read(other.join("d/large")).unwrap() == large, "nothing was cut off");

    fs::create_dir(without.join("e")).unwrap();
    let class = set_class(&without.join("e"), "replicated:2,encrypt=k").unwrap_err();
    assert_eq!(class.raw_os_error(), ENOKEY);
    set_class(&mount.join("e"), "replicated:2,encrypt=unknown").expect_err("there is no such key");
    assert_eq!(xattr::get(mount.join("e"), "dfs.class").unwrap().unwrap(), b"replicated:3");
    let admin = |path: &Path, class: &str| {
        let mut command = Command::new(programs::program("dfs-admin"));
        said(&run(command.args(["class", "set", text(path), class]), PATIENCE))
    };
    let told = admin(&without.join("e"), "replicated:2,encrypt=k");
    assert!(told.contains("lacks the key \"k\""), "{told}");
    let told = admin(&mount.join("e"), "replicated:2,encrypt=unknown");
    assert!(told.contains("there is no key \"unknown\""), "{told}");

    // How it is kept is told.
    let mut info = Command::new(programs::program("dfs-admin"));
    let info = run(info.args(["info", "--json", text(&without.join("d/large"))]), PATIENCE);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap_or_else(|_| panic!("{}", said(&info)));
    let chunk = &info["chunks"][0];
    assert_eq!((&chunk["key"], &chunk["content_length"]), (&"k".into(), &700_000.into()), "{info:#}");
    assert!(chunk["length"].as_u64().unwrap() > 700_000, "tags are stored, too: {info:#}");

    // Whoever may remove them may do so; only then the key may go.
    keyed.refused(&["rm", "k"], "the key \"k\" is in use");
    drop(other);
    for name in ["d/large", "d/small"] {
        fs::remove_file(without.join(name)).unwrap();
    }
    fs::remove_dir(without.join("d")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !keyed.key(&["rm", "k"]).status.success() {
        assert!(Instant::now() < deadline, "it stays in use: {}", keyed.list());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(keyed.list(), json!([]));
}

#[test]
fn a_key_is_rotated_under_mounts_that_go_on() {
    let keyed = Keyed::start();
    let old_key = keyed.create("k");
    let mount = keyed.mount_with("k", &old_key);
    let [one, two] =
        ["one", "two"].map(|name| make_directory(mount.join(name), "replicated:2,compress=lz4,encrypt=k"));
    let content = |number: u32| bytes(number, [700_000, 90, 200_000][number as usize % 3]);
    for number in 0..6 {
        let directory = if number < 3 { &one } else { &two };
        write_durably(&directory.join(number.to_string()), &content(number)).unwrap();
    }
    // It knows the data key of the first directory, and none of its blocks.
    let old = keyed.mount_with("k", &old_key);
    write_durably(&old.join("one/old"), b"before").unwrap();
    assert_eq!(keyed.list()[0]["data_keys"], 2);

    let before = keyed.stored();
    assert!(before.len() > 6, "{} files are stored", before.len());
    let (from, new_key) = (text(&old_key), keyed.file("new"));
    let rotate = |from: &str, to: &Path| keyed.key(&["rotate", "k", "--from", from, "--file", text(to)]);
    let wrong = keyed.write("wrong", &[7; 32], 0o600);
    keyed.refused(&["rotate", "k", "--from", text(&wrong), "--file", text(&new_key)], "that is not the key");
    keyed.refused(&["rotate", "k", "--file", text(&new_key)], "--from FILE");
    keyed.refused(&["rotate", "unknown", "--from", from, "--file", text(&new_key)], "there is no key");
    assert!(!new_key.exists(), "a key is made for nothing");
    keyed.refused(&["rotate", "k", "--from", from, "--file", from], "the new key is the one");
    for attempt in ["at first", "as if its answer had been lost"] {
        let output = rotate(from, &new_key);
        assert!(output.status.success() && said(&output).contains("mount"), "{attempt}: {}", said(&output));
        assert_eq!(keyed.list()[0]["generation"], 2, "{attempt}");
    }
    assert!(keyed.stored() == before, "data was touched");

    assert!(fs::read(old.join("one/0")).unwrap() == content(0), "what it had not read before");
    write_durably(&old.join("one/later"), b"after").unwrap();
    // A data key that it did not ask for in time is closed to it, and nothing is lost by trying.
    assert_eq!(File::open(old.join("two/3")).unwrap_err().raw_os_error(), ENOKEY);
    let truncate = OpenOptions::new().write(true).truncate(true).open(old.join("two/3"));
    assert_eq!(truncate.unwrap_err().raw_os_error(), ENOKEY);
    fs::create_dir(old.join("three")).unwrap();
    set_class(&old.join("three"), "replicated:2,encrypt=k").expect_err("nobody could open it any more");
    keyed.mount_refused(&format!("key=k:{from}"), "that is not the key \"k\"");

    let new = keyed.mount_with("k", &new_key);
    for number in 0..6 {
        let directory = if number < 3 { "one" } else { "two" };
        assert!(
            fs::read(new.join(directory).join(number.to_string())).unwrap() == content(number),
            "{number}"
        );
    }
    assert_eq!(fs::read(new.join("one/later")).unwrap(), b"after");
    set_class(&new.join("three"), "replicated:2,encrypt=k").unwrap();

    // From a file to a passphrase.
    let passphrase = keyed.write("passphrase", b"correct horse battery", 0o600);
    let to = ["--passphrase", "--passphrase-file", text(&passphrase)];
    keyed.done(&[&["rotate", "k", "--from", text(&new_key)], &to[..]].concat());
    assert_eq!(
        (&keyed.list()[0]["source"], &keyed.list()[0]["data_keys"]),
        (&"passphrase".into(), &3.into())
    );
    let newest = keyed.mount_with("k", &passphrase);
    assert_eq!(fs::read(newest.join("one/old")).unwrap(), b"before");
}

#[test]
fn servers_and_logs_have_neither_content_nor_keys() {
    let (long, short, plain) = ("long-veiled-otter-", "tiny-veiled-marmot", "plain-visible-badger-");
    let repeated = |phrase: &str| phrase.repeat(60_000).into_bytes();
    let loud = ["--log-level", "trace"];
    let keyed = Keyed::of(Cluster::with().meta_args(QUICK).meta_args(loud).chunk_args(loud));
    let key = keyed.create("k");
    let passphrase = keyed.write("p", b"velvet-anchor-orbit", 0o600);
    keyed.done(&["create", "p", "--passphrase", "--passphrase-file", text(&passphrase)]);
    let options = format!("key=k:{},key=p:{},log_level=trace", key.display(), passphrase.display());
    let mut mount = keyed.cluster.mount_with("/", &options);
    for (name, class) in [
        ("one", "replicated:2,encrypt=k"),
        ("two", "replicated:2,compress=zstd,encrypt=k"),
        ("three", "ec:2+1,compress=lz4,encrypt=p"),
    ] {
        let directory = make_directory(mount.join(name), class);
        write_durably(&directory.join("long"), &repeated(long)).unwrap();
        write_durably(&directory.join("short"), short.as_bytes()).unwrap();
    }
    let clear = make_directory(mount.join("clear"), "replicated:2");
    write_durably(&clear.join("long"), &repeated(plain)).unwrap();
    write_durably(&clear.join("short"), plain.as_bytes()).unwrap();
    mount.unmount();
    mount.remount();
    assert!(fs::read(mount.join("three/long")).unwrap() == repeated(long));
    mount.unmount();

    let (record, data_keys) = keyed.known("k");
    let (passphrase_record, passphrase_data_keys) = keyed.known("p");
    assert_eq!((data_keys.len(), passphrase_data_keys.len()), (2, 1));
    let secret = fs::read(&key).unwrap();
    let mut secrets = Search::default()
        .bytes("long content", long.as_bytes())
        .bytes("short content", short.as_bytes())
        .secret("the key", &secret)
        .secret("the passphrase", &fs::read(&passphrase).unwrap());
    let master = MasterKey::open(&record, &secret).unwrap();
    for data_key in &data_keys {
        secrets = secrets.secret("a data key", master.unwrap(data_key).unwrap().expose());
    }
    let master = MasterKey::open(&passphrase_record, &fs::read(&passphrase).unwrap()).unwrap();
    let data_key = master.unwrap(&passphrase_data_keys[0]).unwrap();
    secrets = secrets.secret("the passphrase's data key", data_key.expose());

    assert!(keyed.cluster.meta().stop().is_some_and(|ending| ending.is_clean()));
    assert!(keyed.cluster.chunks().iter().all(|chunk| chunk.stop().is_some_and(|ending| ending.is_clean())));
    let below = |path: &Path| files_below(path).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let meta = below(keyed.cluster.meta().data());
    let chunks: Vec<PathBuf> = keyed.cluster.chunks().iter().flat_map(|chunk| below(chunk.data())).collect();
    let logs = files_ending(keyed.cluster.directory(), ".log");
    assert_eq!(logs.len(), 5, "{logs:?}");
    for files in [&meta, &chunks, &logs] {
        assert_eq!(secrets.find_in(files), Vec::<String>::new());
    }

    // What is not secret is found by the same search in the same files: it can find.
    let in_clear = Search::default().bytes("clear content", plain.as_bytes());
    let found = in_clear.find_in(&chunks);
    assert!(found.iter().any(|found| found.contains("shards")), "{found:?}");
    assert!(found.len() >= 4, "two copies of each: {found:?}");
    let known =
        Search::default().bytes("the check", &record.check).bytes("a wrapped key", &data_keys[0].wrapped);
    assert!(!known.find_in(&meta).is_empty());
    let chatter = Search::default().bytes("a level", b"TRACE Co");
    assert_eq!(chatter.find_in(&logs).len(), 5, "each log is talkative");
}
