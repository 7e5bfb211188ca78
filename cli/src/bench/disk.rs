//! `kvhive bench disk`: blocks read from a disk tier, each verified, next to a plain sequential direct read of the same file.

use super::Row;
use anyhow::{Context, Result, ensure};
use kvhive_node::DiskBench;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

/// What a plain read asks for at a time.
const CHUNK: usize = 1 << 20;
/// What direct reads begin and end at multiples of.
const PAGE: usize = 4096;
/// Blocks that a fetch reads side by side.
const FETCH: usize = 64;
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
        // Each case has a file of its own, deleted before the next is made.
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("kvhive-bench-").tempdir_in(dir.unwrap_or(&temporary));
        let folder = folder.context("cannot make a folder for the file")?;
        let records = u32::try_from(size / (block_bytes + PAGE as u64)).context("too large a file")?;
        ensure!(records > 0, "the file is smaller than one block of {block_bytes} bytes");
        let bench = DiskBench::fill(folder.path(), block_bytes, records, threads)?;
        ensure!(
            bench.is_direct(),
            "{} is on a file system without direct IO: name another folder with --dir",
            folder.path().display()
        );
        eprintln!("{case}: {records} blocks in {}, by {}", bench.file().display(), bench.mover());
        rows.push(measure(case, &bench, records, is_random, runs)?);
    }
    Ok(rows)
}

fn measure(case: &str, bench: &DiskBench, records: u32, is_random: bool, runs: u32) -> Result<Row> {
    let mut order: Vec<u32> = (0..records).collect();
    if is_random {
        order.shuffle(&mut SmallRng::seed_from_u64(SEED));
    }
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    // The first round of both is not counted.
    for round in 0..=runs {
        let begun = Instant::now();
        let bytes = plain_read(bench.file())?;
        let plainly = bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
        let begun = Instant::now();
        let bytes = bench.read(&order, FETCH)?;
        let tier = bytes as f64 / begun.elapsed().as_secs_f64() / 1e9;
        if round > 0 {
            plain.push(plainly);
            ours.push(tier);
        }
    }
    Ok(Row::of_runs(case, "GB/s", &ours, &plain, "sequential O_DIRECT read, 1 MiB at a time"))
}

/// Reads a file from its begin to its end, past the page cache; returns its bytes.
fn plain_read(path: &Path) -> Result<u64> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    let mut memory = vec![0u8; CHUNK + PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let chunk = &mut memory[start..start + CHUNK];
    let mut at = 0;
    loop {
        match file.read_at(chunk, at)? {
            0 => return Ok(at),
            read => at += read as u64,
        }
    }
}
