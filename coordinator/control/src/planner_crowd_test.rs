//! The planner of a thousand members: nodes join, are emptied and die, and after each the slots are where they belong again, by
//! changes that the registry takes, with no slot's blocks left behind.

use super::tests::goes_on;
use super::*;
use crate::registry::tests::{Cluster, registration};
use kvhive_protocol::control::{CommandReply, Proposal};
use kvhive_protocol::{MemberId, RequestId, SLOTS};

const MEMBERS: u32 = 1000;
const ZONES: u32 = 4;
const REPLICAS: u8 = 2;

struct Crowd {
    cluster: Cluster,
    planner: Planner,
    /// Copies made of slots.
    copies: usize,
}

impl Crowd {
    fn register(&mut self, number: u32) {
        let Command::Register(mut one) = registration(&format!("n{number}"), 1) else {
            panic!("it registers")
        };
        one.labels = BTreeMap::from([("zone".to_owned(), format!("z{}", number % ZONES))]);
        // Not by the cluster, which checks the whole map each time.
        let registry = &mut self.cluster.registry;
        let request = RequestId { client: 2, sequence: u64::from(number) + 1 };
        let reply =
            registry.apply(registry.applied() + 1, Proposal { request, command: Command::Register(one) });
        assert!(matches!(reply, CommandReply::Registered { .. }), "{reply:?}");
    }

    fn apply(&mut self, command: Command) {
        let reply = self.cluster.apply(command);
        assert!(!matches!(reply, CommandReply::Rejected(_)), "{reply:?}");
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.cluster.map()
    }

    /// Has everything moved, and checks each change.
    fn settle(&mut self) {
        while let Some(command) = self.planner.plan(&self.map(), &goes_on()) {
            let before = self.map();
            let Command::PlaceSlots { changes, .. } = &command else { panic!("it places slots") };
            self.copies += changes.iter().filter(|one| one.filling.streams).count();
            self.apply(command);
            check(&before, &self.map());
        }
        let map = self.map();
        assert_eq!((self.planner.unsettled(&map), map.filling.len()), (0, 0));
        for set in map.slots.iter() {
            assert_eq!(set.0.len(), usize::from(REPLICAS));
            let zones: BTreeSet<&String> =
                set.0.iter().map(|device| &map.members[&device.member].labels["zone"]).collect();
            assert_eq!(zones.len(), set.0.len(), "replicas are in different zones");
        }
    }
}

/// A slot's primary lacks nothing, and somebody who had its blocks before still has them.
fn check(before: &ClusterMap, after: &ClusterMap) {
    for slot in Slot::all() {
        let (old, new) = (&before.replicas(slot).0, &after.replicas(slot).0);
        assert!(!after.is_filling(slot, new[0]), "slot {slot}: the primary lacks blocks");
        let whole = |device: &&DeviceId| {
            !before.is_filling(slot, **device) || before.given_to(slot) == Some(**device)
        };
        assert!(old.iter().filter(whole).any(|device| new.contains(device)), "slot {slot} lost its blocks");
    }
}

#[test]
fn a_thousand_members_join_leave_and_die_and_slots_follow_with_few_moves() {
    let cluster = Cluster::with_replicas(REPLICAS);
    let mut crowd = Crowd { cluster, planner: Planner::new(1024), copies: 0 };
    for number in 0..MEMBERS {
        crowd.register(number);
    }
    crowd.settle();
    let mut loads: BTreeMap<DeviceId, usize> = BTreeMap::new();
    for device in crowd.map().slots.iter().flat_map(|set| &set.0) {
        *loads.entry(*device).or_default() += 1;
    }
    assert!(loads.values().all(|load| *load <= 10), "8.2 on average: {:?}", loads.values().max());
    let share = usize::from(SLOTS) * usize::from(REPLICAS) / MEMBERS as usize;
    let step = |what: &str, crowd: &mut Crowd, change: &mut dyn FnMut(&mut Crowd)| {
        crowd.copies = 0;
        change(crowd);
        crowd.settle();
        println!("{what}: {} slots copied for a share of {share}", crowd.copies);
        assert!(
            crowd.copies <= 12 * (share + 1),
            "{what}: {} slots were copied for a share of {share}",
            crowd.copies
        );
    };
    step("a member joins", &mut crowd, &mut |crowd| crowd.register(MEMBERS));
    step("a member is emptied", &mut crowd, &mut |crowd| {
        crowd.apply(Command::SetDrains { member: MemberId(17), drains: true });
    });
    assert!(crowd.map().slots.iter().all(|set| set.0.iter().all(|device| device.member != MemberId(17))));
    step("a member dies", &mut crowd, &mut |crowd| {
        crowd.cluster.mark_down(MemberId(500));
    });
}
