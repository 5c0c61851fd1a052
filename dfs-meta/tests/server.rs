//! The server as a process of its own: how it starts, answers, refuses, is killed and stops.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dfs_proto::limits::{MAX_MESSAGE, RPC_DEADLINE};
use dfs_proto::meta::meta_client::MetaClient;
use dfs_proto::meta::{
    Create, Event, GetAttr, Heartbeat, Lookup, OpenSession, Reply, Request, SessionOpened, SetXattr, Status,
    WatchRequest, event, reply, request,
};
use dfs_proto::{Attr, Code, Failure, FileKind, PROTOCOL_VERSION};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use tonic::transport::{Channel, Endpoint};

/// A running server; killed when dropped.
struct Server {
    child: Child,
    address: String,
    cluster: String,
}

/// How long a process may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(30);

fn command(directory: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfs-meta"));
    command.arg("--data").arg(directory).args(["--listen", listen, "--reserve", "1MiB", "--cache", "4MiB"]);
    command
}

impl Server {
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, "127.0.0.1:0", &[])
    }

    fn start_with(directory: &Path, listen: &str, arguments: &[&str]) -> Self {
        let mut command = command(directory, listen);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().expect("start dfs-meta");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("its output"));
        out.read_line(&mut line).expect("read its output");
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["dfs-meta:", "cluster", cluster, "listening", "on", address] = words[..] else {
            panic!("dfs-meta said {line:?}");
        };
        Self { address: address.to_owned(), cluster: cluster.to_owned(), child }
    }

    async fn client(&self) -> MetaClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        let channel = endpoint.timeout(RPC_DEADLINE).connect().await.expect("connect to dfs-meta");
        MetaClient::new(channel).max_encoding_message_size(2 * MAX_MESSAGE)
    }

    /// SIGTERM; its exit code.
    fn terminate(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("send SIGTERM");
        wait(&mut self.child)
    }

    fn kill(mut self) {
        self.child.kill().expect("kill dfs-meta");
        self.child.wait().expect("wait for dfs-meta");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for dfs-meta") {
            return status.code();
        }
        assert!(started.elapsed() < PATIENCE, "dfs-meta does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

async fn call(client: &MetaClient<Channel>, request: Request) -> Result<reply::Result, Failure> {
    let Reply { result, .. } = client.clone().call(request).await?.into_inner();
    match result.expect("a reply has a result") {
        reply::Result::Error(error) => Err(error.into()),
        result => Ok(result),
    }
}

fn request(op: request::Op) -> Request {
    Request { op: Some(op), ..Request::default() }
}

fn root() -> Request {
    request(request::Op::GetAttr(GetAttr { ino: 1 }))
}

async fn open_session(client: &MetaClient<Channel>) -> SessionOpened {
    let op = OpenSession { protocol: PROTOCOL_VERSION, client: "a test".into(), version: "1".into() };
    match call(client, request(request::Op::OpenSession(op))).await.expect("open a session") {
        reply::Result::SessionOpened(opened) => opened,
        other => panic!("{other:?}"),
    }
}

fn numbered(session: &SessionOpened, slot: u32, number: u64, op: request::Op) -> Request {
    Request { session: session.session, epoch: session.epoch, slot, number, ..request(op) }
}

fn create(name: &str) -> request::Op {
    let kind = FileKind::Regular.into();
    let name = name.to_owned().into();
    request::Op::Create(Create { parent: 1, name, kind, mode: 0o644, exclusive: true, ..Create::default() })
}

async fn lookup(client: &MetaClient<Channel>, name: &str) -> Result<Attr, Failure> {
    let op = Lookup { parent: 1, name: name.to_owned().into() };
    match call(client, request(request::Op::Lookup(op))).await? {
        reply::Result::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn it_starts_again_as_the_same_cluster_and_stops_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("made/on/the/way"));
    let reply = server.client().await.call(root()).await.unwrap().into_inner();
    assert_eq!(reply.boot, 1);
    let cluster = server.cluster.clone();
    assert_eq!(server.terminate(), Some(0));
    let server = Server::start(&directory.path().join("made/on/the/way"));
    assert_eq!(server.cluster, cluster);
    assert_eq!(server.client().await.call(root()).await.unwrap().into_inner().boot, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_while_a_session_watches() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let client = server.client().await;
    let session = open_session(&client).await;
    let watch = WatchRequest { session: session.session, epoch: session.epoch };
    let mut events = client.clone().watch(watch).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some(), "the stream stands");
    let started = Instant::now();
    assert_eq!(tokio::task::spawn_blocking(move || server.terminate()).await.unwrap(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    // The stream ends; it does not hang.
    while let Ok(Some(_)) = events.message().await {}
}

#[tokio::test]
async fn a_second_server_on_the_same_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(directory.path());
    let mut second = command(directory.path(), "127.0.0.1:0")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut second), Some(1));
    let mut said = String::new();
    second.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("in use by another metadata server"), "{said}");
    call(&first.client().await, root()).await.expect("the first one is not disturbed");
}

#[test]
fn wrong_settings_end_it_with_2_and_their_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dfs-meta.toml");
    std::fs::write(&file, "data = '/nowhere'\ngarbage_grase = '1m'").unwrap();
    for (arguments, name) in [
        (&["--config", file.to_str().unwrap()][..], "garbage_grase"),
        (&["--data", "/nowhere", "--heartbeat", "soon"], "heartbeat"),
        (&["--data", "/nowhere", "--no-such-flag"], "--no-such-flag"),
        (&["--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (&[], "data"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dfs-meta")).args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(name), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn malformed_and_oversized_requests_are_refused_and_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let client = server.client().await;
    let session = open_session(&client).await;
    let value = vec![0; MAX_MESSAGE + 1].into();
    let oversized = request::Op::SetXattr(SetXattr { ino: 1, value, ..SetXattr::default() });
    let oversized = client.clone().call(numbered(&session, 0, 1, oversized)).await.unwrap_err();
    assert_eq!(oversized.code(), tonic::Code::OutOfRange, "{oversized}");
    let strange = Request { op: None, ..root() };
    assert_eq!(call(&client, strange).await.unwrap_err().code, Code::VersionUnknown);
    let other = Request { cluster: vec![9; 16].into(), ..root() };
    assert_eq!(call(&client, other).await.unwrap_err().code, Code::WrongCluster);
    // Bytes that are not even HTTP/2, and a connection that says nothing.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b""] {
        use std::io::Write;
        let mut stranger = std::net::TcpStream::connect(&server.address).unwrap();
        stranger.write_all(bytes).unwrap();
    }
    call(&client, root()).await.unwrap();
    match call(&client, request(request::Op::Status(Status {}))).await.unwrap() {
        reply::Result::ClusterStatus(status) => assert_eq!(status.sessions.len(), 1),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_silent_session_is_told_that_it_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let times = ["--heartbeat", "200ms", "--session-timeout", "1500ms"];
    let server = Server::start_with(directory.path(), "127.0.0.1:0", &times);
    let client = server.client().await;
    let (silent, lively) = (open_session(&client).await, open_session(&client).await);
    let watch = WatchRequest { session: silent.session, epoch: silent.epoch };
    let mut events = client.clone().watch(watch).await.unwrap().into_inner();
    let hello = events.message().await.unwrap().unwrap();
    assert!(matches!(hello, Event { boot: 1, event: Some(event::Event::Hello(_)) }));
    let heartbeat = |session: &SessionOpened| Request {
        session: session.session,
        epoch: session.epoch,
        ..request(request::Op::Heartbeat(Heartbeat {}))
    };
    let started = Instant::now();
    let told = tokio::spawn(async move { events.message().await });
    while !told.is_finished() {
        call(&client, heartbeat(&lively)).await.expect("one that is heard of stays");
        assert!(started.elapsed() < PATIENCE, "nobody is fenced");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let event = told.await.unwrap().unwrap().unwrap();
    assert!(matches!(event.event, Some(event::Event::Fenced(_))), "{event:?}");
    assert!(started.elapsed() >= Duration::from_millis(1400), "too early");
    let refused = call(&client, heartbeat(&silent)).await.unwrap_err();
    assert_eq!(refused.code, Code::SessionExpired);
    let refused = call(&client, numbered(&silent, 0, 1, create("late"))).await.unwrap_err();
    assert_eq!(refused.code, Code::SessionExpired, "who was fenced changes nothing");
    let watch = WatchRequest { session: silent.session, epoch: silent.epoch };
    assert!(client.clone().watch(watch).await.is_err());
}

/// Callers create files, each on a slot of its own, while the server is killed again and again. What was answered is
/// there; what was not is sent again with the same number and takes effect exactly once.
#[tokio::test(flavor = "multi_thread")]
async fn each_request_takes_effect_once_however_often_the_server_is_killed() {
    const CALLERS: u32 = 8;
    const KILLS: usize = 10;
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path());
    let session = open_session(&server.client().await).await;
    // Of each caller: the number to be sent next, and whether it may have been sent before.
    let mut next: Vec<u64> = vec![1; CALLERS as usize];
    for _ in 0..KILLS {
        let client = server.client().await;
        let callers = (0..CALLERS).map(|slot| {
            let (client, session, mut number) = (client.clone(), session.clone(), next[slot as usize]);
            tokio::spawn(async move {
                loop {
                    let request = numbered(&session, slot, number, create(&format!("{slot}-{number}")));
                    match call(&client, request).await {
                        Ok(_) => number += 1,
                        Err(failure) if failure.code == Code::Unavailable => return number,
                        Err(failure) => panic!("create {slot}-{number}: {:?} {failure}", failure.code),
                    }
                }
            })
        });
        let callers: Vec<_> = callers.collect();
        let milliseconds = rand::rng().random_range(20..300);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let address = server.address.clone();
        server.kill();
        for (caller, next) in callers.into_iter().zip(&mut next) {
            *next = caller.await.unwrap();
        }
        server = Server::start_with(directory.path(), &address, &[]);
        let client = server.client().await;
        for (slot, &next) in next.iter().enumerate() {
            if next > 1 {
                let answered = format!("{slot}-{}", next - 1);
                lookup(&client, &answered).await.expect("what was answered is there");
            }
        }
    }
    let client = server.client().await;
    let mut files = 0;
    for (slot, &next) in next.iter().enumerate() {
        let again = numbered(&session, slot as u32, next, create(&format!("{slot}-{next}")));
        call(&client, again).await.expect("the last one is settled");
        for number in 1..=next {
            lookup(&client, &format!("{slot}-{number}")).await.expect("every number took effect");
            files += 1;
        }
        let refused = lookup(&client, &format!("{slot}-{}", next + 1)).await.unwrap_err();
        assert_eq!(refused.code, Code::NotFound);
    }
    match call(&client, request(request::Op::Status(Status {}))).await.unwrap() {
        reply::Result::ClusterStatus(status) => assert_eq!(status.files, files + 1, "no inode is left over"),
        other => panic!("{other:?}"),
    }
    assert!(files > 50, "hardly anything was created: {files}");
}
