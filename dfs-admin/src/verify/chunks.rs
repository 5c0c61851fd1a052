//! Goes over chunks, page by page, and verifies some of them at a time. What is found bad is reported to the metadata server,
//! as readers do, once it is certain that the chunk is still there and its shards still should be where they were looked for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dfs_client::verify::{Readable, Verdict, Verifier};
use dfs_proto::limits::MAX_CHUNK_PAGE;
use dfs_proto::meta::{ChunkPage, ChunkRecord, ListChunks, ReportShard, reply, request};
use dfs_proto::{ClusterId, Failure};
use tokio::task::JoinSet;

use super::chunk_set::ChunkSet;
use super::pace::Pace;
use super::progress::Progress;
use super::report::{self, Report};
use crate::server::{Server, unexpected};

/// Chunks that are verified at a time.
const PARALLEL: usize = 4;
/// Chunks asked for at a time: a page is kept in memory.
const PAGE: u64 = 256;
/// How often the metadata server is asked again while it does not answer,
const ATTEMPTS: u32 = 20;
/// and how long it is waited for in between.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);
/// How often a chunk is verified anew whose shards were moved meanwhile.
const MAX_MOVES: u32 = 5;

/// Calls the metadata server, and waits for it for a while.
pub(super) async fn call(server: &Server, op: request::Op) -> Result<reply::Result, Failure> {
    let mut attempt = 1;
    loop {
        match server.call(op.clone()).await {
            Err(failure) if failure.is_transient() && attempt < ATTEMPTS => attempt += 1,
            answer => return answer,
        }
        tokio::time::sleep(BETWEEN_ATTEMPTS).await;
    }
}

async fn list(server: &Server, after: u64, limit: u64) -> Result<ChunkPage, Failure> {
    let limit = limit.clamp(1, u64::from(MAX_CHUNK_PAGE)) as u32;
    match call(server, request::Op::ListChunks(ListChunks { after, limit })).await? {
        reply::Result::ChunkPage(page) => Ok(page),
        other => Err(unexpected(&other)),
    }
}

/// What became of a chunk.
enum Checked {
    Done {
        chunk: u64,
        length: u64,
        verdict: Verdict,
        reported: u64,
        not_told: Option<Failure>,
    },
    /// It was deleted meanwhile.
    Gone,
}

/// Verifies all chunks, or those that are `wanted`, at this pace.
pub(super) async fn verify(
    server: &Server,
    cluster: ClusterId,
    wanted: Option<&ChunkSet>,
    mut pace: Pace,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let verifier = Arc::new(Verifier::new(cluster));
    let mut running: JoinSet<Result<Checked, Failure>> = JoinSet::new();
    let limit = wanted.map_or(PAGE, |set| set.len().min(PAGE));
    let mut next: Option<u64> = Some(0);
    while let Some(from) = next {
        let after = match wanted {
            None => from.saturating_sub(1),
            Some(set) => match set.first_from(from.max(1)) {
                Some(id) => id - 1,
                None => break,
            },
        };
        let page = list(server, after, limit).await.context("list the chunks")?;
        if page.last <= after && !page.end {
            bail!("the metadata server lists chunks without getting on: install the same version everywhere");
        }
        let mut found = 0;
        for record in page.chunks {
            let (id, length) = record.plan.as_ref().map_or((0, 0), |plan| (plan.chunk, plan.length));
            if wanted.is_some_and(|set| !set.contains(id)) {
                continue;
            }
            found += 1;
            if running.len() >= PARALLEL {
                take(&mut running, progress, report).await?;
            }
            pace.begin(length).await;
            running.spawn(check(server.clone(), Arc::clone(&verifier), record));
        }
        let covered = if page.end { u64::MAX } else { page.last };
        let named = wanted.map_or(found, |set| set.count(after + 1, covered));
        report.chunks.gone += named.saturating_sub(found);
        next = covered.checked_add(1);
    }
    while !running.is_empty() {
        take(&mut running, progress, report).await?;
    }
    Ok(())
}

/// Waits for one of the chunks under way.
async fn take(
    running: &mut JoinSet<Result<Checked, Failure>>,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let Some(checked) = running.join_next().await else { return Ok(()) };
    let (chunk, length, verdict, reported, not_told) = match checked.context("verify a chunk")?? {
        Checked::Gone => {
            report.chunks.gone += 1;
            return Ok(());
        }
        Checked::Done { chunk, length, verdict, reported, not_told } => {
            (chunk, length, verdict, reported, not_told)
        }
    };
    for finding in &verdict.findings {
        progress.say(&report::line(chunk, finding));
    }
    if let Some(line) = report::chunk_line(chunk, &verdict.readable) {
        progress.say(&line);
    }
    if let Some(failure) = not_told {
        progress.warn(&format!("chunk {chunk}: what was found bad could not be reported: {failure}"));
    }
    report.add(chunk, length, verdict, reported);
    progress.chunk(length);
    Ok(())
}

async fn check(server: Server, verifier: Arc<Verifier>, mut record: ChunkRecord) -> Result<Checked, Failure> {
    let mut moves = 0;
    loop {
        let plan = record.plan.clone().unwrap_or_default();
        let mut verdict = verifier.verify(&plan, &record.sha256, &record.lost).await;
        if verdict.findings.is_empty() && verdict.readable == Readable::Yes {
            let (chunk, length) = (plan.chunk, plan.length);
            return Ok(Checked::Done { chunk, length, verdict, reported: 0, not_told: None });
        }
        // A deleted chunk has no shards any more, and nothing is wrong with that.
        let page = list(&server, plan.chunk.saturating_sub(1), 1).await?;
        let now = page.chunks.into_iter().next();
        let now = now.filter(|now| now.plan.as_ref().is_some_and(|now| now.chunk == plan.chunk));
        let Some(now) = now else { return Ok(Checked::Gone) };
        if now.plan.as_ref() != Some(&plan) {
            record = now;
            moves += 1;
            if moves < MAX_MOVES {
                continue;
            }
            let why = "its shards are moved faster than they can be read: try again";
            verdict.readable = Readable::Unknown(why.into());
            let (chunk, length) = (plan.chunk, plan.length);
            return Ok(Checked::Done { chunk, length, verdict, reported: 0, not_told: None });
        }
        let (reported, not_told) = tell(&server, plan.chunk, &verdict).await;
        let (chunk, length) = (plan.chunk, plan.length);
        return Ok(Checked::Done { chunk, length, verdict, reported, not_told });
    }
}

/// Reports bad shards: how many, and why not all.
async fn tell(server: &Server, chunk: u64, verdict: &Verdict) -> (u64, Option<Failure>) {
    let (mut reported, mut not_told) = (0, None);
    for finding in &verdict.findings {
        let (Some(code), Some(node)) = (finding.trouble.report(), &finding.node) else { continue };
        let op = request::Op::ReportShard(ReportShard { chunk, node: node.node, code: code.into() });
        match call(server, op).await {
            Ok(_) => reported += 1,
            Err(failure) => not_told = Some(failure),
        }
    }
    (reported, not_told)
}
