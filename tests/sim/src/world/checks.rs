//! What must hold after every event, and after a quiet while.

use super::{Host, World};
use crate::coordinator::settings;
use crate::node::Node;
use kvhive_protocol::{ClusterMap, Generation, MemberId, MemberState, Slot};
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
                let (applied, hash) = (coordinator.registry.applied(), coordinator.registry.state_hash());
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
            if let (Some((member, generation)), Some(map)) = (running.identity(), &newest) {
                in_office(map, member, generation)
                    .map_err(|why| format!("node {at} serves by its lease, but {why}"))?;
            }
        }
        if let Some(node) = touched.and_then(|node| self.nodes[node].running.as_ref()) {
            node.invariants()?;
        }
        Ok(())
    }

    /// Checks that no slot has moved away from blocks: its primary goes only with its member, or when nothing is there.
    fn check_moves(&self, before: &ClusterMap, after: &ClusterMap) -> Result<(), String> {
        for slot in Slot::all() {
            let Some(device) = before.replicas(slot).primary() else { continue };
            let (then, now) = (before.members.get(&device.member), after.members.get(&device.member));
            let lives_on = then
                .zip(now)
                .filter(|(then, now)| then.generation == now.generation && now.state == MemberState::Up);
            if lives_on.is_none() || after.replicas(slot).contains(device) {
                continue;
            }
            let node = then.and_then(|member| member.name.strip_prefix("node-")?.parse::<usize>().ok());
            let running = node.and_then(|node| self.nodes[node].running.as_ref());
            let is_that =
                |running: &&Node| running.identity() == then.map(|member| (device.member, member.generation));
            if running.filter(is_that).is_some_and(|running| running.has_any(slot)) {
                return Err(format!(
                    "slot {slot} was moved from {device}, where blocks are, in epoch {}",
                    after.epoch
                ));
            }
        }
        Ok(())
    }

    pub(super) fn check_liveness(&mut self) -> Result<(), String> {
        let fail = |what: &str| Err(format!("seed {}: after a quiet while {what}", self.seed));
        let map = self
            .coordinators
            .iter()
            .filter_map(|(machine, _)| machine.running.as_ref()?.map())
            .max_by_key(|map| map.epoch);
        let Some(map) = map else { return fail("there is no map") };
        if map.slots.iter().any(|set| set.0.len() != usize::from(settings().replicas)) {
            return fail("a slot lacks replicas");
        }
        let now = self.moment();
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(running) = &node.running else { return fail("a node does not run") };
            let has_had_time = self.now - self.newest.1 > 5 * settings().heartbeat_ms;
            if !running.serves(now) || (running.epoch() != map.epoch && has_had_time) {
                let serves = running.serves(now);
                let (ours, newest) = (running.epoch(), map.epoch);
                return fail(&format!("node {at} serves: {serves}, by epoch {ours}; the newest is {newest}"));
            }
        }
        Ok(())
    }
}

/// Checks that a member that serves is one: a lease never outlives its generation.
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
