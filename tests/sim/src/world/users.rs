//! Clients that store, read and clear, and the trouble that befalls everybody.

use super::{Asker, Event, Host, KEYS, NODES, QUIET_MS, TROUBLE_MS, What, World, content, key};
use crate::coordinator::PEERS;
use crate::node::{Gift, TENANT};
use kvhive_protocol::control::{Command, Proposal};
use kvhive_protocol::{BlockKey, Epoch, Era, MemberId, RequestId};

impl World {
    pub(super) fn store(&mut self, to: Host, key: BlockKey, era: Era) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        let stored = running.store_from_client(now, key, era, content(&key, era));
        let Some((others, needed)) = stored else { return Some(to) };
        others.iter().for_each(|other| running.may_miss(key.slot(), *other));
        let start = self.nodes[to].starts;
        for other in others {
            if let Some(target) = self.node_of(other) {
                let source = (needed == Some(other)).then_some((to, start));
                let (from, host) = (PEERS as usize + to, PEERS as usize + target);
                self.send(from, host, || Event::Copy { to: target, key, era, source });
            }
        }
        Some(to)
    }

    /// A copy of a block arrives; `source` acknowledges the block then.
    pub(super) fn copy(
        &mut self,
        to: Host,
        key: BlockKey,
        era: Era,
        source: Option<(Host, u64)>,
    ) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        if running.be_given(now, &[(key, era, content(&key, era))])
            && let Some((source, start)) = source
            && self.nodes[source].starts == start
            && let Some(source) = &mut self.nodes[source].running
        {
            source.is_sure(&(key, era));
        }
        Some(to)
    }

    /// Sends what a node gives away.
    pub(super) fn give_blocks(&mut self, from: Host, gift: Option<Gift>) {
        let Some(Gift { round, target, blocks }) = gift else { return };
        let Some(to) = self.node_of(target) else { return };
        let start = self.nodes[from].starts;
        self.send(PEERS as usize + from, PEERS as usize + to, || Event::Give {
            from,
            start,
            to,
            round,
            blocks: blocks.clone(),
        });
    }

    pub(super) fn be_given(
        &mut self,
        from: Host,
        start: u64,
        to: Host,
        round: u64,
        blocks: Vec<(BlockKey, Era)>,
    ) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        let blocks: Vec<_> = blocks.iter().map(|(key, era)| (*key, *era, content(key, *era))).collect();
        if running.be_given(now, &blocks) {
            self.outcome.given += blocks.len() as u64;
            self.send(PEERS as usize + to, PEERS as usize + from, || Event::Given { to: from, start, round });
        }
        Some(to)
    }

    pub(super) fn fetch(&mut self, to: Host, key: BlockKey, oldest: Era) -> Option<Host> {
        let now = self.moment();
        let running = self.nodes[to].running.as_mut()?;
        let is_alone = !running.is_leased(now);
        if let Some(bytes) = running.fetch(now, key) {
            self.outcome.hits += 1;
            self.outcome.hits_alone += u64::from(is_alone);
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
                // One that was not acknowledged is asked for again, or another one is.
                let again = self.last_clear.take().filter(|_| self.random.one_in(2));
                let request = RequestId { client: 9, sequence: self.outcome.events };
                let command = Command::ClearTenant { tenant: TENANT };
                let proposal = again.unwrap_or(Proposal { request, command });
                self.last_clear = Some(proposal.clone());
                self.ask(host, to, Asker::Clear, &What::Submit(proposal));
            }
            1 => self.drain(host, to),
            2..=5 => {
                let have = self.map.as_ref().map_or(Epoch(0), |map| map.epoch);
                self.ask(host, to, Asker::Map, &What::Map(have));
            }
            choice => {
                if let Some(map) = self.map.clone() {
                    let replicas = &map.replicas(key.slot()).0;
                    let is_store = choice % 2 == 0;
                    // Any replica may be asked, and the primary be told.
                    let at = if is_store { 0 } else { self.random.below(2) as usize };
                    let Some(device) = replicas.get(at).or(replicas.first()) else {
                        return self.at(15, Event::Client);
                    };
                    if let Some(node) = self.node_of(device.member) {
                        let era = map.tenants.get(&TENANT).map_or(Era(0), |tenant| tenant.era);
                        let oldest = self.cleared;
                        self.send(host, PEERS as usize + node, || {
                            if is_store {
                                Event::Store { to: node, key, era }
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

    /// Now and then somebody has a node emptied or cordoned, or thinks better of it; when all is quiet nobody does.
    fn drain(&mut self, host: Host, to: Host) {
        let Some(map) = &self.map else { return };
        let is_quiet = self.now > 1000 + TROUBLE_MS;
        let members: Vec<MemberId> = match is_quiet {
            true => {
                map.members.iter().filter(|(_, one)| one.drains || one.cordoned).map(|(id, _)| *id).collect()
            }
            false => map.members.keys().copied().collect(),
        };
        if members.is_empty() {
            return;
        }
        let member = members[self.random.below(members.len() as u64) as usize];
        let begins = !is_quiet && self.random.one_in(2);
        let is_cordon = match is_quiet {
            true => !map.members.get(&member).is_some_and(|member| member.drains),
            false => self.random.one_in(3),
        };
        let command = match is_cordon {
            true => Command::SetCordon { member, cordoned: begins },
            false => Command::SetDrains { member, drains: begins },
        };
        let request = RequestId { client: 9, sequence: self.outcome.events };
        let proposal = Proposal { request, command };
        self.ask(host, to, Asker::Map, &What::Submit(proposal));
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
            // A majority of the coordinators is gone, for longer than leases last, or than those by which nodes serve.
            _ if self.now >= self.outage_until && self.random.one_in(2) => {
                self.outage_until = self.now + 1200 + self.random.below(3000);
                self.outcome.outages += 1;
                let stays = self.random.below(PEERS) as usize;
                for host in (0..PEERS as usize).filter(|host| *host != stays) {
                    self.outcome.crashes += u64::from(self.coordinators[host].0.running.take().is_some());
                }
            }
            _ => {}
        }
        let pause = 50 + self.random.below(400);
        self.at(pause, Event::Trouble);
    }
}
