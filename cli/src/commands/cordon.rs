//! `kvhive cordon` and `kvhive uncordon`.

use crate::admin::Target;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

/// Give a node no more slots: it keeps those that it has and serves them
///
/// Nothing moves to it, no lost copy is repaired on it, and it becomes primary of a slot only where nobody else has all of its blocks. A copy
/// that is on its way to it ends. If its process starts anew it holds nothing and gets nothing. At least one other node must be left that takes
/// slots. It stays so until `kvhive uncordon`; `kvhive drain` empties it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kvhive cordon node-3 --reason 'its disk is slow'
  kvhive nodes                      # its state says cordoned
  kvhive drain node-3               # and empty it, before it is stopped
  kvhive uncordon node-3            # it is given its share again")]
pub(crate) struct Cordon {
    #[command(flatten)]
    common: Common,
}

/// Give a cordoned node slots again: its share comes back in the background
#[derive(Args, Debug)]
pub(crate) struct Uncordon {
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
struct Common {
    /// The node's name
    node: String,
    /// Why, for the journal of events
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print the node as JSON
    #[arg(long)]
    json: bool,
}

impl Cordon {
    /// Asks for it.
    ///
    /// # Errors
    /// When no coordinator answers, there is no such node, or nobody else takes slots.
    pub(crate) fn run(self) -> Result<()> {
        self.common.set(true, "keeps the slots that it has and is given no others")
    }
}

impl Uncordon {
    /// Asks for it.
    ///
    /// # Errors
    /// When no coordinator answers, or there is no such node.
    pub(crate) fn run(self) -> Result<()> {
        self.common.set(false, "is given its share of the slots again")
    }
}

impl Common {
    fn set(self, cordoned: bool, said: &str) -> Result<()> {
        let patch = json!({"cordoned": cordoned, "reason": self.reason});
        let node: Value = self.target.resolve()?.patch(&format!("/v1/members/{}", self.node), &patch)?;
        if self.json {
            return report::print_json(&node);
        }
        println!("{} {said}", self.node);
        Ok(())
    }
}
