//! Asks who holds blocks that emptying members may have cost: the thin hand around [`Displacing`](kvhive_cache::Displacing). What one device has
//! let go another may have, or let go too, or be given yet; only when it is asked afterwards is it known.

use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::actors::displace::Settle;
use crate::data::{Asker, Replicator};
use crate::view::{Serving, View};
use futures_util::future::join_all;
use kvhive_cache::{Holder, Unsettled};
use kvhive_protocol::explain::Explained;
use kvhive_protocol::{BlockKey, DeviceId, KeyList, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often it is looked whether there is anything to ask.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Blocks of one device that are asked for at a time.
const AT_A_TIME: usize = 512;
/// A device that does not answer within this is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// Settles what emptying members cost.
pub(crate) struct Settler {
    pub(crate) devices: Vec<Device>,
    pub(crate) replicator: Replicator,
    pub(crate) view: Arc<View>,
}

impl Settler {
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
            let Ok(serving) = self.view.leased() else { continue };
            if !serving.map.members.values().any(|member| member.drains) {
                continue;
            }
            for (device, index) in self.devices.iter().zip(0..) {
                self.settle(&serving, device, DeviceId::new(serving.member, index)).await;
            }
        }
    }

    async fn settle(&self, serving: &Serving, device: &Device, own: DeviceId) {
        let ask = |reply| DeviceMessage::Settle(Settle::Ask { limit: AT_A_TIME, reply });
        let Ok(asked) = device.ask(LIMIT, ask).await else { return };
        if asked.is_empty() {
            return;
        }
        let mut questions: BTreeMap<(TenantId, DeviceId), Vec<usize>> = BTreeMap::new();
        for (at, block) in asked.iter().enumerate() {
            for holder in &serving.map.replicas(block.slot).0 {
                questions.entry((block.tenant, *holder)).or_default().push(at);
            }
        }
        let answers = questions.into_iter().map(|((tenant, holder), of_it)| {
            let keys: Vec<BlockKey> = of_it.iter().map(|at| asked[*at].key).collect();
            async move {
                let said = match holder == own {
                    true => here(device, tenant, &keys).await,
                    false => {
                        let asker = Asker { serving, device: own, tenant, trace: None };
                        self.replicator.are_there(&asker, holder, &keys).await
                    }
                };
                (holder, of_it, said)
            }
        });
        let mut said: Vec<Vec<(DeviceId, Option<bool>)>> = vec![Vec::new(); asked.len()];
        for (holder, of_it, answers) in join_all(answers).await {
            let answers = answers.unwrap_or_else(|| vec![None; of_it.len()]);
            for (at, is_there) in of_it.into_iter().zip(answers) {
                said[at].push((holder, is_there));
            }
        }
        // Slots may have gone elsewhere meanwhile: they are asked for anew by that map.
        if self.view.serving().is_none_or(|now| now.map.epoch != serving.map.epoch) {
            return;
        }
        let settled = asked.into_iter().zip(said);
        let settled =
            settled.filter_map(|(block, said)| Some((block, Holder::of(&serving.map, block.slot, &said)?)));
        let settled: Vec<(Unsettled, Holder)> = settled.collect();
        // One that does not take it in is asked for its blocks again.
        let _ = device.ask(LIMIT, |reply| DeviceMessage::Settle(Settle::Settled { settled, reply })).await;
    }
}

/// Says which blocks are on a device of this node; none of those that are being written.
async fn here(device: &Device, tenant: TenantId, keys: &[BlockKey]) -> Option<Vec<Option<bool>>> {
    let keys: KeyList = keys.iter().copied().collect();
    let explained =
        device.ask(LIMIT, |reply| DeviceMessage::Explain { tenant, runs: Vec::new(), keys, reply });
    Some(explained.await.ok()?.iter().map(is_here).collect())
}

/// Says whether a block is there; nothing of one that is being written.
pub(crate) fn is_here(explained: &Explained) -> Option<bool> {
    match explained {
        Explained::Here { .. } => Some(true),
        Explained::Coming => None,
        Explained::Gone(_) | Explained::Unknown { .. } => Some(false),
    }
}
