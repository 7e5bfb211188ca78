//! A GPU as a device: its memory, and copies to, from and within it, each direction by a stream and a thread of its own.
#![allow(unsafe_code, reason = "vouches for the addresses of copies")]

use super::digester::{Digester, Span};
use super::error::CudaError;
use super::gpu::Gpu;
use super::lane::{BATCH_BYTES, Fate, HOST, Job, Lane, LaneError, Patience, Placed};
use super::memory::Staging;
use super::nvml::{Nvml, NvmlError, Trouble, Watch};
use super::shelf::MOST_KEPT;
use super::slab::GpuSlab;
use super::stream::{Direction, Piece};
use crate::arena::Arena;
use crate::device::{Device, DeviceError, DeviceInfo, DeviceKind};
use crate::frame::{ReadFrame, WriteFrame};
use crate::space::sealed::Memory;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

/// A GPU that gives memory with a budget. After an error that ends its context it is lost: every copy fails at once, and what it held
/// is gone; the process goes on.
pub struct CudaDevice {
    gpu: Arc<Gpu>,
    memory_bytes: u64,
    given: Arc<AtomicU64>,
    fate: Arc<Fate>,
    up: Lane,
    down: Lane,
    within: Lane,
    /// Made when it is wanted first.
    digester: Mutex<Option<Digester>>,
    /// From other GPUs, once one is reached.
    beside: OnceLock<Lane>,
    patience: Patience,
    /// Hears what befalls the GPU.
    watch: OnceLock<Watch>,
}

/// An end of a copy in the host's memory, which stays where it is until the copy has ended.
struct Here<B>(NonNull<B>);

// SAFETY: it owns its `B` and nothing else.
unsafe impl<B: Send> Send for Here<B> {}

impl<B> Here<B> {
    fn new(memory: B) -> Here<B> {
        Here(NonNull::from(Box::leak(Box::new(memory))))
    }

    fn into_inner(self) -> B {
        let own = std::mem::ManuallyDrop::new(self);
        // SAFETY: it was leaked when this was made, and `own` does not drop it too.
        *unsafe { Box::from_raw(own.0.as_ptr()) }
    }
}

impl<B> Drop for Here<B> {
    fn drop(&mut self) {
        // SAFETY: it was leaked when this was made.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl CudaDevice {
    /// Bytes of pinned host memory that a GPU keeps for its next copies, or copies by the way of, at most.
    pub const KEPT_BYTES: u64 = (MOST_KEPT + 2 * BATCH_BYTES) as u64;

    /// Makes a device that gives at most `memory_bytes` of a GPU's memory in all its slabs together.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses, or the system has no more threads.
    pub fn new(gpu: Arc<Gpu>, memory_bytes: u64) -> Result<CudaDevice, DeviceError> {
        CudaDevice::with_patience(gpu, memory_bytes, Patience::default())
    }

    /// Makes one that is waited for so long.
    ///
    /// # Errors
    /// As for [`CudaDevice::new`].
    pub fn with_patience(
        gpu: Arc<Gpu>,
        memory_bytes: u64,
        patience: Patience,
    ) -> Result<CudaDevice, DeviceError> {
        let fate = Arc::new(OnceLock::new());
        let lane = |direction| {
            Lane::start(&gpu, direction, &fate, patience).map_err(|error: LaneError| DeviceError::Failed {
                device: name(&gpu),
                reason: error.to_string(),
            })
        };
        let [up, down, within] =
            [lane(Direction::ToGpu)?, lane(Direction::ToHost)?, lane(Direction::Within)?];
        let digester = Mutex::default();
        Ok(CudaDevice {
            memory_bytes,
            given: Arc::default(),
            fate,
            up,
            down,
            within,
            patience,
            watch: OnceLock::new(),
            beside: OnceLock::new(),
            gpu,
            digester,
        })
    }

    /// Returns its GPU.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Has the driver's management library say when something befalls the GPU by which what it holds is lost: it is lost then, without anybody
    /// having to find out by a copy. `tell` hears what else it says, on another thread.
    ///
    /// # Errors
    /// When it does not tell such things of this GPU.
    pub fn watch(&self, nvml: &Arc<Nvml>, tell: impl Fn(&Trouble) + Send + 'static) -> Result<(), NvmlError> {
        let fate = self.fate.clone();
        let watch = Watch::start(nvml, &self.gpu.info().pci, move |trouble| {
            tell(&trouble);
            if trouble.is_fatal() {
                // Who was first knows the cause.
                let _ = fate.set(CudaError::Befallen { trouble });
            }
        })?;
        // Who watches already goes on.
        let _ = self.watch.set(watch);
        Ok(())
    }

    /// Returns in how much of the last moment, in percent, it ran a kernel, whosever that was; none where nobody watches it, or the driver does
    /// not tell that.
    pub fn busy_percent(&self) -> Option<u32> {
        self.watch.get()?.busy_percent()
    }

    /// Returns what became of it, which others find out too.
    pub(super) fn fate(&self) -> &Arc<Fate> {
        &self.fate
    }

    /// Says how long it is waited for.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Says why it is lost, if it is. Where it turns out to hang, whoever waits for a copy is told.
    pub fn loss(&self) -> Option<DeviceError> {
        if self.lanes().any(Lane::is_stalled) {
            self.give_up();
        }
        self.fate.get().map(|error| self.lost(error))
    }

    /// Waits until no copy is under way, as long as the GPU is waited for. One that then still copies is lost, and nobody waits for it any more:
    /// what it may use stays its own to the end of the process.
    pub fn settle(&self) {
        if !self.lanes().all(Lane::is_soon_idle) {
            self.give_up();
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        [&self.up, &self.down, &self.within].into_iter().chain(self.beside.get())
    }

    fn give_up(&self) {
        let error = self.fate.get_or_init(|| CudaError::Stalled);
        self.lanes().for_each(|lane| lane.give_up(error));
    }

    /// Takes memory of the host for bytes that go to the GPU or come from it: such as was pinned before and is let go of, else plain,
    /// in whose place some is pinned when it is copied, and kept for the next.
    pub fn staging(&self, bytes: usize) -> Staging {
        Staging::new(&self.gpu, bytes)
    }

    /// Writes bytes of the host to a frame taken for as many, and calls `done` when they are there, or are not, on a thread of the
    /// device's, or of whoever finds out that the GPU hangs: it must not wait for anything. The host's bytes are let go of before that, unless it hangs.
    ///
    /// Bytes of pinned memory go as they are; others are copied to some first.
    pub fn upload<B: AsRef<[u8]> + Send + 'static>(
        &self,
        from: B,
        to: WriteFrame<GpuSlab>,
        done: impl FnOnce(Result<WriteFrame<GpuSlab>, DeviceError>) + Send + 'static,
    ) {
        self.upload_with(from, to, (), move |ended| done(ended.map(|(to, ())| to)));
    }

    /// As [`CudaDevice::upload`], with something that lasts as long as the frame: it is dropped after that, which may be long after `done`
    /// was told that the GPU is lost.
    pub fn upload_with<B: AsRef<[u8]> + Send + 'static, T: Send + 'static>(
        &self,
        from: B,
        to: WriteFrame<GpuSlab>,
        with: T,
        done: impl FnOnce(Result<(WriteFrame<GpuSlab>, T), DeviceError>) + Send + 'static,
    ) {
        let from = Here::new(from);
        // SAFETY: it is alive, and nobody else has it.
        let here = unsafe { from.0.as_ref() }.as_ref();
        let piece = self.at(to.span()).and_then(|there| {
            DeviceError::unless_equal(here.len(), to.len())?;
            let piece = Piece { from: address(here), to: there, bytes: here.len() };
            Ok(Placed { piece, slabs: [HOST, base(to.span())] })
        });
        let memory = move || {
            drop(from);
            // Dropped in this order.
            (to, with)
        };
        // SAFETY: the frame is the only handle on its bytes, and the host's are of what does not move: both go into the job.
        unsafe { self.begin(&self.up, piece, memory, done) };
    }

    /// Reads a sealed frame's bytes into as many of the host's, and calls `done` as [`CudaDevice::upload`] does. The frame is let go
    /// of before that.
    pub fn download<B: AsMut<[u8]> + Send + 'static>(
        &self,
        from: ReadFrame<GpuSlab>,
        to: B,
        done: impl FnOnce(Result<B, DeviceError>) + Send + 'static,
    ) {
        let mut to = Here::new(to);
        // SAFETY: as above.
        let here = unsafe { to.0.as_mut() }.as_mut();
        let piece = self.at(from.span()).and_then(|there| {
            DeviceError::unless_equal(from.len(), here.len())?;
            let piece = Piece { from: there, to: target(here), bytes: here.len() };
            Ok(Placed { piece, slabs: [base(from.span()), HOST] })
        });
        // SAFETY: nobody writes a sealed frame, and the host's bytes are of what does not move and nobody else has: both go into the job.
        unsafe {
            let memory = move || {
                drop(from);
                to.into_inner()
            };
            self.begin(&self.down, piece, memory, done);
        }
    }

    /// Returns the digests of the pieces of what frames hold ([`Digester`]). Blocks the thread.
    ///
    /// # Errors
    /// When a frame is another GPU's, or the GPU fails.
    pub fn digests(&self, frames: &[&WriteFrame<GpuSlab>]) -> Result<Vec<Vec<u64>>, DeviceError> {
        let spans: Result<Vec<Span>, DeviceError> = frames
            .iter()
            .map(|frame| Ok(Span { start: self.at(frame.span())?, bytes: frame.len() as u64 }))
            .collect();
        let spans = spans?;
        // One that waits for a GPU that hangs keeps it: nobody waits behind it.
        let mut digester = match self.digester.try_lock() {
            Ok(digester) => digester,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(self.failed("other digests are being taken")),
        };
        let digester = match &mut *digester {
            Some(digester) => digester,
            none => none.insert(Digester::new(&self.gpu).map_err(self.teller())?),
        };
        // SAFETY: the frames are borrowed for as long as the call lasts, and nobody else has a handle on them.
        let digests = unsafe { digester.digest(&spans) };
        digests.map_err(|error| self.failed(&error.to_string()))
    }

    /// Says whether this GPU reads the frames of another's memory by itself; from then on it does, where it can.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the driver refuses, or the system has no more threads.
    pub fn reaches(&self, theirs: &Arena<GpuSlab>) -> Result<bool, DeviceError> {
        self.beside(theirs.slab()).map(|lane| lane.is_some())
    }

    /// As [`CudaDevice::reaches`], of the memory that a frame lies in; its own too.
    ///
    /// # Errors
    /// As there.
    pub fn reaches_frame(&self, frame: &ReadFrame<GpuSlab>) -> Result<bool, DeviceError> {
        let (slab, _) = frame.span();
        Ok(Arc::ptr_eq(slab.gpu(), &self.gpu) || self.beside(slab)?.is_some())
    }

    /// Copies a sealed frame's bytes, of this GPU or of one that it reaches, into a frame of this one's, and calls `done` as
    /// [`CudaDevice::upload`] does. The source is let go of before that.
    pub fn take(
        &self,
        from: ReadFrame<GpuSlab>,
        to: WriteFrame<GpuSlab>,
        done: impl FnOnce(Result<WriteFrame<GpuSlab>, DeviceError>) + Send + 'static,
    ) {
        self.take_with(from, to, (), move |ended| done(ended.map(|(to, ())| to)));
    }

    /// As [`CudaDevice::take`], with something that lasts as long as the frame: it is dropped after that, which may be long after `done` was
    /// told that a GPU is lost.
    pub fn take_with<T: Send + 'static>(
        &self,
        from: ReadFrame<GpuSlab>,
        to: WriteFrame<GpuSlab>,
        with: T,
        done: impl FnOnce(Result<(WriteFrame<GpuSlab>, T), DeviceError>) + Send + 'static,
    ) {
        let (slab, offset) = from.span();
        let by = match Arc::ptr_eq(slab.gpu(), &self.gpu) {
            true => Ok(Some(&self.within)),
            false => self.beside(slab),
        };
        let piece = by.and_then(|by| {
            let lane = by.ok_or_else(|| self.failed("a frame is of a GPU that it does not reach"))?;
            let there = self.at(to.span())?;
            DeviceError::unless_equal(from.len(), to.len())?;
            let piece = Piece { from: slab.base() + offset as u64, to: there, bytes: to.len() };
            Ok((lane, Placed { piece, slabs: [slab.base(), base(to.span())] }))
        });
        let (lane, piece) = match piece {
            Ok((lane, piece)) => (lane, piece),
            Err(error) => {
                drop((to, with));
                return done(Err(error));
            }
        };
        let memory = move || {
            drop(from);
            // Dropped in this order.
            (to, with)
        };
        // SAFETY: nobody writes a sealed frame, and the other frame is the only handle on its bytes: both go into the job.
        unsafe { self.begin(lane, Ok(piece), memory, done) };
    }

    /// Returns the lane from other GPUs, if another's memory is reached; the first time that is arranged.
    fn beside(&self, slab: &GpuSlab) -> Result<Option<&Lane>, DeviceError> {
        let told = |error: &dyn std::fmt::Display| self.failed(&error.to_string());
        // What is this GPU's own is reached, whoever opened it.
        if !self.gpu.is_same(slab.gpu()) && !slab.let_reach(&self.gpu).map_err(|error| told(&error))? {
            return Ok(None);
        }
        if self.beside.get().is_none() {
            let lane = Lane::start(&self.gpu, Direction::FromPeer, &self.fate, self.patience);
            // Another may have started one meanwhile; this one ends then.
            let _ = self.beside.set(lane.map_err(|error| told(&error))?);
        }
        Ok(self.beside.get())
    }

    /// Has a lane copy a piece, if it is one, and calls `done` when that has ended with what is left of the `memory` at both ends, or when it
    /// never ends.
    ///
    /// # Safety
    /// As for [`Job::new`], until `memory` is called or dropped.
    unsafe fn begin<T>(
        &self,
        lane: &Lane,
        piece: Result<Placed, DeviceError>,
        memory: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Result<T, DeviceError>) + Send + 'static,
    ) {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return done(Err(error)),
        };
        let done = Arc::new(Mutex::new(Some(done)));
        let (waiting, tell, tell_loss) = (done.clone(), self.teller(), self.teller());
        let take = |done: &Mutex<Option<_>>| done.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = move |ended: Result<(), CudaError>| {
            let memory = memory();
            if let Some(done) = take(&done) {
                done(ended.map(|()| memory).map_err(tell));
            }
        };
        let give_up = move |error| {
            if let Some(done) = take(&waiting) {
                done(Err(tell_loss(error)));
            }
        };
        // SAFETY: as the caller says.
        lane.ask(unsafe { Job::new(piece, end, give_up) });
    }

    /// Makes errors of this device of CUDA's.
    fn teller(&self) -> impl FnOnce(CudaError) -> DeviceError + Send + 'static + use<> {
        let (fate, device) = (self.fate.clone(), name(&self.gpu));
        move |error| match fate.get() {
            Some(first) => DeviceError::Lost { device, reason: first.to_string() },
            None => DeviceError::Failed { device, reason: error.to_string() },
        }
    }

    fn lost(&self, error: &CudaError) -> DeviceError {
        DeviceError::Lost { device: name(&self.gpu), reason: error.to_string() }
    }

    fn failed(&self, reason: &str) -> DeviceError {
        DeviceError::Failed { device: name(&self.gpu), reason: reason.to_owned() }
    }

    /// Returns the address of a frame's first byte, if it is this GPU's.
    fn at(&self, (slab, at): (&GpuSlab, usize)) -> Result<u64, DeviceError> {
        if !Arc::ptr_eq(slab.gpu(), &self.gpu) {
            return Err(self.failed("a frame is another GPU's"));
        }
        Ok(slab.base() + at as u64)
    }

    /// Has a lane copy a piece, and waits until it has.
    ///
    /// # Safety
    /// As for [`Job::new`], for as long as the call lasts.
    unsafe fn wait_for(&self, lane: &Lane, piece: Piece, slabs: [u64; 2]) -> Result<(), DeviceError> {
        let (over, ended) = channel();
        // SAFETY: as the caller says; this returns when the job's end was called, or dropped, as a lane that ended has dropped it.
        lane.ask(unsafe {
            let end = move |ended| {
                let _ = over.send(ended);
            };
            // What is borrowed is the GPU's for as long as that may use it, however long that is.
            Job::new(Placed { piece, slabs }, end, |_| ())
        });
        match ended.recv() {
            Ok(ended) => ended.map_err(self.teller()),
            Err(_) => Err(self.failed("its thread has ended; why is in the log")),
        }
    }
}

impl Device for CudaDevice {
    type Space = GpuSlab;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: DeviceKind::Cuda, name: name(&self.gpu), memory_bytes: self.memory_bytes }
    }

    fn open_slab(&self, bytes: u64) -> Result<GpuSlab, DeviceError> {
        let refuse = |reason| DeviceError::OutOfMemory { device: name(&self.gpu), bytes, reason };
        let reserve = |given: u64| given.checked_add(bytes).filter(|sum| *sum <= self.memory_bytes);
        self.given.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).map_err(|given| {
            refuse(format!("{given} of the {} bytes that are meant for blocks are given", self.memory_bytes))
        })?;
        GpuSlab::new(&self.gpu, bytes, self.given.clone()).map_err(|error| match error.is_out_of_memory() {
            true => refuse(error.to_string()),
            false => self.failed(&error.to_string()),
        })
    }

    fn write(&self, from: &[u8], to: &mut WriteFrame<GpuSlab>) -> Result<(), DeviceError> {
        let there = self.at(to.span())?;
        DeviceError::unless_equal(from.len(), to.len())?;
        let piece = Piece { from: address(from), to: there, bytes: from.len() };
        // SAFETY: both are borrowed for as long as the call lasts, what is written alone.
        unsafe { self.wait_for(&self.up, piece, [HOST, base(to.span())]) }
    }

    fn read(&self, from: &ReadFrame<GpuSlab>, to: &mut [u8]) -> Result<(), DeviceError> {
        let there = self.at(from.span())?;
        DeviceError::unless_equal(from.len(), to.len())?;
        let piece = Piece { from: there, to: target(to), bytes: to.len() };
        // SAFETY: as above.
        unsafe { self.wait_for(&self.down, piece, [base(from.span()), HOST]) }
    }

    fn copy(&self, from: &ReadFrame<GpuSlab>, to: &mut WriteFrame<GpuSlab>) -> Result<(), DeviceError> {
        let (source, target) = (self.at(from.span())?, self.at(to.span())?);
        DeviceError::unless_equal(from.len(), to.len())?;
        let piece = Piece { from: source, to: target, bytes: to.len() };
        // SAFETY: as above.
        unsafe { self.wait_for(&self.within, piece, [base(from.span()), base(to.span())]) }
    }
}

fn name(gpu: &Gpu) -> String {
    let info = gpu.info();
    format!("GPU {} ({})", info.ordinal, info.name)
}

/// Returns where the memory begins that a frame is cut from.
fn base((slab, _): (&GpuSlab, usize)) -> u64 {
    slab.base()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

fn target(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr().expose_provenance() as u64
}
