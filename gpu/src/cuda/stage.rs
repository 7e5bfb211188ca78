//! A stage: memory of a GPU's that one process lends to another, for blocks on their way. Its owner puts blocks on it or takes them off; the
//! other, which opens it as a [`Ferry`], copies them to frames of its own and back, on the GPU. Nobody's pages and nobody's frames are
//! lent: what comes late, after its owner has stopped waiting, lands on a stage that is used no more.
#![allow(unsafe_code, reason = "vouches for the addresses of copies")]

use super::copier::Copier;
use super::device::CudaDevice;
use super::digester::{Digester, Span};
use super::error::CudaError;
use super::gpu::Gpu;
use super::ipc::{Borrowed, Loan};
use super::lane::Fate;
use super::memory::{GpuMemory, Pinned};
use super::pager::{Paged, Pager, PagerError, Way};
use super::slab::GpuSlab;
use super::stream::{Direction, Piece, Stream};
use crate::codec::{Codec, Shape};
use crate::frame::{ReadFrame, WriteFrame};
use crate::pages::{PagePlan, PagesError};
use crate::space::sealed::Memory;
use crate::whole::pages_of;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

/// A stage takes whole units of memory: the driver cuts smaller pieces from a unit that others have parts of, and lends it as a whole.
const UNIT_BYTES: usize = 2 << 20;

/// Memory that this process lends. It is freed when this is dropped: any other process that has it open must have let go of it before.
pub struct Stage {
    memory: Arc<GpuMemory>,
    loan: Loan,
}

/// Stages of this process by their handles: whoever is lent one in the same process has no use for a handle, which opens elsewhere alone.
static OWN: Mutex<BTreeMap<[u8; 64], Weak<GpuMemory>>> = Mutex::new(BTreeMap::new());

fn own() -> MutexGuard<'static, BTreeMap<[u8; 64], Weak<GpuMemory>>> {
    // Nothing is left half-done under this lock.
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// Takes so many bytes of a GPU's memory and lends them.
    ///
    /// # Errors
    /// When the GPU has not so many, or its driver lends nothing.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Stage, CudaError> {
        let memory = Arc::new(GpuMemory::new(gpu, bytes.next_multiple_of(UNIT_BYTES))?);
        let loan = Loan::new(gpu, memory.address(), bytes as u64)?;
        own().insert(loan.handle, Arc::downgrade(&memory));
        Ok(Stage { memory, loan })
    }

    /// Returns by what another opens it.
    pub fn loan(&self) -> Loan {
        self.loan
    }

    /// Returns the address of its first byte in this process.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Writes bytes of the host's there, for who has none on a GPU. Blocks the thread.
    ///
    /// # Errors
    /// When they do not all lie on it, or the GPU fails.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let to = self.place(at, bytes.len())?;
        let mut here = Pinned::for_a_while(self.memory.gpu(), bytes.len())?;
        here.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let from = here.bytes().as_ptr().expose_provenance() as u64;
        let piece = Piece { from, to, bytes: bytes.len() };
        // SAFETY: the host's bytes are this one's own and pinned; the stage's are there, and whoever has it open reads bytes as they are.
        unsafe { Copier::new(self.memory.gpu())?.copy(Direction::ToGpu, &[piece]) }
    }

    /// Reads bytes from there into the host's. Blocks the thread.
    ///
    /// # Errors
    /// As for [`Stage::write`].
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), CudaError> {
        let (from, bytes) = (self.place(at, into.len())?, into.len());
        let mut here = Pinned::for_a_while(self.memory.gpu(), bytes)?;
        let to = here.bytes_mut().as_mut_ptr().expose_provenance() as u64;
        // SAFETY: as above.
        unsafe { Copier::new(self.memory.gpu())?.copy(Direction::ToHost, &[Piece { from, to, bytes }]) }?;
        into.copy_from_slice(&here.bytes()[..bytes]);
        Ok(())
    }

    fn place(&self, at: u64, bytes: usize) -> Result<u64, CudaError> {
        let (bytes, length) = (bytes as u64, self.loan.bytes);
        match at.checked_add(bytes).is_some_and(|end| end <= length) {
            true => Ok(self.memory.address() + at),
            false => Err(CudaError::Beyond { offset: at, bytes, length }),
        }
    }

    /// Returns its size in bytes.
    pub fn len(&self) -> u64 {
        self.loan.bytes
    }

    /// Says whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.loan.bytes == 0
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mut own = own();
        // Another may have the same handle by now.
        let is_known = |known: &Weak<GpuMemory>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&self.memory));
        if own.get(&self.loan.handle).is_some_and(is_known) {
            own.remove(&self.loan.handle);
        }
    }
}

/// Ways to encode blocks that are kept for the next; each has lists of its own.
const MOST_PAGERS: usize = 8;

/// Another process's stage, open in this one, and what copies between it and a device's frames. It does one thing at a time, and its caller
/// waits for the GPU.
pub struct Ferry {
    gpu: Arc<Gpu>,
    fate: Arc<Fate>,
    hand: Mutex<Hand>,
    address: u64,
    bytes: u64,
    /// Closed when nothing uses it any more.
    _memory: Held,
}

/// What keeps a stage open.
enum Held {
    Own(#[allow(dead_code, reason = "held for its drop")] Arc<GpuMemory>),
    Borrowed(#[allow(dead_code, reason = "held for its drop")] Borrowed),
}

/// Says whether a loan is of a stage's memory.
fn is_of(memory: &GpuMemory, loan: &Loan) -> bool {
    loan.offset == 0 && loan.bytes <= memory.len() as u64
}

struct Hand {
    copier: Copier,
    digester: Digester,
    /// Of blocks that are encoded on the way, the one that was used last at the end.
    pagers: Vec<((Codec, Shape), Pager)>,
}

impl Ferry {
    /// Opens a stage beside a device's GPU: of another process, on that GPU or on one that it reaches; or of this process, on that GPU.
    ///
    /// # Errors
    /// When it is no stage, or not as large as was said, or the driver refuses.
    pub fn new(device: &CudaDevice, loan: Loan) -> Result<Ferry, CudaError> {
        let own = own().get(&loan.handle).and_then(Weak::upgrade);
        if let Some(memory) = own.filter(|memory| is_of(memory, &loan) && device.gpu().is_same(memory.gpu()))
        {
            return Ferry::of(device, memory.address(), loan.bytes, Held::Own(memory));
        }
        let memory = Borrowed::new(device.gpu(), loan)?;
        Ferry::of(device, memory.address(), loan.bytes, Held::Borrowed(memory))
    }

    fn of(device: &CudaDevice, address: u64, bytes: u64, memory: Held) -> Result<Ferry, CudaError> {
        let gpu = device.gpu().clone();
        let hand = Hand { copier: Copier::new(&gpu)?, digester: Digester::new(&gpu)?, pagers: Vec::new() };
        let (fate, hand) = (device.fate().clone(), Mutex::new(hand));
        Ok(Ferry { fate, hand, address, bytes, _memory: memory, gpu })
    }

    /// Says whether so many bytes there lie on the stage.
    pub fn has(&self, at: u64, bytes: u64) -> bool {
        at.checked_add(bytes).is_some_and(|end| end <= self.bytes)
    }

    /// Copies each block from the stage to its frame, and returns the digests of the pieces of each, taken of what is in the frame.
    ///
    /// # Errors
    /// When a frame is another GPU's, a block lies elsewhere, something else is under way, or the GPU fails: what is in the frames then is nothing.
    pub fn take(&self, blocks: &mut [(&mut WriteFrame<GpuSlab>, u64)]) -> Result<Vec<Vec<u64>>, PagerError> {
        let mut hand = self.hand()?;
        let places = blocks.iter().map(|(frame, at)| (frame.span(), frame.len(), *at));
        let (spans, pieces) = self.both(places, |frame, stage| (stage, frame))?;
        // SAFETY: the frames are borrowed alone for as long as the call lasts and of this GPU; the stage is open as long as `self`, and where
        // blocks are on it was checked. Its owner may write it meanwhile: then other bytes come, and the digests are those.
        let gone = unsafe { hand.copier.copy(Direction::Within, &pieces) };
        // SAFETY: as above.
        let digests = gone.map_err(PagerError::from).and_then(|()| unsafe { hand.digester.digest(&spans) });
        self.heed(hand.copier.stream(), digests)
    }

    /// As [`Ferry::take`], and encodes each block on the way. Blocks of this shape are on the stage at multiples of their size.
    ///
    /// # Errors
    /// As for [`Ferry::take`], and where a GPU does not encode so.
    pub fn encode(
        &self,
        (codec, shape): (Codec, &Shape),
        blocks: &mut [(&mut WriteFrame<GpuSlab>, u64)],
    ) -> Result<Vec<Vec<u64>>, PagerError> {
        let mut hand = self.hand()?;
        let Hand { digester, pagers, .. } = &mut *hand;
        let pager = self.pager(pagers, codec, shape)?;
        let places = blocks.iter().map(|(frame, at)| (frame.span(), frame.len(), *at));
        let (spans, numbers) = self.numbered(pager.plan(), shape, places)?;
        let paged: Vec<Paged<'_>> = paged(&spans, &numbers);
        // SAFETY: the frames are borrowed alone for as long as the call lasts, of this GPU, and as long as a block; pages are blocks of the
        // stage, which is as above.
        let gone = unsafe { pager.go(Way::Gather, &paged) };
        // SAFETY: as above.
        let digests = gone.and_then(|()| unsafe { digester.digest(&spans) });
        self.heed(pager.stream(), digests)
    }

    /// As [`Ferry::put`], of blocks that are encoded so: they are decoded on the way, and lie on the stage at multiples of their size.
    ///
    /// # Errors
    /// As for [`Ferry::encode`].
    pub fn decode(
        &self,
        (codec, shape): (Codec, &Shape),
        blocks: &[(&ReadFrame<GpuSlab>, u64)],
    ) -> Result<(), PagerError> {
        let mut hand = self.hand()?;
        let pager = self.pager(&mut hand.pagers, codec, shape)?;
        let places = blocks.iter().map(|(frame, at)| (frame.span(), frame.len(), *at));
        let (spans, numbers) = self.numbered(pager.plan(), shape, places)?;
        let paged: Vec<Paged<'_>> = paged(&spans, &numbers);
        // SAFETY: nobody writes sealed frames, which are held for as long as the call lasts and as long as a block; pages are as above.
        let gone = unsafe { pager.go(Way::Scatter, &paged) };
        self.heed(pager.stream(), gone)
    }

    /// Returns what encodes blocks so, made when it is wanted first.
    fn pager<'a>(
        &self,
        pagers: &'a mut Vec<((Codec, Shape), Pager)>,
        codec: Codec,
        shape: &Shape,
    ) -> Result<&'a mut Pager, PagerError> {
        let wanted = (codec, *shape);
        let known = match pagers.iter().position(|(of, _)| *of == wanted) {
            Some(at) => pagers.remove(at),
            None => {
                let (page, layers) =
                    pages_of(shape, self.address, self.bytes).ok_or(PagesError::Codec { codec })?;
                let plan = PagePlan::new(page, &layers, codec, shape)?;
                if pagers.len() >= MOST_PAGERS {
                    pagers.remove(0);
                }
                (wanted, Pager::new(&self.gpu, plan)?)
            }
        };
        pagers.push(known);
        let (_, pager) = pagers.last_mut().expect("it was just put there");
        Ok(pager)
    }

    /// Returns where frames are, and of each block the number that it has among those of the stage.
    fn numbered<'a>(
        &self,
        plan: &PagePlan,
        shape: &Shape,
        places: impl Iterator<Item = ((&'a GpuSlab, usize), usize, u64)>,
    ) -> Result<(Vec<Span>, Vec<u32>), PagerError> {
        let raw = shape.raw_bytes().filter(|raw| *raw > 0);
        let outside = || PagerError::from(PagesError::Outside { what: "blocks" });
        let (mut spans, mut numbers) = (Vec::new(), Vec::new());
        for (frame, bytes, at) in places {
            let raw = raw.filter(|raw| at.is_multiple_of(*raw)).ok_or_else(outside)?;
            if bytes as u64 != plan.block_bytes() {
                return Err(outside());
            }
            spans.push(self.span(frame, bytes)?);
            numbers.push(u32::try_from(at / raw).map_err(|_| outside())?);
        }
        Ok((spans, numbers))
    }

    /// Copies each block from the stage to memory of the host.
    ///
    /// # Errors
    /// As for [`Ferry::take`].
    pub fn take_down(&self, blocks: &mut [(&mut [u8], u64)]) -> Result<(), PagerError> {
        let mut hand = self.hand()?;
        let (mut pieces, mut detours) = (Vec::with_capacity(blocks.len()), Vec::new());
        for (bytes, at) in blocks.iter_mut() {
            let (from, length) = (self.at(*at, bytes.len())?, bytes.len());
            let mut to = bytes.as_mut_ptr().expose_provenance() as u64;
            if !self.gpu.is_pinned(to, length) {
                let mut by = Pinned::for_a_while(&self.gpu, length)?;
                to = by.bytes_mut().as_mut_ptr().expose_provenance() as u64;
                detours.push((bytes, by));
            }
            pieces.push(Piece { from, to, bytes: length });
        }
        // SAFETY: the host's bytes are borrowed alone for as long as the call lasts, and pinned, or a detour's own; the stage is as above.
        let gone = unsafe { hand.copier.copy(Direction::ToHost, &pieces) };
        self.heed(hand.copier.stream(), gone.map_err(PagerError::from))?;
        for (bytes, by) in detours {
            let length = bytes.len();
            bytes.copy_from_slice(&by.bytes()[..length]);
        }
        Ok(())
    }

    /// Returns the digests of the pieces of what sealed frames hold.
    ///
    /// # Errors
    /// As for [`Ferry::take`].
    pub fn digests(&self, frames: &[&ReadFrame<GpuSlab>]) -> Result<Vec<Vec<u64>>, PagerError> {
        let mut hand = self.hand()?;
        let spans =
            frames.iter().map(|frame| self.span(frame.span(), frame.len())).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: nobody writes sealed frames, which are held for as long as the call lasts.
        let digests = unsafe { hand.digester.digest(&spans) };
        self.heed(hand.copier.stream(), digests)
    }

    /// Copies each sealed frame to the stage.
    ///
    /// # Errors
    /// As for [`Ferry::take`]: some of the stage may have been written.
    pub fn put(&self, blocks: &[(&ReadFrame<GpuSlab>, u64)]) -> Result<(), PagerError> {
        let mut hand = self.hand()?;
        let places = blocks.iter().map(|(frame, at)| (frame.span(), frame.len(), *at));
        let (_, pieces) = self.both(places, |frame, stage| (frame, stage))?;
        // SAFETY: nobody writes sealed frames, which are held for as long as the call lasts; the stage is open as long as `self`, where blocks
        // are to be on it was checked, and its owner reads it when it hears that they are there.
        let gone = unsafe { hand.copier.copy(Direction::Within, &pieces) };
        self.heed(hand.copier.stream(), gone.map_err(PagerError::from))
    }

    /// Copies bytes of the host's to the stage.
    ///
    /// # Errors
    /// As for [`Ferry::put`].
    pub fn put_up(&self, blocks: &[(&[u8], u64)]) -> Result<(), PagerError> {
        let mut hand = self.hand()?;
        let (mut pieces, mut detours) = (Vec::with_capacity(blocks.len()), Vec::new());
        for (bytes, at) in blocks {
            let (to, length) = (self.at(*at, bytes.len())?, bytes.len());
            let mut from = bytes.as_ptr().expose_provenance() as u64;
            if !self.gpu.is_pinned(from, length) {
                let mut by = Pinned::for_a_while(&self.gpu, length)?;
                by.bytes_mut()[..length].copy_from_slice(bytes);
                from = by.bytes().as_ptr().expose_provenance() as u64;
                detours.push(by);
            }
            pieces.push(Piece { from, to, bytes: length });
        }
        // SAFETY: the host's bytes are borrowed for as long as the call lasts, and pinned, or a detour's own; the stage is as above.
        let gone = unsafe { hand.copier.copy(Direction::ToGpu, &pieces) };
        self.heed(hand.copier.stream(), gone.map_err(PagerError::from))
    }

    /// Takes what copies, unless something is under way: one that waits for a GPU that hangs keeps it, and nobody waits behind it.
    fn hand(&self) -> Result<MutexGuard<'_, Hand>, PagerError> {
        if let Some(error) = self.fate.get() {
            return Err(error.clone().into());
        }
        match self.hand.try_lock() {
            Ok(hand) => Ok(hand),
            Err(TryLockError::Poisoned(poison)) => Ok(poison.into_inner()),
            Err(TryLockError::WouldBlock) => Err(CudaError::Busy { bytes: self.bytes }.into()),
        }
    }

    /// Returns the address of so many bytes on the stage.
    fn at(&self, at: u64, bytes: usize) -> Result<u64, PagerError> {
        match self.has(at, bytes as u64) {
            true => Ok(self.address + at),
            false => Err(PagesError::Outside { what: "blocks" }.into()),
        }
    }

    /// Returns where a frame is, if it is this GPU's.
    fn span(&self, (slab, offset): (&GpuSlab, usize), bytes: usize) -> Result<Span, PagerError> {
        match Arc::ptr_eq(slab.gpu(), &self.gpu) {
            true => Ok(Span { start: slab.base() + offset as u64, bytes: bytes as u64 }),
            false => Err(PagesError::Outside { what: "frames" }.into()),
        }
    }

    /// Returns where frames are, and from where to where each block goes.
    fn both<'a>(
        &self,
        places: impl Iterator<Item = ((&'a GpuSlab, usize), usize, u64)>,
        order: impl Fn(u64, u64) -> (u64, u64),
    ) -> Result<(Vec<Span>, Vec<Piece>), PagerError> {
        let (mut spans, mut pieces) = (Vec::new(), Vec::new());
        for ((slab, offset), bytes, at) in places {
            let span = self.span((slab, offset), bytes)?;
            let (from, to) = order(span.start, self.at(at, bytes)?);
            spans.push(span);
            pieces.push(Piece { from, to, bytes });
        }
        Ok((spans, pieces))
    }

    /// Finds out whether the GPU has died of what failed.
    fn heed<T>(&self, stream: &Stream, ended: Result<T, PagerError>) -> Result<T, PagerError> {
        if let Err(PagerError::Cuda(error)) = &ended
            && self.gpu.enter().and_then(|_entered| stream.wait()).is_err()
        {
            // Who was first knows the cause.
            self.fate.get_or_init(|| error.clone());
        }
        ended
    }
}

/// Says of each frame which page goes to it or comes from it.
fn paged<'a>(spans: &[Span], numbers: &'a [u32]) -> Vec<Paged<'a>> {
    spans.iter().zip(numbers.chunks(1)).map(|(span, pages)| Paged { block: span.start, pages }).collect()
}
