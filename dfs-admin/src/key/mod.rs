//! `dfs-admin key`: the keys of a cluster. The metadata server learns how to tell a key and never the key itself, which is
//! in a file of the administrator's, or is a passphrase.

mod rotate;
mod secret;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use dfs_client::keys::{MasterKey, Secret};
use dfs_proto::class::check_key_name;
use dfs_proto::meta::{CreateKey, Key, KeySource, ListKeys, RemoveKey, reply, request};
use dfs_proto::{Code, Failure};
use serde_json::{Value, json};

use crate::find;
use crate::print::table;
use crate::server::{Server, unexpected};
use secret::NewKey;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a key, and tell the cluster how to know it
    Create {
        /// Letters, digits, '.', '_' and '-'
        name: String,
        /// What it is made of.
        #[command(flatten)]
        new: NewKey,
    },
    /// Tell the keys of the cluster, and how many data keys are encrypted with each
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Put a new key in the place of one: what is encrypted stays as it is, mounts need the new one
    Rotate {
        /// The key's name, which stays
        name: String,
        /// The file with the key, or with its passphrase, as it is now; a passphrase is asked for without
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// What it is made of.
        #[command(flatten)]
        new: NewKey,
    },
    /// Forget a key that nothing is encrypted with
    Rm {
        /// The key's name
        name: String,
    },
}

/// Does it.
pub async fn run(meta: Option<&str>, verb: &Verb) -> Result<()> {
    // Keys are in this process: a dump of it must not lie around.
    nix::sys::prctl::set_dumpable(false).context("keep this program's memory out of dumps")?;
    let server = || find::server(meta);
    match verb {
        Verb::Create { name, new } => create(&server().await?, name, new).await,
        Verb::List { json } => list(&server().await?, *json).await,
        Verb::Rotate { name, from, new } => {
            rotate::run(&server().await?, name, from.as_deref(), new).await?;
            println!("the key {name:?} is rotated; what it encrypts was not touched");
            println!("mounts that have the old key go on for now: mount them anew with the new one");
            println!("keep the old key as long as there are backups of the metadata server from before");
            say_how(name, new)
        }
        Verb::Rm { name } => {
            done(&server().await?, request::Op::RemoveKey(RemoveKey { name: name.clone() })).await?;
            println!("the key {name:?} is forgotten; nothing was encrypted with it");
            Ok(())
        }
    }
}

async fn create(server: &Server, name: &str, new: &NewKey) -> Result<()> {
    check_key_name(name)?;
    // Before a file is made, or somebody thinks of a passphrase. With a file that is there it may be the same key again.
    if new.existing_file().is_none() && find_key(server, name).await?.is_some() {
        bail!("there is a key {name:?} already: `dfs-admin key rotate {name}` changes it");
    }
    let secret = new.obtain().await?;
    let (key, _) = make(name, new.source(), &secret, 1).await?;
    let created = done(server, request::Op::CreateKey(CreateKey { key: Some(key) })).await;
    created.with_context(|| format!("tell the cluster of the key {name:?}{}", new.remains()))?;
    println!("the key {name:?} is made");
    say_how(name, new)?;
    println!("encrypt a directory: setfattr -n dfs.class -v replicated:3,encrypt={name} DIRECTORY");
    Ok(())
}

/// How to mount with a key, and what losing it means.
fn say_how(name: &str, new: &NewKey) -> Result<()> {
    let option = |path: &Path| match path.to_string_lossy() {
        text if text.contains(',') => format!("\"key={name}:{text}\""),
        text => format!("key={name}:{text}"),
    };
    match new.path() {
        Some(path) => {
            let path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
            println!("mount with it: mount -t fuse.dfs META:/ /mnt/dfs -o {}", option(&path));
            println!(
                "keep {} safe, and a copy elsewhere: without it what is encrypted is lost",
                path.display()
            );
        }
        None => {
            println!(
                "mount with it: write the passphrase to a FILE that only its owner may read (chmod 600)"
            );
            println!("               mount -t fuse.dfs META:/ /mnt/dfs -o key={name}:/FILE");
            println!("keep the passphrase: without it what is encrypted is lost");
        }
    }
    Ok(())
}

async fn list(server: &Server, as_json: bool) -> Result<()> {
    let keys = keys(server).await?;
    match as_json {
        true => println!("{}", serde_json::to_string_pretty(&keys.iter().map(told).collect::<Value>())?),
        false => {
            let cells = |key: &Key| {
                let numbers = [key.generation.to_string(), key.data_keys.to_string()];
                [key.name.clone(), source_name(key).to_owned()].into_iter().chain(numbers).collect()
            };
            let headings = ["key", "source", "generation", "data keys"];
            print!("{}", table(&headings, &[2, 3], keys.iter().map(cells).collect()));
        }
    }
    Ok(())
}

fn told(key: &Key) -> Value {
    json!({
        "key": key.name, "source": source_name(key), "generation": key.generation, "data_keys": key.data_keys,
    })
}

fn source_name(key: &Key) -> &'static str {
    match KeySource::try_from(key.source) {
        Ok(KeySource::KeyFile) => "file",
        Ok(KeySource::Passphrase) => "passphrase",
        Err(_) => "unknown",
    }
}

/// All keys of the cluster.
async fn keys(server: &Server) -> Result<Vec<Key>, Failure> {
    match server.call(request::Op::ListKeys(ListKeys {})).await? {
        reply::Result::Keys(keys) => Ok(keys.keys),
        other => Err(unexpected(&other)),
    }
}

async fn find_key(server: &Server, name: &str) -> Result<Option<Key>, Failure> {
    Ok(keys(server).await?.into_iter().find(|key| key.name == name))
}

async fn done(server: &Server, op: request::Op) -> Result<(), Failure> {
    match server.call(op).await? {
        reply::Result::Done(_) => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// [`MasterKey::create`], beside the connection: a passphrase takes its time, in which the server may ask for a sign of life.
async fn make(
    name: &str,
    source: KeySource,
    secret: &Secret,
    generation: u32,
) -> Result<(Key, MasterKey), Failure> {
    let (name, secret) = (name.to_owned(), secret.clone());
    beside(move || MasterKey::create(&name, source, &secret, generation)).await
}

/// [`MasterKey::open`], likewise.
async fn open(record: &Key, secret: &Secret) -> Result<MasterKey, Failure> {
    let (record, secret) = (record.clone(), secret.clone());
    beside(move || MasterKey::open(&record, &secret)).await
}

/// Runs what takes long, or waits for somebody, while the connection lives on.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|error| Err(Failure::new(Code::InputOutput, format!("a thread ended: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_without_what_tells_them() {
        let (key, _) = MasterKey::create("k", KeySource::KeyFile, &[7; 32], 3).unwrap();
        let expected = json!({ "key": "k", "source": "file", "generation": 3, "data_keys": 0 });
        assert_eq!(told(&key), expected);
        assert_eq!(source_name(&Key { source: KeySource::Passphrase.into(), ..key.clone() }), "passphrase");
        assert_eq!(source_name(&Key { source: 99, ..key }), "unknown");
    }
}
