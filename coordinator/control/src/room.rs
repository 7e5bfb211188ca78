//! Whether the others have room for what members hold that are to be emptied, told beforehand: what each device would get by where
//! slots then belong, and how much of it could come before anything else leaves. An estimate where several devices take over, as a
//! device does not say how its blocks are spread over its slots; exact where one does.

use crate::{cordon, placement};
use kvhive_protocol::control::{Command, DeviceLoad};
use kvhive_protocol::emptying::FrameLoad;
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, Slot, WireError};
use std::collections::{BTreeMap, BTreeSet};

/// A device is full when less than this part of its frames is to spare: what is least wanted leaves it all the time.
const FULL_PART: u64 = 100;

/// What would have to go elsewhere, and what room there is for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Blocks that the members hold of slots which others are to take.
    pub blocks: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Bytes that those who stay can take in before anything leaves for them.
    pub free_bytes: u64,
    /// Bytes that would have no room where they would go.
    pub short_bytes: u64,
    /// Some of those who stay are full already: what is least wanted leaves them all the time.
    pub is_full: bool,
    /// Who would get something.
    pub takers: Vec<Taker>,
}

/// One device that would take slots over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taker {
    /// Which.
    pub device: DeviceId,
    /// Bytes of frames that it would get.
    pub gets_bytes: u64,
    /// Bytes that it can take in before anything leaves for them.
    pub free_bytes: u64,
}

/// A device that has not said what it holds since the leader leads.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{device} of {member} has not said yet what it holds: ask again in a second")]
pub struct Unheard {
    /// Whose device.
    pub member: String,
    /// Which.
    pub device: DeviceId,
}

/// Frames of each size, in bytes.
type Frames = BTreeMap<u64, u64>;

/// Says what room those who stay have for what `leaving` hold, and whoever is being emptied already.
///
/// # Errors
/// [`Unheard`] when a device that matters has not reported.
pub fn room(
    map: &ClusterMap,
    loads: &BTreeMap<DeviceId, &DeviceLoad>,
    leaving: &BTreeSet<MemberId>,
) -> Result<Room, Unheard> {
    let mut after = map.clone();
    for (id, member) in &mut after.members {
        member.drains |= leaving.contains(id);
    }
    let goes = |device: &DeviceId| after.is_emptied(device.member);
    let candidates = placement::candidates(&after);
    let mut wanted = placement::wanted_map(&candidates, usize::from(after.settings.replicas));
    placement::balance(&after, &candidates, &mut wanted);
    cordon::heed(&after, &candidates, &mut wanted);
    let mut slots: BTreeMap<DeviceId, u64> = BTreeMap::new();
    // By who gives and who gets it; nobody does where nobody stays.
    let mut gets: BTreeMap<(Option<DeviceId>, DeviceId), u64> = BTreeMap::new();
    for (slot, wanted) in Slot::all().zip(&wanted) {
        let set = map.replicas(slot);
        let new = wanted.0.iter().filter(|device| !set.contains(**device) || map.is_filling(slot, **device));
        let mut new = new.filter(|device| !goes(device)).peekable();
        let mut is_left = set.0.iter().any(|device| !goes(device)) || new.peek().is_some();
        for from in set.0.iter().filter(|device| goes(device)) {
            *slots.entry(*from).or_default() += 1;
            let to = new.next();
            if to.is_some() || !is_left {
                *gets.entry((to.copied(), *from)).or_default() += 1;
                is_left = true;
            }
        }
    }
    let known = |device: DeviceId| {
        let load = loads.get(&device).copied().filter(|load| !load.frames.is_empty());
        let member = || after.owner(device).map_or_else(String::new, |owner| owner.name.clone());
        load.ok_or_else(|| Unheard { member: member(), device })
    };
    let mut needs: BTreeMap<DeviceId, Frames> = BTreeMap::new();
    let mut room = Room::default();
    let mut lost = Frames::new();
    for ((to, from), count) in gets {
        let (load, of) = (known(from)?, slots[&from]);
        room.blocks += part(load.held_blocks, count, of);
        let needs = to.map_or(&mut lost, |to| needs.entry(to).or_default());
        for frames in &load.frames {
            // What is left of slots that have gone elsewhere stays behind.
            let held = part(frames.used, load.held_blocks.min(load.blocks), load.blocks);
            *needs.entry(frames.bytes).or_default() += part(held, count, of);
        }
    }
    room.bytes = bytes_of(&lost);
    room.short_bytes = room.bytes;
    for candidate in candidates.iter().filter(|candidate| candidate.takes && !goes(&candidate.device)) {
        let device = candidate.device;
        let load = known(device)?;
        let mut spare: Frames = load.frames.iter().map(|one| (one.bytes, free(load, one))).collect();
        let free_bytes = bytes_of(&spare);
        room.is_full |= is_full(load);
        room.free_bytes += free_bytes;
        let Some(need) = needs.get(&device) else { continue };
        let gets_bytes = bytes_of(need);
        room.bytes += gets_bytes;
        room.short_bytes += fit(need, &mut spare);
        room.takers.push(Taker { device, gets_bytes, free_bytes });
    }
    Ok(room)
}

/// Decides whether a member is emptied that is not to lose anything by it: how it is written down, where there is room for what it
/// holds beside what those hold who are being emptied, or are about to be. What has begun goes on, whatever room there is.
///
/// # Errors
/// [`WireError::TooLittleRoom`], or [`WireError::Busy`] while a device that matters has not said what it holds.
pub fn weigh(
    map: &ClusterMap,
    loads: &BTreeMap<DeviceId, &DeviceLoad>,
    member: MemberId,
    underway: &BTreeSet<MemberId>,
) -> Result<Command, WireError> {
    let others = map.members.keys().filter(|id| map.is_emptied(**id) || underway.contains(id));
    let beside: Vec<MemberId> = others.copied().filter(|id| *id != member).collect();
    let empty = Command::Empty { member, beside: Some(beside.clone()) };
    let Some(known) = map.members.get(&member).filter(|_| !map.is_emptied(member)) else { return Ok(empty) };
    // Cheaper to see than where all slots would be.
    let is_heard = |device: &DeviceId| loads.get(device).is_some_and(|load| !load.frames.is_empty());
    if let Some((device, _)) = map.devices_up().find(|(device, _)| !is_heard(device)) {
        let member = map.owner(device).map_or_else(String::new, |owner| owner.name.clone());
        return Err(WireError::busy(&Unheard { member, device }.to_string()));
    }
    let leaving = beside.iter().copied().chain([member]).collect();
    let found = room(map, loads, &leaving).map_err(|unheard| WireError::busy(&unheard.to_string()))?;
    let Room { blocks, bytes, free_bytes, short_bytes, .. } = found;
    if short_bytes == 0 {
        return Ok(empty);
    }
    let beside = u32::try_from(beside.len()).unwrap_or(u32::MAX);
    Err(WireError::TooLittleRoom {
        member: known.name.clone(),
        blocks,
        bytes,
        free_bytes,
        short_bytes,
        beside,
    })
}

/// Returns the fewest members that hold all that is not to be let go, whichever they are, and those that are cordoned, which take nothing
/// in: what is pinned where some are full, as what is
/// least wanted leaves them all the time, and else all that there is. None while a device has not said what it holds.
pub(crate) fn fewest(map: &ClusterMap, loads: &BTreeMap<DeviceId, &DeviceLoad>) -> Option<u32> {
    let (mut held, mut pinned, mut any_full) = (0, 0, false);
    let is_cordoned = |member: &MemberId| map.members.get(member).is_some_and(|one| one.cordoned);
    let mut capacities: BTreeMap<MemberId, u64> = BTreeMap::new();
    for (device, _) in map.devices_up().filter(|(device, _)| !map.is_emptied(device.member)) {
        let load = loads.get(&device).copied().filter(|load| !load.frames.is_empty())?;
        for frames in &load.frames {
            let own = part(frames.used, load.held_blocks.min(load.blocks), load.blocks);
            held += frames.bytes.saturating_mul(own);
            *capacities.entry(device.member).or_default() +=
                frames.bytes.saturating_mul(frames.spare + frames.used);
        }
        pinned += load.pinned.bytes;
        any_full |= is_full(load);
    }
    let stays = if any_full { pinned } else { held };
    let (cordoned, takes): (Vec<_>, Vec<_>) =
        capacities.into_iter().partition(|(member, _)| is_cordoned(member));
    let mut capacities: Vec<u64> = takes.into_iter().map(|(_, capacity)| capacity).collect();
    capacities.sort_unstable();
    let mut sum: u64 = 0;
    let enough = capacities.iter().position(|capacity| {
        sum = sum.saturating_add(*capacity);
        sum >= stays
    });
    let members = cordoned.len() + enough.map_or(capacities.len(), |at| at + 1);
    Some(u32::try_from(members).unwrap_or(u32::MAX))
}

/// Returns how many blocks can come to frames of one size before any leaves that is held: copies whose slots have gone elsewhere leave first.
fn free(load: &DeviceLoad, frames: &FrameLoad) -> u64 {
    let held = part(frames.used, load.held_blocks.min(load.blocks), load.blocks);
    let elsewhere = if load.blocks > 0 { frames.used.saturating_sub(held) } else { 0 };
    frames.spare + elsewhere
}

/// Says whether what is least wanted leaves a device all the time.
fn is_full(load: &DeviceLoad) -> bool {
    let spare: u64 = load.frames.iter().map(|one| free(load, one)).sum();
    let all: u64 = load.frames.iter().map(|one| one.spare + one.used).sum();
    spare * FULL_PART < all
}

/// Puts frames into as small ones as hold them, the largest first; returns the bytes of those that find none.
fn fit(need: &Frames, spare: &mut Frames) -> u64 {
    let mut short = 0;
    for (bytes, count) in need.iter().rev() {
        let mut left = *count;
        for (_, free) in spare.range_mut(*bytes..) {
            let taken = left.min(*free);
            *free -= taken;
            left -= taken;
        }
        short += bytes.saturating_mul(left);
    }
    short
}

fn bytes_of(frames: &Frames) -> u64 {
    frames.iter().map(|(bytes, count)| bytes.saturating_mul(*count)).fold(0, u64::saturating_add)
}

/// Returns so many of `of` parts of a whole, rounded up; nothing of nothing.
fn part(whole: u64, parts: u64, of: u64) -> u64 {
    if of == 0 {
        return 0;
    }
    (u128::from(whole) * u128::from(parts)).div_ceil(u128::from(of)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::Cluster;
    use kvhive_protocol::RequestId;
    use kvhive_protocol::control::CommandReply;
    use kvhive_protocol::load::PinnedLoad;

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
        scene
            .cluster
            .apply(kvhive_protocol::control::Command::SetDrains { member: MemberId(3), drains: true });
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
        let mut scene = Scene::new(1, &[(0, 150), (100, 60), (100, 60)]);
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
        scene
            .cluster
            .apply(kvhive_protocol::control::Command::SetCordon { member: MemberId(1), cordoned: true });
        assert_eq!(
            fewest(&scene.cluster.map(), &scene.loads()),
            Some(3),
            "two hold it all, beside the one that may go"
        );
    }
}
