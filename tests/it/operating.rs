//! What an operator does: looking at a cluster's health, finding out where a file is, running a cluster on one machine,
//! and getting settings wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{Running, run};
use dfs_tests::mounted::{is_mounted, require_fuse};
use dfs_tests::{programs, watchdog::Watchdog};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn admin(arguments: &[&str]) -> Output {
    run(Command::new(programs::program("dfs-admin")).args(arguments).env_remove("DFS_META"), PATIENCE)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn status(address: &str) -> (Option<i32>, Value) {
    let output = admin(&["status", "--json", "--meta", address]);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.code(), json)
}

#[test]
fn status_tells_a_clusters_health() {
    let quick = ["--heartbeat", "300ms", "--node-suspect-after", "1s", "--node-dead-after", "2s"];
    let cluster = Cluster::with().meta_args(quick).start();
    let mount = cluster.mount();
    fs::write(mount.join("file"), vec![1; 1_000_000]).unwrap();

    // Chunks are counted now and then, and nodes found missing after a while.
    let until = |what: &str, condition: &dyn Fn(Option<i32>, &Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (code, json) = status(cluster.address());
            if condition(code, &json) {
                return json;
            }
            assert!(Instant::now() < deadline, "not {what}: {code:?} {json:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let is = |health: &'static str, expected: i32| {
        move |code: Option<i32>, json: &Value| code == Some(expected) && json["health"] == health
    };
    let healthy = until("one chunk", &|_, json| json["chunks"]["total"] == 1);
    assert!(is("healthy", 0)(status(cluster.address()).0, &healthy), "{healthy:#}");
    assert_eq!(healthy["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(healthy["chunks"]["degraded"], 0);
    assert_eq!(healthy["files"], 2);
    let sessions = healthy["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 1);
    let client = sessions[0]["client"].as_str().unwrap();
    assert!(client.contains(&mount.path().display().to_string()), "{client}");
    let text = said(&admin(&["status", "--meta", cluster.address()]));
    assert!(
        text.starts_with("healthy: ") && text.contains("host2") && text.contains("replicated:3"),
        "{text}"
    );

    cluster.chunk(0).kill();
    until("degraded", &is("degraded", 1));
    cluster.chunk(1).kill();
    let risk = until("at risk", &is("at_risk", 2));
    assert_eq!(risk["chunks"]["missing"], 0, "one replica is left");
    cluster.chunk(2).kill();
    until("missing", &|code, json| code == Some(2) && json["chunks"]["missing"] == 1);
    cluster.chunks().iter().for_each(|chunk| chunk.start_again());
    until("healthy", &is("healthy", 0));

    cluster.meta().kill();
    let (code, gone) = status(cluster.address());
    assert_eq!((code, &gone["health"]), (Some(2), &"unreachable".into()));
    let output = admin(&["status", "--meta", cluster.address()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains(cluster.address()), "{}", said(&output));
}

#[test]
fn classes_are_set_and_told_and_refused_with_a_sentence() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let directory = mount.join("d");
    fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    let set = admin(&["class", "set", path, "ec:2+1"]);
    assert!(set.status.success(), "{}", said(&set));
    fs::write(directory.join("f"), vec![1; 500_000]).unwrap();
    for inside in ["d", "d/f"] {
        let get = admin(&["class", "get", mount.join(inside).to_str().unwrap()]);
        assert_eq!(said(&get), "ec:2+1\n");
    }
    for (class, why) in [
        ("ec:4+2", "this cluster cannot hold the class ec:4+2: it needs 6 chunk daemons, and there are 3"),
        ("raid5", "is not a class"),
        ("auto,zone=moon", "no chunk daemon is in the zone"),
    ] {
        let refused = admin(&["class", "set", path, class]);
        assert!(!refused.status.success() && said(&refused).contains(why), "{}", said(&refused));
    }
    let refused = admin(&["class", "set", mount.join("d/f").to_str().unwrap(), "replicated:2"]);
    assert!(!refused.status.success() && said(&refused).contains("not a directory"), "{}", said(&refused));
    let list = admin(&["class", "--meta", cluster.address(), "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let of = |class: &str| list.as_array().unwrap().iter().find(|row| row["class"] == class).unwrap().clone();
    assert_eq!(
        (of("ec:2+1")["can_be_held"].as_bool(), of("ec:4+2")["can_be_held"].as_bool()),
        (Some(true), Some(false))
    );
    assert_eq!(said(&admin(&["class", "get", path])), "ec:2+1\n", "what was refused changed nothing");
}

#[test]
fn info_tells_where_a_file_is() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    fs::create_dir(mount.join("directory")).unwrap();
    let path = mount.join("directory/file");
    fs::write(&path, vec![1; 300_000]).unwrap();
    fs::hard_link(&path, mount.join("other name")).unwrap();
    let info = |arguments: &[&str]| -> Value {
        let output = admin(&[&["info", "--json"], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let shown = path.display().to_string();
    let json = info(&[&shown]);
    assert_eq!(json["inode"], fs::metadata(&path).unwrap().ino());
    assert_eq!((&json["size"], &json["class"]), (&300_000.into(), &"replicated:3".into()));
    let mut paths: Vec<&str> =
        json["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/directory/file", "/other name"]);
    let covered: u64 =
        json["extents"].as_array().unwrap().iter().map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(covered, 300_000);
    let hosts: std::collections::BTreeSet<&str> = json["chunks"][0]["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["host"].as_str().unwrap())
        .collect();
    assert_eq!(
        hosts.into_iter().collect::<Vec<_>>(),
        ["host0", "host1", "host2"],
        "each replica on its own host"
    );

    assert_eq!(info(&["--meta", cluster.address(), "dfs:/other name"])["inode"], json["inode"]);
    assert_eq!(info(&[&mount.path().display().to_string()])["inode"], 1);
    // The root of a mounted directory is that directory.
    let part = cluster.mount_with("/directory", "");
    let root = info(&[&part.path().display().to_string()]);
    assert_eq!(root["paths"], serde_json::json!(["/directory"]));
    assert_eq!(info(&[&part.join("file").display().to_string()])["inode"], json["inode"]);

    let text = said(&admin(&["info", &shown]));
    assert!(text.contains("/other name") && text.contains("host1"), "{text}");
    let outside = admin(&["info", "/etc/passwd"]);
    assert_eq!(outside.status.code(), Some(1));
    assert!(said(&outside).contains("not dfs"), "{}", said(&outside));
    let missing = admin(&["info", "--meta", cluster.address(), "dfs:/not/here"]);
    assert!(said(&missing).contains("/not"), "{}", said(&missing));
}

#[test]
fn wrong_settings_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |program: &str, settings: &str, expected: &str| {
        let file = directory.path().join("settings.toml");
        fs::write(&file, settings).unwrap();
        let data = directory.path().join("data");
        let mut command = Command::new(programs::program(program));
        command.arg("--config").arg(&file).arg("--data").arg(&data);
        let output = run(&mut command, PATIENCE);
        let said = said(&output);
        assert!(!output.status.success(), "{program} takes {settings:?}: {said}");
        assert!(said.contains(expected), "{program} with {settings:?}: {expected:?} is not in {said:?}");
    };
    refused("dfs-meta", "listne = '127.0.0.1:0'", "listne");
    refused("dfs-meta", "listen = 'somewhere'", "listen");
    refused("dfs-meta", "garbage_grace = 'a while'", "garbage_grace");
    refused("dfs-meta", "cache = 12", "cache");
    refused("dfs-chunk", "rak = 'r1'", "rak");
    refused("dfs-chunk", "meta = ['127.0.0.1:1']\nreserve = 'plenty'", "reserve");
    refused("dfs-chunk", "meta = ['127.0.0.1:1']\nlisten = 'somewhere'", "listen");
}

#[test]
fn the_samples_of_settings_are_accepted() {
    let systemd = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let directory = tempfile::tempdir().unwrap();
    // Every key of the sample, also those that are commented out, is one that the daemon knows: the only thing wrong
    // is then the last one.
    for program in ["dfs-meta", "dfs-chunk"] {
        let sample = fs::read_to_string(systemd.join(format!("{program}.toml"))).unwrap();
        let uncommented: String = sample
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if is_setting(setting) => format!("{}\n", setting.trim_start()),
                _ => format!("{line}\n"),
            })
            .collect();
        let file = directory.path().join("settings.toml");
        fs::write(&file, uncommented + "\nnonsense = 1\n").unwrap();
        let output = run(Command::new(programs::program(program)).arg("--config").arg(&file), PATIENCE);
        let said = said(&output);
        assert!(!output.status.success() && said.contains("nonsense"), "{program}: {said}");
    }
}

/// "key = value", as opposed to a sentence.
fn is_setting(line: &str) -> bool {
    let key = line.trim_start().split_once(" = ").map_or("", |(key, _)| key);
    !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// A running `dfs-admin dev`.
struct Dev {
    running: Running,
    mount: std::path::PathBuf,
}

impl Dev {
    fn start(directory: &Path, more: &[&str]) -> Self {
        require_fuse();
        let mount = directory.join("mount");
        let mut command = Command::new(programs::program("dfs-admin"));
        command.arg("dev").arg(&mount).arg("--data").arg(directory.join("data")).args(more);
        let mut running = Running::start(&mut command);
        running.wait_for("try: ");
        Self { running, mount }
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&[self.running.stdout(), self.running.stderr()].concat()).into_owned()
    }

    /// The process id and the rest of the line about a daemon.
    fn child_line(&self, name: &str) -> (Pid, String) {
        let output = self.output();
        let line = output
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{name} ")))
            .unwrap_or_default();
        let mut words = line.split_whitespace().skip_while(|word| *word != "pid").skip(1);
        let pid =
            words.next().and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no {name}: {output}"));
        (Pid::from_raw(pid), words.collect::<Vec<_>>().join(" "))
    }

    fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let ended = self.running.wait(PATIENCE);
        ended.unwrap_or_else(|| panic!("dev does not end: {}", self.output()))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dev printed:\n{}", self.output());
        }
        if self.running.ended().is_none() {
            self.signal(Signal::SIGTERM);
            self.running.wait(PATIENCE);
        }
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn is_alive(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

#[test]
fn a_development_cluster_runs_tells_and_stops() {
    let _watchdog = Watchdog::new(Duration::from_secs(300));
    let directory = tempfile::Builder::new().prefix("dfs-tests-").tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &["--chunks", "4"]);
    let (meta, place) = dev.child_line("dfs-meta");
    let address = place.split(' ').next().unwrap().to_owned();
    let daemons: Vec<Pid> =
        ["dfs-meta", "dfs-chunk-1", "dfs-chunk-4", "dfs-fuse"].map(|name| dev.child_line(name).0).into();
    fs::write(dev.mount.join("file"), "kept").unwrap();
    let (code, json) = status(&address);
    assert_eq!((code, json["nodes"].as_array().unwrap().len()), (Some(0), 4), "{json:#}");
    // Found without being told where it is, while nobody has the default port but perhaps itself.
    assert!(admin(&["info", &dev.mount.join("file").display().to_string()]).status.success());
    let found: Value = serde_json::from_slice(&admin(&["status", "--json"]).stdout).unwrap();
    let default = "127.0.0.1:7600";
    assert!(found["server"] == address.as_str() || found["server"] == default, "{found:#}");

    // Who dies is told: which, how, and where its log is.
    kill(dev.child_line("dfs-chunk-2").0, Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !dev.output().contains("was killed by SIGKILL") {
        assert!(Instant::now() < deadline, "a death is not told: {}", dev.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = dev.output();
    let line = output.lines().find(|line| line.contains("SIGKILL")).unwrap();
    assert!(line.contains("dfs-chunk-2") && line.contains("dfs-chunk-2.log"), "{line}");
    assert!(is_alive(meta));

    dev.signal(Signal::SIGTERM);
    let status = dev.wait();
    assert_eq!(status.code(), Some(0), "{}", dev.output());
    assert!(!is_mounted(&dev.mount));
    assert!(daemons.iter().all(|pid| !is_alive(*pid)), "daemons outlive the cluster");
    drop(dev);

    // The same directory again: the files are there. Ctrl-C while somebody is inside detaches the mount.
    let keys = directory.path().join("keys, some");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("unknown"), "x").unwrap();
    let options = ["--chunks", "4", "-o", "noatime", "--keys", keys.to_str().unwrap()];
    let mut dev = Dev::start(directory.path(), &options);
    let log = fs::read_to_string(directory.path().join("data/log/dfs-fuse.log")).unwrap();
    assert!(log.contains("a key is left out") && log.contains("\"unknown\""), "{log}");
    assert_eq!(fs::read_to_string(dev.mount.join("file")).unwrap(), "kept");
    let inside = fs::File::open(dev.mount.join("file")).unwrap();
    dev.signal(Signal::SIGINT);
    let status = dev.wait();
    assert_eq!(status.code(), Some(0), "{}", dev.output());
    assert!(dev.output().contains("is in use"), "{}", dev.output());
    assert!(!is_mounted(&dev.mount));
    drop(inside);
    drop(dev);

    // Killed, it takes its daemons with it.
    let mut dev = Dev::start(directory.path(), &[]);
    let daemons = ["dfs-meta", "dfs-chunk-1", "dfs-fuse"].map(|name| dev.child_line(name).0);
    dev.signal(Signal::SIGKILL);
    dev.wait();
    let deadline = Instant::now() + Duration::from_secs(30);
    while daemons.iter().any(|pid| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "daemons outlive a killed parent: {daemons:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!is_mounted(&dev.mount), "the mount outlives a killed parent");
}
