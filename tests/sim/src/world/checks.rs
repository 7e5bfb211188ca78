//! What must hold after every event, and after a quiet while.

use super::{Host, World};
use crate::block::Block;
use crate::breach::{Holds, breach};
use crate::coordinator::{PEERS, settings};
use crate::node::Node;
use kvhive_protocol::{ClusterMap, Epoch, Generation, MemberId, MemberState, Slot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was seen so far.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) leaders: BTreeMap<u64, Host>,
    /// What every coordinator had after an entry.
    hashes: BTreeMap<u64, u64>,
    /// What each coordinator has applied, and its epoch.
    applied: BTreeMap<Host, (u64, Epoch)>,
    /// Each node's start, and the epoch that it serves by.
    serving: BTreeMap<usize, (u64, Epoch)>,
    /// When the newest map was applied first.
    pub(super) newest_at: u64,
    /// The newest map that any coordinator has applied.
    placed: Option<Arc<ClusterMap>>,
}

impl Seen {
    /// A coordinator starts anew, from what its disk has.
    pub(super) fn forget(&mut self, host: Host) {
        self.applied.remove(&host);
    }

    fn placed_epoch(&self) -> Option<Epoch> {
        self.placed.as_ref().map(|map| map.epoch)
    }
}

/// Whom an event may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    Nobody,
    Coordinator(Host),
    Node(usize),
    /// Anybody.
    Anybody,
    /// No process, but what clients know.
    Clients,
}

/// So many events after all was looked at it is looked at again, whoever was touched.
const WHOLE_EVERY: u64 = 512;

impl World {
    /// Checks what may not hold any more: of who was touched, and of all nodes where it is no longer true what they are measured by. What
    /// time alone changes is that a node serves no more.
    pub(super) fn check(&mut self, touched: Touched) -> Holds {
        let touched =
            if self.outcome.events.is_multiple_of(WHOLE_EVERY) { Touched::Anybody } else { touched };
        match touched {
            Touched::Nobody => Ok(()),
            Touched::Coordinator(at) => {
                let placed = self.seen.placed_epoch();
                self.check_coordinator(at)?;
                if self.seen.placed_epoch() == placed { Ok(()) } else { self.check_nodes() }
            }
            Touched::Node(at) => {
                self.check_node(at)?;
                self.nodes[at].running.as_ref().map_or(Ok(()), Node::invariants)
            }
            Touched::Clients => self.check_nodes(),
            Touched::Anybody => self.check_all(),
        }
    }

    /// Checks everything.
    pub(super) fn check_all(&mut self) -> Holds {
        for at in 0..self.coordinators.len() {
            self.check_coordinator(at)?;
        }
        self.check_nodes()?;
        self.nodes.iter().filter_map(|node| node.running.as_ref()).try_for_each(Node::invariants)
    }

    fn check_nodes(&mut self) -> Holds {
        (0..self.nodes.len()).try_for_each(|at| self.check_node(at))
    }

    fn check_coordinator(&mut self, at: usize) -> Holds {
        let Some(coordinator) = &self.coordinators[at].0.running else { return Ok(()) };
        coordinator.invariants()?;
        let Some(map) = coordinator.map() else { return Ok(()) };
        let now = (coordinator.registry.applied(), map.epoch);
        let before = self.seen.applied.insert(at, now);
        if before == Some(now) {
            return Ok(());
        }
        if before.is_some_and(|before| before.0 > now.0 || before.1 > now.1) {
            return breach("M4", format!("coordinator {at} went back to epoch {}", map.epoch));
        }
        let snapshot = coordinator.registry.snapshot();
        // Its checksum is one of everything replicated.
        let hash = snapshot.last_chunk().map_or(0, |sum| u64::from_le_bytes(*sum));
        match self.seen.hashes.get(&now.0) {
            Some(first) if *first != hash => {
                return breach("M7", format!("two states after entry {}", now.0));
            }
            // The map was looked at when another had it.
            Some(_) => {}
            None => {
                map.check().or_else(|what| breach("M7", what))?;
                self.seen.hashes.insert(now.0, hash);
            }
        }
        match &self.seen.placed {
            Some(placed) if placed.epoch > map.epoch => {}
            Some(placed) if placed.epoch == map.epoch => {
                if **placed != *map {
                    return breach("M7", format!("two maps of epoch {}", map.epoch));
                }
            }
            placed => {
                if let Some(before) = placed {
                    self.check_moves(before, &map)?;
                    self.outcome.balanced += u64::from(before.balanced != map.balanced);
                }
                (self.seen.newest_at, self.seen.placed) = (self.now, Some(map));
            }
        }
        Ok(())
    }

    fn check_node(&mut self, at: usize) -> Holds {
        let now = self.clock(PEERS as usize + at);
        let node = &self.nodes[at];
        let Some(running) = node.running.as_ref().filter(|running| running.serves(now)) else {
            return Ok(());
        };
        let (start, epoch) = (node.starts, running.epoch());
        let before = self.seen.serving.insert(at, (start, epoch));
        if before.is_some_and(|before| before.0 == start && before.1 > epoch) {
            return breach("M4", format!("node {at} went back to epoch {epoch}"));
        }
        for (tenant, era) in self.oracle.cleared() {
            let ours = running.era(*tenant);
            if ours < *era {
                let what =
                    format!("node {at} serves era {ours} of tenant {tenant} after {era} was acknowledged");
                return breach("B11", what);
            }
        }
        if running.is_leased(now)
            && let (Some((member, generation)), Some(map)) = (running.identity(), &self.seen.placed)
        {
            in_office(map, member, generation)
                .or_else(|why| breach("B14", format!("node {at} serves by its lease, but {why}")))?;
        }
        Ok(())
    }

    /// Checks that no slot has moved away from blocks that nobody else was given: its primary goes only with its member, or
    /// when another replica has been offered every block that is there.
    fn check_moves(&self, before: &ClusterMap, after: &ClusterMap) -> Holds {
        for slot in Slot::all() {
            let Some(device) = before.replicas(slot).primary() else { continue };
            if after.replicas(slot).contains(device) {
                continue;
            }
            let Some(old) = self.node_in_office(before, after, device.member) else { continue };
            let mut blocks = old.acknowledged(slot);
            // What a clear has ended is nobody's to keep.
            let era = |block: &Block| after.tenants.get(&block.tenant).map(|tenant| tenant.era);
            blocks.retain(|block| Some(block.era) == era(block));
            // Who has crashed since it was given the blocks has lost them, which nobody knows yet.
            let new = after.replicas(slot).0.iter().map(|to| self.node_in_office(after, after, to.member));
            let Some(new) = new.collect::<Option<Vec<_>>>() else { continue };
            let is_kept = |block: &Block| new.iter().any(|node| node.was_offered(block));
            if let Some(block) = blocks.iter().find(|block| !is_kept(block)) {
                let epoch = after.epoch;
                return breach(
                    "B15",
                    format!(
                        "slot {slot} was moved from {device} in epoch {epoch}, and nobody was given {block:?}"
                    ),
                );
            }
        }
        Ok(())
    }

    /// Returns the node that is this member by both maps, if it runs in that generation.
    fn node_in_office(&self, before: &ClusterMap, after: &ClusterMap, member: MemberId) -> Option<&Node> {
        let (then, now) = (before.members.get(&member)?, after.members.get(&member)?);
        if then.generation != now.generation || now.state != MemberState::Up {
            return None;
        }
        let node = then.name.strip_prefix("node-")?.parse::<usize>().ok()?;
        let running = self.nodes[node].running.as_ref()?;
        (running.identity() == Some((member, then.generation))).then_some(running)
    }

    pub(super) fn check_liveness(&self) -> Holds {
        let fail = |what: &str| breach("M12", format!("after a quiet while {what}"));
        let map = self
            .coordinators
            .iter()
            .filter_map(|(machine, _)| machine.running.as_ref()?.map())
            .max_by_key(|map| map.epoch);
        let Some(map) = map else { return fail("there is no map") };
        self.oracle.check_kept(|tenant| map.tenants.get(&tenant).map(|tenant| tenant.era))?;
        if map.members.values().any(|member| member.drains || member.cordoned) {
            // Nobody got through to end it.
            return Ok(());
        }
        // What was read much may have a replica more still.
        let wanted =
            |slot| map.balanced.get(&slot).map_or(usize::from(settings().replicas), |set| set.0.len());
        let lacks = |slot: &Slot| map.replicas(*slot).0.len() != wanted(*slot);
        if let Some(slot) = Slot::all().find(lacks) {
            let slots = Slot::all().filter(lacks).count();
            let (set, filling) = (&map.replicas(slot).0, map.filling.get(&slot));
            return fail(&format!(
                "{slots} slots lack replicas, or are on their way, as {slot} on {set:?}, {filling:?}"
            ));
        }
        if !map.filling.is_empty() {
            return fail(&format!("replicas of {} slots lack blocks", map.filling.len()));
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(running) = &node.running else { return fail("a node does not run") };
            let now = self.clock(PEERS as usize + at);
            let has_had_time = self.now - self.seen.newest_at > 5 * settings().heartbeat_ms;
            if !running.is_leased(now) || (running.epoch() != map.epoch && has_had_time) {
                let serves = running.is_leased(now);
                let (ours, newest) = (running.epoch(), map.epoch);
                return fail(&format!("node {at} serves: {serves}, by epoch {ours}; the newest is {newest}"));
            }
        }
        Ok(())
    }
}

/// Checks that a member that holds a lease is one: it never outlives its generation.
fn in_office(map: &ClusterMap, member: MemberId, generation: Generation) -> Result<(), String> {
    match map.members.get(&member) {
        // A registration may be newer than the newest map that any coordinator has applied since it returned.
        None => Ok(()),
        Some(known) if known.generation < generation => Ok(()),
        Some(known) if known.generation == generation && known.state == MemberState::Up => Ok(()),
        Some(known) => {
            Err(format!("member {member} is {:?} in generation {}", known.state, known.generation))
        }
    }
}
