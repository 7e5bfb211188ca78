//! How the strategies of a cluster's devices do, and the word to those that choose to do so now.

use crate::client::Client;
use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::retry::in_time;
use kvhive_protocol::DeviceId;
use kvhive_protocol::data::{DataReply, DataRequest, StrategiesRequest};
use kvhive_protocol::strategy::{MAX_REPORTS, StrategyReport};
use kvhive_wire::Fault;

/// How the strategies of one device do.
#[derive(Debug)]
pub struct DeviceStrategies {
    /// Which device.
    pub device: DeviceId,
    /// The name of its node.
    pub node: String,
    /// One report for each tenant with rules of its own and size of frames, and one for each size in which nothing was ranked yet; or why
    /// there are none.
    pub reports: Result<Vec<StrategyReport>, Fault>,
}

impl Client {
    /// Asks the devices of a node, or of all nodes that are up, how their strategies do. With `adjust` those that choose among
    /// ways to rank choose now, by the evidence at hand, and the answer is what came of it.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when no node that is up has this name. What single devices say is in their answers.
    pub async fn strategies(
        &self,
        node: Option<&str>,
        adjust: bool,
    ) -> Result<Vec<DeviceStrategies>, ClientError> {
        let map = self.map();
        let deadline = in_time(self.shared.config.request_timeout);
        let mut devices = Vec::new();
        for (device, _) in map.devices_up() {
            let owner = map.owner(device).map_or("", |owner| owner.name.as_str());
            if node.is_none_or(|node| node == owner) {
                devices.push((device, owner));
            }
        }
        if devices.is_empty() {
            let which = node.map_or_else(|| "any name".to_owned(), |node| format!("name {node:?}"));
            return Err(ClientError::Misuse(format!("no node of {which} is up")));
        }
        let tasks = devices.into_iter().map(|(device, node)| {
            let request = DataRequest::Strategies(StrategiesRequest { epoch: map.epoch, device, adjust });
            let (map, node) = (&map, node.to_owned());
            async move {
                let reports = match self.shared.call(map, device, &request, None, deadline).await {
                    Ok(DataReply::Strategies { reports, .. }) if reports.len() <= MAX_REPORTS => Ok(reports),
                    Ok(_) => Err(senseless("a question for strategies was answered otherwise")),
                    Err(fault) => Err(fault),
                };
                DeviceStrategies { device, node, reports }
            }
        });
        Ok(run_all(tasks.collect()).await)
    }
}
