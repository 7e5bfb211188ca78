//! `kvhive bench gpu --nccl`: what a pair of GPUs gives by NCCL and what it costs, by two workers of the bench's own, started as a node starts
//! its one. With one GPU both ends are on it.

mod loopback;
mod pair;

use crate::bench::{Row, quantile};
use anyhow::{Context, Result, ensure};
use kvhive_config::Bytes;
use kvhive_gpu::cuda::{Between, Copier, Cuda, Gpu, GpuMemory, Part, Timer};
use kvhive_node::NcclConfig;
use loopback::Loopback;
use pair::{Pair, Place};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Transfers by their bytes, and how many of them one run takes.
const SIZES: [(usize, u32); 5] = [(1 << 10, 16), (64 << 10, 16), (1 << 20, 4), (8 << 20, 2), (LARGEST, 1)];
pub(super) const LARGEST: usize = 64 << 20;
/// What is sent by pairs of each setting.
const OF_SETTINGS: (usize, u32) = SIZES[3];
/// Thread blocks and bytes of each of NCCL's buffers, besides what a node has by itself.
const SETTINGS: [(u32, u64); 3] = [(1, 1 << 20), (2, 4 << 20), (8, 4 << 20)];
/// Pairs beside the first, of which it is said what one takes.
const FURTHER: usize = 3;
/// Transfers of the least size of which each is timed.
const CALLS: u32 = 50;
const TCP: &str = "TCP over loopback, through pinned memory at both ends";

/// Measures pairs at the GPU of this number, and at the next where there are several.
///
/// # Errors
/// When there is no GPU or no NCCL, bytes came as others, or a pair fails.
pub(in crate::bench) fn run(runs: u32, ordinal: u32) -> Result<Vec<Row>> {
    let cuda = Cuda::find()
        .context("a GPU is needed, and its driver: see what `kvhive doctor` says of this machine")?;
    let first = cuda.open(ordinal)?;
    let count = cuda.count()?;
    let second = if count > 1 { cuda.open((ordinal + 1) % count)? } else { first.clone() };
    let mut against = Baselines::new(&first, &second)?;
    let place = Place::new([first, second], LARGEST)?;
    // What the driver takes when something is copied first is nobody's pair.
    place.is_exact(OF_SETTINGS.0)?;
    against.copy(SIZES[0])?;
    against.tcp(OF_SETTINGS)?;
    let program = std::env::current_exe().context("this program's own file cannot be found")?;
    let own = NcclConfig::of(program);
    let mut rows = Vec::new();
    let mut starts = Vec::new();
    let mut of_settings = Vec::new();
    for (at, setting) in [(own.max_ctas, own.buffer_bytes)].into_iter().chain(SETTINGS).enumerate() {
        let config = NcclConfig { max_ctas: setting.0, buffer_bytes: setting.1, ..own.clone() };
        let before = place.free_bytes()?;
        let begun = Instant::now();
        let mut pair = Pair::start(&place, &config)?;
        starts.push(begun.elapsed().as_secs_f64() * 1e3);
        let without = place.free_bytes()?;
        if at == 0 {
            eprintln!("{place}, NCCL {}", pair.nccl());
        }
        let first = ms(pair.set_up()?);
        pair.is_exact(OF_SETTINGS.0)?;
        let with = place.free_bytes()?;
        let name = format!("{}-ctas-{}", setting.0, Bytes(setting.1));
        of_settings.push(Row::of_runs(
            &format!("memory-{name}"),
            "MiB",
            &[mib(without, with)],
            &[mib(before, without)],
            "a worker without a pair",
        ));
        if at == 0 {
            rows = whole(runs, &mut pair, &mut against)?;
            rows.extend(lives(runs, &mut pair, first)?);
            rows.push(more(&place, &mut pair, mib(without, with))?);
        }
        let (mut ours, mut tcp) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            tcp.push(against.tcp(OF_SETTINGS)?);
            ours.push(speed(OF_SETTINGS, || pair.send(OF_SETTINGS.0))?);
        }
        let case = format!("pair-{}-{name}", Bytes(OF_SETTINGS.0 as u64));
        of_settings.push(Row::of_runs(&case, "GB/s", &ours, &tcp, TCP));
        pair.end()?;
    }
    rows.push(Row::of_runs("worker-start", "ms", &starts, &programs(starts.len())?, "kvhive --version"));
    rows.extend(of_settings);
    Ok(rows)
}

/// Measures transfers of each size by a node's own setting: against TCP, and against a copy within the first GPU.
fn whole(runs: u32, pair: &mut Pair<'_>, against: &mut Baselines) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let (bytes, _) = size;
        pair.is_exact(bytes)?;
        against.loopback.is_exact(&mut against.from, bytes)?;
        let (mut ours, mut tcp, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            copies.push(against.copy(size)?);
            tcp.push(against.tcp(size)?);
            ours.push(speed(size, || pair.send(bytes))?);
        }
        let name = Bytes(bytes as u64);
        rows.push(Row::of_runs(&format!("pair-{name}"), "GB/s", &ours, &tcp, TCP));
        let within = "a copy of as many bytes within the GPU, by its own clock";
        rows.push(Row::of_runs(&format!("pair-{name}-to-copy"), "GB/s", &ours, &copies, within));
    }
    let (least, _) = SIZES[0];
    let (mut ours, mut tcp) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        tcp.push(against.loopback.send(&against.from, least)?.as_secs_f64() * 1e6);
        ours.push(pair.send(least)?.as_secs_f64() * 1e6);
    }
    let row = Row::of_runs(&format!("latency-{}", Bytes(least as u64)), "us", &ours, &tcp, TCP);
    rows.push(row);
    Ok(rows)
}

/// Measures how long pairs take to come and go, beside the very first of these workers.
fn lives(runs: u32, pair: &mut Pair<'_>, first: f64) -> Result<Vec<Row>> {
    let least = SIZES[0].0;
    let (mut ups, mut connections) = (Vec::new(), Vec::new());
    let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
    let (mut closes, mut aborts) = (Vec::new(), Vec::new());
    pair.close()?;
    for _ in 0..runs {
        // Twice, so that one pair is closed and one aborted.
        for is_aborted in [false, true] {
            connections.push(ms(loopback::connect()?));
            ups.push(ms(pair.set_up()?));
            firsts.push(pair.send(least)?.as_secs_f64() * 1e6);
            seconds.push(pair.send(least)?.as_secs_f64() * 1e6);
            if is_aborted {
                aborts.push(ms(pair.abort()?));
            } else {
                closes.push(ms(pair.close()?));
            }
        }
    }
    pair.set_up()?;
    let connection = "a TCP connection over loopback";
    Ok(vec![
        Row::of_runs("set-up", "ms", &ups, &connections, connection),
        Row::of_runs(
            "set-up-first",
            "ms",
            &[first],
            &[quantile(&ups, 0.5)],
            "later pairs of the same workers",
        ),
        Row::of_runs("first-transfer", "us", &firsts, &seconds, "the pair's second"),
        Row::of_runs("abort", "ms", &aborts, &closes, "closing one by which nothing goes"),
    ])
}

/// Measures what further pairs of the same workers take of the GPU at one end, each of which has carried what the first had, while those before it stand.
fn more(place: &Place, pair: &mut Pair<'_>, first: f64) -> Result<Row> {
    let mut more = Vec::new();
    for _ in 0..FURTHER {
        let before = place.free_bytes()?;
        pair.set_up()?;
        pair.is_exact(OF_SETTINGS.0)?;
        more.push(mib(before, place.free_bytes()?));
    }
    Ok(Row::of_runs(
        "memory-next",
        "MiB",
        &more,
        &[first],
        "the first pair of these workers, with NCCL's kernels",
    ))
}

/// Returns how many MiB fewer are free, at one of two ends.
fn mib(before: u64, after: u64) -> f64 {
    before.saturating_sub(after) as f64 / 2.0 / f64::from(1 << 20)
}

/// Returns how fast so many transfers go one after the other, in GB/s.
fn speed((bytes, times): (usize, u32), mut send: impl FnMut() -> Result<std::time::Duration>) -> Result<f64> {
    let mut seconds = 0.0;
    for _ in 0..times {
        seconds += send()?.as_secs_f64();
    }
    Ok((bytes * times as usize) as f64 / seconds / 1e9)
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns how long this program takes to start and end, in milliseconds: so often.
fn programs(times: usize) -> Result<Vec<f64>> {
    let program = std::env::current_exe()?;
    let once = || {
        let begun = Instant::now();
        let status = Command::new(&program).arg("--version").stdout(Stdio::null()).status()?;
        ensure!(status.success(), "{} --version: {status}", program.display());
        Ok(ms(begun.elapsed()))
    };
    (0..times).map(|_| once()).collect()
}

/// What a pair's transfers are held against.
struct Baselines {
    copier: Copier,
    timer: Timer,
    from: GpuMemory,
    to: GpuMemory,
    loopback: Loopback,
}

impl Baselines {
    fn new(first: &Arc<Gpu>, second: &Arc<Gpu>) -> Result<Baselines> {
        Ok(Baselines {
            copier: Copier::new(first)?,
            timer: Timer::new(first)?,
            from: GpuMemory::new(first, LARGEST)?,
            to: GpuMemory::new(first, LARGEST)?,
            loopback: Loopback::start(first, second)?,
        })
    }

    /// Returns how fast copies within the first GPU are, in GB/s.
    fn copy(&mut self, (bytes, times): (usize, u32)) -> Result<f64> {
        let Baselines { copier, timer, from, to, .. } = self;
        let seconds =
            copier.timed(timer, Between::Within(from, to), &[Part { from: 0, to: 0, bytes }], times)?;
        Ok((bytes * times as usize) as f64 / seconds / 1e9)
    }

    fn tcp(&mut self, size: (usize, u32)) -> Result<f64> {
        speed(size, || self.loopback.send(&self.from, size.0))
    }
}
