//! `kvhive config check`.

use crate::report;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use kvhive_config::{ClusterConfig, Newcomer};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Check a cluster file
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
    /// Everything that is wrong with the file.
    pub(crate) fn run(self) -> Result<()> {
        let Verb::Check { file, processes, json } = self.verb;
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
