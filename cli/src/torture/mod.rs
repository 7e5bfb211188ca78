//! `kvhive torture`: breaks a cluster on purpose while clients use it, checks every answer, and says what came of it. What may be
//! answered, and which fault comes when, is `kvhive-oracle`'s to say; here are the hands.

mod ground;
mod histories;
mod holders;
mod hosts;
mod inject;
mod isolated;
mod load;
mod made;
mod promises;
mod rot;
mod shared;
mod under_way;
mod whole;

use crate::bench::Machine;
use crate::{commands, report};
use anyhow::{Result, bail};
use clap::Args;
use ground::Ground;
use histories::Histories;
use inject::Injector;
use kvhive_oracle::report::Bar;
use kvhive_oracle::{Fault, Figures, Plan, Report, Schedule, Size};
use load::Load;
use serde::Serialize;
use shared::Shared;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Break a cluster on purpose under load, and check every answer
///
/// Without --dir: a cluster of its own of three coordinators and four nodes with disk tiers, gone afterwards. With --dir: the cluster
/// that `kvhive up` made there, which must not be running; its processes are killed, paused and started again, bits of blocks that
/// this run has stored are flipped on its disks, and tenants and pins that begin with `torture-` are made and removed. What else it
/// holds may be evicted. Ends with a report of what was found and the bars that it meets, and fails where one is not met.
#[derive(Args, Debug)]
pub(crate) struct Torture {
    /// How long faults are made
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Which faults come when; the same number gives the same plan [default: a random one]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Folder of a cluster that `kvhive up` made and that is not running [default: a cluster of its own]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Give each process of its own cluster a network of its own, and each coordinator a disk, and break those too: needs root
    #[arg(long, conflicts_with = "dir")]
    namespaces: bool,
    /// These kinds of faults only, such as kill-leader,kill-node
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = kind)]
    only: Vec<Fault>,
    /// Tell times and do not judge them: for a machine that does other things besides
    #[arg(long)]
    no_time_bars: bool,
    /// Leave the folder of its own cluster, with its processes' logs
    #[arg(long, conflicts_with = "dir")]
    keep: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a run came to, as it is printed.
#[derive(Serialize)]
struct Told {
    torture: Asked,
    machine: Machine,
    /// How often each kind of fault was made.
    faults: BTreeMap<&'static str, u64>,
    /// The same for an hour, at this rate.
    faults_an_hour: BTreeMap<&'static str, u64>,
    /// What the plan of faults waited for, in seconds.
    waited: BTreeMap<&'static str, f64>,
    /// What could not be made here, and why.
    skipped: Vec<String>,
    /// What was found, in words.
    findings: Vec<String>,
    #[serde(flatten)]
    report: Report,
}

/// What was asked for.
#[derive(Serialize)]
struct Asked {
    seed: u64,
    minutes: f64,
    cluster: &'static str,
    /// For how long faults were made.
    seconds: f64,
    interrupted: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse::<f64>().ok().filter(|minutes| (0.1..=1440.0).contains(minutes));
    minutes.ok_or_else(|| "allowed is a number from 0.1 to 1440".to_owned())
}

fn kind(text: &str) -> Result<Fault, String> {
    Fault::named(text).ok_or_else(|| {
        let all = Fault::OF_PROCESSES.iter().chain(&Fault::OF_HOSTS);
        format!("there are {}", all.map(|fault| fault.name()).collect::<Vec<_>>().join(", "))
    })
}

impl Torture {
    /// Runs it and prints the report.
    ///
    /// # Errors
    /// When the cluster does not start, or a bar is not met.
    pub(crate) fn run(self) -> Result<()> {
        let seed = match self.seed {
            Some(seed) => seed,
            None => {
                let mut bytes = [0; 4];
                getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
                u64::from(u32::from_le_bytes(bytes))
            }
        };
        let shared = Arc::new(Shared::new(seed, load::TENANTS));
        let runtime = commands::runtime()?;
        shared.heed_signals(&runtime);
        shared.watch_lag();
        shared.say(&format!("seed {seed}"));
        let pauses = self.only.is_empty() || self.only.contains(&Fault::PauseNode);
        let ground = match &self.dir {
            Some(dir) => Ground::of(dir)?,
            None if self.namespaces => Ground::isolated(pauses)?,
            None => Ground::own(pauses)?,
        };
        let told = self.drive(seed, ground, &shared, &runtime)?;
        if self.json {
            report::print_json(&told)?;
        } else {
            print(&told);
        }
        if told.torture.interrupted {
            bail!("interrupted after {:.0} s", told.torture.seconds);
        }
        let unmet: Vec<&str> = told.report.rows.iter().filter(|row| !row.met).map(|row| row.name).collect();
        if !unmet.is_empty() {
            bail!("not met: {}; `--seed {seed}` tells the same plan again", unmet.join(", "));
        }
        Ok(())
    }

    fn drive(
        &self,
        seed: u64,
        ground: Ground,
        shared: &Arc<Shared>,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<Told> {
        let config = ground.client_config()?;
        let load = runtime.block_on(Load::begin(shared, config))?;
        let histories = Histories::begin(shared, &ground, load.kept_tenant())?;
        let (clears, clients) = load.spawn(runtime);
        let mut wanted = self.only.clone();
        if wanted.is_empty() {
            wanted.extend(Fault::OF_PROCESSES);
            wanted.extend(Fault::OF_HOSTS.iter().filter(|_| self.namespaces));
        }
        let size = Size {
            coordinators: ground.coordinators().len(),
            nodes: ground.nodes().len(),
            replicas: usize::from(load.client().map().settings.replicas),
        };
        let mut injector = Injector::new(ground, &load, shared, runtime, clears);
        let (kinds, skipped) = injector.possible(wanted);
        // What was asked for by name and cannot be made has not shown anything.
        shared.figures().asked.extend(&self.only);
        for one in &skipped {
            shared.say(&format!("SKIPPED: {one}"));
        }
        let until = shared.elapsed() + Duration::from_secs_f64(self.minutes * 60.0);
        let begun = shared.elapsed();
        let done = injector.run(Schedule::new(Plan::new(seed, kinds), size), until);
        let seconds = (shared.elapsed() - begun).as_secs_f64();
        let interrupted = shared.is_interrupted();
        // Whatever came of it: the clients end first, then what was asked of them is judged.
        shared.end();
        runtime.block_on(clients.end(shared));
        let calls = histories.end(shared);
        let mut ground = injector.end();
        ground.tell_ends(shared);
        let settled = done.and_then(|()| match interrupted {
            true => Ok(()),
            false => ground.settle(shared, runtime, &load),
        });
        calls.judge(shared);
        if self.dir.is_some() {
            // Also where it failed: what it has made is not to stay.
            if let Err(error) = ground.complete() {
                shared.say(&format!("the cluster is not complete: {error:#}"));
            }
            histories::remove(shared, &ground, runtime, &load);
        }
        settled?;
        let (ended, lapsed) = {
            let oracle = shared.oracle();
            (oracle.voided(), oracle.lapsed())
        };
        let figures = Figures { promises_ended: ended, promises_lapsed: lapsed, ..shared.figures().clone() };
        let told = Told {
            torture: Asked {
                seed,
                minutes: self.minutes,
                cluster: if self.dir.is_some() { "given" } else { "own" },
                seconds,
                interrupted,
            },
            machine: Machine::this(),
            faults_an_hour: shared
                .faults()
                .into_iter()
                .map(|(name, made)| (name, an_hour(made, seconds)))
                .collect(),
            faults: shared.faults(),
            waited: figures.waited.clone(),
            skipped,
            findings: shared.findings(),
            report: figures.report(!self.no_time_bars),
        };
        if self.keep {
            shared.say(&format!("what its processes have left is in {}", ground.keep().display()));
        }
        Ok(told)
    }
}

/// Returns how many there would be in an hour.
fn an_hour(made: u64, seconds: f64) -> u64 {
    (made as f64 * 3600.0 / seconds.max(1.0)).round() as u64
}

fn print(told: &Told) {
    println!(
        "seed {}, {:.0} s of faults on {} cluster, {} build",
        told.torture.seed,
        told.torture.seconds,
        if told.torture.cluster == "own" { "its own" } else { "the given" },
        if cfg!(debug_assertions) { "debug" } else { "release" }
    );
    let mut table = report::table(&["FAULT", "MADE", "AN HOUR"]);
    for ((name, count), an_hour) in told.faults.iter().zip(told.faults_an_hour.values()) {
        table.add_row([(*name).to_owned(), count.to_string(), an_hour.to_string()]);
    }
    report::print_table(&table);
    println!();
    let mut table = report::table(&["THE PLAN WAITED FOR", "S", "OF 100"]);
    for (what, waited) in &told.waited {
        let share = 100.0 * waited / told.torture.seconds.max(1.0);
        table.add_row([(*what).to_owned(), format!("{waited:.1}"), format!("{share:.1}")]);
    }
    report::print_table(&table);
    for one in &told.skipped {
        println!("SKIPPED: {one}");
    }
    println!();
    let mut table = report::table(&["FIGURE", "VALUE", "UNIT", "BAR", "MET"]);
    for row in &told.report.rows {
        let shown =
            if row.value.fract() == 0.0 { format!("{:.0}", row.value) } else { format!("{:.3}", row.value) };
        let bar = match row.bar {
            None => String::new(),
            Some(Bar::AtMost(most)) => format!("<= {most}"),
            Some(Bar::AtLeast(least)) => format!(">= {least}"),
        };
        let met = match (row.bar.is_some(), row.met) {
            (false, _) => "",
            (true, true) => "yes",
            (true, false) => "NO",
        };
        table.add_row([row.name.to_owned(), shown, row.unit.to_owned(), bar, met.to_owned()]);
    }
    report::print_table(&table);
    for one in &told.findings {
        println!("found: {one}");
    }
    println!("{}", if told.report.passed { "every bar is met" } else { "NOT every bar is met" });
}
