//! `adaptive` beside every other strategy, on workloads that are made up here: of whatever kind they are, it is never far
//! behind the best of the others, which is another one each time.

mod mixtures;
mod replay;
mod unseen;
mod workloads;

use kvhive_cache::policy::{self, Strategy};
use mixtures::{agents, documents_shift, drifting, scan, together, with_jobs};
use replay::{Pool, Trace};
use unseen::{bursts, flurries, loops, nightly, retrieval, sessions, tools, working_sets};
use workloads::{around, chats, documents, then, zipf, zipf_and_scan, zipf_phases};

/// Hit rate that it may be behind the best of the others, in points.
const MARGIN: f64 = 0.6;

fn rate(strategy: Strategy, trace: &Trace, capacity: usize) -> f64 {
    Pool::new(policy::build(strategy, capacity as u32, 1), capacity).run(trace) * 100.0
}

fn is_near_the_best_of(name: &str, trace: &Trace, sizes: &[usize], margin: f64) {
    for percent in sizes {
        let capacity = trace.footprint * percent / 100;
        let others = Strategy::ALL.into_iter().filter(|strategy| *strategy != Strategy::Adaptive);
        let rates = others.map(|strategy| (rate(strategy, trace, capacity), strategy));
        let best = rates.max_by(|one, other| one.0.total_cmp(&other.0)).expect("there are others");
        let ours = rate(Strategy::Adaptive, trace, capacity);
        println!("{name} {percent} %: adaptive {ours:.2}, {} {:.2}", best.1, best.0);
        assert!(ours >= best.0 - margin, "{name} at {percent} %: {ours:.2} beside {} {:.2}", best.1, best.0);
    }
}

macro_rules! near_the_best {
    ($($test:ident: $trace:expr;)*) => {
        $(#[test]
        fn $test() {
            is_near_the_best_of(stringify!($test), &$trace, &[2, 10, 20], MARGIN);
        })*
    };
}

/// Asserts at each size, in percent, that it is no more points behind the best of the others than is said there.
fn is_not_farther_behind_than(name: &str, trace: &Trace, margins: &[(usize, f64)]) {
    for (percent, margin) in margins {
        is_near_the_best_of(name, trace, &[*percent], *margin);
    }
}

macro_rules! no_farther_behind {
    ($($test:ident: $trace:expr, $margins:expr;)*) => {
        $(#[test]
        fn $test() {
            is_not_farther_behind_than(stringify!($test), &$trace, &$margins);
        })*
    };
}

// Where it is behind by more than the margin at some size: it shall not grow unseen.
no_farther_behind! {
    large_jobs_that_are_often: with_jobs(4_000, 0.9, 30_000, 1_500, 3_000, 111), [(10, 2.0), (20, 2.0), (50, 1.0)];
    popularity_with_jobs: with_jobs(4_000, 0.9, 30_000, 800, 6_000, 110),
        [(2, MARGIN), (10, MARGIN), (20, 1.0)];
    jobs_as_large_as_the_rest: with_jobs(3_000, 0.7, 60_000, 3_000, 2_500, 312), [(2, MARGIN), (20, 1.0), (50, 2.5)];
    a_loop_amid_popularity: together(
        vec![(1, around(3_000, 10, 6_000)), (3, drifting(4_000, 0.8, 18_000, 1_000_000, 314))],
        315,
    ), [(2, MARGIN), (10, 1.5), (20, 1.5), (50, 1.5)];
    bursts_amid_popularity: bursts(5_000, 0.9, 400, 40_000, 317), [(2, MARGIN), (10, MARGIN), (20, 1.5)];
    a_job_each_night_amid_popularity: nightly(drifting(5_000, 0.8, 40_000, 60, 324), 4_000, 2_000, 20),
        [(10, 1.0), (20, 1.0), (50, 2.0)];
    a_job_each_night_amid_sessions:
        nightly(sessions(1_500, 4_000, 6.0, 45_000.0, 1.2, 20, 323), 700, 3_000, 20),
        [(2, MARGIN), (10, MARGIN), (20, 2.0)];
    agents_with_a_loop: together(
        vec![(3, agents(250, 20, 12.0, 6, 330)), (1, around(2_000, 20, 1_500))],
        331,
    ), [(2, MARGIN), (10, MARGIN), (20, 1.5)];
}

near_the_best! {
    flat_popularity: zipf(5_000, 0.6, 25_000);
    usual_popularity: zipf(5_000, 0.9, 25_000);
    steep_popularity: zipf(5_000, 1.2, 25_000);
    popularity_that_changes: zipf_phases(5_000, 0.9, 25_000, 4);
    documents_of_flat_popularity: documents(300, 0.8, 32, 8_000);
    documents_of_steep_popularity: documents(300, 1.1, 32, 8_000);
    a_loop: around(2_500, 10, 7_500);
    popularity_with_scans: zipf_and_scan(2_500, 0.9, 25_000);
    short_chats: chats(1_200, 60, 4.0, 5);
    long_chats: chats(200, 30, 25.0, 6);
    chats_before_popularity: then(chats(600, 60, 6.0, 8), zipf(5_000, 0.9, 25_000));
    popularity_before_chats: then(zipf(5_000, 0.9, 12_000), chats(600, 60, 6.0, 8));
    a_loop_before_popularity: then(around(1_250, 5, 5_000), zipf(2_500, 1.0, 15_000));
    popularity_that_drifts: drifting(4_000, 0.6, 30_000, 40, 101);
    steeper_popularity_that_drifts: drifting(8_000, 0.8, 40_000, 25, 102);
    steepest_popularity_that_drifts: drifting(12_000, 1.2, 40_000, 10, 104);
    flat_popularity_for_long: drifting(9_000, 0.7, 60_000, usize::MAX, 105);
    chats_with_documents_and_scans: together(
        vec![(3, chats(500, 40, 8.0, 106)), (2, documents(200, 0.9, 24, 5_000)), (1, scan(1_500, 8))],
        107,
    );
    a_few_agents: agents(160, 12, 20.0, 5, 108);
    many_agents: agents(400, 60, 8.0, 12, 109);
    tenants_of_three_kinds: together(
        vec![(4, drifting(3_000, 0.8, 16_000, 30, 112)), (1, around(1_000, 10, 4_000)), (2, chats(500, 30, 6.0, 113))],
        114,
    );
    documents_that_become_shorter: documents_shift(250, [0.7, 1.1], [40, 12], 8_000, 115);
    documents_that_become_longer: documents_shift(400, [1.0, 0.8], [8, 32], 8_000, 116);
    agents_with_documents: together(vec![(2, agents(120, 10, 15.0, 4, 117)), (1, documents(150, 1.0, 20, 2_500))], 118);
    working_sets_that_come_back: working_sets(600, 6_000, 0.7, 5, 60_000, 316);
    flurries_of_uses: flurries(6_000, 0.7, 50_000, 318);
    sessions_in_time: sessions(1_500, 4_000, 6.0, 45_000.0, 1.2, 20, 319);
    tools_that_are_asked_again: tools(60, 0.9, 12_000, 0.2, 321);
    retrieved_documents: retrieval(400, 1.1, 12_000, 326);
    even_use: drifting(4_000, 0.0, 60_000, 1_000_000, 325);
    even_use_with_chats: together(
        vec![(2, drifting(2_000, 0.0, 20_000, 1_000_000, 327)), (1, chats(900, 50, 8.0, 328))],
        329,
    );
    loops_of_three_lengths: loops(&[(4, 500, 5), (3, 1_500, 5), (2, 6_000, 10)], 20_000, 313);
}
