//! Large buffers, aligned for direct I/O and used again and again: getting 1 MiB afresh from the kernel costs as many
//! page faults as copying it twice. The pool keeps a bounded number; whoever takes one more than it has gets a new one.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// The size of every buffer of the pool.
pub(super) const BUFFER_SIZE: usize = 1024 * 1024;
/// What direct I/O asks of memory, of offsets and of lengths.
pub(super) const ALIGNMENT: usize = 4096;
/// Buffers kept for the next one to come.
const MAX_KEPT: usize = 24;

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; ALIGNMENT]);

/// The pool. Cheap to clone.
#[derive(Clone, Default)]
pub struct Buffers {
    free: Arc<Mutex<Vec<Vec<Page>>>>,
}

/// A buffer of [`BUFFER_SIZE`] bytes with arbitrary content, which goes back to its pool when dropped.
pub(super) struct Buffer {
    pages: Vec<Page>,
    pool: Buffers,
}

impl Buffers {
    /// A buffer, with whatever its last user left in it.
    pub(super) fn take(&self) -> Buffer {
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pages = kept.unwrap_or_else(|| vec![Page([0; ALIGNMENT]); BUFFER_SIZE / ALIGNMENT]);
        Buffer { pages, pool: self.clone() }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a Page is 4096 bytes without padding, any of which may hold any value; the length is the vector's.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.pages.len() * ALIGNMENT) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably for as long as the slice lives.
        unsafe {
            std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.pages.len() * ALIGNMENT)
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MAX_KEPT {
            free.push(pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = Buffers::default();
        let mut buffer = pool.take();
        assert_eq!((buffer.len(), buffer.as_ptr() as usize % ALIGNMENT), (BUFFER_SIZE, 0));
        buffer[BUFFER_SIZE - 1] = 7;
        drop(buffer);
        assert_eq!(pool.take()[BUFFER_SIZE - 1], 7, "the same one again");
        let many: Vec<_> = (0..2 * MAX_KEPT).map(|_| pool.take()).collect();
        drop(many);
        assert_eq!(pool.free.lock().unwrap().len(), MAX_KEPT);
    }
}
