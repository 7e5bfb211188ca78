//! Clients that store, read, clear, empty nodes and follow what happens.

use super::{Asker, AtNode, CLIENT, COPY_LIMIT_MS, Event, Host, QUIET_MS, TROUBLE_MS, What, World};
use crate::block::{Block, LENGTH, PREFIXES, slot_of};
use crate::breach::Holds;
use crate::coordinator::PEERS;
use crate::node::Gift;
use kvhive_protocol::control::{Command, Proposal};
use kvhive_protocol::{Epoch, Era, MemberId, TenantId};

/// The tenants whose clients there are: the cluster's first, and one that a client makes.
const TENANTS: u64 = 2;

impl World {
    /// A block comes from a client; other replicas are told of it.
    pub(super) fn store(&mut self, node: usize, block: Block, word: u64) -> Holds {
        let now = self.clock(PEERS as usize + node);
        self.next += 1;
        let store = self.next;
        let Some(running) = &mut self.nodes[node].running else { return Ok(()) };
        let others = running.store_from_client(now, store, block, word)?;
        let start = self.nodes[node].starts;
        if !others.is_empty() {
            self.at_node(COPY_LIMIT_MS, node, AtNode::CopyLimit { store });
        }
        for other in others {
            let Some(target) = self.node_of(other.member) else { continue };
            let (from, to, theirs) =
                (PEERS as usize + node, PEERS as usize + target, self.nodes[target].starts);
            let copy = AtNode::Copy { block, word, source: (node, start, store) };
            self.send_blocks(from, to, || Event::Node(target, theirs, copy.clone()));
        }
        Ok(())
    }

    /// Sends what a node gives away.
    pub(super) fn give_blocks(&mut self, node: usize, gift: Option<Gift>) {
        let Some(Gift { round, target, blocks }) = gift else { return };
        let Some(to) = self.node_of(target) else { return };
        let source = (node, self.nodes[node].starts, round);
        let theirs = self.nodes[to].starts;
        let give = AtNode::Give { source, blocks };
        self.send_blocks(PEERS as usize + node, PEERS as usize + to, || {
            Event::Node(to, theirs, give.clone())
        });
    }

    pub(super) fn client(&mut self) -> Holds {
        self.at(15, Event::Client);
        let to = self.random.below(PEERS) as usize;
        if let (Some(coordinator), true) = (&self.coordinators[to].0.running, self.reaches(CLIENT, to)) {
            let page = coordinator.registry.events(self.oracle.heard(), 8);
            self.oracle.hears(&page)?;
        }
        match self.random.below(40) {
            // The last map must have time to reach everybody before it is looked for.
            0 if self.now < TROUBLE_MS + QUIET_MS - 2000 && self.random.one_in(2) => self.clear(to),
            1 => self.drain(to),
            2..=5 => {
                let have = self.map.as_ref().map_or(Epoch(0), |map| map.epoch);
                let floor = self.oracle.told();
                self.ask(CLIENT, to, Asker::Map { floor, have }, What::Map(have));
            }
            6 if self.map.as_ref().is_some_and(|map| map.tenants.len() == 1) => {
                let (name, secret) = ("second".into(), [2; 32]);
                let command = Command::CreateTenant { name, secret, rules: Default::default() };
                self.submit(to, command);
            }
            choice => self.use_blocks(choice % 2 == 0),
        }
        Ok(())
    }

    fn reaches(&self, from: Host, to: Host) -> bool {
        !self.cut.contains(&(from, to)) && !self.cut.contains(&(to, from)) && !self.paused.contains_key(&to)
    }

    fn tenant(&mut self) -> TenantId {
        TenantId(1 + self.random.below(TENANTS) as u32)
    }

    /// A clear is asked for: again, if one was not acknowledged, or another.
    fn clear(&mut self, to: Host) {
        let again = self.last_clear.take().filter(|_| self.random.one_in(2));
        let (tenant, request) = (self.tenant(), self.request(9));
        let proposal = again.unwrap_or(Proposal { request, command: Command::ClearTenant { tenant } });
        let Some(tenant) = proposal.command.ends_blocks_of() else { return };
        self.last_clear = Some(proposal.clone());
        self.oracle.sends(proposal.request);
        let asker = Asker::Clear { request: proposal.request, tenant };
        self.ask(CLIENT, to, asker, What::Submit(proposal));
    }

    fn submit(&mut self, to: Host, command: Command) {
        let request = self.request(9);
        self.oracle.sends(request);
        self.ask(CLIENT, to, Asker::Other(request), What::Submit(Proposal { request, command }));
    }

    /// Stores a block where its primary is, or reads a prefix of any replica.
    fn use_blocks(&mut self, is_store: bool) {
        let (prefix, at) = (self.random.below(PREFIXES), self.random.below(LENGTH));
        let (tenant, writing, replica) = (self.tenant(), self.random.word(), self.random.below(2) as usize);
        let Some(map) = &self.map else { return };
        let number = prefix * LENGTH + at;
        let replicas = &map.replicas(slot_of(number)).0;
        let replica = if is_store { 0 } else { replica };
        let Some(device) = replicas.get(replica).or(replicas.first()) else { return };
        let era = map.tenants.get(&tenant).map_or(Era(0), |tenant| tenant.era);
        let Some(node) = self.node_of(device.member) else { return };
        let block = Block { tenant, number, era };
        let what = match is_store {
            true => AtNode::Store { block, word: block.word(writing) },
            false => {
                let numbers = (prefix * LENGTH..(prefix + 1) * LENGTH).collect();
                AtNode::Fetch { tenant, numbers, oldest: self.oracle.oldest(tenant) }
            }
        };
        let start = self.nodes[node].starts;
        self.send(CLIENT, PEERS as usize + node, || Event::Node(node, start, what.clone()));
    }

    /// Now and then somebody has a node emptied or cordoned, or thinks better of it; when all is quiet nobody does.
    fn drain(&mut self, to: Host) {
        let Some(map) = &self.map else { return };
        let is_quiet = self.is_quiet();
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
        self.submit(to, command);
    }
}
