//! A simulated node: membership and one shard, as its actors run them. A block's bytes are a number that follows from its
//! key and the era in which it was stored.

use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, Effect, Member, MemberEffect, MemberEvent, MemberTuning, Reserve, Rules, Shard, ShardConfig,
    TierCapacity,
};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{
    BlockHeader, BlockKey, ClusterMap, DeviceId, Epoch, Era, Generation, KeyList, LayoutFingerprint,
    MemberId, Moment, Slot, TenantId,
};
use std::collections::{BTreeMap, HashMap};
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
    /// The map served by.
    serving: Option<(MemberId, Arc<ClusterMap>)>,
    lease: Moment,
}

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
                max_hold: Duration::from_millis(200),
                max_writes: 8,
                low_water_per_mille: 100,
                hash_seed: 3,
            }),
            bytes: HashMap::new(),
            serving: None,
            lease: Moment::ZERO,
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
                        events.push(MemberEvent::Adopted { cluster: map.cluster, epoch: map.epoch });
                        self.serving = Some((member, map));
                    }
                    MemberEffect::ServeUntil { lease } => self.lease = lease,
                    ask => asks.push(ask),
                }
            }
        }
        asks
    }

    pub(crate) fn serves(&self, now: Moment) -> bool {
        now < self.lease
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

    pub(crate) fn load(&self) -> DeviceLoad {
        let stats = self.shard.stats();
        DeviceLoad {
            blocks: stats.blocks(),
            used_bytes: stats.device.used_bytes + stats.host.used_bytes,
            capacity_bytes: u64::from(FRAMES),
            occupied: self.shard.occupied(),
            ..DeviceLoad::default()
        }
    }

    fn takes(&self, slot: Slot, copy: bool) -> bool {
        let Some((member, map)) = &self.serving else { return false };
        let runs = [Run { slot, keys: 1 }];
        kvhive_cache::member::takes(map, DeviceId::new(*member, 0), copy, &runs).is_ok()
    }

    /// Says whether any block of a slot is here that may be seen.
    pub(crate) fn has_any(&self, slot: Slot) -> bool {
        let (listed, _) = self.shard.list(0, FRAMES as usize * 2);
        listed.iter().any(|one| one.slot == slot)
    }

    fn admits(&self, now: Moment, slot: Slot) -> bool {
        let Some((member, map)) = &self.serving else { return false };
        let runs = [Run { slot, keys: 1 }];
        self.serves(now)
            && kvhive_cache::member::admits(map, *member, DeviceId::new(*member, 0), &runs).is_ok()
    }

    /// Takes a block; says whether it is here then. Other replicas are the world's to ask.
    pub(crate) fn store(&mut self, now: Moment, key: BlockKey, era: Era, bytes: u64, copy: bool) -> bool {
        if !self.admits(now, key.slot()) || !self.takes(key.slot(), copy) {
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
                Effect::Drop { id } => {
                    assert!(self.bytes.remove(&id).is_some(), "a block is dropped once");
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

    /// Replicas of a slot as this node knows them.
    pub(crate) fn replicas(&self, slot: Slot) -> Vec<MemberId> {
        let map = self.serving.as_ref().map(|(_, map)| map);
        map.map_or(Vec::new(), |map| map.replicas(slot).0.iter().map(|device| device.member).collect())
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
