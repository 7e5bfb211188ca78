//! What must hold after every event, and after a quiet while.

use super::{Host, World};
use crate::coordinator::settings;
use crate::node::{Node, TENANT};
use kvhive_protocol::{BlockKey, ClusterMap, Era, Generation, MemberId, MemberState, Slot};
use std::sync::Arc;

impl World {
    pub(super) fn check(&mut self, touched: Option<Host>) -> Result<(), String> {
        let mut newest: Option<Arc<ClusterMap>> = None;
        for at in 0..self.coordinators.len() {
            let Some(coordinator) = &self.coordinators[at].0.running else { continue };
            coordinator.invariants()?;
            let Some(map) = coordinator.map() else { continue };
            let before = self.epochs.insert(at, map.epoch);
            if before.is_some_and(|before| before > map.epoch) {
                return Err(format!("coordinator {at} went back to epoch {}", map.epoch));
            }
            if before != Some(map.epoch) {
                map.check()?;
                let applied = coordinator.registry.applied();
                let snapshot = coordinator.registry.snapshot();
                // Its checksum is one of everything replicated.
                let hash =
                    u64::from_le_bytes(*snapshot.last_chunk().expect("a checksum ends every snapshot"));
                if *self.hashes.entry(applied).or_insert(hash) != hash {
                    return Err(format!("two states after entry {applied}"));
                }
            }
            if newest.as_ref().is_none_or(|known| known.epoch < map.epoch) {
                newest = Some(map);
            }
        }
        if let Some(map) = &newest
            && map.epoch > self.newest.0
        {
            if let Some(before) = self.placed.replace(map.clone()) {
                self.check_moves(&before, map)?;
                self.outcome.balanced += u64::from(before.balanced != map.balanced);
            }
            self.newest = (map.epoch, self.now);
        }
        let now = self.moment();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(running) = node.running.as_ref().filter(|running| running.serves(now)) else { continue };
            if running.era() < self.cleared {
                return Err(format!(
                    "node {at} serves era {} after {} was acknowledged",
                    running.era(),
                    self.cleared
                ));
            }
            if running.is_leased(now)
                && let (Some((member, generation)), Some(map)) = (running.identity(), &newest)
            {
                in_office(map, member, generation)
                    .map_err(|why| format!("node {at} serves by its lease, but {why}"))?;
            }
        }
        if let Some(node) = touched.and_then(|node| self.nodes[node].running.as_ref()) {
            node.invariants()?;
        }
        Ok(())
    }

    /// Checks that no slot has moved away from blocks that nobody else was given: its primary goes only with its member, or
    /// when another replica has been offered every block that is there.
    fn check_moves(&self, before: &ClusterMap, after: &ClusterMap) -> Result<(), String> {
        for slot in Slot::all() {
            let Some(device) = before.replicas(slot).primary() else { continue };
            if after.replicas(slot).contains(device) {
                continue;
            }
            let Some(old) = self.node_in_office(before, after, device.member) else { continue };
            // What a clear has ended is nobody's to keep.
            let era = after.tenants.get(&TENANT).map(|tenant| tenant.era);
            let mut blocks = old.acknowledged(slot);
            blocks.retain(|(_, of)| Some(*of) == era);
            // Who has crashed since it was given the blocks has lost them, which nobody knows yet.
            let new = after.replicas(slot).0.iter().map(|to| self.node_in_office(after, after, to.member));
            let Some(new) = new.collect::<Option<Vec<_>>>() else { continue };
            let is_kept = |block: &(BlockKey, Era)| new.iter().any(|node| node.was_offered(block));
            if let Some((key, era)) = blocks.iter().find(|block| !is_kept(block)) {
                return Err(format!(
                    "slot {slot} was moved from {device} in epoch {}, and nobody was given {key} of era {era}",
                    after.epoch
                ));
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

    pub(super) fn check_liveness(&mut self) -> Result<(), String> {
        let fail = |what: &str| Err(format!("seed {}: after a quiet while {what}", self.seed));
        let map = self
            .coordinators
            .iter()
            .filter_map(|(machine, _)| machine.running.as_ref()?.map())
            .max_by_key(|map| map.epoch);
        let Some(map) = map else { return fail("there is no map") };
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
        let now = self.moment();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(running) = &node.running else { return fail("a node does not run") };
            let has_had_time = self.now - self.newest.1 > 5 * settings().heartbeat_ms;
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
