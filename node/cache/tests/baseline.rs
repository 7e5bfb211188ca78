//! Simulations against the reference results of the shared traces, where they are at hand; and against a plain model of
//! leaf-LRU always.

#[path = "shared/traces.rs"]
mod traces;

use kvhive_cache::policy::{Lfu, Policy, Strategy, build};
use kvhive_cache::simulate::{Future, Rules, Setting, Simulation, optimum, replay};
use kvhive_protocol::BlockKey;
use std::collections::BTreeMap;
use traces::{BLOCK_TOKENS, key, load, traces, unzip};

const TRACES: [&str; 2] = ["mooncake_conversation", "coding_agents_a"];
/// Rows of the table for one trace and policy: size in percent, blocks, hit rate, share of tokens saved.
fn reference(table: &str, trace: &str, policy: &str) -> Vec<(String, u32, f64, f64)> {
    let rows = table.lines().map(|row| row.split(',').collect::<Vec<&str>>());
    rows.filter(|row| {
        row[0] == trace && row[3] == policy && ["1%", "2%", "5%", "10%", "20%"].contains(&row[1])
    })
    .map(|row| {
        let number = |at: usize| row[at].parse::<f64>().expect("a number");
        (row[1].to_owned(), number(2) as u32, number(4), number(5))
    })
    .collect()
}

#[test]
fn the_shard_gives_the_reference_hit_rates() {
    let Some(folder) = traces() else { return };
    let table = unzip(&folder.join("baseline_hit_rates.csv.gz"));
    for name in TRACES {
        let trace = load(&folder.join(format!("{name}.jsonl.gz")));
        let rows = reference(&table, name, "leaf_lru_sglang");
        for (size, blocks, rate, _) in rows.iter().filter(|row| ["1%", "5%", "20%"].contains(&row.0.as_str()))
        {
            let mut simulation = Simulation::new(*blocks);
            for at in 0..trace.requests() {
                let keys: Vec<BlockKey> = trace.request(at).1.iter().map(|block| trace.key(*block)).collect();
                simulation.request(&keys);
            }
            let totals = simulation.totals();
            let ours = totals.hits as f64 / totals.blocks as f64;
            assert!((ours - rate).abs() < 0.001, "{name} {size}: {ours} instead of {rate}");
        }
    }
}

/// What is compared: our name, rules, the table's name.
type Compared = (&'static str, Rules, &'static str);

/// The table's rows but `lru` and the leaf ones were taken with a request's blocks used from its end.
#[rustfmt::skip]
const COMPARED: &[Compared] = &[
    ("lru", Rules::Flat, "lru"),
    ("lru", Rules::Leaf, "leaf_lru_sglang"),
    ("paged", Rules::Flat, "lru_reverse_vllm"),
    ("paged", Rules::Leaf, "leaf_lru_sglang"),
    ("compressed", Rules::Leaf, "leaf_lru_sglang"),
    ("plain lfu", Rules::FlatFromEnd, "lfu"),
    ("lru-2", Rules::FlatFromEnd, "lru2"),
    ("arc", Rules::FlatFromEnd, "arc"),
    ("lirs", Rules::FlatFromEnd, "lirs"),
    ("s3-fifo", Rules::FlatFromEnd, "s3fifo"),
    ("sieve", Rules::FlatFromEnd, "sieve"),
    ("w-tinylfu", Rules::FlatFromEnd, "wtinylfu"),
];

fn policy(name: &str, capacity: u32) -> Box<dyn Policy> {
    match name {
        // The table's has no aging.
        "plain lfu" => Box::new(Lfu::plain(capacity)),
        name => build(name.parse::<Strategy>().expect("a strategy"), capacity, 1),
    }
}

/// Says whether a row is compared without optimization too, where the whole table takes minutes.
fn is_quick(size: &str, compared: &Compared) -> bool {
    size == "1%" && compared.0 != "compressed" && (compared.0, compared.1) != ("paged", Rules::Leaf)
}

fn compare_with_reference(name: &str) {
    let Some(folder) = traces() else { return };
    let table = unzip(&folder.join("baseline_hit_rates.csv.gz"));
    let trace = load(&folder.join(format!("{name}.jsonl.gz")));
    let mut far = Vec::new();
    let mut compared_rows = 0;
    for compared in COMPARED {
        let (ours, rules, theirs) = *compared;
        for (size, blocks, rate, _) in reference(&table, name, theirs) {
            if cfg!(debug_assertions) && !is_quick(&size, compared) {
                continue;
            }
            let setting =
                Setting { capacity: blocks, rules, block_tokens: BLOCK_TOKENS, shrunk_per_mille: 1000 };
            let outcome = replay(&trace, &mut *policy(ours, blocks), setting, &mut |_| {});
            let line = format!("{name} {size} {theirs}: {:.5}, reference {rate:.5}", outcome.hit_rate());
            println!("{line}");
            compared_rows += 1;
            if (outcome.hit_rate() - rate).abs() >= 0.003 {
                far.push(line);
            }
        }
    }
    let future = Future::of(&trace);
    for (size, blocks, rate, tokens) in reference(&table, name, "opt_belady_bypass") {
        if cfg!(debug_assertions) && size != "5%" {
            continue;
        }
        let outcome = optimum(&trace, &future, BLOCK_TOKENS, blocks, &mut |_| {});
        let saved = outcome.tokens_saved as f64 / outcome.tokens as f64;
        let line = format!("{name} {size} optimum: {:.5} {saved:.5}, {rate} {tokens}", outcome.hit_rate());
        println!("{line}");
        compared_rows += 1;
        if (outcome.hit_rate() - rate).abs() >= 0.00001 || (saved - tokens).abs() >= 0.00001 {
            far.push(line);
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
    assert_eq!(compared_rows, if cfg!(debug_assertions) { 11 } else { 65 }, "rows of {name}");
}

#[test]
fn policies_are_within_three_tenths_of_a_point_of_the_reference_on_chats() {
    compare_with_reference("mooncake_conversation");
}

#[test]
fn policies_are_within_three_tenths_of_a_point_of_the_reference_on_agents() {
    compare_with_reference("coding_agents_a");
}

/// Leaf-LRU as plainly as it can be written.
struct Model {
    capacity: usize,
    touched: BTreeMap<u64, (u64, u32, Option<u64>)>,
    clock: u64,
}

impl Model {
    fn request(&mut self, ids: &[u64]) -> usize {
        self.clock += 1;
        let hits = ids.iter().take_while(|id| self.touched.contains_key(id)).count();
        for (depth, id) in ids.iter().enumerate() {
            let parent = depth.checked_sub(1).map(|at| ids[at]);
            if !self.touched.contains_key(id) && self.touched.len() == self.capacity {
                let has_child =
                    |id: &u64| self.touched.values().any(|(.., parent)| parent.as_ref() == Some(id));
                let leaves = self.touched.iter().filter(|(id, _)| !has_child(id) && Some(**id) != parent);
                let victim = leaves.min_by_key(|(_, (touched, depth, _))| (*touched, u32::MAX - depth));
                let Some(victim) = victim.map(|(id, _)| *id) else { break };
                self.touched.remove(&victim);
            }
            self.touched.insert(*id, (self.clock, depth as u32, parent));
        }
        hits
    }
}

#[test]
fn the_shard_is_a_leaf_lru() {
    let mut word = 3u64;
    let mut random = move |below: u64| {
        word = word.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (word >> 33) % below
    };
    for capacity in [4, 9, 30] {
        let mut simulation = Simulation::new(capacity);
        let mut model = Model { capacity: capacity as usize, touched: BTreeMap::new(), clock: 0 };
        for _ in 0..400 {
            // Chains that share heads: id = (branch, depth), the first two blocks shared by all branches of a family.
            let (family, branch) = (random(3), random(5));
            let length = 1 + random(7);
            let ids: Vec<u64> = (0..length)
                .map(|at| family * 1000 + at + if at < 2 { 0 } else { 10 * (branch + 1) })
                .collect();
            let keys: Vec<BlockKey> = ids.iter().map(|id| key(*id)).collect();
            assert_eq!(simulation.request(&keys), model.request(&ids), "capacity {capacity}");
        }
    }
}
