//! What a device actor owns: the thin hand around one shard. It holds the resident frames, performs the shard's effects and
//! hands out guards; bytes never pass through it. One made after a panic begins with an empty shard over the same arenas.

use crate::actors::disk::{DiskLife, DiskTier};
use crate::actors::displace::Settle;
use crate::actors::uses::{CodecUses, TenantUses};
use crate::disk::{Found, Store};
use crate::guards::{Lent, Rest, Return, Returns, Verified, WriteGuard};
use crate::memory::Memory;
use crate::rules;
use crate::view::{Serving, View};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{
    BlockId, CopyVerdict, Displacing, Effect, Listed, Reserve, Shard, ShardConfig, ShardStats, Tenure, Tier,
};
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::data::{About, Hint, Refusal, Run, StoreBlock};
use kvhive_protocol::explain::Explained;
use kvhive_protocol::strategy::StrategyReport;
use kvhive_protocol::survey::Surveyed;
use kvhive_protocol::watch::{Gone, WatchAnswer, WatchAsk};
use kvhive_protocol::{BlockHeader, BlockKey, ClusterId, DeviceId, Epoch, KeyList, Slot, TenantId};
use kvhive_runtime::Reply;
use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// What a device actor can be told.
pub(crate) enum DeviceMessage {
    /// How far are these runs covered?
    Match { tenant: TenantId, runs: Vec<Run>, keys: KeyList, hold: Duration, reply: Reply<Vec<u32>> },
    /// What of these runs is here, and where?
    Survey { tenant: TenantId, runs: Vec<Run>, keys: KeyList, reply: Reply<Vec<Surveyed>> },
    /// Why is each of these blocks here, or not?
    Explain { tenant: TenantId, runs: Vec<Run>, keys: KeyList, reply: Reply<Vec<Explained>> },
    /// Let me read these blocks.
    Read { tenant: TenantId, keys: KeyList, reply: Reply<Vec<Option<Lent>>> },
    /// Give me frames for these blocks.
    Reserve {
        tenant: TenantId,
        blocks: Vec<(StoreBlock, Slot)>,
        about: About,
        pin: bool,
        /// The map by which they are given away by another, if they are.
        given_by: Option<Epoch>,
        reply: Reply<Vec<Reserved>>,
    },
    /// Give me frames for these blocks as long as some are free: nothing leaves for them.
    ReserveFree { tenant: TenantId, blocks: Vec<(StoreBlock, Slot)>, reply: Reply<Vec<Option<Reserved>>> },
    /// The engine expects this of the session of these blocks; the answer says how many are here.
    Release { tenant: TenantId, runs: Vec<Run>, keys: KeyList, hint: Hint, reply: Reply<u32> },
    /// How do the strategies do? Those that choose may have to do so now.
    Strategies { adjust: bool, reply: Reply<Vec<StrategyReport>> },
    /// What happens to the blocks of this tenant, or of all?
    Watch { tenant: Option<TenantId>, ask: WatchAsk, reply: Reply<WatchAnswer> },
    /// Make these blocks visible.
    Seal { blocks: Vec<Verified>, pin: bool, reply: Reply<Vec<Sealed>> },
    /// Serve by this map's tenants, their eras and rules, unless a newer map came before.
    Adopt { serving: Serving, reply: Reply<()> },
    /// Let me read up to `limit` of the blocks that are here, from record `from` on; the answer says where to go on.
    Export { from: u32, limit: usize, reply: Reply<(Vec<Exported>, Option<u32>)> },
    /// Which blocks of these slots are here, with their depths, among a bounded number of records from `from` on? The answer
    /// says where to go on; there is none while it is not known what lies on disk.
    Contents { from: u32, slots: Arc<BTreeSet<Slot>>, reply: Reply<Option<Contents>> },
    /// Let me read those of these blocks that are still here.
    Lend { ids: Vec<BlockId>, reply: Reply<Vec<Exported>> },
    /// Is what is on disk still to be taken in?
    AwaitsDisk { reply: Reply<Option<DiskLife>> },
    /// Take these in, parents first; the answer says how many there were places for, none in another life.
    Restore { life: DiskLife, found: Vec<Found>, reply: Reply<Option<u64>> },
    /// That was all that is on disk; false in another life.
    Restored { life: DiskLife, reply: Reply<bool> },
    /// Who holds blocks that emptying members may have cost?
    Settle(Settle),
    /// How is it going?
    Load { reply: Reply<(DeviceLoad, ShardStats)> },
    /// How are the blocks stored?
    Codecs { reply: Reply<CodecUses> },
    /// Do a piece of what can wait.
    Tend,
    /// Tells the policies one more piece of what was used.
    TellUses,
    /// Do this, and say when it was begun.
    Traced { message: Box<DeviceMessage>, begun: Arc<OnceLock<Instant>> },
    /// Break, to show that another takes over.
    #[cfg(test)]
    Panic,
}

/// Blocks with their depths, and where to go on.
pub(crate) type Contents = (Vec<(u32, BlockId)>, Option<u32>);

/// A block as a snapshot wants it.
pub(crate) struct Exported {
    pub(crate) block: Lent,
    pub(crate) parent: BlockKey,
    pub(crate) slot: Slot,
}

/// What a reservation came to.
pub(crate) enum Reserved {
    /// Fill it, then have it sealed.
    Write(WriteGuard),
    /// It is there already; pinned when that was asked.
    Present(Option<Lent>),
    /// It is not taken.
    Refused(Refusal),
}

/// What a seal came to.
pub(crate) enum Sealed {
    /// It is visible; pinned when that was asked.
    Visible(Option<Lent>),
    /// It is not visible: a clear has ended its era meanwhile, or the actor was made anew.
    Ended,
}

pub(super) struct Resident {
    pub(super) header: BlockHeader,
    pub(super) rest: Rest,
    /// Bytes before it was encoded, as they are counted.
    raw_bytes: u64,
}

/// What one device's actor owns.
pub(crate) struct DeviceCore {
    pub(super) shard: Shard,
    pub(super) memory: Memory,
    pub(super) resident: Vec<Option<Resident>>,
    uses: CodecUses,
    pub(super) tenant_uses: TenantUses,
    pub(super) returns: Returns,
    /// Kept to reuse their memory.
    back: Vec<Return>,
    pub(super) effects: Vec<Effect>,
    /// Of the map whose tenants the shard serves by.
    epoch: Epoch,
    /// Which of the node's devices this is.
    pub(super) index: u16,
    /// Whose map that is; with another, nothing that is here exists.
    pub(super) cluster: Option<ClusterId>,
    /// When the first of the pins ends that do by themselves, by the wall clock.
    pub(super) pins_end_ms: Option<u64>,
    /// Since when it has its slots.
    pub(super) tenure: Tenure,
    /// What it has let go for slots of members that are being emptied.
    pub(super) displacing: Displacing,
    pub(super) view: Arc<View>,
    pub(super) blocking: Handle,
    pub(super) disk: Option<DiskTier>,
    /// The shard knows that the device tier is lost.
    pub(super) lacks_its_gpu: bool,
}

impl DeviceCore {
    /// Makes the core of device `index` with an empty shard that goes on by the map served by, if there is one.
    pub(crate) fn new(
        index: u16,
        config: ShardConfig,
        memory: Memory,
        disk: Option<Arc<Store>>,
        view: Arc<View>,
        blocking: Handle,
    ) -> DeviceCore {
        let tiers = [&config.device, &config.host, &config.disk];
        let frames: u64 = tiers.iter().flat_map(|tier| &tier.frames).map(|frames| u64::from(*frames)).sum();
        let mut actor = DeviceCore {
            index,
            shard: Shard::new(config),
            memory,
            resident: (0..frames).map(|_| None).collect(),
            uses: CodecUses::default(),
            tenant_uses: TenantUses::default(),
            returns: Returns::default(),
            back: Vec::new(),
            effects: Vec::new(),
            view,
            epoch: Epoch(0),
            cluster: None,
            pins_end_ms: None,
            tenure: Tenure::default(),
            displacing: Displacing::default(),
            blocking,
            disk: disk.map(DiskTier::new),
            lacks_its_gpu: false,
        };
        // After a panic nobody knows whose blocks the frames had.
        actor.memory.call_stale();
        // Nothing goes to disk before what is there is known.
        actor.shard.set_open(Tier::Disk, false);
        // The view is never older than a map that an actor before this one has confirmed.
        if let Some(serving) = actor.view.serving() {
            actor.adopt(&serving);
        }
        actor
    }

    fn adopt(&mut self, serving: &Serving) {
        let map = &serving.map;
        if self.cluster.replace(map.cluster).is_some_and(|cluster| cluster != map.cluster) {
            self.begin_anew();
        }
        // An older map that was on its way when a newer one came would bring ended eras back.
        if self.epoch <= map.epoch {
            self.epoch = map.epoch;
            let eras = serving.eras();
            self.note_eras(&eras);
            self.shard.set_tenants(eras);
            let device = DeviceId::new(serving.member, self.index);
            self.tenure.adopt(self.view.now(), map, device);
            self.displacing.adopt(map, device);
            let commons = self.shard.config().rules;
            let own = rules::kept_apart(serving, self.index, commons.strategy);
            self.shard.set_rules(commons, &own);
            self.adopt_pins(serving);
            if let Some(disk) = &mut self.disk {
                disk.adopt(&serving.map);
            }
        }
    }

    /// Forgets everything, as after a panic: frames that somebody reads or writes come back by themselves.
    fn begin_anew(&mut self) {
        self.shard = Shard::new(self.shard.config().clone());
        self.memory.call_stale();
        self.resident.iter_mut().for_each(|one| *one = None);
        (self.uses, self.returns, self.epoch) = (CodecUses::default(), Returns::default(), Epoch(0));
        self.tenant_uses = TenantUses::default();
        self.tenure = Tenure::default();
        self.displacing = Displacing::default();
        self.effects.clear();
        self.lacks_its_gpu = false;
        // What is on disk is looked at anew, by the other cluster's secrets.
        self.shard.set_open(Tier::Disk, false);
        if let Some(disk) = &mut self.disk {
            disk.forget();
        }
    }

    /// Returns the bytes that actor and shard take for so many frames, at most.
    pub(crate) fn bytes(frames: u32, classes: usize, strategy: Strategy) -> u64 {
        let resident = size_of::<Option<Resident>>() as u64;
        let fixed = Shard::fixed_bytes() + Tenure::bytes() + Displacing::bytes();
        Shard::index_bytes(frames, classes, strategy) + fixed + u64::from(frames) * resident
    }

    fn take_returns(&mut self) {
        let mut back = std::mem::take(&mut self.back);
        self.returns.take(&mut back);
        for one in back.drain(..) {
            match one {
                Return::Reader(id) => self.shard.unread(id),
                Return::Write(ticket) => self.shard.abandon(ticket),
                Return::GivenUp(ticket) => self.shard.give_up(ticket),
                Return::Copy(ticket, rest) => match (self.shard.copied(ticket, rest.is_some()), rest) {
                    (CopyVerdict::Adopt(id), Some(rest)) => {
                        if let Some(resident) = &mut self.resident[id.index()] {
                            resident.rest = rest;
                        }
                    }
                    (_, Some(Rest::Frame(frame))) => frame.call_stale(),
                    (_, rest) => drop(rest),
                },
                Return::Brought(id, came) => self.shard.brought(id, came),
                Return::Lost(id) => self.shard.lost(id, &mut self.effects),
                Return::Shrunk(ticket, id, outcome) => self.take_shrunk(ticket, id, outcome),
            }
        }
        self.back = back;
        self.heed_disk();
        self.heed_gpu();
        self.perform_effects();
    }

    pub(super) fn perform_effects(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Drop { id, .. } => self.let_go(id),
            Effect::Copy { ticket, id, to, class } => self.copy(ticket, id, to, class),
            Effect::Shrink { ticket, id, how } => self.shrink(ticket, id, how),
        }
    }

    /// Keeps where a block's bytes are and its header, instead of those that it had.
    pub(super) fn keep(&mut self, id: BlockId, rest: Rest, header: BlockHeader) {
        self.let_go(id);
        let raw_bytes = self.uses.add(&header, &self.view.layouts);
        self.tenant_uses.add(&header, raw_bytes);
        self.resident[id.index()] = Some(Resident { header, rest, raw_bytes });
    }

    fn let_go(&mut self, id: BlockId) {
        if let Some(Resident { header, raw_bytes, .. }) = self.resident[id.index()].take() {
            self.uses.remove(&header, raw_bytes);
            self.tenant_uses.remove(&header, raw_bytes);
        }
    }

    /// Lends a block that the shard has counted a reader of. One that is fetched is a hit or a miss in the end.
    fn lend(&self, id: BlockId, is_fetched: bool) -> Option<Lent> {
        let resident = self.resident[id.index()].as_ref();
        debug_assert!(resident.is_some(), "a block that the shard gives out is somewhere");
        resident
            .map(|resident| Lent::new(&resident.rest, resident.header, id, self.returns.clone(), is_fetched))
    }

    fn pin(&mut self, id: BlockId) -> Option<Lent> {
        if self.shard.pin(id) { self.lend(id, false) } else { None }
    }

    fn export(&mut self, one: Listed) -> Option<Exported> {
        Some(Exported { block: self.pin(one.id)?, parent: one.parent, slot: one.slot })
    }

    fn read(&mut self, tenant: TenantId, keys: &KeyList) -> Vec<Option<Lent>> {
        let found = self.shard.read(self.view.now(), tenant, keys);
        found.into_iter().map(|id| self.lend(id?, true)).collect()
    }

    fn reserve(
        &mut self,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
        about: About,
        pin: bool,
    ) -> Reserved {
        let now = self.view.now();
        if let Err(refusal) = self.make_way(tenant, block, slot) {
            return Reserved::Refused(refusal);
        }
        let reserve = self.shard.reserve(now, tenant, block, slot, about, &mut self.effects);
        self.note_displaced(slot);
        self.perform_effects();
        match reserve {
            Reserve::Refused(refusal) => Reserved::Refused(refusal),
            Reserve::Present(id) => Reserved::Present(if pin { self.pin(id) } else { None }),
            Reserve::Take { ticket, tier, class } => {
                match self.memory.take_frame(tier, class, block.header.payload_bytes) {
                    Some(frame) => {
                        Reserved::Write(WriteGuard::new(frame, block.header, ticket, self.returns.clone()))
                    }
                    // Guards of an actor that panicked may still hold frames: they will be free, so whoever has it in store keeps it and
                    // comes again.
                    None => {
                        self.shard.abandon(ticket);
                        Reserved::Refused(Refusal::InFlight)
                    }
                }
            }
        }
    }

    fn reserve_free(&mut self, tenant: TenantId, block: &StoreBlock, slot: Slot) -> Option<Reserved> {
        if self.shard.has_spare(tenant, block, slot) {
            return Some(self.reserve(tenant, block, slot, About::default(), false));
        }
        self.shard.note_refused(tenant, &block.header.key, Gone::NoRoom);
        None
    }

    fn seal(&mut self, block: Verified, pin: bool) -> (Sealed, Option<BlockId>) {
        // A ticket of an actor before this one may read like one of this shard's own.
        if !block.is_of(&self.returns) {
            return (Sealed::Ended, None);
        }
        let Some(id) = self.shard.seal(block.ticket()) else { return (Sealed::Ended, None) };
        let Some((frame, header)) = block.take() else { return (Sealed::Ended, None) };
        self.keep(id, Rest::Frame(frame), header);
        let pinned = if pin { self.pin(id) } else { None };
        (Sealed::Visible(pinned), Some(id))
    }

    /// Says whether the policies are still to be told of uses.
    pub(crate) fn has_untold(&self) -> bool {
        self.shard.untold() > 0
    }

    /// Does what one message asks for.
    pub(crate) fn handle(&mut self, message: DeviceMessage) {
        self.take_returns();
        match message {
            DeviceMessage::Match { tenant, runs, keys, hold, reply } => {
                reply.send(self.shard.match_runs(self.view.now(), tenant, &runs, &keys, hold));
            }
            DeviceMessage::Survey { tenant, runs, keys, reply } => {
                reply.send(self.shard.survey_runs(tenant, &runs, &keys));
            }
            DeviceMessage::Explain { tenant, runs, keys, reply } => {
                reply.send(self.explain(tenant, &runs, &keys));
            }
            DeviceMessage::Release { tenant, runs, keys, hint, reply } => {
                reply.send(self.shard.release(self.view.now(), tenant, &runs, &keys, hint));
            }
            DeviceMessage::Strategies { adjust, reply } => reply.send(self.shard.strategies(adjust)),
            DeviceMessage::Watch { tenant, ask, reply } => {
                // No stream of a shard before this one, nor of one before a restart, had this number.
                let fresh = RandomState::new().hash_one(self.index);
                reply.send(self.shard.watch(self.view.now(), tenant, ask, fresh));
            }
            DeviceMessage::Read { tenant, keys, reply } => {
                if !reply.is_abandoned() {
                    reply.send(self.read(tenant, &keys));
                }
            }
            DeviceMessage::Reserve { tenant, blocks, about, pin, given_by, reply } => {
                if !reply.is_abandoned() {
                    // Whom they empty, and so what leaves for them, only that map says: they come once more.
                    let is_early = given_by.is_some_and(|epoch| epoch > self.epoch);
                    let reserve = |(block, slot): &(StoreBlock, Slot)| match is_early {
                        true => Reserved::Refused(Refusal::InFlight),
                        false => self.reserve(tenant, block, *slot, about, pin),
                    };
                    reply.send(blocks.iter().map(reserve).collect());
                }
            }
            DeviceMessage::ReserveFree { tenant, blocks, reply } => {
                if !reply.is_abandoned() {
                    let reserve =
                        |(block, slot): &(StoreBlock, Slot)| self.reserve_free(tenant, block, *slot);
                    reply.send(blocks.iter().map(reserve).collect());
                }
            }
            DeviceMessage::Seal { blocks, pin, reply } => {
                // A store that was answered as failed is never seen: not one whose asker has gone, nor one whose asker goes
                // just now.
                if !reply.is_abandoned() {
                    let (sealed, ids): (Vec<Sealed>, Vec<Option<BlockId>>) =
                        blocks.into_iter().map(|block| self.seal(block, pin)).unzip();
                    if let Err(unheard) = reply.try_send(sealed) {
                        drop(unheard);
                        ids.into_iter().flatten().for_each(|id| self.shard.take_back(id, &mut self.effects));
                        self.perform_effects();
                    }
                }
            }
            DeviceMessage::Adopt { serving, reply } => {
                self.adopt(&serving);
                reply.send(());
            }
            DeviceMessage::Export { from, limit, reply } => {
                let (listed, next) = self.shard.list(from, limit);
                reply.send((listed.into_iter().filter_map(|one| self.export(one)).collect(), next));
            }
            DeviceMessage::Contents { from, slots, reply } => {
                let is_known = self.disk.as_ref().is_none_or(|disk| disk.is_restored);
                reply.send(is_known.then(|| self.shard.list_slots(from, &slots)));
            }
            DeviceMessage::Lend { ids, reply } => {
                let listed = ids.into_iter().filter_map(|id| self.shard.listed(id)).collect::<Vec<_>>();
                reply.send(listed.into_iter().filter_map(|one| self.export(one)).collect());
            }
            DeviceMessage::AwaitsDisk { reply } => reply.send(self.awaits_disk()),
            DeviceMessage::Restore { life, found, reply } => reply.send(self.restore(life, found)),
            DeviceMessage::Restored { life, reply } => reply.send(self.restored(life)),
            DeviceMessage::Settle(message) => self.settle(message),
            DeviceMessage::Load { reply } => reply.send(self.load()),
            DeviceMessage::Codecs { reply } => reply.send(self.uses),
            DeviceMessage::Tend => {
                self.end_pins();
                self.tend_shard();
            }
            DeviceMessage::TellUses => self.shard.tell_some(),
            DeviceMessage::Traced { message, begun } => {
                begun.get_or_init(Instant::now);
                self.handle(*message);
            }
            #[cfg(test)]
            DeviceMessage::Panic => panic!("a test wants it so"),
        }
    }
}
