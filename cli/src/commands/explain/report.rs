//! An explanation as people read it and as machines do.

use super::Fetched;
use crate::report;
use kvhive_client::{BlockExplained, Explanation, Place, Replica};
use kvhive_protocol::explain::{Explained, Since};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Digits of a key that are shown to people.
const SHOWN_DIGITS: usize = 12;

/// Why blocks are there, or not.
#[derive(Serialize)]
pub(super) struct Report {
    /// Blocks from the first on that are there without a gap; of keys without an order none is counted.
    covered: Option<usize>,
    /// The block at which the prefix ends.
    ends_at: Option<usize>,
    /// What happened, in a sentence.
    why: String,
    /// What to do about it.
    what_to_do: String,
    notes: Vec<String>,
    fetch: Option<Value>,
    blocks: Vec<OneBlock>,
}

#[derive(Serialize)]
struct OneBlock {
    block: usize,
    key: String,
    slot: Option<u16>,
    verdict: &'static str,
    why: String,
    what_to_do: &'static str,
    replicas: Vec<Value>,
    /// For people.
    #[serde(skip)]
    devices: String,
}

impl Report {
    /// Of a prefix, or of blocks without an order. `elsewhere` names what has blocks in another layout, and how many.
    pub(super) fn new(
        explanation: &Explanation,
        is_prefix: bool,
        elsewhere: Option<(String, usize)>,
        fetched: Option<&Fetched>,
    ) -> Report {
        let blocks: Vec<OneBlock> =
            (0..).zip(&explanation.blocks).map(|(at, block)| OneBlock::new(explanation, at, block)).collect();
        let covered = explanation.covered();
        let ends_at = blocks.iter().position(|block| block.verdict != "here");
        let (mut why, mut what_to_do) = match ends_at {
            None => ("all of it is there".to_owned(), "nothing".to_owned()),
            Some(at) => (blocks[at].why.clone(), blocks[at].what_to_do.to_owned()),
        };
        let mut notes = explanation.notes();
        let behind = explanation.blocks[covered..].iter().filter(|block| block.verdict.is_here()).count();
        if is_prefix && behind > 0 {
            notes.push(format!(
                "{} there after it, and of no use without it",
                report::counted_are(behind as u64, "block")
            ));
        }
        if let Some((file, blocks)) = elsewhere {
            why = format!(
                "it is there in another layout: {} as {file} names them",
                report::counted(blocks as u64, "block")
            );
            "let whoever stores and whoever reads agree on how blocks are named".clone_into(&mut what_to_do);
        }
        if let Some(trouble) = fetched.and_then(Fetched::trouble) {
            (why, what_to_do) = (trouble.0, trouble.1.to_owned());
        }
        let fetch = fetched.map(|fetched| {
            json!({
                "blocks": fetched.asked,
                "delivered": fetched.delivered,
                "ms": fetched.took.as_secs_f64() * 1e3,
                "within_ms": fetched.within.as_secs_f64() * 1e3,
            })
        });
        Report { covered: is_prefix.then_some(covered), ends_at, why, what_to_do, notes, fetch, blocks }
    }

    /// Prints it for people.
    pub(super) fn print(&self, is_all_shown: bool) {
        let all = self.blocks.len();
        match (self.covered, self.ends_at) {
            (Some(covered), None) => {
                println!("all of it is there: {}\n", report::counted(covered as u64, "block"))
            }
            (Some(covered), Some(at)) => {
                println!(
                    "{covered} of {} there: the prefix ends before block {at}\n",
                    report::counted_are(all as u64, "block")
                );
            }
            (None, _) => {
                let here = self.blocks.iter().filter(|block| block.verdict == "here").count();
                println!("{here} of {} there\n", report::counted_are(all as u64, "block"));
            }
        }
        let shown = match self.ends_at.filter(|_| self.covered.is_some() && !is_all_shown) {
            Some(at) => at + 1,
            None => all,
        };
        let mut table = report::table(&["", "BLOCKS", "KEY", "SLOT", "VERDICT", "DEVICES"]);
        let mut from = 0;
        while from < shown {
            let first = &self.blocks[from];
            let is_end = |at: usize| self.covered.is_some() && self.ends_at == Some(at);
            // What is said of several alike is said once; the one at which it ends stands alone.
            let alike = |at: &usize| {
                let next = &self.blocks[*at];
                !is_end(from)
                    && !is_end(*at)
                    && (next.verdict, &next.devices, next.slot) == (first.verdict, &first.devices, first.slot)
            };
            let until = from + 1 + (from + 1..shown).take_while(alike).count();
            let blocks = if until == from + 1 { from.to_string() } else { format!("{from}-{}", until - 1) };
            table.add_row([
                if is_end(from) { "->" } else { "" },
                &blocks,
                &first.key[..SHOWN_DIGITS],
                &first.slot.map_or_else(|| "?".to_owned(), |slot| slot.to_string()),
                first.verdict,
                &first.devices,
            ]);
            from = until;
        }
        report::print_table(&table);
        if shown < all {
            println!("    after it: {} (--all lists them)", self.counted(shown));
        }
        if let Some(fetch) = &self.fetch {
            let ms = fetch["ms"].as_f64().unwrap_or_default();
            println!("\nfetched {} of {} blocks in {ms:.1} ms", fetch["delivered"], fetch["blocks"]);
        }
        if self.covered.is_some() {
            let which = self.ends_at.map_or_else(String::new, |at| format!("block {at}: "));
            println!("\n{which}{}\nto do: {}", self.why, self.what_to_do);
        } else {
            for block in &self.blocks {
                println!(
                    "\nblock {} ({}): {}\nto do: {}",
                    block.block,
                    &block.key[..SHOWN_DIGITS],
                    block.why,
                    block.what_to_do
                );
            }
        }
        for note in &self.notes {
            println!("note: {note}");
        }
    }
}

impl Report {
    /// Says how many blocks from one on there are of each verdict.
    fn counted(&self, from: usize) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for block in &self.blocks[from..] {
            *counts.entry(block.verdict).or_default() += 1;
        }
        let counts = counts.into_iter().map(|(verdict, count)| format!("{count} {verdict}"));
        counts.collect::<Vec<_>>().join(", ")
    }
}

impl Fetched {
    /// Says why what is there is a miss for all that, and what to do.
    fn trouble(&self) -> Option<(String, &'static str)> {
        let Fetched { asked, delivered, took, within } = self;
        if took > within {
            let (took, within) = (took.as_secs_f64() * 1e3, within.as_secs_f64() * 1e3);
            return Some((
                format!(
                    "too slow: {delivered} of the {asked} blocks that are there have come after {took:.1} ms; {within:.1} ms were allowed"
                ),
                "let reads take longer, or recompute; `kvhive top` shows which device is busy",
            ));
        }
        (delivered < asked).then(|| {
            let why = format!(
                "{delivered} of the {asked} blocks that are there have come: the next one left meanwhile or is damaged"
            );
            (why, "ask again: then what became of it is known")
        })
    }
}

impl OneBlock {
    fn new(explanation: &Explanation, at: usize, block: &BlockExplained) -> OneBlock {
        // Of devices that may have any block, those that know nothing of this one need no mention while another does.
        let tells = |one: &&Replica| !matches!(one.said, Ok(Explained::Unknown { .. }));
        let is_one_of_many = |one: &Replica| one.place == Place::Unknown && !tells(&one);
        let has_more = block.replicas.iter().any(|one| tells(&one));
        let devices: Vec<String> = block
            .replicas
            .iter()
            .filter(|one| !has_more || !is_one_of_many(one))
            .map(|one| format!("{}: {}", explanation.name(one.device), explanation.said(&one.said)))
            .collect();
        OneBlock {
            block: at,
            key: block.key.to_string(),
            slot: block.slot.map(|slot| slot.0),
            verdict: block.verdict.name(),
            why: explanation.why(block),
            what_to_do: explanation.what_to_do(block),
            replicas: block.replicas.iter().map(|one| replica(explanation, one)).collect(),
            devices: devices.join(", "),
        }
    }
}

fn replica(explanation: &Explanation, one: &Replica) -> Value {
    let (mut said, state) = match &one.said {
        Ok(Explained::Here { tier, codec, bytes, fingerprint, pinned, .. }) => {
            let tier = format!("{tier:?}").to_lowercase();
            let layout = fingerprint.to_string();
            let said = json!({
                "tier": tier,
                "codec": codec.name(),
                "bytes": bytes,
                "layout": layout,
                "pinned": pinned,
            });
            (said, "here")
        }
        Ok(Explained::Coming) => (json!({}), "coming"),
        Ok(Explained::Gone(departure)) => {
            let from = departure.from.map(|tier| format!("{tier:?}").to_lowercase());
            let strategy = departure.strategy.name();
            let (why, ago_s) = (departure.why.as_str(), departure.ago_s);
            (json!({"why": why, "from": from, "strategy": strategy, "ago_s": ago_s}), "gone")
        }
        Ok(Explained::Unknown { since, for_s }) => {
            let since = match since {
                Since::Began => "began",
                Since::Placed => "placed",
                Since::Forgotten => "forgotten",
            };
            (json!({"since": since, "for_s": for_s}), "unknown")
        }
        Err(silence) => (json!({"why": silence.to_string()}), "silent"),
    };
    said["state"] = json!(state);
    said["device"] = json!(one.device.to_string());
    said["node"] = json!(explanation.nodes.get(&one.device));
    said["place"] = json!(format!("{:?}", one.place).to_lowercase());
    said
}
