//! `kvhive coordinator`: what is done to one coordinator's folder while it does not run.

use super::config;
use crate::cluster::place;
use crate::report;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use kvhive_coordinator::Recovery;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Mend a coordinator that does not run
#[derive(Args, Debug)]
pub(crate) struct Coordinator {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Have one coordinator go on alone, after the majority is lost for good; others are then added to it
    ///
    /// Its log is rewritten: it is the only coordinator from now on and keeps all that it has. What the lost ones had decided without it
    /// is gone. Take the survivor that has entries up to the highest; the lost ones must never start again with their old folders, or there are
    /// two clusters of one name. Nodes that kept running go on with what they hold.
    #[command(after_help = "Examples:
  kvhive coordinator recover --config cluster.toml --id coord-1          # shows what it has, and asks
  kvhive up --config cluster.toml --id coord-1 &
  kvhive raft add coord-2 --config cluster.toml                          # start it with an empty data_dir
  kvhive raft promote coord-2")]
    Recover(Recover),
}

#[derive(Args, Debug)]
struct Recover {
    /// Cluster file that says where its folder is
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The coordinator that is left
    #[arg(long, value_name = "ID")]
    id: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print what was done as JSON; needs --yes
    #[arg(long, requires = "yes")]
    json: bool,
}

impl Coordinator {
    /// Does what was asked.
    ///
    /// # Errors
    /// When it runs, another coordinator answers, its folder cannot be used, or the answer is no.
    pub(crate) fn run(self) -> Result<()> {
        let Verb::Recover(verb) = self.verb;
        verb.run()
    }
}

impl Recover {
    fn run(self) -> Result<()> {
        let config = config::read(&self.config)?;
        let all = place::all(&config, &self.config);
        let place = place::find(&all, &self.id, &self.config)?;
        let recovery = Recovery::open(&config.cluster.name, place).context(self.id.clone())?;
        let in_file = all.iter().map(|place| &place.own).filter(|own| own.name != self.id);
        for own in in_file.chain(&recovery.others) {
            if place::answers(own) {
                bail!(
                    "{} answers at {}: with a majority of the coordinators nothing is to be recovered. If too few live to decide, stop \
                     all but {}, and empty their folders: they are added to it afterwards",
                    own.name,
                    own.raft_address,
                    self.id
                );
            }
        }
        if !self.json {
            self.tell(&recovery);
        }
        if !self.yes {
            ask(&self.id)?;
        }
        let (last, undecided) = (recovery.last, recovery.undecided);
        let others: Vec<String> = recovery.others.iter().map(|own| own.name.clone()).collect();
        let begun = recovery.go_on()?;
        if self.json {
            return report::print_json(&json!({
                "coordinator": self.id, "epoch": begun.epoch, "term": begun.term, "last": last, "undecided": undecided, "lost": others,
            }));
        }
        println!(
            "\n{} is the only coordinator, from epoch {} and term {} on: start it",
            self.id, begun.epoch, begun.term
        );
        println!(
            "then, for each new one: `kvhive raft add ID --config FILE`, start it with an empty data_dir, `kvhive raft promote ID`"
        );
        Ok(())
    }

    fn tell(&self, recovery: &Recovery) {
        let others: Vec<&str> = recovery.others.iter().map(|own| &*own.name).collect();
        let newest = recovery.newest_event_ms.map_or_else(|| "none".to_owned(), report::utc);
        println!(
            "{} has entries up to {}, of term {}; its newest event is of {newest}",
            self.id, recovery.last, recovery.term
        );
        println!(
            "  given up       {}",
            if others.is_empty() { "nobody".to_owned() } else { others.join(", ") }
        );
        println!("  lost           whatever they decided after entry {}", recovery.last);
        println!(
            "  kept           all up to there: {} behind entry {}, that it does not know to be decided, counting from now on",
            report::counted(recovery.undecided as u64, "change"),
            recovery.committed
        );
        if recovery.is_behind {
            println!(
                "  careful        it had not caught up with the others: more may be lost. Is there no better one?"
            );
        }
    }
}

/// Asks whether to go on.
fn ask(id: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing is changed: nobody is there to be asked; say --yes");
    }
    print!(
        "\nHave {id} go on alone? The others must never start again with their old folders. Type its name: "
    );
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() != id {
        bail!("nothing is changed");
    }
    Ok(())
}
