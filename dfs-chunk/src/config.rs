//! Settings: flags over a TOML file over defaults. A key or value that is wrong is refused by its name. Every key is
//! described in `systemd/dfs-chunk.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dfs_proto::Labels;
use dfs_proto::limits::{DEFAULT_CHUNK_PORT, DEFAULT_META_PORT};
use serde::Deserialize;

use crate::store::Reserve;

/// The longest label.
const MAX_LABEL: usize = 255;

/// A dfs chunk daemon: keeps shards on one disk of a cluster.
#[derive(Parser, Debug, Default)]
#[command(name = "dfs-chunk", version)]
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
    /// Where the metadata server answers; several addresses with commas [default: 127.0.0.1:7600]
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    meta: Option<Vec<String>>,
    /// Keep the shards in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Answer on this address; port 0: any free one [default: 0.0.0.0:7610]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Where clients reach this daemon, when it is not where it listens
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Option<String>,
    /// The host that fails with this disk [default: this machine's name]
    #[arg(long, value_name = "LABEL")]
    host: Option<String>,
    /// The rack that fails with this host
    #[arg(long, value_name = "LABEL")]
    rack: Option<String>,
    /// The zone that fails with this rack
    #[arg(long, value_name = "LABEL")]
    zone: Option<String>,
    /// Hand open files of shards to clients on this machine, which then read them by themselves [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    local_reads: Option<bool>,
    /// Leave this much of the disk free, e.g. 1GiB or 5% [default: 1GiB, or 5% of a smaller disk]
    #[arg(long, value_name = "SIZE")]
    reserve: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,dfs_chunk=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Write the address there when the daemon is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

/// Checked settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Addresses of the metadata server, at least one, each with its port.
    pub meta: Vec<String>,
    /// Where the shards are.
    pub data: PathBuf,
    /// Where to answer.
    pub listen: SocketAddr,
    /// What to tell others, with its port or without.
    pub advertise: Option<String>,
    /// What fails together.
    pub labels: Labels,
    /// Whether clients on this machine get open files.
    pub local_reads: bool,
    /// Space left free.
    pub reserve: Reserve,
    /// A filter for the log.
    pub log_level: String,
    /// Whether log lines are JSON objects.
    pub log_json: bool,
    /// Where to write the address when ready.
    pub ready_file: Option<PathBuf>,
}

impl Config {
    /// The settings that the flags and the file they name make together.
    pub fn load(flags: Flags) -> anyhow::Result<Self> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => Given::default(),
        };
        Self::check(flags.settings.over(file))
    }

    fn check(given: Given) -> anyhow::Result<Self> {
        let Some(data) = given.data else { bail!("data: say where the shards are kept, e.g. --data DIR") };
        let listen = given.listen.unwrap_or_else(|| format!("0.0.0.0:{DEFAULT_CHUNK_PORT}"));
        let meta = given.meta.unwrap_or_else(|| vec!["127.0.0.1".into()]);
        ensure!(!meta.is_empty(), "meta: give at least one address");
        let host = match given.host {
            Some(host) => host,
            None => {
                let name = nix::unistd::gethostname().context("host: asking for this machine's name")?;
                name.to_string_lossy().into_owned()
            }
        };
        let config = Self {
            meta: meta.iter().map(|address| with_port(address, DEFAULT_META_PORT)).collect(),
            data,
            listen: listen
                .parse()
                .with_context(|| format!("listen: {listen:?} is not an address: write ADDRESS:PORT"))?,
            advertise: given.advertise,
            labels: Labels {
                host: label("host", host)?,
                rack: label("rack", given.rack.unwrap_or_default())?,
                zone: label("zone", given.zone.unwrap_or_default())?,
            },
            local_reads: given.local_reads.unwrap_or(true),
            reserve: match given.reserve {
                None => Reserve::Default,
                Some(text) => parse_reserve(&text).with_context(|| {
                    format!("reserve: {text:?} is not a size, such as 512MiB, 10GiB or 5%")
                })?,
            },
            log_level: given.log_level.unwrap_or_else(|| "info".into()),
            log_json: match given.log_format.as_deref() {
                None | Some("text") => false,
                Some("json") => true,
                Some(other) => bail!("log_format: {other:?} is neither text nor json"),
            },
            ready_file: given.ready_file,
        };
        for address in &config.meta {
            ensure!(is_address(address), "meta: {address:?} is not an address: write HOST or HOST:PORT");
        }
        if let Some(address) = &config.advertise {
            ensure!(
                is_address(&with_port(address, 1)),
                "advertise: {address:?} is not an address: write HOST or HOST:PORT"
            );
        }
        let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level);
        filter.with_context(|| format!("log_level: {:?} is not a level or filter", config.log_level))?;
        Ok(config)
    }
}

impl Given {
    /// What is given here, else what `below` gives.
    fn over(self, below: Self) -> Self {
        Self {
            meta: self.meta.or(below.meta),
            data: self.data.or(below.data),
            listen: self.listen.or(below.listen),
            advertise: self.advertise.or(below.advertise),
            host: self.host.or(below.host),
            rack: self.rack.or(below.rack),
            zone: self.zone.or(below.zone),
            local_reads: self.local_reads.or(below.local_reads),
            reserve: self.reserve.or(below.reserve),
            log_level: self.log_level.or(below.log_level),
            log_format: self.log_format.or(below.log_format),
            ready_file: self.ready_file.or(below.ready_file),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Given> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// `HOST` or `HOST:PORT` as the latter; an IPv6 address stands in brackets.
pub(crate) fn with_port(address: &str, port: u16) -> String {
    match address.rsplit_once(':') {
        Some((host, _)) if !host.starts_with('[') || host.ends_with(']') => address.to_owned(),
        _ => format!("{address}:{port}"),
    }
}

/// Whether it is `HOST:PORT`, as far as can be told without asking the network.
fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_valid = match bracketed {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    host_is_valid && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn label(name: &str, text: String) -> anyhow::Result<String> {
    ensure!(text.len() <= MAX_LABEL, "{name}: a label has at most {MAX_LABEL} bytes");
    ensure!(!text.chars().any(char::is_control), "{name}: a label has no control characters");
    Ok(text)
}

/// "4096", "64KiB", "256MiB", "1GiB", "2TiB" or "5%".
fn parse_reserve(text: &str) -> Option<Reserve> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.trim_end().parse().ok()?;
        return (0.0..100.0).contains(&percent).then_some(Reserve::Fraction(percent / 100.0));
    }
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
    number.parse::<u64>().ok()?.checked_mul(1 << shift).map(Reserve::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str, flags: &[&str]) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let arguments =
            ["dfs-chunk", "--config", file.path().to_str().unwrap()].into_iter().chain(flags.iter().copied());
        let flags = Flags::try_parse_from(arguments).map_err(|error| error.to_string())?;
        Config::load(flags).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let toml = "data = '/d'\nmeta = ['a', 'b:1']\nreserve = '10%'\nrack = 'r1'\nlog_format = 'json'";
        let parsed = config(toml, &["--reserve", "1MiB", "--listen", "127.0.0.1:0", "--host", "h"]).unwrap();
        assert_eq!(parsed.meta, ["a:7600", "b:1"]);
        assert_eq!(parsed.reserve, Reserve::Bytes(1 << 20));
        let labels = Labels { host: "h".into(), rack: "r1".into(), zone: String::new() };
        assert_eq!(parsed.labels, labels);
        assert!(parsed.log_json && parsed.listen.port() == 0);
        assert!(parsed.local_reads);
        assert!(!config("data = '/d'\nlocal_reads = false", &[]).unwrap().local_reads);
        assert!(!config("data = '/d'", &["--local-reads", "false"]).unwrap().local_reads);

        let parsed = config("data = '/d'", &["--meta", "x,[::1]:5,[::2]"]).unwrap();
        assert_eq!(parsed.meta, ["x:7600", "[::1]:5", "[::2]:7600"]);
        assert_eq!((parsed.reserve, parsed.listen.port()), (Reserve::Default, DEFAULT_CHUNK_PORT));
        assert!(!parsed.labels.host.is_empty(), "the machine's name");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (toml, name) in [
            ("dat = '/d'", "dat"),
            ("data = 7", "data"),
            ("", "data"),
            ("data = '/d'\nlisten = 'here'", "listen"),
            ("data = '/d'\nmeta = []", "meta"),
            ("data = '/d'\nmeta = 'one'", "meta"),
            ("data = '/d'\nmeta = ['a b']", "meta"),
            ("data = '/d'\nmeta = ['a:0']", "meta"),
            ("data = '/d'\nmeta = ['::1']", "meta"),
            ("data = '/d'\nadvertise = 'http://x'", "advertise"),
            ("data = '/d'\nreserve = '12 parsecs'", "reserve"),
            ("data = '/d'\nreserve = '100%'", "reserve"),
            ("data = '/d'\nreserve = '99999999999TiB'", "reserve"),
            ("data = '/d'\nhost = \"a\\nb\"", "host"),
            ("data = '/d'\nlocal_reads = 'perhaps'", "local_reads"),
            ("data = '/d'\nlog_format = 'xml'", "log_format"),
            ("data = '/d'\nlog_level = 'a=b=c'", "log_level"),
        ] {
            let error = config(toml, &[]).unwrap_err();
            assert!(error.contains(name), "{toml:?}: {error}");
        }
        assert!(config("data = '/d'", &["--reserv", "1MiB"]).unwrap_err().contains("--reserv"));
    }

    #[test]
    fn a_reserve_is_a_size_or_a_part() {
        assert_eq!(Reserve::Default.bytes(100 << 30), 1 << 30);
        assert_eq!(Reserve::Default.bytes(1 << 30), (1 << 30) / 20);
        assert_eq!(parse_reserve("25 %").unwrap().bytes(1000), 250);
        assert_eq!(parse_reserve("3").unwrap().bytes(1000), 3);
    }

    #[test]
    fn the_sample_is_complete_and_says_the_defaults() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/dfs-chunk.toml");
        let sample = std::fs::read_to_string(sample).unwrap();
        // Settings that are commented out are the defaults, or examples where there is no default to write down.
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
        let (full, plain) = (config(&uncommented, &[]).unwrap(), config(&sample, &[]).unwrap());
        assert_eq!((&full.meta, full.listen, &full.log_level), (&plain.meta, plain.listen, &plain.log_level));
        assert_eq!(full.reserve.bytes(1 << 40), plain.reserve.bytes(1 << 40));
        assert_eq!(full.log_json, plain.log_json);
    }

    /// The keys that the file may have, as its parser names them.
    fn serde_fields() -> Vec<String> {
        let error = toml::from_str::<Given>("no_such_key = 1").unwrap_err().to_string();
        let (_, expected) = error.split_once("expected").unwrap();
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
}
