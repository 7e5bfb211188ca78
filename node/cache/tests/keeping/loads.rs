//! Loads: blocks of a snapshot that come where there is room to spare.

use super::{Scenario, TENANT};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Reason, ShardConfig};
use kvhive_protocol::Slot;

/// Offers blocks as a load does, until there is no room to spare; returns how many came.
fn load(scene: &mut Scenario, numbers: std::ops::Range<u64>) -> usize {
    let offered = numbers.take_while(|number| {
        let block = scene.block(*number, 0);
        let has_spare = scene.shard.has_spare(TENANT, &block, Slot(1));
        if has_spare {
            scene.try_store(*number, 0).expect("there is room to spare");
            scene.settle();
        }
        has_spare
    });
    offered.count()
}

#[test]
fn nothing_leaves_for_what_is_loaded_whether_or_not_unused_blocks_go_to_disk() {
    for (unused_to_disk, comes) in [(true, 24), (false, 4)] {
        let config = Scenario::config([10, 0, 20], Strategy::Lru);
        let mut scene = Scenario::with(ShardConfig { unused_to_disk, low_water_per_mille: 200, ..config });
        // Live blocks, none of them used again.
        (0..4).for_each(|number| _ = scene.try_store(number, 0).expect("there is room"));
        scene.settle();
        assert_eq!(load(&mut scene, 100..200), comes, "unused blocks go to disk: {unused_to_disk}");
        let stats = scene.shard.stats();
        assert_eq!((stats.evicted, stats.blocks()), (0, 4 + comes as u64));
    }
}

#[test]
fn what_a_collection_lets_go_because_it_is_not_worth_a_place_on_disk_is_counted_as_that() {
    let config = Scenario::config([40, 0, 40], Strategy::Lru);
    let mut scene = Scenario::with(ShardConfig { unused_to_disk: false, gc_per_mille: Some(500), ..config });
    (0..30).for_each(|number| _ = scene.try_store(number, 0).expect("there is room"));
    scene.settle();
    let (let_go, moved) = (scene.collected(Reason::NotAdmitted), scene.collected(Reason::Demoted));
    assert_eq!((moved, let_go), (0, scene.shard.stats().not_admitted));
    assert!(let_go > 8, "{let_go}");
}
