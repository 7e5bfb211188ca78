//! `kvhive bench gpu`: a GPU's copies by the size of their pieces, what its kernels make of an engine's pages, and what nodes have it do,
//! against one large copy in the same run.

mod blocks;
pub(super) mod nccl;
mod nodes;
mod plot;

use super::{Bar, Row};
use anyhow::{Context, Result, bail, ensure};
use kvhive_config::Bytes;
use kvhive_gpu::cuda::{Between, Copier, Cuda, CudaError, Gpu, GpuMemory, Part, Pinned, Timer};
use plot::{Ceiling, Point};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The least that is copied: one of the largest pieces.
const LEAST: usize = 2 << 20;
/// Copies of one measurement; one more before it, for the clocks to rise.
const TIMES: u32 = 3;
/// Sizes of pieces: from a page of one layer to a block of a large model.
const PIECES: [(usize, &str); 7] = [
    (4 << 10, "4KiB"),
    (16 << 10, "16KiB"),
    (28 << 10, "28KiB"),
    (64 << 10, "64KiB"),
    (256 << 10, "256KiB"),
    (1 << 20, "1MiB"),
    (2 << 20, "2MiB"),
];

/// Measures one GPU by copies of so many bytes each, and draws what was measured where a file is named.
///
/// # Errors
/// When there is none of this number, it has no room, bytes came back as others, or nothing can be drawn there.
pub(super) fn run(runs: u32, ordinal: u32, bytes: Bytes, plot: Option<&Path>) -> Result<Vec<Row>> {
    let whole =
        usize::try_from(bytes.0).ok().filter(|bytes| *bytes >= LEAST && *bytes <= isize::MAX as usize);
    let Some(whole) = whole else {
        bail!(
            "--bytes is {bytes}, and at least {} is needed, and no more than there is",
            Bytes(LEAST as u64)
        );
    };
    // Made first: measuring takes minutes.
    let create = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
    let picture = plot.map(create).transpose()?;
    let cuda = Cuda::find().context("a GPU is needed")?;
    let gpu = cuda.open(ordinal)?;
    eprintln!("{}, CUDA {}", gpu.info(), cuda.version());
    // Whole pieces, of every size but the one that is no power of two.
    let mut bench = Bench::new(&gpu, whole / LEAST * LEAST)?;
    bench.is_exact()?;
    let mut measured = Measured::default();
    for way in [Way::ToGpu, Way::ToHost, Way::Within] {
        let mut all_baselines = Vec::new();
        for (piece, size) in PIECES {
            let parts = scattered(bench.bytes, piece);
            let (mut ours, mut baseline) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                baseline.push(bench.speed(way, &[bench.whole()])?);
                ours.push(bench.speed(way, &parts)?);
            }
            let row = Row::of_runs(
                &format!("{}-{size}", way.name()),
                "GB/s",
                &ours,
                &baseline,
                &format!("one copy of {}", bench.size()),
            );
            let row = match way.bar(piece) {
                Some(bar) => row.with_bar(bar),
                None => row,
            };
            measured.add(way.name(), piece, row.ours * way.memory_moves(), row);
            all_baselines.extend(baseline);
        }
        let gbps = super::quantile(&all_baselines, 0.5) * way.memory_moves();
        measured.ceilings.push(Ceiling { name: format!("one copy, {}", way.name()), gbps });
    }
    blocks::run(runs, &mut bench, &mut measured)?;
    nodes::run(runs, &cuda, &mut bench, &mut measured)?;
    if let Some(mut file) = picture {
        let svg = plot::draw(&gpu.info().name, &measured.ceilings, &measured.points);
        file.write_all(svg.as_bytes()).context("cannot write the picture")?;
    }
    Ok(measured.rows)
}

/// What was measured: as rows, and as a picture.
#[derive(Default)]
struct Measured {
    rows: Vec<Row>,
    points: Vec<Point>,
    ceilings: Vec<Ceiling>,
}

impl Measured {
    /// Takes a row and its point: so many GB/s are read and written in the GPU's memory, or go over its link.
    fn add(&mut self, line: &str, piece: usize, gbps: f64, row: Row) {
        let share = format!("{:.2} of {}", row.ratio, row.baseline_name);
        self.points.push(Point { line: line.to_owned(), piece, gbps, share });
        self.rows.push(row);
    }
}

/// Cuts bytes into pieces of which no two follow each other at both ends, as pages of an engine's do.
fn scattered(bytes: usize, piece: usize) -> Vec<Part> {
    let count = bytes / piece;
    (0..count).map(|at| Part { from: at * piece, to: place_of(at, count) * piece, bytes: piece }).collect()
}

/// Returns another place for each of so many.
fn place_of(at: usize, count: usize) -> usize {
    // Odd, and no factor of it is one of the count, so that every place is met once.
    let mut step = (count * 5 / 8) | 1;
    while gcd(step, count) != 1 {
        step += 2;
    }
    at * step % count
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[derive(Clone, Copy)]
enum Way {
    ToGpu,
    ToHost,
    Within,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::ToGpu => "host-to-gpu",
            Way::ToHost => "gpu-to-host",
            Way::Within => "gpu-to-gpu",
        }
    }

    /// Says what the speed of pieces is to be, of one large copy: of those of a block, and that there is no cliff below.
    fn bar(self, piece: usize) -> Option<Bar> {
        match self {
            Way::Within => (piece >= 64 << 10).then_some(Bar::AtLeast(0.9)),
            Way::ToGpu | Way::ToHost if piece >= 1 << 20 => Some(Bar::AtLeast(0.9)),
            Way::ToGpu | Way::ToHost => (piece < 64 << 10).then_some(Bar::AtLeast(0.6)),
        }
    }

    /// Returns how often a byte passes what limits it: within the GPU it is read and written by the same memory.
    fn memory_moves(self) -> f64 {
        match self {
            Way::ToGpu | Way::ToHost => 1.0,
            Way::Within => 2.0,
        }
    }
}

struct Bench {
    gpu: Arc<Gpu>,
    bytes: usize,
    copier: Copier,
    timer: Timer,
    here: Pinned,
    there: GpuMemory,
    other: GpuMemory,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Bench, CudaError> {
        Ok(Bench {
            gpu: gpu.clone(),
            bytes,
            copier: Copier::new(gpu)?,
            timer: Timer::new(gpu)?,
            here: Pinned::new(gpu, bytes)?,
            there: GpuMemory::new(gpu, bytes)?,
            other: GpuMemory::new(gpu, bytes)?,
        })
    }

    fn whole(&self) -> Part {
        Part { from: 0, to: 0, bytes: self.bytes }
    }

    /// Returns the bytes of one copy, as people write them.
    fn size(&self) -> Bytes {
        Bytes(self.bytes as u64)
    }

    /// Checks that what goes through all three ways in pieces comes back as it went.
    fn is_exact(&mut self) -> Result<()> {
        SmallRng::seed_from_u64(1).fill_bytes(self.here.bytes_mut());
        let went = self.here.bytes().to_vec();
        let there = scattered(self.bytes, 64 << 10);
        let back: Vec<Part> =
            there.iter().map(|part| Part { from: part.to, to: part.from, ..*part }).collect();
        self.copy(Way::ToGpu, &there, 1)?;
        self.copy(Way::Within, &[self.whole()], 1)?;
        self.here.bytes_mut().fill(0);
        std::mem::swap(&mut self.there, &mut self.other);
        self.copy(Way::ToHost, &back, 1)?;
        ensure!(self.here.bytes() == went, "what came back from the GPU is not what went there");
        Ok(())
    }

    fn copy(&mut self, way: Way, parts: &[Part], times: u32) -> Result<f64, CudaError> {
        let between = match way {
            Way::ToGpu => Between::ToGpu(&self.here, &mut self.there),
            Way::ToHost => Between::ToHost(&self.there, &mut self.here),
            Way::Within => Between::Within(&self.there, &mut self.other),
        };
        self.copier.timed(&self.timer, between, parts, times)
    }

    /// Returns how fast bytes go, in GB/s of what arrives.
    fn speed(&mut self, way: Way, parts: &[Part]) -> Result<f64, CudaError> {
        self.copy(way, parts, 1)?;
        let seconds = self.copy(way, parts, TIMES)?;
        let bytes: usize = parts.iter().map(|part| part.bytes).sum();
        Ok((bytes * TIMES as usize) as f64 / seconds / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_every_byte_once_and_none_goes_on_with_the_one_before() {
        for (bytes, piece) in PIECES.map(|(piece, _)| (1 << 30, piece)) {
            let parts = scattered(bytes, piece);
            let mut places: Vec<usize> = parts.iter().map(|part| part.to).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), parts.len());
            assert!(parts.windows(2).all(|two| two[0].to + piece != two[1].to), "{piece}");
        }
    }

    #[test]
    fn every_place_is_met_once_however_many_there_are() {
        for count in 1..200 {
            let places: std::collections::BTreeSet<usize> =
                (0..count).map(|at| place_of(at, count)).collect();
            assert_eq!(places.len(), count);
        }
    }
}
