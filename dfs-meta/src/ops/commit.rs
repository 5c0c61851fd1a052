//! Seals chunks and points files at them, all in one operation: where written data becomes part of files.
//!
//! Everything that can be wrong with the request is found before the first write. A file that is gone meanwhile is told
//! in its own result and fails nobody else's bytes; a chunk that nobody points to afterwards is garbage at once.

use std::collections::{HashMap, HashSet};

use dfs_proto::meta::{Commit, Committed, Extent, FileCommit, FileResult, SealedChunk};
use dfs_proto::{ChunkId, Code, Failure, FileKind, Ino, NodeId, Redundancy, Timestamp, limits, stripe};

use super::extents::Ledger;
use super::{Context, data_keys, extents, garbage, inode};
use crate::store::keys;
use crate::store::records::{Chunk, ChunkState, Held, Inode, Marker, Shard};

/// CHUNK_REFUSED: a chunk is not planned (any more), plan and write anew; EINVAL.
pub(super) fn run(cx: &mut Context<'_, '_>, request: &Commit) -> Result<Committed, Failure> {
    let lengths = check(request)?;
    let mut chunks = Vec::with_capacity(request.chunks.len());
    for sealed in &request.chunks {
        chunks.push((sealed, load_planned(cx, sealed)?));
    }
    check_extents(request, &lengths)?;

    let mut ledger = Ledger::default();
    for (sealed, chunk) in &chunks {
        seal(cx, sealed, chunk.clone())?;
        ledger.touch(ChunkId(sealed.chunk));
    }
    let mut files = Vec::with_capacity(request.files.len());
    for file in &request.files {
        files.push(commit_file(cx, &mut ledger, file)?);
    }
    ledger.settle(cx)?;
    for (sealed, chunk) in &chunks {
        for planned in &chunk.shards {
            let kept = sealed.shards.iter().any(|shard| shard.node == planned.node);
            let bytes = if kept { sealed.length } else { 0 };
            cx.live.nodes.keep_promise(NodeId(planned.node), ChunkId(sealed.chunk), bytes);
        }
    }
    Ok(Committed { files })
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::Invalid, message)
}

/// Bounds of the whole request; returns the lengths of the chunks' contents.
fn check(request: &Commit) -> Result<HashMap<u64, u64>, Failure> {
    let extents: usize = request.files.iter().map(|file| file.extents.len()).sum();
    if request.chunks.len() > limits::MAX_COMMIT_CHUNKS
        || request.files.len() > limits::MAX_COMMIT_FILES
        || extents > limits::MAX_COMMIT_EXTENTS
    {
        return Err(invalid(format!(
            "a commit is of at most {} chunks, {} files and {} extents",
            limits::MAX_COMMIT_CHUNKS,
            limits::MAX_COMMIT_FILES,
            limits::MAX_COMMIT_EXTENTS
        )));
    }
    let mut lengths = HashMap::new();
    for chunk in &request.chunks {
        if chunk.length == 0 || chunk.length > limits::MAX_CHUNK_LENGTH || chunk.sha256.len() != 32 {
            return Err(invalid(format!("chunk {} has no valid length and SHA-256", chunk.chunk)));
        }
        let content = match &chunk.encoding {
            Some(encoding) => encoding.layout(chunk.length).map(|_| encoding.length)?,
            None => chunk.length,
        };
        if lengths.insert(chunk.chunk, content).is_some() {
            return Err(invalid(format!("chunk {} is sealed twice in one commit", chunk.chunk)));
        }
    }
    let mut seen = HashSet::new();
    if let Some(file) = request.files.iter().find(|file| !seen.insert(file.ino)) {
        return Err(invalid(format!("inode {} appears twice in one commit", file.ino)));
    }
    Ok(lengths)
}

/// Extents are in order and inside this commit's chunks.
fn check_extents(request: &Commit, lengths: &HashMap<u64, u64>) -> Result<(), Failure> {
    for file in &request.files {
        dfs_proto::extent::check_all(&file.extents)?;
        for extent in &file.extents {
            let length = lengths.get(&extent.chunk).copied().unwrap_or(0);
            if extent.chunk_offset + extent.length > length {
                return Err(invalid(format!("an extent outside the chunks of its commit: {extent:?}")));
            }
        }
        let end = file.extents.last().map_or(0, Extent::end);
        if file.size < end || file.size > limits::MAX_FILE_SIZE {
            return Err(invalid(format!("inode {} cannot be {} bytes long", file.ino, file.size)));
        }
        let begin = file.extents.first().map_or(file.size, |extent| extent.offset);
        if file.append_base.is_some_and(|base| base > begin) {
            return Err(invalid(format!("inode {}: what is appended begins before its end", file.ino)));
        }
    }
    Ok(())
}

/// The record of a chunk that may be sealed as asked.
fn load_planned(cx: &mut Context<'_, '_>, sealed: &SealedChunk) -> Result<Chunk, Failure> {
    let id = ChunkId(sealed.chunk);
    let chunk = cx.tx.get::<Chunk>(&keys::chunk(id))?;
    let Some(chunk) = chunk.filter(|chunk| chunk.state() == ChunkState::Planned) else {
        let message = format!("chunk {id} is not planned any more: allocate another and write it again");
        return Err(Failure::new(Code::ChunkRefused, message));
    };
    let (mut indices, mut nodes) = (HashSet::new(), HashSet::new());
    for shard in &sealed.shards {
        let planned =
            chunk.shards.iter().any(|planned| (planned.index, planned.node) == (shard.index, shard.node));
        if !planned || !indices.insert(shard.index) || !nodes.insert(shard.node) {
            let message =
                format!("shard {} of chunk {id} was not planned on node {}", shard.index, shard.node);
            return Err(invalid(message));
        }
    }
    let redundancy: Redundancy = chunk.redundancy.parse()?;
    if sealed.shards.len() < redundancy.needed_to_write() as usize {
        return Err(invalid(format!(
            "chunk {id} has {} durable shards; {redundancy} needs {}",
            sealed.shards.len(),
            redundancy.needed_to_write()
        )));
    }
    if !redundancy.takes(sealed.length) {
        return Err(invalid(format!("chunk {id} of {} bytes is too short for {redundancy}", sealed.length)));
    }
    Ok(chunk)
}

/// The chunk is durable where the client says so. Planned shards that were not written there are removed, whatever is
/// left of them.
fn seal(cx: &mut Context<'_, '_>, sealed: &SealedChunk, mut chunk: Chunk) -> Result<(), Failure> {
    let id = ChunkId(sealed.chunk);
    let redundancy: Redundancy = chunk.redundancy.parse()?;
    garbage::dequeue(cx, id, &mut chunk);
    for planned in &chunk.shards {
        if sealed.shards.iter().all(|shard| shard.node != planned.node) {
            cx.tx.put(keys::removal(NodeId(planned.node), id), &Marker {});
        }
    }
    chunk.set_state(ChunkState::Sealed);
    chunk.length = sealed.length;
    chunk.sha256 = sealed.sha256.to_vec();
    chunk.encoding = sealed.encoding.clone();
    data_keys::hold(cx, chunk.data_key())?;
    chunk.shards = Vec::with_capacity(sealed.shards.len());
    for shard in &sealed.shards {
        chunk.shards.push(Shard { index: shard.index, node: shard.node, ..Shard::default() });
        let length = stripe::shard_length(redundancy, sealed.length, shard.index);
        let held = Held { index: shard.index, length, since_ms: cx.now_ms(), lost: false };
        cx.tx.put(keys::held(NodeId(shard.node), id), &held);
    }
    chunk.shards.sort_by_key(|shard| shard.index);
    cx.tx.put(keys::chunk(id), &chunk);
    Ok(())
}

fn commit_file(
    cx: &mut Context<'_, '_>,
    ledger: &mut Ledger,
    file: &FileCommit,
) -> Result<FileResult, Failure> {
    let ino = Ino(file.ino);
    let refused = |code: Code| Ok(FileResult { code: code.into(), attr: None, shifted: 0 });
    let Some(mut inode) = cx.tx.get::<Inode>(&keys::inode(ino))? else {
        return refused(Code::Stale);
    };
    if inode.kind() != FileKind::Regular {
        return refused(Code::Invalid);
    }
    let shift = file.append_base.map_or(0, |base| inode.size.wrapping_sub(base));
    let Some((moved, size)) = shifted(file, shift) else {
        return refused(Code::TooBig);
    };
    extents::overlay(cx, ledger, ino, &mut inode, moved.as_deref().unwrap_or(&file.extents))?;
    inode.size = inode.size.max(size);
    let mtime = file.mtime.map_or(cx.now, Timestamp::from);
    inode::written(cx, ino, &mut inode, mtime, file.kill_set_id)?;
    inode::save(cx, ino, &inode);
    Ok(FileResult { code: Code::Ok.into(), attr: Some(inode::attr(ino, &inode)), shifted: shift })
}

/// The file's extents and size, moved by `shift` (modulo 2^64); `None` when they would be out of bounds.
fn shifted(file: &FileCommit, shift: u64) -> Option<(Option<Vec<Extent>>, u64)> {
    if shift == 0 {
        return Some((None, file.size));
    }
    // What is appended begins at the base at the earliest, so that moving it down to the size does not go below zero.
    let size = file.size.wrapping_add(shift);
    if size > limits::MAX_FILE_SIZE {
        return None;
    }
    let moved =
        file.extents.iter().map(|extent| Extent { offset: extent.offset.wrapping_add(shift), ..*extent });
    Some((Some(moved.collect()), size))
}

#[cfg(test)]
mod tests;
