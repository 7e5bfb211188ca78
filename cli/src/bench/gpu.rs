//! `kvhive bench gpu`: a GPU's copies by the size of their pieces, against one large copy of as many bytes in the same run.

use super::Row;
use anyhow::{Context, Result, ensure};
use kvhive_gpu::cuda::{Between, Copier, Cuda, CudaError, Gpu, GpuMemory, Part, Pinned, Timer};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::sync::Arc;

/// Bytes of one copy, whatever its pieces: keys and values of 8,192 tokens of an 8B model.
const BYTES: usize = 1 << 30;
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
const BASELINE: &str = "one copy of 1 GiB";

/// Measures one GPU.
///
/// # Errors
/// When there is none of this number, it has no room, or bytes came back as others.
pub(super) fn run(runs: u32, ordinal: u32) -> Result<Vec<Row>> {
    let cuda = Cuda::find().context("a GPU is needed")?;
    let gpu = cuda.open(ordinal)?;
    eprintln!("{}, CUDA {}", gpu.info(), cuda.version());
    let mut bench = Bench::new(&gpu)?;
    bench.is_exact()?;
    let mut rows = Vec::new();
    for way in [Way::ToGpu, Way::ToHost, Way::Within] {
        for (piece, size) in PIECES {
            let parts = scattered(piece);
            let (mut ours, mut baseline) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                baseline.push(bench.speed(way, &[WHOLE])?);
                ours.push(bench.speed(way, &parts)?);
            }
            rows.push(Row::of_runs(&format!("{}-{size}", way.name()), "GB/s", &ours, &baseline, BASELINE));
        }
    }
    Ok(rows)
}

const WHOLE: Part = Part { from: 0, to: 0, bytes: BYTES };

/// Cuts the bytes into pieces of which no two follow each other at both ends, as pages of an engine's do.
fn scattered(piece: usize) -> Vec<Part> {
    let count = BYTES / piece;
    // Odd, so that every place is met once.
    let step = (count * 5 / 8) | 1;
    (0..count).map(|at| Part { from: at * piece, to: at * step % count * piece, bytes: piece }).collect()
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
}

struct Bench {
    copier: Copier,
    timer: Timer,
    here: Pinned,
    there: GpuMemory,
    other: GpuMemory,
}

impl Bench {
    fn new(gpu: &Arc<Gpu>) -> Result<Bench, CudaError> {
        Ok(Bench {
            copier: Copier::new(gpu)?,
            timer: Timer::new(gpu)?,
            here: Pinned::new(gpu, BYTES)?,
            there: GpuMemory::new(gpu, BYTES)?,
            other: GpuMemory::new(gpu, BYTES)?,
        })
    }

    /// Checks that what goes through all three ways in pieces comes back as it went.
    fn is_exact(&mut self) -> Result<()> {
        SmallRng::seed_from_u64(1).fill_bytes(self.here.bytes_mut());
        let went = self.here.bytes().to_vec();
        let back: Vec<Part> =
            scattered(64 << 10).iter().map(|part| Part { from: part.to, to: part.from, ..*part }).collect();
        self.copy(Way::ToGpu, &scattered(64 << 10), 1)?;
        self.copy(Way::Within, &[WHOLE], 1)?;
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
        Ok((BYTES * TIMES as usize) as f64 / seconds / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_every_byte_once_and_none_goes_on_with_the_one_before() {
        for (piece, _) in PIECES {
            let parts = scattered(piece);
            let mut places: Vec<usize> = parts.iter().map(|part| part.to).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), parts.len());
            assert!(parts.windows(2).all(|two| two[0].to + piece != two[1].to), "{piece}");
        }
    }
}
