//! `kvhive doctor`: whether this host can serve, reach its cluster and run an engine beside it; and what to do where not.

mod cluster;
mod control;
mod engines;
mod finding;
mod gpus;
mod host;
mod numa;

use crate::admin::Target;
use crate::commands::prompt::Naming;
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use control::Dialled;
use engines::Interpreter;
use finding::{Finding, State};
use gpus::Gpus;
use kvhive_client::FrameRoom;
use kvhive_config::Bytes;
use kvhive_protocol::{Layout, LayoutFingerprint};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Columns of the table whose lines are broken, and how wide each is at most.
const WHAT: usize = 1;
const FOUND: usize = 2;
const ADVICE: usize = 3;
const MOST_WIDE: u16 = 60;

/// Check this host: limits, memory, disk, clock, GPU libraries, the cluster's reachability, engines; and say what to fix
///
/// A host is healthy when nothing fails. Warnings cost speed or safety, not service. The cluster is the one that --admin or --coordinators
/// names, or the local one of `kvhive up`, if there is one.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    dialled: Dialled,
    /// Folder of a disk tier: its room, and whether it can be read past the page cache
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
    /// Memory that a node here shall take, to compare with what is free
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Interpreter of the engines, whose packages are looked at [default: python3, if there is one]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// File that says how an engine's blocks are named: prints their layout's fingerprint and size, and whether the cluster's frames hold them
    #[arg(long, value_name = "FILE")]
    blocks_file: Option<PathBuf>,
    /// What the fingerprint of that layout is to be, as another host's run prints it: engines whose layouts differ share nothing
    #[arg(long, value_name = "FINGERPRINT", requires = "blocks_file", value_parser = fingerprint)]
    fingerprint: Option<LayoutFingerprint>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Prints what was found.
    ///
    /// # Errors
    /// When something fails that must not.
    pub(crate) fn run(self) -> Result<()> {
        let interpreter = Interpreter::ask(self.python.as_deref());
        let sys = Path::new("/sys");
        let (gpus, numa) = (Gpus::ask(sys), numa::nodes(sys));
        let memory = self.memory.map(|memory| memory.0);
        let mut findings = host::look(self.disk.as_deref(), memory, &gpus, &interpreter.nccl());
        findings.extend(numa::listed(&numa));
        findings.extend(cluster::look(&self.target, &self.dialled));
        findings.extend(interpreter.look());
        if let Some(file) = &self.blocks_file {
            let naming = Naming::read(file)?;
            findings.push(judged(naming.layout, self.dialled.frame_room(&self.target)));
            findings.extend(self.fingerprint.map(|expected| compared(naming.layout, expected)));
        }
        let failed = findings.iter().filter(|finding| finding.state == State::Fails).count();
        let warned = findings.iter().filter(|finding| finding.state == State::Warns).count();
        if self.json {
            let report = json!({
                "failed": failed, "warned": warned, "findings": findings, "gpus": gpus.report(), "numa_nodes": numa,
            });
            report::print_json(&report)?;
        } else {
            report::print_table(&tabled(&findings));
            let counted = |count: usize, noun| report::counted(count as u64, noun);
            println!(
                "\n{}, {}, {failed} failed",
                counted(findings.len(), "check"),
                counted(warned, "warning")
            );
        }
        if failed > 0 {
            bail!("{failed} of {} checks failed; what to do is said beside each", findings.len());
        }
        Ok(())
    }
}

/// Makes a table of what was found. What is said at length, as why a cluster does not answer, is broken into lines.
fn tabled(findings: &[Finding]) -> comfy_table::Table {
    let mut table = report::table(&["", "WHAT", "FOUND", "TO DO"]);
    for finding in findings {
        let what = format!("{}: {}", finding.area, finding.what);
        let advice = finding.advice.clone().unwrap_or_default();
        table.add_row([finding.state.as_str().to_owned(), what, finding.found.clone(), advice]);
    }
    report::narrow(&mut table, &[WHAT, FOUND, ADVICE], MOST_WIDE);
    table
}

fn fingerprint(text: &str) -> Result<LayoutFingerprint, String> {
    LayoutFingerprint::parse(text).ok_or_else(|| "a fingerprint has 32 hexadecimal digits".to_owned())
}

/// Tells whether a layout is that of another host's engine.
fn compared(layout: Layout, expected: LayoutFingerprint) -> Finding {
    let own = layout.fingerprint();
    if own == expected {
        return Finding::holds("engine", "fingerprint", format!("{own}, as it is to be"));
    }
    Finding::fails(
        "engine",
        "fingerprint",
        format!("{own}, and it is to be {expected}"),
        "the engines find none of each other's blocks: give both files the same layers, kv_heads, head_dim, tokens, dtype and order",
    )
}

/// Tells what blocks of a layout are, and whether frames of the cluster's nodes hold them.
fn judged(layout: Layout, room: Option<FrameRoom>) -> Finding {
    let fingerprint = layout.fingerprint();
    let Some(bytes) = layout.block_bytes() else {
        return Finding::fails(
            "engine",
            "layout",
            "a block's bytes overflow",
            "correct the layout's numbers",
        );
    };
    let found = format!("fingerprint {fingerprint}, {} a block", report::bytes(bytes));
    if bytes > u64::from(kvhive_protocol::frame::MAX_PAYLOAD_BYTES) {
        return Finding::fails(
            "engine",
            "layout",
            found,
            "no message carries such a block: take fewer tokens a block",
        );
    }
    let Some(room) = room else { return Finding::holds("engine", "layout", found) };
    let found = format!("{found}; the largest frames of the cluster's devices have {room}");
    let advice = "a block that no frame holds is stored nowhere: give nodes frames of a block's size, `kvhive up --block-size` or \
                  [[size_class]] in their files, or take fewer tokens a block";
    if bytes > room.most {
        return Finding::fails("engine", "layout", found, advice);
    }
    if bytes > room.least {
        return Finding::warns("engine", "layout", found, advice);
    }
    Finding::holds("engine", "layout", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_frames_do_not_hold_is_told_with_both_sizes() {
        let layout = Layout::opaque(1 << 20, 16);
        let judged = |least, most| judged(layout, Some(FrameRoom { least, most }));
        let (fails, warns) = (judged(65_536, 65_536), judged(65_536, 1 << 20));
        assert_eq!(
            [fails.state, warns.state, judged(1 << 20, 1 << 21).state],
            [State::Fails, State::Warns, State::Holds]
        );
        assert!(fails.found.contains("1.0 MiB a block") && fails.found.contains("65536 bytes"), "{fails:?}");
    }

    #[test]
    fn what_is_said_at_length_makes_the_table_longer_and_not_wider() {
        let each = "http://10.0.0.1:7800: no leader among the coordinators; ";
        let findings = [
            Finding::fails("cluster", "state", each.repeat(8), "see that a majority of them runs ".repeat(5)),
            Finding::holds("host", "kernel", "6.1"),
        ];
        let table = tabled(&findings);
        let widest = table.lines().map(|line| line.chars().count()).max().expect("there are lines");
        assert!(widest < 170, "{table}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let shown = words(&table.to_string());
        assert!(words(&findings[0].found).iter().all(|word| shown.contains(word)), "{table}");
    }
}
