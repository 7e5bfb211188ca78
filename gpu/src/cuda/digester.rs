//! Digests of blocks where they are: of each piece of 16 KiB, which is all that takes time.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::kernels::File;
use super::library::Handle;
use super::list::List;
use super::memory::GpuMemory;
use super::pager::{BLOCKS_PER_PROCESSOR, PagerError};
use super::stream::{Stream, Timer};
use crate::pages::{PagesError, THREADS};
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes that have a digest of their own: a warp takes them.
const PIECE_BYTES: u64 = 16 << 10;
/// Threads of a warp.
const WARP: u32 = 32;
/// Bytes of an entry of the list that the kernel reads.
const ENTRY_BYTES: usize = 16;

/// Bytes of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Where they are: an address, or a place in memory that is named beside it.
    pub start: u64,
    /// How many.
    pub bytes: u64,
}

impl Span {
    fn pieces(&self) -> u64 {
        self.bytes.div_ceil(PIECE_BYTES)
    }
}

/// Digests the pieces of blocks: XXH3 of each 16 KiB, of which a block's header carries the digest.
pub struct Digester {
    stream: Stream,
    kernel: Handle,
    spans: List,
    digests: List,
}

// SAFETY: a kernel's handle may be used from any thread in which its context is current.
unsafe impl Send for Digester {}

impl Digester {
    /// Makes one.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Digester, CudaError> {
        let kernel = gpu.kernels.find(gpu, File::Digest, c"kvhive_digest")?;
        Ok(Digester { kernel, stream: Stream::new(gpu)?, spans: List::default(), digests: List::default() })
    }

    /// Returns the digests of each block's pieces. A block is at an address.
    ///
    /// # Safety
    /// All bytes are there for as long as the call lasts, where this GPU reaches them, and nobody writes them.
    ///
    /// # Errors
    /// When the GPU fails, or they are too many: nothing is under way any more.
    pub unsafe fn digest(&mut self, spans: &[Span]) -> Result<Vec<Vec<u64>>, PagerError> {
        let most = self.prepare(spans, 0)?;
        let gpu = self.stream.gpu().clone();
        let _entered = gpu.enter()?;
        // SAFETY: as the caller says; the call below returns after all of it is over.
        let begun = unsafe { self.begin(spans.len() as u32, most) };
        let over = self.stream.wait();
        begun.and(over)?;
        Ok(self.found(spans, most))
    }

    /// Digests blocks so often, and tells how long the GPU took for all of that, in seconds. They are in `memory`, from its first byte on.
    ///
    /// # Errors
    /// As for [`Digester::digest`], and when a block lies outside of the memory.
    pub fn timed(
        &mut self,
        timer: &Timer,
        memory: &GpuMemory,
        spans: &[Span],
        times: u32,
    ) -> Result<(f64, Vec<Vec<u64>>), PagerError> {
        let ends = spans.iter().map(|span| span.start.checked_add(span.bytes));
        if ends.into_iter().any(|end| end.is_none_or(|end| end > memory.len() as u64)) {
            return Err(PagesError::Outside { what: "blocks" }.into());
        }
        let most = self.prepare(spans, memory.address())?;
        // SAFETY: the blocks lie within memory that is borrowed for as long as this call lasts, and nothing is under way when it returns.
        let seconds =
            self.stream.timed_by(timer, times, || unsafe { self.begin(spans.len() as u32, most) })?;
        Ok((seconds, self.found(spans, most)))
    }

    /// Writes the list of blocks, from this address on, and returns how many pieces the longest has.
    fn prepare(&mut self, spans: &[Span], from: u64) -> Result<u32, PagerError> {
        let most = spans.iter().map(Span::pieces).max().unwrap_or(0);
        let all = most.checked_mul(spans.len() as u64).and_then(|all| i32::try_from(all).ok());
        let all = all.ok_or(PagesError::TooMany { blocks: spans.len() })? as usize;
        let gpu = self.stream.gpu().clone();
        self.digests.write(&gpu, 8 * all)?;
        let list = self.spans.write(&gpu, spans.len() * ENTRY_BYTES)?;
        for (entry, span) in list.chunks_exact_mut(ENTRY_BYTES).zip(spans) {
            let (start, bytes) = entry.split_at_mut(8);
            start.copy_from_slice(&from.wrapping_add(span.start).to_ne_bytes());
            bytes.copy_from_slice(&span.bytes.to_ne_bytes());
        }
        Ok(most as u32)
    }

    /// Has all of it be done, some time.
    ///
    /// # Safety
    /// As for [`Digester::digest`], until the stream was waited for; the lists are those of these blocks until then.
    unsafe fn begin(&self, count: u32, most: u32) -> Result<(), CudaError> {
        if count == 0 || most == 0 {
            return Ok(());
        }
        let (mut spans, mut digests) = (self.spans.address(), self.digests.address());
        let (mut blocks, mut pieces) = (count, most);
        let mut arguments: [*mut c_void; 4] = [
            (&raw mut spans).cast(),
            (&raw mut digests).cast(),
            (&raw mut blocks).cast(),
            (&raw mut pieces).cast(),
        ];
        let processors = self.stream.gpu().info().processors.max(1);
        let grid =
            (count * most).div_ceil(THREADS / WARP).min(processors.saturating_mul(BLOCKS_PER_PROCESSOR));
        // SAFETY: both lists are this one's own and have room for so many. The kernel takes two addresses and two numbers, and reads what the
        // caller vouches for.
        unsafe {
            self.spans.begin(&self.stream)?;
            self.stream.launch(self.kernel, grid, THREADS, &mut arguments)?;
            self.digests.begin_back(&self.stream)
        }
    }

    fn found(&self, spans: &[Span], most: u32) -> Vec<Vec<u64>> {
        let (words, _) = self.digests.bytes().as_chunks::<8>();
        let of_block = |(at, span): (usize, &Span)| {
            let words = &words[at * most as usize..][..span.pieces() as usize];
            words.iter().map(|word| u64::from_ne_bytes(*word)).collect()
        };
        spans.iter().enumerate().map(of_block).collect()
    }
}
