//! Two GPUs' slabs, and two workers that are a pair: each is a process that is told what a node tells its own.

use super::LARGEST;
use anyhow::{Context, Result, bail, ensure};
use kvhive_gpu::cuda::{CudaDevice, Gpu, GpuSlab};
use kvhive_gpu::worker::{Answer, Command, Extent, Heard, Packing, PairId, Rank, Setup, TransferId, Worker};
use kvhive_gpu::{Arena, ClassId, Device, SizeClass, WriteFrame};
use kvhive_node::NcclConfig;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A transfer, a joining and a closing may each take so long.
const WITHIN: Duration = Duration::from_secs(20);
/// Nobody is told so late of what does not work.
const WAIT: Duration = Duration::from_secs(90);
/// After so long the GPU waits for the other end of a transfer.
const STUCK: Duration = Duration::from_millis(20);

/// Where a pair's ends are.
pub(super) struct Place {
    memory: [Memory; 2],
}

/// A GPU's slab, which is one frame.
struct Memory {
    device: CudaDevice,
    arena: Arena<GpuSlab>,
}

impl Place {
    /// Takes a slab of so many bytes of each of two GPUs, which may be the same.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn new(gpus: [Arc<Gpu>; 2], bytes: usize) -> Result<Place> {
        let memory = |gpu: &Arc<Gpu>| -> Result<Memory> {
            let device = CudaDevice::new(gpu.clone(), bytes as u64)?;
            let arena = Arena::new(&device, &[SizeClass { frame_bytes: bytes as u64, frames: 1 }])?;
            Ok(Memory { device, arena })
        };
        Ok(Place { memory: [memory(&gpus[0])?, memory(&gpus[1])?] })
    }

    /// Checks that both slabs hold what is written to them.
    ///
    /// # Errors
    /// When one does not.
    pub(super) fn is_exact(&self, bytes: usize) -> Result<()> {
        for memory in &self.memory {
            let written = varied(bytes);
            memory.holds(&written)?;
            ensure!(memory.told(bytes)? == written, "what came back from the GPU is not what went there");
        }
        Ok(())
    }

    fn is_one_gpu(&self) -> bool {
        let [first, second] = self.memory.each_ref().map(|memory| memory.device.gpu().info().ordinal);
        first == second
    }

    /// Returns how much memory of its GPUs nobody has.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let [first, second] = self.memory.each_ref().map(|memory| memory.device.gpu().free_bytes());
        Ok(first? + if self.is_one_gpu() { 0 } else { second? })
    }
}

impl fmt::Display for Place {
    /// Says which GPUs, and how NCCL is to go between them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.memory.each_ref().map(|memory| memory.device.gpu().info());
        if self.is_one_gpu() {
            write!(f, "{first}; both ends on it, each a host of its own to NCCL, so by its sockets over lo")
        } else {
            write!(f, "{first}; {second}; by the way that NCCL chooses")
        }
    }
}

impl Memory {
    fn frame(&self, bytes: usize) -> Result<WriteFrame<GpuSlab>> {
        self.arena.take(ClassId(0), bytes as u64).context("the slab is in use")
    }

    fn holds(&self, bytes: &[u8]) -> Result<()> {
        let mut frame = self.frame(bytes.len())?;
        Ok(self.device.write(bytes, &mut frame)?)
    }

    fn told(&self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        // What lies there is as it was: a GPU's frames are not wiped.
        self.device.read(&self.frame(count)?.seal(), &mut bytes)?;
        Ok(bytes)
    }
}

/// Two workers, which have a pair from when it is set up until it is closed or aborted.
pub(super) struct Pair<'a> {
    place: &'a Place,
    ends: [End; 2],
    nccl: String,
    /// The last pair, and the last transfer.
    pair: PairId,
    transfer: u64,
}

/// A worker, and what is heard of it.
struct End {
    worker: Worker,
    heard: Receiver<Heard>,
}

impl<'a> Pair<'a> {
    /// Starts both workers, and waits until they have NCCL.
    ///
    /// # Errors
    /// What is missing, and where it is looked for.
    pub(super) fn start(place: &'a Place, config: &NcclConfig) -> Result<Pair<'a>> {
        let ends = [End::start(place, 0, config)?, End::start(place, 1, config)?];
        let mut nccl = String::new();
        for end in &ends {
            nccl = end.hear(|answer| match answer {
                Answer::Started { nccl } => Some(nccl.clone()),
                _ => None,
            })?;
        }
        Ok(Pair { place, ends, nccl, pair: PairId(0), transfer: 0 })
    }

    /// Returns the version of NCCL.
    pub(super) fn nccl(&self) -> &str {
        &self.nccl
    }

    /// Makes a pair, and returns how long that took.
    ///
    /// # Errors
    /// When NCCL fails.
    pub(super) fn set_up(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.pair.0 += 1;
        let pair = self.pair;
        self.ends[0].tell(&Command::MakeId { pair })?;
        let id = self.ends[0].hear(|answer| match answer {
            Answer::IdMade { id, .. } => Some(*id),
            _ => None,
        })?;
        for (end, at) in self.ends.iter().zip(0..) {
            end.tell(&Command::Join { pair, id, rank: Rank { at, of: 2 }, within: WITHIN })?;
        }
        self.both(&Answer::Ready { pair })?;
        Ok(begun.elapsed())
    }

    /// Has so many bytes go from the first to the second, and returns how long that took.
    ///
    /// # Errors
    /// When NCCL fails.
    pub(super) fn send(&mut self, bytes: usize) -> Result<Duration> {
        let frames = [self.place.memory[0].frame(bytes)?, self.place.memory[1].frame(bytes)?];
        let extents =
            frames.each_ref().map(|frame| vec![Extent { at: frame.offset() as u64, bytes: bytes as u64 }]);
        self.transfer += 1;
        let (pair, transfer, packing) = (self.pair, TransferId(self.transfer), Packing::Together);
        let [from, to] = extents;
        let begun = Instant::now();
        self.ends[1].tell(&Command::Receive {
            pair,
            transfer,
            from: 0,
            within: WITHIN,
            packing,
            extents: to,
        })?;
        self.ends[0].tell(&Command::Send {
            pair,
            transfer,
            to: 1,
            within: WITHIN,
            packing,
            extents: from,
        })?;
        for end in &self.ends {
            end.hear(|answer| matches!(answer, Answer::Done { .. }).then_some(()))?;
        }
        Ok(begun.elapsed())
    }

    /// Checks that so many bytes come as they went.
    ///
    /// # Errors
    /// When they do not, or NCCL fails.
    pub(super) fn is_exact(&mut self, bytes: usize) -> Result<()> {
        let sent = varied(bytes);
        self.place.memory[0].holds(&sent)?;
        self.place.memory[1].holds(&vec![0; bytes])?;
        self.send(bytes)?;
        ensure!(self.place.memory[1].told(bytes)? == sent, "of {bytes} bytes some came by NCCL as others");
        Ok(())
    }

    /// Closes the pair, by which nothing goes, in good order; returns how long that took.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(super) fn close(&mut self) -> Result<Duration> {
        let (begun, pair) = (Instant::now(), self.pair);
        for end in &self.ends {
            end.tell(&Command::Close { pair, within: WITHIN })?;
        }
        self.both(&Answer::Closed { pair })?;
        Ok(begun.elapsed())
    }

    /// Has the first end send what the second never receives, aborts the pair at both, and returns how long that took at the first.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(super) fn abort(&mut self) -> Result<Duration> {
        // What is small is in NCCL's buffers, and over for its sender, before anybody receives it.
        let frame = self.place.memory[0].frame(LARGEST)?;
        let extents = vec![Extent { at: frame.offset() as u64, bytes: frame.len() as u64 }];
        self.transfer += 1;
        let (pair, transfer, packing) = (self.pair, TransferId(self.transfer), Packing::Together);
        self.ends[0].tell(&Command::Send { pair, transfer, to: 1, within: WITHIN, packing, extents })?;
        std::thread::sleep(STUCK);
        let begun = Instant::now();
        for end in &self.ends {
            end.tell(&Command::Abort { pair })?;
        }
        let [first, second] = &self.ends;
        let failed = first.heard()?;
        ensure!(matches!(failed, Answer::Failed { transfer: Some(_), .. }), "{failed:?} to an abort");
        first.hear(|answer| (*answer == Answer::Closed { pair }).then_some(()))?;
        let took = begun.elapsed();
        second.hear(|answer| (*answer == Answer::Closed { pair }).then_some(()))?;
        Ok(took)
    }

    /// Has both workers end, and waits until they have.
    ///
    /// # Errors
    /// When one of them has failed.
    pub(super) fn end(self) -> Result<()> {
        for end in &self.ends {
            end.tell(&Command::End)?;
        }
        self.ends.iter().try_for_each(End::has_ended)
    }

    fn both(&self, wanted: &Answer) -> Result<()> {
        self.ends.iter().try_for_each(|end| end.hear(|answer| (answer == wanted).then_some(())))
    }
}

impl End {
    fn start(place: &Place, at: usize, config: &NcclConfig) -> Result<End> {
        let Memory { device, arena } = &place.memory[at];
        let lent = arena.export()?.with_context(|| {
            format!(
                "{}: its memory cannot be lent to another process, and no pair is made there",
                device.gpu().info()
            )
        })?;
        let setup = Setup {
            gpu: device.gpu().info().ordinal,
            slab_bytes: arena.total_bytes(),
            watchdog: config.watchdog,
            ctas: (1, config.max_ctas),
            buffer_bytes: Some(config.buffer_bytes),
            ..Setup::default()
        };
        let mut program = std::process::Command::new(&config.program);
        program.args(&config.arguments);
        if place.is_one_gpu() {
            // NCCL has one rank of a host on each GPU. Told that they are on two hosts it goes by sockets.
            program.env("NCCL_HOSTID", format!("kvhive-bench-{at}"));
            if std::env::var_os("NCCL_SOCKET_IFNAME").is_none() {
                program.env("NCCL_SOCKET_IFNAME", "lo");
            }
        }
        let (tell, heard) = channel();
        let worker = Worker::start(program, &setup, lent, move |heard| drop(tell.send(heard)))
            .context("a GPU's worker cannot be started")?;
        Ok(End { worker, heard })
    }

    fn tell(&self, command: &Command) -> Result<()> {
        Ok(self.worker.tell(command)?)
    }

    /// Returns its next answer.
    fn heard(&self) -> Result<Answer> {
        loop {
            match self.heard.recv_timeout(WAIT) {
                Ok(Heard::Answer(Answer::Unfit { said, .. })) => bail!(
                    "no pair can be made here: {said}. Where it is NCCL that is missing: install 2.19.3 or newer (`pip install nvidia-nccl-cu13` has it), and \
                     say where it lies by KVHIVE_NCCL=.../libnccl.so.2"
                ),
                Ok(Heard::Answer(answer)) => return Ok(answer),
                Ok(Heard::Gone) => {}
                Ok(Heard::Ended(status)) => bail!("a GPU's worker has ended: {status}"),
                Err(_) => bail!("a GPU's worker has not answered for {} s", WAIT.as_secs()),
            }
        }
    }

    /// Takes its next answer, which is to be one that `of` knows.
    fn hear<T>(&self, of: impl FnOnce(&Answer) -> Option<T>) -> Result<T> {
        let answer = self.heard()?;
        match (of(&answer), answer) {
            (Some(known), _) => Ok(known),
            (None, Answer::Failed { said, .. }) => bail!("the pair has failed: {said}"),
            (None, answer) => bail!("a GPU's worker answered {answer:?}"),
        }
    }

    fn has_ended(&self) -> Result<()> {
        loop {
            match self.heard.recv_timeout(WAIT) {
                Ok(Heard::Ended(status)) if status.success() => return Ok(()),
                Ok(Heard::Ended(status)) => bail!("a GPU's worker has ended: {status}"),
                Ok(Heard::Gone | Heard::Answer(_)) => {}
                Err(_) => bail!("a GPU's worker has not ended for {} s", WAIT.as_secs()),
            }
        }
    }
}

fn varied(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    SmallRng::seed_from_u64(count as u64).fill_bytes(&mut bytes);
    bytes
}
