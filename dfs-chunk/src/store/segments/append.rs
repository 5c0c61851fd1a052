//! The thread that writes: takes whatever waits, makes it durable with one flush, answers.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{SystemTime, UNIX_EPOCH};

use dfs_proto::Failure;
use tokio::sync::oneshot;

use super::format::{self, Head};
use super::{Core, Offer, Outcome, Spare};
use crate::store::buffers::{BUFFER_SIZE, Buffer};
use crate::store::index::Place;
use crate::store::shared::Kept;

/// What is written and made durable at once: more than this and one more record never is.
const MAX_GROUP_BYTES: usize = BUFFER_SIZE - (format::MAX_DATA + 2 * format::PAGE);

/// A shard that waits.
pub(super) struct Request {
    pub(super) offer: Offer,
    pub(super) reply: oneshot::Sender<Result<Outcome, Failure>>,
}

impl Request {
    fn length(&self) -> usize {
        format::padded_length(self.offer.data.len())
    }
}

/// What the thread has.
pub(super) struct Appender {
    core: Arc<Core>,
    active: Option<Active>,
    buffer: Buffer,
}

/// The segment that takes new records.
struct Active {
    segment: Spare,
    /// Where the next one goes.
    end: u64,
}

impl Appender {
    pub(super) fn new(core: Arc<Core>, buffer: Buffer) -> Self {
        Self { core, active: None, buffer }
    }

    /// Runs until nobody can ask any more.
    pub(super) fn run(&mut self, waiting: &Receiver<Request>) {
        while let Ok(first) = waiting.recv() {
            let mut length = first.length();
            let mut group = vec![first];
            while length < MAX_GROUP_BYTES
                && let Ok(request) = waiting.try_recv()
            {
                length += request.length();
                group.push(request);
            }
            self.write(group);
        }
        self.seal();
    }

    fn write(&mut self, group: Vec<Request>) {
        let mut rest = group.into_iter().peekable();
        while rest.peek().is_some() {
            let mut room = self.active.as_ref().map_or(0, |active| active.segment.length - active.end);
            let mut fitting = Vec::new();
            while let Some(request) = rest.next_if(|next| next.length() as u64 <= room) {
                room -= request.length() as u64;
                fitting.push(request);
            }
            if !fitting.is_empty() {
                self.append(fitting);
            } else if !self.turn_over() {
                // Who does not wait any more asks again.
                rest.by_ref().for_each(|Request { offer, reply }| drop(reply.send(Ok(Outcome::Full(offer)))));
            }
        }
    }

    /// Goes on with the spare segment, if there is one.
    fn turn_over(&mut self) -> bool {
        let Some(segment) = self.core.state().spare.take() else { return false };
        self.seal();
        self.core.state().segments.insert(segment.id, super::Segment::default());
        self.active = Some(Active { segment, end: format::PAGE as u64 });
        self.core.work.notify_all();
        true
    }

    /// No more is added to the active segment; what is left of it goes back to the disk.
    fn seal(&mut self) {
        let Some(Active { segment, end }) = self.active.take() else { return };
        if let Some(known) = self.core.state().segments.get_mut(&segment.id) {
            known.sealed = true;
            known.dead.push(page(end)..page(segment.length));
        }
    }

    /// Makes a group durable in the active segment, which has room for it, and answers those who wait.
    fn append(&mut self, group: Vec<Request>) {
        let active = self.active.as_mut().expect("there is room in it");
        let shared = &self.core.shared;
        let written_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut places = Vec::with_capacity(group.len());
        let mut length = 0;
        for request in &group {
            let offer = &request.offer;
            let segment = active.segment.id;
            let (page, pages) = (page(active.end + length as u64), page(request.length() as u64));
            places.push(Place { segment, page, pages });
            let head = Head { header: offer.header, crc32c: offer.crc32c, written_ms };
            length += format::encode(&active.segment.mark, &head, &offer.data, &mut self.buffer[length..]);
        }
        let result = shared.check_writable().and_then(|()| {
            let written = active.segment.log.write_durably(&self.buffer[..length], active.end);
            written.map_err(|error| shared.sync_failed("make small shards durable", &error))
        });
        if let Err(failure) = result {
            group.into_iter().for_each(|Request { reply, .. }| drop(reply.send(Err(failure.clone()))));
            return;
        }
        active.end += length as u64;
        // Before anybody can delete them.
        if let Some(segment) = self.core.state().segments.get_mut(&active.segment.id) {
            segment.live += group.len();
        }
        for (Request { offer, reply }, place) in group.into_iter().zip(places) {
            shared.add(offer.header.key, offer.header.length, Kept::Record(place));
            drop((offer.promise, offer.claim));
            // Who does not wait any more asks again and is told that it is here.
            let _ = reply.send(Ok(Outcome::Durable));
        }
    }
}

/// Bytes in pages.
fn page(offset: u64) -> u32 {
    (offset / format::PAGE as u64) as u32
}
