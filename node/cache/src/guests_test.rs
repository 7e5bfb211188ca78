//! Stories of guests, and random ones.

use super::*;
use crate::test_map::{device, founded, member};
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::{Epoch, Tenant};
use proptest::prelude::*;
use std::sync::Arc;

const TENANT: TenantId = TenantId(1);
const OURS: MemberId = MemberId(1);
/// Of another member.
const SLOT: Slot = Slot(9);

/// A map by which every slot is another member's, and the tenant is in this era.
fn map(era: u64) -> ClusterMap {
    let mut map = ClusterMap { epoch: Epoch(era), ..founded() };
    map.members.insert(OURS, member(1));
    map.slots = Arc::new(vec![ReplicaSet(vec![device(2)]); usize::from(SLOTS)]);
    let tenant = Tenant { name: "default".into(), secret: [1; 32], era: Era(era), rules: Default::default() };
    map.tenants.insert(TENANT, tenant);
    map
}

fn key(number: u8, era: u64) -> GuestKey {
    let (key, era) = (BlockKey::from_bytes([number; 32]), Era(era));
    GuestKey { tenant: TENANT, era, key, accept: Accept::Stored }
}

/// Another key for each of many numbers.
fn many(number: u64) -> GuestKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    GuestKey { key: BlockKey::from_bytes(bytes), ..key(0, 1) }
}

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// Blocks are numbers of one byte each, and those who wait letters.
type Few = Guests<u8, char>;

fn within(limit: u64) -> Few {
    let mut guests = Guests::within(limit);
    assert_eq!(guests.adopt(&map(1), OURS), []);
    guests
}

fn ask(guests: &mut Few, number: u8) -> Visit<u8> {
    guests.ask(at(0), key(number, 1), SLOT)
}

/// Has a block be asked for and come.
fn visit(guests: &mut Few, number: u8) {
    if ask(guests, number) == Visit::Fetch {
        guests.came(&key(number, 1), number, 1);
    }
}

#[test]
fn a_block_that_many_ask_for_is_fetched_once() {
    let mut guests = within(100);
    assert_eq!(ask(&mut guests, 1), Visit::Fetch);
    assert_eq!(guests.wait(&key(1, 1), 'a'), None);
    assert_eq!(ask(&mut guests, 1), Visit::Coming);
    assert_eq!(guests.wait(&key(1, 1), 'b'), None);
    assert_eq!(guests.came(&key(1, 1), 7, 1), Some(vec!['a', 'b']));
    assert_eq!(ask(&mut guests, 1), Visit::Here(7));
    assert_eq!(guests.wait(&key(1, 1), 'c'), Some('c'), "it is here");
    assert_eq!(guests.came(&key(1, 1), 8, 1), None, "it came already");
    assert_eq!(guests.kept(), (1, 1));
}

#[test]
fn what_did_not_come_is_a_miss_for_a_moment_and_looked_for_again_after_it() {
    let mut guests = within(100);
    assert_eq!(ask(&mut guests, 1), Visit::Fetch);
    guests.wait(&key(1, 1), 'a');
    assert_eq!(guests.lacked(at(0), &key(1, 1)), ['a']);
    assert_eq!(guests.ask(at(249), key(1, 1), SLOT), Visit::Miss);
    assert_eq!(guests.ask(at(250), key(1, 1), SLOT), Visit::Fetch);
}

#[test]
fn keys_that_are_nowhere_are_remembered_and_looked_for_up_to_a_bound() {
    let mut guests: Few = within(100);
    let all = MAX_COMING.max(MAX_LACKED) as u64 + 10;
    let visits: Vec<Visit<u8>> = (0..all).map(|number| guests.ask(at(0), many(number), SLOT)).collect();
    assert_eq!(visits.iter().filter(|visit| **visit == Visit::Fetch).count(), MAX_COMING);
    for number in 0..all {
        guests.lacked(at(0), &many(number));
        guests.ask(at(0), many(number + all), SLOT);
        guests.lacked(at(0), &many(number + all));
    }
    assert!(guests.coming.is_empty() && guests.lacked.len() <= MAX_LACKED);
    assert_eq!(guests.lacked.len(), guests.lacked_order.len());
}

#[test]
fn the_end_of_an_era_ends_its_guests_and_those_on_their_way() {
    let mut guests = within(100);
    visit(&mut guests, 1);
    assert_eq!(ask(&mut guests, 2), Visit::Fetch);
    guests.wait(&key(2, 1), 'a');
    assert_eq!(guests.adopt(&map(2), OURS), [1], "whoever holds the lock overwrites nothing");
    assert_eq!(guests.kept(), (0, 0));
    assert_eq!(ask(&mut guests, 1), Visit::Miss, "who asks goes by an older map");
    assert_eq!(guests.came(&key(2, 1), 2, 1), Some(vec!['a']), "whoever waits checks the era itself");
    assert_eq!(guests.kept(), (0, 0));
    assert_eq!(guests.ask(at(0), key(1, 2), SLOT), Visit::Fetch, "the new era begins with nothing");
}

#[test]
fn a_deleted_tenant_has_no_guests() {
    let mut guests = within(100);
    visit(&mut guests, 1);
    let mut without = map(1);
    without.tenants.clear();
    assert_eq!(guests.adopt(&without, OURS), [1]);
    assert_eq!((guests.kept(), ask(&mut guests, 1)), ((0, 0), Visit::Miss));
}

#[test]
fn another_cluster_begins_with_no_guests() {
    let mut guests = within(100);
    visit(&mut guests, 1);
    assert_eq!(guests.adopt(&ClusterMap { cluster: ClusterId(2), ..map(1) }, OURS), [1]);
    assert_eq!((guests.kept(), ask(&mut guests, 1)), ((0, 0), Visit::Fetch));
}

#[test]
fn what_is_on_its_way_from_another_cluster_is_nobody_s() {
    let mut guests = within(100);
    for number in [1, 2] {
        assert_eq!(ask(&mut guests, number), Visit::Fetch);
        guests.wait(&key(number, 1), 'a');
    }
    // All ids are the same there.
    assert_eq!(guests.adopt(&ClusterMap { cluster: ClusterId(2), ..map(1) }, OURS), []);
    assert_eq!(ask(&mut guests, 1), Visit::Miss, "what is coming is not that block");
    assert_eq!(guests.wait(&key(1, 1), 'b'), Some('b'));
    assert_eq!(guests.came(&key(1, 1), 1, 1), Some(vec![]));
    assert_eq!(guests.lacked(at(0), &key(2, 1)), []);
    assert_eq!(guests.kept(), (0, 0));
    for number in [1, 2] {
        assert_eq!(ask(&mut guests, number), Visit::Fetch);
    }
}

#[test]
fn no_more_wait_than_there_is_place_for() {
    let mut guests = within(100);
    let ones = (MAX_WAITING / MAX_WAITING_FOR_ONE) as u64;
    let visitors = |guests: &mut Few, number: u64| {
        assert_eq!(guests.ask(at(0), many(number), SLOT), Visit::Fetch);
        (0..=MAX_WAITING_FOR_ONE).filter(|_| guests.wait(&many(number), 'a').is_none()).count()
    };
    for number in 0..ones {
        assert_eq!(visitors(&mut guests, number), MAX_WAITING_FOR_ONE);
    }
    assert_eq!(visitors(&mut guests, ones), 0, "as many wait as may");
    assert_eq!(guests.came(&many(0), 0, 1).map(|who| who.len()), Some(MAX_WAITING_FOR_ONE));
    assert_eq!(guests.lacked(at(0), &many(1)).len(), MAX_WAITING_FOR_ONE);
    for number in [ones + 1, ones + 2] {
        assert_eq!(visitors(&mut guests, number), MAX_WAITING_FOR_ONE, "those who were told make place");
    }
}

#[test]
fn a_node_that_becomes_a_replica_of_a_slot_keeps_no_guests_of_it() {
    let mut guests = within(100);
    visit(&mut guests, 1);
    assert_eq!(guests.ask(at(0), key(2, 1), Slot(8)), Visit::Fetch);
    guests.came(&key(2, 1), 2, 1);
    let mut ours = map(1);
    Arc::make_mut(&mut ours.slots)[usize::from(SLOT.0)] = ReplicaSet(vec![device(2), device(1)]);
    assert_eq!(guests.adopt(&ours, OURS), [1]);
    assert_eq!(ask(&mut guests, 1), Visit::Miss);
    assert_eq!(guests.ask(at(0), key(2, 1), Slot(8)), Visit::Here(2));
    assert_eq!(guests.ask(at(0), key(3, 1), Slot(u16::MAX)), Visit::Miss, "there is no such slot");
}

#[test]
fn what_is_read_once_leaves_before_what_is_read_again() {
    let mut guests = within(100);
    for number in 0..10 {
        visit(&mut guests, number);
    }
    for number in [3, 5] {
        assert_eq!(ask(&mut guests, number), Visit::Here(number));
    }
    let left: Vec<u8> = std::iter::from_fn(|| guests.evict()).map(|(block, _)| block).collect();
    assert_eq!(left, [0, 1, 2, 4, 6, 7, 8, 9, 3, 5]);
    assert_eq!(guests.kept(), (0, 0));
}

#[test]
fn two_who_waited_for_one_block_have_asked_for_it_twice() {
    let mut guests = within(100);
    visit(&mut guests, 1);
    assert_eq!(ask(&mut guests, 2), Visit::Fetch);
    guests.wait(&key(2, 1), 'a');
    guests.wait(&key(2, 1), 'b');
    guests.came(&key(2, 1), 2, 1);
    visit(&mut guests, 3);
    let left: Vec<u8> = std::iter::from_fn(|| guests.evict()).map(|(block, _)| block).collect();
    assert_eq!(left, [1, 3, 2]);
}

#[test]
fn what_was_read_again_long_ago_makes_room_too() {
    let mut guests = within(100);
    for number in 0..80 {
        visit(&mut guests, number);
        visit(&mut guests, number);
    }
    assert_eq!(guests.again_bytes, 75);
    assert_eq!(guests.once.len(), 5, "those read again first count as read once");
    assert_eq!(guests.evict(), Some((0, 1)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(u8, u64, bool),
    Came(u8, u64, u64),
    Lacked(u8, u64),
    Evict,
    Adopt(u64, bool),
}

fn steps() -> impl Strategy<Value = Step> {
    let (number, era) = (0..12u8, 1..4u64);
    prop_oneof![
        6 => (number.clone(), era.clone(), any::<bool>()).prop_map(|(n, e, waits)| Step::Ask(n, e, waits)),
        4 => (number.clone(), era.clone(), 1..30u64).prop_map(|(n, e, bytes)| Step::Came(n, e, bytes)),
        1 => (number, era.clone()).prop_map(|(n, e)| Step::Lacked(n, e)),
        1 => Just(Step::Evict),
        1 => (era, any::<bool>()).prop_map(|(e, ours)| Step::Adopt(e, ours)),
    ]
}

proptest! {
    #[test]
    fn no_guest_outlives_its_era_and_sums_are_right(steps in proptest::collection::vec(steps(), 0..200)) {
        let mut guests = within(100);
        let (mut era, mut waiting, mut ours) = (1, 0, false);
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Ask(number, of, waits) => {
                    let visit = guests.ask(at(now as u64 * 50), key(number, of), SLOT);
                    let may_be_here = of == era && !ours;
                    prop_assert!(may_be_here || visit == Visit::Miss, "{visit:?}");
                    if waits && matches!(visit, Visit::Coming | Visit::Fetch) {
                        prop_assert_eq!(guests.wait(&key(number, of), 'w'), None);
                        waiting += 1;
                    }
                }
                Step::Came(number, of, bytes) => {
                    waiting -= guests.came(&key(number, of), number, bytes).map_or(0, |who| who.len());
                }
                Step::Lacked(number, of) => {
                    waiting -= guests.lacked(at(now as u64 * 50), &key(number, of)).len();
                }
                Step::Evict => drop(guests.evict()),
                Step::Adopt(of, is_ours) => {
                    let mut fresh = map(of);
                    if is_ours {
                        fresh.slots = Arc::new(vec![ReplicaSet(vec![device(1)]); usize::from(SLOTS)]);
                    }
                    let before = guests.kept.len();
                    let over = guests.adopt(&fresh, OURS);
                    prop_assert_eq!(over.len() + guests.kept.len(), before, "each is kept or given back");
                    (era, ours) = (of, is_ours);
                }
            }
            let bytes: u64 = guests.kept.values().map(|kept| kept.bytes).sum();
            let again: u64 = guests.kept.values().filter(|kept| kept.is_again).map(|kept| kept.bytes).sum();
            prop_assert_eq!((guests.bytes, guests.again_bytes), (bytes, again));
            prop_assert!(again <= 75);
            prop_assert_eq!(guests.once.len() + guests.again.len(), guests.kept.len());
            prop_assert!(guests.kept.keys().all(|key| key.era == Era(era)));
            prop_assert!(!ours || guests.kept.is_empty());
            prop_assert_eq!(guests.coming.values().map(|one| one.waiting.len()).sum::<usize>(), waiting);
            prop_assert_eq!(guests.waiting, waiting);
            prop_assert_eq!(guests.lacked.len(), guests.lacked_order.len());
        }
    }
}
