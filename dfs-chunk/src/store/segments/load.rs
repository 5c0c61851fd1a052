//! What the segments hold at the start: all of them are read, from front to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use dfs_proto::{ClusterId, Code, Failure};

use super::format::{self, Content, PAGE};
use super::{DIRECTORY, Segment, path};
use crate::store::disk::{Disk, Listed, ReadAhead};
use crate::store::index::{Index, Place};
use crate::store::list;

/// A file that was made by hand is not read into memory whatever its length.
const MAX_SEGMENT_LENGTH: u64 = 256 << 20;

/// The segments that are there.
pub(in crate::store) struct Loaded {
    pub(super) segments: BTreeMap<u32, Segment>,
    /// Above every one that was ever seen.
    pub(super) next_id: u32,
}

/// Enters every record in the index. VERSION_UNKNOWN, WRONG_CLUSTER, CORRUPT, INPUT_OUTPUT.
pub(in crate::store) fn load(
    disk: &dyn Disk,
    cluster: ClusterId,
    index: &mut Index,
) -> Result<Loaded, Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(Code::InputOutput, format!("cannot {what}: {error}"))
    };
    let made = disk.create_directory(Path::new(DIRECTORY));
    made.map_err(|error| failed("make the directory of the segments", error))?;
    let mut segments = BTreeMap::new();
    let (now, now_ms) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let mut bytes = Vec::new();
    let mut listed = list(disk, Path::new(DIRECTORY))?;
    // Of two records of one shard the newer counts: the other was damaged.
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    for Listed { name, length, .. } in listed {
        let id = u32::from_str_radix(&name, 16)
            .ok()
            .filter(|id| path(*id).file_name().is_some_and(|its| its == &*name));
        let Some(id) = id else {
            tracing::warn!(name, "not a segment: left alone");
            continue;
        };
        if length > MAX_SEGMENT_LENGTH || length % PAGE as u64 != 0 {
            let why = format!("segment {name} is {length} bytes long: it is not one of ours");
            return Err(Failure::new(Code::Corrupt, why));
        }
        bytes.resize(length as usize, 0);
        let input = disk.open(&path(id), ReadAhead::AsUsual);
        let read = input.and_then(|input| input.read_at(&mut bytes, 0));
        read.map_err(|error| failed(&format!("read segment {name}"), error))?;
        let Content { records, damaged_pages, end } = format::scan(&bytes, cluster)
            .map_err(|failure| Failure::new(failure.code, format!("segment {name}: {}", failure.message)))?;
        if damaged_pages > 0 {
            // The last ones, which were being written, had not been acknowledged.
            tracing::warn!(name, damaged_pages, "there is something in a segment that is no shard");
        }
        let pages = (length / PAGE as u64) as u32;
        let segment = Segment {
            live: records.len(),
            sealed: true,
            dead: std::iter::once(end.min(pages)..pages).collect(),
        };
        segments.insert(id, segment);
        for (page, head) in records {
            let age_ms = now_ms.as_millis() as u64;
            let age_ms = age_ms.saturating_sub(head.written_ms);
            let pages = format::padded_length(head.header.length as usize) / PAGE;
            let place = Place { segment: id, page, pages: pages as u32 };
            index.insert(head.header.key, head.header.length, Some(place), age_ms, now);
        }
    }
    let next_id = segments.last_key_value().map_or(0, |(&id, _)| id.saturating_add(1));
    Ok(Loaded { segments, next_id })
}
