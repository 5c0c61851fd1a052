//! Sends a coded chunk: some rows are encoded while the rows before them are on their way, to all nodes at once.

use dfs_proto::chunk::PutHeader;
use dfs_proto::{Code, Failure, Stripe};
use futures::future::{join, join_all};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::packed::{Frame, PackedChunk};
use super::super::put::{Outcome, Target, put_to};
use super::code;

/// Frames of one shard that wait to be sent: what is encoded ahead.
const FRAMES_AHEAD: usize = 1;

/// Where a shard's cells are handed to; `None` once nobody takes them any more.
type Outlet = (u32, Option<mpsc::Sender<Frame>>);

/// Sends each of `targets` its shard; what became of it. `header` is a shard's, by its index and length.
pub(in super::super) async fn send(
    packed: &PackedChunk,
    stripe: &Stripe,
    header: impl Fn(u32, u64) -> PutHeader,
    targets: &[Target],
) -> Vec<Outcome> {
    let mut outlets: Vec<Outlet> = Vec::with_capacity(targets.len());
    let puts: Vec<_> = targets
        .iter()
        .map(|(index, node)| {
            let (outlet, frames) = mpsc::channel(FRAMES_AHEAD);
            outlets.push((*index, Some(outlet)));
            let put = put_to(node, header(*index, stripe.shard_length(*index)), ReceiverStream::new(frames));
            async move { Outcome::of(put.await, node, *index) }
        })
        .collect();
    let (encoded, outcomes) = join(encode(packed, stripe, outlets), join_all(puts)).await;
    match encoded {
        Ok(()) => outcomes,
        Err(failure) => {
            tracing::error!(%failure, "a chunk could not be encoded");
            targets.iter().map(|_| Outcome::Unknown).collect()
        }
    }
}

/// Encodes rows and hands each shard its cells, until all are taken or nobody takes any.
async fn encode(packed: &PackedChunk, stripe: &Stripe, mut outlets: Vec<Outlet>) -> Result<(), Failure> {
    for rows in code::runs(stripe) {
        let (packed, stripe) = (packed.clone(), *stripe);
        let encoding = tokio::task::spawn_blocking(move || code::encode(&stripe, &packed, &rows));
        let frames = encoding.await.map_err(|error| Failure::new(Code::InputOutput, error.to_string()))??;
        for (index, outlet) in &mut outlets {
            if let (Some(open), Some(frame)) = (&*outlet, &frames[*index as usize])
                && open.send(frame.clone()).await.is_err()
            {
                *outlet = None;
            }
        }
        if outlets.iter().all(|(_, outlet)| outlet.is_none()) {
            break;
        }
    }
    Ok(())
}
