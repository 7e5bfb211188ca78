//! Giving blocks away: the thin hand around [`Fills`]. Passes over a device's blocks and has those of some slots copied to a
//! replica that lacks them, behind everything else: a few at a time, at a rate that gives way.

use crate::actors::core::{DeviceMessage, Exported};
use crate::actors::device::Device;
use crate::actors::displace::Settle;
use crate::data::{Asker, Content, Counters, Item, Known, OnGpu, Origin, Replicator, Verdict, add, count};
use crate::guards::{Lent, Unread};
use crate::pace::Pacer;
use crate::view::{Serving, View};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kvhive_cache::{BlockId, Fate, Fills, Nearest, Pass, Round, Unsettled};
use kvhive_protocol::control::MAX_UNREACHED;
use kvhive_protocol::data::{About, StoreBlock};
use kvhive_protocol::emptying::Given;
use kvhive_protocol::load::{MAX_SLOTS_TOLD, SlotGiven};
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{
    BlockKey, ClusterMap, DeviceId, Epoch, LayoutFingerprint, MemberId, Slot, TenantId, WireError,
};
use kvhive_wire::Fault;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

/// How often it is looked whether the map asks for anything.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The wait after a pass that failed.
const RETRY: Duration = Duration::from_millis(500);
/// The wait before blocks are offered once more that were given no room and would be lost: there may have been none for a moment.
const OFFER_AGAIN: Duration = Duration::from_millis(10);
/// The wait before blocks are offered again that whoever gets them takes a little later, at first and at most: mostly a heartbeat has yet to bring it
/// the map that they are given by.
const TAKEN_LATER: Duration = Duration::from_millis(20);
const MAX_TAKEN_LATER: Duration = Duration::from_millis(160);
/// A pass ends if they are not taken within this.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);
/// Blocks held at a time.
const BATCH: usize = 8;
/// Bytes sent at a time, but for a block that is larger.
const BYTES_PER_STORE: u64 = 8 << 20;
/// Blocks listed at a time of a device that has so many frames and records: their order is found among these.
const LISTED: usize = 1 << 18;
/// Passes at a time, each to another device: one that is slow or does not answer holds up nobody else's. They share one rate.
const PASSES: usize = 4;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns how many blocks a pass lists at a time where the largest device has so many: no more than that.
pub(crate) fn listed(largest: usize) -> usize {
    largest.clamp(1, LISTED)
}

/// Returns what passes need that list so many blocks at a time: the lists, and what is read from disk until it is sent.
pub(crate) fn bytes(listed: usize, has_disk: bool) -> u64 {
    let read = if has_disk { BYTES_PER_STORE } else { 0 };
    PASSES as u64 * (Nearest::bytes(listed) + read)
}

/// What a node gives away, as everybody who has to do with it sees it. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Giving(Arc<Mutex<Fills>>);

impl Giving {
    fn fills(&self) -> MutexGuard<'_, Fills> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// A new block did not get to `target`.
    pub(crate) fn missed(&self, slot: Slot, target: DeviceId) {
        self.fills().missed(slot, target);
    }

    /// Returns what `source` has given completely, by the map that `view` serves by.
    pub(crate) fn filled(&self, view: &View, source: DeviceId) -> Vec<(Slot, DeviceId)> {
        let mut fills = self.fills();
        if let Some(serving) = view.serving() {
            fills.adopt(&serving.map, serving.member);
        }
        fills.filled(source)
    }

    /// Returns what `source` has given of the slots of each member that is being emptied.
    pub(crate) fn given(&self, source: DeviceId) -> Vec<(MemberId, Given)> {
        self.fills().given(source)
    }

    /// Returns what `source` has given so far of slots that are on their way from it.
    pub(crate) fn moving(&self, source: DeviceId) -> Vec<SlotGiven> {
        self.fills().moving(source, MAX_SLOTS_TOLD)
    }

    /// Returns whom `source` is to give blocks to and who does not answer.
    pub(crate) fn unreached(&self, source: DeviceId) -> Vec<DeviceId> {
        self.fills().unreached(source, MAX_UNREACHED)
    }

    /// Returns how many slots are yet to be given.
    pub(crate) fn left(&self) -> usize {
        self.fills().left()
    }
}

/// Gives blocks away.
pub(crate) struct Filler {
    pub(crate) devices: Vec<Device>,
    pub(crate) replicator: Replicator,
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    /// How fast they go.
    pub(crate) pacer: Arc<Pacer>,
    /// Blocks listed at a time.
    pub(crate) listed: usize,
}

impl Filler {
    /// Runs until `stop` turns true.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = kvhive_runtime::stopped(&mut stop) => {}
            () = self.work() => {}
        }
    }

    async fn work(&self) {
        let mut passes = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        loop {
            tokio::select! {
                Some(target) = passes.next() => {
                    busy.remove(&target);
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let Ok(serving) = self.view.leased() else { continue };
            while passes.len() < PASSES
                && let Some(round) = self.begin(&serving, &busy)
            {
                busy.insert(round.target);
                passes.push(self.make(round));
            }
        }
    }

    fn begin(&self, serving: &Serving, busy: &BTreeSet<DeviceId>) -> Option<Round> {
        let mut fills = self.replicator.giving.fills();
        fills.adopt(&serving.map, serving.member);
        fills.begin(busy)
    }

    /// Makes a pass, and rests where another would come to no more yet; returns whom it was to.
    async fn make(&self, round: Round) -> DeviceId {
        let begun = Instant::now();
        let mut gift = Gift::of(&round);
        let how = self.give(&mut gift).await;
        let Gift { blocks, late, waiting, .. } = gift;
        self.replicator.giving.fills().ended(&round, how);
        if how == Pass::Whole {
            info!(
                source = %round.source, target = %round.target, slots = round.slots.len(), blocks, late,
                waiting, took = ?begun.elapsed(), "gave blocks away"
            );
        } else {
            debug!(target = %round.target, ?how, late, "blocks could not be given: trying anew");
        }
        if how != Pass::Whole || waiting > 0 {
            tokio::time::sleep(RETRY).await;
        }
        round.target
    }

    /// Makes one pass, parents first, as a shard wants them: as many blocks at a time as are listed at a time.
    async fn give(&self, gift: &mut Gift<'_>) -> Pass {
        let Some(device) = self.devices.get(usize::from(gift.round.source.index)) else {
            return Pass::Partial;
        };
        // A device that is made anew has lost what it would have given, and nobody is told of that but by this.
        let restarts = self.restarts();
        let mut nearest = Nearest::new(self.listed);
        loop {
            let mut next = Some(0);
            while let Some(from) = next {
                let slots = gift.round.slots.clone();
                let asked = device.ask(LIMIT, |reply| DeviceMessage::Contents { from, slots, reply });
                // None while it is not known yet what lies on disk.
                let Ok(Some((listed, after))) = asked.await else { return Pass::Partial };
                nearest.extend(listed);
                next = after;
            }
            let (listed, is_rest) = nearest.take();
            if let Err(how) = self.give_these(gift, device, &listed).await {
                return how;
            }
            if self.restarts() != restarts {
                return Pass::Partial;
            }
            if is_rest {
                return if gift.late > 0 { Pass::Late } else { Pass::Whole };
            }
        }
    }

    /// Makes one pass that nobody has asked for, by the map that the node serves by.
    #[cfg(test)]
    pub(crate) async fn pass(&self) -> Option<Pass> {
        let serving = self.view.serving()?;
        let round = self.begin(&serving, &BTreeSet::new())?;
        Some(self.give(&mut Gift::of(&round)).await)
    }

    fn restarts(&self) -> u64 {
        self.counters.actor_restarts.load(Ordering::SeqCst)
    }

    async fn give_these(
        &self,
        gift: &mut Gift<'_>,
        device: &Device,
        listed: &[(u32, BlockId)],
    ) -> Result<(), Pass> {
        let round = gift.round;
        for batch in listed.chunks(BATCH) {
            let ids = batch.iter().map(|(_, id)| *id).collect();
            let Ok(lent) = device.ask(LIMIT, |reply| DeviceMessage::Lend { ids, reply }).await else {
                return Err(Pass::Partial);
            };
            let mut alike: BTreeMap<(TenantId, LayoutFingerprint), Vec<Item>> = BTreeMap::new();
            let mut bytes = 0;
            for Exported { block, parent, slot } in lent {
                let content = match at_hand(block).await {
                    Ok(content) => content,
                    Err(unread) => {
                        gift.late += u64::from(unread == Unread::Late);
                        self.note_unread(round, slot, unread);
                        continue;
                    }
                };
                let header = *content.header();
                if bytes + header.payload_bytes > BYTES_PER_STORE {
                    for (kind, items) in std::mem::take(&mut alike) {
                        self.hand_over(gift, device, kind, items).await?;
                    }
                    bytes = 0;
                }
                bytes += header.payload_bytes;
                let items = alike.entry((header.tenant, header.fingerprint)).or_default();
                let block = StoreBlock { header, parent };
                items.push(Item { at: items.len(), block, slot, content, targets: vec![round.target] });
            }
            for (kind, items) in alike {
                self.hand_over(gift, device, kind, items).await?;
            }
        }
        Ok(())
    }

    /// Notes a block whose bytes are not at hand.
    fn note_unread(&self, round: &Round, slot: Slot, unread: Unread) {
        let Some(map) = self.view.serving().map(|serving| serving.map) else { return };
        let fate = Fate::unread(&map, round.source, slot, unread == Unread::Late);
        self.replicator.giving.fills().note(round, slot, 0, fate);
    }

    /// Offers blocks to the target and notes what became of each. Those that it gives no room and that nobody else holds are offered
    /// once more. What it takes a little later is left in `items`.
    async fn offer(&self, gift: &mut Gift<'_>, origin: &Origin, items: &mut Vec<Item>) -> Result<(), Fault> {
        let round = gift.round;
        let mut later = Vec::new();
        for is_first in [true, false] {
            let verdicts = match self.replicator.give(origin, round.target, items, &self.pacer).await {
                Ok(verdicts) => verdicts,
                Err(fault) => {
                    items.append(&mut later);
                    return Err(fault);
                }
            };
            let moved = verdicts.iter().filter(|verdict| **verdict == Verdict::Moved).count();
            add(&self.counters.moved_blocks, moved as u64);
            let mut declined = Vec::new();
            for (item, verdict) in items.drain(..).zip(verdicts) {
                gift.blocks += u64::from(!matches!(verdict, Verdict::Later | Verdict::Missing));
                match verdict {
                    Verdict::Moved => self.note(round, &item, Fate::Moved),
                    Verdict::There => self.note(round, &item, Fate::There),
                    Verdict::Later => later.push(item),
                    // Sent again at once, it would fare no better.
                    Verdict::Missing => gift.is_short = true,
                    Verdict::Declined => declined.push(item),
                }
            }
            // Where nobody is being emptied, whoever gives keeps what it has.
            declined.retain(|item| self.replicator.giving.fills().empties(item.slot).is_some());
            if declined.is_empty() {
                break;
            }
            let last = self.nobody_else_holds(origin, round, &declined).await;
            let (mut again, map) = (Vec::new(), &origin.serving.map);
            for (item, is_last) in declined.into_iter().zip(last) {
                let is_pinned = gift.is_pinned(map, origin.tenant, item.block.header.key);
                let Some(fate) = Fate::declined(is_first, is_last, is_pinned) else {
                    again.push(item);
                    continue;
                };
                gift.waiting += u64::from(fate == Fate::Waits);
                self.note(round, &item, fate);
                let empties = self.replicator.giving.fills().empties(item.slot);
                if let Some(member) = empties.filter(|_| fate == Fate::Declined && is_last) {
                    gift.unplaced.push((member, Unsettled::of(&item.block.header, item.slot)));
                }
            }
            if again.is_empty() {
                break;
            }
            gift.blocks -= again.len() as u64;
            tokio::time::sleep(OFFER_AGAIN).await;
            *items = again;
        }
        *items = later;
        Ok(())
    }

    fn note(&self, round: &Round, item: &Item, fate: Fate) {
        self.replicator.giving.fills().note(round, item.slot, item.block.header.payload_bytes, fate);
    }

    /// Says of each block whether nobody holds it who stays: neither the source nor another replica, which are asked.
    async fn nobody_else_holds(&self, origin: &Origin, round: &Round, items: &[Item]) -> Vec<bool> {
        let map = &origin.serving.map;
        if !map.is_emptied(round.source.member) {
            return vec![false; items.len()];
        }
        let known = |item: &Item| Known { key: item.block.header.key, slot: item.slot };
        let known: Vec<Known> = items.iter().map(known).collect();
        let (serving, tenant, trace) = (&origin.serving, origin.tenant, origin.trace);
        let asker = Asker { serving, device: round.source, tenant, trace };
        let holders = self.replicator.holders(&asker, &known, &self.counters).await;
        let stays = |device: &DeviceId| *device != round.target && !map.is_emptied(device.member);
        holders.iter().map(|one| !one.holding.iter().any(stays)).collect()
    }

    /// Returns the map that blocks of a tenant are given by, if any of the round are still to be given: that of before, where the newest is as
    /// good, so that the target need not hear of each map before it takes them.
    fn given_by(&self, gift: &mut Gift<'_>, tenant: TenantId) -> Result<Serving, Pass> {
        let newest = self.view.leased().map_err(|_| Pass::Partial)?;
        let mut fills = self.replicator.giving.fills();
        fills.adopt(&newest.map, newest.member);
        if !fills.is_wanted(gift.round) {
            return Err(Pass::Partial);
        }
        let before = gift.serving.take().filter(|before| is_as_good(before, &newest, tenant));
        Ok(gift.serving.insert(before.unwrap_or(newest)).clone())
    }

    /// Copies blocks as soon as they may pass, and tells the device which of them were given no room.
    async fn hand_over(
        &self,
        gift: &mut Gift<'_>,
        device: &Device,
        kind: (TenantId, LayoutFingerprint),
        items: Vec<Item>,
    ) -> Result<(), Pass> {
        let given = self.until_taken(gift, kind, items).await;
        // Also where others did not get there: their fate has been noted.
        if !gift.unplaced.is_empty() {
            let blocks = std::mem::take(&mut gift.unplaced);
            let tell = |reply| DeviceMessage::Settle(Settle::Unplaced { blocks, reply });
            device.ask(LIMIT, tell).await.map_err(|_| Pass::Partial)?;
        }
        given
    }

    /// Offers blocks until all are taken or it is known of each that it is not.
    async fn until_taken(
        &self,
        gift: &mut Gift<'_>,
        (tenant, fingerprint): (TenantId, LayoutFingerprint),
        mut items: Vec<Item>,
    ) -> Result<(), Pass> {
        let bytes: u64 = items.iter().map(|item| item.block.header.payload_bytes).sum();
        let mut serving = self.given_by(gift, tenant)?;
        let mut span = self.replicator.tracer.draw(SpanKind::Inner, "move blocks");
        if span.is_on() {
            let name = serving.map.tenants.get(&tenant).map_or("", |tenant| &tenant.name);
            span.note("kvhive.tenant", name);
            span.note("kvhive.device", gift.round.source);
            span.note("kvhive.target", gift.round.target);
            span.note("kvhive.blocks", items.len());
            span.note("kvhive.bytes", bytes);
        }
        let layout = self.view.layouts.get(fingerprint);
        let (about, trace, source) = (About::default(), span.context(), gift.round.source);
        let (begun, mut pause) = (Instant::now(), TAKEN_LATER);
        loop {
            let origin = Origin { serving, source, tenant, layout, about, trace };
            let offered = self.offer(gift, &origin, &mut items).await;
            let is_over = begun.elapsed() + pause > TAKEN_WITHIN;
            match offered {
                Ok(()) if items.is_empty() => break,
                Ok(()) if is_over => {
                    count(&self.counters.move_failures);
                    return Err(Pass::Partial);
                }
                Ok(()) => {}
                Err(Fault::Refused(WireError::StaleEpoch { .. })) if !is_over => {}
                Err(fault) => {
                    count(&self.counters.move_failures);
                    span.fail(&fault);
                    debug!(target = %gift.round.target, %fault, "blocks did not get there");
                    // Whoever refuses a request has answered.
                    let is_refused = matches!(fault, Fault::Refused(_));
                    return Err(if is_refused { Pass::Partial } else { Pass::Unanswered });
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_TAKEN_LATER);
            serving = self.given_by(gift, tenant)?;
        }
        if gift.is_short {
            count(&self.counters.move_failures);
            return Err(Pass::Partial);
        }
        Ok(())
    }
}

/// Says whether what a tenant has is given by a map as well as by a newer one: nobody is being emptied, which whoever takes a block has to know, and
/// the blocks are of the same era.
fn is_as_good(before: &Serving, newest: &Serving, tenant: TenantId) -> bool {
    let is_calm = |map: &ClusterMap| !map.members.values().any(|member| member.drains);
    let era = |map: &ClusterMap| map.tenants.get(&tenant).map(|tenant| tenant.era);
    (before.member, before.map.cluster) == (newest.member, newest.map.cluster)
        && is_calm(&before.map)
        && is_calm(&newest.map)
        && era(&before.map) == era(&newest.map)
}

/// What one pass has come to.
struct Gift<'a> {
    round: &'a Round,
    /// The map that blocks were given by last.
    serving: Option<Serving>,
    /// Some did not get there that may yet, by another pass.
    is_short: bool,
    /// Pinned blocks that were given no room.
    waiting: u64,
    /// Blocks that were given no room and that nobody else holds who stays, and whom it empties.
    unplaced: Vec<(MemberId, Unsettled)>,
    /// What is pinned, by the map of an epoch.
    pinned: Option<(Epoch, BTreeSet<(TenantId, BlockKey)>)>,
    /// Blocks that the target has answered for.
    blocks: u64,
    /// Blocks that the disk did not give in time.
    late: u64,
}

impl<'a> Gift<'a> {
    fn of(round: &'a Round) -> Gift<'a> {
        Gift {
            round,
            serving: None,
            is_short: false,
            waiting: 0,
            unplaced: Vec::new(),
            pinned: None,
            blocks: 0,
            late: 0,
        }
    }

    /// Says whether a pin of the map names the block.
    fn is_pinned(&mut self, map: &ClusterMap, tenant: TenantId, key: BlockKey) -> bool {
        if self.pinned.as_ref().is_none_or(|(epoch, _)| *epoch != map.epoch) {
            let keys = map.pins.values().flat_map(|pin| pin.keys.iter().map(|key| (pin.tenant, key)));
            self.pinned = Some((map.epoch, keys.collect()));
        }
        self.pinned.as_ref().is_some_and(|(_, keys)| keys.contains(&(tenant, key)))
    }
}

async fn at_hand(block: Lent) -> Result<Content, Unread> {
    let far = match block {
        Lent::Guard(guard) => return Ok(Content::Here(Arc::new(guard))),
        Lent::Far(far) => far,
    };
    match far.gpu_frame() {
        // Brought when it is known that it does not go from GPU to GPU.
        Some(frame) => Ok(Content::OnGpu(Arc::new(OnGpu::new(far, frame, None)))),
        // One at a time: nobody has set memory aside for more.
        None => far.read(None).await.map(|guard| Content::Here(Arc::new(guard))),
    }
}
