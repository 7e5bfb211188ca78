//! Traced requests: what the nodes of a cluster have kept of them, by their own word.

use crate::client::Client;
use crate::fetch::run_all;
use crate::retry::in_time;
use kvhive_protocol::data::{DataReply, DataRequest};
use kvhive_protocol::trace::{TraceAnswer, TraceAsk, TraceRequest};
use kvhive_protocol::{DeviceId, MemberId};
use std::collections::BTreeMap;

/// What one node says of traced requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeTraces {
    /// Its name.
    pub node: String,
    /// Its answer, or why there is none, in words.
    pub answer: Result<TraceAnswer, String>,
}

impl Client {
    /// Asks every node that is up what it has kept of traced requests. In the order of the members, by the newest map that can be had.
    pub async fn traces(&self, ask: TraceAsk) -> Vec<NodeTraces> {
        // Who has joined lately counts; without a leader nobody joins.
        let map = self.refresh().await.unwrap_or_else(|_| self.map());
        let deadline = in_time(self.shared.config.request_timeout);
        let mut first: BTreeMap<MemberId, DeviceId> = BTreeMap::new();
        for (device, _) in map.devices_up() {
            first.entry(device.member).or_insert(device);
        }
        let (map, shared) = (&map, &self.shared);
        let asked = first.into_iter().map(|(member, device)| async move {
            let request = DataRequest::Trace(TraceRequest { epoch: map.epoch, device, ask });
            let answer = match shared.call(map, device, &request, None, deadline).await {
                Ok(DataReply::Traced { answer, .. }) => Ok(answer),
                Ok(_) => Err("a question for traces was answered otherwise".to_owned()),
                Err(fault) => Err(fault.to_string()),
            };
            let node = map.members.get(&member).map_or(String::new(), |member| member.name.clone());
            NodeTraces { node, answer }
        });
        run_all(asked.collect()).await
    }
}
