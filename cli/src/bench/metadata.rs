//! `kvhive bench metadata`: committed map changes on three coordinators with fsync on, and the time without a leader.

use super::private::Private;
use super::{Row, quantile};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Context, Result, bail};
use kvhive_client::{ClientConfig, Coordinators};
use kvhive_config::LocalShape;
use kvhive_protocol::control::Command;
use kvhive_protocol::data::Ack;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_wire::Identity;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long one run of commits lasts.
const RUN: Duration = Duration::from_secs(2);
/// The longest a change may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of the baseline's writes: an entry with its record.
const ENTRY_BYTES: usize = 128;
/// Leaders killed.
const KILLS: usize = 20;

pub(super) fn run(runs: u32) -> Result<Vec<Row>> {
    let shape = LocalShape { coordinators: 3, nodes: 1, devices: 1, ..LocalShape::default() };
    let mut private = Private::start(shape)?;
    let runtime = commands::runtime()?;
    let mut rows = Vec::new();
    for (name, proposers) in [("commit-1", 1), ("commit-32", 32)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut calls = Latencies::new();
        for _ in 0..runs {
            let (rate, latencies) = runtime.block_on(commits(&private.client_config()?, proposers))?;
            ours.push(rate);
            calls.merge(&latencies);
            theirs.push(syncs(private.folder())?);
        }
        let row = Row::of_runs(
            name,
            "commits/s",
            &ours,
            &theirs,
            "write and fdatasync of one entry, one after the other",
        );
        let ms = |share| calls.quantile(share) as f64 / 1e6;
        rows.push(row.with_calls(ms(0.5), ms(0.99)));
    }
    rows.push(leader_kill(&mut private, &runtime)?);
    Ok(rows)
}

/// Commits in turn with another system, which `command` drives.
pub(super) fn against(runs: u32, command: &str, name: &str) -> Result<Vec<Row>> {
    let shape = LocalShape { coordinators: 3, nodes: 1, devices: 1, ..LocalShape::default() };
    let private = Private::start(shape)?;
    let runtime = commands::runtime()?;
    let mut rows = Vec::new();
    for proposers in [1, 32] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut late, mut theirs_late) = (Vec::new(), Vec::new());
        let mut calls = Latencies::new();
        for _ in 0..runs {
            let (rate, latencies) = runtime.block_on(commits(&private.client_config()?, proposers))?;
            ours.push(rate);
            late.push(latencies.quantile(0.99) as f64 / 1e6);
            calls.merge(&latencies);
            let (rate, p99) = other(command, proposers)?;
            theirs.push(rate);
            theirs_late.push(p99);
        }
        let ms = |share| calls.quantile(share) as f64 / 1e6;
        let row = Row::of_runs(&format!("commit-{proposers}"), "commits/s", &ours, &theirs, name);
        rows.push(row.with_calls(ms(0.5), ms(0.99)));
        rows.push(Row::of_runs(&format!("commit-{proposers}-p99"), "ms", &late, &theirs_late, name));
    }
    Ok(rows)
}

/// Has another system commit; returns its commits a second and their 99th percentile in milliseconds.
fn other(command: &str, proposers: usize) -> Result<(f64, f64)> {
    let mut words = command.split_whitespace();
    let program = words.next().context("--baseline is empty: it is a command")?;
    let output = std::process::Command::new(program)
        .args(words)
        .args(["--proposers", &proposers.to_string()])
        .args(["--seconds", &RUN.as_secs_f64().to_string()])
        .args(["--value-bytes", &ENTRY_BYTES.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match figures[..] {
        [rate, p99] if output.status.success() => Ok((rate, p99)),
        _ => bail!("{program} ended with {} and said {text:?} instead of two figures", output.status),
    }
}

fn coordinators(config: &ClientConfig) -> Result<Coordinators> {
    let identity = Identity {
        token: TokenKey::new(&config.token),
        role: Role::Client,
        sender: 0,
        cluster: None,
        tls: config.tls.clone(),
        levels: Default::default(),
    };
    Ok(Coordinators::new(config.coordinators.clone(), identity)?)
}

/// A change of the map that differs from the one before.
fn change(number: u64) -> Command {
    Command::SetAck { ack: if number.is_multiple_of(2) { Ack::Primary } else { Ack::Quorum } }
}

/// Commits changes for a while, from so many proposers side by side, each waiting for its own.
async fn commits(config: &ClientConfig, proposers: usize) -> Result<(f64, Latencies)> {
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..proposers as u64 {
        let coordinators = Arc::new(coordinators(config)?);
        tasks.spawn(async move {
            let mut latencies = Latencies::new();
            let mut number = first;
            while begun.elapsed() < RUN {
                let asked = Instant::now();
                coordinators.submit(change(number), asked + LIMIT).await?;
                latencies.record(asked.elapsed());
                number += 1;
            }
            anyhow::Ok((latencies, number - first))
        });
    }
    let (mut all, mut count) = (Latencies::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (latencies, commits) = done??;
        all.merge(&latencies);
        count += commits;
    }
    Ok((count as f64 / begun.elapsed().as_secs_f64(), all))
}

/// Writes and syncs for a while on the same disk; returns how often a second.
fn syncs(folder: &Path) -> Result<f64> {
    let mut file = std::fs::File::create(folder.join("fdatasync"))?;
    let entry = [7u8; ENTRY_BYTES];
    // Preallocated, as the log is.
    file.write_all(&vec![0; 4 << 20])?;
    file.sync_all()?;
    std::io::Seek::rewind(&mut file)?;
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < RUN / 4 {
        file.write_all(&entry)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Kills the leader again and again; returns how long until the next change was committed.
fn leader_kill(private: &mut Private, runtime: &tokio::runtime::Runtime) -> Result<Row> {
    let config = private.client_config()?;
    let mut gaps = Vec::new();
    for kill in 0..KILLS as u64 {
        let asker = coordinators(&config)?;
        runtime.block_on(asker.submit(change(kill), Instant::now() + LIMIT))?;
        let statuses = runtime.block_on(asker.status(Duration::from_secs(2)));
        let leader = statuses.iter().find_map(|(_, status)| {
            status.as_ref().ok().filter(|status| status.role == "leader").map(|status| status.name.clone())
        });
        let leader = leader.context("no coordinator says that it leads")?;
        private.cluster().kill(&leader)?;
        let begun = Instant::now();
        runtime.block_on(asker.submit(change(kill + 1), begun + LIMIT))?;
        gaps.push(begun.elapsed().as_secs_f64());
        private.cluster().respawn(&leader)?;
        // The next kill finds three of them again.
        let whole = Instant::now();
        while whole.elapsed() < LIMIT {
            let statuses = runtime.block_on(asker.status(Duration::from_secs(2)));
            let known = |status: &Result<_, _>| {
                status
                    .as_ref()
                    .is_ok_and(|status: &kvhive_protocol::control::CoordinatorStatus| status.leader.is_some())
            };
            if statuses.iter().all(|(_, status)| known(status)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let timeout = private.cluster().config().raft.election_timeout.as_secs_f64();
    let row = Row::of_runs(
        "leader-kill",
        "s to the next commit",
        &gaps,
        &[timeout],
        "the configured election timeout",
    );
    Ok(row.with_calls(quantile(&gaps, 0.5), quantile(&gaps, 0.99)))
}
