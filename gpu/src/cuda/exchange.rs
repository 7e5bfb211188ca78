//! An engine's pages and a device's frames: blocks go from one to the other on the GPU, encoded and decoded on the way, and their digests are
//! taken there. The pages may be another process's, which lends them.
#![allow(unsafe_code, reason = "vouches for the addresses of pages and frames")]

use super::device::CudaDevice;
use super::digester::{Digester, Span};
use super::error::CudaError;
use super::gpu::Gpu;
use super::ipc::{Borrowed, Loan};
use super::lane::Fate;
use super::pager::{Paged, Pager, PagerError, Way};
use super::slab::GpuSlab;
use crate::codec::{Codec, Shape};
use crate::frame::{ReadFrame, WriteFrame};
use crate::pages::{LayerPages, PageOrder, PagePlan, PageShape, PagesError};
use crate::space::sealed::Memory;
use std::sync::Arc;

/// How one layer's pages lie in one piece of memory or two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tensors<T> {
    /// Keys and values are two tensors `[pages, ...]`: SGLang's.
    Apart {
        /// The keys.
        keys: T,
        /// The values.
        values: T,
    },
    /// One tensor `[2, pages, ...]`: vLLM's.
    KeysFirst(T),
    /// One tensor `[pages, 2, ...]`: vLLM's, where blocks come first.
    PagesFirst(T),
    /// One tensor `[pages, ...]` whose rows hold keys and values side by side, or are latent.
    Together(T),
}

/// One layer's pages, as an engine lends them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LentLayer {
    /// Its memory.
    pub tensors: Tensors<Loan>,
    /// Its pages.
    pub pages: u32,
}

/// Takes an engine's pages to frames of a device's, and back. It does one thing at a time, and its caller waits for the GPU.
pub struct Exchange {
    gpu: Arc<Gpu>,
    fate: Arc<Fate>,
    pager: Pager,
    digester: Digester,
    /// Closed when nothing uses it any more.
    _memory: Vec<Borrowed>,
}

impl Exchange {
    /// Opens pages that another process of this host lends, as `shape` says they are, for blocks of this codec and shape.
    ///
    /// # Errors
    /// When what is lent is no memory, or less than the pages take; when pages and blocks do not go together; or when the driver refuses.
    pub fn borrow(
        device: &CudaDevice,
        shape: PageShape,
        layers: &[LentLayer],
        codec: Codec,
        block: &Shape,
    ) -> Result<Exchange, PagerError> {
        let (mut memory, mut found) = (Vec::new(), Vec::with_capacity(layers.len()));
        for LentLayer { tensors, pages } in layers {
            let mut open = |loan: &Loan, sides: u64| -> Result<u64, PagerError> {
                let bytes = shape.side_bytes().and_then(|side| side.checked_mul(sides * u64::from(*pages)));
                let bytes = bytes.ok_or(PagesError::TooLarge)?;
                if bytes > loan.bytes {
                    return Err(CudaError::Beyond { offset: 0, bytes, length: loan.bytes }.into());
                }
                let borrowed = Borrowed::new(device.gpu(), *loan)?;
                let address = borrowed.address();
                memory.push(borrowed);
                Ok(address)
            };
            let rows = if shape.order == PageOrder::Latent { 1 } else { 2 };
            found.push(match tensors {
                Tensors::Apart { keys, values } => shape.apart(open(keys, 1)?, open(values, 1)?, *pages),
                Tensors::KeysFirst(one) => shape.keys_first(open(one, 2)?, *pages),
                Tensors::PagesFirst(one) => shape.pages_first(open(one, 2)?, *pages),
                Tensors::Together(one) => shape.together(open(one, rows)?, *pages),
            });
        }
        Exchange::new(device, shape, &found, codec, block, memory)
    }

    /// Takes pages of this process's own.
    ///
    /// # Safety
    /// The layers are where they are said to be, in memory that the device's GPU reaches, until this is dropped.
    ///
    /// # Errors
    /// As for [`Exchange::borrow`].
    pub unsafe fn own(
        device: &CudaDevice,
        shape: PageShape,
        layers: &[LayerPages],
        codec: Codec,
        block: &Shape,
    ) -> Result<Exchange, PagerError> {
        Exchange::new(device, shape, layers, codec, block, Vec::new())
    }

    fn new(
        device: &CudaDevice,
        shape: PageShape,
        layers: &[LayerPages],
        codec: Codec,
        block: &Shape,
        memory: Vec<Borrowed>,
    ) -> Result<Exchange, PagerError> {
        let plan = PagePlan::new(shape, layers, codec, block)?;
        let gpu = device.gpu().clone();
        let (pager, digester) = (Pager::new(&gpu, plan)?, Digester::new(&gpu)?);
        Ok(Exchange { fate: device.fate().clone(), gpu, pager, digester, _memory: memory })
    }

    /// Returns what it does.
    pub fn plan(&self) -> &PagePlan {
        self.pager.plan()
    }

    /// Takes the pages of each block into its frame, and returns the digests of each frame's pieces, of which a header carries the digest. The engine
    /// has written the pages, and does not write them meanwhile: a block is what was read.
    ///
    /// # Errors
    /// When a frame is another GPU's or not as long as a block, a block has other pages than it should, or the GPU fails: what is in the frames
    /// then is nothing.
    pub fn gather(
        &mut self,
        blocks: &mut [(WriteFrame<GpuSlab>, &[u32])],
    ) -> Result<Vec<Vec<u64>>, PagerError> {
        let places = blocks.iter().map(|(frame, pages)| (frame.span(), frame.len(), *pages));
        let paged = self.paged(places)?;
        let bytes = self.plan().block_bytes();
        let spans: Vec<Span> = paged.iter().map(|one| Span { start: one.block, bytes }).collect();
        // SAFETY: the frames are borrowed alone for as long as the call lasts, of this GPU, and as long as a block; pages are where the plan says,
        // in memory that is open for as long as `self`, or that its maker vouches for.
        let gone = unsafe { self.pager.go(Way::Gather, &paged) };
        // SAFETY: as above.
        let digests = gone.and_then(|()| unsafe { self.digester.digest(&spans) });
        self.heed(digests)
    }

    /// Takes each sealed frame to the pages of its block, which the engine does not use meanwhile.
    ///
    /// # Errors
    /// As for [`Exchange::gather`]: some pages may have been written.
    pub fn scatter(&mut self, blocks: &[(ReadFrame<GpuSlab>, &[u32])]) -> Result<(), PagerError> {
        let places = blocks.iter().map(|(frame, pages)| (frame.span(), frame.len(), *pages));
        let paged = self.paged(places)?;
        // SAFETY: nobody writes sealed frames, which are held for as long as the call lasts; pages are as above.
        let gone = unsafe { self.pager.go(Way::Scatter, &paged) };
        self.heed(gone)
    }

    /// Returns where blocks are, if they are this GPU's and as long as they should be.
    fn paged<'a>(
        &self,
        places: impl Iterator<Item = ((&'a GpuSlab, usize), usize, &'a [u32])>,
    ) -> Result<Vec<Paged<'a>>, PagerError> {
        if let Some(error) = self.fate.get() {
            return Err(error.clone().into());
        }
        let place = |((slab, offset), bytes, pages): ((&'a GpuSlab, usize), usize, &'a [u32])| {
            let is_right = Arc::ptr_eq(slab.gpu(), &self.gpu) && bytes as u64 == self.plan().block_bytes();
            is_right.then(|| Paged { block: slab.base() + offset as u64, pages })
        };
        let paged = places.map(place).collect::<Option<Vec<_>>>();
        paged.ok_or(PagerError::Pages(PagesError::Outside { what: "blocks" }))
    }

    /// Finds out whether the GPU has died of what failed.
    fn heed<T>(&self, ended: Result<T, PagerError>) -> Result<T, PagerError> {
        if let Err(PagerError::Cuda(error)) = &ended
            && self.gpu.enter().and_then(|_entered| self.pager.stream().wait()).is_err()
        {
            // Who was first knows the cause.
            self.fate.get_or_init(|| error.clone());
        }
        ended
    }
}
