//! Stories of whether others have room for what members hold.

use super::*;
use crate::registry::tests::Cluster;
use kvhive_protocol::RequestId;
use kvhive_protocol::TenantId;
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::load::{PinnedLoad, TenantLoad};

const KIB: u64 = 1024;

/// Members of one device each, and what each of these reports; slots are where they belong.
struct Scene {
    cluster: Cluster,
    loads: BTreeMap<DeviceId, DeviceLoad>,
}

impl Scene {
    fn new(replicas: u8, used_and_spare: &[(u64, u64)]) -> Scene {
        let mut cluster = Cluster::with_replicas(replicas);
        let mut loads = BTreeMap::new();
        for (at, (used, spare)) in used_and_spare.iter().enumerate() {
            let member = cluster.register(&format!("node-{at}"), 1);
            loads.insert(DeviceId::new(member, 0), load(&[(KIB, *used, *spare)]));
        }
        let mut planner = crate::planner::Planner::new(4096);
        while let Some(plan) = planner.plan(&cluster.map(), &crate::planner::tests::goes_on()) {
            cluster.apply(plan);
        }
        Scene { cluster, loads }
    }

    fn loads(&self) -> BTreeMap<DeviceId, &DeviceLoad> {
        self.loads.iter().map(|(device, load)| (*device, load)).collect()
    }

    fn weigh(&self, member: u32, underway: &[u32]) -> Result<Command, WireError> {
        let underway = underway.iter().map(|id| MemberId(*id)).collect();
        weigh(&self.cluster.map(), &self.loads(), MemberId(member), &underway)
    }

    fn room(&self, leaving: &[u32]) -> Result<Room, Unheard> {
        room(&self.cluster.map(), &self.loads(), &leaving.iter().map(|id| MemberId(*id)).collect())
    }
}

fn load(frames: &[(u64, u64, u64)]) -> DeviceLoad {
    let frames =
        frames.iter().map(|(bytes, used, spare)| FrameLoad { bytes: *bytes, used: *used, spare: *spare });
    let frames: Vec<FrameLoad> = frames.collect();
    let blocks = frames.iter().map(|one| one.used).sum();
    DeviceLoad { blocks, held_blocks: blocks, frames, ..DeviceLoad::default() }
}

#[test]
fn one_that_takes_all_has_room_for_just_as_much_as_is_free() {
    for (spare, short) in [(100, 0), (99, KIB), (0, 100 * KIB)] {
        let room = Scene::new(1, &[(50, spare), (100, 0)]).room(&[2]).expect("all have reported");
        assert_eq!((room.blocks, room.bytes), (100, 100 * KIB));
        assert_eq!((room.free_bytes, room.short_bytes, room.is_full), (spare * KIB, short, spare == 0));
    }
}

#[test]
fn what_is_spread_over_several_may_be_short_where_one_of_them_is() {
    let room = Scene::new(1, &[(10, 300), (290, 10), (200, 100)]).room(&[3]).expect("they have reported");
    let gets: u64 = room.takers.iter().map(|taker| taker.gets_bytes).sum();
    assert_eq!((room.takers.len(), gets, room.bytes), (2, room.bytes, room.bytes));
    assert!(room.free_bytes == 310 * KIB && room.short_bytes > 80 * KIB, "{room:?}");
}

#[test]
fn two_that_leave_together_are_weighed_together_and_so_is_who_has_begun() {
    let mut scene = Scene::new(1, &[(0, 150), (100, 0), (100, 0)]);
    let both = scene.room(&[2, 3]).expect("they have reported");
    assert_eq!((both.bytes, both.short_bytes), (200 * KIB, 50 * KIB));
    scene.cluster.apply(kvhive_protocol::control::Command::SetDrains { member: MemberId(3), drains: true });
    assert_eq!(scene.room(&[2]), Ok(both.clone()));
    let short = |member| match scene.weigh(member, &[]) {
        Err(WireError::TooLittleRoom { short_bytes, beside, .. }) => Some((short_bytes, beside)),
        _ => None,
    };
    assert_eq!(short(2), Some((both.short_bytes, 1)));
    assert_eq!(short(3), None, "what has begun goes on");
}

#[test]
fn the_second_of_two_that_are_asked_for_at_once_counts_what_the_first_takes() {
    let mut scene = Scene::new(1, &[(0, 190), (100, 100), (100, 100)]);
    let weighed = |scene: &Scene, member, underway: &[u32]| scene.weigh(member, underway);
    // Each by itself has room: both were told so.
    let (first, second) = (weighed(&scene, 2, &[]), weighed(&scene, 3, &[]));
    let alone = |member| Ok(Command::Empty { member: MemberId(member), beside: Some(Vec::new()) });
    assert_eq!((&first, &second), (&alone(2), &alone(3)));
    assert!(matches!(weighed(&scene, 3, &[2]), Err(WireError::TooLittleRoom { beside: 1, .. })));
    // And what another leader has found does not hold once the first has begun.
    let (first, second) = (first.expect("there is room"), second.expect("there is room"));
    assert!(matches!(scene.cluster.apply(first.clone()), CommandReply::Applied { .. }));
    let request = RequestId { client: 77, sequence: 1 };
    let ask = |scene: &mut Scene, command| scene.cluster.apply_as(request, command);
    let stale = ask(&mut scene, second);
    assert!(matches!(stale, CommandReply::Rejected(WireError::StaleEpoch { .. })), "{stale:?}");
    assert!(!scene.cluster.map().is_emptied(MemberId(3)));
    // Nothing was decided of it: weighed anew it is another answer under the same name.
    let begun = ask(&mut scene, Command::Empty { member: MemberId(3), beside: None });
    assert!(matches!(begun, CommandReply::Applied { .. }), "{begun:?}");
    assert_eq!(ask(&mut scene, Command::SetDrains { member: MemberId(3), drains: false }), begun);
    assert!(scene.cluster.map().is_emptied(MemberId(3)), "that was decided");
}

#[test]
fn where_nobody_stays_all_of_it_is_short() {
    for replicas in [1, 2] {
        let scene = Scene::new(replicas, &[(60, 40), (60, 40)]);
        let room = scene.room(&[1, 2]).expect("they have reported");
        assert_eq!((room.short_bytes, room.takers.len(), room.free_bytes), (room.bytes, 0, 0));
        let all = 120 * KIB / u64::from(replicas);
        assert!((all..all + 3 * KIB).contains(&room.bytes), "{replicas}: {room:?}");
    }
}

#[test]
fn what_others_have_too_needs_room_only_where_a_copy_is_made_anew() {
    // Of three copies two are left, where they are.
    let room = Scene::new(3, &[(90, 10), (90, 10), (90, 10)]).room(&[2]).expect("they have reported");
    assert_eq!((room.bytes, room.short_bytes, room.takers.len()), (0, 0, 0));
    let room = Scene::new(2, &[(90, 10), (90, 10), (90, 10)]).room(&[2]).expect("they have reported");
    assert!((90 * KIB..93 * KIB).contains(&room.bytes) && room.short_bytes > 60 * KIB, "{room:?}");
}

#[test]
fn what_a_replica_that_stays_may_have_let_go_has_to_find_room_there() {
    let with = |evicted: u64, refused: u64| {
        let mut scene = Scene::new(2, &[(90, 10), (90, 10)]);
        let load = scene.loads.get_mut(&DeviceId::new(MemberId(1), 0)).expect("it is there");
        load.evicted_blocks = evicted;
        let tenant = TenantLoad { refused_blocks: refused, ..TenantLoad::default() };
        load.tenants = vec![(TenantId(0), tenant)];
        let room = scene.room(&[2]).expect("they have reported");
        (room.unsure_blocks, room.blocks, room.short_bytes / KIB)
    };
    assert_eq!(with(0, 0), (0, 0, 0));
    assert_eq!(with(6, 4), (10, 10, 0), "that much there is room for");
    assert_eq!(with(20, 5), (25, 25, 15));
    assert_eq!(with(1000, 0), (90, 90, 80), "no more than there is");
}

#[test]
fn the_second_that_leaves_is_offered_to_nobody_and_counts_by_what_others_may_lack() {
    let mut scene = Scene::new(3, &[(50, 50), (50, 50), (50, 50)]);
    scene.loads.get_mut(&DeviceId::new(MemberId(1), 0)).expect("it is there").evicted_blocks = 7;
    let room = scene.room(&[2, 3]).expect("they have reported");
    // Rounded up where slots have another order.
    assert!((7..10).contains(&(room.short_bytes / KIB)), "{room:?}");
    let mut scene = Scene::new(2, &[(0, 100), (50, 50), (50, 50)]);
    scene.loads.get_mut(&DeviceId::new(MemberId(2), 0)).expect("it is there").evicted_blocks = 1000;
    let room = scene.room(&[2, 3]).expect("they have reported");
    assert!(room.short_bytes > 0, "of slots that both have, what the second alone holds: {room:?}");
}

#[test]
fn who_gets_a_part_has_room_for_more_than_its_share_as_segments_go_together() {
    // 480 blocks in 30 segments, each of which goes to one of two: a share is 240 blocks, and a standard deviation 44.
    let short = |spare| {
        let scene = Scene::new(1, &[(0, spare), (0, spare), (480, 0)]);
        let room = scene.room(&[3]).expect("they have reported");
        assert!((480..484).contains(&(room.bytes / KIB)), "shares are told: {room:?}");
        (room.short_bytes / KIB, room.margin_bytes / KIB)
    };
    let (lacking, margin) = short(270);
    assert!((90..130).contains(&lacking) && (165..175).contains(&margin), "{lacking} {margin}");
    assert_eq!(short(340).0, 0);
    assert_eq!(short(480).0, 0);
    // Where all of it goes to one nothing is uncertain.
    let room = Scene::new(1, &[(0, 100), (100, 0)]).room(&[2]).expect("they have reported");
    assert_eq!((room.short_bytes, room.margin_bytes), (0, 0));
    // And none gets more than there is.
    let room = Scene::new(1, &[(0, 20), (0, 20), (20, 0)]).room(&[3]).expect("they have reported");
    assert_eq!(room.short_bytes, 0, "{room:?}");
}

#[test]
fn a_block_takes_a_larger_frame_and_no_smaller_one() {
    let need = Frames::from([(4, 10), (8, 10)]);
    for (spare, short) in [
        (&[(4, 10), (8, 10)][..], 0),
        (&[(8, 20)], 0),
        (&[(4, 20)], 80),
        (&[(4, 5), (8, 12)], 12),
        (&[(16, 10), (4, 3)], 28),
    ] {
        assert_eq!(fit(&need, &mut spare.iter().copied().collect()), short, "{spare:?}");
    }
}

#[test]
fn who_has_not_said_anything_has_to_first() {
    let mut scene = Scene::new(1, &[(10, 90), (10, 90)]);
    scene.loads.insert(DeviceId::new(MemberId(1), 0), DeviceLoad::default());
    let unheard = scene.room(&[2]).expect_err("nobody knows");
    assert!(unheard.to_string().contains("node-0 has not said"), "{unheard}");
    assert_eq!(fewest(&scene.cluster.map(), &scene.loads()), None);
}

#[test]
fn copies_of_slots_that_have_gone_need_no_room() {
    let mut scene = Scene::new(1, &[(0, 100), (100, 0)]);
    scene.loads.get_mut(&DeviceId::new(MemberId(2), 0)).expect("it is there").held_blocks = 30;
    let room = scene.room(&[2]).expect("they have reported");
    assert_eq!((room.blocks, room.bytes), (30, 30 * KIB));
    // And they leave before anything else does.
    let mut scene = Scene::new(1, &[(100, 0), (50, 50)]);
    scene.loads.get_mut(&DeviceId::new(MemberId(1), 0)).expect("it is there").held_blocks = 45;
    let room = scene.room(&[2]).expect("they have reported");
    assert_eq!((room.free_bytes, room.short_bytes, room.is_full), (55 * KIB, 0, false));
}

#[test]
fn fewer_members_hold_all_while_nothing_had_to_leave_and_what_is_pinned_at_least() {
    let fewest = |scene: &Scene| fewest(&scene.cluster.map(), &scene.loads());
    assert_eq!(fewest(&Scene::new(1, &[(50, 50); 4])), Some(2));
    assert_eq!(fewest(&Scene::new(1, &[(51, 49); 4])), Some(3));
    let mut full = Scene::new(1, &[(100, 0), (60, 40), (60, 40), (60, 40)]);
    assert_eq!(fewest(&full), Some(1), "what is least wanted leaves all the time");
    for load in full.loads.values_mut() {
        load.pinned = PinnedLoad { bytes: 30 * KIB, ..PinnedLoad::default() };
    }
    assert_eq!(fewest(&full), Some(2));
}

#[test]
fn what_is_cordoned_takes_in_nothing_that_others_held() {
    let mut scene = Scene::new(1, &[(50, 50); 4]);
    scene.cluster.apply(kvhive_protocol::control::Command::SetCordon { member: MemberId(1), cordoned: true });
    assert_eq!(
        fewest(&scene.cluster.map(), &scene.loads()),
        Some(3),
        "two hold it all, beside the one that may go"
    );
}
