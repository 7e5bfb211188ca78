//! Following what devices hold: an index of blocks by device, kept by block events. It is exact as of the last poll of each
//! device, whatever was lost on the way; a device that does not answer keeps what was known until it is none any more.

use crate::client::Client;
use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::retry::in_time;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::watch::{WatchAnswer, WatchAsk, WatchRequest};
use kvhive_protocol::{BlockKey, DeviceId, TenantId};
use kvhive_wire::Fault;
use std::collections::BTreeMap;

mod follower;

pub use follower::{Block, BlockChange, Follower, Taken};

/// The most questions that one poll asks of a device: the rest of a large shard's snapshot is for the next.
const MAX_ROUNDS: usize = 64;

/// What the devices of a cluster hold, by their own word.
pub struct BlockWatch {
    client: Client,
    tenant: Option<TenantId>,
    devices: BTreeMap<DeviceId, Follower>,
    notes: bool,
    /// What went with devices that are gone.
    gone: Vec<BlockChange>,
}

/// What a poll came to.
#[derive(Debug, Default)]
pub struct WatchReport {
    /// Devices of which everything is known as of this poll.
    pub current: usize,
    /// Devices that have more to tell: poll again.
    pub behind: usize,
    /// Devices that did not answer, and why. What was known of them stays.
    pub failed: Vec<(DeviceId, Fault)>,
}

impl Client {
    /// Begins to follow what the cluster's devices hold of a tenant by this name, or of all tenants. Who has the cluster's token
    /// may see them all.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when there is no such tenant.
    pub fn watch_blocks(&self, tenant: Option<&str>) -> Result<BlockWatch, ClientError> {
        let map = self.map();
        let known = |name: &str| {
            let tenant = map.tenant(name).map(|(id, _)| id);
            tenant.ok_or_else(|| ClientError::Misuse(format!("there is no tenant {name:?}")))
        };
        let tenant = tenant.map(known).transpose()?;
        let (devices, gone) = (BTreeMap::new(), Vec::new());
        Ok(BlockWatch { client: self.clone(), tenant, devices, notes: false, gone })
    }
}

impl BlockWatch {
    /// Notes what changes from now on, for [`BlockWatch::changes`]. To be said before the first poll.
    pub fn noting(self) -> BlockWatch {
        BlockWatch { notes: true, ..self }
    }

    /// Returns what has changed on each device since this was asked last, in the order in which that device has told it.
    pub fn changes(&mut self) -> Vec<BlockChange> {
        let mut changes = std::mem::take(&mut self.gone);
        changes.extend(self.devices.values_mut().flat_map(Follower::changes));
        changes
    }

    /// Asks every device of the map what has happened since the last poll. To be called every so often: a device forgets who has
    /// not asked for a minute, and remembers some ten thousand events; beyond that its snapshot is taken anew. Where no device answers, a
    /// coordinator is asked for a newer map, for the next poll.
    pub async fn poll(&mut self) -> WatchReport {
        let map = self.client.map();
        let gone: Vec<DeviceId> =
            self.devices.keys().copied().filter(|device| map.owner(*device).is_none()).collect();
        for device in gone {
            self.gone.extend(self.devices.remove(&device).map(Follower::end).unwrap_or_default());
        }
        for (device, _) in map.devices_up() {
            let notes = self.notes;
            self.devices.entry(device).or_insert_with(|| match notes {
                true => Follower::noting(),
                false => Follower::default(),
            });
        }
        let deadline = in_time(self.client.shared.config.request_timeout);
        let (shared, tenant) = (&self.client.shared, self.tenant);
        let tasks = self.devices.iter_mut().map(|(device, follower)| {
            let (map, device) = (&map, *device);
            async move {
                for _ in 0..MAX_ROUNDS {
                    let ask = follower.ask();
                    let request = WatchRequest { epoch: map.epoch, device, tenant, ask };
                    let request = DataRequest::Watch(request);
                    let answer = match shared.call(map, device, &request, None, deadline).await {
                        Ok(DataReply::Watched { answer, .. }) if answers(&ask, &answer) => answer,
                        Ok(_) => {
                            return Err((device, senseless("a question for events was answered otherwise")));
                        }
                        Err(fault) => return Err((device, fault)),
                    };
                    match follower.take(answer) {
                        Taken::More => {}
                        Taken::Current => return Ok(true),
                        Taken::Passed => return Ok(false),
                    }
                }
                Ok(false)
            }
        });
        let mut report = WatchReport::default();
        for outcome in run_all(tasks.collect()).await {
            match outcome {
                Ok(true) => report.current += 1,
                Ok(false) => report.behind += 1,
                Err(failed) => report.failed.push(failed),
            }
        }
        // Who answers says that there is a newer map. Where nobody does, none of these may be there any more, or others are.
        if report.current + report.behind == 0 {
            let patience = in_time(self.client.shared.config.connect_timeout);
            shared.refresh_past(map.epoch, patience).await;
        }
        report
    }

    /// Returns the devices that hold a block, as of their last poll.
    pub fn holders(&self, tenant: TenantId, key: &BlockKey) -> Vec<(DeviceId, Block)> {
        let of_device = self
            .devices
            .iter()
            .filter_map(|(device, follower)| follower.get(tenant, key).map(|block| (*device, block)));
        of_device.collect()
    }

    /// Returns what is known of each device.
    pub fn devices(&self) -> &BTreeMap<DeviceId, Follower> {
        &self.devices
    }
}

/// Says whether an answer is one to this question.
fn answers(ask: &WatchAsk, answer: &WatchAnswer) -> bool {
    match (ask, answer) {
        (_, WatchAnswer::Gap { .. }) => true,
        (WatchAsk::Page { from: asked, .. }, WatchAnswer::Page { from, .. }) => asked == from,
        (WatchAsk::Events { after: asked, .. }, WatchAnswer::Events { after, .. }) => asked == after,
        _ => false,
    }
}
