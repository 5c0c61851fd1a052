//! `dfs-admin class`: how what is made in a directory is kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use dfs_proto::meta::{CheckClass, ClassStatus, GetAttr, reply, request};
use dfs_proto::{Class, Code, Failure, Redundancy};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::find;
use crate::locate::locate;
use crate::print::{bytes, table};
use crate::server::{Server, unexpected};

/// What `list` tells of whether or not it is in use.
const USUAL: [&str; 8] =
    ["replicated:1", "replicated:2", "replicated:3", "ec:2+1", "ec:4+2", "ec:6+3", "ec:8+3", "auto"];

/// What to do with classes.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Give a directory a class: what is made in it from now on is kept that way
    Set {
        /// A directory on a mount
        path: PathBuf,
        /// replicated:N, ec:K+M or auto; then ,compress=lz4 or zstd ,encrypt=KEY ,zone=NAME
        class: String,
    },
    /// Tell the class of a file or directory
    Get {
        /// A path on a mount, or dfs:/PATH inside the filesystem
        path: PathBuf,
    },
    /// Tell which classes this cluster can hold, and how many chunks are kept how
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
pub async fn run(meta: Option<&str>, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Set { path, class } => set(meta, path, class).await,
        Verb::Get { path } => get(meta, path).await,
        Verb::List { json } => list(meta, *json).await,
    }
}

async fn set(meta: Option<&str>, path: &Path, text: &str) -> Result<()> {
    let class: Class = text.parse()?;
    let (server, _) = locate(meta, path).await?;
    // The system call could only say EINVAL.
    check(&server, &class.to_string()).await?;
    if !path.is_dir() {
        bail!(
            "{} is not a directory on a mount: files have the class of the directory they were made in",
            path.display()
        );
    }
    let set = rustix::fs::setxattr(path, Class::XATTR, class.to_string().as_bytes(), XattrFlags::empty());
    if let (Err(Errno::NOKEY), Some(key)) = (set, &class.key) {
        bail!(
            "the mount of {} lacks the key {key:?} as it is now: mount anew with -o key={key}:FILE",
            path.display()
        );
    }
    set.with_context(|| format!("give {} the class {class}", path.display()))
}

async fn get(meta: Option<&str>, path: &Path) -> Result<()> {
    let (server, ino) = locate(meta, path).await?;
    match server.call(request::Op::GetAttr(GetAttr { ino: ino.0 })).await? {
        reply::Result::Attr(attr) => println!("{}", attr.class),
        other => bail!(unexpected(&other)),
    }
    Ok(())
}

async fn check(server: &Server, class: &str) -> Result<(), Failure> {
    match server.call(request::Op::CheckClass(CheckClass { class: class.into() })).await? {
        reply::Result::Done(_) => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// What is told of one class.
struct Row {
    class: String,
    /// `None` for `auto`, which depends.
    redundancy: Option<Redundancy>,
    /// Why the cluster can't hold it, if it can't.
    missing: Option<String>,
    in_use: ClassStatus,
}

async fn list(meta: Option<&str>, as_json: bool) -> Result<()> {
    let server = find::server(meta).await?;
    let status = server.status().await?;
    let mut classes: Vec<String> = USUAL.map(str::to_owned).to_vec();
    classes.extend(status.classes.iter().map(|status| status.class.clone()));
    let mut rows: Vec<Row> = Vec::new();
    for class in classes {
        if rows.iter().any(|row| row.class == class) {
            continue;
        }
        let missing = match check(&server, &class).await {
            Ok(()) => None,
            Err(failure) if failure.code == Code::Invalid => Some(failure.message),
            Err(failure) => return Err(failure.into()),
        };
        let in_use = status.classes.iter().find(|status| status.class == class).cloned().unwrap_or_default();
        rows.push(Row { redundancy: class.parse().ok(), class, missing, in_use });
    }
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&rows.iter().map(Row::json).collect::<Value>())?),
        false => {
            let headings = ["class", "space", "stands the loss of", "chunks", "bytes", "can be held"];
            print!("{}", table(&headings, &[1, 2, 3, 4], rows.iter().map(Row::cells).collect()));
        }
    }
    Ok(())
}

impl Row {
    /// Space for each byte, and how many nodes may be lost.
    fn costs(&self) -> Option<(f64, u32)> {
        let redundancy = self.redundancy?;
        let needed = redundancy.needed_to_read();
        Some((f64::from(redundancy.shards()) / f64::from(needed), redundancy.shards() - needed))
    }

    fn cells(&self) -> Vec<String> {
        let (space, spare) = match self.costs() {
            Some((space, spare)) => (format!("{space:.2}"), spare.to_string()),
            None => ("-".into(), "-".into()),
        };
        // The class is in the first column already.
        let why = |message: &String| {
            format!(
                "no: {}",
                message.split_once(&format!("{}: ", self.class)).map_or(&message[..], |(_, why)| why)
            )
        };
        let held = self.missing.as_ref().map_or_else(|| "yes".to_owned(), why);
        vec![self.class.clone(), space, spare, self.in_use.chunks.to_string(), bytes(self.in_use.bytes), held]
    }

    fn json(&self) -> Value {
        let (space, spare) = self.costs().unzip();
        json!({
            "class": self.class, "space": space, "tolerates": spare, "chunks": self.in_use.chunks,
            "bytes": self.in_use.bytes, "can_be_held": self.missing.is_none(), "missing": self.missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_a_class_costs_and_why_it_cannot_be_had() {
        let missing = "this cluster cannot hold the class ec:4+2: it needs 6 chunk daemons, and there are 3";
        let class = "ec:4+2".to_owned();
        let row = Row {
            redundancy: class.parse().ok(),
            class,
            missing: Some(missing.into()),
            in_use: ClassStatus::default(),
        };
        let why = "no: it needs 6 chunk daemons, and there are 3";
        assert_eq!(row.cells(), ["ec:4+2", "1.50", "2", "0", "0 B", why]);
        assert_eq!(row.json()["can_be_held"], false);
        let auto =
            Row { class: "auto".into(), redundancy: None, missing: None, in_use: ClassStatus::default() };
        assert_eq!(auto.cells(), ["auto", "-", "-", "0", "0 B", "yes"]);
    }
}
