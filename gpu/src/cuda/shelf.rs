//! Pinned memory that was let go of: pinning memory takes longer than copying it, so that it is kept for who comes next.

use super::gpu::Gpu;
use super::memory::RawPinned;
use std::sync::{Mutex, MutexGuard};

/// Pinned memory that is kept for later, of one GPU.
pub(super) const MOST_KEPT: usize = 256 << 20;

/// Pinned memory that nobody uses.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Vec<RawPinned>>);

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Vec<RawPinned>> {
        // Nothing is left half-done under this lock.
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns the smallest piece with so many bytes.
    pub(super) fn take(&self, bytes: usize) -> Option<RawPinned> {
        let mut kept = self.lock();
        let fitting = (0..kept.len()).filter(|at| kept[*at].len() >= bytes);
        let best = fitting.min_by_key(|at| kept[*at].len())?;
        Some(kept.swap_remove(best))
    }

    /// Keeps a piece, unless enough are kept.
    pub(super) fn put(&self, gpu: &Gpu, mut piece: RawPinned) {
        let mut kept = self.lock();
        if kept.iter().map(RawPinned::len).sum::<usize>() + piece.len() <= MOST_KEPT {
            kept.push(piece);
            return;
        }
        drop(kept);
        piece.free(gpu);
    }

    pub(super) fn clear(&self, gpu: &Gpu) {
        for mut piece in std::mem::take(&mut *self.lock()) {
            piece.free(gpu);
        }
    }
}
