//! Names whose meaning this node keeps: those of slots that it is the primary of. It is the only one to answer for them, so they
//! are gone where somebody else may have answered meanwhile, and a slot that has just come is asked nothing until whoever had it
//! has stopped. What they mean is blocks like any others, which may have left.

use kvhive_protocol::names::{
    Life, ListedName, MAX_BYTES_LISTED, MAX_NAMES_LISTED, Meaning, NameAnswer, NameOp, NameVerb, Target,
    When, position,
};
use kvhive_protocol::{BlockKey, ClusterId, ClusterMap, Epoch, Era, MemberId, Moment, SLOTS, TenantId};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::time::Duration;

/// Bytes that one name takes besides itself: two places in ordered maps, as full as they usually are.
const ENTRY_BYTES: u64 = 256;

/// The names of one node.
pub struct Names {
    limit: u64,
    used: u64,
    tenants: BTreeMap<TenantId, BTreeMap<BlockKey, Entry>>,
    /// All of them, those first that were asked for longest ago.
    order: BTreeMap<u64, (TenantId, BlockKey)>,
    uses: u64,
    evicted: u64,
    /// Of each slot, from when on it is answered for; none of one that is another's.
    slots: Vec<Option<Moment>>,
    adopted: Option<(ClusterId, MemberId, Epoch)>,
}

struct Entry {
    name: Box<[u8]>,
    target: Target,
    era: Era,
    ends: Option<Moment>,
    used: u64,
}

/// The slot has just come: whoever had it may be answering still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooEarly;

/// Names that are listed, and from where a list goes on.
type Listed = (Vec<ListedName>, Option<u64>);

impl Names {
    /// Keeps names in so many bytes.
    pub fn within(limit: u64) -> Names {
        Names {
            limit,
            used: 0,
            tenants: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            evicted: 0,
            slots: Vec::new(),
            adopted: None,
        }
    }

    /// Takes over a map in which this node is `member`. `lapsed`: it had no lease at some time since the map before.
    pub fn adopt(&mut self, now: Moment, map: &ClusterMap, member: MemberId, lapsed: bool) {
        let is_same = |(cluster, known, _): &(ClusterId, MemberId, Epoch)| {
            *cluster == map.cluster && *known == member && !lapsed
        };
        if !self.adopted.as_ref().is_some_and(is_same) {
            self.clear();
        }
        self.adopted = Some((map.cluster, member, map.epoch));
        let lease = Duration::from_millis(map.settings.lease_ms);
        // An eighth more: two machines' clocks need not run alike.
        let settled =
            Moment::from_nanos(now.as_nanos().saturating_add((lease + lease / 8).as_nanos() as u64));
        self.slots.resize(usize::from(SLOTS), None);
        let mut has_lost = false;
        for (slot, since) in (0..SLOTS).map(kvhive_protocol::Slot).zip(&mut self.slots) {
            if map.replicas(slot).primary().is_some_and(|primary| primary.member == member) {
                since.get_or_insert(settled);
            } else {
                has_lost |= since.take().is_some();
            }
        }
        let lost: Vec<(TenantId, BlockKey)> = if has_lost || !self.tenants.is_empty() {
            let slots = &self.slots;
            let is_over = |tenant: &TenantId, key: &BlockKey, entry: &Entry| {
                slots[usize::from(key.slot().0)].is_none() || era(map, *tenant) != Some(entry.era)
            };
            let all = self.tenants.iter().flat_map(|(id, names)| names.iter().map(move |one| (id, one)));
            let over = all.filter(|(id, (key, entry))| is_over(id, key, entry));
            over.map(|(id, (key, _))| (*id, *key)).collect()
        } else {
            Vec::new()
        };
        for (tenant, key) in lost {
            self.take(tenant, &key);
        }
    }

    /// Says whether this node answers for a name's slot yet.
    ///
    /// # Errors
    /// [`TooEarly`], also for a slot that is another's.
    pub fn answers_for(&self, now: Moment, key: &BlockKey) -> Result<(), TooEarly> {
        match self.slots.get(usize::from(key.slot().0)) {
            Some(Some(since)) if *since <= now => Ok(()),
            _ => Err(TooEarly),
        }
    }

    /// Does something about one name, of a slot that is answered for.
    pub fn act(&mut self, now: Moment, map: &ClusterMap, tenant: TenantId, op: &NameOp) -> NameAnswer {
        let Some(era) = era(map, tenant) else { return NameAnswer { done: false, before: None } };
        let before = self.look(now, tenant, era, &op.key);
        match &op.verb {
            NameVerb::Look => NameAnswer { done: true, before },
            NameVerb::Set { name, target, when, life } => {
                // Of a request that is made again, since its answer was lost, the first one counts.
                let is_again = before.is_some_and(|before| before.target == *target);
                let may = match when {
                    When::Always => true,
                    When::Absent => before.is_none(),
                    When::Present => before.is_some(),
                };
                if may && !is_again {
                    let left = match life {
                        Life::Open => None,
                        Life::Ms(ms) => Some(*ms),
                        Life::Kept => before.and_then(|before| before.left_ms),
                    };
                    let ends = left.map(|ms| after(now, ms));
                    self.put(
                        tenant,
                        op.key,
                        Entry { name: name.as_slice().into(), target: *target, era, ends, used: 0 },
                    );
                }
                NameAnswer { done: may || is_again, before }
            }
            NameVerb::Drop { only } => {
                let is_it = |before: &Meaning| only.is_none_or(|nonce| before.target.nonce == nonce);
                let done = before.as_ref().is_some_and(is_it);
                if done {
                    self.take(tenant, &op.key);
                }
                NameAnswer { done, before }
            }
        }
    }

    /// Lists a tenant's names from a position on: about `limit` of them, whole positions always.
    pub fn list(&self, now: Moment, map: &ClusterMap, tenant: TenantId, from: u64, limit: usize) -> Listed {
        let limit = limit.clamp(1, MAX_NAMES_LISTED);
        let Some((era, names)) = era(map, tenant).zip(self.tenants.get(&tenant)) else {
            return Listed::default();
        };
        let mut listed: Vec<ListedName> = Vec::new();
        let mut bytes = 0;
        for (key, entry) in names.range(first_at(from)..) {
            let position = position(key);
            let is_full = listed.len() >= limit || bytes >= MAX_BYTES_LISTED;
            if is_full && listed.last().is_some_and(|last| last.position < position) {
                return (listed, Some(position));
            }
            if entry.is_good(now, era) {
                bytes += entry.name.len();
                listed.push(ListedName { position, name: entry.name.to_vec() });
            }
        }
        (listed, None)
    }

    /// Returns how many names a tenant has.
    pub fn count(&self, now: Moment, map: &ClusterMap, tenant: TenantId) -> u64 {
        let Some((era, names)) = era(map, tenant).zip(self.tenants.get(&tenant)) else { return 0 };
        names.values().filter(|entry| entry.is_good(now, era)).count() as u64
    }

    /// Returns how many names are kept, those among them that are over.
    pub fn kept(&self) -> usize {
        self.order.len()
    }

    /// Returns how many names had to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Returns what a name means and marks it as used; what is over goes.
    fn look(&mut self, now: Moment, tenant: TenantId, era: Era, key: &BlockKey) -> Option<Meaning> {
        let entry = self.tenants.get_mut(&tenant)?.get_mut(key)?;
        if !entry.is_good(now, era) {
            self.take(tenant, key);
            return None;
        }
        self.uses += 1;
        let place = self.order.remove(&entry.used).expect("every name has its place in the order");
        entry.used = self.uses;
        self.order.insert(entry.used, place);
        let left = |ends: Moment| u64::try_from(ends.since(now).as_millis()).unwrap_or(u64::MAX).max(1);
        Some(Meaning { target: entry.target, left_ms: entry.ends.map(left) })
    }

    fn put(&mut self, tenant: TenantId, key: BlockKey, mut entry: Entry) {
        self.take(tenant, &key);
        self.uses += 1;
        entry.used = self.uses;
        self.used += entry.bytes();
        self.order.insert(entry.used, (tenant, key));
        self.tenants.entry(tenant).or_default().insert(key, entry);
        while self.used > self.limit {
            let Some((_, (tenant, key))) = self.order.first_key_value() else { break };
            let (tenant, key) = (*tenant, *key);
            self.take(tenant, &key);
            self.evicted += 1;
        }
    }

    fn take(&mut self, tenant: TenantId, key: &BlockKey) {
        let Place::Occupied(mut names) = self.tenants.entry(tenant) else { return };
        if let Some(entry) = names.get_mut().remove(key) {
            self.used -= entry.bytes();
            self.order.remove(&entry.used);
        }
        if names.get().is_empty() {
            names.remove();
        }
    }

    fn clear(&mut self) {
        self.tenants.clear();
        self.order.clear();
        self.used = 0;
        self.slots.clear();
    }
}

impl Entry {
    fn bytes(&self) -> u64 {
        ENTRY_BYTES + self.name.len() as u64
    }

    fn is_good(&self, now: Moment, era: Era) -> bool {
        self.era == era && self.ends.is_none_or(|ends| now < ends)
    }
}

fn era(map: &ClusterMap, tenant: TenantId) -> Option<Era> {
    map.tenants.get(&tenant).map(|tenant| tenant.era)
}

fn after(now: Moment, ms: u64) -> Moment {
    Moment::from_nanos(now.as_nanos().saturating_add(ms.saturating_mul(1_000_000)))
}

/// Returns the lowest key of a position.
fn first_at(position: u64) -> BlockKey {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(position << 1).to_be_bytes());
    BlockKey::from_bytes(key)
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
