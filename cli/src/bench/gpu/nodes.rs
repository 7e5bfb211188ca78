//! What a node has a GPU do: blocks between its tiers by lanes, on and off a stage that an engine lends, and from another GPU. The host
//! takes the time, from when blocks are asked for until all are there, as whoever waits for them does.

use super::{Bench, Measured, Way};
use crate::bench::Row;
use anyhow::{Context, Result, ensure};
use kvhive_config::Bytes;
use kvhive_gpu::cuda::{Cuda, CudaDevice, Ferry, GpuSlab, Stage};
use kvhive_gpu::{Arena, ClassId, Device, DeviceError, HostDevice, ReadFrame, SizeClass, WriteFrame};
use kvhive_protocol::block::{digest, digest_of_pieces};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

/// A block, and how many are asked for at once: as many as a client's stage has room for.
const BLOCK: usize = 2 << 20;
const BLOCKS: usize = 16;
/// The smaller blocks that one GPU takes from another.
const SMALL: usize = 64 << 10;
/// Requests of one measurement, one after the other; one more before it.
const REQUESTS: usize = 5;
/// What a node takes of a GPU here.
const MEMORY: u64 = (BLOCK * BLOCKS) as u64;

/// Blocks that all hold something else.
struct Blocks(Vec<Vec<u8>>);

impl Blocks {
    fn new(bytes: usize, count: usize) -> Blocks {
        let mut random = SmallRng::seed_from_u64(7);
        let block = |_| {
            let mut block = vec![0; bytes];
            random.fill_bytes(&mut block);
            block
        };
        Blocks((0..count).map(block).collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

/// A GPU as a node has it, with room for the blocks.
struct Tier {
    device: CudaDevice,
    arena: Arena<GpuSlab>,
}

fn classes(bytes: usize, count: usize) -> [SizeClass; 1] {
    [SizeClass { frame_bytes: bytes as u64, frames: count as u32 }]
}

impl Tier {
    fn new(cuda: &Arc<Cuda>, gpu: u32, bytes: usize) -> Result<Tier> {
        let device = CudaDevice::new(cuda.open(gpu)?, MEMORY)?;
        let arena = Arena::new(&device, &classes(bytes, MEMORY as usize / bytes))?;
        Ok(Tier { device, arena })
    }

    fn empty(&self, bytes: usize) -> Result<WriteFrame<GpuSlab>> {
        self.arena.take(ClassId(0), bytes as u64).context("the device tier has too few frames")
    }

    fn filled(&self, blocks: &Blocks) -> Result<Vec<ReadFrame<GpuSlab>>> {
        let filled = |block: &Vec<u8>| {
            let mut frame = self.empty(block.len())?;
            self.device.write(block, &mut frame)?;
            Ok(frame.seal())
        };
        blocks.0.iter().map(filled).collect()
    }

    fn are(&self, frames: &[ReadFrame<GpuSlab>], blocks: &Blocks, what: &str) -> Result<()> {
        for (frame, block) in frames.iter().zip(&blocks.0) {
            let mut back = vec![0; block.len()];
            self.device.read(frame, &mut back)?;
            ensure!(back == *block, "{what}: a block is not what it was");
        }
        Ok(())
    }
}

/// Measures all of it.
///
/// # Errors
/// When a block or a digest comes out as another, or a GPU fails.
pub(super) fn run(runs: u32, cuda: &Arc<Cuda>, bench: &mut Bench, measured: &mut Measured) -> Result<()> {
    let ordinal = bench.gpu.info().ordinal;
    lanes(runs, &Tier::new(cuda, ordinal, BLOCK)?, bench, measured)?;
    stages(runs, &Tier::new(cuda, ordinal, BLOCK)?, bench, measured)?;
    for from in (0..cuda.count()?).filter(|other| *other != ordinal) {
        if cuda.reaches(ordinal, from)? {
            return peers(runs, cuda, from, bench, measured);
        }
    }
    Ok(())
}

/// Returns how fast a request is, in GB/s of its blocks.
fn speed(blocks: &Blocks, mut request: impl FnMut() -> Result<()>) -> Result<f64> {
    request()?;
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        request()?;
    }
    Ok((blocks.bytes() * REQUESTS) as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

/// Asks for many copies and waits for all; returns what comes of them, in their order.
fn all<T: Send + 'static>(
    count: usize,
    mut ask: impl FnMut(usize, Box<dyn FnOnce(Result<T, DeviceError>) + Send>) -> Result<()>,
) -> Result<Vec<T>> {
    let (tell, told) = channel();
    for at in 0..count {
        let tell = tell.clone();
        // Whoever asked may have failed meanwhile.
        ask(at, Box::new(move |ended| drop(tell.send((at, ended)))))?;
    }
    drop(tell);
    let mut ended: Vec<(usize, T)> =
        told.iter().map(|(at, ended)| ended.map(|ended| (at, ended))).collect::<Result<_, _>>()?;
    ensure!(ended.len() == count, "a copy was given up");
    ended.sort_by_key(|(at, _)| *at);
    Ok(ended.into_iter().map(|(_, ended)| ended).collect())
}

/// Blocks from pinned host memory to the GPU and back, all of a request at once.
fn lanes(runs: u32, tier: &Tier, bench: &mut Bench, measured: &mut Measured) -> Result<()> {
    let blocks = Blocks::new(BLOCK, BLOCKS);
    let host = Arena::new(&HostDevice::new(2 * MEMORY), &classes(BLOCK, 2 * BLOCKS))?;
    host.register(tier.device.gpu())?;
    let here = || host.take(ClassId(0), BLOCK as u64).context("the host tier has too few frames");
    let filled = |block: &Vec<u8>| {
        let mut frame = here()?;
        frame.bytes_mut().copy_from_slice(block);
        Ok(frame.seal())
    };
    let stored = blocks.0.iter().map(filled).collect::<Result<Vec<ReadFrame>>>()?;
    let up = || {
        all(BLOCKS, |at, done| {
            tier.device.upload(stored[at].clone(), tier.empty(BLOCK)?, done);
            Ok(())
        })
    };
    let there: Vec<_> = up()?.into_iter().map(WriteFrame::seal).collect();
    tier.are(&there, &blocks, "to the GPU")?;
    let down = || {
        all(BLOCKS, |at, done| {
            tier.device.download(there[at].clone(), here()?, done);
            Ok(())
        })
    };
    let came = down()?;
    ensure!(
        came.iter().zip(&blocks.0).all(|(frame, block)| frame.bytes() == *block),
        "a block is not what it was"
    );
    drop(came);
    let (mut downs, mut ceilings) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ceilings.push(bench.speed(Way::ToHost, &[bench.whole()])?);
        downs.push(speed(&blocks, || down().map(drop))?);
    }
    // Its frames are those that the way up needs.
    drop(there);
    let (mut ups, mut up_ceilings) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        up_ceilings.push(bench.speed(Way::ToGpu, &[bench.whole()])?);
        ups.push(speed(&blocks, || up().map(drop))?);
    }
    let one = format!("one copy of {}", bench.size());
    for (way, ours, baseline) in [("up", ups, up_ceilings), ("down", downs, ceilings)] {
        let row =
            Row::of_runs(&format!("lane-{way}-{}", Bytes(BLOCK as u64)), "GB/s", &ours, &baseline, &one);
        measured.add(&format!("lane-{way}"), BLOCK, row.ours, row);
    }
    Ok(())
}

/// Blocks from a stage to frames with their digests, and from frames to a stage after theirs were taken: as a node has them come and go.
fn stages(runs: u32, tier: &Tier, bench: &mut Bench, measured: &mut Measured) -> Result<()> {
    let blocks = Blocks::new(BLOCK, BLOCKS);
    let stage = Stage::new(tier.device.gpu(), blocks.bytes())?;
    let ferry = Ferry::new(&tier.device, stage.loan())?;
    let at = |number: usize| (number * BLOCK) as u64;
    for (number, block) in blocks.0.iter().enumerate() {
        stage.write(at(number), block)?;
    }
    let mut frames = (0..BLOCKS).map(|_| tier.empty(BLOCK)).collect::<Result<Vec<_>>>()?;
    let mut taken = || -> Result<Vec<Vec<u64>>> {
        let mut all: Vec<_> = frames.iter_mut().zip((0..).map(at)).collect();
        Ok(ferry.take(&mut all)?)
    };
    let digests = taken()?;
    for (pieces, block) in digests.iter().zip(&blocks.0) {
        ensure!(
            digest_of_pieces(pieces, BLOCK as u64) == digest(block),
            "a digest of a stage is not the host's"
        );
    }
    let (mut stores, mut fetches, mut baselines) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        baselines.push(by_the_host(bench)?);
        stores.push(speed(&blocks, || taken().map(drop))?);
    }
    let sealed: Vec<_> = frames.into_iter().map(WriteFrame::seal).collect();
    tier.are(&sealed, &blocks, "from a stage")?;
    let put = || -> Result<()> {
        ferry.digests(&sealed.iter().collect::<Vec<_>>())?;
        // Last to first: the stage has other bytes then than it had.
        let all: Vec<_> = sealed.iter().rev().zip((0..).map(at)).collect();
        Ok(ferry.put(&all)?)
    };
    put()?;
    for (number, block) in blocks.0.iter().rev().enumerate() {
        let mut back = vec![0; BLOCK];
        stage.read(at(number), &mut back)?;
        ensure!(back == *block, "to a stage: a block is not what it was");
    }
    for _ in 0..runs {
        fetches.push(speed(&blocks, &put)?);
    }
    for (name, ours) in [("stage-store", stores), ("stage-fetch", fetches)] {
        let case = format!("{name}-{}", Bytes(BLOCK as u64));
        let row = Row::of_runs(&case, "GB/s", &ours, &baselines, "one copy to the host and one from there");
        measured.add(name, BLOCK, row.ours * Way::Within.memory_moves(), row);
    }
    Ok(())
}

/// Returns how fast bytes go from one place on a GPU to another by the host's memory, at the best: one large copy each way.
fn by_the_host(bench: &mut Bench) -> Result<f64> {
    let down = bench.speed(Way::ToHost, &[bench.whole()])?;
    let up = bench.speed(Way::ToGpu, &[bench.whole()])?;
    Ok(1.0 / (1.0 / down + 1.0 / up))
}

/// Blocks of another GPU to this one, all of a request at once.
fn peers(runs: u32, cuda: &Arc<Cuda>, from: u32, bench: &mut Bench, measured: &mut Measured) -> Result<()> {
    for bytes in [SMALL, BLOCK] {
        let blocks = Blocks::new(bytes, BLOCKS);
        let (theirs, own) =
            (Tier::new(cuda, from, bytes)?, Tier::new(cuda, bench.gpu.info().ordinal, bytes)?);
        ensure!(own.device.reaches(&theirs.arena)?, "GPU {from} is not reached, though its driver says so");
        // No two side by side at both ends, as a tier's frames come to lie.
        let mut sources = theirs.filled(&blocks)?;
        sources.reverse();
        let take = || {
            all(BLOCKS, |at, done| {
                own.device.take(sources[at].clone(), own.empty(bytes)?, done);
                Ok(())
            })
        };
        let mut taken: Vec<_> = take()?.into_iter().map(WriteFrame::seal).collect();
        taken.reverse();
        own.are(&taken, &blocks, "from another GPU")?;
        drop(taken);
        let (mut ours, mut baseline) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            baseline.push(bench.speed(Way::Within, &[bench.whole()])?);
            ours.push(speed(&blocks, || take().map(drop))?);
        }
        let one = format!("one copy of {} within this GPU", bench.size());
        let row = Row::of_runs(&format!("peer-{}", Bytes(bytes as u64)), "GB/s", &ours, &baseline, &one);
        measured.add("peer", bytes, row.ours, row);
    }
    Ok(())
}
