//! The thread behind: has a segment ready before it is needed, and gives the disk back what was deleted.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_proto::{Code, Failure};
use uuid::Uuid;

use super::{Core, Spare, State, format, path};
use crate::store::TEMPORARY;

/// How long deletions are gathered: neighbours go together, and a segment of which all is deleted goes as a whole.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait before trying again to make a segment, on a full disk.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Core {
    /// Runs until all is to end, and then leaves everything tidy.
    pub(super) fn run_tidy(&self) {
        let mut not_before = Instant::now();
        let wants_spare = |state: &State, not_before: Instant| {
            self.length.is_some() && state.spare.is_none() && Instant::now() >= not_before
        };
        loop {
            let state = self.state();
            let idle = |state: &mut State| !state.ending && !wants_spare(state, not_before);
            let waited = self.work.wait_timeout_while(state, TIDY_INTERVAL, idle);
            let state = waited.expect("a panic left the state of the segments half changed").0;
            let (ending, wanted) = (state.ending, wants_spare(&state, not_before));
            drop(state);
            if wanted && !ending && !self.make_spare() {
                not_before = Instant::now() + RETRY_AFTER;
            }
            self.tidy();
            if ending {
                return;
            }
        }
    }

    /// Makes a segment for later. Whether there is one; that there is none is told once until there is.
    pub(super) fn make_spare(&self) -> bool {
        let Some(length) = self.length.filter(|_| !self.shared.is_fenced()) else { return false };
        let made = self.try_make_spare(length);
        let mut state = self.state();
        let lacking = made.is_err();
        if let Err(failure) = &made
            && !state.lacking
        {
            tracing::warn!(%failure, "small shards get files of their own: there is no segment for them");
        }
        state.lacking = lacking;
        state.spare = made.ok();
        !lacking
    }

    fn try_make_spare(&self, length: u64) -> Result<Spare, Failure> {
        let disk = &*self.shared.disk;
        let _room = self.shared.promise(length)?;
        let id = {
            let mut state = self.state();
            let id = state.next_id;
            state.next_id = id.checked_add(1).ok_or_else(|| {
                Failure::new(Code::NoSpace, "every number that a segment can have was used")
            })?;
            id
        };
        let mark = Uuid::new_v4().into_bytes();
        // Written, not only allocated: turning allocated blocks into written ones would move metadata at each flush. Under
        // a name of its own until all is durable, so that a segment is never half made.
        let temporary = Path::new(TEMPORARY).join(format!("segment-{id:08x}"));
        let write = || {
            let mut output = disk.create(&temporary, length)?;
            output.append(&format::encode_header(self.shared.cluster, &mark))?;
            let zeros = vec![0; 256 * 1024];
            let mut left = length - format::PAGE as u64;
            while left > 0 {
                let part = left.min(zeros.len() as u64);
                output.append(&zeros[..part as usize])?;
                left -= part;
            }
            output.sync()
        };
        write().map_err(|error| {
            let failure = self.shared.write_failed("make a segment", &error);
            if let Err(error) = disk.remove(&temporary) {
                tracing::warn!(%error, path = %temporary.display(), "a temporary file is left until the next start");
            }
            failure
        })?;
        let named = disk.open_log(&temporary).and_then(|log| {
            disk.rename(&temporary, &path(id))?;
            Ok(log)
        });
        let log = named.map_err(|error| self.shared.write_failed("name a segment", &error))?;
        let directory = disk.sync_directory(Path::new(super::DIRECTORY));
        directory.map_err(|error| self.shared.sync_failed("make a segment's name durable", &error))?;
        Ok(Spare { id, mark, length, log })
    }

    /// Gives back what was deleted from segments that take no more records.
    fn tidy(&self) {
        if self.shared.is_fenced() {
            return;
        }
        let freed = self.shared.index().take_freed();
        let (mut empty, mut sparse) = (Vec::new(), Vec::new());
        {
            let mut state = self.state();
            for place in freed {
                if let Some(segment) = state.segments.get_mut(&place.segment) {
                    segment.live -= 1;
                    segment.dead.push(place.page..place.page + place.pages);
                }
            }
            for (&id, segment) in state.segments.iter_mut().filter(|(_, segment)| segment.sealed) {
                match segment.live {
                    0 => empty.push(id),
                    _ if segment.dead.is_empty() => {}
                    _ => sparse.push((id, joined(std::mem::take(&mut segment.dead)))),
                }
            }
        }
        for id in empty {
            match self.shared.disk.remove(&path(id)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let failure = self.shared.write_failed("remove a segment", &error);
                    tracing::warn!(%failure, "an empty segment stays");
                }
                _ => {
                    // In this order: whoever opened it meanwhile finds that it is not known any more.
                    self.state().segments.remove(&id);
                    self.inputs().pop(&id);
                }
            }
        }
        for (id, dead) in sparse {
            let page = format::PAGE as u64;
            let bytes: Vec<_> =
                dead.iter().map(|pages| u64::from(pages.start) * page..u64::from(pages.end) * page).collect();
            if let Err(error) = self.shared.disk.free(&path(id), &bytes) {
                let failure = self.shared.write_failed("give back what was deleted from a segment", &error);
                tracing::warn!(%failure, "the space of deleted shards stays taken for now");
                if let Some(segment) = self.state().segments.get_mut(&id) {
                    segment.dead.extend(dead);
                }
            }
        }
    }
}

/// Sorted, with neighbours made one.
fn joined(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u32>> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_given_back_together() {
        assert_eq!(joined(vec![5..7, 1..2, 9..9, 2..4, 7..8, 6..7]), [1..4, 5..8]);
        assert_eq!(joined(Vec::new()), []);
    }
}
