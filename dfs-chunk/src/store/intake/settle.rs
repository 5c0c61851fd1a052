//! The second half of the intake: writes logged shards as files of their own, makes them all durable at once, and only
//! then lets their log be used again.
//!
//! Files are written under their final names: until they are durable, the log that holds the same shards is replayed
//! after any crash and replaces what is torn.

use std::io;
use std::time::Duration;

use super::format::Record;
use super::{Core, Segment};
use crate::store::disk::Disk;
use crate::store::shard_file::{ShardFile, ShardWriter};
use crate::store::shared::shard_path;

/// How long to wait before trying again on a full disk.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Whether a logged shard has its file already.
pub(super) fn is_settled(disk: &dyn Disk, record: &Record) -> bool {
    let Ok(input) = disk.open(&shard_path(record.header.key)) else { return false };
    let Ok(file) = ShardFile::open(input, record.header.cluster, record.header.key) else { return false };
    let mut data = vec![0; record.data.len()];
    *file.header() == record.header && file.read(0, &mut data).is_ok() && data == record.data
}

/// Writes a logged shard as a file, not waiting for the disk.
pub(super) fn write(disk: &dyn Disk, record: &Record) -> io::Result<()> {
    let output = disk.create(&shard_path(record.header.key), record.header.file_length())?;
    let mut writer = ShardWriter::new(output, record.header)?;
    writer.append(&record.data, &[record.crc32c])?;
    writer.end()?.flush()
}

impl Core {
    /// The thread that empties full logs.
    pub(super) fn run_settle(&self) {
        loop {
            let which = {
                let mut state = self.state();
                loop {
                    if state.ending {
                        return;
                    }
                    match state.segments.iter().position(|segment| segment.full) {
                        Some(which) => break which,
                        None => {
                            state =
                                self.work.wait(state).expect("a panic left the intake's state half changed");
                        }
                    }
                }
            };
            while !self.settle(which) {
                let state = self.state();
                let waited = self.work.wait_timeout_while(state, RETRY_AFTER, |state| !state.ending);
                if waited.expect("a panic left the intake's state half changed").0.ending {
                    return;
                }
            }
        }
    }

    /// Empties one log. Whether it is done; if not, the log keeps its shards, and they are served from memory.
    fn settle(&self, which: usize) -> bool {
        if self.shared.is_fenced() {
            return false;
        }
        let keys = self.state().segments[which].keys.clone();
        for &key in &keys {
            // Against a delete that would come between looking the shard up and giving it a name.
            let _names = self.shared.names();
            let Some(logged) = self.state().entries.get(&key).cloned() else { continue };
            if let Err(error) = write(&*self.shared.disk, &logged.record) {
                let failure = self.shared.write_failed("write a logged shard as a file", &error);
                tracing::warn!(%failure, chunk = %key.chunk, "small shards stay in the intake log");
                return false;
            }
        }
        if let Err(error) = self.shared.disk.sync_all() {
            self.shared.sync_failed("make shard files durable", &error);
            return false;
        }
        let mut state = self.state();
        for key in &keys {
            state.entries.remove(key);
        }
        // Not `full` before the new round's header is written, so that nothing is appended to it meanwhile.
        state.segments[which] = Segment { full: true, ..Segment::new() };
        drop(state);
        if let Err(error) = self.begin_round(which) {
            self.shared.sync_failed("start an intake log afresh", &error);
            return false;
        }
        self.state().segments[which].full = false;
        true
    }
}
