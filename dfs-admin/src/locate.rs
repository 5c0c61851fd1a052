//! Which inode of which cluster a path means.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dfs_proto::Ino;
use dfs_proto::meta::{Lookup, reply, request};

use crate::server::{Server, unexpected};
use crate::{find, mounts};

/// The server and the inode that a path means: one on a mount, or "dfs:/…" inside the filesystem of `meta`.
pub(crate) async fn locate(meta: Option<&str>, path: &Path) -> Result<(Server, Ino)> {
    if let Some(inside) = path.as_os_str().as_bytes().strip_prefix(b"dfs:") {
        let server = find::server(meta).await?;
        let ino = walk(&server, Path::new(OsStr::from_bytes(inside))).await?;
        return Ok((server, ino));
    }
    let metadata = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
    let mount = mounts::all()?.into_iter().rev().find(|mount| mount.device == metadata.dev());
    let mount = mount.with_context(|| format!("{} is on no mount that is known here", path.display()))?;
    let source = mount.dfs_source()?;
    let server = match meta {
        Some(meta) => find::server(Some(meta)).await?,
        None => Server::connect(&source.servers).await?,
    };
    // The root of a mount has the number that the kernel wants, which is not its own where a directory is mounted.
    let is_root = mount.point.symlink_metadata().is_ok_and(|root| root.ino() == metadata.ino());
    let ino = if is_root { walk(&server, &source.directory).await? } else { Ino(metadata.ino()) };
    Ok((server, ino))
}

/// The inode of a path from the filesystem's root; symbolic links are not followed.
async fn walk(server: &Server, path: &Path) -> Result<Ino> {
    let mut ino = Ino::ROOT;
    let mut so_far = PathBuf::from("/");
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        so_far.push(name);
        let lookup = Lookup { parent: ino.0, name: name.as_bytes().to_vec().into() };
        let result = server.call(request::Op::Lookup(lookup)).await;
        let result = result.with_context(|| format!("look up {} in the filesystem", so_far.display()))?;
        ino = match result {
            reply::Result::Attr(attr) => Ino(attr.ino),
            other => bail!(unexpected(&other)),
        };
    }
    Ok(ino)
}
