//! `kvhive bench disk`: blocks read from a disk tier, each verified, next to a plain sequential direct read of the same file, and from
//! an encrypted tier next to one that is not.

use super::Row;
use anyhow::{Context, Result, ensure};
use kvhive_node::DiskBench;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a plain read asks for at a time.
const CHUNK: usize = 1 << 20;
/// What direct reads begin and end at multiples of.
const PAGE: usize = 4096;
/// Bytes that are read side by side: as many as a client asks for in one fetch.
const FETCH_BYTES: u64 = 8 << 20;
/// Parts of a file that are read in turn.
const SLICES: u32 = 16;
const SEED: u64 = 7;

pub(super) fn run(runs: u32, dir: Option<&Path>, size: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (case, block_bytes, is_random, threads) in [
        ("read-1MiB", 1 << 20, false, false),
        ("read-64KiB", 64 << 10, false, false),
        ("read-64KiB-random", 64 << 10, true, false),
        ("read-1MiB-threads", 1 << 20, false, true),
        ("read-64KiB-threads", 64 << 10, false, true),
    ] {
        let Filled { bench, records, .. } = &fill(case, dir, size, block_bytes, threads, true)?;
        let at_a_time = (FETCH_BYTES / block_bytes).max(1) as usize;
        rows.push(measure(case, bench, *records, at_a_time, is_random, runs)?);
    }
    for (case, block_bytes) in [("encrypted-1MiB", 1 << 20), ("encrypted-64KiB", 64 << 10)] {
        let [sealed, plain] =
            [true, false].map(|encrypted| fill(case, dir, size / 2, block_bytes, false, encrypted));
        let at_a_time = (FETCH_BYTES / block_bytes).max(1) as usize;
        rows.push(compare(case, &sealed?, &plain?, at_a_time, runs)?);
    }
    Ok(rows)
}

/// A tier full of blocks, in a folder that is deleted with it.
struct Filled {
    bench: DiskBench,
    records: u32,
    _folder: tempfile::TempDir,
}

fn fill(
    case: &str,
    dir: Option<&Path>,
    size: u64,
    block_bytes: u64,
    threads: bool,
    encrypted: bool,
) -> Result<Filled> {
    let temporary = std::env::temp_dir();
    let folder = tempfile::Builder::new().prefix("kvhive-bench-").tempdir_in(dir.unwrap_or(&temporary));
    let folder = folder.context("cannot make a folder for the file")?;
    let records = u32::try_from(size / (block_bytes + PAGE as u64)).context("too large a file")?;
    ensure!(records > 0, "the file is smaller than one block of {block_bytes} bytes");
    let bench = DiskBench::fill(folder.path(), block_bytes, records, threads, encrypted)?;
    ensure!(
        bench.is_direct(),
        "{} is on a file system without direct IO: name another folder with --dir",
        folder.path().display()
    );
    let how = if encrypted { "encrypted" } else { "plain" };
    eprintln!("{case}: {records} blocks, {how}, in {}, by {}", bench.file().display(), bench.mover());
    Ok(Filled { bench, records, _folder: folder })
}

/// Reads two tiers of the same blocks in turn.
fn compare(case: &str, ours: &Filled, other: &Filled, at_a_time: usize, runs: u32) -> Result<Row> {
    let order: Vec<u32> = (0..ours.records).collect();
    let (mut encrypted, mut plain) = (Vec::new(), Vec::new());
    // The first round of both is not counted.
    for round in 0..=runs {
        let (mut mine, mut theirs) = (Rate::default(), Rate::default());
        for blocks in order.chunks(ours.records.div_ceil(SLICES) as usize) {
            theirs.add(|| Ok(other.bench.read(blocks, at_a_time)?))?;
            mine.add(|| Ok(ours.bench.read(blocks, at_a_time)?))?;
        }
        if round > 0 {
            encrypted.push(mine.gb_a_second());
            plain.push(theirs.gb_a_second());
        }
    }
    Ok(Row::of_runs(case, "GB/s", &encrypted, &plain, "the same tier, not encrypted"))
}

fn measure(
    case: &str,
    bench: &DiskBench,
    records: u32,
    at_a_time: usize,
    is_random: bool,
    runs: u32,
) -> Result<Row> {
    let mut order: Vec<u32> = (0..records).collect();
    if is_random {
        order.shuffle(&mut SmallRng::seed_from_u64(SEED));
    }
    let mut file = PlainFile::open(bench.file())?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    // The first round of both is not counted.
    for round in 0..=runs {
        let (mut tier, mut plainly) = (Rate::default(), Rate::default());
        // In turn, a slice each: what else this machine does, both feel.
        for (slice, blocks) in order.chunks(records.div_ceil(SLICES) as usize).enumerate() {
            plainly.add(|| file.read(slice as u64, SLICES.into()))?;
            tier.add(|| Ok(bench.read(blocks, at_a_time)?))?;
        }
        if round > 0 {
            plain.push(plainly.gb_a_second());
            ours.push(tier.gb_a_second());
        }
    }
    Ok(Row::of_runs(case, "GB/s", &ours, &plain, "sequential O_DIRECT read, 1 MiB at a time"))
}

/// Bytes over the time that they took.
#[derive(Default)]
struct Rate {
    bytes: u64,
    took: Duration,
}

impl Rate {
    fn add(&mut self, work: impl FnOnce() -> Result<u64>) -> Result<()> {
        let begun = Instant::now();
        self.bytes += work()?;
        self.took += begun.elapsed();
        Ok(())
    }

    fn gb_a_second(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64() / 1e9
    }
}

/// A file read past the page cache, with nothing around it.
struct PlainFile {
    file: File,
    bytes: u64,
    /// Where it is read to: one chunk, and what aligns it.
    memory: Vec<u8>,
}

impl PlainFile {
    fn open(path: &Path) -> Result<PlainFile> {
        let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
        Ok(PlainFile { bytes: file.metadata()?.len(), file, memory: vec![0; CHUNK + PAGE] })
    }

    /// Reads one of `slices` equal parts of it, from its begin to its end; returns its bytes.
    fn read(&mut self, slice: u64, slices: u64) -> Result<u64> {
        let start = self.memory.as_ptr().align_offset(PAGE);
        let chunk = &mut self.memory[start..start + CHUNK];
        let whole = (self.bytes / slices).next_multiple_of(CHUNK as u64);
        let (begin, end) = (slice * whole, ((slice + 1) * whole).min(self.bytes));
        let mut at = begin;
        while at < end {
            match self.file.read_at(chunk, at)? {
                0 => break,
                read => at += read as u64,
            }
        }
        Ok(at.saturating_sub(begin))
    }
}
