//! What is told of a GPU's pairs.

use super::words::Why;
use super::{Over, Pairs, Slot, Worker};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{GroupReport, PairReport, PairsReport};
use kvhive_protocol::{DeviceId, Moment};
use std::time::Duration;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Pairs {
    /// Returns how far the pair with a peer is; none for a peer that is not known.
    pub fn state(&self, device: DeviceId) -> Option<PairState> {
        let peer = self.peers.get(&device).filter(|peer| !peer.leaving)?;
        let is_busy = self.slot.as_ref().and_then(Slot::over) == Some(Over::Pair(device));
        Some(peer.stage.state(self.now, is_busy))
    }

    /// Tells of all pairs that were ever wanted.
    pub fn snapshot(&self, now: Moment) -> PairsReport {
        let now = now.max(self.now);
        let pairs = self.peers.iter().map(|(device, peer)| {
            let state = self.state(*device).unwrap_or(PairState::Aborting);
            let until = match peer.stage {
                super::Stage::Cold { until } if until > now => Some(until),
                _ => None,
            };
            PairReport {
                peer: *device,
                state: if state == PairState::Cold && until.is_none() { PairState::Idle } else { state },
                for_ms: millis(now.since(peer.since)),
                transfers: peer.transfers,
                bytes: peer.bytes,
                wanted_bytes: peer.wanted_bytes,
                failures: peer.failures,
                why: peer.why.as_ref().map(Why::to_string),
                rests_ms: until.map(|until| millis(until.since(now))),
            }
        });
        let was_wanted = |pair: &PairReport| {
            pair.state != PairState::Idle || pair.wanted_bytes + pair.transfers > 0 || pair.why.is_some()
        };
        let in_use = self.slot.as_ref().and_then(Slot::over);
        let groups = self.groups.iter().map(|(id, group)| GroupReport {
            root: id.root,
            members: group.members.clone(),
            state: group.stage.state(now, in_use == Some(Over::Group(*id))),
            for_ms: millis(now.since(group.since)),
            transfers: group.transfers,
            bytes: group.bytes,
        });
        PairsReport {
            device: self.me,
            worker: self.worker_in_words(now),
            slot: self.slot_in_words(),
            waiting: self.waiting() as u64,
            live: self.live() as u64,
            max_live: self.tuning.max_live.max(1) as u64,
            pairs: pairs.filter(was_wanted).collect(),
            groups: groups.collect(),
        }
    }

    /// Returns how many wants wait for the slot.
    fn waiting(&self) -> usize {
        let is_held = self.slot.as_ref().and_then(Slot::transfer).is_some_and(|held| held.sender == self.me);
        self.wants.len() - usize::from(is_held)
    }

    fn worker_in_words(&self, now: Moment) -> String {
        match self.worker {
            Worker::Down { until } if until > now => {
                format!("not started again for {} ms", millis(until.since(now)))
            }
            Worker::Down { .. } => "not started".to_owned(),
            Worker::Starting { .. } => "starting".to_owned(),
            Worker::Up => "runs".to_owned(),
            Worker::Dying => "being killed".to_owned(),
        }
    }

    fn slot_in_words(&self) -> String {
        match &self.slot {
            None => "free".to_owned(),
            Some(Slot::Proposed { transfer, over, .. }) => {
                format!("proposes {transfer} to {}", self.all_of(*over))
            }
            Some(Slot::Sending { transfer, over, .. }) => {
                format!("sends {transfer} to {}", self.all_of(*over))
            }
            Some(Slot::Granted { transfer, .. }) => format!("has granted {transfer}"),
            Some(Slot::Receiving { transfer, .. }) => format!("receives {transfer}"),
            Some(Slot::Clearing { .. }) => "what was enqueued is being given up".to_owned(),
        }
    }

    fn all_of(&self, over: Over) -> String {
        match over {
            Over::Pair(device) => device.to_string(),
            Over::Group(id) => {
                let members = self.groups.get(&id).into_iter().flat_map(|group| &group.members);
                members.map(DeviceId::to_string).collect::<Vec<_>>().join(", ")
            }
        }
    }
}
