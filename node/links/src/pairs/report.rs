//! What is told of a GPU's pairs.

use super::groups::{Group, GroupId, Wish};
use super::words::Why;
use super::{Over, Pairs, Peer, Slot, Worker};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{GroupReport, PairReport, PairsReport};
use kvhive_protocol::{DeviceId, Moment};
use std::time::Duration;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Pairs {
    /// Returns how far the pair with a peer is; none for a peer that is not known, and where one end does without NCCL.
    pub fn state(&self, device: DeviceId) -> Option<PairState> {
        let peer = self.peers.get(&device).filter(|peer| !peer.leaving && !peer.lacks)?;
        (!self.is_without()).then(|| self.state_of(device, peer))
    }

    fn state_of(&self, device: DeviceId, peer: &Peer) -> PairState {
        let is_busy = self.slot.as_ref().and_then(Slot::over) == Some(Over::Pair(device));
        if peer.leaving { PairState::Aborting } else { peer.stage.state(self.now, is_busy) }
    }

    /// Tells of all pairs that were ever wanted.
    pub fn snapshot(&self, now: Moment) -> PairsReport {
        let now = now.max(self.now);
        let pairs = self.peers.iter().map(|(device, peer)| {
            let state = self.state_of(*device, peer);
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
        PairsReport {
            device: self.me,
            worker: self.worker_in_words(now),
            slot: self.slot_in_words(),
            waiting: self.waiting() as u64,
            live: self.live() as u64,
            max_live: self.tuning.max_live.max(1) as u64,
            pairs: pairs.filter(was_wanted).collect(),
            groups: self.groups_in_words(now),
        }
    }

    /// Tells of what was ever wanted of several at once, and of what others have made for that; by root and members.
    fn groups_in_words(&self, now: Moment) -> Vec<GroupReport> {
        let in_use = self.slot.as_ref().and_then(Slot::over);
        let of_group = |(id, group): (&GroupId, &Group)| GroupReport {
            root: id.root,
            members: group.members.clone(),
            state: group.stage.state(now, in_use == Some(Over::Group(*id))),
            for_ms: millis(now.since(group.since)),
            transfers: group.transfers,
            bytes: group.bytes,
            wanted_bytes: 0,
            failures: 0,
            why: None,
            rests_ms: None,
        };
        let of_wish = |(members, wish): (&Vec<DeviceId>, &Wish)| {
            let until = Some(wish.until).filter(|until| *until > now);
            let own = self.own_group(members).and_then(|id| self.groups.get_key_value(&id));
            let (state, since) = match own.map(of_group) {
                Some(told) => (told.state, told.for_ms),
                None if until.is_some() => (PairState::Cold, millis(now.since(wish.since))),
                None => (PairState::Idle, millis(now.since(wish.since))),
            };
            GroupReport {
                root: self.me,
                members: members.clone(),
                state,
                for_ms: since,
                transfers: wish.transfers,
                bytes: wish.bytes,
                wanted_bytes: wish.wanted_bytes,
                failures: wish.failures,
                why: wish.why.as_ref().map(Why::to_string),
                rests_ms: until.map(|until| millis(until.since(now))),
            }
        };
        // A set that is no longer remembered may have its communicator yet.
        let is_remembered =
            |id: &GroupId, group: &Group| id.root == self.me && self.wishes.contains_key(&group.members);
        let others = self.groups.iter().filter(|(id, group)| !is_remembered(id, group)).map(of_group);
        let mut groups: Vec<GroupReport> = self.wishes.iter().map(of_wish).chain(others).collect();
        groups.sort_by(|one, other| (one.root, &one.members).cmp(&(other.root, &other.members)));
        groups
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
            Worker::Unfit => "none: there is no NCCL here".to_owned(),
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
