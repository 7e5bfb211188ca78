//! What the raft actor of a leader does about members that are to be emptied: it has it decided whether there is room, by what devices have
//! reported and with whom it has proposed and knows nothing of yet. That others are not emptied meanwhile is the registry's to see to.

use super::raft::{RaftActor, Waiting};
use kvhive_consensus::Role;
use kvhive_protocol::control::{Command, DeviceLoad, Proposal};
use kvhive_protocol::{DeviceId, Level, MemberId, WireError};
use std::collections::{BTreeMap, BTreeSet};

impl RaftActor {
    /// Has a member be emptied only where there is room for what it holds, if it may not lose blocks: whoever asks for it.
    pub(super) fn weighed(&self, proposal: Proposal) -> Result<Proposal, WireError> {
        let (member, sizes) = match proposal.command {
            Command::SetDrains { member, drains: true } => (member, None),
            Command::EmptyForSize { member, may_lose: false, from, to, .. } => (member, Some((from, to))),
            _ => return Ok(proposal),
        };
        let registry = &self.parts.registry;
        let leads = self.parts.consensus.status().role == Role::Leader;
        // What was asked before is answered as it was then.
        if !leads || registry.level() < Level::CHECKED || !registry.is_new(proposal.request) {
            return Ok(proposal);
        }
        let Some(map) = registry.map() else { return Ok(proposal) };
        let underway: BTreeSet<MemberId> = self.waiting.values().filter_map(emptied).collect();
        let loads: BTreeMap<DeviceId, &DeviceLoad> = self.parts.overseer.loads().collect();
        let command = match (kvhive_control::weigh(&map, &loads, member, &underway)?, sizes) {
            (Command::Empty { member, beside }, Some((from, to))) => {
                Command::EmptyForSize { member, may_lose: false, beside, from, to }
            }
            (command, _) => command,
        };
        Ok(Proposal { command, ..proposal })
    }
}

/// Returns whom a change begins to empty.
pub(super) fn empties(command: &Command) -> Option<MemberId> {
    match command {
        Command::SetDrains { member, drains: true }
        | Command::Empty { member, .. }
        | Command::EmptyForSize { member, .. } => Some(*member),
        _ => None,
    }
}

/// Says that others are being emptied by now than those who were counted: whoever asks again is answered by all of them.
pub(super) fn weighed_with_others() -> WireError {
    WireError::busy("others are being emptied since: whether there is room is to be looked at anew")
}

fn emptied(waiting: &Waiting) -> Option<MemberId> {
    match waiting {
        Waiting::Proposal { empties, .. } => *empties,
        _ => None,
    }
}
