//! Room for blocks that come from a member which is being emptied.

use super::{Scenario, TENANT, key};
use kvhive_cache::Reserve;
use kvhive_cache::policy::Strategy;
use kvhive_protocol::data::{About, StoreBlock};
use kvhive_protocol::{BlockKey, Slot};

/// The slot that has gone elsewhere, and one that the device has.
const GONE: Slot = Slot(7);
const HERE: Slot = Slot(1);

impl Scenario {
    fn try_store_in(&mut self, slot: Slot, number: u64, parent: BlockKey) -> bool {
        let block = StoreBlock { parent, ..self.block(number, 0) };
        match self.shard.reserve(self.now(), TENANT, &block, slot, About::default(), &mut self.effects) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket).is_some(),
            Reserve::Present(_) | Reserve::Refused(_) => false,
        }
    }

    /// Makes way for a block of a slot that comes here.
    fn make_way(&mut self, number: u64) -> bool {
        let (block, now) = (self.block(number, 0), self.now());
        let comes = self.shard.make_way(now, TENANT, (&block, HERE), |slot| slot != GONE, &mut self.effects);
        self.shard.invariants().expect("as ever");
        comes
    }

    fn blocks_here(&self) -> (u64, u64) {
        (self.shard.blocks_of(|slot| slot == HERE), self.shard.blocks_of(|slot| slot == GONE))
    }
}

#[test]
fn copies_of_slots_that_have_gone_leave_before_any_other_does_the_last_of_a_prefix_first() {
    let mut scene = Scenario::of([12, 0, 0], Strategy::Lru, None);
    // Older than what would stay, and younger: whatever the strategy would say.
    (0..4).for_each(|number| assert!(scene.try_store_in(HERE, number, BlockKey::NONE)));
    let mut parent = BlockKey::NONE;
    for number in 10..14 {
        assert!(scene.try_store_in(GONE, number, parent));
        parent = key(number);
    }
    (4..8).for_each(|number| assert!(scene.try_store_in(HERE, number, BlockKey::NONE)));
    for number in 20..24 {
        assert!(scene.make_way(number) && scene.try_store_in(HERE, number, BlockKey::NONE));
    }
    assert_eq!(scene.blocks_here(), (12, 0), "all that is held is here still");
    assert_eq!((scene.shard.stats().evicted, scene.shard.frames()[0].spare), (4, 0));
    // There is nothing more to leave but what is held.
    assert!(scene.make_way(24) && scene.try_store_in(HERE, 24, BlockKey::NONE));
    assert_eq!(scene.blocks_here(), (12, 0));
}

#[test]
fn what_comes_waits_for_memory_while_the_disk_has_room() {
    let mut scene = Scenario::keeping_free(100, [10, 0, 20], Strategy::Lru, None);
    let mut waited = 0;
    for number in 0..27 {
        while !scene.make_way(number) {
            waited += 1;
            assert!(waited < 100, "blocks go to the disk");
            scene.settle();
        }
        assert!(scene.try_store_in(HERE, number, BlockKey::NONE), "{number}");
    }
    assert_eq!((scene.shard.stats().evicted, scene.blocks_here()), (0, (27, 0)));
    assert!(waited > 0, "memory alone has no room for them");
}

#[test]
fn copies_that_somebody_holds_leave_when_they_are_let_go_of() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, None);
    for number in 10..14 {
        assert!(scene.try_store_in(GONE, number, BlockKey::NONE));
        assert_eq!(scene.matched(number..number + 1, 1000), 1);
    }
    (0..4).for_each(|number| assert!(scene.try_store_in(HERE, number, BlockKey::NONE)));
    // All are held: what is here leaves for what comes.
    assert!(scene.make_way(4) && scene.try_store_in(HERE, 4, BlockKey::NONE));
    assert_eq!(scene.blocks_here(), (4, 4));
    scene.now += 1010;
    for number in 5..9 {
        assert!(scene.make_way(number) && scene.try_store_in(HERE, number, BlockKey::NONE));
    }
    assert_eq!(scene.blocks_here(), (8, 0));
}

#[test]
fn a_search_in_vain_rests() {
    let mut scene = Scenario::of([8, 0, 0], Strategy::Lru, None);
    for number in 10..14 {
        assert!(scene.try_store_in(GONE, number, BlockKey::NONE));
        assert_eq!(scene.matched(number..number + 1, 50), 1);
    }
    (0..4).for_each(|number| assert!(scene.try_store_in(HERE, number, BlockKey::NONE)));
    assert!(scene.make_way(4) && scene.try_store_in(HERE, 4, BlockKey::NONE));
    // Their holds have ended, and nobody has looked since.
    scene.now += 60;
    assert!(scene.make_way(5) && scene.try_store_in(HERE, 5, BlockKey::NONE));
    assert_eq!(scene.blocks_here(), (4, 4));
    scene.now += 60;
    assert!(scene.make_way(6) && scene.try_store_in(HERE, 6, BlockKey::NONE));
    assert_eq!(scene.blocks_here(), (5, 3));
}
