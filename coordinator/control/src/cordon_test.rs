//! Stories of cordons: what stays, what goes elsewhere, and that every way ends.

use crate::planner::Planner;
use crate::planner::tests::goes_on;
use crate::registry::tests::Cluster;
use kvhive_protocol::control::{Command, CommandReply};
use kvhive_protocol::{DeviceId, EventKind, Level, MemberId, ReplicaSet, Slot, WireError};
use proptest::prelude::*;
use std::collections::BTreeSet;

struct Scene {
    cluster: Cluster,
    planner: Planner,
}

impl Scene {
    fn of(replicas: u8, names: &[&str]) -> Scene {
        let mut scene = Scene { cluster: Cluster::with_replicas(replicas), planner: Planner::new(4096) };
        for name in names {
            scene.cluster.register(name, 1);
        }
        scene.settle();
        scene
    }

    /// Plans until nothing is left to do, and returns how many plans that took.
    fn settle(&mut self) -> usize {
        for plans in 0..200 {
            let Some(command) = self.planner.plan(&self.cluster.map(), &goes_on()) else {
                assert_eq!(self.planner.unsettled(&self.cluster.map()), 0);
                return plans;
            };
            let reply = self.cluster.apply(command);
            assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
        }
        panic!("plans do not come to an end");
    }

    fn cordon(&mut self, member: MemberId, cordoned: bool) -> CommandReply {
        self.cluster.apply(Command::SetCordon { member, cordoned })
    }

    fn id(&self, name: &str) -> MemberId {
        self.cluster.map().member(name).expect("it registered").0
    }

    fn slots(&self, is: impl Fn(&ReplicaSet) -> bool) -> BTreeSet<Slot> {
        Slot::all().filter(|slot| is(self.cluster.map().replicas(*slot))).collect()
    }

    fn held(&self, member: MemberId) -> BTreeSet<Slot> {
        self.slots(|set| set.0.iter().any(|device| device.member == member))
    }

    fn led(&self, member: MemberId) -> BTreeSet<Slot> {
        self.slots(|set| set.primary().is_some_and(|device| device.member == member))
    }
}

#[test]
fn a_cordon_moves_nothing() {
    let mut scene = Scene::of(2, &["a", "b", "c"]);
    let a = scene.id("a");
    let before = scene.cluster.map().slots.clone();
    scene.cordon(a, true);
    assert_eq!((scene.settle(), &scene.cluster.map().slots), (0, &before));
    scene.cordon(a, false);
    assert_eq!((scene.settle(), &scene.cluster.map().slots), (0, &before));
    let events = scene.cluster.registry.events(0, 1000).events;
    let told = events.iter().filter(|event| event.note.subject.member.as_deref() == Some("a"));
    let told: Vec<EventKind> = told.map(|event| event.note.kind).skip(1).collect();
    assert_eq!(told, [EventKind::MemberCordoned, EventKind::MemberUncordoned]);
}

#[test]
fn whoever_is_cordoned_keeps_its_slots_when_others_come_and_go() {
    let mut scene = Scene::of(2, &["a", "b", "c", "d"]);
    let a = scene.id("a");
    let (held, led) = (scene.held(a), scene.led(a));
    assert!(held.len() > 1500 && led.len() > 700);
    scene.cordon(a, true);
    scene.cluster.register("e", 1);
    scene.settle();
    assert!(scene.held(a) == held && scene.led(a) == led);
    assert!(scene.held(scene.id("e")).len() > 1000, "the newcomer takes its share of the others");
    // What is lost with another is given to those that take.
    let (b, c) = (scene.id("b"), scene.id("c"));
    let only_with_a = scene.slots(|set| set.0.iter().map(|one| one.member).eq([b, a]));
    assert!(only_with_a.len() > 100);
    scene.cluster.mark_down(b);
    scene.settle();
    assert!(scene.held(a) == held);
    assert!(scene.slots(|set| set.0.len() == 2).len() == 4096, "every replica is there again");
    // It is primary now of what nobody else had left.
    assert!(scene.led(a) == led.union(&only_with_a).copied().collect());
    scene.cluster.apply(Command::SetDrains { member: c, drains: true });
    scene.settle();
    assert!(scene.held(a) == held && scene.held(c).is_empty());
}

#[test]
fn whoever_is_cordoned_and_starts_anew_is_given_nothing_until_that_ends() {
    let mut scene = Scene::of(2, &["a", "b", "c"]);
    let a = scene.id("a");
    scene.cordon(a, true);
    scene.cluster.register("a", 1);
    scene.settle();
    assert_eq!(scene.held(a), BTreeSet::new());
    assert!(scene.cluster.map().members[&a].cordoned);
    scene.cordon(a, false);
    scene.settle();
    assert!(scene.held(a).len() > 2000);
}

#[test]
fn a_copy_on_its_way_to_who_is_cordoned_ends() {
    let mut scene = Scene::of(1, &["a"]);
    scene.cluster.register("b", 1);
    let b = scene.id("b");
    // Copies begin.
    let begun = scene.planner.plan(&scene.cluster.map(), &goes_on()).expect("b is to have its share");
    scene.cluster.apply(begun);
    assert!(!scene.cluster.map().filling.is_empty());
    scene.cordon(b, true);
    scene.settle();
    assert_eq!((scene.held(b), scene.cluster.map().filling.len()), (BTreeSet::new(), 0));
}

#[test]
fn a_cordoned_member_can_be_emptied() {
    let mut scene = Scene::of(2, &["a", "b", "c"]);
    let a = scene.id("a");
    scene.cordon(a, true);
    scene.cluster.apply(Command::SetDrains { member: a, drains: true });
    scene.settle();
    assert_eq!(scene.held(a), BTreeSet::new());
}

#[test]
fn somebody_is_left_that_takes_slots() {
    let mut scene = Scene::of(1, &["a", "b"]);
    let (a, b) = (scene.id("a"), scene.id("b"));
    assert!(matches!(scene.cordon(a, true), CommandReply::Applied { .. }));
    for refused in
        [scene.cordon(b, true), scene.cluster.apply(Command::SetDrains { member: b, drains: true })]
    {
        let CommandReply::Rejected(error) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("no other member is up and takes slots"), "{error}");
    }
    // When those that take go all the same, slots are where they can be.
    scene.cluster.mark_down(b);
    scene.settle();
    assert_eq!(scene.held(a).len(), 4096);
}

#[test]
fn a_cordon_needs_a_level_that_all_speak() {
    let mut cluster = Cluster::at_level(Level::PINS);
    cluster.register("a", 1);
    let refused = cluster.apply(Command::SetCordon { member: MemberId(1), cordoned: true });
    let CommandReply::Rejected(WireError::NotYet { needs, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(needs, Level::CORDONS);
}

#[test]
fn failure_domains_do_not_stand_in_the_way_of_who_is_cordoned() {
    let mut scene = Scene::of(2, &[]);
    for (name, rack) in [("a", "1"), ("b", "1"), ("c", "2"), ("d", "2")] {
        scene.cluster.register_in(name, rack);
    }
    scene.settle();
    let (a, c) = (scene.id("a"), scene.id("c"));
    let held = scene.held(a);
    scene.cordon(a, true);
    scene.cordon(c, true);
    scene.cluster.register_in("e", "3");
    scene.settle();
    assert!(scene.held(a) == held);
    scene.cluster.mark_down(scene.id("d"));
    scene.settle();
    assert!(scene.slots(|set| set.0.len() == 2).len() == 4096);
    assert!(scene.held(a) == held);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Whatever is cordoned, emptied, lost and added in between: plans are taken, come to an end, and nobody that is cordoned ever holds or
    /// leads a slot that it did not before, but for one that no other has.
    #[test]
    fn who_is_cordoned_is_given_nothing(
        replicas in 1..4_u8,
        steps in prop::collection::vec((0..6_u32, 0..5_u8, 0..4_usize), 1..10),
    ) {
        let mut scene = Scene::of(replicas, &["a", "b", "c", "d"]);
        for (member, what, plans) in steps {
            let id = MemberId(member % 4 + 1);
            let (before, map) = (scene.cluster.map(), scene.cluster.map());
            match what {
                0 | 1 => { scene.cordon(id, what == 0); }
                2 => { scene.cluster.mark_down(id); }
                3 => { scene.cluster.register(["a", "b", "c", "d"][member as usize % 4], 1); }
                _ => { scene.cluster.apply(Command::SetDrains { member: id, drains: member > 3 }); }
            }
            for _ in 0..plans {
                let Some(command) = scene.planner.plan(&scene.cluster.map(), &goes_on()) else { break };
                let reply = scene.cluster.apply(command);
                prop_assert!(matches!(reply, CommandReply::Applied { .. }), "{:?}", reply);
            }
            let after = scene.cluster.map();
            let takes = after.members.values().any(|one| {
                one.state == kvhive_protocol::MemberState::Up && !one.drains && !one.cordoned
            });
            for (id, member) in after.members.iter().filter(|(_, one)| one.cordoned && takes) {
                if !map.members[id].cordoned || member.drains {
                    continue;
                }
                let device = DeviceId::new(*id, 0);
                for slot in Slot::all() {
                    prop_assert!(!after.replicas(slot).contains(device) || before.replicas(slot).contains(device));
                }
            }
        }
        scene.settle();
    }
}
