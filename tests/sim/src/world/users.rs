//! Clients that store, read and clear, and the trouble that befalls everybody.

use super::{Asker, Event, Host, KEYS, NODES, QUIET_MS, TROUBLE_MS, What, World, content, key};
use crate::coordinator::PEERS;
use crate::node::TENANT;
use kvhive_protocol::control::{Command, Proposal};
use kvhive_protocol::{BlockKey, Epoch, Era, RequestId};

impl World {
    pub(super) fn store(&mut self, to: Host, key: BlockKey, era: Era, copy: bool) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        if running.store(now, key, era, content(&key, era), copy) && !copy {
            let us = running.identity().map(|(member, _)| member);
            let others = running.replicas(key.slot()).into_iter().filter(|member| Some(*member) != us);
            for other in others.collect::<Vec<_>>() {
                if let Some(other) = self.node_of(other) {
                    let (from, host) = (PEERS as usize + to, PEERS as usize + other);
                    self.send(from, host, || Event::Store { to: other, key, era, copy: true });
                }
            }
        }
        Some(to)
    }

    pub(super) fn fetch(&mut self, to: Host, key: BlockKey, oldest: Era) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        if let Some(bytes) = running.fetch(now, key) {
            self.outcome.hits += 1;
            let era = Era(bytes & 0xFFFF);
            assert_eq!(bytes, content(&key, era), "seed {}: another block's bytes", self.seed);
            assert!(
                era >= oldest,
                "seed {}: a block of era {era} after era {oldest} was acknowledged",
                self.seed
            );
        }
        Some(to)
    }

    pub(super) fn client(&mut self) {
        let host = PEERS as usize + NODES;
        let (key, to) = (key(self.random.below(KEYS)), self.random.below(PEERS) as usize);
        match self.random.below(40) {
            // The last map must have time to reach everybody before it is looked for.
            0 if self.now < TROUBLE_MS + QUIET_MS - 2000 => {
                let request = RequestId { client: 9, sequence: self.outcome.events };
                let command = Command::ClearTenant { tenant: TENANT };
                self.ask(host, to, Asker::Clear, &What::Submit(Proposal { request, command }));
            }
            1..=4 => {
                let have = self.map.as_ref().map_or(Epoch(0), |map| map.epoch);
                self.ask(host, to, Asker::Map, &What::Map(have));
            }
            choice => {
                if let Some(map) = self.map.clone() {
                    let replicas = &map.replicas(key.slot()).0;
                    let Some(device) = replicas.get(self.random.below(2) as usize).or(replicas.first())
                    else {
                        return self.at(15, Event::Client);
                    };
                    if let Some(node) = self.node_of(device.member) {
                        let era = map.tenants.get(&TENANT).map_or(Era(0), |tenant| tenant.era);
                        let oldest = self.cleared;
                        self.send(host, PEERS as usize + node, || {
                            if choice % 2 == 0 {
                                Event::Store { to: node, key, era, copy: false }
                            } else {
                                Event::Fetch { to: node, key, oldest }
                            }
                        });
                    }
                }
            }
        }
        self.at(15, Event::Client);
    }

    pub(super) fn trouble(&mut self) {
        let hosts = PEERS as usize + NODES;
        match self.random.below(12) {
            0 => {
                let host = self.random.below(PEERS) as usize;
                self.outcome.crashes += u64::from(self.coordinators[host].0.running.take().is_some());
            }
            1 | 2 => {
                let node = self.random.below(NODES as u64) as usize;
                self.outcome.crashes += u64::from(self.nodes[node].running.take().is_some());
            }
            3..=5 => self.start_all(),
            6 | 7 => {
                // Cut one host off, in one direction or both.
                let (host, ways) = (self.random.below(hosts as u64) as usize, self.random.below(3));
                for other in 0..=hosts {
                    if ways != 1 {
                        self.cut.insert((host, other));
                    }
                    if ways != 2 {
                        self.cut.insert((other, host));
                    }
                }
            }
            8..=10 => self.cut.clear(),
            _ => {}
        }
        let pause = 50 + self.random.below(400);
        self.at(pause, Event::Trouble);
    }
}
