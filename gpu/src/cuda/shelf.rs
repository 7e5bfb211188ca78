//! Pinned memory that was let go of: pinning memory takes longer than copying it, so that it is kept for who comes next.

use super::gpu::Gpu;
use super::memory::RawPinned;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// Pinned memory that is kept for later, of one GPU.
pub(super) const MOST_KEPT: usize = 256 << 20;
/// The least that is pinned at a time.
const LEAST: usize = 64 << 10;

/// Pinned memory that nobody uses. Its pieces have a few sizes, so that one that was a small copy's is not a large one's.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// By their size; those of one size are all alike.
    pieces: BTreeMap<usize, Vec<RawPinned>>,
    bytes: usize,
    /// What is to be unpinned by who may wait for it.
    leaving: Vec<RawPinned>,
}

impl Kept {
    fn take(&mut self, size: usize) -> Option<RawPinned> {
        let pieces = self.pieces.get_mut(&size)?;
        let piece = pieces.pop();
        if pieces.is_empty() {
            self.pieces.remove(&size);
        }
        self.bytes -= piece.as_ref().map_or(0, RawPinned::len);
        piece
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half-done under this lock.
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns how much is pinned for so many bytes.
    pub(super) fn size(bytes: usize) -> usize {
        bytes.max(LEAST).checked_next_power_of_two().unwrap_or(bytes)
    }

    /// Returns a piece for so many bytes.
    pub(super) fn take(&self, bytes: usize) -> Option<RawPinned> {
        self.lock().take(Shelf::size(bytes))
    }

    /// Keeps a piece. Where enough are kept, some of another size make room for it: what was used last is used next.
    pub(super) fn put(&self, piece: RawPinned) {
        let mut kept = self.lock();
        let size = piece.len();
        while kept.bytes + size > MOST_KEPT {
            let other = kept.pieces.keys().copied().find(|other| *other != size);
            match other.and_then(|other| kept.take(other)) {
                Some(leaves) => kept.leaving.push(leaves),
                None => {
                    kept.leaving.push(piece);
                    return;
                }
            }
        }
        kept.bytes += size;
        kept.pieces.entry(size).or_default().push(piece);
    }

    /// Unpins what had no place. It takes its time.
    pub(super) fn sweep(&self, gpu: &Gpu) {
        let leaving = std::mem::take(&mut self.lock().leaving);
        leaving.into_iter().for_each(|mut piece| piece.free(gpu));
    }

    pub(super) fn clear(&self, gpu: &Gpu) {
        let kept = std::mem::take(&mut *self.lock());
        for mut piece in kept.pieces.into_values().flatten().chain(kept.leaving) {
            piece.free(gpu);
        }
    }
}
