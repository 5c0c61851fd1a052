//! `dfs-admin info`: where one file's bytes are: its inode, attributes, class, extents, chunks, and the nodes that hold
//! them. It only reads, and needs no session.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use dfs_proto::common::FileKind;
use dfs_proto::limits::{MAX_FILE_SIZE, MAX_PLAN_EXTENTS};
use dfs_proto::meta::{
    ChunkPlan, Compression, Extent, GetAttr, GetDataKey, PathOf, Plan, ReadLink, reply, request,
};
use dfs_proto::{Attr, Code, Ino};
use serde_json::{Value, json};

use crate::locate::locate;
use crate::print::{bytes, table, time};
use crate::server::{Server, unexpected};

/// Rows of a table that are printed for people; the JSON has all.
const SHOWN: usize = 100;
/// Extents that are asked for in all: a file of more is told only in part, and says so.
const MAX_EXTENTS: usize = 1 << 20;
/// Data keys whose key is asked for: a file seldom has more than its own, and that of where it was copied from.
const MAX_DATA_KEYS: usize = 16;

/// Everything there is to know of one inode.
#[derive(Debug, Default)]
struct Info {
    attr: Attr,
    target: Option<Vec<u8>>,
    paths: Vec<Vec<u8>>,
    extents: Vec<Extent>,
    chunks: BTreeMap<u64, ChunkPlan>,
    /// By data key the name of the key that it is encrypted with, for the first few.
    keys: BTreeMap<u64, String>,
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
        FileKind::Regular => {
            ask_extents(server, ino, &mut info).await?;
            ask_keys(server, &mut info).await?;
        }
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

/// Which keys the chunks are encrypted with.
async fn ask_keys(server: &Server, info: &mut Info) -> Result<()> {
    let used: BTreeSet<u64> = info.chunks.values().filter_map(data_key).collect();
    for id in used.into_iter().take(MAX_DATA_KEYS) {
        match server.call(request::Op::GetDataKey(GetDataKey { id })).await {
            Ok(reply::Result::DataKeys(found)) => {
                info.keys.extend(found.data_keys.into_iter().map(|data_key| (data_key.id, data_key.key)));
            }
            Ok(other) => bail!(unexpected(&other)),
            // The chunk went meanwhile, and its data key with it.
            Err(failure) if failure.code == Code::NotFound => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    Ok(())
}

/// What a chunk is encrypted with, if it is.
fn data_key(chunk: &ChunkPlan) -> Option<u64> {
    chunk.encoding.as_ref().map(|encoding| encoding.data_key).filter(|id| *id != 0)
}

/// How a chunk is compressed, if it is.
fn compression(chunk: &ChunkPlan) -> Option<&'static str> {
    let encoding = chunk.encoding.as_ref()?;
    match Compression::try_from(encoding.compression) {
        Ok(Compression::Uncompressed) => None,
        Ok(Compression::Lz4) => Some("lz4"),
        Ok(Compression::Zstd) => Some("zstd"),
        Err(_) => Some("unknown"),
    }
}

/// "zstd, encrypted with k".
fn encoded(chunk: &ChunkPlan, info: &Info) -> String {
    let encrypted = data_key(chunk).map(|id| match info.keys.get(&id) {
        Some(key) => format!("encrypted with {key}"),
        None => format!("encrypted with data key {id}"),
    });
    let parts: Vec<String> = compression(chunk).map(str::to_owned).into_iter().chain(encrypted).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
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
        let numbers = [chunk.chunk, chunk.content_length(), chunk.length].map(|number| number.to_string());
        let words = [chunk.redundancy.clone(), encoded(chunk, info), nodes.join(", ")];
        numbers.into_iter().chain(words).collect()
    };
    let chunks = info.chunks.values().take(SHOWN).map(chunk).collect();
    text += &format!("  chunks    {}\n", count(info.chunks.len(), info.complete));
    text + &table(&["chunk", "content", "stored", "kept as", "encoded", "nodes"], &[0, 1, 2], chunks)
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
        json!({
            "chunk": chunk.chunk, "length": chunk.length, "content_length": chunk.content_length(),
            "redundancy": chunk.redundancy, "compression": compression(chunk), "data_key": data_key(chunk),
            "key": data_key(chunk).and_then(|id| info.keys.get(&id)), "shards": shards,
        })
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
    use dfs_proto::meta::{Encoding, ShardPlan};
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
            encoding: None,
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

    #[test]
    fn how_a_chunk_is_encoded_is_told() {
        let chunk = |chunk, compression: Compression, data_key| ChunkPlan {
            chunk,
            length: 350,
            encoding: Some(Encoding {
                length: 1000,
                compression: compression.into(),
                data_key,
                ..Encoding::default()
            }),
            ..ChunkPlan::default()
        };
        let chunks = [
            chunk(1, Compression::Zstd, 7),
            chunk(2, Compression::Uncompressed, 8),
            chunk(3, Compression::Lz4, 0),
            ChunkPlan { chunk: 4, length: 350, ..ChunkPlan::default() },
        ];
        let info = Info {
            attr: Attr { kind: FileKind::Regular.into(), ..Attr::default() },
            chunks: chunks.clone().into_iter().map(|chunk| (chunk.chunk, chunk)).collect(),
            keys: BTreeMap::from([(7, "team".to_owned())]),
            ..Info::default()
        };
        let told = ["zstd, encrypted with team", "encrypted with data key 8", "lz4", "-"];
        assert_eq!(chunks.map(|chunk| encoded(&chunk, &info)), told);
        let text = text(Path::new("/mnt/a"), &info);
        assert!(text.contains("1000") && text.contains("350") && text.contains(told[0]), "{text}");
        let json = json(&info);
        assert_eq!((&json["chunks"][0]["key"], &json["chunks"][0]["data_key"]), (&"team".into(), &7.into()));
        assert_eq!(
            (&json["chunks"][0]["length"], &json["chunks"][0]["content_length"]),
            (&350.into(), &1000.into())
        );
        assert_eq!(
            (&json["chunks"][1]["key"], &json["chunks"][1]["compression"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&json["chunks"][2]["compression"], &json["chunks"][2]["data_key"]),
            (&"lz4".into(), &Value::Null)
        );
        assert_eq!(json["chunks"][3]["content_length"], 350);
    }
}
