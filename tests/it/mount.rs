//! The mount as mount(8), fstab and an operator use it: the helper's manners, options, a daemon in the background, and
//! what a dead one leaves.
//!
//! Commands run in a mount namespace of their own, where the helper lies in /sbin as an installation puts it; so nothing
//! of the machine is changed, and nothing stays mounted.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use dfs_tests::cluster::Cluster;
use dfs_tests::commands::{self, run};
use dfs_tests::mounted::{is_mounted, require_fuse};
use dfs_tests::programs;

/// A script's patience: a mount that is refused waits for servers that are away at most so long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a script where `mount -t fuse.dfs` works; `$M` is a mount point, `$S` the source of the root.
fn script(cluster: &Cluster, text: &str) -> Output {
    require_fuse();
    let directory = cluster.directory();
    for name in ["upper", "work", "point"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    let helper = programs::program("dfs-fuse");
    let prologue = format!(
        "set -eu
         trap 'echo \"this failed: $BASH_COMMAND\" >&2' ERR
         # Mounts of other tests, which end for them only when they are gone from here too.
         awk '$3 == \"fuse.dfs\" {{ print $2 }}' /proc/self/mounts | while read -r other; do umount -l \"$other\"; done
         mount -t tmpfs tmpfs {upper}
         mkdir {upper}/upper {upper}/work
         mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir={upper}/upper,workdir={upper}/work /usr/sbin
         ln -sf {helper} /usr/sbin/mount.fuse.dfs
         M={point} S={address}:/
         # Whatever happens, nothing is left mounted, and the daemon in the background ends.
         trap 'cd /; while umount -l $M 2>/dev/null; do :; done' EXIT\n",
        upper = directory.join("upper").display(),
        helper = helper.display(),
        point = directory.join("point").display(),
        address = cluster.address(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", &(prologue + text)]);
    run(&mut command, PATIENCE)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a script that must succeed.
fn succeed(cluster: &Cluster, text: &str) -> String {
    let output = script(cluster, text);
    assert!(output.status.success(), "{text}\nfailed ({}): {}", output.status, said(&output));
    said(&output)
}

#[test]
fn mount_returns_when_the_mount_answers_and_umount_when_all_is_written() {
    let cluster = Cluster::start();
    let text = "
        mount -t fuse.dfs $S $M
        echo hello > $M/file
        mkdir $M/sub && echo deep > $M/sub/file
        head -c 3000000 /dev/urandom > $M/large; sum=$(cksum < $M/large)
        umount $M
        ! test -e $M/file
        mount -t fuse.dfs $S $M
        test \"$(cat $M/file)\" = hello
        test \"$(cksum < $M/large)\" = \"$sum\"
        findmnt --noheadings --output FSTYPE,SOURCE $M | grep -q \"fuse.dfs *$S\"
        umount $M
        mount -t fuse.dfs ${S}sub $M
        test \"$(cat $M/file)\" = deep
        test \"$(cd $M/.. && stat -c %i point)\" = 1
        umount $M";
    succeed(&cluster, text);
}

#[test]
fn a_line_of_fstab_is_enough() {
    let cluster = Cluster::start();
    let text = "
        echo \"$S $M fuse.dfs rw,_netdev,nofail,noauto,x-systemd.automount,comment=mine,noatime 0 0\" > $M/../fstab
        mount --fstab $M/../fstab $M
        echo hello > $M/file && sync $M/file && cat $M/file
        umount $M";
    assert_eq!(succeed(&cluster, text), "hello\n");
}

#[test]
fn keys_are_given_as_any_option_is() {
    let cluster = Cluster::start();
    let admin = format!("{} ", programs::program("dfs-admin").display());
    let text = "
        ADMIN key --meta ${S%:/} create k --file $M/../k.key >/dev/null
        cp -p $M/../k.key \"$M/../a,b.key\"
        mount -t fuse.dfs $S $M -o noatime,key=k:$M/../k.key,sync
        mkdir $M/d && ADMIN class set $M/d replicated:2,encrypt=k && echo hello > $M/d/file
        umount $M
        mount -t fuse.dfs $S $M
        ! cat $M/d/file 2>/dev/null && test $(stat -c %s $M/d/file) = 6
        umount $M
        echo \"$S $M fuse.dfs _netdev,key=\\\"k:$M/../a,b.key\\\",noauto,ro 0 0\" > $M/../fstab
        mount --fstab $M/../fstab $M
        cat $M/d/file
        umount $M
        head -c 32 /dev/zero > $M/../k.key
        mount -t fuse.dfs $S $M -o key=k:$M/../k.key && exit 1 || test $? = 32
        ! mountpoint -q $M";
    let told = succeed(&cluster, &text.replace("ADMIN ", &admin));
    assert!(told.starts_with("hello\n"), "{told}");
    assert!(told.contains("that is not the key \"k\": these bytes are another key"), "{told}");
}

#[test]
fn options_are_honoured() {
    let cluster = Cluster::start();
    let text = "
        mount -t fuse.dfs $S $M -o dev,suid,exec
        printf '#!/bin/sh\\necho ran\\n' > $M/program && chmod 755 $M/program
        mknod $M/zero c 1 5 && test \"$($M/program)\" = ran && head -c 1 $M/zero >/dev/null
        umount $M
        mount -t fuse.dfs $S $M -o ro
        ! touch $M/new 2>/dev/null && cat $M/program >/dev/null
        umount $M
        mount -t fuse.dfs $S $M -o nodev,noexec,nosuid
        ! $M/program 2>/dev/null && ! head -c 1 $M/zero 2>/dev/null
        findmnt -no OPTIONS $M | grep nosuid | grep -q nodev
        umount $M
        mount -t fuse.dfs $S $M -o sync,noatime,timeout=5,log=$M/../mount.log
        before=$(stat -c %X $M/program); touch -d '10 days ago' -a $M/program; before=$(stat -c %X $M/program)
        cat $M/program > /dev/null; test $(stat -c %X $M/program) = $before
        echo hello > $M/file
        umount $M
        test -e $M/../mount.log
        mount -t fuse.dfs $S $M
        touch -d '10 days ago' -a $M/program; before=$(stat -c %X $M/program)
        cat $M/program > /dev/null; sleep 2; test $(stat -c %X $M/program) != $before
        mount -o remount,ro $M && ! touch $M/new 2>/dev/null && mount -o remount,rw $M && touch $M/new
        umount $M";
    succeed(&cluster, text);
}

#[test]
fn who_mounts_what_is_wrong_is_told_and_nothing_is_left() {
    let cluster = Cluster::start();
    let refused = |text: &str, expected: &[&str]| {
        let output =
            script(&cluster, &format!("{text} && exit 99; code=$?; ! mountpoint -q $M && exit $code"));
        let said = said(&output);
        let code = output.status.code().expect("an exit code");
        assert!(code != 0 && code != 99, "{text} exits with {code}: {said}");
        for part in expected {
            assert!(said.contains(part), "{text}: {part:?} is not in {said:?}");
        }
    };
    refused("mount -t fuse.dfs $S $M -o rw,colour=blue", &["colour"]);
    refused("mount -t fuse.dfs $S $M -o timeout=soon", &["timeout"]);
    refused("mount -t fuse.dfs nonsense $M", &["nonsense"]);
    refused("mount -t fuse.dfs ${S}not/there $M", &["not"]);
    refused("mount -t fuse.dfs 127.0.0.1:1:/ $M -o timeout=2", &["127.0.0.1:1"]);
    refused("mount -t fuse.dfs $S $M/missing", &["missing"]);
    // Already mounted, and still so afterwards.
    succeed(
        &cluster,
        "mount -t fuse.dfs $S $M; ! mount -t fuse.dfs $S $M 2>/dev/null; touch $M/file; umount $M",
    );
}

#[test]
fn a_dead_daemon_is_got_past() {
    let cluster = Cluster::start();
    let text = "
        mount -t fuse.dfs $S $M
        echo hello > $M/file
        daemon() { pgrep --full \"$S $M\" | head -n 1; }
        pid=$(daemon); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done
        ! cat $M/file 2>/dev/null
        # A new mount gets past what the dead one left, and so does umount.
        mount -t fuse.dfs $S $M
        test \"$(cat $M/file)\" = hello
        kill -9 $(daemon); sleep 0.3
        umount $M
        mount -t fuse.dfs $S $M
        test \"$(cat $M/file)\" = hello
        # SIGTERM ends it cleanly.
        pid=$(daemon); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done
        ! mountpoint -q $M";
    succeed(&cluster, text);
}

#[test]
fn umount_flushes_what_a_process_left_open() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    let path = mount.join("file");
    // A process that exits without closing leaves its data to the kernel's close.
    commands::shell(mount.path(), "exec 5> file; echo written >&5", &[]);
    mount.unmount();
    assert!(!is_mounted(mount.path()) && !path.exists());
    mount.remount();
    assert_eq!(fs::read_to_string(&path).unwrap(), "written\n");
}

#[test]
fn a_mount_in_the_foreground_ends_at_sigterm_and_leaves_nothing() {
    let cluster = Cluster::start();
    let mut mount = cluster.mount();
    fs::write(mount.join("file"), "bytes").unwrap();
    mount.signal(nix::sys::signal::Signal::SIGTERM);
    let ending = mount.wait(Duration::from_secs(20)).expect("it ends");
    assert!(ending.is_clean(), "it {ending}");
    assert!(!is_mounted(mount.path()));
    // At the latest when it was not heard of for the session timeout.
    cluster.wait_for("without sessions", Duration::from_secs(30), |status| status.sessions.is_empty());
    let again = cluster.mount();
    assert_eq!(fs::read_to_string(again.join("file")).unwrap(), "bytes");
}

#[test]
fn a_directory_mounted_alone_is_a_filesystem_of_its_own() {
    let cluster = Cluster::start();
    let whole = cluster.mount();
    fs::create_dir_all(whole.join("a/b")).unwrap();
    fs::write(whole.join("outside"), "x").unwrap();
    let part = cluster.mount_with("/a", "");
    fs::write(part.join("b/file"), "inside").unwrap();
    assert_eq!(fs::read_to_string(whole.join("a/b/file")).unwrap(), "inside");
    assert!(!part.join("outside").exists());
    assert!(!part.path().join("../outside").exists() || Path::new("../outside").exists());
    fs::create_dir(part.join("made")).unwrap();
    assert_eq!(fs::read_dir(part.path()).unwrap().count(), 2);
    fs::rename(part.join("b/file"), part.join("made/file")).unwrap();
    assert!(whole.join("a/made/file").exists());
}
