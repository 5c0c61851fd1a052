//! The program: what it prints, how it refuses, how it stops.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{codes, connect, content, frames, header, read};
use crate::meta::FakeMeta;

/// A daemon in a process of its own; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
}

pub(crate) fn command(meta: &FakeMeta, data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfs-chunk"));
    command.arg("--data").arg(data).args(["--listen", "127.0.0.1:0", "--reserve", "1MiB"]);
    command.args(["--meta", &meta.address.to_string(), "--log-level", "warn"]);
    command
}

impl Process {
    /// Starts it and waits for its line of readiness.
    pub(crate) async fn start(meta: &FakeMeta, data: &Path) -> Self {
        let mut child = command(meta, data).stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).map(|_| line)
        });
        let line = line.await.unwrap().unwrap();
        let (start, address) =
            line.trim_end().split_once(" listening on ").unwrap_or_else(|| panic!("{line:?}"));
        assert!(start.starts_with("dfs-chunk: node "), "{line:?}");
        Self { child, address: address.to_owned() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "the daemon does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_after_what_is_under_way() {
    let meta = FakeMeta::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Process::start(&meta, directory.path()).await;
    let (sender, stream) = tokio::sync::mpsc::channel(1);
    let mut client = connect(&daemon.address);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let put = tokio::spawn(async move { client.put(stream).await.map(|reply| codes(&reply.into_inner())) });
    let data = content(1, 3_000_000);
    let mut frames = frames(header(1, data.len(), vec![]), &data).into_iter();
    sender.send(frames.next().unwrap()).await.unwrap();
    sender.send(frames.next().unwrap()).await.unwrap();
    while std::fs::read_dir(directory.path().join("tmp")).unwrap().count() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    sender.send(frames.next().unwrap()).await.unwrap();
    drop(sender);
    assert_eq!(put.await.unwrap().unwrap(), [None], "what had begun is finished");
    assert_eq!(daemon.wait().await.code(), Some(0));

    let daemon = Process::start(&meta, directory.path()).await;
    assert!(read(connect(&daemon.address), 1, 0, 0, data.len() as u64).await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_it_while_the_metadata_server_is_away() {
    let mut meta = FakeMeta::start().await;
    meta.go_away();
    let directory = tempfile::tempdir().unwrap();
    let child = command(&meta, directory.path()).stdout(Stdio::null()).spawn().unwrap();
    let mut daemon = Process { child, address: String::new() };
    while !directory.path().join("identity.toml").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().await.code(), Some(0));
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    (output, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_and_foreign_disks_are_refused_by_name() {
    let meta = FakeMeta::start().await;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let settings = directory.path().join("settings.toml");
    for (toml, name) in [("reserv = '1MiB'", "reserv"), ("reserve = 'much'", "reserve"), ("meta = 3", "meta")]
    {
        std::fs::write(&settings, toml).unwrap();
        let mut command = command(&meta, &data);
        command.env_remove("RUST_BACKTRACE");
        let (output, text) = run({
            let mut plain = Command::new(command.get_program());
            plain.arg("--data").arg(&data).arg("--config").arg(&settings);
            plain
        });
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(name) && !text.contains("panicked"), "{text}");
    }
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("letter.txt"), "dear").unwrap();
    let (output, text) = run(command(&meta, &data));
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("letter.txt"), "{text}");

    std::fs::remove_file(data.join("letter.txt")).unwrap();
    let ready = directory.path().join("ready");
    let mut with_ready_file = command(&meta, &data);
    let child = with_ready_file.arg("--ready-file").arg(&ready).stdout(Stdio::null()).spawn().unwrap();
    let daemon = Process { child, address: String::new() };
    while !ready.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let address = std::fs::read_to_string(&ready).unwrap();
    assert_eq!(address.trim(), meta.state().joins.last().unwrap().address);
    let (output, text) = run(command(&meta, &data));
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("in use by another chunk daemon"), "{text}");
    daemon.kill();
}
