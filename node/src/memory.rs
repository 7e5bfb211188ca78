//! A device's memory: the arenas of both tiers, taken once. It outlives its actor, so that one made after a panic finds
//! it there.

use crate::config::{DeviceConfig, DeviceMemory, NodeError};
use crate::frames::Fresh;
use crate::links::OwnGpu;
use kvhive_cache::{Tier, TierCapacity};
use kvhive_gpu::cuda::{Cuda, CudaDevice, CudaError, GpuSlab, Nvml, Patience, Trouble};
use kvhive_gpu::{
    Arena, ArenaError, ClassId, Device, DeviceError, DeviceKind, HostDevice, SizeClass, Space, WriteFrame,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use tokio::runtime::Handle;

/// As much is wiped at a time: a node that ends waits for no more, and requests have the memory to themselves between two times.
const WIPE_BYTES: usize = 256 << 20;

/// Frames of a GPU that are set aside for blocks of other nodes' slots, which pass them.
#[derive(Clone, Copy, Default)]
struct SetAside {
    class: usize,
    frame_bytes: u64,
    frames: u32,
}

/// Arenas of one device. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Memory {
    device: DeviceTier,
    host: Arena,
    passing: SetAside,
    pinned_bytes: u64,
    /// Somebody wipes it.
    is_wiped: Arc<Mutex<()>>,
    /// Blocks of ended eras are looked for in it.
    is_searched: Arc<AtomicBool>,
}

/// What the frames of the device tier are cut from.
#[derive(Clone)]
enum DeviceTier {
    Host(Arena),
    Gpu(Arc<CudaDevice>, Arena<GpuSlab>),
}

impl Memory {
    /// Takes the memory of device number `at`; also says why host memory stands in for a GPU's, where it was to if there is none.
    /// As many frames of a GPU as fit into `passing_bytes` are taken besides, and set aside. The host's part is such as other processes can be let look at, if it is to be and there is any.
    pub(crate) fn take(
        at: usize,
        config: &DeviceConfig,
        is_shared: bool,
        (patience, passing_bytes): (Patience, u64),
    ) -> Result<(Memory, Option<CudaError>), NodeError> {
        let failed = |source| NodeError::Memory { device: at, source };
        // The arenas are the budget: rounding frames up to pages may take a little more than was configured.
        let device = if is_shared { HostDevice::shared(u64::MAX) } else { HostDevice::new(u64::MAX) };
        let of_host = |bytes| arena(config, bytes, &device, None).map_err(failed);
        let (gpu, lacks) = open(config.memory).map_err(|source| NodeError::Gpu { device: at, source })?;
        let host = of_host(config.host_bytes)?;
        let Some(gpu) = gpu else {
            let device = DeviceTier::Host(of_host(config.device_bytes)?);
            return Ok((Memory::of(device, host), lacks));
        };
        let device =
            CudaDevice::with_patience(gpu, u64::MAX, patience).map_err(|error| failed(error.into()))?;
        let passing = passing(config, passing_bytes);
        let of_gpu = arena(config, config.device_bytes, &device, Some(passing)).map_err(failed)?;
        let device = Arc::new(device);
        watch(at, &device);
        tracing::info!(device = at, gpu = %device.info().name, bytes = of_gpu.total_bytes(), "the device tier is a GPU's memory");
        let device = DeviceTier::Gpu(device, of_gpu);
        Ok((Memory { passing, ..Memory::of(device, host) }, None))
    }

    fn of(device: DeviceTier, host: Arena) -> Memory {
        Memory {
            device,
            host,
            passing: SetAside::default(),
            pinned_bytes: 0,
            is_wiped: Arc::default(),
            is_searched: Arc::default(),
        }
    }

    /// Has the host's memory of device number `at` stay where it is: of a GPU by its driver, else, if `locks`, by as much as this process may.
    pub(crate) fn pin(&mut self, at: usize, locks: bool) {
        if let DeviceTier::Gpu(device, _) = &self.device {
            match self.host.register(device.gpu()) {
                Ok(()) => self.pinned_bytes += self.host.total_bytes(),
                Err(error) => {
                    let bytes = self.host.total_bytes();
                    tracing::warn!(device = at, bytes, %error, "the GPU's driver pins no host memory; what is copied is copied twice");
                }
            }
            return;
        }
        let DeviceTier::Host(device) = &self.device else { return };
        for tier in [device, &self.host].into_iter().filter(|_| locks) {
            match tier.lock() {
                Ok(()) => self.pinned_bytes += tier.total_bytes(),
                Err(error) => {
                    let bytes = tier.total_bytes();
                    tracing::warn!(device = at, bytes, %error, "memory stays unlocked; raise the limit (ulimit -l) to lock it");
                }
            }
        }
    }

    /// Returns how much of it is locked.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Says why the device tier is lost, if it is.
    pub(crate) fn loss(&self) -> Option<DeviceError> {
        match &self.device {
            DeviceTier::Host(_) => None,
            DeviceTier::Gpu(device, _) => device.loss(),
        }
    }

    /// Returns the GPU of its device tier, for processes that are lent its memory; none where it is the host's.
    pub(crate) fn own_gpu(&self) -> Option<OwnGpu> {
        let DeviceTier::Gpu(device, arena) = &self.device else { return None };
        let slab = arena.export().unwrap_or_else(|error| {
            tracing::warn!(gpu = %device.info().name, %error, "its memory cannot be lent: nothing goes by NCCL");
            None
        });
        Some(OwnGpu { ordinal: device.gpu().info().ordinal, slab_bytes: arena.total_bytes(), slab })
    }

    /// Returns the GPU of its device tier, if that is one's.
    pub(crate) fn gpu(&self) -> Option<Arc<CudaDevice>> {
        match &self.device {
            DeviceTier::Host(_) => None,
            DeviceTier::Gpu(device, _) => Some(device.clone()),
        }
    }

    /// Waits for copies to and from its GPU, if it has one, no longer than a GPU is waited for. Blocks the thread.
    pub(crate) fn settle(&self) {
        if let DeviceTier::Gpu(device, _) = &self.device {
            device.settle();
        }
    }

    /// Says whether its device tier is a GPU's.
    pub(crate) fn is_gpu(&self) -> bool {
        matches!(self.device, DeviceTier::Gpu(..))
    }

    pub(crate) fn take_frame(&self, tier: Tier, class: usize, bytes: u64) -> Option<Fresh> {
        let class = ClassId(class as u8);
        match (tier, &self.device) {
            (Tier::Device, DeviceTier::Host(arena)) => arena.take(class, bytes).map(Fresh::Host),
            (Tier::Device, DeviceTier::Gpu(device, arena)) => {
                arena.take(class, bytes).map(|frame| Fresh::gpu(device.clone(), frame))
            }
            (Tier::Host, _) => self.host.take(class, bytes).map(Fresh::Host),
            (Tier::Disk, _) => None,
        }
    }

    /// Returns how many frames of its GPU are set aside.
    pub(crate) fn passing_frames(&self) -> u32 {
        self.passing.frames
    }

    /// Takes one of those that are set aside, as long as not more than these are taken so.
    pub(crate) fn take_passing(&self, bytes: u64) -> Option<Fresh> {
        self.take_frame(Tier::Device, self.passing.class, bytes)
    }

    /// Calls stale what its frames hold: it is wiped when they are free.
    pub(crate) fn call_stale(&self) {
        self.host_arenas().iter().for_each(Arena::call_stale);
        if let DeviceTier::Gpu(_, arena) = &self.device {
            arena.call_stale();
        }
    }

    /// Returns the bytes of free frames that hold what is stale. What a GPU that is lost holds nobody reads, and nobody wipes.
    pub(crate) fn stale_bytes(&self) -> u64 {
        let of_gpu = match &self.device {
            DeviceTier::Gpu(device, arena) if device.loss().is_none() => arena.stale_bytes(),
            _ => 0,
        };
        of_gpu + self.host_arenas().iter().map(Arena::stale_bytes).sum::<u64>()
    }

    /// Hears whether blocks of ended eras are looked for in it.
    pub(crate) fn is_searched(&self, is_searched: bool) {
        self.is_searched.store(is_searched, Ordering::Relaxed);
    }

    /// Returns the bytes that may be those of ended eras: of free frames that hold what is stale, and while blocks of such eras are looked for, of
    /// all frames that are not free. A block that has been found and is still read by somebody is counted from when it is not any more.
    pub(crate) fn unwiped_bytes(&self) -> u64 {
        // First: what is found meanwhile is stale.
        let taken = if self.is_searched.load(Ordering::Relaxed) { self.used_bytes() } else { 0 };
        taken + self.stale_bytes()
    }

    fn used_bytes(&self) -> u64 {
        let of_gpu = match &self.device {
            DeviceTier::Gpu(device, arena) if device.loss().is_none() => arena.used_bytes(),
            _ => 0,
        };
        of_gpu + self.host_arenas().iter().map(Arena::used_bytes).sum::<u64>()
    }

    /// Has free frames that hold what is stale be overwritten, where that may take time, unless that is under way.
    pub(crate) fn wipe(&self, blocking: &Handle) {
        if self.stale_bytes() == 0 || self.is_wiped.try_lock().is_err() {
            return;
        }
        let memory = self.clone();
        blocking.spawn_blocking(move || {
            if let Ok(_alone) = memory.is_wiped.try_lock() {
                memory.wipe_now();
            }
        });
    }

    /// Wipes as much as is wiped at a time.
    fn wipe_now(&self) {
        let mut left = WIPE_BYTES;
        for arena in self.host_arenas() {
            while left > 0
                && let Some(mut frame) = arena.take_stale()
            {
                left = left.saturating_sub(frame.len());
                frame.bytes_mut().fill(0);
                frame.wiped();
            }
        }
        let DeviceTier::Gpu(device, arena) = &self.device else { return };
        while left > 0
            && device.loss().is_none()
            && let Some(frame) = arena.take_stale()
        {
            left = left.saturating_sub(frame.len());
            // What a GPU does not take now is tried again.
            if !wipe_on(device, frame) {
                return;
            }
        }
    }

    /// Returns its arenas in the host's memory.
    pub(crate) fn host_arenas(&self) -> Vec<Arena> {
        match &self.device {
            DeviceTier::Host(device) => vec![device.clone(), self.host.clone()],
            DeviceTier::Gpu(..) => vec![self.host.clone()],
        }
    }

    /// Returns a tier's frames per class.
    pub(crate) fn capacity(&self, tier: Tier) -> TierCapacity {
        let classes = match (tier, &self.device) {
            (Tier::Device, DeviceTier::Host(arena)) => arena.classes(),
            (Tier::Device, DeviceTier::Gpu(_, arena)) => arena.classes(),
            (Tier::Host, _) => self.host.classes(),
            (Tier::Disk, _) => Vec::new(),
        };
        let mut frames: Vec<u32> = classes.iter().map(|class| class.frames).collect();
        if tier == Tier::Device
            && let Some(of_class) = frames.get_mut(self.passing.class)
        {
            *of_class -= self.passing.frames;
        }
        TierCapacity { frames }
    }

    /// Returns the bytes of one tier's arena.
    pub(crate) fn tier_bytes(&self, tier: Tier) -> u64 {
        match (tier, &self.device) {
            (Tier::Device, DeviceTier::Host(arena)) => arena.total_bytes(),
            (Tier::Device, DeviceTier::Gpu(_, arena)) => {
                let SetAside { frame_bytes, frames, .. } = self.passing;
                arena.total_bytes().saturating_sub(frame_bytes * u64::from(frames))
            }
            (Tier::Host, _) => self.host.total_bytes(),
            (Tier::Disk, _) => 0,
        }
    }

    /// Returns how much of the host's memory its arenas take.
    pub(crate) fn host_bytes(&self) -> u64 {
        let device = if self.is_gpu() { 0 } else { self.tier_bytes(Tier::Device) };
        device + self.host.total_bytes()
    }

    /// Returns what kind of device this is.
    pub(crate) fn kind(&self) -> &'static str {
        if self.is_gpu() { DeviceKind::Cuda.as_str() } else { DeviceKind::Host.as_str() }
    }
}

/// Writes zeros to a frame of a GPU's; says whether they are there.
fn wipe_on(device: &CudaDevice, frame: WriteFrame<GpuSlab>) -> bool {
    let (tell, told) = channel();
    device.upload(vec![0; frame.len()], frame, move |ended| {
        // Whoever waits may do so no longer.
        let _ = tell.send(ended.map(WriteFrame::wiped).is_ok());
    });
    told.recv_timeout(device.patience().copy).unwrap_or(false)
}

/// Has what befalls a GPU be heard, where the driver tells it.
fn watch(at: usize, device: &CudaDevice) {
    let name = device.info().name;
    let tell = move |trouble: &Trouble| {
        if trouble.is_fatal() {
            tracing::error!(device = at, gpu = %name, %trouble, "what the GPU holds is lost");
        } else {
            tracing::warn!(device = at, gpu = %name, %trouble, "the GPU's driver notes an error");
        }
    };
    if let Err(error) = Nvml::find().and_then(|nvml| device.watch(&nvml, tell)) {
        tracing::info!(device = at, %error, "the GPU is not watched: that it has died shows when it is used");
    }
}

/// Returns the share of the last moment in which GPUs did something, from 0 to 1: the mean of those of which NVML tells it; none where it tells
/// it of none.
pub(crate) fn busy(gpus: &[Arc<CudaDevice>]) -> Option<f64> {
    let told: Vec<u32> = gpus.iter().filter_map(|gpu| gpu.busy_percent()).collect();
    (!told.is_empty()).then(|| f64::from(told.iter().sum::<u32>()) / told.len() as f64 / 100.0)
}

/// Says of which class, of what size, and how many frames fit into so many bytes that any block may pass: of the largest.
fn passing(config: &DeviceConfig, bytes: u64) -> SetAside {
    let largest = config.classes.iter().enumerate().max_by_key(|(_, class)| class.frame_bytes);
    largest.map_or(SetAside::default(), |(at, class)| {
        let frames = u32::try_from(bytes / class.frame_bytes.max(1)).unwrap_or(u32::MAX);
        SetAside { class: at, frame_bytes: class.frame_bytes, frames }
    })
}

/// Cuts a tier of so many bytes into frames as the device is configured, and `more` besides.
fn arena<S: Space>(
    config: &DeviceConfig,
    bytes: u64,
    device: &impl Device<Space = S>,
    more: Option<SetAside>,
) -> Result<Arena<S>, ArenaError> {
    let sizes = config.classes.iter().zip(config.frames(bytes));
    let mut sizes: Vec<SizeClass> =
        sizes.map(|(class, frames)| SizeClass { frame_bytes: class.frame_bytes, frames }).collect();
    if let Some(SetAside { class, frames, .. }) = more
        && let Some(class) = sizes.get_mut(class)
    {
        class.frames = class.frames.saturating_add(frames);
    }
    Arena::new(device, &sizes)
}

/// Opens the GPU whose memory a device tier is to be; none where it is to be the host's, or the GPU is not there and need not be.
fn open(memory: DeviceMemory) -> Result<(Option<Arc<kvhive_gpu::cuda::Gpu>>, Option<CudaError>), CudaError> {
    let gpu = |ordinal| Cuda::find().and_then(|cuda| cuda.open(ordinal));
    match memory {
        DeviceMemory::Host => Ok((None, None)),
        DeviceMemory::Cuda(ordinal) => gpu(ordinal).map(|gpu| (Some(gpu), None)),
        DeviceMemory::Auto(ordinal) => match gpu(ordinal) {
            Ok(gpu) => Ok((Some(gpu), None)),
            Err(error) if error.is_absence() => Ok((None, Some(error))),
            Err(error) => Err(error),
        },
    }
}

#[cfg(test)]
impl Memory {
    /// Returns the free frames of a tier, over all classes.
    pub(crate) fn free_frames(&self, tier: Tier) -> u32 {
        let classes = 0..self.capacity(tier).frames.len();
        let free = |class: usize| match (tier, &self.device) {
            (Tier::Device, DeviceTier::Host(arena)) => arena.free_frames(ClassId(class as u8)),
            (Tier::Device, DeviceTier::Gpu(_, arena)) => arena.free_frames(ClassId(class as u8)),
            _ => self.host.free_frames(ClassId(class as u8)),
        };
        let set_aside = if tier == Tier::Device { self.passing.frames } else { 0 };
        classes.map(free).sum::<u32>().saturating_sub(set_aside)
    }
}
