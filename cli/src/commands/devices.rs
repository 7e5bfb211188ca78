//! `kvhive devices`.

use super::status::{list, rate, size, text};
use crate::admin::Target;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

/// List the devices of nodes that are up: what they hold, how busy they are, and how well they do
///
/// Figures are as each device reported last, a few times a second; `-` where it has not reported to the leader yet.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kvhive devices                    # every device, a line each
  kvhive devices 3/0                # one, with its tiers and traffic
  kvhive devices --json | jq '.devices[] | {device, read_rate, wait_us}'")]
pub(crate) struct Devices {
    /// This device alone, as NODE/INDEX: the node's name or number, and which of its devices
    #[arg(value_name = "DEVICE", value_parser = device)]
    device: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

fn device(text: &str) -> Result<String, String> {
    let is_plain =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match text.split_once('/') {
        Some((member, index))
            if member.starts_with(|first: char| first.is_ascii_alphanumeric())
                && is_plain(member)
                && index.parse::<u16>().is_ok() =>
        {
            Ok(text.to_owned())
        }
        _ => Err("a device is NODE/INDEX, as in node-3/0 or 3/0; `kvhive devices` lists them".to_owned()),
    }
}

impl Devices {
    /// Prints the devices, or one of them.
    ///
    /// # Errors
    /// When no coordinator answers, or there is no such device.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        let answer = match &self.device {
            Some(device) => json!({"devices": [admin.get::<Value>(&format!("/v1/devices/{device}"))?]}),
            None => admin.get_list("/v1/devices", "devices")?,
        };
        let devices = list(&answer["devices"]);
        match (self.json, &self.device) {
            (true, None) => return report::print_json(&answer),
            (true, Some(_)) => return report::print_json(&devices[0]),
            (false, None) => {}
            (false, Some(_)) => return print_one(&devices[0]),
        }
        let mut table = report::table(&[
            "DEVICE",
            "NODE",
            "KIND",
            "MEMORY",
            "USED",
            "BLOCKS",
            "PRIMARY SLOTS",
            "SLOTS",
            "FILLING",
            "HIT RATE",
            "READ",
            "WAIT",
        ]);
        for one in devices {
            table.add_row([
                text(one, "device"),
                text(one, "node"),
                text(one, "kind"),
                size(one, "capacity_bytes"),
                size(one, "used_bytes"),
                text(one, "blocks"),
                text(one, "primary_slots"),
                text(one, "slots"),
                text(one, "filling_slots"),
                rate(one, "hit_rate"),
                read(one),
                wait(one),
            ]);
        }
        report::print_table(&table);
        Ok(())
    }
}

fn read(device: &Value) -> String {
    device["read_rate"].as_u64().map_or_else(|| "-".to_owned(), |rate| format!("{}/s", report::bytes(rate)))
}

fn wait(device: &Value) -> String {
    device["wait_us"].as_u64().map_or_else(|| "-".to_owned(), |us| format!("{us} µs"))
}

fn print_one(one: &Value) -> Result<()> {
    println!("{} of {}, {}", text(one, "device"), text(one, "node"), text(one, "kind"));
    println!(
        "  slots     {} ({} as primary), {} lack older blocks",
        text(one, "slots"),
        text(one, "primary_slots"),
        text(one, "filling_slots")
    );
    println!(
        "  asked     {} read, {} waited for its answer, {} of keys hit",
        read(one),
        wait(one),
        rate(one, "hit_rate")
    );
    for tier in list(&one["tiers"]) {
        println!(
            "  {:<9} {} of {}, {}, {}{}",
            text(tier, "tier"),
            size(tier, "used_bytes"),
            size(tier, "capacity_bytes"),
            number(tier, "blocks", "block"),
            number(tier, "hits", "hit"),
            if tier["closed"] == true { "; it has failed" } else { "" }
        );
    }
    let traffic = &one["traffic"];
    if !traffic.is_null() {
        println!(
            "  traffic   {} given out, {} taken in; {} fetched, {} stored, {} evicted since its start",
            size(traffic, "read_bytes"),
            size(traffic, "written_bytes"),
            number(traffic, "fetched_blocks", "block"),
            text(traffic, "stored_blocks"),
            text(traffic, "evicted_blocks")
        );
    }
    Ok(())
}

/// Reads a number of things in words.
fn number(value: &Value, field: &str, noun: &str) -> String {
    value[field].as_u64().map_or_else(|| "-".to_owned(), |count| report::counted(count, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_nodes_name_or_number_and_an_index() {
        for right in ["3/0", "node-1.rack_2/0"] {
            assert_eq!(device(right), Ok(right.to_owned()));
        }
        for wrong in ["3", "3/", "/0", "3/0/1", "", "../0", "3/x", "a b/0", "3/70000"] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }
}
