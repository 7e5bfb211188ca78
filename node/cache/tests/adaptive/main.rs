//! `adaptive` beside every other strategy, on workloads that are made up here: of whatever kind they are, it is never far
//! behind the best of the others, which is another one each time.

mod replay;
mod workloads;

use kvhive_cache::policy::{self, Strategy};
use replay::{Pool, Trace};
use workloads::{around, chats, documents, then, zipf, zipf_and_scan, zipf_phases};

/// Hit rate that it may be behind the best of the others, in points.
const MARGIN: f64 = 1.0;

fn rate(strategy: Strategy, trace: &Trace, capacity: usize) -> f64 {
    Pool::new(policy::build(strategy, capacity as u32, 1), capacity).run(trace) * 100.0
}

fn is_near_the_best_of(name: &str, trace: &Trace) {
    for percent in [2, 10, 20] {
        let capacity = trace.footprint * percent / 100;
        let others = Strategy::ALL.into_iter().filter(|strategy| *strategy != Strategy::Adaptive);
        let rates = others.map(|strategy| (rate(strategy, trace, capacity), strategy));
        let best = rates.max_by(|one, other| one.0.total_cmp(&other.0)).expect("there are others");
        let ours = rate(Strategy::Adaptive, trace, capacity);
        println!("{name} {percent} %: adaptive {ours:.2}, {} {:.2}", best.1, best.0);
        assert!(ours >= best.0 - MARGIN, "{name} at {percent} %: {ours:.2} beside {} {:.2}", best.1, best.0);
    }
}

macro_rules! near_the_best {
    ($($test:ident: $trace:expr;)*) => {
        $(#[test]
        fn $test() {
            is_near_the_best_of(stringify!($test), &$trace);
        })*
    };
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
}
