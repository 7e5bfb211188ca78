//! `kvhive raft`: the coordinators themselves.

use super::status::text;
use crate::admin::{Admin, Target};
use crate::report;
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Look after the coordinators: who leads
#[derive(Args, Debug)]
pub(crate) struct Raft {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Hand leadership to another coordinator, without an election timeout; returns when it leads
    ///
    /// A leader that is told to end does so by itself. Changes that are under way meanwhile are repeated by their askers.
    Transfer {
        /// The coordinator's name
        name: String,
    },
}

impl Raft {
    /// Does what was asked.
    ///
    /// # Errors
    /// When no coordinator answers, or it is refused.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        match &self.verb {
            Verb::Transfer { name } => self.transfer(&admin, name),
        }
    }

    fn transfer(&self, admin: &Admin, name: &str) -> Result<()> {
        let group: Value = admin.post("/v1/raft/transfer", &json!({"to": name}))?;
        if self.json {
            return report::print_json(&group);
        }
        println!("{} leads in term {}", text(&group, "leader"), text(&group, "term"));
        Ok(())
    }
}
