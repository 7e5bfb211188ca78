//! `kvhive pin`: prefixes whose blocks stay.

mod count;

use super::connect::Connect;
use super::named::{Named, Names};
use super::status::{list, text};
use crate::admin::Target;
use crate::report;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use kvhive_protocol::{PinMode, Reason};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Pin prefixes: their blocks do not leave to make room for others, and are repaired first
///
/// A pinned block moves between memory and disk like any other, by its use. At most half of a device's frames, and half of what a
/// tenant is promised there, are pinned at a time; what is named beyond that is an ordinary block, which `pin list` counts.
#[derive(Args, Debug)]
pub(crate) struct PinCommand {
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Pin a prefix; a pin of this name becomes this one
    ///
    /// What is not stored yet is pinned when it comes. Nodes are then asked how many of the blocks they have pinned: fewer than are stored where
    /// half of a device's frames, or of what the tenant is promised there, are pinned already. The pin stands all the same, and they are pinned
    /// when there is room.
    #[command(after_help = EXAMPLES)]
    Add(Box<Add>),
    /// List what is pinned
    List {
        #[command(flatten)]
        target: Target,
    },
    /// End a pin: its blocks stay where they are until others take their place
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

const EXAMPLES: &str = "Examples:
  kvhive pin add system-prompt --tokens-file prompt.json --blocks-file blocks.json --model llama@3
  kvhive pin add tonight --for 8h --reason 'the batch run' --request 7 --trace conversation.jsonl.zst
  kvhive pin add two 3f0c… 91ab…";

#[derive(Args, Debug)]
struct Add {
    /// The pin's name: lower-case letters, digits, '-', '_' and '.'
    name: String,
    #[command(flatten)]
    named: Named,
    /// End it by itself after this time: a soft pin, such as 30m or 8h [default: it lasts until it is removed]
    #[arg(long = "for", value_name = "TIME", value_parser = lasting)]
    lasts: Option<Duration>,
    /// Pin only so many blocks from the beginning
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Say why: it is kept with the pin, and told in `kvhive events`
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<Reason>,
    #[command(flatten)]
    connect: Connect,
}

impl PinCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When a file says nothing of use, the cluster cannot be reached, or it is refused.
    pub(crate) fn run(self) -> Result<()> {
        match self.verb {
            Verb::Add(add) => super::runtime()?.block_on(add.run(self.json)),
            Verb::List { target } => show(&target, self.json),
            Verb::Remove { name, target } => {
                let nothing: Value = target.resolve()?.delete(&format!("/v1/pins/{name}"))?;
                if self.json {
                    return report::print_json(&nothing);
                }
                println!("{name} is pinned no longer");
                Ok(())
            }
        }
    }
}

impl Add {
    async fn run(&self, as_json: bool) -> Result<()> {
        let names = self.named.names()?;
        let mode = mode(self.lasts)?;
        let client = self.connect.client().await?;
        let mut keys = match &names {
            Names::Keys(keys) => keys.clone(),
            names => {
                let namings = self.named.namings(names)?;
                let naming = namings.first().context("say how the blocks are named")?;
                let namespace = self.named.namespace(&client, naming)?;
                self.named.prefix(&namespace, names).keys().to_vec()
            }
        };
        keys.truncate(self.first.unwrap_or(usize::MAX));
        if keys.is_empty() {
            bail!("the prompt has no full block: there is nothing to pin");
        }
        let reason = self.reason.clone().unwrap_or_default();
        let replaced = client.map().pins.get(&self.name).map(|pin| pin.keys.len());
        client.pin_keys(&self.name, &self.named.tenant, &keys, mode, reason).await?;
        let until_ms = match mode {
            PinMode::Soft { until_ms } => Some(until_ms),
            PinMode::Hard => None,
        };
        let counted = count::count(&client, &self.named.tenant, &keys).await?;
        let remark = counted.remark();
        if as_json {
            return report::print_json(&json!({
                "name": self.name, "keys": keys.len(), "until_ms": until_ms, "blocks": counted, "remark": remark,
                "replaced_keys": replaced,
            }));
        }
        let blocks = |count: usize| report::counted(count as u64, "block");
        println!("{}: names {}, {}", self.name, blocks(keys.len()), lasts(until_ms));
        if let Some(replaced) = replaced {
            println!("a pin of this name, of {}, has ended: this one is in its place", blocks(replaced));
        }
        println!(
            "{} are pinned, {} are not stored and will be when they come",
            counted.pinned, counted.absent
        );
        if let Some(remark) = remark {
            println!("{remark}");
        }
        Ok(())
    }
}

/// Reads for how long a pin lasts; one that has ended when it begins is none.
fn lasting(text: &str) -> Result<Duration, String> {
    let lasts = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lasts < Duration::from_secs(1) {
        return Err("a pin lasts a second at least".to_owned());
    }
    Ok(lasts)
}

fn reason(text: &str) -> Result<Reason, String> {
    Reason::try_from(text.to_owned())
}

fn mode(lasts: Option<Duration>) -> Result<PinMode> {
    let Some(lasts) = lasts else { return Ok(PinMode::Hard) };
    let until = SystemTime::now().checked_add(lasts).context("--for is longer than time can be told")?;
    let until_ms =
        until.duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?.as_millis();
    Ok(PinMode::Soft { until_ms: u64::try_from(until_ms).context("--for is longer than time can be told")? })
}

fn lasts(until_ms: Option<u64>) -> String {
    let time = until_ms.and_then(|until| UNIX_EPOCH.checked_add(Duration::from_millis(until)));
    // The year 9999 is the last that is written so.
    let time = time.filter(|_| until_ms.is_some_and(|until| until < 253_402_300_800_000));
    match (until_ms, time) {
        (None, _) => "until the pin is removed".to_owned(),
        (Some(_), Some(time)) => format!("until {}", humantime::format_rfc3339_seconds(time)),
        (Some(until), None) => format!("until {until} ms after 1970"),
    }
}

fn show(target: &Target, as_json: bool) -> Result<()> {
    let pins: Value = target.resolve()?.get("/v1/pins")?;
    if as_json {
        return report::print_json(&pins);
    }
    let mut table = report::table(&["PIN", "TENANT", "BLOCKS", "SLOTS", "LASTS", "REASON"]);
    for one in list(&pins["pins"]) {
        let until = lasts(one["until_ms"].as_u64());
        let reason = one["reason"].as_str().unwrap_or_default().to_owned();
        let [name, tenant, keys, slots] = ["name", "tenant", "keys", "slots"].map(|field| text(one, field));
        table.add_row([name, tenant, keys, slots, until, reason]);
    }
    report::print_table(&table);
    println!(
        "{} pinned on nodes now, replicas counted",
        report::counted_are(pins["pinned_blocks"].as_u64().unwrap_or(0), "block")
    );
    if pins["refused"].as_u64().is_some_and(|refused| refused > 0) {
        println!(
            "{} times a node did not pin a block because half of its frames, or of its tenant's, were pinned already",
            text(&pins, "refused")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_would_be_over_at_once_is_refused() {
        for over in ["0s", "999ms"] {
            assert_eq!(lasting(over), Err("a pin lasts a second at least".to_owned()), "{over}");
        }
        assert!(lasting("1s").is_ok() && lasting("8h").is_ok());
    }
}
