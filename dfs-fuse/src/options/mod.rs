//! The command line, as mount(8) and people write it: `SOURCE MOUNTPOINT [-sfnv] [-t TYPE] [-o OPTION,OPTION]`.
//!
//! Options that mount(8), fstab and systemd hand to every filesystem are passed over; an unknown one is refused by its
//! name. Where options contradict each other the later one counts, as in mount(8). Parsing touches nothing.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use dfs_client::keys::KeyFiles;
use dfs_proto::Labels;
use dfs_proto::class::check_key_name;

use crate::source::Source;

/// How long an operation waits for its servers unless `timeout=` says otherwise.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest `timeout=`: a year. Who wants more writes 0, for ever.
const MAX_TIMEOUT_SECONDS: u64 = 365 * 24 * 3600;
/// The smallest and largest `cache=` and `dirty=`.
const SIZES: std::ops::RangeInclusive<u64> = 4 << 20..=1 << 44;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Mount `source` on `target`.
    Mount(Box<Mount>),
    /// Change the flags of what is mounted on `target` already.
    Remount {
        /// The mount point.
        target: PathBuf,
        /// The flags it has afterwards.
        flags: Flags,
    },
    /// Print how the command is used.
    Help,
    /// Print the version.
    Version,
}

/// One mount, fully told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What is mounted.
    pub(crate) source: Source,
    /// Where.
    pub(crate) target: PathBuf,
    /// What the kernel enforces.
    pub(crate) flags: Flags,
    /// How access times are kept.
    pub(crate) atime: Atime,
    /// Users other than the mounting one may enter.
    pub(crate) allow_other: bool,
    /// The kernel checks permissions by mode bits and ACLs.
    pub(crate) default_permissions: bool,
    /// How long an operation waits for its servers; `None`: for ever.
    pub(crate) timeout: Option<Duration>,
    /// Stay in the foreground and log to standard error.
    pub(crate) foreground: bool,
    /// Log to this file instead of syslog.
    pub(crate) log: Option<PathBuf>,
    /// What is logged: a level or a tracing filter.
    pub(crate) log_level: String,
    /// Bytes of file data kept for reading again; `None`: the client's default.
    pub(crate) cache_bytes: Option<u64>,
    /// Bytes of written data that may wait for upload; `None`: the client's default.
    pub(crate) dirty_bytes: Option<u64>,
    /// The files with the keys that it is given.
    pub(crate) keys: KeyFiles,
    /// Where this machine is: near copies are read first. Without a host, the machine's name is taken.
    pub(crate) labels: Labels,
    /// Check everything, mount nothing (`-f`).
    pub(crate) fake: bool,
}

/// Mount flags that the kernel itself enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `ro`
    pub(crate) read_only: bool,
    /// `nodev`
    pub(crate) no_dev: bool,
    /// `nosuid`
    pub(crate) no_suid: bool,
    /// `noexec`
    pub(crate) no_exec: bool,
    /// `sync`: every write is durable before it returns.
    pub(crate) sync: bool,
    /// `dirsync`: accepted for its name; directory changes are always durable before they return.
    pub(crate) dir_sync: bool,
    /// `noatime`
    pub(crate) no_atime: bool,
    /// `nodiratime`
    pub(crate) no_dir_atime: bool,
    /// `strictatime`
    pub(crate) strict_atime: bool,
}

/// When reading a file changes its access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Atime {
    /// When it is not later than the last change, or a day old.
    #[default]
    Relative,
    /// At each read.
    Strict,
    /// Never.
    Never,
}

/// Parses the arguments after the program's name. The error is a sentence. `root` says whether the caller is root,
/// for whom `allow_other` and `default_permissions` are the default.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>, root: bool) -> Result<Request, String> {
    let command = CommandLine::split(arguments)?;
    match command.only {
        Some(Only::Help) => return Ok(Request::Help),
        Some(Only::Version) => return Ok(Request::Version),
        None => {}
    }
    let mut positional = command.positional.into_iter();
    let (Some(source), Some(target), None) = (positional.next(), positional.next(), positional.next()) else {
        return Err("a source and a mount point are needed: dfs-fuse META[,META2]:/ MOUNTPOINT".to_owned());
    };
    if target.is_empty() {
        return Err("the mount point is empty".to_owned());
    }
    let target = PathBuf::from(target);
    let mut mount = Mount {
        source: Source { servers: Vec::new(), subdirectory: Vec::new(), text: String::new() },
        target,
        flags: Flags::default(),
        atime: Atime::default(),
        allow_other: root,
        default_permissions: root,
        timeout: Some(DEFAULT_TIMEOUT),
        foreground: false,
        log: None,
        log_level: "info".to_owned(),
        cache_bytes: None,
        dirty_bytes: None,
        keys: KeyFiles::default(),
        labels: Labels::default(),
        fake: command.fake,
    };
    let mut remount = false;
    for option in split_options(&command.options)? {
        match option.as_str() {
            "remount" => remount = true,
            option => match apply(&mut mount, option)? {
                Known::Yes => {}
                Known::No if command.sloppy => {}
                Known::No => {
                    let name = option.split_once('=').map_or(option, |(name, _)| name);
                    return Err(format!("unknown mount option {name:?}"));
                }
            },
        }
    }
    if remount {
        return Ok(Request::Remount { target: mount.target, flags: mount.flags });
    }
    mount.source =
        Source::parse(source.to_str().ok_or_else(|| format!("the source {source:?} is not UTF-8"))?)?;
    Ok(Request::Mount(Box::new(mount)))
}

/// Whether an option means something here.
enum Known {
    Yes,
    No,
}

/// Applies one option of the list.
fn apply(mount: &mut Mount, option: &str) -> Result<Known, String> {
    let flags = &mut mount.flags;
    match option {
        "ro" => flags.read_only = true,
        "rw" => flags.read_only = false,
        "dev" => flags.no_dev = false,
        "nodev" => flags.no_dev = true,
        "suid" => flags.no_suid = false,
        "nosuid" => flags.no_suid = true,
        "exec" => flags.no_exec = false,
        "noexec" => flags.no_exec = true,
        "sync" => flags.sync = true,
        "async" => flags.sync = false,
        "dirsync" => flags.dir_sync = true,
        "diratime" => flags.no_dir_atime = false,
        "nodiratime" => flags.no_dir_atime = true,
        "atime" | "relatime" => set_atime(mount, Atime::Relative),
        "noatime" => set_atime(mount, Atime::Never),
        "strictatime" => set_atime(mount, Atime::Strict),
        "allow_other" => mount.allow_other = true,
        "default_permissions" => mount.default_permissions = true,
        "foreground" => mount.foreground = true,
        // What mount(8) means by letting users mount; its helpers are told both.
        "user" | "users" => (flags.no_dev, flags.no_suid, flags.no_exec) = (true, true, true),
        "owner" | "group" => (flags.no_dev, flags.no_suid) = (true, true),
        "defaults" | "_netdev" | "auto" | "noauto" | "nofail" | "nouser" | "nousers" | "noowner"
        | "nogroup" | "silent" | "loud" | "comment" => {}
        _ if option.starts_with("x-") || option.starts_with("X-") => {}
        _ => {
            let Some((name, value)) = option.split_once('=') else { return Ok(Known::No) };
            return apply_value(mount, name, value);
        }
    }
    Ok(Known::Yes)
}

/// Applies one option with a value.
fn apply_value(mount: &mut Mount, name: &str, value: &str) -> Result<Known, String> {
    match name {
        "timeout" => {
            let seconds = value.parse::<u64>().ok().filter(|&seconds| seconds <= MAX_TIMEOUT_SECONDS);
            let seconds = seconds.ok_or_else(|| {
                format!("timeout={value} is not a number of seconds up to {MAX_TIMEOUT_SECONDS}, 0 for ever")
            })?;
            mount.timeout = (seconds != 0).then(|| Duration::from_secs(seconds));
        }
        "log" if value.starts_with('/') => mount.log = Some(PathBuf::from(value)),
        "log" => return Err(format!("log={value} is not an absolute path")),
        "log_level" if !value.is_empty() => mount.log_level = value.to_owned(),
        "log_level" => return Err("log_level= needs a level: error, warn, info, debug or trace".to_owned()),
        "cache" => mount.cache_bytes = Some(parse_size(name, value)?),
        "dirty" => mount.dirty_bytes = Some(parse_size(name, value)?),
        "key" => {
            let (name, file) = parse_key(value)?;
            mount.keys.files.insert(name, file);
        }
        "keys" if value.starts_with('/') => mount.keys.directory = Some(PathBuf::from(value)),
        "keys" => return Err(format!("keys={value} is not the absolute path of a directory")),
        "host" | "rack" | "zone" if value.is_empty() => return Err(format!("{name}= needs a name")),
        "host" => mount.labels.host = value.to_owned(),
        "rack" => mount.labels.rack = value.to_owned(),
        "zone" => mount.labels.zone = value.to_owned(),
        "comment" | "user" | "uhelper" | "helper" => {}
        // What the kernel adds to the line in /proc/mounts, from where mount(8) takes it for a remount.
        "user_id" | "group_id" | "rootmode" | "max_read" => {}
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

fn set_atime(mount: &mut Mount, atime: Atime) {
    mount.atime = atime;
    mount.flags.no_atime = atime == Atime::Never;
    mount.flags.strict_atime = atime == Atime::Strict;
}

/// A key's name and the file that it is in.
fn parse_key(value: &str) -> Result<(String, PathBuf), String> {
    let Some((name, file)) = value.split_once(':').filter(|(_, file)| file.starts_with('/')) else {
        return Err(format!("key={value} is not NAME:FILE with an absolute path"));
    };
    check_key_name(name).map_err(|failure| format!("key={value}: {failure}"))?;
    Ok((name.to_owned(), PathBuf::from(file)))
}

/// A number of bytes, with K, M, G or T for powers of 1024.
fn parse_size(name: &str, value: &str) -> Result<u64, String> {
    let bad = || {
        format!(
            "{name}={value} is not a size from 4M to 16T: write a number of bytes, or one with K, M, G or T"
        )
    };
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        Some(b'T' | b't') => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).filter(|bytes| SIZES.contains(bytes)).ok_or_else(bad)
}

/// Splits a list at commas; a comma inside double quotes is part of a value, as in fstab.
fn split_options(lists: &[String]) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    for list in lists {
        let mut option = String::new();
        let mut quoted = false;
        for c in list.chars() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => options.push(std::mem::take(&mut option)),
                c => option.push(c),
            }
        }
        if quoted {
            return Err(format!("a quote is not closed in the options {list:?}"));
        }
        options.push(option);
    }
    options.retain(|option| !option.is_empty());
    Ok(options)
}

/// Arguments that make the command do nothing else.
enum Only {
    Help,
    Version,
}

/// The arguments sorted, none understood yet.
struct CommandLine {
    positional: Vec<OsString>,
    options: Vec<String>,
    fake: bool,
    sloppy: bool,
    only: Option<Only>,
}

impl CommandLine {
    fn split(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut line =
            Self { positional: Vec::new(), options: Vec::new(), fake: false, sloppy: false, only: None };
        let mut arguments = arguments.into_iter();
        let mut only_positional = false;
        while let Some(argument) = arguments.next() {
            let text = match argument.to_str() {
                Some(text) if !only_positional && text.len() > 1 && text.starts_with('-') => text,
                _ => {
                    line.positional.push(argument);
                    continue;
                }
            };
            match text {
                "--" => only_positional = true,
                "--help" => line.only = Some(Only::Help),
                "--version" => line.only = Some(Only::Version),
                _ if text.starts_with("--") => return Err(format!("unknown argument {text:?}")),
                _ => line.take_letters(&text[1..], &mut arguments)?,
            }
        }
        Ok(line)
    }

    /// One-letter arguments, joined or not; the rest of the word, or the next word, is a letter's value.
    fn take_letters(
        &mut self,
        letters: &str,
        arguments: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), String> {
        for (at, letter) in letters.char_indices() {
            match letter {
                'f' => self.fake = true,
                's' => self.sloppy = true,
                // There is no mtab to leave alone, and nothing more to say.
                'n' | 'v' => {}
                'h' => self.only = Some(Only::Help),
                'V' => self.only = Some(Only::Version),
                'o' | 't' => {
                    let rest = &letters[at + 1..];
                    let value = match rest {
                        "" => arguments.next().ok_or_else(|| format!("-{letter} lacks its value"))?,
                        rest => OsString::from(rest),
                    };
                    let value = value.into_string().map_err(|value| format!("{value:?} is not UTF-8"))?;
                    match letter {
                        'o' => self.options.push(value),
                        _ if matches!(value.as_str(), "fuse.dfs" | "fuse" | "dfs") => {}
                        _ => return Err(format!("the type {value:?} is not fuse.dfs")),
                    }
                    return Ok(());
                }
                'N' => return Err("-N: mounting in another namespace is not offered".to_owned()),
                letter => return Err(format!("unknown argument -{letter}")),
            }
        }
        Ok(())
    }
}
