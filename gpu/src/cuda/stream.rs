//! Copies between host and GPU, in an order of their own.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::library::{Handle, call};
use super::memory::{GpuMemory, Pinned};
use std::ffi::c_void;
use std::sync::Arc;

/// `CU_STREAM_NON_BLOCKING`: it waits for nobody's default stream, and nobody's for it.
const NON_BLOCKING: u32 = 1;

/// Copies that are done one after the other, and beside those of other streams.
pub struct Stream {
    gpu: Arc<Gpu>,
    pub(super) raw: Handle,
}

// SAFETY: a stream may be used from any thread in which its context is current, and the driver locks it.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the host's memory to the GPU's.
    ToGpu,
    /// From the GPU's memory to the host's.
    ToHost,
    /// Within the GPU's memory.
    Within,
    /// From another GPU's memory to this one's.
    FromPeer,
}

impl Direction {
    /// Says whether one end is in the host's memory.
    pub(super) fn has_host(self) -> bool {
        matches!(self, Direction::ToGpu | Direction::ToHost)
    }
}

/// Bytes that are copied in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The address where they are.
    pub from: u64,
    /// The address where they shall be.
    pub to: u64,
    /// How many.
    pub bytes: usize,
}

/// The two ends of some copies.
pub enum Between<'a> {
    /// From pinned memory to a GPU's.
    ToGpu(&'a Pinned, &'a mut GpuMemory),
    /// From a GPU's memory to pinned memory.
    ToHost(&'a GpuMemory, &'a mut Pinned),
    /// From one piece of a GPU's memory to another.
    Within(&'a GpuMemory, &'a mut GpuMemory),
}

/// Bytes of two pieces of memory: where they are in the first, where in the second, how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Where they are, from the first byte on.
    pub from: usize,
    /// Where they shall be.
    pub to: usize,
    /// How many.
    pub bytes: usize,
}

impl Between<'_> {
    pub(super) fn pieces(self, parts: &[Part]) -> (Direction, Vec<Piece>) {
        let (direction, from, to) = match self {
            Between::ToGpu(from, to) => (Direction::ToGpu, from.span(), to.span()),
            Between::ToHost(from, to) => (Direction::ToHost, from.span(), to.span()),
            Between::Within(from, to) => (Direction::Within, from.span(), to.span()),
        };
        let at = |(start, length): (u64, usize), at: usize, bytes: usize| {
            let is_inside = at.checked_add(bytes).is_some_and(|end| end <= length);
            assert!(is_inside, "{bytes} bytes at {at} lie outside of {length}");
            start + at as u64
        };
        let pieces = parts.iter().map(|part| Piece {
            from: at(from, part.from, part.bytes),
            to: at(to, part.to, part.bytes),
            bytes: part.bytes,
        });
        (direction, pieces.collect())
    }
}

impl Stream {
    /// Makes one.
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Stream, CudaError> {
        let mut raw = std::ptr::null_mut();
        let _entered = gpu.enter()?;
        // SAFETY: the function writes one handle.
        unsafe { call!(gpu.table(), cuStreamCreate(&raw mut raw, NON_BLOCKING)) }?;
        Ok(Stream { gpu: gpu.clone(), raw })
    }

    /// Returns the GPU that it is of.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Returns the stream's number, by which others of the process have their work done before what comes here next (DLPack's
    /// `stream`).
    pub fn number(&self) -> usize {
        self.raw.addr()
    }

    /// Has something begin so often, waits until all of that is over, and tells how long the GPU took.
    pub(super) fn timed_by(
        &self,
        timer: &Timer,
        times: u32,
        mut begin: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<f64, CudaError> {
        let _entered = self.gpu.enter()?;
        let begun = timer
            .record(0, self)
            .and_then(|()| (0..times).try_for_each(|_| begin()))
            .and_then(|()| timer.record(1, self));
        let over = self.wait();
        begun.and(over)?;
        timer.seconds()
    }

    /// Has one piece be copied, some time.
    ///
    /// # Safety
    /// All bytes of the piece are there until the stream was waited for, on the host and on this stream's GPU, nobody writes those that are
    /// read, and nobody else uses those that are written.
    pub(super) unsafe fn begin(&self, direction: Direction, piece: &Piece) -> Result<(), CudaError> {
        let (table, Piece { from, to, bytes }) = (self.gpu.table(), *piece);
        // SAFETY: the caller vouches for the memory, and the context is current.
        unsafe {
            match direction {
                Direction::ToGpu => {
                    let from = std::ptr::with_exposed_provenance(from as usize);
                    call!(table, cuMemcpyHtoDAsync_v2(to, from, bytes, self.raw))
                }
                Direction::ToHost => {
                    let to = std::ptr::with_exposed_provenance_mut(to as usize);
                    call!(table, cuMemcpyDtoHAsync_v2(to, from, bytes, self.raw))
                }
                Direction::Within | Direction::FromPeer => {
                    call!(table, cuMemcpyDtoDAsync_v2(to, from, bytes, self.raw))
                }
            }
        }
    }

    /// Has a kernel run, some time.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes; what they lead to is there, and the kernel's alone where it writes, until the stream was
    /// waited for.
    pub(super) unsafe fn launch(
        &self,
        kernel: Handle,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let (no_shared, no_more) = (0, std::ptr::null_mut());
        // SAFETY: arguments are read before the call returns; the caller vouches for them, and the context is current.
        unsafe {
            call!(
                self.gpu.table(),
                cuLaunchKernel(
                    kernel,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    no_shared,
                    self.raw,
                    arguments.as_mut_ptr(),
                    no_more
                )
            )
        }
    }

    /// Waits until nothing of the stream is under way. A stream that cannot be waited for is one whose GPU has failed, which
    /// touches no memory any more.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is this one's own.
        unsafe { call!(self.gpu.table(), cuStreamSynchronize(self.raw)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is this one's own, and nothing is under way in it.
        self.gpu.let_go(|table| unsafe { (table.cuStreamDestroy_v2)(self.raw) });
    }
}

/// Two moments of a stream, and the time between them.
pub struct Timer {
    gpu: Arc<Gpu>,
    events: [Handle; 2],
}

// SAFETY: an event may be used from any thread in which its context is current, and the driver locks it.
unsafe impl Send for Timer {}

impl Timer {
    /// Makes one.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Timer, CudaError> {
        let _entered = gpu.enter()?;
        let mut timer = Timer { gpu: gpu.clone(), events: [std::ptr::null_mut(); 2] };
        for event in &mut timer.events {
            // SAFETY: the function writes one handle.
            unsafe { call!(gpu.table(), cuEventCreate(&raw mut *event, 0)) }?;
        }
        Ok(timer)
    }

    fn record(&self, at: usize, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both handles are of this GPU, and live.
        unsafe { call!(self.gpu.table(), cuEventRecord(self.events[at], stream.raw)) }
    }

    /// Returns the time between the two, once the stream was waited for.
    fn seconds(&self) -> Result<f64, CudaError> {
        let mut ms = 0.0;
        let [begun, ended] = self.events;
        // SAFETY: both were recorded, and the function writes one number.
        unsafe { call!(self.gpu.table(), cuEventElapsedTime(&raw mut ms, begun, ended)) }?;
        Ok(f64::from(ms) / 1e3)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for event in self.events.into_iter().filter(|event| !event.is_null()) {
            // SAFETY: it is this one's own.
            self.gpu.let_go(|table| unsafe { (table.cuEventDestroy_v2)(event) });
        }
    }
}
