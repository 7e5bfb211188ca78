//! Copies for several replicas that leave a GPU once. What does not get to one of them so is another way's.

use super::{Batch, Item, Origin, Replicator, on_gpu};
use crate::links::Parcel;
use kvhive_cache::acks::Answer;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::{DataReply, DataRequest};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What came of a copy to several at once, at one of them.
pub(super) enum AtOnce {
    /// It says this of each block.
    Copied(Vec<Option<Answer>>),
    /// It was tried, and goes by TCP.
    Failed,
}

impl Replicator {
    /// Copies what several replicas are to have alike to all of them at once, where it is on a GPU and so are they; returns what came of it, of
    /// those of whom anything did.
    pub(super) async fn copy_to_all(
        &self,
        origin: &Origin,
        targets: &BTreeMap<DeviceId, Vec<&Item>>,
        deadline: Instant,
    ) -> BTreeMap<DeviceId, AtOnce> {
        let mut outcomes = BTreeMap::new();
        let Some(items) = targets.values().next() else { return outcomes };
        let at = |items: &[&Item]| items.iter().map(|item| item.at).collect::<Vec<_>>();
        let (same, blocks) = (at(items), on_gpu(items));
        let alike = targets.iter().filter(|(_, items)| at(items) == same).map(|(target, _)| *target);
        let alike: Vec<DeviceId> = alike.collect();
        let Some(blocks) = blocks.filter(|_| alike.len() > 1) else { return outcomes };
        let batches = alike.iter().map(|target| Batch { origin, target: *target, items, moved: false });
        let batches: Vec<Batch<'_>> = batches.collect();
        let requests = batches
            .iter()
            .map(|batch| batch.request(items.iter().map(|item| (*item, *item.content.header()))));
        let requests: Vec<DataRequest> = requests.collect();
        let parcels = batches.iter().zip(&requests);
        let parcels = parcels.map(|(batch, request)| batch.parcel(request, (&[], &[]), deadline));
        let parcels: Vec<Parcel<'_>> = parcels.collect();
        let bytes = items.iter().map(|item| item.block.header.payload_bytes).sum();
        let answers = self.links.carry_to_all(&parcels, blocks, bytes).await;
        for (target, answer) in alike.into_iter().zip(answers) {
            match answer {
                Ok(DataReply::Stored { blocks, .. }) if blocks.len() == same.len() => {
                    let answers = blocks.into_iter().map(Answer::of).collect();
                    outcomes.insert(target, AtOnce::Copied(answers));
                }
                Ok(_) => drop(outcomes.insert(target, AtOnce::Failed)),
                // What has taken time has taken it from what comes next.
                Err(error) if error.has_begun() => drop(outcomes.insert(target, AtOnce::Failed)),
                Err(_) => {}
            }
        }
        outcomes
    }
}
