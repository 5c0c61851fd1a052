//! What is measured, in the order in which one step leaves what the next one needs.

use std::fs::{self, File};
use std::io::Write;
use std::thread;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::mount::{Mount, SMALL, timed};

/// Appends that are each followed by an fsync.
const APPENDS: usize = 200;
/// Times that every small file is looked at while it is warm.
const LOOKS: usize = 3;

/// One row of the table.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) what: &'static str,
    /// More is better.
    pub(crate) run: fn(&Mount<'_>) -> anyhow::Result<f64>,
}

pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "sequential write",
        unit: "MB/s",
        what: "`fio --bs=1M --rw=write --end_fsync=1`",
        run: |mount| Ok(fio(mount, "--bs=1M --rw=write --end_fsync=1", "write", "bw_bytes")? / 1e6),
    },
    Step {
        name: "sequential read, cold",
        unit: "MB/s",
        what: "`fio --bs=1M --rw=read`",
        run: |mount| {
            mount.go_cold()?;
            read_all(mount)
        },
    },
    Step { name: "the same again", unit: "MB/s", what: "the file is read a second time", run: read_all },
    Step {
        name: "random read, cold",
        unit: "op/s",
        what: "`fio --bs=4k --rw=randread --numjobs=4 --runtime=5 --time_based`",
        run: |mount| {
            mount.go_cold()?;
            let how =
                "--bs=4k --rw=randread --runtime=5 --time_based --numjobs=4 --group_reporting --randrepeat=0";
            fio(mount, how, "read", "iops")
        },
    },
    Step {
        name: "random write",
        unit: "op/s",
        what: "`fio --bs=4k --rw=randwrite --io_size=32M --end_fsync=1`",
        run: |mount| {
            fio(mount, "--bs=4k --rw=randwrite --io_size=32M --end_fsync=1 --randrepeat=0", "write", "iops")
        },
    },
    Step {
        name: "append and fsync",
        unit: "op/s",
        what: "200 times 4 KiB at the end of one file",
        run: |mount| {
            let mut file = File::create(mount.root.join("log"))?;
            timed(APPENDS, || {
                for _ in 0..APPENDS {
                    file.write_all(&[b'x'; SMALL])?;
                    file.sync_all()?;
                }
                Ok(())
            })
        },
    },
    Step {
        name: "create",
        unit: "files/s",
        what: "small files of 4 KiB in 20 directories, one by one",
        run: |mount| {
            for directory in mount.directories() {
                fs::create_dir_all(directory)?;
            }
            let small = mount.small();
            timed(small.len(), || small.iter().try_for_each(|path| Ok(fs::write(path, [b's'; SMALL])?)))
        },
    },
    Step {
        name: "create, 4 threads",
        unit: "files/s",
        what: "as many in one directory",
        run: |mount| {
            let directory = mount.root.join("together");
            fs::create_dir_all(&directory)?;
            let files = mount.work.files as usize;
            timed(files, || {
                thread::scope(|scope| {
                    let write = |from: usize| {
                        let mut numbers = (from..files).step_by(4);
                        let directory = &directory;
                        scope.spawn(move || {
                            numbers.try_for_each(|number| {
                                fs::write(directory.join(number.to_string()), [b's'; SMALL])
                            })
                        })
                    };
                    let writers: Vec<_> = (0..4).map(write).collect();
                    writers.into_iter().try_for_each(|writer| {
                        Ok(writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??)
                    })
                })
            })
        },
    },
    Step {
        name: "walk, cold",
        unit: "files/s",
        what: "`find -type f -size +0` over all of these",
        run: |mount| {
            mount.go_cold()?;
            let files = 2 * mount.work.files as usize;
            timed(files, || {
                let found = mount.shell("find small together -type f -size +0 | wc -l");
                ensure!(found.trim() == files.to_string(), "found {found} of {files} files");
                Ok(())
            })
        },
    },
    Step {
        name: "read small files, cold",
        unit: "files/s",
        what: "those of the 20 directories, one by one",
        run: |mount| {
            mount.go_cold()?;
            let small = mount.small();
            timed(small.len(), || {
                small.iter().try_for_each(|path| {
                    ensure!(fs::read(path)?.len() == SMALL, "{} is not whole", path.display());
                    Ok(())
                })
            })
        },
    },
    Step {
        name: "stat, warm",
        unit: "op/s",
        what: "each of them, three times",
        run: |mount| {
            let small = mount.small();
            let look = || small.iter().try_for_each(|path| fs::metadata(path).map(drop));
            look()?;
            timed(LOOKS * small.len(), || Ok((0..LOOKS).try_for_each(|_| look())?))
        },
    },
    Step {
        name: "rename",
        unit: "op/s",
        what: "each of them",
        run: |mount| {
            let small = mount.small();
            let moved = |path: &std::path::Path| path.with_extension("moved");
            let rate = timed(small.len(), || {
                Ok(small.iter().try_for_each(|path| fs::rename(path, moved(path)))?)
            })?;
            small.iter().try_for_each(|path| fs::rename(moved(path), path))?;
            Ok(rate)
        },
    },
    Step {
        name: "unlink",
        unit: "files/s",
        what: "each of them",
        run: |mount| {
            let small = mount.small();
            timed(small.len(), || Ok(small.iter().try_for_each(fs::remove_file)?))
        },
    },
    Step {
        name: "untar",
        unit: "files/s",
        what: "a source tree",
        run: |mount| {
            fs::create_dir(mount.root.join("tree"))?;
            timed(mount.work.archived, || {
                mount.shell("tar -xf \"$1\" -C tree");
                Ok(())
            })
        },
    },
    Step {
        name: "git init, add, commit, status",
        unit: "files/s",
        what: "the same tree",
        run: |mount| {
            let script = "cd tree; export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
                git() { command git -c user.name=x -c user.email=x@x -c gc.auto=0 -c safe.directory='*' \"$@\"; }
                git init -q; git add -A -f; git commit -q -m x; git status --short";
            timed(mount.work.archived, || {
                let changed = mount.shell(script);
                ensure!(changed.is_empty(), "git sees changes: {changed}");
                Ok(())
            })
        },
    },
    Step {
        name: "remove the tree",
        unit: "files/s",
        what: "`rm -r` of it",
        run: |mount| {
            let rate = timed(mount.work.archived, || {
                mount.shell("rm -r tree");
                Ok(())
            })?;
            fs::remove_dir_all(mount.root.join("small"))?;
            fs::remove_dir_all(mount.root.join("together"))?;
            Ok(rate)
        },
    },
];

fn read_all(mount: &Mount<'_>) -> anyhow::Result<f64> {
    Ok(fio(mount, "--bs=1M --rw=read", "read", "bw_bytes")? / 1e6)
}

/// Runs fio on the large file; one of the numbers that it tells.
fn fio(mount: &Mount<'_>, how: &str, direction: &str, what: &str) -> anyhow::Result<f64> {
    let (large, size) = (mount.large(), mount.work.size);
    let script =
        format!("fio --name=large --filename={} --size={size}M --output-format=json {how}", large.display());
    let told = mount.shell(&script);
    // Warnings may come before it.
    let json = &told[told.find('{').context("fio printed no JSON")?..];
    let told: Value = serde_json::from_str(json).context("read what fio printed")?;
    told["jobs"][0][direction][what].as_f64().with_context(|| format!("fio did not tell {direction} {what}"))
}
