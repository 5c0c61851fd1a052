//! `dfs-admin info`: where one file's bytes are: its inode, attributes, class, extents, chunks, and the nodes that hold
//! them. It only reads, and needs no session.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use dfs_proto::common::FileKind;
use dfs_proto::limits::{MAX_FILE_SIZE, MAX_PLAN_EXTENTS};
use dfs_proto::meta::{ChunkPlan, Extent, GetAttr, PathOf, Plan, ReadLink, reply, request};
use dfs_proto::{Attr, Ino};
use serde_json::{Value, json};

use crate::locate::locate;
use crate::print::{bytes, table, time};
use crate::server::{Server, unexpected};

/// Rows of a table that are printed for people; the JSON has all.
const SHOWN: usize = 100;
/// Extents that are asked for in all: a file of more is told only in part, and says so.
const MAX_EXTENTS: usize = 1 << 20;

/// Everything there is to know of one inode.
#[derive(Debug, Default)]
struct Info {
    attr: Attr,
    target: Option<Vec<u8>>,
    paths: Vec<Vec<u8>>,
    extents: Vec<Extent>,
    chunks: BTreeMap<u64, ChunkPlan>,
    complete: bool,
}

/// Asks and prints. `path` lies on a mount, or is "dfs:/…" inside the filesystem of `meta`.
pub async fn run(meta: Option<&str>, path: &Path, as_json: bool) -> Result<()> {
    let (server, ino) = locate(meta, path).await?;
    let info = ask(&server, ino).await.with_context(|| format!("ask for {}", path.display()))?;
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&json(&info))?),
        false => print!("{}", text(path, &info)),
    }
    Ok(())
}

async fn ask(server: &Server, ino: Ino) -> Result<Info> {
    let mut info = Info { complete: true, ..Info::default() };
    match server.call(request::Op::GetAttr(GetAttr { ino: ino.0 })).await? {
        reply::Result::Attr(attr) => info.attr = attr,
        other => bail!(unexpected(&other)),
    }
    match server.call(request::Op::PathOf(PathOf { ino: ino.0 })).await? {
        reply::Result::Paths(paths) => info.paths = paths.paths.iter().map(|path| path.to_vec()).collect(),
        other => bail!(unexpected(&other)),
    }
    match info.attr.kind() {
        FileKind::Symlink => match server.call(request::Op::ReadLink(ReadLink { ino: ino.0 })).await? {
            reply::Result::Value(value) => info.target = Some(value.value.to_vec()),
            other => bail!(unexpected(&other)),
        },
        FileKind::Regular => ask_extents(server, ino, &mut info).await?,
        _ => {}
    }
    Ok(info)
}

/// All extents, page by page. A file that changes meanwhile is read again from its start, a few times.
async fn ask_extents(server: &Server, ino: Ino, info: &mut Info) -> Result<()> {
    const ATTEMPTS: u32 = 5;
    'attempts: for _ in 0..ATTEMPTS {
        info.extents.clear();
        info.chunks.clear();
        let mut offset = 0;
        let mut version = None;
        loop {
            let length = MAX_FILE_SIZE - offset;
            let plan = Plan { ino: ino.0, offset, length, max_extents: MAX_PLAN_EXTENTS };
            let page = match server.call(request::Op::Plan(plan)).await? {
                reply::Result::Plan(page) => page,
                other => bail!(unexpected(&other)),
            };
            let attr = page.attr.context("a plan came without attributes")?;
            if version.is_some_and(|version| version != attr.version) {
                continue 'attempts;
            }
            version = Some(attr.version);
            info.extents.extend(page.extents);
            info.chunks.extend(page.chunks.into_iter().map(|chunk| (chunk.chunk, chunk)));
            info.attr = attr;
            let is_end = page.covered_end >= info.attr.size || page.covered_end <= offset;
            if is_end || info.extents.len() >= MAX_EXTENTS {
                info.complete = page.covered_end >= info.attr.size;
                return Ok(());
            }
            offset = page.covered_end;
        }
    }
    bail!("the file changes faster than its extents can be read: try again")
}

fn kind_name(attr: &Attr) -> &'static str {
    match attr.kind() {
        FileKind::Unknown => "unknown",
        FileKind::Regular => "regular file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

fn text(path: &Path, info: &Info) -> String {
    let attr = &info.attr;
    let lossy = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let paths: Vec<String> = info.paths.iter().map(lossy).collect();
    let mut text = format!("{}\n", path.display());
    let mut line = |name: &str, value: String| text += &format!("  {name:<9} {value}\n");
    line("inode", attr.ino.to_string());
    line("paths", if paths.is_empty() { "none: unlinked".into() } else { paths.join("\n            ") });
    line("kind", kind_name(attr).into());
    if let Some(target) = &info.target {
        line("target", lossy(target));
    }
    line("mode", format!("{:04o}, owner {}:{}, {} links", attr.mode, attr.uid, attr.gid, attr.nlink));
    line("size", format!("{} bytes ({})", attr.size, bytes(attr.size)));
    line("covered", format!("{} bytes ({})", attr.allocated_bytes, bytes(attr.allocated_bytes)));
    line("accessed", time(attr.atime));
    line("modified", time(attr.mtime));
    line("changed", time(attr.ctime));
    line("version", attr.version.to_string());
    line("class", attr.class.clone());
    if attr.kind() == FileKind::Regular {
        text += &tables(info);
    }
    text
}

fn tables(info: &Info) -> String {
    let extent = |extent: &Extent| {
        [extent.offset, extent.length, extent.chunk, extent.chunk_offset]
            .map(|number| number.to_string())
            .to_vec()
    };
    let extents = info.extents.iter().take(SHOWN).map(extent).collect();
    let mut text = format!("  extents   {}\n", count(info.extents.len(), info.complete));
    text += &table(&["offset", "length", "chunk", "chunk offset"], &[0, 1, 2, 3], extents);
    let chunk = |chunk: &ChunkPlan| {
        let nodes: Vec<String> = chunk.shards.iter().map(|shard| node_name(shard.node.as_ref())).collect();
        vec![chunk.chunk.to_string(), chunk.length.to_string(), chunk.redundancy.clone(), nodes.join(", ")]
    };
    let chunks = info.chunks.values().take(SHOWN).map(chunk).collect();
    text += &format!("  chunks    {}\n", count(info.chunks.len(), info.complete));
    text + &table(&["chunk", "length", "kept as", "nodes"], &[0, 1], chunks)
}

fn count(count: usize, complete: bool) -> String {
    let more = if complete { "" } else { " and more" };
    match count > SHOWN {
        true => format!("{count}{more}, the first {SHOWN} of them (--json has all)"),
        false => format!("{count}{more}"),
    }
}

fn node_name(node: Option<&dfs_proto::NodeAddress>) -> String {
    let Some(node) = node else { return "unknown".into() };
    match node.labels.as_ref().map(|labels| labels.host.as_str()) {
        Some("") | None => format!("{} ({})", node.node, node.address),
        Some(host) => format!("{} ({} on {host})", node.node, node.address),
    }
}

fn json(info: &Info) -> Value {
    let attr = &info.attr;
    let lossy = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let extent = |extent: &Extent| {
        json!({
            "offset": extent.offset, "length": extent.length,
            "chunk": extent.chunk, "chunk_offset": extent.chunk_offset,
        })
    };
    let chunk = |chunk: &ChunkPlan| {
        let shard = |shard: &dfs_proto::meta::ShardPlan| {
            let node = shard.node.clone().unwrap_or_default();
            let host = node.labels.unwrap_or_default().host;
            json!({ "index": shard.index, "node": node.node, "address": node.address, "host": host })
        };
        let shards: Vec<Value> = chunk.shards.iter().map(shard).collect();
        json!({ "chunk": chunk.chunk, "length": chunk.length, "redundancy": chunk.redundancy, "shards": shards })
    };
    json!({
        "inode": attr.ino, "kind": kind_name(attr), "mode": attr.mode, "uid": attr.uid, "gid": attr.gid,
        "links": attr.nlink, "size": attr.size, "covered_bytes": attr.allocated_bytes,
        "accessed": time(attr.atime), "modified": time(attr.mtime), "changed": time(attr.ctime),
        "version": attr.version, "class": attr.class,
        "target": info.target.as_ref().map(lossy),
        "paths": info.paths.iter().map(lossy).collect::<Vec<String>>(),
        "extents": info.extents.iter().map(extent).collect::<Vec<Value>>(),
        "chunks": info.chunks.values().map(chunk).collect::<Vec<Value>>(),
        "complete": info.complete,
    })
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::ShardPlan;
    use dfs_proto::{Labels, NodeAddress};

    use super::*;

    #[test]
    fn both_ways_of_telling_name_chunks_and_nodes() {
        let node = NodeAddress {
            node: 3,
            address: "127.0.0.1:7610".into(),
            labels: Some(Labels { host: "dev3".into(), ..Labels::default() }),
        };
        let chunk = ChunkPlan {
            chunk: 41,
            length: 5,
            redundancy: "replicated:3".into(),
            shards: vec![ShardPlan { index: 0, node: Some(node) }],
        };
        let info = Info {
            attr: Attr { ino: 12, kind: FileKind::Regular.into(), mode: 0o644, size: 5, ..Attr::default() },
            paths: vec![b"/a".to_vec(), b"/b".to_vec()],
            extents: vec![Extent { offset: 0, length: 5, chunk: 41, chunk_offset: 0 }],
            chunks: BTreeMap::from([(41, chunk)]),
            complete: true,
            ..Info::default()
        };
        let text = text(Path::new("/mnt/a"), &info);
        for shown in ["inode     12", "/a\n            /b", "0644", "3 (127.0.0.1:7610 on dev3)", "41"] {
            assert!(text.contains(shown), "{shown:?} is not in:\n{text}");
        }
        let json = json(&info);
        assert_eq!(json["inode"], 12);
        assert_eq!(json["extents"][0]["chunk"], 41);
        assert_eq!(json["chunks"][0]["shards"][0]["node"], 3);
        assert_eq!(json["paths"], json!(["/a", "/b"]));
    }
}
