//! Memory that transfers read into and write from: whole pages that begin at a page, used again and again.

use super::record::PAGE;
use kvhive_gpu::{ReadFrame, WriteFrame};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of buffers that are kept for their next use, a device.
const MAX_IDLE_BYTES: usize = 64 << 20;

/// Whole pages.
struct Pages {
    memory: Vec<u8>,
    /// Where the first page begins.
    start: usize,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> Pages {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Pages { memory, start, len }
    }
}

#[derive(Default)]
struct Idle {
    /// By their length.
    pages: BTreeMap<usize, Vec<Pages>>,
    bytes: usize,
}

/// Buffers that wait for their next use. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Idle>>);

impl Buffers {
    /// Takes a buffer of whole pages that holds `bytes`; what is in it is left from before.
    pub(crate) fn take(&self, bytes: usize) -> Buffer {
        let len = bytes.next_multiple_of(PAGE);
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = idle.pages.get_mut(&len).and_then(Vec::pop);
        idle.bytes -= pages.as_ref().map_or(0, |pages| pages.len);
        drop(idle);
        Buffer { pages: Some(pages.unwrap_or_else(|| Pages::new(len))), home: self.clone() }
    }

    fn give_back(&self, pages: Pages) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + pages.len <= MAX_IDLE_BYTES {
            idle.bytes += pages.len;
            idle.pages.entry(pages.len).or_default().push(pages);
        }
    }
}

/// A buffer in use; dropped, it waits for its next.
pub(crate) struct Buffer {
    pages: Option<Pages>,
    home: Buffers,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.pages.as_ref().map_or(&[], |pages| &pages.memory[pages.start..pages.start + pages.len])
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.pages {
            Some(pages) => &mut pages.memory[pages.start..pages.start + pages.len],
            None => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.home.give_back(pages);
        }
    }
}

/// A piece of a transfer's memory, owned by the transfer while it is under way.
pub(crate) enum Piece {
    /// A buffer.
    Own(Buffer),
    /// A frame that is filled.
    Fill(WriteFrame),
    /// A frame that is written out.
    Sealed(ReadFrame),
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Piece::Own(buffer) => buffer.bytes(),
            Piece::Fill(frame) => frame.bytes(),
            Piece::Sealed(frame) => frame.bytes(),
        }
    }

    /// Returns its bytes to be read into; a sealed frame has none.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Piece::Own(buffer) => buffer.bytes_mut(),
            Piece::Fill(frame) => frame.bytes_mut(),
            Piece::Sealed(_) => &mut [],
        }
    }
}

/// Says whether memory may be read into and written from past the page cache.
pub(crate) fn is_direct(bytes: &[u8]) -> bool {
    bytes.len().is_multiple_of(PAGE) && bytes.as_ptr().align_offset(PAGE) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_whole_pages_and_used_again() {
        let buffers = Buffers::default();
        let place = |buffer: &Buffer| buffer.bytes().as_ptr();
        let first = buffers.take(5000);
        assert!(is_direct(first.bytes()) && first.bytes().len() == 2 * PAGE);
        let was = place(&first);
        drop(first);
        let (second, third) = (buffers.take(2 * PAGE), buffers.take(2 * PAGE));
        assert!(place(&second) == was && place(&third) != was);
        drop((second, third));
        drop((0..200).map(|_| buffers.take(1 << 20)).collect::<Vec<_>>());
        assert!(buffers.0.lock().expect("whole").bytes <= MAX_IDLE_BYTES, "what is kept is bounded");
    }
}
