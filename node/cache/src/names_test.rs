//! Stories of names, and random ones.

use super::*;
use crate::test_map::{device, founded, member};
use kvhive_protocol::Tenant;
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::names::Target;
use proptest::prelude::*;
use std::sync::Arc;

const TENANT: TenantId = TenantId(1);
const OTHER: TenantId = TenantId(2);
const OURS: MemberId = MemberId(1);

/// A map in which every slot is this member's.
fn map(epoch: u64, primary: u32) -> ClusterMap {
    let mut map = ClusterMap { epoch: Epoch(epoch), ..founded() };
    map.members.insert(OURS, member(1));
    map.slots = Arc::new(vec![ReplicaSet(vec![device(primary)]); usize::from(SLOTS)]);
    for tenant in [TENANT, OTHER] {
        map.tenants.insert(
            tenant,
            Tenant { name: tenant.to_string(), secret: [1; 32], era: Era(1), rules: Default::default() },
        );
    }
    map
}

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn key(number: u8) -> BlockKey {
    BlockKey::from_bytes([number; 32])
}

fn target(nonce: u64) -> Target {
    Target { nonce, bytes: 10 }
}

struct Scene {
    names: Names,
    map: ClusterMap,
    now: Moment,
}

impl Scene {
    fn with_room_for(names: u64) -> Scene {
        let mut scene = Scene { names: Names::within(names * (ENTRY_BYTES + 1)), map: map(1, 1), now: at(0) };
        scene.names.adopt(at(0), &scene.map, OURS, true);
        scene.now = at(10_000);
        scene
    }

    fn does(&mut self, number: u8, verb: NameVerb) -> NameAnswer {
        self.names.answers_for(self.now, &key(number)).expect("the slot is ours");
        self.names.act(self.now, &self.map, TENANT, &NameOp { key: key(number), verb })
    }

    fn set(&mut self, number: u8, nonce: u64, when: When, life: Life) -> bool {
        self.does(number, NameVerb::Set { name: vec![number], target: target(nonce), when, life }).done
    }

    fn means(&mut self, number: u8) -> Option<u64> {
        self.does(number, NameVerb::Look).before.map(|meaning| meaning.target.nonce)
    }

    fn names(&self) -> Vec<u8> {
        let (names, next) = self.names.list(self.now, &self.map, TENANT, 0, MAX_NAMES_LISTED);
        assert_eq!(next, None);
        names.into_iter().flat_map(|one| one.name).collect()
    }
}

#[test]
fn a_name_means_what_it_was_set_to_last_until_it_is_dropped() {
    let mut scene = Scene::with_room_for(9);
    assert_eq!(scene.means(1), None);
    assert!(scene.set(1, 7, When::Always, Life::Open) && scene.set(1, 8, When::Always, Life::Open));
    assert_eq!(scene.means(1), Some(8));
    assert!(!scene.does(1, NameVerb::Drop { only: Some(7) }).done, "it means another by now");
    assert!(scene.does(1, NameVerb::Drop { only: Some(8) }).done);
    assert_eq!((scene.means(1), scene.names.kept()), (None, 0));
}

#[test]
fn conditions_hold_and_a_request_made_again_is_the_same_one() {
    let mut scene = Scene::with_room_for(9);
    assert!(!scene.set(1, 7, When::Present, Life::Open));
    assert!(scene.set(1, 7, When::Absent, Life::Open));
    assert!(scene.set(1, 7, When::Absent, Life::Open), "its first answer was lost");
    assert!(!scene.set(1, 8, When::Absent, Life::Open));
    assert!(scene.set(1, 8, When::Present, Life::Open));
    assert_eq!(scene.means(1), Some(8));
}

#[test]
fn a_meaning_ends_when_its_time_is_over_and_not_by_being_kept() {
    let mut scene = Scene::with_room_for(9);
    scene.set(1, 7, When::Always, Life::Ms(500));
    scene.now = at(10_200);
    let left = scene.does(1, NameVerb::Look).before.and_then(|meaning| meaning.left_ms);
    assert_eq!(left, Some(300));
    scene.set(1, 8, When::Always, Life::Kept);
    scene.now = at(10_499);
    assert_eq!((scene.means(1), scene.names()), (Some(8), vec![1]));
    scene.now = at(10_500);
    assert_eq!((scene.names(), scene.means(1)), (vec![], None));
    scene.set(1, 9, When::Always, Life::Ms(1));
    scene.set(1, 9, When::Always, Life::Open);
    scene.set(1, 10, When::Always, Life::Open);
    scene.now = at(20_000);
    assert_eq!(scene.means(1), Some(10), "it has no end any more");
}

#[test]
fn those_asked_for_longest_ago_make_room() {
    let mut scene = Scene::with_room_for(2);
    for number in [1, 2] {
        scene.set(number, 1, When::Always, Life::Open);
    }
    scene.means(1);
    scene.set(3, 1, When::Always, Life::Open);
    assert_eq!((scene.names(), scene.names.evicted()), (vec![1, 3], 1));
}

#[test]
fn a_slot_that_comes_is_asked_nothing_before_its_former_primary_has_stopped() {
    let mut names = Names::within(1 << 20);
    names.adopt(at(0), &map(1, 2), OURS, true);
    assert_eq!(names.answers_for(at(60_000), &key(1)), Err(TooEarly), "it is another's");
    names.adopt(at(60_000), &map(2, 1), OURS, false);
    let lease = founded().settings.lease_ms;
    assert_eq!(names.answers_for(at(60_000 + lease), &key(1)), Err(TooEarly));
    assert_eq!(names.answers_for(at(60_000 + lease * 9 / 8), &key(1)), Ok(()));
}

#[test]
fn what_another_may_have_answered_for_meanwhile_is_forgotten() {
    let later = at(20_000);
    for (what, next, lapsed, stays) in [
        ("the map says more", map(2, 1), false, true),
        ("the lease had lapsed", map(2, 1), true, false),
        ("the slot is another's", map(2, 2), false, false),
        ("another cluster", ClusterMap { cluster: ClusterId(9), ..map(2, 1) }, false, false),
    ] {
        let mut scene = Scene::with_room_for(9);
        scene.set(1, 7, When::Always, Life::Open);
        scene.names.adopt(later, &next, OURS, lapsed);
        assert_eq!(scene.names.kept() == 1, stays, "{what}");
        assert_eq!(scene.names.answers_for(later, &key(1)).is_ok(), stays, "{what}");
    }
    let mut scene = Scene::with_room_for(9);
    scene.set(1, 7, When::Always, Life::Open);
    scene.names.adopt(later, &map(2, 1), MemberId(3), false);
    assert_eq!(scene.names.kept(), 0, "it is another member");
}

#[test]
fn a_clear_ends_a_tenants_names_and_no_others() {
    let mut scene = Scene::with_room_for(9);
    scene.set(1, 7, When::Always, Life::Open);
    let set = NameVerb::Set { name: vec![2], target: target(1), when: When::Always, life: Life::Open };
    scene.names.act(scene.now, &scene.map, OTHER, &NameOp { key: key(2), verb: set });
    assert_eq!(scene.names(), [1], "the other's is not told");
    scene.map.tenants.get_mut(&TENANT).expect("it is there").era = Era(2);
    assert_eq!(scene.names(), [0u8; 0], "also before the map is taken over");
    scene.names.adopt(scene.now, &ClusterMap { epoch: Epoch(2), ..scene.map.clone() }, OURS, false);
    assert_eq!((scene.means(1), scene.names.kept()), (None, 1));
    assert_eq!(scene.names.count(scene.now, &scene.map, OTHER), 1);
}

#[test]
fn a_list_goes_on_where_it_stopped_and_misses_nobody() {
    let mut scene = Scene::with_room_for(99);
    for number in 0..50 {
        scene.set(number, 1, When::Always, Life::Open);
    }
    let (mut seen, mut from) = (Vec::new(), 0);
    loop {
        let (names, next) = scene.names.list(scene.now, &scene.map, TENANT, from, 7);
        assert!(names.len() <= 7);
        seen.extend(names.into_iter().flat_map(|one| one.name));
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen, (0..50).collect::<Vec<u8>>());
}

#[derive(Clone, Debug)]
enum Act {
    Set(u8, u64, When, Life),
    Drop(u8, Option<u64>),
    Wait(u64),
    Adopt { ours: bool, lapsed: bool },
}

fn act() -> impl Strategy<Value = Act> {
    let when = prop_oneof![Just(When::Always), Just(When::Absent), Just(When::Present)];
    let life = prop_oneof![Just(Life::Open), (1..4000u64).prop_map(Life::Ms), Just(Life::Kept)];
    prop_oneof![
        6 => (0..6u8, 0..4u64, when, life).prop_map(|(name, nonce, when, life)| Act::Set(name, nonce, when, life)),
        2 => (0..6u8, proptest::option::of(0..4u64)).prop_map(|(name, only)| Act::Drop(name, only)),
        2 => (1..3000u64).prop_map(Act::Wait),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(ours, lapsed)| Act::Adopt { ours, lapsed }),
    ]
}

proptest! {
    /// Whatever happens, a name means what it was set to last, or nothing; and the books are right.
    #[test]
    fn a_name_never_means_what_it_meant_before(acts in prop::collection::vec(act(), 1..60)) {
        let mut scene = Scene::with_room_for(4);
        let mut last: BTreeMap<u8, u64> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Set(name, nonce, when, life) => {
                    if scene.names.answers_for(scene.now, &key(name)).is_ok() && scene.set(name, nonce, when, life) {
                        last.insert(name, nonce);
                    }
                }
                Act::Drop(name, only) => {
                    if scene.names.answers_for(scene.now, &key(name)).is_ok()
                        && scene.does(name, NameVerb::Drop { only }).done
                    {
                        last.remove(&name);
                    }
                }
                Act::Wait(ms) => scene.now = after(scene.now, ms),
                Act::Adopt { ours, lapsed } => {
                    scene.map = map(scene.map.epoch.0 + 1, if ours { 1 } else { 2 });
                    scene.names.adopt(scene.now, &scene.map, OURS, lapsed);
                    if lapsed || !ours {
                        prop_assert_eq!(scene.names.kept(), 0);
                        last.clear();
                    }
                }
            }
            for name in 0..6 {
                if scene.names.answers_for(scene.now, &key(name)).is_ok() {
                    let means = scene.means(name);
                    prop_assert!(means.is_none() || means == last.get(&name).copied());
                }
            }
            let names = &scene.names;
            let all = names.tenants.values().flat_map(BTreeMap::values);
            prop_assert_eq!(all.clone().map(Entry::bytes).sum::<u64>(), names.used);
            prop_assert_eq!(all.count(), names.order.len());
            prop_assert!(names.used <= names.limit);
        }
    }
}
