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
        self.common.set(true)
    }
}

impl Uncordon {
    /// Asks for it.
    ///
    /// # Errors
    /// When no coordinator answers, or there is no such node.
    pub(crate) fn run(self) -> Result<()> {
        self.common.set(false)
    }
}

impl Common {
    fn set(self, cordoned: bool) -> Result<()> {
        let patch = json!({"cordoned": cordoned, "reason": self.reason});
        let node: Value = self.target.resolve()?.patch(&format!("/v1/members/{}", self.node), &patch)?;
        if self.json {
            return report::print_json(&node);
        }
        println!("{}", said(&self.node, cordoned, node["drains"] == true));
        Ok(())
    }
}

/// Says what has come of it: a node that is being emptied goes on being emptied, whether it is cordoned or not.
fn said(name: &str, cordoned: bool, drains: bool) -> String {
    match (cordoned, drains) {
        (true, false) => format!("{name} keeps the slots that it has and is given no others"),
        (false, false) => format!("{name} is given its share of the slots again"),
        (true, true) => format!("{name} is cordoned, and goes on being emptied"),
        (false, true) => format!(
            "{name} is cordoned no longer, and goes on being emptied: it is given slots after `kvhive drain {name} --undo`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_being_emptied_is_not_said_to_keep_slots_or_to_be_given_any() {
        assert!(said("node-1", true, false).contains("keeps the slots"));
        assert!(said("node-1", false, false).contains("its share of the slots again"));
        for cordoned in [true, false] {
            let said = said("node-1", cordoned, true);
            assert!(said.contains("goes on being emptied"), "{said}");
            assert!(!said.contains("keeps the slots") && !said.contains("its share"), "{said}");
        }
    }
}
