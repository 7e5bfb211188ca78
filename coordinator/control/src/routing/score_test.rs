//! Stories of who should take a request, and that more overlap and less load never make an engine dearer.

use super::*;
use proptest::prelude::*;

fn engine(name: &str) -> Judged {
    Judged {
        engine: name.to_owned(),
        own: Own::default(),
        block_tokens: 16,
        hive: Vec::new(),
        token_bytes: None,
        load: None,
        load_age_ms: None,
        taken_tokens: 0,
        known: Known { is_connected: true, is_exact: true, blocks: 0, sequence: None },
    }
}

fn owns(name: &str, blocks: u64) -> Judged {
    Judged { own: Own { device: blocks, ..Own::default() }, ..engine(name) }
}

fn load(running: u32, waiting: u32) -> Option<EngineLoad> {
    Some(EngineLoad { running, waiting, ..EngineLoad::default() })
}

fn names(ranked: &[Ranked]) -> Vec<&str> {
    ranked.iter().map(|one| &*one.engine).collect()
}

#[test]
fn who_has_most_of_it_takes_it_unless_it_is_busy() {
    let weights = Weights::default();
    let ranked = rank(1600, vec![owns("a", 20), owns("b", 90), engine("c")], &weights);
    assert_eq!(names(&ranked), ["b", "a", "c"]);
    assert_eq!(ranked[0].cost, 160 * COMPUTE);
    assert_eq!(ranked[0].chance_ppm, 1_000_000);
    let busy = Judged { load: load(3, 2), ..owns("b", 90) };
    let ranked = rank(1600, vec![owns("a", 20), busy, engine("c")], &weights);
    assert_eq!(names(&ranked), ["a", "c", "b"]);
    assert_eq!(
        ranked[2].reason,
        "of 1600 tokens 1440 are in its own device memory, 160 are to be computed; 3 run, 2 wait: as much as computing 2400 tokens"
    );
    assert_eq!(
        ranked[1].reason,
        "all 1600 tokens are to be computed; nobody said how busy it is: as much as computing 1600 tokens"
    );
}

#[test]
fn of_equals_the_least_busy_and_then_the_first_by_name() {
    let free = Weights { running: 0, waiting: 0, ..Weights::default() };
    let ranked = rank(100, vec![engine("c"), Judged { load: load(5, 0), ..engine("a") }, engine("b")], &free);
    assert_eq!(names(&ranked), ["b", "c", "a"]);
}

#[test]
fn what_kvhive_has_counts_after_what_the_engine_has_by_tier() {
    let weights = Weights::default();
    let piece = |tokens, in_memory, is_local| Piece { tokens, in_memory, is_local };
    let hive = vec![piece(256, 256, false), piece(256, 128, false), piece(256, 256, true)];
    let one = Judged { hive, ..owns("a", 24) };
    let [ranked] = &rank(1000, vec![one], &weights)[..] else { panic!("one engine") };
    let amounts: Vec<(Part, u64)> = ranked.terms.iter().map(|term| (term.part, term.amount)).collect();
    // 384 tokens are its own; of the second piece 128 are left, half of them in memory.
    assert_eq!(
        amounts,
        [
            (Part::EngineDevice, 384),
            (Part::HiveLocal, 256),
            (Part::HiveMemory, 64),
            (Part::HiveDisk, 64),
            (Part::Compute, 232)
        ]
    );
    let cost = 256 * 60 + 64 * 120 + 64 * 300 + 232 * COMPUTE;
    assert_eq!(ranked.cost, cost);
    assert_eq!(ranked.terms.iter().map(|term| term.cost).sum::<u64>(), cost);
}

#[test]
fn measured_rates_replace_weights_and_never_make_fetching_dearer_than_computing() {
    let hive = vec![Piece { tokens: 100, in_memory: 100, is_local: false }];
    let at = |fetch| {
        let load = EngineLoad {
            prefill_tokens_per_s: Some(10_000),
            fetch_bytes_per_s: Some(fetch),
            ..EngineLoad::default()
        };
        let one = Judged { hive: hive.clone(), token_bytes: Some(100_000), load: Some(load), ..engine("a") };
        rank(100, vec![one], &Weights::default())[0].cost
    };
    // A token takes 100 µs to compute; its 100 kB take 10 µs at 10 GB/s.
    assert_eq!(at(10_000_000_000), 100 * 100);
    assert_eq!(at(100_000_000), 100 * COMPUTE, "ten times slower than computing");
    assert_eq!(at(0), 100 * u64::from(Weights::default().hive_memory), "no rate is no measurement");
}

#[test]
fn tokens_that_wait_are_counted_where_they_are_said() {
    let said = EngineLoad { waiting: 3, queued_tokens: Some(500), ..EngineLoad::default() };
    let one = Judged { load: Some(said), taken_tokens: 70, ..engine("a") };
    let full = EngineLoad { kv_usage_ppm: 500_000, ..EngineLoad::default() };
    let ranked = rank(10, vec![one, Judged { load: Some(full), ..engine("b") }], &Weights::default());
    assert_eq!((ranked[0].cost, ranked[1].cost), (580 * COMPUTE, 1034 * COMPUTE));
    assert!(ranked[1].reason.contains("its cache is 50 % full"), "{}", ranked[1].reason);
    assert!(ranked[0].reason.contains("500 tokens wait, 70 tokens were sent there"), "{}", ranked[0].reason);
}

#[test]
fn a_temperature_spreads_by_cost_and_a_seed_decides() {
    let all = || rank(1600, vec![owns("a", 100), owns("b", 98), engine("c")], &Weights::default());
    let draw = |temperature, seed| {
        let mut ranked = all();
        choose(&mut ranked, temperature, seed);
        ranked
    };
    assert_eq!(draw(0, 7), all());
    assert_eq!(draw(32, 7), draw(32, 7));
    let firsts = |name: &str| (0..10_000).filter(|seed| draw(32, *seed)[0].engine == name).count();
    // b costs 32 tokens more than a, one temperature; c 1600.
    let (a, b, c) = (firsts("a"), firsts("b"), firsts("c"));
    assert!((2.5..2.95).contains(&(a as f64 / b as f64)) && c == 0, "{a} {b} {c}");
    let chances: Vec<u32> = draw(32, 1).iter().map(|one| one.chance_ppm).collect();
    assert!(chances.iter().sum::<u32>().abs_diff(1_000_000) <= 2, "{chances:?}");
    choose(&mut [], 5, 5);
}

fn any_engine() -> impl Strategy<Value = Judged> {
    let piece = (0..500u64, 0..600u64, any::<bool>()).prop_map(|(tokens, in_memory, is_local)| Piece {
        tokens,
        in_memory,
        is_local,
    });
    let load = (0..20u32, 0..20u32, prop::option::of(0..5000u32), 0..1_000_000u32).prop_map(
        |(running, waiting, queued_tokens, kv_usage_ppm)| EngineLoad {
            running,
            waiting,
            queued_tokens,
            kv_usage_ppm,
            ..EngineLoad::default()
        },
    );
    (
        (0..100u64, 0..50u64, 0..50u64),
        1..64u32,
        prop::collection::vec(piece, 0..6),
        prop::option::of(load),
        0..5000u64,
    )
        .prop_map(|((device, host, disk), block_tokens, hive, load, taken_tokens)| Judged {
            own: Own { device, host, disk },
            block_tokens,
            hive,
            load,
            taken_tokens,
            ..engine("a")
        })
}

fn cost(tokens: u64, one: &Judged) -> u64 {
    rank(tokens, vec![one.clone()], &Weights::default())[0].cost
}

proptest! {
    #[test]
    fn more_overlap_is_never_dearer(one in any_engine(), tokens in 0..5000u64, more in 0..100u64) {
        let device = Judged { own: Own { device: one.own.device + more, ..one.own }, ..one.clone() };
        prop_assert!(cost(tokens, &device) <= cost(tokens, &one));
        let mut hive = one.clone();
        hive.hive.push(Piece { tokens: more, in_memory: 0, is_local: false });
        prop_assert!(cost(tokens, &hive) <= cost(tokens, &one));
        prop_assert!(cost(tokens, &one) <= cost(tokens + more, &one));
    }

    #[test]
    fn less_load_is_never_dearer(one in any_engine(), tokens in 0..5000u64) {
        let idle = Judged { load: Some(EngineLoad::default()), taken_tokens: 0, ..one.clone() };
        prop_assert!(cost(tokens, &idle) <= cost(tokens, &one));
        let load = one.load.unwrap_or_default();
        for busier in [
            EngineLoad { running: load.running + 1, ..load },
            EngineLoad { waiting: load.waiting + 1, ..load },
            EngineLoad { kv_usage_ppm: load.kv_usage_ppm + 1, ..load },
            EngineLoad { queued_tokens: load.queued_tokens.map(|queued| queued + 1), ..load },
        ] {
            let [less, more] = [load, busier].map(|load| cost(tokens, &Judged { load: Some(load), ..one.clone() }));
            prop_assert!(less <= more);
        }
    }

    #[test]
    fn every_token_is_somewhere_once_and_the_parts_are_the_whole(one in any_engine(), tokens in 0..5000u64) {
        let [ranked] = &rank(tokens, vec![one], &Weights::default())[..] else { panic!("one engine") };
        let is_load = |part| matches!(part, Part::Running | Part::Waiting | Part::Taken | Part::KvUsage);
        let somewhere: u64 = ranked.terms.iter().filter(|term| !is_load(term.part)).map(|term| term.amount).sum();
        prop_assert_eq!(somewhere, tokens);
        prop_assert_eq!(ranked.terms.iter().map(|term| term.cost).sum::<u64>(), ranked.cost);
    }

    #[test]
    fn a_draw_keeps_every_engine(seed in any::<u64>(), temperature in 0..10_000u32, engines in prop::collection::vec(any_engine(), 0..8)) {
        let engines: Vec<Judged> = engines.into_iter().enumerate().map(|(at, one)| Judged { engine: at.to_string(), ..one }).collect();
        let ranked = rank(1000, engines, &Weights::default());
        let mut drawn = ranked.clone();
        choose(&mut drawn, temperature, seed);
        let rest: Vec<&str> = names(&drawn).into_iter().skip(1).collect();
        let expected: Vec<&str> = names(&ranked).into_iter().filter(|name| Some(*name) != drawn.first().map(|one| &*one.engine)).collect();
        prop_assert_eq!(rest, expected);
    }
}
