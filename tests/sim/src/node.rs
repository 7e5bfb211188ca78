//! A simulated node: membership and one shard, as its actors run them. A block's bytes are a number that follows from its
//! key and the era in which it was stored.

use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, Effect, Fills, Member, MemberEffect, MemberEvent, MemberTuning, Pass, Reserve, Round, Rules,
    Shard, ShardConfig, Tenancy, TierCapacity,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::load::{MAX_HOT_SLOTS, Work};
use kvhive_protocol::{
    BlockHeader, BlockKey, ClusterMap, DeviceId, Epoch, Era, Generation, KeyList, LayoutFingerprint,
    MemberId, Moment, Slot, TenantId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The tenant that every client is.
pub(crate) const TENANT: TenantId = TenantId(1);
/// Frames of a shard, both tiers.
const FRAMES: u32 = 24;

/// A node that runs.
pub(crate) struct Node {
    member: Member,
    pub(crate) shard: Shard,
    bytes: HashMap<BlockId, u64>,
    named: HashMap<BlockId, (BlockKey, Era)>,
    /// The map served by.
    serving: Option<(MemberId, Arc<ClusterMap>)>,
    tenancy: Tenancy,
    fills: Fills,
    /// The pass that is under way, and since when.
    giving: Option<(Round, Moment)>,
    /// Blocks of slots that were being given away when they came, until who is given the slot has them: not acknowledged.
    unsure: HashSet<(BlockKey, Era)>,
    /// Every block that another node has given to this one, taken or not.
    offered: HashSet<(BlockKey, Era)>,
}

/// Blocks that one pass gives away.
pub(crate) struct Gift {
    pub(crate) round: u64,
    pub(crate) target: MemberId,
    pub(crate) blocks: Vec<(BlockKey, Era)>,
}

/// A pass that is not answered within this has failed.
const GIVE_LIMIT: Duration = Duration::from_millis(300);

impl Node {
    pub(crate) fn start() -> Node {
        Node {
            member: Member::new(MemberTuning::default()),
            shard: Shard::new(ShardConfig {
                classes: vec![1],
                device: TierCapacity { frames: vec![FRAMES / 3 * 2] },
                host: TierCapacity { frames: vec![FRAMES / 3] },
                disk: TierCapacity { frames: vec![FRAMES / 3] },
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
            bytes: HashMap::new(),
            named: HashMap::new(),
            serving: None,
            tenancy: Tenancy::NONE,
            fills: Fills::default(),
            giving: None,
            unsure: HashSet::new(),
            offered: HashSet::new(),
        }
    }

    /// Tells membership what happened; returns what it asks the coordinators.
    pub(crate) fn member_event(&mut self, now: Moment, event: MemberEvent) -> Vec<MemberEffect> {
        let mut asks = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            self.member.step(now, event, &mut effects);
            for effect in effects {
                match effect {
                    MemberEffect::Adopt { map } => {
                        let Some((member, _)) = self.member.identity() else { continue };
                        let tenants = map.tenants.iter().map(|(id, tenant)| (*id, tenant.era)).collect();
                        self.shard.set_tenants(tenants);
                        self.fills.adopt(&map, member);
                        events.push(MemberEvent::Adopted { cluster: map.cluster, epoch: map.epoch });
                        self.serving = Some((member, map));
                    }
                    MemberEffect::ServeUntil(tenancy) => self.tenancy = tenancy,
                    ask => asks.push(ask),
                }
            }
        }
        asks
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

    pub(crate) fn era(&self) -> Era {
        let map = self.serving.as_ref().map(|(_, map)| map);
        map.and_then(|map| map.tenants.get(&TENANT)).map_or(Era(0), |tenant| tenant.era)
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
            capacity_bytes: u64::from(FRAMES),
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

    /// Returns the acknowledged blocks of a slot that may be seen, with their eras.
    pub(crate) fn acknowledged(&self, slot: Slot) -> Vec<(BlockKey, Era)> {
        let mut blocks = self.blocks_of(&BTreeSet::from([slot]));
        blocks.retain(|block| !self.unsure.contains(block));
        blocks
    }

    /// Returns the blocks of some slots that may be seen, with their eras.
    fn blocks_of(&self, slots: &BTreeSet<Slot>) -> Vec<(BlockKey, Era)> {
        let (listed, _) = self.shard.list_slots(0, slots);
        listed.into_iter().map(|(_, id)| self.named[&id]).collect()
    }

    /// Says whether another node has given this one a block.
    pub(crate) fn was_offered(&self, block: &(BlockKey, Era)) -> bool {
        self.offered.contains(block)
    }

    /// Begins to give blocks away, if there are any to give.
    pub(crate) fn give(&mut self, now: Moment) -> Option<Gift> {
        let is_over = |(_, since): &mut (Round, Moment)| now.since(*since) > GIVE_LIMIT;
        if let Some((round, _)) = self.giving.take_if(is_over) {
            self.fills.ended(&round, Pass::Unanswered);
        }
        if self.giving.is_some() || !self.is_leased(now) {
            return None;
        }
        let round = self.fills.begin(&BTreeSet::new())?;
        let blocks = self.blocks_of(&round.slots);
        let gift = Gift { round: round.number, target: round.target.member, blocks };
        self.giving = Some((round, now));
        Some(gift)
    }

    /// The target has taken note of all that it was given.
    pub(crate) fn given(&mut self, number: u64) {
        if let Some((round, _)) = self.giving.take_if(|(round, _)| round.number == number) {
            self.fills.ended(&round, Pass::Whole);
        }
    }

    /// Takes a block from a client, if this is its primary: none if it is not taken, else which other members are to have it
    /// and which of them must have it before it is acknowledged.
    pub(crate) fn store_from_client(
        &mut self,
        now: Moment,
        key: BlockKey,
        era: Era,
        bytes: u64,
    ) -> Option<(Vec<MemberId>, Option<MemberId>)> {
        let (member, map) = self.serving.clone()?;
        let (us, slot) = (DeviceId::new(member, 0), key.slot());
        kvhive_cache::acks::leads(&map, us, [slot].into_iter()).ok()?;
        if !self.store(now, key, era, bytes) {
            return None;
        }
        let needed = map.given_to(slot).map(|device| device.member);
        // Without a lease it counts as one copy, whatever others say of it.
        match needed {
            None if self.is_leased(now) => self.unsure.remove(&(key, era)),
            _ => self.unsure.insert((key, era)),
        };
        let needed = needed.filter(|_| self.is_leased(now));
        let others = map.replicas(slot).0.iter().map(|device| device.member);
        Some((others.filter(|other| *other != member).collect(), needed))
    }

    /// Who is given the block's slot has it.
    pub(crate) fn is_sure(&mut self, block: &(BlockKey, Era)) {
        self.unsure.remove(block);
    }

    /// Is given blocks by another node: takes what it can. False when they are not its to have, or nobody is to rely on its word.
    pub(crate) fn be_given(&mut self, now: Moment, blocks: &[(BlockKey, Era, u64)]) -> bool {
        // A block of an era that it has not heard of is refused.
        let known = self.era();
        if !blocks.iter().all(|(key, era, _)| self.admits(now, key.slot()) && *era <= known) {
            return false;
        }
        for (key, era, bytes) in blocks {
            if self.is_leased(now) {
                self.offered.insert((*key, *era));
            }
            self.store(now, *key, *era, *bytes);
        }
        self.is_leased(now)
    }

    /// A new block goes to a replica over a network that may lose it.
    pub(crate) fn may_miss(&mut self, slot: Slot, member: MemberId) {
        self.fills.missed(slot, DeviceId::new(member, 0));
    }

    fn admits(&self, now: Moment, slot: Slot) -> bool {
        let Some((member, map)) = &self.serving else { return false };
        let runs = [Run { slot, keys: 1 }];
        self.serves(now)
            && kvhive_cache::member::admits(map, *member, DeviceId::new(*member, 0), &runs).is_ok()
    }

    /// Takes a block; says whether it is here then. Other replicas are the world's to ask.
    pub(crate) fn store(&mut self, now: Moment, key: BlockKey, era: Era, bytes: u64) -> bool {
        if !self.admits(now, key.slot()) {
            return false;
        }
        let header = BlockHeader {
            key,
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era,
            depth: 0,
            codec: Codec::Raw,
            payload_bytes: 1,
            digest: bytes,
        };
        let mut effects = Vec::new();
        let block = StoreBlock { header, parent: BlockKey::NONE };
        let reserve = self.shard.reserve(now, TENANT, &block, key.slot(), About::default(), &mut effects);
        self.perform(effects);
        match reserve {
            Reserve::Present(_) => true,
            Reserve::Refused(_) => false,
            Reserve::Take { ticket, .. } => {
                // A writer that goes away half-way, now and then.
                if bytes.is_multiple_of(11) {
                    self.shard.abandon(ticket);
                    return false;
                }
                let sealed = self.shard.seal(ticket);
                if let Some(id) = sealed {
                    self.bytes.insert(id, bytes);
                    self.named.insert(id, (key, era));
                }
                sealed.is_some()
            }
        }
    }

    /// Reads a block: none for a miss, or when this node may not answer.
    pub(crate) fn fetch(&mut self, now: Moment, key: BlockKey) -> Option<u64> {
        if !self.admits(now, key.slot()) {
            return None;
        }
        let keys: KeyList = [key].iter().collect();
        let run = Run { slot: key.slot(), keys: 1 };
        let covered = self.shard.match_runs(now, TENANT, &[run], &keys, Duration::from_millis(100))[0];
        let id = self.shard.read(now, TENANT, &keys)[0];
        assert_eq!(covered == 1, id.is_some(), "what is matched is read");
        let bytes = id.map(|id| self.bytes[&id]);
        if let Some(id) = id {
            self.shard.unread(id);
        }
        bytes
    }

    /// Does what can wait; copies between tiers end at once.
    pub(crate) fn tend(&mut self, now: Moment) {
        let mut effects = Vec::new();
        self.shard.tend(now, &mut effects);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Drop { id, .. } => {
                    assert!(self.bytes.remove(&id).is_some(), "a block is dropped once");
                    self.named.remove(&id);
                }
                Effect::Copy { ticket, .. } => {
                    self.shard.copied(ticket, true);
                }
                // There are no bytes to re-encode.
                Effect::Shrink { ticket, .. } => {
                    self.shard.shrunk(ticket, None);
                }
            }
        }
    }

    /// Checks what always holds of the shard.
    pub(crate) fn invariants(&self) -> Result<(), String> {
        self.shard.invariants()?;
        let resident = self.shard.stats().blocks() as usize;
        if resident != self.bytes.len() {
            return Err(format!("{resident} blocks are resident, {} have bytes", self.bytes.len()));
        }
        Ok(())
    }
}

/// Labels of a simulated node.
pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::new()
}
