//! Whether the others have room for what members hold that are to be emptied, told beforehand: what each device would get by where
//! slots then belong, and how much of it could come before anything else leaves. An estimate where several devices take over, as a
//! device does not say how its blocks are spread over its slots; exact where one does.

use crate::{cordon, placement};
use kvhive_protocol::control::{Command, DeviceLoad};
use kvhive_protocol::emptying::FrameLoad;
use kvhive_protocol::load::MAX_TENANT_LOADS;
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, ReplicaSet, Slot, WireError};
use std::collections::{BTreeMap, BTreeSet};

/// So many standard deviations more than its share have to find room with each of those who get a part: that is enough for 39 of 40.
const MARGIN: u64 = 2;
/// A device is full when less than this part of its frames is to spare: what is least wanted leaves it all the time.
const FULL_PART: u64 = 100;

/// What would have to go elsewhere, and what room there is for it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Blocks that the members hold of slots which others are to take.
    pub blocks: u64,
    /// Those of them that a replica which stays may have: it has let blocks go, and which, nobody knows.
    pub unsure_blocks: u64,
    /// Bytes of the frames of all.
    pub bytes: u64,
    /// Bytes that those who stay can take in before anything leaves for them.
    pub free_bytes: u64,
    /// Bytes that would have no room where they would go, should each of those who get a part get more than its share.
    pub short_bytes: u64,
    /// Bytes more than their shares for which there is to be room, over all.
    pub margin_bytes: u64,
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

/// Whose slots go where.
#[derive(Default)]
struct Leaving {
    /// How many slots each has that leaves.
    slots: BTreeMap<DeviceId, u64>,
    /// By who gets and who gives them; nobody does where nobody stays.
    gets: BTreeMap<(Option<DeviceId>, DeviceId), u64>,
    /// By who is taken to have them and who leaves.
    has: BTreeMap<(Has, DeviceId), u64>,
}

impl Leaving {
    fn of(
        map: &ClusterMap,
        wanted: &[ReplicaSet],
        goes: impl Fn(&DeviceId) -> bool,
        loads: &BTreeMap<DeviceId, &DeviceLoad>,
    ) -> Leaving {
        let mut leaving = Leaving::default();
        let lack = |device: &DeviceId| loads.get(device).map_or(u64::MAX, |load| may_lack(load));
        for (slot, wanted) in Slot::all().zip(wanted) {
            let set = map.replicas(slot);
            let is_new = |device: &DeviceId| !set.contains(*device) || map.is_filling(slot, *device);
            let mut new = wanted.0.iter().copied().filter(|device| is_new(device) && !goes(device));
            let whole = set.0.iter().copied().filter(|device| !map.is_filling(slot, *device));
            let stays = whole.clone().filter(|device| !goes(device)).min_by_key(lack);
            // The first that leaves and lacks nothing gives what it has; another is taken to have no more than that one and those who stay.
            let first = whole.clone().find(|device| goes(device));
            for from in set.0.iter().copied().filter(|device| goes(device)) {
                *leaving.slots.entry(from).or_default() += 1;
                let is_first = first == Some(from);
                if let Some(to) = new.next() {
                    *leaving.gets.entry((Some(to), from)).or_default() += 1;
                } else if let Some(device) = stays.or(first.filter(|_| !is_first)) {
                    // What one lacks that is being given the slot, whoever gives it has.
                    let count = u64::from(!map.is_filling(slot, from));
                    let is_offered = is_first && stays.is_some();
                    *leaving.has.entry((Has { device, is_offered }, from)).or_default() += count;
                } else {
                    *leaving.gets.entry((None, from)).or_default() += 1;
                }
            }
        }
        leaving
    }
}

/// Adds the frames of what a device holds of the slots that it has; what is left of slots that have gone elsewhere stays behind.
fn add(needs: &mut Frames, load: &DeviceLoad, share: impl Fn(u64) -> u64) {
    for frames in &load.frames {
        let held = part(frames.used, load.held_blocks.min(load.blocks), load.blocks);
        *needs.entry(frames.bytes).or_default() += share(held);
    }
}

/// How far what one device gets may be from its share. Whole segments go to one place, each by itself: of `held` blocks in segments of `segment`
/// a part `p` is got, with a variance of `held / segment * p * (1 - p)` segments.
#[derive(Default)]
struct Spread {
    /// Of frames of each size: the variance, and how many could come.
    sizes: BTreeMap<u64, (u128, u64)>,
}

impl Spread {
    fn add(&mut self, load: &DeviceLoad, (count, slots): (u64, u64), segment: u64) {
        for frames in &load.frames {
            let held = part(frames.used, load.held_blocks.min(load.blocks), load.blocks);
            let (variance, all) = self.sizes.entry(frames.bytes).or_default();
            // No more than the slots of a map, and the blocks of a device: far from what a u128 holds.
            let blocks = u128::from(held) * u128::from(segment);
            let parts = u128::from(count) * u128::from(slots.saturating_sub(count));
            *variance += (blocks * parts).div_ceil(u128::from(slots.max(1)).pow(2));
            *all += held;
        }
    }

    /// Returns how many frames of each size there is to be room for, where so many are the share.
    fn most(&self, need: &Frames) -> Frames {
        let most = |(bytes, count): (&u64, &u64)| {
            let (variance, all) = self.sizes.get(bytes).copied().unwrap_or_default();
            let margin = MARGIN.saturating_mul(variance.isqrt() as u64);
            (*bytes, (count + margin).min(all).max(*count))
        };
        need.iter().map(most).collect()
    }
}

/// Who is taken to have what one has that is to leave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Has {
    device: DeviceId,
    /// It is offered what it lacks of that.
    is_offered: bool,
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
    let Leaving { slots, gets, has } = Leaving::of(map, &wanted, goes, loads);
    let known = |device: DeviceId| {
        let load = loads.get(&device).copied().filter(|load| !load.frames.is_empty());
        let member = || after.owner(device).map_or_else(String::new, |owner| owner.name.clone());
        load.ok_or_else(|| Unheard { member: member(), device })
    };
    let mut needs: BTreeMap<Option<DeviceId>, Frames> = BTreeMap::new();
    let mut spreads: BTreeMap<DeviceId, Spread> = BTreeMap::new();
    let mut room = Room::default();
    for ((to, from), count) in gets {
        let load = known(from)?;
        room.blocks += part(load.held_blocks, count, slots[&from]);
        add(needs.entry(to).or_default(), load, |held| part(held, count, slots[&from]));
        if let Some(to) = to {
            let segment = u64::from(map.settings.segment_blocks.max(1));
            spreads.entry(to).or_default().add(load, (count, slots[&from]), segment);
        }
    }
    // Of what another has too that one may lack no more than it has ever let go and not taken in; which of it, nobody knows.
    let mut shared: BTreeMap<Has, u64> = BTreeMap::new();
    for ((has, from), count) in &has {
        *shared.entry(*has).or_default() += part(known(*from)?.held_blocks, *count, slots[from]);
    }
    for ((has, from), count) in has {
        let all = shared[&has];
        let lacks = may_lack(known(has.device)?).min(all);
        let (load, to) = (known(from)?, has.is_offered.then_some(has.device));
        let unsure = |held| part(part(held, count, slots[&from]), lacks, all);
        if lacks > 0 {
            room.unsure_blocks += unsure(load.held_blocks);
            add(needs.entry(to).or_default(), load, unsure);
        }
    }
    room.blocks += room.unsure_blocks;
    room.bytes = needs.get(&None).map_or(0, bytes_of);
    room.short_bytes = room.bytes;
    for candidate in candidates.iter().filter(|candidate| !goes(&candidate.device)) {
        let device = candidate.device;
        let need = needs.get(&Some(device));
        if !candidate.takes && need.is_none() {
            continue;
        }
        let load = known(device)?;
        let mut spare: Frames = load.frames.iter().map(|one| (one.bytes, free(load, one))).collect();
        let free_bytes = bytes_of(&spare);
        room.is_full |= is_full(load);
        room.free_bytes += free_bytes;
        let Some(need) = need else { continue };
        let gets_bytes = bytes_of(need);
        room.bytes += gets_bytes;
        let most = spreads.get(&device).map_or_else(|| need.clone(), |spread| spread.most(need));
        room.margin_bytes += bytes_of(&most) - gets_bytes;
        room.short_bytes += fit(&most, &mut spare);
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

/// Returns how many blocks of its slots a device lacks at most, as it has let them go or not taken them in since its start: whoever starts
/// anew is given all.
pub(crate) fn may_lack(load: &DeviceLoad) -> u64 {
    // Those that are not told of use less of it, and may have been refused as much.
    if load.tenants.len() >= MAX_TENANT_LOADS {
        return u64::MAX;
    }
    let refused = load.tenants.iter().map(|(_, tenant)| tenant.refused_blocks);
    refused.fold(load.evicted_blocks, u64::saturating_add)
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
#[path = "room_test.rs"]
mod tests;
