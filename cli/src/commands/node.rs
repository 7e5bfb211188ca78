//! `kvhive node config`; `persist` and `load` are next door.

use super::config;
use super::node_snapshot::Snapshot;
use crate::report;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use kvhive_config::{Mode, NodeConfig, Tuning, format_time};
use serde::Serialize;
use std::path::PathBuf;

/// Look at one node's settings, or have it write or take in a snapshot
#[derive(Args, Debug)]
pub(crate) struct NodeCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show every knob of a node's shards, what its mode makes of it and what holds
    Config {
        /// The cluster file
        file: PathBuf,
        /// Only this node
        #[arg(long, value_name = "NAME")]
        id: Option<String>,
        /// Print the settings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a running node write a snapshot below its `persist_dir`
    Persist(Snapshot),
    /// Have a running node take a snapshot in, as far as it has free frames
    Load(Snapshot),
}

/// One node's knobs; stable.
#[derive(Serialize, Debug)]
struct Report {
    node: String,
    mode: &'static str,
    knobs: Vec<Knob>,
}

/// One knob.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Knob {
    name: &'static str,
    /// What holds.
    value: String,
    /// What the mode would make of it.
    of_mode: String,
}

fn knobs(tuning: Tuning, mode: Mode) -> Vec<Knob> {
    let shown = |tuning: Tuning| {
        [
            ("strategy", tuning.strategy.to_owned()),
            ("prefetch_blocks", tuning.prefetch_blocks.to_string()),
            ("hold", format_time(tuning.hold)),
            ("batch_delay", format_time(tuning.batch_delay)),
            ("disk_admission", tuning.disk_admission.as_str().to_owned()),
        ]
    };
    let pairs = shown(tuning).into_iter().zip(shown(mode.tuning()));
    pairs.map(|((name, value), (_, of_mode))| Knob { name, value, of_mode }).collect()
}

fn report(node: &NodeConfig) -> Report {
    Report { node: node.id.clone(), mode: node.mode.as_str(), knobs: knobs(node.tuning, node.mode) }
}

impl NodeCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When the file is no cluster file, or has no such node.
    pub(crate) fn run(self) -> Result<()> {
        let (file, id, json) = match self.verb {
            Verb::Config { file, id, json } => (file, id, json),
            Verb::Persist(snapshot) => return snapshot.run("persist"),
            Verb::Load(snapshot) => return snapshot.run("load"),
        };
        let config = config::read(&file)?;
        let wanted = |node: &&NodeConfig| id.as_ref().is_none_or(|id| *id == node.id);
        let reports: Vec<Report> = config.nodes.iter().filter(wanted).map(report).collect();
        if reports.is_empty() {
            let known: Vec<&str> = config.nodes.iter().map(|node| node.id.as_str()).take(8).collect();
            bail!("{} has no node {:?}; it has {}", file.display(), id.unwrap_or_default(), known.join(", "));
        }
        if json {
            return report::print_json(&reports);
        }
        let mut table = report::table(&["NODE", "MODE", "KNOB", "VALUE", "MODE SAYS"]);
        for one in &reports {
            for knob in &one.knobs {
                table.add_row([&one.node, one.mode, knob.name, &knob.value, &knob.of_mode]);
            }
        }
        report::print_table(&table);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_visible_in_its_knobs() {
        let of = |mode: Mode| knobs(mode.tuning(), mode);
        for (at, mode) in Mode::ALL.into_iter().enumerate() {
            assert!(of(mode).iter().all(|knob| knob.value == knob.of_mode));
            assert!(
                Mode::ALL[..at].iter().all(|other| of(*other) != of(mode)),
                "{mode:?} shows nothing of its own"
            );
        }
        let given = Tuning { prefetch_blocks: 7, ..Mode::Bulk.tuning() };
        let differs: Vec<Knob> =
            knobs(given, Mode::Bulk).into_iter().filter(|knob| knob.value != knob.of_mode).collect();
        assert_eq!(differs, [Knob { name: "prefetch_blocks", value: "7".into(), of_mode: "512".into() }]);
    }
}
