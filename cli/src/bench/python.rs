//! `kvhive bench python`: the package `kvhive` against the Rust client, in turn on one cluster.

use super::Row;
use super::data::{BATCH_BYTES, Throughput, Way};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What runs on the other side.
const PROGRAM: &str = include_str!("python.py");
/// Bytes of a block.
const BLOCK_BYTES: u64 = 1 << 20;
/// Bytes moved by one run.
const RUN_BYTES: u64 = 1 << 30;
const BASELINE: &str = "the Rust client";

/// A Python process with the package; it ends with this.
struct Python {
    child: Child,
    asks: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(python: &Path, setup: &serde_json::Value) -> Result<Python> {
        let mut child = Command::new(python)
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let mut asks = child.stdin.take().context("the process has an input")?;
        let answers = BufReader::new(child.stdout.take().context("the process has an output")?).lines();
        writeln!(asks, "{setup}")?;
        let mut python = Python { child, asks: Some(asks), answers };
        let said =
            python.answer().context("is the package kvhive installed there? see docs/integrate/python.md")?;
        if said != "ready" {
            bail!("the Python side said {said:?}");
        }
        Ok(python)
    }

    fn answer(&mut self) -> Result<String> {
        Ok(self.answers.next().context("the Python side has ended")??)
    }

    /// Has so many batches moved; returns GB/s.
    fn run(&mut self, verb: &str, batches: u64) -> Result<f64> {
        let asks = self.asks.as_mut().context("the input is open until the end")?;
        writeln!(asks, "{verb} {batches}")?;
        let seconds: f64 = self.answer()?.parse()?;
        Ok((batches * BATCH_BYTES) as f64 / 1e9 / seconds)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends with its input.
        self.asks = None;
        let _ = self.child.wait();
    }
}

pub(super) fn run(runs: u32, python: &Path) -> Result<Vec<Row>> {
    let mut rust = Throughput::start(BLOCK_BYTES, false)?;
    let config = rust.client_config()?;
    let setup = json!({
        "coordinators": config.coordinators,
        "token": String::from_utf8(config.token)?,
        "batch": BATCH_BYTES / BLOCK_BYTES,
        "block_bytes": BLOCK_BYTES,
    });
    let mut python = Python::start(python, &setup)?;
    let batches = RUN_BYTES / BATCH_BYTES;
    // As the package does by itself on one host.
    rust.fetch(RUN_BYTES / 4, Way::Memory)?;
    python.run("fetch", batches / 4)?;
    let (mut fetch, mut awaited, mut store) = (Pairs::default(), Pairs::default(), Pairs::default());
    for _ in 0..runs {
        let by_rust = rust.fetch(RUN_BYTES, Way::Memory)?.0;
        fetch.push(python.run("fetch", batches)?, by_rust);
        awaited.push(python.run("fetch-awaited", batches)?, by_rust);
        let by_rust = rust.store(RUN_BYTES)?.0;
        store.push(python.run("store", batches)?, by_rust);
        rust.restore()?;
    }
    let cases =
        [("python-fetch-1MiB", fetch), ("python-await-fetch-1MiB", awaited), ("python-store-1MiB", store)];
    Ok(cases.map(|(case, pairs)| Row::of_runs(case, "GB/s", &pairs.ours, &pairs.rust, BASELINE)).into())
}

/// Runs of both sides.
#[derive(Default)]
struct Pairs {
    ours: Vec<f64>,
    rust: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, ours: f64, rust: f64) {
        self.ours.push(ours);
        self.rust.push(rust);
    }
}
