//! `kvhive node config` and `kvhive node strategy`; `persist`, `load` and `snapshots` are next door.

use super::config;
use super::connect::Connect;
use super::node_snapshot::{Loading, Snapshot, Snapshots};
use crate::report;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use kvhive_config::{NodeConfig, Tuning, format_share, format_time};
use kvhive_protocol::strategy::{ChoiceReport, Estimate};
use serde::Serialize;
use std::path::PathBuf;

/// Look at a node's settings and at what its strategies have chosen, or have it write or take in a snapshot
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
    Load(Loading),
    /// List a running node's snapshots, or remove one that stands beside its own
    Snapshots(Snapshots),
    /// Show what the strategies of running nodes have chosen, and on what evidence
    Strategy {
        /// Only this node
        #[arg(long, value_name = "NAME")]
        id: Option<String>,
        /// Have those choose now that choose among ways to rank, by what they have seen
        #[arg(long)]
        adjust: bool,
        #[command(flatten)]
        connect: Connect,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
}

/// What stands for the name of a node in an open file, which lists none.
const ANY: &str = "(any)";

/// How one strategy of a running node does; stable.
#[derive(Serialize, Debug)]
struct Doing<'a> {
    node: &'a str,
    device: u16,
    /// None for the tenants without rules of their own.
    tenant: Option<&'a str>,
    frame_bytes: u64,
    strategy: &'static str,
    choice: &'a Option<ChoiceReport>,
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

fn knobs(tuning: Tuning, of_mode: Tuning) -> Vec<Knob> {
    let shown = |tuning: Tuning| {
        // Whoever adds a knob shows it.
        let Tuning {
            strategy,
            prefetch_blocks,
            hold,
            batch_delay,
            codec,
            priority,
            disk_admission,
            gc_per_mille,
        } = tuning;
        [
            ("strategy", strategy.to_owned()),
            ("prefetch_blocks", prefetch_blocks.to_string()),
            ("hold", format_time(hold)),
            ("batch_delay", format_time(batch_delay)),
            ("codec", codec.as_str().to_owned()),
            ("priority", priority.to_string()),
            ("disk_admission", disk_admission.as_str().to_owned()),
            ("gc_threshold", format_share(gc_per_mille)),
        ]
    };
    let pairs = shown(tuning).into_iter().zip(shown(of_mode));
    pairs.map(|((name, value), (_, of_mode))| Knob { name, value, of_mode }).collect()
}

fn report(node: &NodeConfig) -> Report {
    let of_mode = node.mode.tuning(node.block_sizes.len());
    Report { node: node.id.clone(), mode: node.mode.as_str(), knobs: knobs(node.tuning, of_mode) }
}

impl NodeCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When the file is no cluster file, or has no such node.
    pub(crate) fn run(self) -> Result<()> {
        let (file, id, json) = match self.verb {
            Verb::Config { file, id, json } => (file, id, json),
            Verb::Persist(snapshot) => return snapshot.run("persist", None),
            Verb::Load(loading) => return loading.run(),
            Verb::Snapshots(snapshots) => return snapshots.run(),
            Verb::Strategy { id, adjust, connect, json } => {
                return super::runtime()?.block_on(strategy(&connect, id.as_deref(), adjust, json));
            }
        };
        let config = config::read(&file)?;
        let wanted = |node: &&NodeConfig| id.as_ref().is_none_or(|id| *id == node.id);
        let reports: Vec<Report> = match &config.template {
            // An open file has one answer, whoever joins.
            Some(any) => vec![Report { node: id.clone().unwrap_or_else(|| ANY.to_owned()), ..report(any) }],
            None => config.nodes.iter().filter(wanted).map(report).collect(),
        };
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

async fn strategy(connect: &Connect, id: Option<&str>, adjust: bool, json: bool) -> Result<()> {
    let client = connect.client().await?;
    let devices = client.strategies(id, adjust).await?;
    let map = client.map();
    let mut doing = Vec::new();
    for one in &devices {
        let Ok(reports) = &one.reports else { continue };
        for report in reports {
            let tenant = report.tenant.and_then(|id| map.tenants.get(&id));
            doing.push(Doing {
                node: &one.node,
                device: one.device.index,
                tenant: tenant.map(|tenant| tenant.name.as_str()),
                frame_bytes: report.frame_bytes,
                strategy: report.strategy.name(),
                choice: &report.choice,
            });
        }
    }
    if json {
        report::print_json(&doing)?;
    } else {
        print_strategies(&doing);
    }
    let silent: Vec<String> = devices
        .iter()
        .filter_map(|one| {
            let fault = one.reports.as_ref().err()?;
            Some(format!("device {} of {}: {fault}", one.device.index, one.node))
        })
        .collect();
    if silent.is_empty() { Ok(()) } else { bail!("not all devices have answered: {}", silent.join("; ")) }
}

fn print_strategies(doing: &[Doing<'_>]) {
    let columns =
        ["NODE", "DEVICE", "TENANT", "FRAMES", "STRATEGY", "RANKED BY", "WOULD HIT", "EVIDENCE", "REASON"];
    let mut table = report::table(&columns);
    for one in doing {
        let choice = one.choice.as_ref();
        let estimate = |one: &Estimate| format!("{} {:.1} %", one.ranker, f64::from(one.hit_rate_ppm) / 1e4);
        let estimates: Vec<String> =
            choice.iter().flat_map(|choice| &choice.estimates).map(estimate).collect();
        let said = |of: &dyn Fn(&ChoiceReport) -> String| choice.map_or_else(|| "-".to_owned(), of);
        table.add_row([
            one.node.to_owned(),
            one.device.to_string(),
            one.tenant.unwrap_or("(all others)").to_owned(),
            report::bytes(one.frame_bytes),
            one.strategy.to_owned(),
            said(&|choice| choice.in_charge.clone()),
            if estimates.is_empty() { "-".to_owned() } else { estimates.join(", ") },
            said(&|choice| format!("{} uses, 1 in {}", choice.evidence, choice.sampled_one_in)),
            said(&|choice| choice.reason.as_str().to_owned()),
        ]);
    }
    report::print_table(&table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_config::Mode;

    #[test]
    fn every_mode_is_visible_in_its_knobs() {
        let of = |mode: Mode| knobs(mode.tuning(2), mode.tuning(2));
        for (at, mode) in Mode::ALL.into_iter().enumerate() {
            assert!(of(mode).iter().all(|knob| knob.value == knob.of_mode));
            assert!(
                Mode::ALL[..at].iter().all(|other| of(*other) != of(mode)),
                "{mode:?} shows nothing of its own"
            );
        }
        let given = Tuning { prefetch_blocks: 7, ..Mode::Bulk.tuning(1) };
        let differs: Vec<Knob> = knobs(given, Mode::Bulk.tuning(1))
            .into_iter()
            .filter(|knob| knob.value != knob.of_mode)
            .collect();
        assert_eq!(differs, [Knob { name: "prefetch_blocks", value: "7".into(), of_mode: "512".into() }]);
    }
}
