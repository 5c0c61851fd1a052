//! The daemons' binaries, built once for the profile of the running test, and the tools from crates.io that some suites
//! run, installed under the target directory when they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::commands;

/// How long cargo may take to build something, on a small machine with others at work.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The directory with `dfs-meta`, `dfs-chunk`, `dfs-fuse` and `dfs-admin`, up to date with the sources.
///
/// # Panics
/// When they can't be built.
pub fn directory() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

/// The path of one of the workspace's binaries.
pub fn program(name: &str) -> PathBuf {
    directory().join(name)
}

/// The path of a tool of crates.io, installed on first use. Versions are exact, so that a suite means the same anywhere.
///
/// # Panics
/// When it is neither there nor can be installed.
pub fn tool(name: &str, version: &str) -> PathBuf {
    // Two tests of one process must not install the same tool at once; two processes are kept apart by cargo's lock.
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _installing = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let root = target_directory().join("tools");
    let path = root.join("bin").join(name);
    let known = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if path.exists() && known.contains(&format!("\"{name} {version} ")) {
        return path;
    }
    let mut install = cargo();
    install
        .args(["install", "--locked", "--root"])
        .arg(&root)
        // A build directory of its own would be compiled anew each time; this one is kept.
        .arg("--target-dir")
        .arg(root.join("build"))
        .args([name, "--version", version]);
    let output = commands::run(&mut install, PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {version} can't be installed: {said}");
    path
}

/// The target directory of the running test.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().expect("a profile's directory lies in the target directory").to_owned()
}

/// `target/debug` for `target/debug/deps/it-0123456789abcdef`.
fn profile_directory() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own executable");
    let deps = executable.parent().expect("an executable lies in a directory");
    deps.parent().expect("deps lies in a profile's directory").to_owned()
}

fn build() -> PathBuf {
    let directory = profile_directory();
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    let mut build = cargo();
    build
        .current_dir(workspace)
        .args(["build", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(target_directory());
    let output = commands::run(&mut build, PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the daemons can't be built: {said}");
    directory
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
