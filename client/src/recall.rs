//! What nodes remember of a request that came with a trace context: what of it was missing, and why as of then.

use crate::client::Client;
use crate::error::ClientError;
use crate::explain::{BlockExplained, Explanation, Place, Replica, fold};
use crate::fetch::run_all;
use crate::retry::in_time;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::recall::{RecallRequest, Recalled};
use kvhive_protocol::{ClusterMap, DeviceId, Level, MemberId, TraceId};
use std::collections::{BTreeMap, BTreeSet};

/// A request as nodes remember it.
#[derive(Clone, PartialEq, Debug)]
pub struct RequestRecalled {
    /// What was asked of devices, the oldest first.
    pub parts: Vec<Recalled>,
    /// The blocks that were missing, each once, and why: times are before the request, not before now.
    pub explanation: Explanation,
    /// Nodes that did not answer, and why not.
    pub silent: Vec<(String, String)>,
}

impl Client {
    /// Says what nodes remember of a request, and why blocks of it were missing. None of its parts are there where no node remembers it: they
    /// do of those that came last with a trace context.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a cluster that is at no level yet at which nodes recall requests.
    pub async fn recall(&self, trace: TraceId) -> Result<RequestRecalled, ClientError> {
        let map = self.refresh().await.unwrap_or_else(|_| self.map());
        if map.level < Level::CHECKED {
            return Err(ClientError::Misuse(format!(
                "nodes recall requests from level {} on, and the cluster is at {}: upgrade those that `kvhive status` names",
                Level::CHECKED,
                map.level
            )));
        }
        let deadline = in_time(self.shared.config.request_timeout);
        let mut first: BTreeMap<MemberId, DeviceId> = BTreeMap::new();
        for (device, _) in map.devices_up() {
            first.entry(device.member).or_insert(device);
        }
        let (of, shared) = (&map, &self.shared);
        let asked = first.into_iter().map(|(member, device)| async move {
            let request = DataRequest::Recall(RecallRequest { epoch: of.epoch, device, trace });
            let answer = match shared.call(of, device, &request, None, deadline).await {
                Ok(DataReply::Recalled { parts, .. }) => Ok(parts),
                Ok(_) => Err("a question for a request was answered otherwise".to_owned()),
                Err(fault) => Err(fault.to_string()),
            };
            (member, answer)
        });
        let (mut parts, mut silent) = (Vec::new(), Vec::new());
        for (member, answer) in run_all(asked.collect()).await {
            match answer {
                Ok(told) => parts.extend(told),
                Err(why) => silent.push((name(&map, member), why)),
            }
        }
        Ok(recalled(&map, parts, silent))
    }
}

fn name(map: &ClusterMap, member: MemberId) -> String {
    map.members.get(&member).map_or_else(|| member.to_string(), |one| one.name.clone())
}

/// Puts together what nodes remember.
fn recalled(map: &ClusterMap, mut parts: Vec<Recalled>, silent: Vec<(String, String)>) -> RequestRecalled {
    parts.sort_by_key(|part| std::cmp::Reverse(part.ago_ms));
    let mut blocks: Vec<BlockExplained> = Vec::new();
    let mut known = BTreeMap::new();
    let mut said = BTreeSet::new();
    for part in &parts {
        for (key, what) in &part.missed {
            // Looked for and then fetched, or asked for once more: what was known of it first is why.
            if !said.insert((*key, part.device)) {
                continue;
            }
            let at = *known.entry(*key).or_insert_with(|| {
                let verdict = fold(&[], None);
                blocks.push(BlockExplained { key: *key, slot: None, replicas: Vec::new(), verdict });
                blocks.len() - 1
            });
            blocks[at].replicas.push(Replica { device: part.device, place: Place::Whole, said: Ok(*what) });
        }
    }
    for block in &mut blocks {
        block.verdict = fold(&block.replicas, None);
    }
    let nodes = parts.iter().map(|part| (part.device, name(map, part.device.member))).collect();
    let explanation = Explanation { blocks, lapses: BTreeMap::new(), nodes, down: Vec::new(), not_asked: 0 };
    RequestRecalled { parts, explanation, silent }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Verdict;
    use kvhive_protocol::explain::{Explained, Since};
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{BlockKey, ClusterId, TenantId};

    #[test]
    fn a_block_that_was_missing_twice_is_told_once_and_by_what_was_known_first() {
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: kvhive_protocol::data::Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 500,
            serving_lease_ms: 2000,
        };
        let map = ClusterMap::founded(ClusterId(1), "test", settings);
        let (key, other) = (BlockKey::from_bytes([1; 32]), BlockKey::from_bytes([2; 32]));
        let unknown = Explained::Unknown { since: Since::Began, for_s: 9 };
        let part = |member, ago_ms, missed: Vec<(BlockKey, Explained)>| Recalled {
            device: DeviceId::new(MemberId(member), 0),
            tenant: TenantId(1),
            fetches: false,
            ago_ms,
            blocks: 3,
            hits: 1,
            missed,
        };
        let parts = vec![
            part(1, 10, vec![(key, Explained::Coming)]),
            part(1, 20, vec![(key, unknown), (other, unknown)]),
            part(2, 15, vec![(key, unknown)]),
        ];
        let told = recalled(&map, parts, Vec::new());
        let ago: Vec<u64> = told.parts.iter().map(|part| part.ago_ms).collect();
        assert_eq!(ago, [20, 15, 10]);
        let blocks: Vec<_> =
            told.explanation.blocks.iter().map(|one| (one.key, one.replicas.len())).collect();
        assert_eq!(blocks, [(key, 2), (other, 1)]);
        let never = Verdict::Never { since: Since::Began, for_s: 9 };
        assert!(told.explanation.blocks.iter().all(|block| block.verdict == never));
    }
}
