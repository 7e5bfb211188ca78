//! Frames of a GPU that guests pass on their way from another GPU to the host's memory. They are set aside and none of the shard's, so that no
//! block leaves for a guest. Whose guests pass, and what becomes of them, is the data plane's.

use crate::frames::{Brought, Frame};
use crate::guards::{Return, Returns, Verified, WriteGuard};
use crate::memory::Memory;
use kvhive_cache::WriteTicket;
use kvhive_protocol::BlockHeader;
use std::sync::{Mutex, PoisonError};

/// Such frames of one GPU.
pub(crate) struct Passing {
    memory: Memory,
    frames: Mutex<Frames>,
    /// Where frames come back that nothing writes to any more.
    returns: Returns,
}

struct Frames {
    free: u32,
    /// Kept for its memory.
    back: Vec<Return>,
}

/// A frame that something reads. Dropped after that has let go of it, it is free.
struct Back(Returns);

impl Drop for Back {
    fn drop(&mut self) {
        self.0.push(Return::Write(WriteTicket::OF_NONE));
    }
}

impl Passing {
    /// Makes use of what a memory has set aside; none where that is nothing.
    pub(crate) fn of(memory: &Memory) -> Option<Passing> {
        let free = memory.passing_frames();
        let frames = Mutex::new(Frames { free, back: Vec::new() });
        (free > 0).then(|| Passing { memory: memory.clone(), frames, returns: Returns::default() })
    }

    /// Returns how many there are: whoever has as many takes no more at once.
    pub(crate) fn all(&self) -> usize {
        self.memory.passing_frames() as usize
    }

    /// Takes a frame for each block; none where not all of them have one.
    pub(crate) fn take(&self, headers: &[BlockHeader]) -> Option<Vec<WriteGuard>> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let Frames { free, back } = &mut *frames;
        self.returns.take(back);
        // What was given up comes back when its frame does.
        *free += back.drain(..).filter(|one| matches!(one, Return::Write(_))).count() as u32;
        if headers.len() > *free as usize {
            return None;
        }
        let mut guards = Vec::with_capacity(headers.len());
        for header in headers {
            let frame = self.memory.take_passing(header.payload_bytes)?;
            *free -= 1;
            guards.push(WriteGuard::new(frame, *header, WriteTicket::OF_NONE, self.returns.clone()));
        }
        Some(guards)
    }

    /// Has the bytes of a block that has come be brought to the host's memory. None where its GPU does not give them in time: then its frame is
    /// taken again when the GPU has let go of it.
    pub(crate) async fn bring(&self, block: Verified) -> Option<(BlockHeader, Brought)> {
        let (frame, header) = block.take()?;
        let back = Back(self.returns.clone());
        let Frame::Gpu(frame) = frame else { return None };
        let brought = frame.bring_with(None, back).await.ok().flatten()?;
        Some((header, brought))
    }

    /// Returns how many are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> u32 {
        drop(self.take(&[]));
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).free
    }
}
