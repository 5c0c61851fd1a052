//! Settings: flags over a TOML file over defaults. A key or value that is wrong is refused by its name. Every key is
//! described in `systemd/dfs-meta.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dfs_proto::{Class, limits};
use serde::Deserialize;

use crate::cluster::Policy;
use crate::ops::Settings;

/// The dfs metadata server: keeps the namespace of one cluster in a directory.
#[derive(Parser, Debug, Default)]
#[command(name = "dfs-meta", version)]
pub struct Flags {
    /// Read settings from this TOML file; flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    settings: Given,
}

/// What flags or the file may give.
#[derive(clap::Args, Deserialize, Debug, Default, Clone)]
#[serde(deny_unknown_fields)]
struct Given {
    /// Keep the metadata in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Answer on this address [default: 0.0.0.0:7600]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Memory for the store's page cache, e.g. 256MiB
    #[arg(long, value_name = "SIZE")]
    cache: Option<String>,
    /// Set so much disk space aside for deleting, e.g. 256MiB
    #[arg(long, value_name = "SIZE")]
    reserve: Option<String>,
    /// How the files of a fresh cluster are kept, e.g. replicated:3
    #[arg(long, value_name = "CLASS")]
    default_class: Option<String>,
    /// Fence a client that was not heard of for so long, e.g. 20s
    #[arg(long, value_name = "TIME")]
    session_timeout: Option<String>,
    /// How often clients and chunk daemons are to say that they live, e.g. 5s
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<String>,
    /// Suspect a chunk daemon that was not heard of for so long, e.g. 10s
    #[arg(long, value_name = "TIME")]
    node_suspect_after: Option<String>,
    /// Count a chunk daemon as down that was not heard of for so long, e.g. 20s
    #[arg(long, value_name = "TIME")]
    node_dead_after: Option<String>,
    /// Keep chunks that no file needs any more for so long, e.g. 15m
    #[arg(long, value_name = "TIME")]
    garbage_grace: Option<String>,
    /// How to choose the nodes for data: spread, least-loaded, round-robin or hash-ring
    #[arg(long, value_name = "POLICY")]
    placement: Option<String>,
    /// Put a first copy on the writer's own host when it has a chunk daemon
    #[arg(long, value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true")]
    place_near_writer: Option<bool>,
    /// How often each chunk daemon is asked for everything it holds, e.g. 6h
    #[arg(long, value_name = "TIME")]
    inventory_interval: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,dfs_meta=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the metadata is.
    pub data: PathBuf,
    /// Where to answer.
    pub listen: SocketAddr,
    /// Of the store.
    pub cache_bytes: u64,
    /// Space set aside for deleting, where that was said.
    reserve_bytes: Option<u64>,
    /// Of the root directory of a fresh filesystem.
    pub default_class: Class,
    /// Of sessions.
    pub session_timeout: Duration,
    /// Of sessions and chunk daemons.
    pub heartbeat: Duration,
    /// Of chunk daemons.
    pub node_suspect_after: Duration,
    /// Of chunk daemons.
    pub node_dead_after: Duration,
    /// For chunks that nothing points to.
    pub garbage_grace: Duration,
    /// Which nodes get a chunk's shards.
    pub placement: Policy,
    /// A first copy goes to the writer's host.
    pub place_near_writer: bool,
    /// Of chunk daemons.
    pub inventory_interval: Duration,
    /// A filter for the log.
    pub log_level: String,
    /// Whether log lines are JSON objects.
    pub log_json: bool,
}

const CACHE: u64 = 256 << 20;
const RESERVE: u64 = 256 << 20;
const INVENTORY_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// Where no reserve is given, it is at most this part of the disk.
const RESERVED_PART: u64 = 16;
const GARBAGE_GRACE: Duration = Duration::from_secs(15 * 60);

impl Config {
    /// The settings that the flags and the file they name make together.
    pub fn load(flags: Flags) -> anyhow::Result<Self> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => Given::default(),
        };
        Self::check(flags.settings.over(file))
    }

    /// What operations need of them; the store says the rest.
    pub fn settings(&self) -> Settings {
        Settings {
            session_timeout: self.session_timeout,
            heartbeat: self.heartbeat,
            node_suspect_after: self.node_suspect_after,
            node_dead_after: self.node_dead_after,
            garbage_grace: self.garbage_grace,
            placement: self.placement,
            place_near_writer: self.place_near_writer,
            inventory_interval: self.inventory_interval,
            ..Settings::default()
        }
    }

    /// Space to set aside on the disk of the data directory, which is there already.
    pub fn reserve_on_disk(&self) -> anyhow::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.data)
            .with_context(|| format!("asking for the disk of {}", self.data.display()))?;
        let disk = stat.blocks() as u64 * stat.fragment_size() as u64;
        Ok(self.reserve_bytes.unwrap_or_else(|| RESERVE.min(disk / RESERVED_PART)))
    }

    fn check(given: Given) -> anyhow::Result<Self> {
        let Some(data) = given.data else { bail!("data: say where the metadata is kept, e.g. --data DIR") };
        let listen = given.listen.unwrap_or_else(|| format!("0.0.0.0:{}", limits::DEFAULT_META_PORT));
        let config = Self {
            data,
            listen: listen
                .parse()
                .with_context(|| format!("listen: {listen:?} is not an address: write ADDRESS:PORT"))?,
            cache_bytes: size("cache", given.cache, CACHE)?,
            reserve_bytes: given.reserve.map(|text| size("reserve", Some(text), RESERVE)).transpose()?,
            default_class: match given.default_class {
                Some(text) => text.parse().context("default_class")?,
                None => Class::default(),
            },
            session_timeout: time("session_timeout", given.session_timeout, limits::SESSION_TIMEOUT)?,
            heartbeat: time("heartbeat", given.heartbeat, limits::HEARTBEAT)?,
            node_suspect_after: time(
                "node_suspect_after",
                given.node_suspect_after,
                limits::NODE_SUSPECT_AFTER,
            )?,
            node_dead_after: time("node_dead_after", given.node_dead_after, limits::SESSION_TIMEOUT)?,
            garbage_grace: time("garbage_grace", given.garbage_grace, GARBAGE_GRACE)?,
            placement: match given.placement {
                Some(text) => text.parse().context("placement")?,
                None => Policy::default(),
            },
            place_near_writer: given.place_near_writer.unwrap_or(false),
            inventory_interval: time("inventory_interval", given.inventory_interval, INVENTORY_INTERVAL)?,
            log_level: given.log_level.unwrap_or_else(|| "info".into()),
            log_json: match given.log_format.as_deref() {
                None | Some("text") => false,
                Some("json") => true,
                Some(other) => bail!("log_format: {other:?} is neither text nor json"),
            },
        };
        let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level);
        filter.with_context(|| format!("log_level: {:?} is not a level or filter", config.log_level))?;
        ensure!(config.cache_bytes >= 1 << 20, "cache: at least 1MiB is needed");
        ensure!(!config.heartbeat.is_zero(), "heartbeat: it may not be 0");
        ensure!(
            config.session_timeout > config.heartbeat,
            "session_timeout: it must be longer than heartbeat"
        );
        ensure!(
            config.node_suspect_after > config.heartbeat,
            "node_suspect_after: it must be longer than heartbeat"
        );
        ensure!(
            config.node_dead_after >= config.node_suspect_after,
            "node_dead_after: it must not be shorter than node_suspect_after"
        );
        Ok(config)
    }
}

impl Given {
    /// What is given here, else what `below` gives.
    fn over(self, below: Self) -> Self {
        Self {
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            cache: self.cache.or(below.cache),
            reserve: self.reserve.or(below.reserve),
            default_class: self.default_class.or(below.default_class),
            session_timeout: self.session_timeout.or(below.session_timeout),
            heartbeat: self.heartbeat.or(below.heartbeat),
            node_suspect_after: self.node_suspect_after.or(below.node_suspect_after),
            node_dead_after: self.node_dead_after.or(below.node_dead_after),
            garbage_grace: self.garbage_grace.or(below.garbage_grace),
            placement: self.placement.or(below.placement),
            place_near_writer: self.place_near_writer.or(below.place_near_writer),
            inventory_interval: self.inventory_interval.or(below.inventory_interval),
            log_level: self.log_level.or(below.log_level),
            log_format: self.log_format.or(below.log_format),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Given> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

fn time(name: &str, text: Option<String>, default: Duration) -> anyhow::Result<Duration> {
    let Some(text) = text else { return Ok(default) };
    humantime::parse_duration(&text)
        .with_context(|| format!("{name}: {text:?} is not a time, such as 20s or 15m"))
}

fn size(name: &str, text: Option<String>, default: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default) };
    parse_size(&text).with_context(|| format!("{name}: {text:?} is not a size, such as 256MiB or 1GiB"))
}

/// Bytes from "4096", "64KiB", "256MiB", "1GiB" or "2TiB".
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str, flags: &[&str]) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let arguments =
            ["dfs-meta", "--config", file.path().to_str().unwrap()].into_iter().chain(flags.iter().copied());
        let flags = Flags::try_parse_from(arguments).map_err(|error| error.to_string())?;
        Config::load(flags).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let toml = "data = '/d'\ngarbage_grace = '1m'\ncache = '64MiB'\nlog_format = 'json'";
        let config = config(toml, &["--cache", "1GiB", "--listen", "127.0.0.1:0"]).unwrap();
        assert_eq!(config.data, Path::new("/d"));
        assert_eq!((config.cache_bytes, config.reserve_bytes), (1 << 30, None));
        assert_eq!((config.garbage_grace, config.heartbeat), (Duration::from_secs(60), limits::HEARTBEAT));
        assert!(config.log_json && config.listen.ip().is_loopback());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (toml, name) in [
            ("dat = '/d'", "dat"),
            ("data = 7", "data"),
            ("data = '/d'\nlisten = 'here'", "listen"),
            ("data = '/d'\ncache = '12 parsecs'", "cache"),
            ("data = '/d'\ncache = '99999999999TiB'", "cache"),
            ("data = '/d'\nheartbeat = 'soon'", "heartbeat"),
            ("data = '/d'\nsession_timeout = '1s'", "session_timeout"),
            ("data = '/d'\nnode_dead_after = '6s'", "node_dead_after"),
            ("data = '/d'\ndefault_class = 'raid5'", "default_class"),
            ("data = '/d'\nplacement = 'darts'", "placement"),
            ("data = '/d'\nplace_near_writer = 'yes'", "place_near_writer"),
            ("data = '/d'\nlog_format = 'xml'", "log_format"),
            ("data = '/d'\nlog_level = 'a=b=c'", "log_level"),
            ("", "data"),
        ] {
            let error = config(toml, &[]).unwrap_err();
            assert!(error.contains(name), "{toml:?}: {error}");
        }
        assert!(config("data = '/d'", &["--cach", "1MiB"]).unwrap_err().contains("--cach"));
    }

    #[test]
    fn the_sample_is_complete_and_says_the_defaults() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/dfs-meta.toml");
        let sample = std::fs::read_to_string(sample).unwrap();
        // Settings that are commented out are the defaults.
        let lines = sample
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
        let uncommented = lines.collect::<Vec<_>>().join("\n");
        let all: toml::Table = uncommented.parse().unwrap();
        let fields = serde_fields();
        for field in &fields {
            assert!(all.contains_key(field), "{field} is not in the sample");
        }
        assert_eq!(all.len(), fields.len());
        let (mut full, plain) = (config(&uncommented, &[]).unwrap(), config(&sample, &[]).unwrap());
        // Where it isn't said, a small disk's is smaller.
        assert_eq!(full.reserve_bytes.take(), Some(RESERVE));
        assert_eq!(full, plain);
    }

    /// The keys that the file may have, as its parser names them.
    fn serde_fields() -> Vec<String> {
        let error = toml::from_str::<Given>("no_such_key = 1").unwrap_err().to_string();
        let (_, expected) = error.split_once("expected").unwrap();
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
}
