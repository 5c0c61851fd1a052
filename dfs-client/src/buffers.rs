//! Memory that is used again. What is as large as a frame costs more when it is fresh than what is done with it: the
//! operating system gives it page by page, each cleared first, and takes it back at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dfs_proto::limits::BLOCK_SIZE;

/// What is kept for later, at most: an encoded chunk, and a few runs of a coded one. What is in use is bounded by who uses it.
const KEPT_BYTES: usize = 32 * 1024 * 1024;
/// Smaller ones aren't kept: fresh ones are cheap, and looking through very many would not be.
const KEPT_FROM: usize = BLOCK_SIZE;

/// Where buffers are taken from and come back to. Clones share what they keep.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The one used last at the back: the processor may still have it in its cache.
    free: VecDeque<Vec<u8>>,
    /// Their capacity.
    bytes: usize,
}

/// A buffer to fill. It goes back when it, or the last of the [`Bytes`] made of it, is dropped.
#[derive(Debug)]
pub struct Buffer {
    data: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// An empty buffer with room for `length` bytes.
    pub fn take(&self, length: usize) -> Buffer {
        let data = self.with(|kept| {
            let at = kept.free.iter().rposition(|data| data.capacity() >= length)?;
            let data = kept.free.remove(at)?;
            kept.bytes -= data.capacity();
            Some(data)
        });
        Buffer { data: data.unwrap_or_else(|| Vec::with_capacity(length)), home: self.clone() }
    }

    /// Keeps a buffer for later. What was not used for longest makes way, so that those of a length that nobody asks for
    /// any more don't stay.
    fn keep(&self, mut data: Vec<u8>) {
        if !(KEPT_FROM..=KEPT_BYTES).contains(&data.capacity()) {
            return;
        }
        data.clear();
        let gone = self.with(|kept| {
            let mut gone = Vec::new();
            kept.bytes += data.capacity();
            kept.free.push_back(data);
            while kept.bytes > KEPT_BYTES {
                let Some(oldest) = kept.free.pop_front() else { break };
                kept.bytes -= oldest.capacity();
                gone.push(oldest);
            }
            gone
        });
        drop(gone); // nobody waits for that
    }

    fn with<T>(&self, run: impl FnOnce(&mut Kept) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Buffer {
    /// Appends; what was appended.
    pub fn put(&mut self, bytes: &[u8]) -> &mut [u8] {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        &mut self.data[start..]
    }

    /// Bytes in it.
    pub fn length(&self) -> usize {
        self.data.len()
    }

    /// What was put, not to be changed any more.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.keep(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 256 * 1024;

    #[test]
    fn a_buffer_comes_back_with_the_last_of_its_bytes() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(LENGTH);
        buffer.put(&[7; 1000]);
        let at = buffer.as_ref().as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(10..20);
        drop(bytes);
        let other = buffers.take(LENGTH);
        assert!(other.as_ref().is_empty() && other.as_ref().as_ptr() != at);
        assert_eq!(part, [7; 10][..]);
        drop(part);
        // The same memory, and nothing of what was in it; not for more than it has room for.
        let longer = buffers.take(2 * LENGTH);
        assert_ne!(longer.as_ref().as_ptr(), at);
        let again = buffers.take(LENGTH / 2);
        assert!(again.as_ref().is_empty() && again.as_ref().as_ptr() == at);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_makes_way() {
        let buffers = Buffers::default();
        let many: Vec<Buffer> = (0..2 * KEPT_BYTES / LENGTH).map(|_| buffers.take(LENGTH)).collect();
        drop(many);
        let kept = buffers.with(|kept| kept.bytes);
        assert!(kept <= KEPT_BYTES && kept > KEPT_BYTES - 2 * LENGTH, "{kept} bytes");
        // Others are needed now: they are found again, though all was full.
        let at = buffers.take(4 * LENGTH).as_ref().as_ptr();
        assert_eq!(buffers.take(4 * LENGTH).as_ref().as_ptr(), at);
        // Neither small nor huge ones are kept.
        let before = buffers.with(|kept| kept.bytes);
        buffers.keep(Vec::with_capacity(KEPT_FROM - 1));
        buffers.keep(Vec::with_capacity(KEPT_BYTES + 1));
        assert_eq!(buffers.with(|kept| kept.bytes), before);
        buffers.with(|kept| {
            assert_eq!(kept.bytes, kept.free.iter().map(Vec::capacity).sum::<usize>());
        });
    }

    #[test]
    fn no_two_share_memory_whoever_takes_and_drops_them() {
        let buffers = Buffers::default();
        std::thread::scope(|scope| {
            let (give, take) = std::sync::mpsc::sync_channel::<(u8, Bytes)>(16);
            for salt in 0..4_u8 {
                let (buffers, give) = (buffers.clone(), give.clone());
                scope.spawn(move || {
                    for round in 0..200_u8 {
                        let value = salt.wrapping_mul(61).wrapping_add(round);
                        let mut buffer = buffers.take(LENGTH);
                        buffer.put(&vec![value; KEPT_FROM + usize::from(round)]);
                        give.send((value, buffer.freeze())).unwrap();
                    }
                });
            }
            drop(give);
            scope.spawn(move || {
                for (value, bytes) in take {
                    assert!(bytes.iter().all(|byte| *byte == value));
                }
            });
        });
        assert!(buffers.with(|kept| kept.bytes) <= KEPT_BYTES);
    }
}
