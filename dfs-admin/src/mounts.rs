//! The kernel's table of mounts: where dfs is mounted, and of which servers. Asking the table never hangs, unlike asking
//! a mount.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dfs_proto::limits::DEFAULT_META_PORT;

/// The filesystem type of a dfs mount.
pub const KIND: &str = "fuse.dfs";

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Device number, as st_dev has it.
    pub device: u64,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Filesystem type.
    pub kind: String,
    /// What is mounted there: "host:port:/" for dfs.
    pub source: OsString,
}

/// What a dfs mount shows: `META[,META2]:/[subdir]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// host:port of each metadata server.
    pub servers: Vec<String>,
    /// The directory that is the mount's root, absolute in the filesystem.
    pub directory: PathBuf,
}

impl Source {
    /// Parses it as mount(8) has it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let split = text.windows(2).position(|pair| pair == b":/");
        let Some(split) = split.filter(|split| *split > 0) else {
            let text = String::from_utf8_lossy(text);
            bail!("{text:?} does not name a dfs filesystem: write HOST[:PORT][,HOST[:PORT]]:/[DIRECTORY]")
        };
        let servers = std::str::from_utf8(&text[..split]).context("a server's address is not text")?;
        let directory = OsString::from_vec(text[split + 1..].to_vec()).into();
        Ok(Self { servers: parse_servers(servers), directory })
    }
}

/// Splits "a,b:1" into addresses; a missing port is the default one.
pub fn parse_servers(text: &str) -> Vec<String> {
    let with_port = |address: &str| {
        let host_end = address.rfind(']').map_or(0, |bracket| bracket + 1);
        match address[host_end..].contains(':') {
            true => address.to_owned(),
            false => format!("{address}:{DEFAULT_META_PORT}"),
        }
    };
    text.split(',').map(str::trim).filter(|address| !address.is_empty()).map(with_port).collect()
}

/// All mounts of this process, the latest last.
pub fn all() -> Result<Vec<Mounted>> {
    let table = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(table.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// What is mounted at `path` now: the last one where several lie on top of each other.
pub fn at(path: &Path) -> Result<Option<Mounted>> {
    Ok(all()?.into_iter().rev().find(|mount| mount.point == path))
}

/// See proc_pid_mountinfo(5): id, parent, major:minor, root, point, options, optional fields, "-", type, source, …
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let dash = fields.iter().position(|field| *field == b"-")?;
    Some(Mounted {
        device: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
        point: OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: OsString::from_vec(unescape(fields.get(dash + 2)?)),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

impl Mounted {
    /// What a dfs mount shows; an error for any other.
    pub fn dfs_source(&self) -> Result<Source> {
        if self.kind != KIND {
            bail!("{} is a {} filesystem, not dfs", self.point.display(), self.kind);
        }
        Source::parse(self.source.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line =
            b"98 29 0:53 / /mnt/a\\040b rw,nosuid shared:4 - fuse.dfs h1:7,h2:/sub\\134dir rw,user_id=0";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.device, nix::sys::stat::makedev(0, 53));
        let source = mount.dfs_source().unwrap();
        assert_eq!(source.servers, ["h1:7", "h2:7600"]);
        assert_eq!(source.directory, Path::new("/sub\\dir"));
        assert_eq!(parse_line(b""), None);
        assert!(all().unwrap().iter().any(|mount| mount.point == Path::new("/")));
    }

    #[test]
    fn addresses_get_the_default_port() {
        assert_eq!(parse_servers("a, b:1,,[::1],[::1]:2"), ["a:7600", "b:1", "[::1]:7600", "[::1]:2"]);
        assert_eq!(Source::parse(b"[::1]:9:/").unwrap().servers, ["[::1]:9"]);
        for bad in [&b""[..], b":/", b"host", b"/dev/sda"] {
            assert!(Source::parse(bad).is_err());
        }
    }
}
