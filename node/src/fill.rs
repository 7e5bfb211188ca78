//! Giving blocks away: the thin hand around [`Fills`]. Passes over a device's blocks and has those of some slots copied to a
//! replica that lacks them, behind everything else: a few at a time, at a bounded rate.

use crate::actors::core::{DeviceMessage, Exported};
use crate::actors::device::Device;
use crate::data::{Counters, Item, Origin, Replicator, add, count};
use crate::guards::{Lent, ReadGuard};
use crate::view::View;
use kvhive_cache::{Fills, Round};
use kvhive_protocol::data::{About, StoreBlock};
use kvhive_protocol::{DeviceId, LayoutFingerprint, Slot, TenantId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

/// How often it is looked whether the map asks for anything.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The wait after a pass that failed.
const RETRY: Duration = Duration::from_millis(500);
/// Blocks held and sent at a time.
const BATCH: usize = 8;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

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
    /// Bytes a second.
    pub(crate) rate: u64,
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
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(serving) = self.view.serving().filter(|_| self.view.check_lease().is_ok()) else {
                continue;
            };
            let next = {
                let mut fills = self.replicator.giving.fills();
                fills.adopt(&serving.map, serving.member);
                fills.begin()
            };
            let Some(round) = next else { continue };
            let begun = Instant::now();
            let given = self.give(&round).await;
            self.replicator.giving.fills().ended(&round, given.is_some());
            match given {
                Some(blocks) => info!(
                    source = %round.source, target = %round.target, slots = round.slots.len(), blocks,
                    took = ?begun.elapsed(), "gave blocks away"
                ),
                None => {
                    debug!(target = %round.target, "blocks could not be given: trying anew");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Makes one pass, parents first, as a shard wants them; returns how many blocks the target has answered for, none if that
    /// was not all.
    async fn give(&self, round: &Round) -> Option<u64> {
        let device = self.devices.get(usize::from(round.source.index))?;
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let slots = round.slots.clone();
            let asked = device.ask(LIMIT, |reply| DeviceMessage::Contents { from, slots, reply });
            let (listed, after) = asked.await.ok()?;
            all.extend(listed);
            next = after;
        }
        all.sort_unstable_by_key(|(depth, id)| (*depth, id.index()));
        for batch in all.chunks(BATCH) {
            let ids = batch.iter().map(|(_, id)| *id).collect();
            let lent = device.ask(LIMIT, |reply| DeviceMessage::Lend { ids, reply }).await.ok()?;
            let mut alike: BTreeMap<(TenantId, LayoutFingerprint), Vec<Item>> = BTreeMap::new();
            for Exported { block, parent, slot } in lent {
                // What is on disk and does not come is a miss here too.
                if let Some(guard) = at_hand(block).await {
                    let header = *guard.header();
                    let items = alike.entry((header.tenant, header.fingerprint)).or_default();
                    let block = StoreBlock { header, parent };
                    items.push(Item { at: items.len(), block, slot, guard, targets: vec![round.target] });
                }
            }
            for ((tenant, fingerprint), items) in alike {
                self.hand_over(round, tenant, fingerprint, items).await?;
            }
        }
        Some(all.len() as u64)
    }

    /// Copies blocks, then waits as long as they should have taken.
    async fn hand_over(
        &self,
        round: &Round,
        tenant: TenantId,
        fingerprint: LayoutFingerprint,
        items: Vec<Item>,
    ) -> Option<()> {
        let serving = self.view.serving().filter(|_| self.view.check_lease().is_ok())?;
        {
            let mut fills = self.replicator.giving.fills();
            fills.adopt(&serving.map, serving.member);
            if !fills.is_wanted(round) {
                return None;
            }
        }
        let bytes: u64 = items.iter().map(|item| item.block.header.payload_bytes).sum();
        let due = Instant::now() + Duration::from_secs_f64(bytes as f64 / self.rate.max(1) as f64);
        let origin =
            Origin { serving, tenant, layout: self.view.layouts.get(fingerprint), about: About::default() };
        let given = self.replicator.give(&origin, round.target, &items).await;
        drop(items);
        match given {
            Ok(blocks) => add(&self.counters.moved_blocks, blocks),
            Err(fault) => {
                count(&self.counters.move_failures);
                debug!(target = %round.target, %fault, "blocks did not get there");
                return None;
            }
        }
        tokio::time::sleep_until(due).await;
        Some(())
    }
}

async fn at_hand(block: Lent) -> Option<ReadGuard> {
    match block {
        Lent::Guard(guard) => Some(guard),
        // One at a time: nobody has set memory aside for more.
        Lent::Record(record) => record.read(None).await.ok(),
    }
}
