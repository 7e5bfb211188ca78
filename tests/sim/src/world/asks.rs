//! What nodes and clients ask coordinators, and what they make of the answers.

use super::checks::Touched;
use super::{ASK_LIMIT_MS, Asker, AtNode, BUSY_MS, CLIENT, Event, Host, TROUBLE_MS, What, World};
use crate::breach::Breach;
use crate::coordinator::PEERS;
use crate::node::labels;
use kvhive_cache::{MemberEffect, MemberEvent};
use kvhive_protocol::control::{Command, CommandReply, ControlReply, Heartbeat, Proposal, Registration};
use kvhive_protocol::map::DeviceDescription;
use kvhive_protocol::{MemberId, RequestId, WireError};
use std::sync::Arc;

impl World {
    pub(super) fn asker_host(&self, ask: u64) -> Host {
        match self.asks.get(&ask) {
            Some(Asker::Register { node, .. } | Asker::Beat { node, .. }) => PEERS as usize + node,
            _ => CLIENT,
        }
    }

    pub(super) fn ask(&mut self, from: Host, to: Host, asker: Asker, what: What) {
        self.next += 1;
        let ask = self.next;
        self.asks.insert(ask, asker);
        self.send_once(from, to, Event::Ask { to, ask, what });
        self.at(ASK_LIMIT_MS, Event::AskLimit { ask });
    }

    pub(super) fn request(&mut self, client: u128) -> RequestId {
        self.requests += 1;
        RequestId { client, sequence: self.requests }
    }

    pub(super) fn perform(&mut self, node: usize, effects: Vec<MemberEffect>) {
        let (start, host, to) = (self.nodes[node].starts, PEERS as usize + node, self.targets[node]);
        let floor = self.oracle.told();
        for effect in effects {
            match effect {
                MemberEffect::Register => {
                    let registration = Registration {
                        request: self.request(1000 + node as u128),
                        name: format!("node-{node}"),
                        data_address: format!("10.0.0.{node}:7810"),
                        metrics_address: format!("10.0.0.{node}:7811"),
                        labels: labels(),
                        devices: vec![DeviceDescription {
                            kind: "host".into(),
                            device_bytes: 16,
                            host_bytes: 8,
                            disk_bytes: 8,
                        }],
                        codec: Default::default(),
                        speaks: kvhive_protocol::Level::NEWEST,
                    };
                    let request = registration.request;
                    let what = What::Submit(Proposal { request, command: Command::Register(registration) });
                    self.ask(host, to, Asker::Register { node, start, floor }, what);
                }
                MemberEffect::SendHeartbeat { member, generation, epoch } => {
                    // Some time after all trouble is over, so that work is spread while slots rest.
                    let is_quiet = self.now > 1000 + TROUBLE_MS + BUSY_MS;
                    let Some(running) = &self.nodes[node].running else { continue };
                    let devices = vec![running.load(is_quiet)];
                    let beat = Heartbeat { member, generation, epoch, devices };
                    let asker = Asker::Beat { node, start, sent: self.clock(host), floor, have: epoch };
                    self.ask(host, to, asker, What::Beat(beat));
                }
                MemberEffect::Adopt { map } => {
                    // Each map in its turn, as mailboxes bring them.
                    let at = (self.now + self.random.below(25)).max(self.adopted_at[node]);
                    self.adopted_at[node] = at;
                    self.at_node(at - self.now, node, AtNode::Adopt(map));
                }
                MemberEffect::ServeUntil { .. } => {}
            }
        }
    }

    pub(super) fn answered(&mut self, ask: u64, reply: Option<ControlReply>) -> Result<Touched, Breach> {
        let Some(asker) = self.asks.remove(&ask) else { return Ok(Touched::Nobody) };
        let (node, start, event) = match (asker, reply) {
            (
                Asker::Register { node, start, floor },
                Some(ControlReply::Registered { member, generation, map }),
            ) => {
                self.oracle.tell(floor, map.epoch)?;
                self.oracle.starts(member, generation, (node, start))?;
                (node, start, MemberEvent::Registered { member, generation, map: Arc::new(*map) })
            }
            (Asker::Beat { node, start, sent, floor, have }, Some(ControlReply::Beat { map })) => {
                self.oracle.tell(floor, map.as_ref().map_or(have, |map| map.epoch))?;
                (node, start, MemberEvent::Beat { sent, map: map.map(|map| Arc::new(*map)) })
            }
            (Asker::Beat { node, start, .. }, Some(ControlReply::Fenced)) => {
                (node, start, MemberEvent::Fenced)
            }
            (Asker::Register { node, start, .. } | Asker::Beat { node, start, .. }, _) => {
                (node, start, MemberEvent::Failed)
            }
            (asker, reply) => return self.client_answered(asker, reply).map(|()| Touched::Clients),
        };
        if start != self.nodes[node].starts {
            return Ok(Touched::Nobody);
        }
        if event == MemberEvent::Failed {
            self.targets[node] = (self.targets[node] + 1) % PEERS as usize;
        }
        let now = self.clock(PEERS as usize + node);
        let Some(running) = &mut self.nodes[node].running else { return Ok(Touched::Nobody) };
        let asks = running.member_event(now, event);
        self.perform(node, asks);
        Ok(Touched::Node(node))
    }

    fn client_answered(&mut self, asker: Asker, reply: Option<ControlReply>) -> Result<(), Breach> {
        match (asker, reply) {
            (
                Asker::Clear { request, tenant },
                Some(ControlReply::Done(CommandReply::TenantCleared { era, epoch })),
            ) => {
                self.oracle.clear(request, tenant, era)?;
                let floor = self.oracle.told();
                // The first answer to a request is repeated, however old it is.
                self.oracle.tell(floor, epoch.max(floor))?;
                self.outcome.clears += 1;
            }
            (Asker::Clear { .. }, Some(ControlReply::Failed(WireError::StillServed { .. }))) => {
                self.outcome.clears_waiting += 1;
            }
            (
                Asker::Clear { request, .. } | Asker::Other(request),
                Some(ControlReply::Failed(WireError::NotLeader { .. })),
            ) => self.oracle.refuse(request),
            (Asker::Map { floor, have }, Some(ControlReply::Map(map))) => {
                self.oracle.tell(floor, map.as_ref().map_or(have, |map| map.epoch))?;
                let known = self.map.as_ref().map_or(have, |known| known.epoch.max(have));
                if let Some(map) = map.filter(|map| map.epoch > known || self.map.is_none()) {
                    self.map = Some(Arc::new(*map));
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn node_of(&self, member: MemberId) -> Option<usize> {
        let map = self.map.as_ref()?;
        map.members.get(&member)?.name.strip_prefix("node-")?.parse().ok()
    }
}
