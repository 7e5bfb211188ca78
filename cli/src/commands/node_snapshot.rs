//! `kvhive node persist`, `load` and `snapshots`: a node's snapshots on an operator's word, with progress; which there are.

use crate::admin::{Admin, Target};
use crate::report;
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::time::Duration;

/// How often it is asked how far the node is.
const POLL: Duration = Duration::from_millis(200);

/// Which snapshot of which node.
#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    /// The node's name
    #[arg(long, value_name = "NODE")]
    id: String,
    /// A snapshot of this name beside the node's own, with what is on disk too [default: the node's own]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Which snapshot a node takes in, and what of it.
#[derive(Args, Debug)]
pub(crate) struct Loading {
    #[command(flatten)]
    snapshot: Snapshot,
    /// Take in blocks of this layout alone: the 32 digits of its fingerprint [default: of any]
    #[arg(long, value_name = "FINGERPRINT")]
    layout: Option<String>,
}

impl Loading {
    /// Has the node take it in, and waits until that has ended.
    ///
    /// # Errors
    /// As [`Snapshot::run`]; and when nothing in it is of the layout.
    pub(crate) fn run(&self) -> Result<()> {
        self.snapshot.run("load", self.layout.as_deref())
    }
}

impl Snapshot {
    /// Has the node `persist` or `load`, and waits until that has ended.
    ///
    /// # Errors
    /// When the node is not known or not reached, or it failed.
    pub(crate) fn run(&self, verb: &str, layout: Option<&str>) -> Result<()> {
        let admin = self.target.resolve()?;
        let node = admin.of_node(&address(&admin, &self.id)?);
        let body = json!({ "name": self.name, "layout": layout });
        let mut job: Value = node.post(&format!("/v1/snapshot/{verb}"), &body)?;
        let bar = bar();
        while job["outcome"] == "running" {
            std::thread::sleep(POLL);
            job = node.get("/v1/snapshot")?;
            bar.set_length(job["progress"]["of_blocks"].as_u64().unwrap_or(0));
            bar.set_position(job["progress"]["blocks"].as_u64().unwrap_or(0));
        }
        bar.finish_and_clear();
        let folder = job["folder"].as_str().unwrap_or("?");
        if let Some(why) = job["outcome"]["failed"].as_str() {
            bail!("{} did not {verb} {folder}: {why}", self.id);
        }
        if self.json {
            return report::print_json(&job);
        }
        println!("{}", said(&self.id, folder, &job["outcome"]));
        Ok(())
    }
}

/// Returns where a node's metrics port is.
fn address(admin: &Admin, id: &str) -> Result<String> {
    let members: Value = admin.get_list("/v1/members", "members")?;
    let members = members["members"].as_array().context("the coordinator lists no members")?;
    let Some(member) = members.iter().find(|member| member["name"] == *id) else {
        let known: Vec<&str> = members.iter().filter_map(|one| one["name"].as_str()).take(8).collect();
        bail!("the cluster has no node {id:?}; it has {}", known.join(", "));
    };
    let address = member["metrics_address"].as_str().context("the node says no metrics address")?;
    Ok(address.to_owned())
}

/// Which snapshots a node has.
#[derive(Args, Debug)]
pub(crate) struct Snapshots {
    /// The node's name
    #[arg(long, value_name = "NODE")]
    id: String,
    /// Remove the snapshot of this name beside the node's own; that needs the cluster's own token
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

impl Snapshots {
    /// Lists them, without the one that is to be removed.
    ///
    /// # Errors
    /// When the node is not known or not reached, has no folder for snapshots, or has none of that name.
    pub(crate) fn run(&self) -> Result<()> {
        let admin = self.target.resolve()?;
        let node = admin.of_node(&address(&admin, &self.id)?);
        if let Some(name) = &self.remove {
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
                bail!("a snapshot's name has letters, digits, - and _ alone, unlike {name:?}");
            }
            let _: Value = node.delete(&format!("/v1/snapshots/{name}"))?;
        }
        let all: Value = node.get("/v1/snapshots")?;
        if self.json {
            return report::print_json(&all);
        }
        let none = Vec::new();
        let snapshots = all["snapshots"].as_array().unwrap_or(&none);
        if snapshots.is_empty() {
            println!("{} has no snapshot", self.id);
            return Ok(());
        }
        let mut table = report::table(&["NAME", "WRITTEN", "BLOCKS", "BYTES"]);
        for one in snapshots {
            table.add_row(row(one));
        }
        report::print_table(&table);
        Ok(())
    }
}

fn row(one: &Value) -> [String; 4] {
    let figure = |field: &str| one[field].as_u64().unwrap_or(0);
    let name = one["name"].as_str().unwrap_or("(its own)").to_owned();
    let Some(written_s) = one["written_s"].as_u64() else {
        return [name, "broken off".to_owned(), "-".to_owned(), "-".to_owned()];
    };
    let written = report::utc(written_s.saturating_mul(1000));
    [name, written, figure("blocks").to_string(), report::bytes(figure("bytes"))]
}

fn said(id: &str, folder: &str, outcome: &Value) -> String {
    let figure = |of: &Value, field: &str| of[field].as_u64().unwrap_or(0);
    let done = |of: &Value, what: &str| {
        let bytes = report::bytes(figure(of, "bytes"));
        format!("{id} {what} {folder}: {}, {bytes}", report::counted(figure(of, "blocks"), "block"))
    };
    if outcome["persisted"].is_object() {
        return done(&outcome["persisted"], "has written");
    }
    let loaded = &outcome["loaded"];
    let mut text = done(loaded, "has taken in");
    for (field, what) in [
        ("already", "were here already"),
        ("ended", "are of a tenant that was cleared or is gone"),
        ("elsewhere", "are of slots that other nodes hold"),
        ("other_secret", "are of another secret"),
        ("too_large", "are larger than its frames"),
        ("other_layout", "are of another layout"),
        ("no_room", "found no free frame"),
        ("damaged", "are damaged or missing"),
    ] {
        if figure(loaded, field) > 0 {
            text.push_str(&format!("\n  {} {what}", figure(loaded, field)));
        }
    }
    text
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} blocks {elapsed}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_told_in_one_row() {
        let own = json!({ "name": null, "written_s": 0, "blocks": 2, "bytes": 2048 });
        assert_eq!(row(&own), ["(its own)", "1970-01-01 00:00:00.000Z", "2", "2.0 KiB"]);
        let half = json!({ "name": "x", "written_s": null, "blocks": 0, "bytes": 0 });
        assert_eq!(row(&half), ["x", "broken off", "-", "-"]);
    }

    #[test]
    fn what_was_not_taken_in_is_told_with_its_reason() {
        let loaded =
            json!({ "loaded": { "blocks": 3, "bytes": 3072, "already": 0, "elsewhere": 2, "damaged": 1 } });
        assert_eq!(
            said("node-a", "/cache/node-a", &loaded),
            "node-a has taken in /cache/node-a: 3 blocks, 3.0 KiB\n  2 are of slots that other nodes hold\n  1 are damaged or missing"
        );
        let saved = json!({ "persisted": { "blocks": 1, "bytes": 1024, "resumed": 0 } });
        assert_eq!(said("node-a", "/x", &saved), "node-a has written /x: 1 block, 1.0 KiB");
    }
}
