//! `kvhive status|nodes|slots`: tables from the admin API.

use crate::admin::{Admin, Target};
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

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
    /// Show by which way blocks get from device to device instead, and why: within a process, through shared memory, by NCCL or by TCP
    #[arg(long)]
    links: bool,
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

/// Returns the cluster at a glance; where nobody leads as one coordinator has it, and that is said.
fn of_cluster(admin: &Admin) -> Result<Value> {
    let agreed = admin.get("/v1/cluster");
    let Err(error) = agreed else { return agreed };
    let own = admin.get::<Value>("/v1/cluster?consistency=stale").ok();
    let own = own.filter(|own| own["leader"].is_null()).ok_or(error)?;
    eprintln!(
        "nobody leads the coordinators: nothing can be changed, and this is what the one that answered has; nodes serve by it"
    );
    Ok(own)
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
        let status: Value = of_cluster(&self.target.resolve()?)?;
        if self.json {
            return report::print_json(&status);
        }
        let slots = &status["slots"];
        println!(
            "leader {}   term {}   epoch {}   level {}   slots {} ({} unavailable, {} moving)\n",
            text(&status, "leader"),
            text(&status, "term"),
            text(&status, "epoch"),
            text(&status, "level"),
            text(slots, "total"),
            text(slots, "unavailable"),
            text(slots, "moving")
        );
        if let Some(line) = rises_with(&status) {
            println!("{line}\n");
        }
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
        println!("\n{}", tiers(&status).join("\n"));
        Ok(())
    }
}

impl Nodes {
    /// Prints the nodes, or their links.
    ///
    /// # Errors
    /// When no coordinator answers; of links, also when a node does not.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        if self.links {
            return super::links::show(&admin, self.json);
        }
        let status: Value = of_cluster(&admin)?;
        if self.json {
            return report::print_json(&json!({ "nodes": status["nodes"], "devices": status["devices"] }));
        }
        print_nodes(&status);
        println!();
        let mut table = report::table(&[
            "DEVICE",
            "NODE",
            "KIND",
            "BLOCKS",
            "DEVICE TIER",
            "HOST TIER",
            "DISK TIER",
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
                tier(one, "device"),
                tier(one, "host"),
                tier(one, "disk"),
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

/// Says how full a device's tier is, and whether it has failed.
fn tier(device: &Value, name: &str) -> String {
    let Some(tier) = list(&device["tiers"]).iter().find(|tier| tier["tier"] == name) else {
        return "-".to_owned();
    };
    let room = format!("{} of {}", size(tier, "used_bytes"), size(tier, "capacity_bytes"));
    if tier["closed"] == true { format!("{room}, failed") } else { room }
}

/// Says how full the tiers of all devices are together, each on a line, and whose have failed.
fn tiers_of_all(devices: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for name in ["device", "host", "disk"] {
        let of_all =
            || devices.iter().flat_map(|one| list(&one["tiers"]).iter().map(move |tier| (one, tier)));
        let these = || of_all().filter(|(_, tier)| tier["tier"] == name);
        let sum = |field: &str| these().filter_map(|(_, tier)| tier[field].as_u64()).sum::<u64>();
        if these().next().is_none() {
            continue;
        }
        let (used, room) = (report::bytes(sum("used_bytes")), report::bytes(sum("capacity_bytes")));
        lines.push(format!("{name} tiers: {used} of {room}, {}", report::counted(sum("blocks"), "block")));
        for (device, _) in these().filter(|(_, tier)| tier["closed"] == true) {
            // A disk is tried again; a GPU's context that has ended stays so as long as the process.
            let then = match name {
                "device" => {
                    "what it held is lost, and it is done without until its node starts anew; see docs/operate.md#gpus"
                }
                _ => "it is done without until it works again; see docs/disk.md",
            };
            let (node, device) = (text(device, "node"), text(device, "device"));
            lines.push(format!("the {name} of {node} (device {device}) has failed: {then}"));
        }
    }
    lines
}

/// Says how full the tiers are, as far as whoever answered has heard of devices.
fn tiers(status: &Value) -> Vec<String> {
    let lines = tiers_of_all(list(&status["devices"]));
    match lines.is_empty() {
        true if status["leader"].is_null() => {
            vec!["what devices hold is not known: they tell it to who leads, and nobody does".to_owned()]
        }
        true => vec!["no device has reported yet".to_owned()],
        false => lines,
    }
}

/// Says what keeps a cluster at its level some of whose members speak a newer one.
fn rises_with(status: &Value) -> Option<String> {
    let level = status["level"].as_u64()?;
    let members = || list(&status["coordinators"]).iter().chain(list(&status["nodes"]));
    let newest = members().filter_map(|one| one["speaks"].as_u64()).max().filter(|newest| *newest > level)?;
    let holds = members().filter(|one| one["speaks"].as_u64().is_none_or(|speaks| speaks < newest));
    let holds: Vec<String> = holds.map(|one| text(one, "name")).collect();
    let wait = if holds.is_empty() {
        "in a moment".to_owned()
    } else {
        format!("once {} speak it", holds.join(", "))
    };
    Some(format!("some members speak level {newest}: the cluster is at it {wait}"))
}

fn state(node: &Value) -> String {
    let state = text(node, "state");
    let also = ["drains", "cordoned"].into_iter().filter(|word| node[word] == Value::Bool(true));
    // Down by the map, or started anew elsewhere: a process of before may be answering by an older one.
    let lingers = (!node["lingers"].is_null()).then_some("lingers");
    also.chain(lingers).fold(state, |state, word| format!("{state}, {word}"))
}

/// Says what a device's strategies have chosen, each choice once.
fn ranked_by(device: &Value) -> String {
    let mut chosen: Vec<String> =
        list(&device["strategies"]).iter().map(|one| text(one, "in_charge")).collect();
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.is_empty() { "-".to_owned() } else { chosen.join(", ") }
}

/// Says what a node keeps of others' slots, and for how many blocks that clients were given how many were fetched.
fn guests(node: &Value) -> String {
    let guests = &node["guests"];
    match guests["given_blocks"].as_u64() {
        None => "-".to_owned(),
        Some(0) if guests["blocks"] == 0 => "-".to_owned(),
        Some(_) => format!(
            "{}, {}; {} fetched for {} given",
            text(guests, "blocks"),
            size(guests, "bytes"),
            text(guests, "fetched_blocks"),
            text(guests, "given_blocks")
        ),
    }
}

fn print_nodes(status: &Value) {
    let mut table =
        report::table(&["NODE", "STATE", "GENERATION", "DATA PLANE", "DEVICES", "GUESTS", "LABELS"]);
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
            guests(one),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_process_of_before_may_be_serving_is_told_apart() {
        let node = |state: &str, lingers: Value| json!({ "state": state, "drains": false, "cordoned": state == "up", "lingers": lingers });
        assert_eq!(super::state(&node("down", Value::Null)), "down");
        assert_eq!(super::state(&node("down", json!({ "generation": 1, "moved": false }))), "down, lingers");
        assert_eq!(
            super::state(&node("up", json!({ "generation": 1, "moved": true }))),
            "up, cordoned, lingers"
        );
    }

    #[test]
    fn a_nodes_guests_are_told_with_how_many_were_fetched_for_how_many() {
        let told = json!({ "blocks": 2, "bytes": 4096, "given_blocks": 16, "fetched_blocks": 3 });
        assert_eq!(guests(&json!({ "guests": told })), "2, 4.0 KiB; 3 fetched for 16 given");
        let none = json!({ "blocks": 0, "bytes": 0, "given_blocks": 0, "fetched_blocks": 0 });
        assert_eq!(guests(&json!({ "guests": none })), "-");
        // Of one that has not reported, or whose coordinator is older.
        assert_eq!([guests(&json!({ "guests": null })), guests(&json!({}))], ["-", "-"]);
    }

    #[test]
    fn tiers_are_told_apart_and_one_that_has_failed_is_named() {
        let tier = |name: &str, used: u64, closed: bool| json!({ "tier": name, "blocks": used, "used_bytes": used << 10, "capacity_bytes": 8 << 10, "closed": closed });
        let device = |id: &str, closed| json!({ "device": id, "node": "a", "tiers": [tier("device", 1, false), tier("disk", 3, closed)] });
        let devices = [device("1/0", false), device("1/1", true)];
        assert_eq!(super::tier(&devices[1], "device"), "1.0 KiB of 8.0 KiB");
        assert_eq!(super::tier(&devices[1], "disk"), "3.0 KiB of 8.0 KiB, failed");
        assert_eq!(super::tier(&devices[1], "host"), "-");
        let lines = tiers_of_all(&devices);
        assert_eq!(lines[0], "device tiers: 2.0 KiB of 16.0 KiB, 2 blocks");
        assert_eq!(lines[1], "disk tiers: 6.0 KiB of 16.0 KiB, 6 blocks");
        let disk = "the disk of a (device 1/1) has failed: it is done without until it works again; see docs/disk.md";
        assert_eq!((lines.len(), lines[2].as_str()), (3, disk));
        let gpu = json!({ "device": "2/0", "node": "b", "kind": "cuda", "tiers": [tier("device", 0, true)] });
        let gpu = tiers_of_all(&[gpu]).pop().unwrap_or_default();
        assert!(gpu.ends_with("until its node starts anew; see docs/operate.md#gpus"), "{gpu}");
    }

    #[test]
    fn where_nobody_leads_it_is_not_said_that_no_device_has_reported() {
        let silent =
            |leader: Value| json!({ "leader": leader, "devices": [{ "device": "1/0", "tiers": [] }] });
        assert_eq!(super::tiers(&silent(json!("coord-1"))), ["no device has reported yet"]);
        let said = super::tiers(&silent(Value::Null));
        assert_eq!(said, ["what devices hold is not known: they tell it to who leads, and nobody does"]);
    }
}
