//! What is mounted: `META[,META2]:/[SUBDIR]`, parsed once.
//!
//! META is a host name, an IPv4 address or an IPv6 address, each with or without a port; an IPv6 address with a port
//! stands in brackets. Nothing is resolved here: names are looked up at each connection.

use std::net::Ipv6Addr;

use dfs_proto::Name;
use dfs_proto::limits::DEFAULT_META_PORT;

/// A filesystem's metadata servers and the directory in it that becomes the mount's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// `host:port` each, an IPv6 address in brackets; at least one.
    pub(crate) servers: Vec<String>,
    /// From the filesystem's root to the directory that is mounted.
    pub(crate) subdirectory: Vec<Name>,
    /// As it was given; shown in the first column of /proc/mounts.
    pub(crate) text: String,
}

impl Source {
    /// Parses what mount(8) hands on as the device. The error is a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let plain = text.strip_prefix("dfs#").unwrap_or(text);
        let Some((servers, path)) = plain.split_once(":/") else {
            return Err(format!(
                "{text:?} is not a dfs source: write META[,META2]:/ or META[,META2]:/SUBDIRECTORY"
            ));
        };
        let servers = servers
            .split(',')
            .map(|server| parse_server(server).map_err(|reason| format!("in the source {text:?}: {reason}")))
            .collect::<Result<_, _>>()?;
        let subdirectory = path
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .map(|part| Name::parse(part.as_bytes().to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|failure| format!("in the source {text:?}: {failure}"))?;
        Ok(Self { servers, subdirectory, text: plain.to_owned() })
    }

    /// The subdirectory as a path without its leading slash; empty for the filesystem's root.
    pub(crate) fn subdirectory_path(&self) -> Vec<u8> {
        let names: Vec<_> = self.subdirectory.iter().map(Name::as_bytes).collect();
        names.join(&b'/')
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address, to `host:port`.
fn parse_server(text: &str) -> Result<String, String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) =
            rest.split_once(']').ok_or_else(|| format!("{text:?} lacks the closing bracket"))?;
        let address = parse_ipv6(address)?;
        let port = match after.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if after.is_empty() => DEFAULT_META_PORT,
            None => return Err(format!("{after:?} after the address {address} is no port")),
        };
        return Ok(format!("[{address}]:{port}"));
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok(format!("[{}]:{DEFAULT_META_PORT}", parse_ipv6(text)?)),
        Some((host, port)) => Ok(format!("{}:{}", parse_host(host)?, parse_port(port)?)),
        None => Ok(format!("{}:{DEFAULT_META_PORT}", parse_host(text)?)),
    }
}

fn parse_ipv6(text: &str) -> Result<Ipv6Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv6 address"))
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 && !text.starts_with('+') => Ok(port),
        _ => Err(format!("{text:?} is not a port from 1 to 65535")),
    }
}

fn parse_host(text: &str) -> Result<&str, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match text {
        "" => Err("a metadata server's name is missing".to_owned()),
        _ if text.len() <= 253 && text.chars().all(fits) => Ok(text),
        _ => Err(format!("{text:?} is not a host name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        Source::parse(text).unwrap().servers
    }

    fn subdirectory(text: &str) -> Vec<String> {
        Source::parse(text).unwrap().subdirectory.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_are_named_in_every_usual_way() {
        assert_eq!(servers("meta:/"), ["meta:7600"]);
        assert_eq!(servers("meta-1.example.org:/"), ["meta-1.example.org:7600"]);
        assert_eq!(servers("meta:7000:/"), ["meta:7000"]);
        assert_eq!(servers("10.0.0.1:/"), ["10.0.0.1:7600"]);
        assert_eq!(servers("10.0.0.1:7601:/a"), ["10.0.0.1:7601"]);
        assert_eq!(servers("[::1]:/"), ["[::1]:7600"]);
        assert_eq!(servers("[fe80::2]:7700:/"), ["[fe80::2]:7700"]);
        assert_eq!(servers("2001:db8::7:/"), ["[2001:db8::7]:7600"]);
        assert_eq!(servers("a,b:1,[::1]:2,::1:/"), ["a:7600", "b:1", "[::1]:2", "[::1]:7600"]);
        assert_eq!(servers("dfs#meta:/"), ["meta:7600"]);
    }

    #[test]
    fn the_subdirectory_is_a_list_of_names() {
        assert!(subdirectory("meta:/").is_empty());
        assert_eq!(subdirectory("meta:/home"), ["home"]);
        assert_eq!(subdirectory("meta:7600:/a//b/./c/"), ["a", "b", "c"]);
        assert_eq!(subdirectory("meta:/a:/b"), ["a:", "b"]);
        assert_eq!(Source::parse("meta://a//b/").unwrap().subdirectory_path(), b"a/b");
        assert_eq!(Source::parse("meta:/").unwrap().subdirectory_path(), b"");
    }

    #[test]
    fn the_text_is_kept_for_proc_mounts() {
        assert_eq!(Source::parse("dfs#meta:/a/").unwrap().text, "meta:/a/");
    }

    #[test]
    fn what_is_not_a_source_is_refused_with_a_sentence() {
        let too_long = format!("meta:/{}", "x".repeat(256));
        for (bad, told) in [
            ("", "is not a dfs source"),
            ("meta", "is not a dfs source"),
            ("meta:", "is not a dfs source"),
            ("meta:sub", "is not a dfs source"),
            ("/dev/sda1", "is not a dfs source"),
            (":/", "name is missing"),
            ("a,:/", "name is missing"),
            ("a,,b:/", "name is missing"),
            ("meta:0:/", "not a port"),
            ("meta:65536:/", "not a port"),
            ("meta:+1:/", "not a port"),
            ("meta:x:/", "not a port"),
            ("[::1:/", "closing bracket"),
            ("[::1]7600:/", "is no port"),
            ("[meta]:/", "not an IPv6 address"),
            ("1:2:3:/", "not an IPv6 address"),
            ("me ta:/", "not a host name"),
            ("meta:/a/../b", "\"..\""),
            (too_long.as_str(), "255"),
        ] {
            let reason = Source::parse(bad).unwrap_err();
            assert!(reason.contains(told), "{bad:?}: {reason}");
        }
    }
}
