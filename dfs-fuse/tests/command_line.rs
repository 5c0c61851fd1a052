//! The command as mount(8) and people meet it where there is no cluster: exit codes, sentences, nothing left mounted.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn dfs_fuse(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dfs-fuse")).args(arguments).output().expect("run dfs-fuse")
}

fn sentence(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("sentences are UTF-8")
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn wrong_usage_is_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().to_str().unwrap();
    for (arguments, told) in [
        (&["meta:/", target, "-o", "ro,frobnicate=1"][..], "unknown mount option \"frobnicate\""),
        (&["meta:/"], "a source and a mount point"),
        (&["meta", target], "\"meta\" is not a dfs source"),
        (&["meta:/", target, "-o", "timeout=soon"], "timeout=soon"),
        (&["meta:/", target, "-q"], "-q"),
    ] {
        let output = dfs_fuse(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(sentence(&output).contains(told), "{arguments:?}: {}", sentence(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (argument, told) in [("--help", "timeout=SECONDS"), ("-V", env!("CARGO_PKG_VERSION"))] {
        let output = dfs_fuse(&[argument]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains(told));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn a_mount_point_that_cannot_be_is_exit_code_32() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let output = dfs_fuse(&["meta:/", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(32));
    assert!(sentence(&output).contains("does not exist"), "{}", sentence(&output));
    let output = dfs_fuse(&["meta:/", "/dev/null"]);
    assert_eq!(output.status.code(), Some(32));
    assert!(sentence(&output).contains("is not a directory"), "{}", sentence(&output));
}

/// Servers that refuse, that are silent, and that don't exist: in the background and in the foreground the command
/// fails in time, says why, and leaves nothing mounted.
#[test]
fn without_a_server_the_command_fails_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let refusing_port = {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        bound.local_addr().unwrap().port()
    };
    for source in [
        format!("127.0.0.1:{refusing_port}:/"),
        format!("127.0.0.1:{silent_port}:/"),
        format!("no-such-host.invalid,127.0.0.1:{refusing_port}:/sub"),
    ] {
        for more in ["", ",foreground"] {
            let directory = tempfile::tempdir().unwrap();
            let target = directory.path();
            let start = Instant::now();
            let output = dfs_fuse(&[&source, target.to_str().unwrap(), "-o", &format!("timeout=1{more}")]);
            assert_eq!(output.status.code(), Some(32), "{source} {more}: {}", sentence(&output));
            assert!(start.elapsed() < Duration::from_secs(20), "{source} took {:?}", start.elapsed());
            let told = sentence(&output);
            assert!(told.contains(&format!("dfs-fuse: mount {source}: ")), "{told}");
            assert!(!is_mounted(target));
        }
    }
}

#[test]
fn faking_checks_and_mounts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().to_str().unwrap();
    assert_eq!(dfs_fuse(&["meta:/", target, "-f", "-o", "rw,_netdev"]).status.code(), Some(0));
    assert!(!is_mounted(directory.path()));
    assert_eq!(dfs_fuse(&["meta:/", target, "-f", "-o", "nonsense"]).status.code(), Some(1));
}

#[test]
fn remounting_what_is_not_mounted_fails() {
    let directory = tempfile::tempdir().unwrap();
    let output = dfs_fuse(&["meta:/", directory.path().to_str().unwrap(), "-o", "remount,ro"]);
    assert_eq!(output.status.code(), Some(32));
    assert!(sentence(&output).contains("no dfs is mounted"), "{}", sentence(&output));
}
