//! Blocks out of an engine's pages and back, by kernels: encoded and decoded on the way, with the bytes of the host's codecs.
#![allow(unsafe_code, reason = "calls CUDA's driver with addresses")]

use super::error::CudaError;
use super::gpu::Gpu;
use super::kernels::File;
use super::library::{Address, Handle};
use super::list::List;
use super::memory::GpuMemory;
use super::stream::{Stream, Timer};
use crate::codec::{Codec, Element};
use crate::pages::{PagePlan, PagesError, Plane};
use std::ffi::{CString, c_void};
use std::sync::Arc;
use thiserror::Error;

/// Blocks of threads for each processor: more than it runs at a time, so that none waits for the last part.
pub(super) const BLOCKS_PER_PROCESSOR: u32 = 32;
/// Bytes of a plane in the list that the kernels read: `Plane` of `pages.cuh`.
const PLANE_BYTES: usize = 32;

/// Why pages did not become blocks, or blocks pages.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PagerError {
    /// What was asked for does not go together.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The GPU did not do it.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// From pages to blocks.
    Gather,
    /// From blocks to pages.
    Scatter,
}

/// A block and its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paged<'a> {
    /// Where the block is: an address, or a place in memory that is named beside it.
    pub block: u64,
    /// The pages that its tokens are in, in their order.
    pub pages: &'a [u32],
}

/// What a launch is told: `Job` of `pages.cuh`, by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    planes: Address,
    pages: Address,
    blocks: Address,
    token_bytes: u64,
    head_bytes: u64,
    row_bytes: u64,
    block_count: u32,
    plane_count: u32,
    kinds: u32,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    page_tokens: u32,
    block_pages: u32,
    element: u32,
    chunks: u32,
    lane_shift: u32,
    row_shift: u32,
    column_shift: u32,
    parts: [u32; 2],
    part_rows: u32,
    by_heads: Divisor,
    by_page_tokens: Divisor,
    by_planes: Divisor,
    by_parts: Divisor,
    by_chunks: Divisor,
}

/// Divides numbers below 2^31 by a product and a shift: `Divisor` of `pages.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Divisor {
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// Makes one for a number from 1 to 2^31.
    fn by(number: u32) -> Divisor {
        let shift = 31 + number.next_power_of_two().trailing_zeros();
        // Rounded up: what that adds is less than one in all numbers below 2^31.
        Divisor { multiplier: (1u64 << shift).div_ceil(u64::from(number)) as u32, shift }
    }
}

/// Takes an engine's pages to blocks of one layout and codec, and back.
pub struct Pager {
    stream: Stream,
    plan: PagePlan,
    kernels: [Handle; 2],
    planes: List,
    /// Where blocks are, then their pages.
    list: List,
}

// SAFETY: a kernel's handle may be used from any thread in which its context is current.
unsafe impl Send for Pager {}

impl Pager {
    /// Makes one.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(gpu: &Arc<Gpu>, plan: PagePlan) -> Result<Pager, CudaError> {
        Pager::with_kernels_for(gpu, plan, gpu.info().capability)
    }

    /// Makes one with the kernels for GPUs of this capability, so that those for older ones are tried on a newer one.
    ///
    /// # Errors
    /// When the driver refuses, as it does where the GPU is older.
    #[doc(hidden)]
    pub fn with_kernels_for(
        gpu: &Arc<Gpu>,
        plan: PagePlan,
        capability: (u32, u32),
    ) -> Result<Pager, CudaError> {
        let find = |way| {
            let (file, name) = kernel(way, &plan, capability);
            gpu.kernels.find(gpu, file, &name)
        };
        let kernels = [find(Way::Gather)?, find(Way::Scatter)?];
        let stream = Stream::new(gpu)?;
        let mut planes = List::default();
        let list = planes.write(gpu, plan.planes.len() * PLANE_BYTES)?;
        for (entry, plane) in list.chunks_exact_mut(PLANE_BYTES).zip(&plan.planes) {
            entry.copy_from_slice(&words(plane));
        }
        {
            let _entered = gpu.enter()?;
            // SAFETY: it is waited for before anybody has it.
            let begun = unsafe { planes.begin(&stream) };
            let over = stream.wait();
            begun.and(over)?;
        }
        Ok(Pager { stream, plan, kernels, planes, list: List::default() })
    }

    /// Returns what it does.
    pub fn plan(&self) -> &PagePlan {
        &self.plan
    }

    /// Returns its stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes blocks one way, and returns when all are there. A block is at an address.
    ///
    /// # Safety
    /// The engine's layers are where the plan says and each block has room at its address, all of it for as long as the call lasts and where
    /// this GPU reaches it. Nobody writes what is read, and nobody else uses what is written.
    ///
    /// # Errors
    /// When a block has other pages than it should, or the GPU fails: then nothing is under way any more, and some blocks may have gone.
    pub unsafe fn go(&mut self, way: Way, blocks: &[Paged<'_>]) -> Result<(), PagerError> {
        let parts = self.prepare(blocks, 0)?;
        let gpu = self.stream.gpu().clone();
        let _entered = gpu.enter()?;
        // SAFETY: as the caller says; the call below returns after all of it is over.
        let begun = unsafe { self.begin(way, blocks.len(), parts) };
        let over = self.stream.wait();
        begun.and(over).map_err(PagerError::from)
    }

    /// Takes blocks one way so often, and tells how long the GPU took for all of that, in seconds. The engine's pages are in `engine`; blocks are
    /// in `memory`, from its first byte on.
    ///
    /// # Errors
    /// As for [`Pager::go`], and when a page or a block lies outside of its memory.
    pub fn timed(
        &mut self,
        timer: &Timer,
        way: Way,
        engine: &mut GpuMemory,
        memory: &mut GpuMemory,
        blocks: &[Paged<'_>],
        times: u32,
    ) -> Result<f64, PagerError> {
        let reach = self.plan.reach();
        let (start, bytes) = engine.span();
        if !reach.is_empty() && (reach.start < start || reach.end > start + bytes as u64) {
            return Err(PagesError::Outside { what: "pages" }.into());
        }
        let ends = blocks.iter().map(|paged| paged.block.checked_add(self.plan.block_bytes()));
        if ends.into_iter().any(|end| end.is_none_or(|end| end > memory.len() as u64)) {
            return Err(PagesError::Outside { what: "blocks" }.into());
        }
        let parts = self.prepare(blocks, memory.address())?;
        // SAFETY: pages and blocks lie within memory that is borrowed alone for as long as this call lasts, and nothing is under way when it
        // returns.
        let seconds = self.stream.timed_by(timer, times, || unsafe { self.begin(way, blocks.len(), parts) });
        Ok(seconds?)
    }

    /// Writes the list of blocks, from this address on, and returns how many parts they have.
    fn prepare(&mut self, blocks: &[Paged<'_>], from: Address) -> Result<u32, PagerError> {
        let parts = self.plan.check(blocks.iter().map(|paged| paged.pages))?;
        let addresses = 8 * blocks.len();
        let list =
            self.list.write(self.stream.gpu(), addresses + 4 * blocks.len() * self.plan.block_pages())?;
        let (addresses, pages) = list.split_at_mut(addresses);
        for (place, paged) in addresses.chunks_exact_mut(8).zip(blocks) {
            place.copy_from_slice(&from.wrapping_add(paged.block).to_ne_bytes());
        }
        let all = blocks.iter().flat_map(|paged| paged.pages);
        for (place, page) in pages.chunks_exact_mut(4).zip(all) {
            place.copy_from_slice(&page.to_ne_bytes());
        }
        Ok(parts)
    }

    /// Has all of it be done, some time.
    ///
    /// # Safety
    /// As for [`Pager::go`], until the stream was waited for; the list is that of these blocks until then.
    unsafe fn begin(&self, way: Way, blocks: usize, parts: u32) -> Result<(), CudaError> {
        if blocks == 0 {
            return Ok(());
        }
        let plan = &self.plan;
        let each = if way == Way::Gather { plan.parts } else { plan.parts_back() };
        let mut job = Job {
            planes: self.planes.address(),
            pages: self.list.address() + 8 * blocks as u64,
            blocks: self.list.address(),
            token_bytes: plan.token_bytes,
            head_bytes: plan.head_bytes,
            row_bytes: plan.row_bytes,
            block_count: blocks as u32,
            plane_count: plan.planes.len() as u32,
            kinds: plan.kinds,
            tokens: plan.tokens,
            heads: plan.heads,
            head_dim: plan.head_dim,
            page_tokens: plan.page_tokens,
            block_pages: plan.block_pages,
            element: number(plan.element),
            chunks: plan.chunks,
            lane_shift: plan.lanes.trailing_zeros(),
            row_shift: plan.row_lanes.trailing_zeros(),
            column_shift: plan.columns.trailing_zeros(),
            parts: each,
            part_rows: plan.part_rows,
            by_heads: Divisor::by(plan.heads),
            by_page_tokens: Divisor::by(plan.page_tokens),
            by_planes: Divisor::by(plan.planes.len() as u32),
            by_parts: Divisor::by(each[0] + each[1]),
            by_chunks: Divisor::by(plan.chunks),
        };
        let most = self.stream.gpu().info().processors.max(1).saturating_mul(BLOCKS_PER_PROCESSOR);
        let mut arguments: [*mut c_void; 1] = [(&raw mut job).cast()];
        // SAFETY: the lists are this one's own and as long as the job says. The kernel takes a job by value, and touches what the caller
        // vouches for.
        unsafe {
            self.list.begin(&self.stream)?;
            self.stream.launch(self.kernels[way as usize], parts.min(most), plan.threads(), &mut arguments)
        }
    }
}

/// The first kind of GPU with instructions for e4m3.
const HAS_E4M3: (u32, u32) = (8, 9);

/// Returns where a kernel for this kind of GPU is and what it is called.
fn kernel(way: Way, plan: &PagePlan, capability: (u32, u32)) -> (File, CString) {
    let way = match way {
        Way::Gather => "gather",
        Way::Scatter => "scatter",
    };
    let element = match plan.element {
        Element::F16 => "f16",
        Element::Bf16 => "bf16",
        Element::F32 => "f32",
    };
    let (file, name) = match plan.codec {
        Codec::Fp8 if capability >= HAS_E4M3 => (File::Fp8OfSm89, format!("kvhive_{way}_fp8_{element}_sm89")),
        Codec::Fp8 => (File::Fp8, format!("kvhive_{way}_fp8_{element}")),
        Codec::Int8 => (File::Int8, format!("kvhive_{way}_int8_{element}")),
        Codec::Int4 => (File::Int4, format!("kvhive_{way}_int4_{element}")),
        // No plan is of the other one.
        Codec::Raw | Codec::Lossless => (File::Raw, format!("kvhive_{way}_raw")),
    };
    (file, CString::new(name).expect("no 0 in it"))
}

/// Returns an element's number in `pages.cuh`.
fn number(element: Element) -> u32 {
    match element {
        Element::F16 => 0,
        Element::Bf16 => 1,
        Element::F32 => 2,
    }
}

fn words(plane: &Plane) -> [u8; PLANE_BYTES] {
    let mut entry = [0; PLANE_BYTES];
    let flags = u64::from(!plane.is_values) | u64::from(plane.by_channel) << 32;
    for (word, value) in entry.chunks_exact_mut(8).zip([plane.base, plane.stride, plane.start, flags]) {
        word.copy_from_slice(&value.to_ne_bytes());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_reciprocal_of_a_scale_becomes_the_nearest() {
        // From the least scale to one above the largest: of the largest binary32 by 127. `reciprocal` of `eight.cuh` begins with what is at most one
        // last place away.
        for half in 0x0080..0x7D00u32 {
            let scale = f32::from_bits(half << 16);
            let nearest = 1.0 / scale;
            for apart in -2i32..=2 {
                let near = f32::from_bits(nearest.to_bits().wrapping_add_signed(apart));
                let inverse = near.mul_add((-scale).mul_add(near, 1.0), near);
                assert_eq!(inverse.to_bits(), nearest.to_bits(), "{half:#06x} from {apart}");
            }
        }
    }

    #[test]
    fn a_divisor_divides() {
        let most = (1 << 31) - 1;
        for by in (1..300).chain([1 << 20, (1 << 20) + 1, (1 << 30) - 1, 1 << 30, most]) {
            let Divisor { multiplier, shift } = Divisor::by(by);
            let near = (0..40).map(|times| times * by.min(1 << 25));
            for number in near.flat_map(|at| [at.saturating_sub(1), at, at + 1]).chain([most, most - 1]) {
                let quotient = (u64::from(number) * u64::from(multiplier)) >> shift;
                assert_eq!(quotient, u64::from(number / by), "{number} by {by}");
            }
        }
    }
}
