//! `adaptive` against the best simple policy: on workloads made up from a seed, and on the shared traces where they are at
//! hand. Which policy is the best differs from workload to workload; adaptive has one setting for all.

mod simple;
#[path = "../shared/traces.rs"]
mod traces;
mod workloads;

use kvhive_cache::policy::Policy;
use kvhive_cache::policy::adaptive::Adaptive;
use kvhive_cache::simulate::{Rules, Setting, Trace, Turn, replay};
use kvhive_protocol::Moment;
use simple::{Rule, Simple};
use traces::{BLOCK_TOKENS, key, load, traces, unzip};
use workloads as w;

/// Points of hit rate that adaptive may be under the best simple policy of a made-up workload. What it learns takes a while:
/// least where popularity never changes and LFU is right from the first request.
const MARGIN: f64 = 1.5;

/// The same, under the best online policy of the reference table.
const TABLE_MARGIN: f64 = 0.5;

const RULES: [Rule; 5] = [Rule::Lru, Rule::Lru2, Rule::Lfu, Rule::Hyperbolic, Rule::Random];

/// Sizes in percent of the different blocks; fewer without optimization, where each takes seconds.
const SIZES: &[usize] = if cfg!(debug_assertions) { &[5, 20] } else { &[2, 5, 10, 20] };

/// Requests a second apart.
fn trace_of(workload: w::Workload) -> Trace {
    let mut trace = Trace::new();
    for (at, blocks) in workload.into_iter().enumerate() {
        let turn = Turn { now: Moment::from_millis(at as u64 * 1000), ..Turn::default() };
        trace.push(turn, blocks.into_iter().map(|block| key(u64::from(block)))).expect("a short trace");
    }
    trace
}

/// Returns the hit rate in percent.
fn rate(trace: &Trace, policy: &mut dyn Policy, capacity: usize) -> f64 {
    let setting = Setting {
        capacity: capacity as u32,
        rules: Rules::Leaf,
        block_tokens: BLOCK_TOKENS,
        shrunk_per_mille: 1000,
    };
    100.0 * replay(trace, policy, setting, &mut |_| {}).hit_rate()
}

/// Runs adaptive and the simple policies at all sizes; fails where adaptive is too far under the best of them.
fn assert_near_the_best(workload: w::Workload) {
    let trace = trace_of(workload);
    let mut far = Vec::new();
    for &size in SIZES {
        let capacity = (trace.unique_blocks() * size / 100).max(1);
        let ours = rate(&trace, &mut Adaptive::new(capacity), capacity);
        let rates = RULES.map(|rule| (rate(&trace, &mut Simple::new(rule, capacity), capacity), rule));
        let (best, rule) = rates.into_iter().max_by(|left, right| left.0.total_cmp(&right.0)).expect("five");
        let line = format!("{size:>3} %: adaptive {ours:.2}, {rule:?} {best:.2}: {:+.2}", ours - best);
        println!("{line}");
        if ours < best - MARGIN {
            far.push(line);
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

#[test]
fn stays_near_the_best_simple_policy_where_popularity_is_flat() {
    assert_near_the_best(w::zipf(20_000, 0.6, 100_000));
    assert_near_the_best(w::zipf(20_000, 0.8, 100_000));
}

#[test]
fn stays_near_the_best_simple_policy_where_popularity_is_steep() {
    assert_near_the_best(w::zipf(20_000, 1.0, 100_000));
    assert_near_the_best(w::zipf(20_000, 1.2, 100_000));
}

#[test]
fn stays_near_the_best_simple_policy_where_popularity_changes() {
    assert_near_the_best(w::zipf_phases(20_000, 0.9, 100_000, 4));
}

#[test]
fn stays_near_the_best_simple_policy_on_documents() {
    assert_near_the_best(w::documents(1_000, 0.8, 32, 15_000));
}

#[test]
fn stays_near_the_best_simple_policy_on_popular_documents() {
    assert_near_the_best(w::documents(1_000, 1.1, 32, 15_000));
}

#[test]
fn stays_near_the_best_simple_policy_in_a_loop() {
    assert_near_the_best(w::around(10_000, 10, 20_000));
}

#[test]
fn stays_near_the_best_simple_policy_under_scans() {
    assert_near_the_best(w::zipf_and_scan(10_000, 0.9, 60_000));
}

#[test]
fn stays_near_the_best_simple_policy_on_short_chats() {
    assert_near_the_best(w::chats(4_000, 100, 4.0, 5));
}

#[test]
fn stays_near_the_best_simple_policy_on_long_chats() {
    assert_near_the_best(w::chats(200, 40, 25.0, 6));
}

#[test]
fn stays_near_the_best_simple_policy_when_chats_give_way_to_popular_blocks() {
    assert_near_the_best(w::then(w::chats(2_000, 100, 6.0, 8), w::zipf(20_000, 0.9, 60_000)));
}

#[test]
fn stays_near_the_best_simple_policy_when_popular_blocks_give_way_to_chats() {
    assert_near_the_best(w::then(w::zipf(20_000, 0.9, 50_000), w::chats(2_000, 100, 6.0, 8)));
}

#[test]
fn stays_near_the_best_simple_policy_when_a_loop_gives_way_to_popular_blocks() {
    assert_near_the_best(w::then(w::around(5_000, 5, 20_000), w::zipf(10_000, 1.0, 60_000)));
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
        if ours < best - TABLE_MARGIN {
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
    let trace = trace_of((0..50_000).map(|request| vec![2 * request, 2 * request + 1]).collect());
    let mut policy = Adaptive::new(100);
    rate(&trace, &mut policy, 100);
    assert_eq!(policy.resident(), 100);
    assert_eq!(policy.ghosts(), Adaptive::ghost_limit(100));
}
