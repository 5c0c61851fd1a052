//! `dfs-admin status`: the cluster's health in one line, then its space, nodes, chunks and clients. Exit code 0 healthy,
//! 1 degraded, 2 data at risk or unreachable.

use std::process::ExitCode;

use anyhow::Result;
use dfs_proto::Failure;
use serde_json::json;

use crate::find;
use crate::print::{age, bytes, table};
use crate::report::{ClassChunks, Node, Report, Session};

/// The exit code when nobody answers: nothing is known then.
const UNREACHABLE: u8 = 2;

/// Asks and prints.
pub async fn run(meta: Option<&str>, as_json: bool) -> Result<ExitCode> {
    match ask(meta).await {
        Ok(report) => {
            match as_json {
                true => println!("{}", serde_json::to_string_pretty(&report)?),
                false => print!("{}", text(&report)),
            }
            Ok(ExitCode::from(report.health.exit_code()))
        }
        Err(failure) => {
            match as_json {
                true => println!("{}", json!({ "health": "unreachable", "reasons": [failure.message] })),
                false => eprintln!("dfs-admin: the cluster can't be reached: {failure}"),
            }
            Ok(ExitCode::from(UNREACHABLE))
        }
    }
}

async fn ask(meta: Option<&str>) -> Result<Report, Failure> {
    let server = find::server(meta).await?;
    let status = server.status().await?;
    Ok(Report::new(&status, server.address()))
}

/// The report for people.
fn text(report: &Report) -> String {
    let mut text = headline(report);
    let capacity = &report.capacity;
    text += &format!(
        "space     {} used, {} available of {}\nfiles     {}\nmetadata  {} on disk{}, server {} at {}, up {}\n",
        bytes(capacity.used_bytes),
        bytes(capacity.available_bytes),
        bytes(capacity.total_bytes),
        report.files,
        bytes(report.store.bytes),
        if report.store.full { " (full)" } else { "" },
        report.version,
        report.server,
        age(report.uptime_ms),
    );
    text += &section(
        "chunk daemons",
        &[
            "node", "state", "address", "host", "rack", "zone", "used", "size", "fill", "shards", "version",
            "heard",
        ],
        &[6, 7, 8, 9],
        report.nodes.iter().map(node_row).collect(),
    );
    text += &section(
        "chunks",
        &["class", "chunks", "bytes", "live", "short", "degraded", "missing", "by redundancy left"],
        &[1, 2, 3, 4, 5, 6],
        report.chunks.by_class.iter().map(class_row).collect(),
    );
    let chunks = &report.chunks;
    if chunks.planned + chunks.garbage > 0 {
        text += &format!("  {} planned, {} garbage\n", chunks.planned, chunks.garbage);
    }
    text += &section(
        "sessions",
        &["session", "client", "version", "open", "locks", "heard"],
        &[3, 4],
        report.sessions.iter().map(session_row).collect(),
    );
    text
}

/// Everything that matters, in one line.
fn headline(report: &Report) -> String {
    let up = report.nodes.iter().filter(|node| node.state == "up").count();
    let why = match report.reasons.as_slice() {
        [] => format!("{up} chunk daemons up, {} chunks whole", report.chunks.total),
        reasons => reasons.join("; "),
    };
    format!("{}: cluster {}: {why}\n", report.health.name(), report.cluster)
}

/// A heading and a table, or a note that there is nothing.
fn section(title: &str, headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    match rows.is_empty() {
        true => format!("{title}: none\n"),
        false => format!("{title}:\n{}", table(headings, right, rows)),
    }
}

fn node_row(node: &Node) -> Vec<String> {
    let label = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        node.node.to_string(),
        node.state.replace('_', "-"),
        node.address.clone(),
        label(&node.host),
        label(&node.rack),
        label(&node.zone),
        bytes(node.capacity_bytes.saturating_sub(node.available_bytes)),
        bytes(node.capacity_bytes),
        format!("{:.0}%", node.fill * 100.0),
        node.shards.to_string(),
        node.version.clone(),
        format!("{} ago", age(node.heartbeat_age_ms)),
    ]
}

fn class_row(class: &ClassChunks) -> Vec<String> {
    let spare = class.by_spare.iter().enumerate().rev().filter(|(_, chunks)| **chunks > 0);
    let spare: Vec<String> = spare.map(|(left, chunks)| format!("{left} left: {chunks}")).collect();
    vec![
        class.class.clone(),
        class.chunks.to_string(),
        bytes(class.bytes),
        bytes(class.live_bytes),
        class.short.to_string(),
        class.degraded.to_string(),
        class.missing.to_string(),
        spare.join(", "),
    ]
}

fn session_row(session: &Session) -> Vec<String> {
    vec![
        session.session.to_string(),
        session.client.clone(),
        session.version.clone(),
        session.open_files.to_string(),
        session.locks.to_string(),
        format!("{} ago", age(session.heartbeat_age_ms)),
    ]
}

#[cfg(test)]
mod tests {
    use dfs_proto::meta::{ClassStatus, ClusterStatus, NodeStatus, SessionStatus};

    use super::*;

    #[test]
    fn the_first_line_says_it_all_and_the_rest_shows_it() {
        let class = ClassStatus {
            class: "replicated:3".into(),
            chunks: 5,
            by_spare: vec![0, 2, 3],
            degraded: 2,
            ..ClassStatus::default()
        };
        let session =
            SessionStatus { session: 9, client: "host:1:/mnt/dfs".into(), ..SessionStatus::default() };
        let status = ClusterStatus {
            nodes: vec![NodeStatus { version: "0.1.0".into(), ..NodeStatus::default() }],
            classes: vec![class],
            sessions: vec![session],
            ..ClusterStatus::default()
        };
        let text = text(&Report::new(&status, "127.0.0.1:7600"));
        let first = text.lines().next().unwrap();
        assert!(
            first.starts_with("degraded: ") && first.contains("2 chunks of class replicated:3"),
            "{text}"
        );
        for shown in ["2 left: 3, 1 left: 2", "host:1:/mnt/dfs", "0.1.0", "127.0.0.1:7600"] {
            assert!(text.contains(shown), "{shown} is not in:\n{text}");
        }
        let empty = super::text(&Report::new(&ClusterStatus::default(), "x"));
        assert!(empty.contains("chunk daemons: none") && empty.contains("sessions: none"), "{empty}");
    }
}
