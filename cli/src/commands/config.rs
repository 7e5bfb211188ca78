//! `kvhive config check|show`.

use super::status::{list, text};
use crate::admin::Target;
use crate::report;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use kvhive_config::{ClusterConfig, Newcomer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Check a cluster file, or show what a running cluster goes by
#[derive(Args, Debug)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Check a cluster file and everything that overrides it, and say everything that is wrong
    Check {
        /// The cluster file
        file: PathBuf,
        /// Print the processes it describes, one a line, for scripts
        #[arg(long, conflicts_with = "json")]
        processes: bool,
        /// Print the outcome as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the configuration that a running cluster goes by, and how each setting is changed
    ///
    /// What the cluster agreed on when it was first started stays, whatever a cluster file says later: this shows what is in effect. The rest
    /// is what the coordinator that answers was started with; ask each by --admin where they may differ. Secrets are not shown.
    #[command(after_help = "Examples:
  kvhive config show                                   # the local cluster
  kvhive config show --live                            # only what can be changed while it runs
  kvhive config show --json | jq '.settings[] | {key, value}'")]
    Show {
        #[command(flatten)]
        target: Target,
        /// Only settings that can be changed while the cluster runs
        #[arg(long)]
        live: bool,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Reads and checks a cluster file.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn read(file: &Path) -> Result<ClusterConfig> {
    read_for(file, None)
}

/// Reads and checks a cluster file, which `newcomer` joins if there is one.
///
/// # Errors
/// Everything that is wrong with it, or with the newcomer.
pub(crate) fn read_for(file: &Path, newcomer: Option<&Newcomer>) -> Result<ClusterConfig> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let Some(newcomer) = newcomer else {
        return ClusterConfig::from_toml(&text, std::env::vars())
            .with_context(|| format!("{} is no cluster file", file.display()));
    };
    ClusterConfig::from_toml_joined_by(&text, std::env::vars(), newcomer)
        .with_context(|| format!("{} is no cluster file for {}", file.display(), newcomer.id))
}

impl ConfigCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or when no coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let (file, processes, json) = match self.verb {
            Verb::Check { file, processes, json } => (file, processes, json),
            Verb::Show { target, live, json } => return show(&target, live, json),
        };
        let config = match read(&file) {
            Ok(config) => config,
            Err(error) if json => {
                report::print_json(&json!({ "ok": false, "error": format!("{error:#}") }))?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        if processes {
            print!("{}", config.process_lines());
            return Ok(());
        }
        let listed: Vec<_> = config
            .processes()
            .map(|process| json!({ "id": process.id(), "kind": process.kind(), "host": process.host(), "health": process.health_address() }))
            .collect();
        let remarks = config.remarks();
        if json {
            return report::print_json(
                &json!({ "ok": true, "remarks": remarks, "cluster": config.cluster.name, "open": config.is_open(), "processes": listed }),
            );
        }
        println!(
            "{} describes cluster {} of {} processes{}",
            file.display(),
            config.cluster.name,
            listed.len(),
            if config.is_open() { ", and any node that is started with --host" } else { "" }
        );
        remarks.iter().for_each(|remark| println!("note: {remark}"));
        Ok(())
    }
}

fn show(target: &Target, only_live: bool, as_json: bool) -> Result<()> {
    let mut config: Value = target.resolve()?.get("/v1/config")?;
    if let Some(settings) = config["settings"].as_array_mut().filter(|_| only_live) {
        settings.retain(|one| one["live"] == true);
    }
    if as_json {
        return report::print_json(&config);
    }
    for (of, title) in [
        ("cluster", "agreed on by the whole cluster".to_owned()),
        ("coordinator", format!("as {} was started", text(&config, "coordinator"))),
    ] {
        println!("{}{title}\n", if of == "cluster" { "" } else { "\n" });
        let mut table = report::table(&["SETTING", "VALUE", "LIVE", "CHANGED BY"]);
        for one in list(&config["settings"]).iter().filter(|one| one["of"] == of) {
            let live = if one["live"] == true { "yes" } else { "no" }.to_owned();
            table.add_row([text(one, "key"), text(one, "value"), live, text(one, "change")]);
        }
        report::print_table(&table);
    }
    Ok(())
}
