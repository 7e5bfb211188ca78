//! `kvhive engines`: the serving processes whose caches the coordinators follow.

use super::status::{list, text};
use crate::admin::{Admin, Target};
use crate::report;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Show the serving engines that the coordinators follow, follow another, or forget one
///
/// Every coordinator hears every engine's cache events (vLLM's and SGLang's, over ZeroMQ), so that any of them can answer
/// `kvhive route`. In vLLM they are switched on by `--kv-events-config`, with a replay endpoint.
#[derive(Args, Debug)]
pub(crate) struct Engines {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Follow an engine; one of this name that is known is replaced
    Follow(Follow),
    /// Follow an engine no longer
    Forget {
        /// Its name
        name: String,
    },
}

#[derive(Args, Debug)]
struct Follow {
    /// Its name; each data-parallel rank is an engine of its own
    name: String,
    /// What it serves, as its blocks in kvhive are named by
    #[arg(long)]
    model: String,
    /// Tokens of one of its own blocks
    #[arg(long, value_name = "N")]
    block_tokens: u32,
    /// Where it publishes its cache events; `tcp://` may be left out
    #[arg(long, value_name = "[tcp://]HOST:PORT")]
    events: String,
    /// Where it repeats them: without it every gap costs what is known
    #[arg(long, value_name = "[tcp://]HOST:PORT")]
    replay: Option<String>,
    /// The beginning of its topics [default: all]
    #[arg(long)]
    topic: Option<String>,
    /// The kvhive node on its host: what is in that one's memory is nearest
    #[arg(long)]
    node: Option<String>,
    /// Whose blocks it stores in kvhive [default: default]
    #[arg(long)]
    tenant: Option<String>,
    /// JSON file that says how its blocks are named in kvhive, so that those count too: {"layout": {"layers", "kv_heads", "head_dim",
    /// "tokens", "dtype", "order"}, "rank": 0, "named_by": "tokens" or "hashes"}
    #[arg(long, value_name = "FILE")]
    blocks_file: Option<PathBuf>,
}

impl Engines {
    /// Does what was asked.
    ///
    /// # Errors
    /// When no coordinator answers, or it is refused.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        match &self.verb {
            None => self.show(&admin),
            Some(Verb::Follow(follow)) => {
                let engine: Value = admin.post("/v1/engines", &follow.question()?)?;
                if self.json {
                    return report::print_json(&engine);
                }
                println!("following {} at {}", text(&engine, "name"), text(&engine, "events"));
                let named = engine["blocks"]["layout"]["tokens"].as_u64();
                if let Some(tokens) = named.filter(|tokens| *tokens != u64::from(follow.block_tokens)) {
                    eprintln!(
                        "note: its blocks in kvhive have {tokens} tokens and its own {}: routes count both, and block events of kvhive's go by \
                         the engines' hashes only where these are equal",
                        follow.block_tokens
                    );
                }
                Ok(())
            }
            Some(Verb::Forget { name }) => {
                let nothing: Value = admin.delete(&format!("/v1/engines/{name}"))?;
                if self.json {
                    return report::print_json(&nothing);
                }
                println!("{name} is followed no longer");
                Ok(())
            }
        }
    }

    fn show(&self, admin: &Admin) -> Result<()> {
        let engines: Value = admin.get_list("/v1/engines", "engines")?;
        if self.json {
            return report::print_json(&engines);
        }
        let mut table =
            report::table(&["ENGINE", "MODEL", "EVENTS", "HEARD", "BLOCKS", "GAPS", "LOAD", "TROUBLE"]);
        for one in list(&engines["engines"]) {
            let known = &one["known"];
            let heard = match (known["connected"].as_bool(), known["exact"].as_bool()) {
                (Some(true), Some(true)) => "all",
                (Some(true), _) => "a part",
                _ => "no",
            };
            let load = &one["load"];
            let load = if load.is_null() {
                "-".to_owned()
            } else {
                format!("{} run, {} wait", text(load, "running"), text(load, "waiting"))
            };
            table.add_row([
                text(one, "name"),
                text(one, "model"),
                text(one, "events"),
                heard.to_owned(),
                text(known, "blocks"),
                text(one, "gaps"),
                load,
                text(one, "trouble"),
            ]);
        }
        report::print_table(&table);
        Ok(())
    }
}

impl Follow {
    fn question(&self) -> Result<Value> {
        let mut engine = json!({
            "name": self.name,
            "model": self.model,
            "block_tokens": self.block_tokens,
            "events": self.events,
        });
        for (name, value) in
            [("replay", &self.replay), ("topic", &self.topic), ("node", &self.node), ("tenant", &self.tenant)]
        {
            if let Some(value) = value {
                engine[name] = json!(value);
            }
        }
        if let Some(file) = &self.blocks_file {
            let said =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            engine["blocks"] =
                serde_json::from_str(&said).with_context(|| format!("{} is not JSON", file.display()))?;
        }
        Ok(engine)
    }
}
