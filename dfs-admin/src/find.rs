//! Finding the metadata server when nobody said where it is: `--meta` or `DFS_META`, else the default port on this
//! machine, else the development cluster that runs here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dfs_proto::Failure;
use dfs_proto::limits::DEFAULT_META_PORT;

use crate::mounts::parse_servers;
use crate::server::Server;

/// Where a development cluster writes its metadata server's address while it runs.
#[derive(Debug)]
pub struct Announcement {
    path: PathBuf,
    address: String,
}

impl Announcement {
    /// Writes the address down. It is taken back when this is dropped.
    pub fn new(address: &str) -> Result<Self> {
        Self::at(&path(), address)
    }

    fn at(path: &Path, address: &str) -> Result<Self> {
        let directory = path.parent().unwrap_or(path);
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        fs::write(path, format!("{address}\n")).with_context(|| format!("write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), address: address.to_owned() })
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // Another cluster that was started later may have written its own.
        if read(&self.path).as_deref() == Some(self.address.as_str()) {
            // What stays is an address where nobody answers, which is told when it is tried.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the server that `given` names ("host:port,host2"), or to the one that is found.
pub async fn server(given: Option<&str>) -> Result<Server, Failure> {
    if let Some(given) = given {
        return Server::connect(&parse_servers(given)).await;
    }
    let mut addresses = vec![format!("127.0.0.1:{DEFAULT_META_PORT}")];
    addresses.extend(read(&path()).filter(|address| *address != addresses[0]));
    Server::connect(&addresses).await
}

fn path() -> PathBuf {
    let user = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !nix::unistd::geteuid().is_root());
    user.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("dfs/dev-meta")
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_taken_back_unless_another_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dfs/dev-meta");
        let first = Announcement::at(&path, "127.0.0.1:1").unwrap();
        assert_eq!(read(&path).unwrap(), "127.0.0.1:1");
        let second = Announcement::at(&path, "127.0.0.1:2").unwrap();
        drop(first);
        assert_eq!(read(&path).unwrap(), "127.0.0.1:2");
        drop(second);
        assert_eq!(read(&path), None);
    }
}
