//! `fsx`: random reads, writes, mappings and holes in one file, against what it must hold.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::Cluster;
use crate::commands::{self, run};
use crate::programs;

const CONFIGURATION: &str = "
    flen = 1048576
    [weights]
    close_open = 0.5
    invalidate = 0.5
    mapread = 1
    mapwrite = 1
    read = 1
    write = 1
    truncate = 1
    fsync = 0.5
    fdatasync = 0.5
    posix_fallocate = 1
    punch_hole = 1
    sendfile = 0.5
    posix_fadvise = 0.5
    copy_file_range = 1
";

/// Runs it on each of these files at once, each with its own seed.
///
/// # Panics
/// When it finds something.
pub fn run_on(cluster: &Cluster, files: &[(PathBuf, u32)], operations: u32) {
    let tool = programs::tool("fsx", "0.3.2");
    let configuration = cluster.directory().join("fsx.toml");
    std::fs::write(&configuration, CONFIGURATION).expect("write fsx's configuration");
    std::thread::scope(|scope| {
        for (file, seed) in files {
            let (tool, configuration) = (&tool, &configuration);
            scope.spawn(move || run_one(tool, configuration, cluster.directory(), file, *seed, operations));
        }
    });
}

fn run_one(tool: &Path, configuration: &Path, artifacts: &Path, file: &Path, seed: u32, operations: u32) {
    let mut command = Command::new(tool);
    command.arg("-f").arg(configuration).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
    let output = run(command.arg(artifacts).arg(file), commands::PATIENCE);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let tail: String = said.chars().skip(said.chars().count().saturating_sub(6000)).collect();
    assert!(output.status.success() && said.contains("A-OK"), "{} with seed {seed}: {tail}", file.display());
}
