//! Copies of many pieces: large ones by a copy engine, small ones by a kernel, as an engine takes longer to be told of a small piece than
//! to copy it.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::kernels::File;
use super::library::Handle;
use super::list::List;
use super::stream::{Between, Direction, Part, Piece, Stream, Timer};
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes that one block of threads copies at a time; larger pieces are cut.
const UNIT_BYTES: usize = 64 << 10;
/// Bytes of an entry of the list that the kernel reads: three words of 64 bits.
const ENTRY_BYTES: usize = 24;

/// A stream that copies pieces of any size.
pub struct Copier {
    stream: Stream,
    kernel: Handle,
    /// The list of pieces.
    list: List,
}

// SAFETY: a kernel's handle may be used from any thread in which its context is current.
unsafe impl Send for Copier {}

/// How a kernel is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Grid {
    blocks: u32,
    threads: u32,
}

/// Says by how many threads pieces are copied, of so many bytes on average; none where a copy engine does it faster.
///
/// As measured on an H200 (`kvhive bench gpu`): towards the host's memory a few blocks are as fast as the link, whatever the pieces, and leave the
/// other processors to the engine that serves. Within the GPU's memory large units go best one to a processor, small ones several.
fn grid(direction: Direction, average: usize, processors: u32) -> Option<Grid> {
    match direction {
        Direction::ToGpu | Direction::ToHost if average >= 2 << 20 => None,
        Direction::ToGpu | Direction::ToHost => Some(Grid { blocks: 64, threads: 256 }),
        // Not measured: few blocks, as towards the host, where one launch is less than a call for each piece.
        Direction::FromPeer if average >= UNIT_BYTES => None,
        Direction::FromPeer => Some(Grid { blocks: 64, threads: 256 }),
        Direction::Within if average >= 32 << 20 => None,
        Direction::Within if average >= UNIT_BYTES => Some(Grid { blocks: processors, threads: 512 }),
        Direction::Within => Some(Grid { blocks: 4 * processors, threads: 256 }),
    }
}

impl Copier {
    /// Makes one.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Copier, CudaError> {
        let kernel = gpu.kernels.find(gpu, File::Copy, c"kvhive_copy")?;
        Ok(Copier { kernel, stream: Stream::new(gpu)?, list: List::default() })
    }

    /// Returns its stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Copies some pieces, in any order, and returns when all of them are there.
    ///
    /// # Safety
    /// All bytes of each piece are there for as long as the call lasts, on this GPU and in pinned memory of the host, nobody writes those that
    /// are read, and nobody else uses those that are written.
    ///
    /// # Errors
    /// When a copy fails. Nothing is under way any more, and some pieces may have been copied.
    pub unsafe fn copy(&mut self, direction: Direction, pieces: &[Piece]) -> Result<(), CudaError> {
        let gpu = self.stream.gpu().clone();
        let _entered = gpu.enter()?;
        // SAFETY: as the caller says; the call below returns after all of it is over.
        let begun = self.prepare(direction, pieces).and_then(|work| unsafe { self.begin(direction, &work) });
        let over = self.stream.wait();
        begun.and(over)
    }

    /// Has some pieces be copied within the GPU's memory, some time: after what its stream was asked before. One time ends before the next
    /// begins.
    ///
    /// # Safety
    /// As for [`Copier::copy`], until the stream has come past it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(crate) unsafe fn begin_within(&mut self, pieces: &[Piece]) -> Result<(), CudaError> {
        let gpu = self.stream.gpu().clone();
        let _entered = gpu.enter()?;
        let work = self.prepare(Direction::Within, pieces)?;
        // SAFETY: as the caller says; the list is this work's until the next, which begins after this has ended.
        unsafe { self.begin(Direction::Within, &work) }
    }

    /// Copies parts so often, and tells how long the GPU took for all of that, in seconds. What was there is as it is after one copy.
    ///
    /// # Panics
    /// When a part lies outside of the memory.
    ///
    /// # Errors
    /// When a copy fails; nothing is under way any more.
    pub fn timed(
        &mut self,
        timer: &Timer,
        between: Between<'_>,
        parts: &[Part],
        times: u32,
    ) -> Result<f64, CudaError> {
        let (direction, pieces) = between.pieces(parts);
        let work = self.prepare(direction, &pieces)?;
        // SAFETY: the parts lie within memory that is borrowed for as long as this call lasts; what is written is borrowed alone, the host's
        // is pinned, and nothing is under way when this returns.
        self.stream.timed_by(timer, times, || unsafe { self.begin(direction, &work) })
    }

    /// Decides who copies, and has the list of pieces be ready where it is the kernel.
    fn prepare(&mut self, direction: Direction, pieces: &[Piece]) -> Result<Work, CudaError> {
        let pieces: Vec<Piece> = pieces.iter().copied().filter(|piece| piece.bytes > 0).collect();
        let average = pieces.iter().map(|piece| piece.bytes).sum::<usize>() / pieces.len().max(1);
        let grid = grid(direction, average, self.stream.gpu().info().processors);
        let Some(grid) = grid.filter(|_| !pieces.is_empty()) else {
            return Ok(Work::Engine(pieces));
        };
        let units: Vec<Piece> = pieces.iter().flat_map(units).collect();
        let list = self.list.write(self.stream.gpu(), units.len() * ENTRY_BYTES)?;
        for (entry, unit) in list.chunks_exact_mut(ENTRY_BYTES).zip(&units) {
            for (word, value) in entry.chunks_exact_mut(8).zip([unit.from, unit.to, unit.bytes as u64]) {
                word.copy_from_slice(&value.to_ne_bytes());
            }
        }
        Ok(Work::Kernel { units: units.len() as u32, grid })
    }

    /// Has all of it be copied, some time.
    ///
    /// # Safety
    /// As for [`Copier::copy`], until the stream was waited for; the list is that of this work until then.
    unsafe fn begin(&self, direction: Direction, work: &Work) -> Result<(), CudaError> {
        let (units, grid) = match work {
            // SAFETY: as the caller says.
            Work::Engine(pieces) => {
                return pieces.iter().try_for_each(|piece| unsafe { self.stream.begin(direction, piece) });
            }
            Work::Kernel { units, grid } => (*units, *grid),
        };
        let (mut address, mut count) = (self.list.address(), units);
        let mut arguments: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut count).cast()];
        // SAFETY: the list is this work's until the stream was waited for. The kernel takes an address and a number, and copies what the
        // caller vouches for.
        unsafe {
            self.list.begin(&self.stream)?;
            self.stream.launch(self.kernel, grid.blocks.min(units), grid.threads, &mut arguments)
        }
    }
}

/// What is to be copied, and by whom.
enum Work {
    Engine(Vec<Piece>),
    Kernel { units: u32, grid: Grid },
}

/// Cuts a piece into what one block of threads copies at a time.
fn units(piece: &Piece) -> impl Iterator<Item = Piece> + use<> {
    let Piece { from, to, bytes } = *piece;
    (0..bytes).step_by(UNIT_BYTES).map(move |at| Piece {
        from: from + at as u64,
        to: to + at as u64,
        bytes: UNIT_BYTES.min(bytes - at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_for_a_kernel_and_large_ones_for_an_engine() {
        for direction in [Direction::ToGpu, Direction::ToHost, Direction::Within] {
            assert!(grid(direction, 4096, 132).is_some());
            assert_eq!(grid(direction, 64 << 20, 132), None);
        }
        assert_eq!(grid(Direction::ToGpu, 2 << 20, 132), None);
        assert_eq!(grid(Direction::Within, 1 << 20, 132), Some(Grid { blocks: 132, threads: 512 }));
    }

    #[test]
    fn units_are_the_whole_piece() {
        let cut = |bytes| units(&Piece { from: 100, to: 7, bytes }).collect::<Vec<_>>();
        assert_eq!(cut(0), []);
        assert_eq!(cut(5), [Piece { from: 100, to: 7, bytes: 5 }]);
        let three = cut(2 * UNIT_BYTES + 1);
        assert_eq!(three.iter().map(|unit| unit.bytes).collect::<Vec<_>>(), [UNIT_BYTES, UNIT_BYTES, 1]);
        assert_eq!((three[2].from, three[2].to), (100 + 2 * UNIT_BYTES as u64, 7 + 2 * UNIT_BYTES as u64));
    }
}
