//! A simulated node: membership and one shard, as its actors run them, over memory that [`Frames`] keeps.

use crate::block::Block;
use crate::breach::{Breach, Holds, breach};
use crate::frames::Frames;
use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, CopyTicket, CopyVerdict, Effect, Fills, Member, MemberEffect, MemberEvent, MemberTuning, Pass,
    Reserve, Round, Rules, Shard, ShardConfig, Tenancy, Tier, TierCapacity,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::data::{About, Refusal, Run, StoreBlock, Stored};
use kvhive_protocol::load::{MAX_HOT_SLOTS, Work};
use kvhive_protocol::{
    BlockHeader, BlockKey, ClusterMap, DeviceId, Epoch, Era, Generation, KeyList, LayoutFingerprint,
    MemberId, Moment, Slot, TenantId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

mod stores;

use stores::Store;

/// Frames of a shard: device, host, disk.
const FRAMES: [u32; 3] = [16, 8, 8];

/// A node that runs.
pub(crate) struct Node {
    member: Member,
    pub(crate) shard: Shard,
    frames: Frames,
    named: HashMap<BlockId, Block>,
    /// The map served by.
    serving: Option<(MemberId, Arc<ClusterMap>)>,
    tenancy: Tenancy,
    fills: Fills,
    /// The pass that is under way, and since when.
    giving: Option<(Round, Moment)>,
    /// Blocks that came from clients and are not acknowledged.
    unsure: HashSet<Block>,
    /// Every block that another node has given to this one, taken or not.
    offered: HashSet<Block>,
    /// Stores that wait for what other replicas say.
    stores: BTreeMap<u64, Store>,
    /// Copies between tiers that the world is to end.
    copies: Vec<Copying>,
}

/// A copy between tiers under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copying {
    ticket: CopyTicket,
    id: BlockId,
    to: Tier,
}

/// Blocks that are being read for a client, in the order of their prefix.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) tenant: TenantId,
    pub(crate) ids: Vec<(u64, BlockId)>,
}

/// Blocks that one pass gives away, with their bytes.
pub(crate) struct Gift {
    pub(crate) round: u64,
    pub(crate) target: MemberId,
    pub(crate) blocks: Vec<(Block, u64)>,
}

/// A pass that is not answered within this has failed.
const GIVE_LIMIT: Duration = Duration::from_millis(300);

impl Node {
    pub(crate) fn start() -> Node {
        let tier = |tier: Tier| TierCapacity { frames: vec![FRAMES[tier as usize]] };
        Node {
            member: Member::new(MemberTuning::default()),
            shard: Shard::new(ShardConfig {
                classes: vec![1],
                device: tier(Tier::Device),
                host: tier(Tier::Host),
                disk: tier(Tier::Disk),
                rules: Rules::new(Strategy::Lru),
                unused_to_disk: true,
                prefetch: 0,
                gc_per_mille: None,
                pinned_per_mille: 500,
                max_hold: Duration::from_millis(200),
                max_writes: 8,
                low_water_per_mille: 100,
                hash_seed: 3,
            }),
            frames: Frames::new(FRAMES),
            named: HashMap::new(),
            serving: None,
            tenancy: Tenancy::NONE,
            fills: Fills::default(),
            giving: None,
            unsure: HashSet::new(),
            offered: HashSet::new(),
            stores: BTreeMap::new(),
            copies: Vec::new(),
        }
    }

    /// Tells membership what happened; returns what it asks of others, and for maps to be adopted.
    pub(crate) fn member_event(&mut self, now: Moment, event: MemberEvent) -> Vec<MemberEffect> {
        let mut effects = Vec::new();
        self.member.step(now, event, &mut effects);
        for effect in &effects {
            if let MemberEffect::ServeUntil(tenancy) = effect {
                self.tenancy = *tenancy;
            }
        }
        effects.retain(|effect| !matches!(effect, MemberEffect::ServeUntil(_)));
        effects
    }

    /// Serves by a map from now on.
    pub(crate) fn adopt(&mut self, now: Moment, map: Arc<ClusterMap>) -> Vec<MemberEffect> {
        let Some((member, _)) = self.member.identity() else { return Vec::new() };
        let tenants = map.tenants.iter().map(|(id, tenant)| (*id, tenant.era)).collect();
        self.shard.set_tenants(tenants);
        self.fills.adopt(&map, member);
        let adopted = MemberEvent::Adopted { cluster: map.cluster, epoch: map.epoch };
        self.serving = Some((member, map));
        self.member_event(now, adopted)
    }

    /// Says whether it answers reads.
    pub(crate) fn serves(&self, now: Moment) -> bool {
        now < self.tenancy.serving
    }

    /// Says whether it holds its lease, so that what it says of its blocks counts.
    pub(crate) fn is_leased(&self, now: Moment) -> bool {
        now < self.tenancy.lease
    }

    pub(crate) fn identity(&self) -> Option<(MemberId, Generation)> {
        self.member.identity()
    }

    /// Returns a tenant's era as it knows it.
    pub(crate) fn era(&self, tenant: TenantId) -> Era {
        let map = self.serving.as_ref().map(|(_, map)| map);
        map.and_then(|map| map.tenants.get(&tenant)).map_or(Era(0), |tenant| tenant.era)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.serving.as_ref().map_or(Epoch(0), |(_, map)| map.epoch)
    }

    /// Reports. What is read most changes with the map; when all is quiet, nothing is.
    pub(crate) fn load(&self, is_quiet: bool) -> DeviceLoad {
        let turn = self.epoch().0 / 16;
        let rate = |slot: Slot| if (u64::from(slot.0) + turn).is_multiple_of(5) { 64 << 20 } else { 1 << 20 };
        let occupied = self.shard.occupied();
        let is_read = |slot: &Slot| !is_quiet && occupied[usize::from(slot.0 / 8)] >> (slot.0 % 8) & 1 == 1;
        let hot: Vec<(Slot, u64)> =
            Slot::all().filter(is_read).map(|slot| (slot, rate(slot))).take(MAX_HOT_SLOTS).collect();
        let work = Work { read_rate: hot.iter().map(|(_, rate)| rate).sum(), hot, ..Work::default() };
        let stats = self.shard.stats();
        DeviceLoad {
            blocks: stats.blocks(),
            used_bytes: stats.device.used_bytes + stats.host.used_bytes,
            capacity_bytes: FRAMES.iter().take(2).map(|frames| u64::from(*frames)).sum(),
            evicted_blocks: stats.evicted,
            occupied,
            work,
            filled: self.device().map(|device| self.fills.filled(device)).unwrap_or_default(),
            unreached: self.device().map(|device| self.fills.unreached(device, 9)).unwrap_or_default(),
            ..DeviceLoad::default()
        }
    }

    fn device(&self) -> Option<DeviceId> {
        self.serving.as_ref().map(|(member, _)| DeviceId::new(*member, 0))
    }

    /// Returns the acknowledged blocks of a slot that may be seen.
    pub(crate) fn acknowledged(&self, slot: Slot) -> Vec<Block> {
        let (listed, _) = self.shard.list_slots(0, &BTreeSet::from([slot]));
        let blocks = listed.into_iter().filter_map(|(_, id)| self.named.get(&id).copied());
        blocks.filter(|block| !self.unsure.contains(block)).collect()
    }

    /// Says whether another node has given this one a block.
    pub(crate) fn was_offered(&self, block: &Block) -> bool {
        self.offered.contains(block)
    }

    /// Begins to give blocks away, if there are any to give. What cannot be read is lost, and is given to nobody.
    pub(crate) fn give(&mut self, now: Moment) -> Result<Option<Gift>, Breach> {
        let is_over = |(_, since): &mut (Round, Moment)| now.since(*since) > GIVE_LIMIT;
        if let Some((round, _)) = self.giving.take_if(is_over) {
            self.fills.ended(&round, Pass::Unanswered);
        }
        if self.giving.is_some() || !self.is_leased(now) {
            return Ok(None);
        }
        let Some(round) = self.fills.begin(&BTreeSet::new()) else { return Ok(None) };
        let (listed, _) = self.shard.list_slots(0, &round.slots);
        let mut blocks = Vec::new();
        for (_, id) in listed {
            match self.word(id)? {
                Some(word) => blocks.extend(self.named.get(&id).map(|block| (*block, word))),
                None => self.lost(id)?,
            }
        }
        let gift = Gift { round: round.number, target: round.target.member, blocks };
        self.giving = Some((round, now));
        Ok(Some(gift))
    }

    /// The target has taken note of all that it was given.
    pub(crate) fn given(&mut self, number: u64) {
        if let Some((round, _)) = self.giving.take_if(|(round, _)| round.number == number) {
            self.fills.ended(&round, Pass::Whole);
        }
    }

    /// Returns the device that it is.
    pub(crate) fn us(&self) -> Option<DeviceId> {
        self.device()
    }

    fn admits(&self, now: Moment, slot: Slot) -> bool {
        let Some((member, map)) = &self.serving else { return false };
        let runs = [Run { slot, keys: 1 }];
        self.serves(now)
            && kvhive_cache::member::admits(map, *member, DeviceId::new(*member, 0), &runs).is_ok()
    }

    /// Takes a block.
    fn store(&mut self, now: Moment, block: Block, word: u64) -> Result<Stored, Breach> {
        if !self.admits(now, block.slot()) {
            return Ok(Stored::Refused(Refusal::WrongEra));
        }
        let header = BlockHeader {
            key: block.key(),
            fingerprint: LayoutFingerprint::default(),
            tenant: block.tenant,
            era: block.era,
            depth: block.depth(),
            codec: Codec::Raw,
            payload_bytes: 1,
            digest: word,
        };
        let mut effects = Vec::new();
        let before = self.resident(&block);
        let store = StoreBlock { header, parent: block.parent() };
        let reserve =
            self.shard.reserve(now, block.tenant, &store, block.slot(), About::default(), &mut effects);
        self.perform(effects)?;
        match reserve {
            Reserve::Present(id) if self.named.get(&id) == Some(&block) => {
                Ok(Stored::Kept { copies: 1, already: true })
            }
            Reserve::Present(id) => breach("B2", format!("{block:?} passes for {:?}", self.named.get(&id))),
            Reserve::Refused(refusal) => Ok(Stored::Refused(refusal)),
            Reserve::Take { .. } if before => {
                breach("B3", format!("{block:?} is here and is written once more"))
            }
            Reserve::Take { ticket, tier, .. } => {
                self.frames.take(tier)?;
                // A writer that goes away half-way, now and then.
                if word.is_multiple_of(11) {
                    self.frames.give_back(tier);
                    self.shard.abandon(ticket);
                    return Ok(Stored::Refused(Refusal::NoRoom));
                }
                let Some(id) = self.shard.seal(ticket) else {
                    self.frames.give_back(tier);
                    return Ok(Stored::Refused(Refusal::WrongEra));
                };
                self.frames.fill(id, tier, word);
                self.named.insert(id, block);
                Ok(Stored::Kept { copies: 1, already: false })
            }
        }
    }

    /// Says whether a block is here and may be seen, by what was written and dropped: the shard itself may be wrong about it.
    fn resident(&self, block: &Block) -> bool {
        self.era(block.tenant) == block.era && self.named.values().any(|named| named == block)
    }

    /// Begins to read the first blocks of a prefix: none when this node may not answer.
    pub(crate) fn fetch(
        &mut self,
        now: Moment,
        tenant: TenantId,
        numbers: &[u64],
    ) -> Result<Option<Reading>, Breach> {
        let slot = crate::block::slot_of(numbers[0]);
        if !self.admits(now, slot) {
            return Ok(None);
        }
        let keys: Vec<BlockKey> = numbers.iter().map(|number| crate::block::key(*number)).collect();
        let (all, run) = (keys.iter().collect::<KeyList>(), Run { slot, keys: keys.len() as u32 });
        let hold = Duration::from_millis(100);
        let covered = self.shard.match_runs(now, tenant, &[run], &all, hold)[0] as usize;
        let wanted: KeyList = keys[..covered].iter().collect();
        let found = self.shard.read(now, tenant, &wanted);
        if let Some(gap) = found.iter().position(Option::is_none) {
            return breach("B9", format!("{covered} blocks were promised, and block {gap} is not here"));
        }
        let ids: Vec<(u64, BlockId)> = numbers.iter().copied().zip(found.into_iter().flatten()).collect();
        let era = self.era(tenant);
        for (_, id) in &ids {
            self.frames.hold(*id)?;
            if let Some(block) = self.named.get(id).filter(|block| block.era != era && block.tenant == tenant)
            {
                return breach("B2", format!("{block:?} is found in era {era}"));
            }
        }
        Ok(Some(Reading { tenant, ids }))
    }

    /// Ends a read: returns what may be answered. What is not what its header says is lost, and is a miss.
    pub(crate) fn read(&mut self, now: Moment, reading: &Reading) -> Result<Vec<(u64, u64)>, Breach> {
        let mut words = Vec::new();
        for (number, id) in &reading.ids {
            let word = self.frames.read(*id)?;
            self.frames.let_go(*id)?;
            self.shard.unread(*id);
            match word {
                Some(word) => words.push((*number, word)),
                None => self.lost(*id)?,
            }
        }
        Ok(if self.serves(now) { words } else { Vec::new() })
    }

    fn word(&self, id: BlockId) -> Result<Option<u64>, Breach> {
        if !self.frames.has(id) {
            return breach("B5", format!("{id:?} was never written, and it is listed"));
        }
        self.frames.read(id)
    }

    fn lost(&mut self, id: BlockId) -> Holds {
        let mut effects = Vec::new();
        self.shard.lost(id, &mut effects);
        self.perform(effects)
    }

    /// Does what can wait.
    pub(crate) fn tend(&mut self, now: Moment) -> Holds {
        let mut effects = Vec::new();
        self.shard.tend(now, &mut effects);
        self.perform(effects)
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Holds {
        for effect in effects {
            match effect {
                Effect::Drop { id, .. } => {
                    self.named.remove(&id);
                    self.frames.let_go(id)?;
                }
                Effect::Copy { ticket, id, to, .. } => {
                    self.frames.take(to)?;
                    self.frames.hold(id)?;
                    self.copies.push(Copying { ticket, id, to });
                }
                // There are no bytes to re-encode.
                Effect::Shrink { ticket, .. } => {
                    self.shard.shrunk(ticket, None);
                }
            }
        }
        Ok(())
    }

    /// Returns the copies between tiers that have begun since this was asked last.
    pub(crate) fn copies(&mut self) -> Vec<Copying> {
        std::mem::take(&mut self.copies)
    }

    /// A copy between tiers has ended, well or not.
    pub(crate) fn copied(&mut self, copy: Copying, done: bool) -> Holds {
        match self.shard.copied(copy.ticket, done) {
            CopyVerdict::Adopt(id) => self.frames.adopt(id, copy.to, done)?,
            CopyVerdict::Discard => self.frames.give_back(copy.to),
        }
        self.frames.let_go(copy.id)
    }

    /// Turns a bit over of some block's bytes; says whether there was one.
    pub(crate) fn rot(&mut self, which: usize, bit: u32) -> bool {
        self.frames.rot(which, bit)
    }

    /// The device dies, and all that is in it.
    pub(crate) fn lose_device(&mut self) -> Holds {
        let mut effects = Vec::new();
        self.frames.lose(Tier::Device);
        self.shard.lose_tier(Tier::Device, &mut effects);
        self.perform(effects)
    }

    /// Checks what always holds of the shard.
    pub(crate) fn invariants(&self) -> Holds {
        let sort = |what: &str| match what {
            what if what.contains("before it") => "B9",
            what if what.starts_with("tenant") || what.contains("counted nowhere") => "M11",
            _ => "B17",
        };
        self.shard.invariants().map_err(|what| Breach { rule: sort(&what), what })?;
        let stats = self.shard.stats();
        let resident = stats.blocks() as usize;
        if resident != self.named.len() || resident > self.frames.len() {
            let (named, held) = (self.named.len(), self.frames.len());
            return breach(
                "B5",
                format!("{resident} blocks are resident, {named} were written, {held} held"),
            );
        }
        let in_use = self.frames.len() - resident;
        if in_use as u64 != stats.leaving {
            let leaving = stats.leaving;
            return breach(
                "B6",
                format!("{in_use} blocks that have gone are in use, {leaving} are known to be"),
            );
        }
        Ok(())
    }
}

/// Labels of a simulated node.
pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::new()
}
