//! Other programs run by tests: each within a bound, and with a sentence when it fails, hangs or is not installed.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What a command that a test runs may take at most, unless told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a command that must succeed, and returns what it printed.
///
/// # Panics
/// When it fails, takes longer than [`PATIENCE`], or is not installed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command, PATIENCE);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{command:?} failed ({}): {errors}{}", output.status, last_lines(&printed));
    }
    printed
}

/// Runs a shell script with `set -e` in a directory; it must succeed. `$1`… are `arguments`.
pub fn shell(directory: &Path, script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("bash");
    command.current_dir(directory).args(["-euo", "pipefail", "-c", script, "bash"]).args(arguments);
    succeed(&mut command)
}

/// Runs a command to its end, whatever that is.
///
/// # Panics
/// When it takes longer than `patience` (it is killed) or is not installed.
pub fn run(command: &mut Command, patience: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let name = command.get_program().to_string_lossy().into_owned();
            panic!("this test needs {name}: install it (on Debian: apt-get install {})", package(&name));
        }
        Err(error) => panic!("start {command:?}: {error}"),
    };
    let output = gather(child.stdout.take().expect("piped"));
    let errors = gather(child.stderr.take().expect("piped"));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().expect("wait for a child") {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                let _ = child.kill();
                panic!("{command:?} was still running after {patience:?}");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let join = |reader: std::thread::JoinHandle<Vec<u8>>| reader.join().expect("readers don't panic");
    Output { status, stdout: join(output), stderr: join(errors) }
}

/// Fails the test unless a program is installed.
pub fn require(program: &str) {
    run(Command::new(program).arg("--version"), PATIENCE);
}

/// Reads a pipe to its end on a thread of its own, so that the writer never waits.
fn gather(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// The Debian package that a program comes in, where its name is another.
fn package(program: &str) -> &str {
    match program {
        "setfacl" | "getfacl" => "acl",
        "setfattr" | "getfattr" => "attr",
        "mount" | "umount" | "unshare" | "flock" => "util-linux",
        "diff" | "cmp" => "diffutils",
        other => other,
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_returned() {
        assert_eq!(shell(Path::new("/"), "echo $1", &[Path::new("x")]), "x\n");
    }

    #[test]
    #[should_panic(expected = "apt-get install no-such-program")]
    fn what_is_missing_is_named() {
        require("no-such-program");
    }

    #[test]
    #[should_panic(expected = "still running")]
    fn what_hangs_is_killed() {
        run(Command::new("sleep").arg("60"), Duration::from_millis(100));
    }
}
