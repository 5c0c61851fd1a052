//! Who may do what where the kernel can't decide alone.

use std::process::Command;
use std::time::Duration;

use dfs_proto::{Attr, Code, Ino};
use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{self, PATIENCE, Running};
use dfs_tests::library_target::{LibraryTarget, regular_file};

/// Opens and appends to one name for ever, as nobody, making the file where there is none.
const APPEND_AS_NOBODY: &str = "use Fcntl; ($(, $)) = (65534, 65534); ($<, $>) = (65534, 65534);
while (1) { if (sysopen(my $f, $ARGV[0], O_WRONLY | O_CREAT | O_APPEND, 0600)) { syswrite($f, 'x'); } }";
/// Files that root tries to make, at most, and how often each of the two must have been the first.
const ROUNDS: u64 = 5_000;
const MEETINGS: usize = 30;

/// open(2) with O_CREAT makes a file or opens the one that is there, which another client may have made a moment ago: then
/// its owner and mode count like those of any file.
#[test]
fn a_file_that_was_just_made_elsewhere_is_not_opened_by_who_may_not() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    commands::shell(mount.path(), "mkdir -m 0777 open", &[]);
    let client = LibraryTarget::connect(cluster.address());
    let fs = client.fs();
    let directory = Ino(client.run(fs.lookup(fs.root(), b"open")).unwrap().ino);
    let mut nobody =
        Running::start(Command::new("perl").args(["-we", APPEND_AS_NOBODY]).arg(mount.join("open/file")));
    let (mut made, mut met) = (0, 0);
    for round in 0..ROUNDS {
        if made >= MEETINGS && met >= MEETINGS {
            break;
        }
        match client.run(fs.create(directory, b"file", regular_file(0o600))) {
            Ok(Attr { ino, .. }) => {
                std::thread::sleep(Duration::from_millis(2));
                let size = client.run(fs.getattr(Ino(ino))).unwrap().size;
                assert_eq!(size, 0, "nobody wrote into root's file of mode 0600");
                made += 1;
            }
            Err(failure) if failure.code == Code::Exists => met += 1,
            Err(failure) => panic!("{failure}"),
        }
        client.run(fs.unlink(directory, b"file")).unwrap();
        // Sooner or later than nobody's next look at the name.
        std::thread::sleep(Duration::from_micros(round * 37 % 1500));
    }
    assert!(made >= MEETINGS && met >= MEETINGS, "root made {made} files, nobody {met}");
    assert_eq!(nobody.ended(), None, "nobody is still at it");
    nobody.signal(nix::sys::signal::Signal::SIGKILL);
    nobody.wait(PATIENCE).unwrap();
}
