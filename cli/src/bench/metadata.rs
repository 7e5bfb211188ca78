//! `kvhive bench metadata`: committed map changes on three coordinators with fsync on, and the time without a leader.

use super::private::Private;
use super::{Bar, Row, quantile};
use crate::commands;
use crate::report::Latencies;
use anyhow::{Context, Result, bail, ensure};
use kvhive_client::{ClientConfig, Coordinators};
use kvhive_config::LocalShape;
use kvhive_protocol::control::{Command, CommandReply, Proposal};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::{BlockKey, Epoch, LogEntry, Origin, Pin, PinMode, Reason, RequestId, TenantId, codec};
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
/// Leaders killed.
const KILLS: usize = 20;
/// Whose blocks are pinned: there is such a tenant from the start.
const TENANT: TenantId = TenantId(1);
/// Of what another system commits, and of how long its commits take.
const RATE: Bar = Bar::AtLeast(1.5);
const LATE: Bar = Bar::AtMost(1.0 / 1.5);
/// Seconds without a leader: the median, and the longest.
const USUAL_GAP: Bar = Bar::OursAtMost(1.0);
const LONGEST_GAP: Bar = Bar::OursAtMost(2.0);

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
    rows.extend(leader_kill(&mut private, &runtime)?);
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
        rows.push(row.with_calls(ms(0.5), ms(0.99)).with_bar(RATE));
        let row = Row::of_runs(&format!("commit-{proposers}-p99"), "ms", &late, &theirs_late, name);
        rows.push(row.with_bar(LATE));
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
        .args(["--value-bytes", &entry_bytes()?.to_string()])
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

/// A change of the map: each proposer has a pin of its own, of another block each time.
fn change(proposer: u64, number: u64) -> Command {
    let mut key = [proposer as u8; 32];
    key[24..].copy_from_slice(&number.to_le_bytes());
    let pin = Pin {
        tenant: TENANT,
        keys: [BlockKey::from_bytes(key)].iter().collect(),
        mode: PinMode::Hard,
        reason: Reason::default(),
    };
    Command::SetPin { name: format!("bench-{proposer}"), pin: Box::new(pin) }
}

/// Returns how long the log's entry of such a change is: as many bytes are written by whom it is measured against.
fn entry_bytes() -> Result<usize> {
    let request = RequestId { client: u128::MAX, sequence: 1 << 20 };
    let origin =
        Origin { at_ms: 1 << 40, reason: Reason::new(format_args!("asked for by a {}", Role::Client)) };
    let entry = LogEntry { proposal: Proposal { request, command: change(31, 1 << 20) }, origin };
    Ok(codec::encode(&entry)?.len())
}

fn epoch(reply: &CommandReply) -> Result<Epoch> {
    match reply {
        CommandReply::Applied { epoch } => Ok(*epoch),
        other => bail!("a change was answered by {other:?}"),
    }
}

/// Commits changes for a while, from so many proposers side by side, each waiting for its own.
async fn commits(config: &ClientConfig, proposers: usize) -> Result<(f64, Latencies)> {
    // Numbers that no run before has used: a pin that is as it was changes nothing.
    let first = std::time::UNIX_EPOCH.elapsed()?.as_micros() as u64;
    let asker = coordinators(config)?;
    let before = asker.submit(change(proposers as u64, first), Instant::now() + LIMIT).await?;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for proposer in 0..proposers as u64 {
        let coordinators = Arc::new(coordinators(config)?);
        tasks.spawn(async move {
            let mut latencies = Latencies::new();
            let (mut number, mut last) = (first, Epoch(0));
            while begun.elapsed() < RUN {
                let asked = Instant::now();
                let reply = coordinators.submit(change(proposer, number), asked + LIMIT).await?;
                latencies.record(asked.elapsed());
                last = epoch(&reply)?;
                number += 1;
            }
            anyhow::Ok((latencies, number - first, last))
        });
    }
    let (mut all, mut count, mut last) = (Latencies::new(), 0, epoch(&before)?);
    let before = last;
    while let Some(done) = tasks.join_next().await {
        let (latencies, commits, epoch) = done??;
        all.merge(&latencies);
        count += commits;
        last = last.max(epoch);
    }
    let took = begun.elapsed();
    let changed = last.0 - before.0;
    ensure!(changed >= count, "{count} changes were committed, and the map changed {changed} times");
    Ok((count as f64 / took.as_secs_f64(), all))
}

/// Writes and syncs for a while on the same disk; returns how often a second.
fn syncs(folder: &Path) -> Result<f64> {
    let mut file = std::fs::File::create(folder.join("fdatasync"))?;
    let entry = vec![7u8; entry_bytes()?];
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
fn leader_kill(private: &mut Private, runtime: &tokio::runtime::Runtime) -> Result<Vec<Row>> {
    let config = private.client_config()?;
    let mut gaps = Vec::new();
    for kill in 0..KILLS as u64 {
        let asker = coordinators(&config)?;
        runtime.block_on(asker.submit(change(0, 2 * kill), Instant::now() + LIMIT))?;
        let statuses = runtime.block_on(asker.status(Duration::from_secs(2)));
        let leader = statuses.iter().find_map(|(_, status)| {
            status.as_ref().ok().filter(|status| status.role == "leader").map(|status| status.name.clone())
        });
        let leader = leader.context("no coordinator says that it leads")?;
        private.cluster().kill(&leader)?;
        let begun = Instant::now();
        runtime.block_on(asker.submit(change(0, 2 * kill + 1), begun + LIMIT))?;
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
    let row = |case, gaps: &[f64]| {
        Row::of_runs(case, "s to the next commit", gaps, &[timeout], "the configured election timeout")
    };
    let usual = row("leader-kill", &gaps).with_calls(quantile(&gaps, 0.5), quantile(&gaps, 0.99));
    let longest = row("leader-kill-longest", &[quantile(&gaps, 1.0)]);
    Ok(vec![usual.with_bar(USUAL_GAP), longest.with_bar(LONGEST_GAP)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_control::Registry;
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{ClusterId, Level};

    #[test]
    fn every_proposal_changes_the_map() {
        let mut registry = Registry::new();
        let mut index = 0;
        let mut apply = |command| {
            index += 1;
            let request = RequestId { client: 1, sequence: index };
            let reply = registry.apply(index, Proposal { request, command });
            (reply, registry.epoch())
        };
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: kvhive_protocol::data::Ack::Primary,
            lease_ms: 6000,
            heartbeat_ms: 1000,
            serving_lease_ms: 60_000,
        };
        let (_, mut before) = apply(Command::Bootstrap {
            cluster: ClusterId(1),
            name: "bench".to_owned(),
            settings,
            default_secret: [1; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level: Level::NEWEST,
        });
        for (proposer, number) in [(0, 0), (1, 0), (0, 1), (1, 1), (31, 7), (32, 7), (0, 2)] {
            let (reply, after) = apply(change(proposer, number));
            assert_eq!(epoch(&reply).expect("it is a change"), after);
            assert!(after > before, "{proposer} {number}: {reply:?}");
            before = after;
        }
    }

    #[test]
    fn the_baseline_writes_as_much_as_an_entry_of_the_log() {
        let bytes = entry_bytes().expect("it is encoded");
        assert!((100..=200).contains(&bytes), "{bytes}");
    }
}
