//! `kvhive balance`.

use super::status::{list, text};
use crate::admin::Target;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

/// Spread work over devices: slots that are read much get more replicas, busy devices give slots away
///
/// Goes by what devices report of the last seconds. Slots then move in the background; `kvhive status` shows how many still do.
/// With `balance = "continuous"` in the cluster file the coordinators do it by themselves.
#[derive(Args, Debug)]
pub(crate) struct Balance {
    #[command(flatten)]
    target: Target,
    /// Change nothing, show what would be changed and why
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Balance {
    /// Asks for it and prints what is changed.
    ///
    /// # Errors
    /// When no coordinator answers.
    pub(crate) fn run(self) -> Result<()> {
        let report: Value = self.target.resolve()?.post("/v1/balance", &json!({"dry_run": self.dry_run}))?;
        if self.json {
            return report::print_json(&report);
        }
        let times = |field: &str| {
            report[field].as_f64().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        let rate = |device: &Value, field: &str| {
            device[field]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |bytes| format!("{}/s", report::bytes(bytes)))
        };
        println!(
            "busiest / mean: {} now, {} with the changes\n",
            times("busiest_to_mean"),
            times("busiest_to_mean_after")
        );
        let mut table = report::table(&["DEVICE", "NODE", "READ NOW", "WITH THE CHANGES"]);
        for one in list(&report["devices"]) {
            table.add_row([
                text(one, "device"),
                text(one, "node"),
                rate(one, "read_rate"),
                rate(one, "read_rate_after"),
            ]);
        }
        report::print_table(&table);
        let changes = list(&report["changes"]);
        if changes.is_empty() {
            println!("\nnothing to change: {}", text(&report, "because"));
            return Ok(());
        }
        println!();
        let mut table = report::table(&["SLOT", "REPLICAS, PRIMARY FIRST", "WHY"]);
        for one in changes {
            let replicas: Vec<&str> = list(&one["replicas"]).iter().filter_map(Value::as_str).collect();
            let replicas =
                if replicas.is_empty() { "where its hash says".to_owned() } else { replicas.join("  ") };
            table.add_row([text(one, "slot"), replicas, text(one, "reason")]);
        }
        report::print_table(&table);
        match self.dry_run {
            true => println!("\nnothing was changed"),
            false => {
                println!(
                    "\n{} changed; `kvhive status` shows how many still move",
                    report::counted_are(changes.len() as u64, "slot")
                )
            }
        }
        Ok(())
    }
}
