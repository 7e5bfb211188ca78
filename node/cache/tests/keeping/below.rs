//! A disk below memory goes on taking in what leaves memory, whatever the strategy, its changes and what tenants are promised.

use super::{Scenario, TENANT};
use kvhive_cache::Rules;
use kvhive_cache::policy::Strategy;
use kvhive_protocol::{Era, TenantId};
use std::collections::BTreeMap;
use std::ops::Range;

const OTHER: TenantId = TenantId(2);
/// Frames of device, host and disk.
const FRAMES: [u32; 3] = [32, 16, 208];

/// Asks for blocks of a range in no order, each stored if it is not found; returns how many of the last 500 were found.
fn asked_for(scene: &mut Scenario, blocks: &Range<u64>, times: u32) -> u32 {
    let mut state = 88_172_645_463_325_252u64 ^ blocks.start;
    let mut found = 0;
    for time in 0..times {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = blocks.start + (state >> 33) % (blocks.end - blocks.start);
        let covered = scene.covered(number..number + 1);
        if covered == 0 {
            scene.try_store(number, 0);
        }
        found += if time + 500 >= times { covered } else { 0 };
        // What can wait comes after some requests.
        scene.tend_unchecked();
    }
    scene.check();
    found
}

#[test]
fn what_is_asked_for_now_takes_the_place_of_what_was_whatever_the_strategy() {
    let mut short = Vec::new();
    for strategy in Strategy::ALL {
        let mut scene = Scenario::keeping_free(50, FRAMES, strategy, None);
        asked_for(&mut scene, &(0..500), 2000);
        let demoted = scene.shard.stats().demoted;
        let found = asked_for(&mut scene, &(1000..1200), 4000);
        if found < 495 || scene.shard.stats().demoted < demoted + 100 {
            short.push((strategy, found, scene.tiers(), scene.shard.stats().demoted - demoted));
        }
    }
    assert!(short.is_empty(), "of 500 found, where all have room: {short:?}");
}

#[test]
fn a_change_of_strategy_leaves_the_disk_what_it_was() {
    let mut short = Vec::new();
    for strategy in Strategy::ALL {
        let mut scene = Scenario::keeping_free(50, FRAMES, Strategy::Lru, None);
        asked_for(&mut scene, &(0..500), 2000);
        scene.shard.set_rules(Rules::new(strategy), &BTreeMap::new());
        asked_for(&mut scene, &(1000..1500), 2000);
        let found = asked_for(&mut scene, &(2000..2200), 4000);
        if found < 495 {
            short.push((strategy, found, scene.tiers()));
        }
    }
    assert!(short.is_empty(), "of 500 found, where all have room: {short:?}");
}

#[test]
fn a_tenant_that_is_promised_nothing_costs_others_no_room_below() {
    for strategy in [Strategy::Lru, Strategy::Adaptive] {
        let mut scene = Scenario::keeping_free(50, FRAMES, strategy, None);
        let nothing = Rules { strategy, quota: [Some(0); 3] };
        scene.shard.set_tenants(BTreeMap::from([(TENANT, Era(1)), (OTHER, Era(1))]));
        scene.shard.set_rules(Rules::new(strategy), &BTreeMap::from([(OTHER, nothing)]));
        asked_for(&mut scene, &(0..500), 2000);
        scene.tenant = OTHER;
        asked_for(&mut scene, &(0..300), 300);
        scene.tenant = TENANT;
        let found = asked_for(&mut scene, &(2000..2200), 4000);
        assert!(found >= 495, "{strategy:?}: {found} of 500 found, tiers {:?}", scene.tiers());
    }
}
