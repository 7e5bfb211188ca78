//! `adaptive` on the shared traces, where they are at hand, against the table of reference results; with hints; and the bound
//! of what it remembers.

#[path = "shared/traces.rs"]
mod traces;

use kvhive_cache::policy::adaptive::Adaptive;
use kvhive_cache::simulate::{Rules, Setting, Trace, Turn, replay};
use traces::{BLOCK_TOKENS, key, load, traces, unzip};

/// Points of hit rate that adaptive may be under the best online policy of the table.
const MARGIN: f64 = 0.5;

/// Returns the hit rate in percent.
fn rate(trace: &Trace, policy: &mut Adaptive, capacity: usize) -> f64 {
    let setting = Setting {
        capacity: capacity as u32,
        rules: Rules::Leaf,
        block_tokens: BLOCK_TOKENS,
        shrunk_per_mille: 1000,
    };
    100.0 * replay(trace, policy, setting, &mut |_| {}).hit_rate()
}

/// Capacities of the table from 1 to 50 % of the trace's blocks, with the best rate in percent of an online policy.
fn best_of_table(table: &str, name: &str, unique_blocks: usize) -> Vec<(usize, f64)> {
    let mut best = std::collections::BTreeMap::new();
    for row in table.lines().map(|row| row.split(',').collect::<Vec<&str>>()) {
        if row[0] != name || row[3] == "opt_belady_bypass" {
            continue;
        }
        let capacity: usize = row[2].parse().expect("blocks");
        if (unique_blocks / 100..=unique_blocks.div_ceil(2)).contains(&capacity) {
            let rate = 100.0 * row[4].parse::<f64>().expect("a rate");
            let known = best.entry(capacity).or_insert(rate);
            *known = rate.max(*known);
        }
    }
    best.into_iter().collect()
}

/// Without optimization only the first size: the whole takes minutes then.
fn compare_with_table(name: &str, mean_of_five: f64) {
    let Some(folder) = traces() else { return };
    let trace = load(&folder.join(format!("{name}.jsonl.gz")));
    let unique_blocks = trace.unique_blocks();
    let table = best_of_table(&unzip(&folder.join("baseline_hit_rates.csv.gz")), name, unique_blocks);
    assert!(table.len() >= 6, "sizes of {name} in the table: {table:?}");
    let sizes = if cfg!(debug_assertions) { 1 } else { table.len() };
    let mut far = Vec::new();
    for (capacity, best) in &table[..sizes] {
        let ours = rate(&trace, &mut Adaptive::new(*capacity), *capacity);
        let line = format!("{name}, {capacity} blocks: {ours:.2}, best of the table {best:.2}");
        println!("{line}");
        if ours < best - MARGIN {
            far.push(line);
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
    if cfg!(debug_assertions) {
        return;
    }
    let rates = [0.01, 0.02, 0.05, 0.1, 0.2].map(|share| {
        let capacity = (share * unique_blocks as f64).round() as usize;
        rate(&trace, &mut Adaptive::new(capacity), capacity)
    });
    let mean = rates.iter().sum::<f64>() / 5.0;
    println!("{name}: {mean:.2} over 1, 2, 5, 10, 20 %");
    assert!(mean >= mean_of_five, "{name}: {mean:.2} instead of {mean_of_five}");
}

#[test]
fn is_at_no_size_far_under_the_best_online_policy_on_chats() {
    compare_with_table("mooncake_conversation", 22.6);
}

#[test]
fn is_at_no_size_far_under_the_best_online_policy_on_agents() {
    compare_with_table("coding_agents_a", 72.5);
}

#[test]
fn hints_that_are_mostly_right_make_room_for_what_comes_back() {
    let Some(folder) = traces() else { return };
    let mut trace = load(&folder.join("mooncake_conversation.jsonl.gz"));
    trace.give_hints(0.9, 1);
    let capacity = trace.unique_blocks() / 20;
    let hinted = rate(&trace, &mut Adaptive::new(capacity), capacity);
    println!("{hinted:.2} with hints");
    assert!(hinted >= 29.0, "{hinted:.2}");
}

#[test]
fn what_left_is_remembered_within_a_bound() {
    let mut trace = Trace::new();
    for request in 0..50_000 {
        trace
            .push(Turn::default(), [2 * request, 2 * request + 1].map(key).into_iter())
            .expect("a short trace");
    }
    let mut policy = Adaptive::new(100);
    rate(&trace, &mut policy, 100);
    assert_eq!(policy.resident(), 100);
    assert_eq!(policy.ghosts(), Adaptive::ghost_limit(100));
}
