//! `kvhive status|nodes|slots`: tables from the admin API.

use crate::admin::Target;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::Value;

/// Show who leads, which nodes serve and how the slots stand
#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    target: Target,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// List the nodes, their devices and what these hold
#[derive(Args, Debug)]
pub(crate) struct Nodes {
    #[command(flatten)]
    target: Target,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Show where slots are placed: a summary per device, or one slot
#[derive(Args, Debug)]
pub(crate) struct Slots {
    #[command(flatten)]
    target: Target,
    /// Show this slot alone
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..4096))]
    slot: Option<u16>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Reads a field as text, whatever its type.
pub(crate) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Reads a number of bytes in the unit that fits it.
pub(super) fn size(value: &Value, field: &str) -> String {
    value[field].as_u64().map_or_else(|| "-".to_owned(), report::bytes)
}

/// Reads a share as a percentage.
pub(super) fn rate(value: &Value, field: &str) -> String {
    value[field].as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", 100.0 * rate))
}

/// Returns a list's items.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Status {
    /// Prints the status.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let status: Value = self.target.resolve()?.get("/v1/cluster")?;
        if self.json {
            return report::print_json(&status);
        }
        let slots = &status["slots"];
        println!(
            "leader {}   term {}   epoch {}   slots {} ({} unavailable, {} moving)\n",
            text(&status, "leader"),
            text(&status, "term"),
            text(&status, "epoch"),
            text(slots, "total"),
            text(slots, "unavailable"),
            text(slots, "moving")
        );
        let mut table = report::table(&["COORDINATOR", "ROLE", "TERM", "COMMITTED", "APPLIED"]);
        for one in list(&status["coordinators"]) {
            table.add_row([
                text(one, "name"),
                text(one, "role"),
                text(one, "term"),
                text(one, "committed"),
                text(one, "applied"),
            ]);
        }
        report::print_table(&table);
        println!();
        print_nodes(&status);
        Ok(())
    }
}

impl Nodes {
    /// Prints the nodes.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let status: Value = self.target.resolve()?.get("/v1/cluster")?;
        if self.json {
            return report::print_json(&status["nodes"]);
        }
        print_nodes(&status);
        println!();
        let mut table = report::table(&[
            "DEVICE",
            "NODE",
            "KIND",
            "BLOCKS",
            "USED",
            "CAPACITY",
            "PRIMARY SLOTS",
            "SLOTS",
            "HIT RATE",
            "RANKED BY",
        ]);
        for one in list(&status["devices"]) {
            table.add_row([
                text(one, "device"),
                text(one, "node"),
                text(one, "kind"),
                text(one, "blocks"),
                size(one, "used_bytes"),
                size(one, "capacity_bytes"),
                text(one, "primary_slots"),
                text(one, "slots"),
                rate(one, "hit_rate"),
                ranked_by(one),
            ]);
        }
        report::print_table(&table);
        Ok(())
    }
}

fn state(node: &Value) -> String {
    let state = text(node, "state");
    if node["drains"] == Value::Bool(true) { format!("{state}, drains") } else { state }
}

/// Says what a device's strategies have chosen, each choice once.
fn ranked_by(device: &Value) -> String {
    let mut chosen: Vec<String> =
        list(&device["strategies"]).iter().map(|one| text(one, "in_charge")).collect();
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.is_empty() { "-".to_owned() } else { chosen.join(", ") }
}

fn print_nodes(status: &Value) {
    let mut table = report::table(&["NODE", "STATE", "GENERATION", "DATA PLANE", "DEVICES", "LABELS"]);
    for one in list(&status["nodes"]) {
        let labels = one["labels"].as_object().map_or_else(String::new, |labels| {
            labels
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(",")
        });
        table.add_row([
            text(one, "name"),
            state(one),
            text(one, "generation"),
            text(one, "data_address"),
            text(one, "devices"),
            labels,
        ]);
    }
    report::print_table(&table);
}

impl Slots {
    /// Prints the slots.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let path = self.slot.map_or_else(|| "/v1/slots".to_owned(), |slot| format!("/v1/slots?slot={slot}"));
        let slots: Value = self.target.resolve()?.get(&path)?;
        if self.json {
            return report::print_json(&slots);
        }
        if self.slot.is_some() {
            let mut table = report::table(&["SLOT", "REPLICAS, PRIMARY FIRST"]);
            for one in list(&slots["slots"]) {
                let replicas: Vec<String> = list(&one["replicas"])
                    .iter()
                    .map(|device| device.as_str().unwrap_or_default().to_owned())
                    .collect();
                table.add_row([text(one, "slot"), replicas.join("  ")]);
            }
            report::print_table(&table);
            return Ok(());
        }
        println!(
            "{} slots, {} unavailable, {} moving\n",
            text(&slots, "total"),
            text(&slots, "unavailable"),
            text(&slots, "moving")
        );
        let mut table = report::table(&["DEVICE", "NODE", "PRIMARY SLOTS", "SLOTS"]);
        for one in list(&slots["devices"]) {
            table.add_row([
                text(one, "device"),
                text(one, "node"),
                text(one, "primary_slots"),
                text(one, "slots"),
            ]);
        }
        report::print_table(&table);
        Ok(())
    }
}
