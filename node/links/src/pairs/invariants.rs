//! What holds after every event.

use super::peer::Stage;
use super::{Over, Pairs, Slot, Whose, Worker};
use std::collections::BTreeSet;

impl Pairs {
    /// Says what does not hold.
    ///
    /// # Errors
    /// In words, what does not hold.
    pub fn invariants(&self) -> Result<(), String> {
        let live = self.live();
        if live > self.tuning.max_live.max(1) {
            return Err(format!("{live} communicators, {} may be", self.tuning.max_live));
        }
        let of_pairs = self.peers.values().filter_map(|peer| peer.stage.communicator());
        let of_groups = self.groups.values().filter_map(|group| group.stage.communicator());
        let communicators: Vec<_> = of_pairs.chain(of_groups).collect();
        if communicators.iter().collect::<BTreeSet<_>>().len() != communicators.len() {
            return Err(format!("two pairs have one communicator: {communicators:?}"));
        }
        if !matches!(self.worker, Worker::Up | Worker::Dying) && !communicators.is_empty() {
            return Err(format!("{communicators:?} without a worker"));
        }
        if self.wants.len() > self.tuning.max_transfers || self.expects.len() > self.tuning.max_transfers {
            return Err(format!("{} wants, {} expectations", self.wants.len(), self.expects.len()));
        }
        for (device, peer) in &self.peers {
            let is_rank_0 = self.me < *device;
            match peer.stage {
                Stage::Making { .. } | Stage::Offered { .. } if !is_rank_0 => {
                    return Err(format!("rank 1 offers {device} a communicator"));
                }
                Stage::Asked { .. } if is_rank_0 => return Err(format!("rank 0 asks {device}")),
                Stage::Aborting { until, .. } if until.is_some() && self.worker != Worker::Up => {
                    return Err(format!("{device}: a worker that is not there is waited for"));
                }
                _ if peer.leaving && !matches!(peer.stage, Stage::Aborting { .. }) => {
                    return Err(format!("{device} has left and is kept"));
                }
                _ => {}
            }
        }
        for (id, group) in &self.groups {
            let is_rank_0 = id.root == self.me;
            match group.stage {
                Stage::Making { .. } | Stage::Offered { .. } if !is_rank_0 => {
                    return Err(format!("{id:?} is offered by another than rank 0"));
                }
                Stage::Idle | Stage::Asked { .. } | Stage::Cold { .. } => {
                    return Err(format!("{id:?} is {:?}", group.stage));
                }
                Stage::Aborting { until, .. } if until.is_some() && self.worker != Worker::Up => {
                    return Err(format!("{id:?}: a worker that is not there is waited for"));
                }
                _ if group.members.contains(&id.root) || is_rank_0 == group.members.contains(&self.me) => {
                    return Err(format!("{id:?} is of {:?}", group.members));
                }
                _ => {}
            }
        }
        for want in self.wants.values() {
            let is_known = want.peers.iter().all(|peer| self.peers.contains_key(peer));
            if want.until > want.deadline || !is_known {
                return Err(format!("{want:?} waits for nothing"));
            }
        }
        self.slot_holds()
    }

    fn slot_holds(&self) -> Result<(), String> {
        let standing = |over| self.standing(over).map(|standing| standing.communicator);
        let holds = match &self.slot {
            None => true,
            Some(Slot::Proposed { transfer, over, round, granted }) => {
                let want = self.wants.get(transfer);
                want.is_some_and(|want| {
                    want.round == Some(*round)
                        && self.way_to(&want.peers).map(|way| way.over) == Some(*over)
                        && granted.len() < want.peers.len()
                })
            }
            Some(Slot::Sending { transfer, over, communicator }) => {
                self.wants.contains_key(transfer) && standing(*over) == Some(*communicator)
            }
            Some(Slot::Granted { transfer, over, .. }) => {
                let from = match over {
                    Over::Pair(device) => *device,
                    Over::Group(id) => id.root,
                };
                self.expects.contains_key(transfer) && transfer.sender == from && standing(*over).is_some()
            }
            Some(Slot::Receiving { transfer, over, communicator }) => {
                self.expects.contains_key(transfer) && standing(*over) == Some(*communicator)
            }
            Some(Slot::Clearing { communicator, whose }) => {
                let holder = self.holder_of(*communicator).and_then(|over| self.stage_of(over));
                let is_answered = match whose {
                    Whose::Source(ticket) => !self.wants.values().any(|want| want.ticket == *ticket),
                    Whose::Room(transfer) => !self.expects.contains_key(transfer),
                };
                is_answered && holder.is_some_and(|stage| matches!(stage, Stage::Aborting { .. }))
            }
        };
        if holds { Ok(()) } else { Err(format!("the slot is held for {:?}", self.slot)) }
    }
}
