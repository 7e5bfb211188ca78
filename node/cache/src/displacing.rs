//! What a device lets go of for slots that come to it from members that are being emptied, and what it gives away itself and nobody has
//! room for: counted as it happens, by the map that the device serves by. Whether such a block is lost, its other replicas say when they are
//! asked afterwards: two may let go of it in the same moment, and another may be given it later. New blocks of such a slot, which come
//! while it is on its way, count as what it brings.

use kvhive_protocol::emptying::{Displaced, Losses, LostBlock, MAX_EMPTIED_TOLD, MAX_LOST_NAMED};
use kvhive_protocol::{BlockHeader, BlockKey, ClusterMap, DeviceId, Epoch, MemberId, Slot, TenantId};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The most blocks that wait for others to be asked who holds them; of what comes beyond, the map says it.
const MAX_UNSETTLED: usize = 4096;

/// A block that a member which is being emptied may have cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsettled {
    /// Whose block.
    pub tenant: TenantId,
    /// Its key.
    pub key: BlockKey,
    /// Its slot.
    pub slot: Slot,
    /// Its bytes.
    pub bytes: u64,
}

impl Unsettled {
    /// Names a block of a slot by its header.
    pub fn of(header: &BlockHeader, slot: Slot) -> Unsettled {
        Unsettled { tenant: header.tenant, key: header.key, slot, bytes: header.payload_bytes }
    }
}

/// Who holds a block, of those who have its slot by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Somebody who stays.
    Stays,
    /// Somebody who stays and is being given the slot, and nobody else who stays: its place may be another's before it has all of it.
    IsGiven,
    /// A member that is being emptied, and nobody who stays: it may give it away yet.
    Leaves(MemberId),
    /// Nobody.
    Nobody,
}

impl Holder {
    /// Reads it off what those who have its slot say: whether it is there, or nothing. None where it cannot be said yet.
    pub fn of(map: &ClusterMap, slot: Slot, said: &[(DeviceId, Option<bool>)]) -> Option<Holder> {
        let holders =
            || said.iter().filter(|(_, is_there)| *is_there == Some(true)).map(|(device, _)| *device);
        let mut stay = holders().filter(|device| !map.is_emptied(device.member)).peekable();
        if stay.peek().is_some() {
            let is_whole = stay.any(|device| !map.is_filling(slot, device));
            return Some(if is_whole { Holder::Stays } else { Holder::IsGiven });
        }
        let is_unknown = said.iter().any(|(_, is_there)| is_there.is_none());
        holders()
            .next()
            .map(|device| Holder::Leaves(device.member))
            .or((!is_unknown).then_some(Holder::Nobody))
    }
}

/// For whom a block has left, and what of it is needed to ask and to count.
#[derive(Clone, Copy)]
struct Waiting {
    member: MemberId,
    slot: Slot,
    bytes: u64,
}

/// What one device has let go.
#[derive(Default)]
pub struct Displacing {
    /// Which device, and its map while somebody is being emptied.
    emptied: Option<(DeviceId, Arc<ClusterMap>)>,
    /// Since which map each member is being emptied of which something is counted.
    since: BTreeMap<MemberId, Epoch>,
    sums: BTreeMap<MemberId, Displaced>,
    unsettled: BTreeMap<(TenantId, BlockKey), Waiting>,
    /// After which of these it is asked next.
    asked: Option<(TenantId, BlockKey)>,
    lost: BTreeMap<MemberId, Vec<LostBlock>>,
}

impl Displacing {
    /// Returns the bytes that it takes at most.
    pub fn bytes() -> u64 {
        // A B-tree's nodes are half empty at worst.
        let waiting = 2 * MAX_UNSETTLED * size_of::<((TenantId, BlockKey), Waiting)>();
        (waiting + MAX_LOST_NAMED * size_of::<LostBlock>()) as u64
    }

    /// Takes over a map, in which the node's device is known by this one.
    pub fn adopt(&mut self, map: &Arc<ClusterMap>, device: DeviceId) {
        // Who is being emptied once more since is counted anew.
        self.since.retain(|member, since| map.emptied_since(*member) == Some(*since));
        let is_counted = |member: &MemberId| self.since.contains_key(member);
        self.sums.retain(|member, _| is_counted(member));
        self.lost.retain(|member, _| is_counted(member));
        self.unsettled.retain(|_, waiting| is_counted(&waiting.member));
        self.since
            .extend(map.members.keys().filter_map(|member| Some((*member, map.emptied_since(*member)?))));
        self.emptied = (!self.since.is_empty()).then(|| (device, map.clone()));
    }

    /// Returns which member is being emptied by what comes of this slot, if one is. Others' slots go elsewhere too so that all have as much: that
    /// is the first's doing.
    pub fn empties(&self, slot: Slot) -> Option<MemberId> {
        let (device, map) = self.emptied.as_ref()?;
        let first = || self.since.keys().next().copied();
        if map.is_filling(slot, *device) { map.emptied_of(slot).or_else(first) } else { None }
    }

    /// Notes that a block has left for one that empties `member`.
    pub fn displaced(&mut self, member: MemberId, block: &Unsettled) {
        let Some((device, map)) = &self.emptied else { return };
        // An older copy of a slot that has gone elsewhere lives there.
        if !map.replicas(block.slot).contains(*device) {
            return;
        }
        self.sums.entry(member).or_default().blocks += 1;
        self.unplaced(member, block);
    }

    /// Notes a block that this device does not hold any more, or not for long, as `member` is being emptied: it is lost unless somebody
    /// holds it who stays.
    pub fn unplaced(&mut self, member: MemberId, block: &Unsettled) {
        let Some((device, map)) = self.emptied.as_ref().filter(|_| self.since.contains_key(&member)) else {
            return;
        };
        let is_alone = map.replicas(block.slot).0.iter().all(|other| other == device);
        let is_known = self.unsettled.contains_key(&(block.tenant, block.key));
        if is_alone && !map.is_emptied(device.member) {
            return self.count(member, block);
        }
        if !is_known && self.unsettled.len() >= MAX_UNSETTLED {
            if !map.stays_elsewhere(block.slot, *device) {
                self.count(member, block);
            }
            return;
        }
        let waiting = Waiting { member, slot: block.slot, bytes: block.bytes };
        self.unsettled.insert((block.tenant, block.key), waiting);
    }

    fn count(&mut self, member: MemberId, block: &Unsettled) {
        let sum = self.sums.entry(member).or_default();
        sum.lost_blocks += 1;
        sum.lost_bytes += block.bytes;
        if self.lost.values().map(Vec::len).sum::<usize>() < MAX_LOST_NAMED {
            let named = LostBlock::of(block.tenant, &block.key, block.bytes);
            self.lost.entry(member).or_default().push(named);
        }
    }

    /// Returns up to so many blocks of which it is to be asked who holds them; all have their turn.
    pub fn ask(&mut self, limit: usize) -> Vec<Unsettled> {
        let from = self.asked.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.unsettled.range((from, Bound::Unbounded)).take(limit);
        let asked = rest.map(|((tenant, key), one)| Unsettled {
            tenant: *tenant,
            key: *key,
            slot: one.slot,
            bytes: one.bytes,
        });
        let asked: Vec<Unsettled> = asked.collect();
        self.asked = asked.last().filter(|_| asked.len() == limit).map(|last| (last.tenant, last.key));
        asked
    }

    /// Takes down who holds a block of which that was asked.
    pub fn settle(&mut self, block: &Unsettled, holder: Holder) {
        let Some(waiting) = self.unsettled.get_mut(&(block.tenant, block.key)) else { return };
        let member = waiting.member;
        match holder {
            // It is whoever holds it still that may cost it.
            Holder::Leaves(other) => {
                if self.since.contains_key(&other) {
                    waiting.member = other;
                }
                return;
            }
            Holder::IsGiven => return,
            Holder::Nobody => self.count(member, block),
            Holder::Stays => {}
        }
        self.unsettled.remove(&(block.tenant, block.key));
    }

    /// Returns what has left for each member that is being emptied, ascending.
    pub fn told(&self) -> Vec<(MemberId, Displaced)> {
        self.sums.iter().take(MAX_EMPTIED_TOLD).map(|(member, sum)| (*member, *sum)).collect()
    }

    /// Returns what is known of what each of these cost, ascending.
    pub fn losses(&self) -> Vec<(MemberId, Losses)> {
        let mut losses: BTreeMap<MemberId, Losses> = BTreeMap::new();
        for waiting in self.unsettled.values() {
            losses.entry(waiting.member).or_default().unsettled_blocks += 1;
        }
        for (member, named) in &self.lost {
            losses.entry(*member).or_default().named.clone_from(named);
        }
        losses.into_iter().take(MAX_EMPTIED_TOLD).collect()
    }
}

#[cfg(test)]
#[path = "displacing_test.rs"]
mod tests;
