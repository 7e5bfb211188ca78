//! A request by its id, as nodes remember it: which of its blocks were missing, and why as of then.

use crate::commands::trace;
use crate::report;
use anyhow::{Result, bail};
use kvhive_client::{Client, RequestRecalled, Verdict};
use kvhive_protocol::TraceId;
use serde_json::{Value, json};

/// Digits of a key that are shown to people.
const SHOWN_DIGITS: usize = 12;

/// Asks nodes for what they remember, and prints it.
///
/// # Errors
/// When the cluster cannot be reached, or no node remembers the request.
pub(super) async fn tell(client: &Client, id: &str, as_json: bool) -> Result<()> {
    let trace = TraceId::of_request(trace::named(id)?);
    let told = client.recall(trace).await?;
    if told.parts.is_empty() {
        let silent: Vec<String> = told.silent.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        let silent = if silent.is_empty() { String::new() } else { format!(" ({})", silent.join("; ")) };
        bail!(
            "no node remembers a request {id:?} (trace {trace}){silent}: nodes remember what the last thousands of matches and fetches missed \
             that came with a trace context, which a client is given by its engine. Of a store there is nothing to remember: `kvhive trace {trace}` \
             shows where its time went, if it was traced. A block is named by a key of 64 hexadecimal digits"
        );
    }
    if as_json {
        return report::print_json(&shown(trace, &told));
    }
    print(trace, &told);
    Ok(())
}

fn shown(trace: TraceId, told: &RequestRecalled) -> Value {
    let node = |device| told.explanation.nodes.get(device);
    let asked = told.parts.iter().map(|part| {
        json!({
            "node": node(&part.device), "device": part.device.to_string(), "tenant": part.tenant.0,
            "asked": asked(part.fetches), "ago_ms": part.ago_ms, "blocks": part.blocks, "hits": part.hits,
            "missed": part.blocks - part.hits.min(part.blocks), "remembered": part.missed.len(),
        })
    });
    let missed = told.explanation.blocks.iter().map(|block| {
        let devices = block.replicas.iter().map(|one| {
            json!({ "node": node(&one.device), "device": one.device.to_string(), "said": told.explanation.said(&one.said) })
        });
        json!({
            "key": block.key.to_string(), "verdict": verdict(block.verdict), "why": why(told, block),
            "what_to_do": what_to_do(told, block), "devices": devices.collect::<Vec<_>>(),
        })
    });
    let silent = told.silent.iter().map(|(node, why)| json!({ "node": node, "why": why }));
    json!({
        "trace": trace.to_string(), "asked": asked.collect::<Vec<_>>(), "missed": missed.collect::<Vec<_>>(),
        "silent": silent.collect::<Vec<_>>(),
    })
}

fn print(trace: TraceId, told: &RequestRecalled) {
    let first = told.parts.first().map_or(0, |part| part.ago_ms);
    println!("trace {trace}, first asked {:.1} s ago\n", first as f64 / 1000.0);
    let mut table = report::table(&["ASKED", "NODE", "DEVICE", "AFTER", "BLOCKS", "HITS"]);
    for part in &told.parts {
        let node = told.explanation.nodes.get(&part.device).cloned().unwrap_or_default();
        table.add_row([
            asked(part.fetches).to_owned(),
            node,
            part.device.to_string(),
            format!("{} ms", first.saturating_sub(part.ago_ms)),
            part.blocks.to_string(),
            part.hits.to_string(),
        ]);
    }
    report::print_table(&table);
    let blocks = &told.explanation.blocks;
    if blocks.is_empty() {
        println!("\nnothing was missing");
    } else {
        println!("\nmissing, and why when it was asked for:");
        let mut table = report::table(&["KEY", "VERDICT", "DEVICES"]);
        for block in blocks {
            let said = |one: &kvhive_client::Replica| {
                format!("{}: {}", told.explanation.name(one.device), told.explanation.said(&one.said))
            };
            table.add_row([
                block.key.to_string()[..SHOWN_DIGITS].to_owned(),
                verdict(block.verdict).to_owned(),
                block.replicas.iter().map(said).collect::<Vec<_>>().join(", "),
            ]);
        }
        report::print_table(&table);
        println!(
            "\nblock {}: {}\nto do: {}",
            &blocks[0].key.to_string()[..SHOWN_DIGITS],
            why(told, &blocks[0]),
            what_to_do(told, &blocks[0])
        );
    }
    let missed: u64 = told.parts.iter().map(|part| u64::from(part.blocks - part.hits.min(part.blocks))).sum();
    let remembered: u64 = told.parts.iter().map(|part| part.missed.len() as u64).sum();
    if missed > remembered {
        println!("note: of {missed} misses the first {remembered} are remembered");
    }
    for (node, why) in &told.silent {
        println!("note: {node} did not answer: {why}");
    }
}

fn asked(fetches: bool) -> &'static str {
    if fetches { "fetch" } else { "match" }
}

/// What is there and was a miss stood behind one that was not, or came just then.
fn verdict(verdict: Verdict) -> &'static str {
    if verdict.is_here() { "behind-a-miss" } else { verdict.name() }
}

fn why(told: &RequestRecalled, block: &kvhive_client::BlockExplained) -> String {
    match block.verdict.is_here() {
        true => {
            "it was there, and of no use: what comes before it was missing, or it came just then".to_owned()
        }
        false => told.explanation.why(block),
    }
}

fn what_to_do(told: &RequestRecalled, block: &kvhive_client::BlockExplained) -> &'static str {
    if block.verdict.is_here() { "see the blocks before it" } else { told.explanation.what_to_do(block) }
}
