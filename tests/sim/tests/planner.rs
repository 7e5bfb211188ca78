//! The planner of a thousand members: nodes join, are emptied and die, and after each the slots are where they belong again, by
//! changes that the registry takes, with no slot's blocks left behind.

use kvhive_control::{Planner, Registry, Reports};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::{Command, CommandReply, Proposal, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::{ClusterId, ClusterMap, DeviceId, Generation, MemberId, RequestId, SLOTS, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const MEMBERS: u32 = 1000;
const ZONES: u32 = 4;
const REPLICAS: u8 = 2;

/// Every slot has blocks, and whoever is given them has them by the next plan.
struct Full;

impl Reports for Full {
    fn occupied(&self, _: DeviceId, _: Slot) -> Option<bool> {
        Some(true)
    }

    fn is_filled(&self, _: Slot, _: DeviceId) -> bool {
        true
    }

    fn avoided(&self) -> &BTreeSet<DeviceId> {
        static NOBODY: BTreeSet<DeviceId> = BTreeSet::new();
        &NOBODY
    }

    fn is_due(&self) -> bool {
        true
    }
}

struct Cluster {
    registry: Registry,
    planner: Planner,
    index: u64,
    /// Copies made of slots.
    copies: usize,
}

impl Cluster {
    fn apply(&mut self, command: Command) {
        self.index += 1;
        let request = RequestId { client: 1, sequence: self.index };
        let reply = self.registry.apply(self.index, Proposal { request, command });
        assert!(!matches!(reply, CommandReply::Rejected(_)), "{reply:?}");
    }

    fn register(&mut self, number: u32) {
        let device =
            DeviceDescription { kind: "host".into(), device_bytes: 80 << 30, host_bytes: 0, disk_bytes: 0 };
        let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", number % ZONES))]);
        self.apply(Command::Register(Registration {
            request: RequestId { client: 2, sequence: u64::from(number) },
            name: format!("n{number}"),
            data_address: format!("10.0.{}.{}:7810", number / 256, number % 256),
            metrics_address: "10.0.0.1:7811".into(),
            labels,
            devices: vec![device],
            codec: Codec::Raw,
        }));
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.registry.map().expect("bootstrapped")
    }

    /// Has everything moved, and checks each change.
    fn settle(&mut self) {
        while let Some(command) = self.planner.plan(&self.map(), &Full) {
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
    let settings =
        Settings { replicas: REPLICAS, segment_blocks: 16, ack: Ack::All, lease_ms: 2000, heartbeat_ms: 200 };
    let mut cluster = Cluster { registry: Registry::new(), planner: Planner::new(1024), index: 0, copies: 0 };
    cluster.apply(Command::Bootstrap {
        cluster: ClusterId(3),
        name: "large".into(),
        settings,
        default_secret: [1; 32],
    });
    for number in 0..MEMBERS {
        cluster.register(number);
    }
    cluster.settle();
    let mut loads: BTreeMap<DeviceId, usize> = BTreeMap::new();
    for device in cluster.map().slots.iter().flat_map(|set| &set.0) {
        *loads.entry(*device).or_default() += 1;
    }
    assert!(loads.values().all(|load| *load <= 10), "8.2 on average: {:?}", loads.values().max());
    let share = usize::from(SLOTS) * usize::from(REPLICAS) / MEMBERS as usize;
    let step = |what: &str, cluster: &mut Cluster, change: &mut dyn FnMut(&mut Cluster)| {
        cluster.copies = 0;
        change(cluster);
        cluster.settle();
        println!("{what}: {} slots copied for a share of {share}", cluster.copies);
        assert!(
            cluster.copies <= 12 * (share + 1),
            "{what}: {} slots were copied for a share of {share}",
            cluster.copies
        );
    };
    step("a member joins", &mut cluster, &mut |cluster| cluster.register(MEMBERS));
    step("a member is emptied", &mut cluster, &mut |cluster| {
        cluster.apply(Command::SetDrains { member: MemberId(17), drains: true });
    });
    assert!(cluster.map().slots.iter().all(|set| set.0.iter().all(|device| device.member != MemberId(17))));
    step("a member dies", &mut cluster, &mut |cluster| {
        cluster.apply(Command::MarkDown { member: MemberId(500), generation: Generation(1) });
    });
}
