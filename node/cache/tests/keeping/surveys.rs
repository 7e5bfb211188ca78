//! A survey tells what is here and where, and nobody uses anything by it.

use super::{Scenario, TENANT, key};
use kvhive_cache::policy::Strategy;
use kvhive_protocol::data::Run;
use kvhive_protocol::survey::Surveyed;
use kvhive_protocol::{KeyList, Slot};
use std::ops::Range;

fn survey(scene: &Scenario, sessions: &[Range<u64>]) -> Vec<(u32, u32)> {
    let run = |session: &Range<u64>| Run { slot: Slot(1), keys: (session.end - session.start) as u32 };
    let runs: Vec<Run> = sessions.iter().map(run).collect();
    let keys: KeyList = sessions.iter().cloned().flatten().map(key).collect();
    let said = scene.shard.survey_runs(TENANT, &runs, &keys);
    said.into_iter().map(|Surveyed { covered, in_memory }| (covered, in_memory)).collect()
}

#[test]
fn each_run_is_told_as_far_as_it_goes_with_what_of_it_is_in_memory() {
    let mut scene = Scenario::of([8, 0, 16], Strategy::Lru, Some(500));
    scene.serve(0..5);
    scene.settle();
    assert_eq!(scene.tiers(), [3, 0, 2], "its end is on disk");
    scene.serve(10..12);
    assert_eq!(survey(&scene, &[0..5, 10..15, 30..33, 1..4]), [(5, 3), (2, 2), (0, 0), (3, 2)]);
    assert_eq!(survey(&scene, std::slice::from_ref(&(4..7))), [(1, 0)]);
}

#[test]
fn what_is_only_looked_at_leaves_as_if_nobody_had() {
    let mut scene = Scenario::of([4, 0, 0], Strategy::Lru, None);
    for session in 0..4 {
        scene.serve(10 * session..10 * session + 1);
    }
    let before = scene.shard.stats();
    assert_eq!(survey(&scene, &[0..1, 0..1, 0..1]), [(1, 1); 3]);
    assert_eq!(scene.shard.stats().matched_keys, before.matched_keys);
    scene.serve(90..91);
    assert_eq!(survey(&scene, &[0..1, 10..11]), [(0, 0), (1, 1)], "the oldest left");
}
