//! What holds after every event.

use super::peer::Stage;
use super::{Pairs, Slot, Whose, Worker};
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
        let communicators: Vec<_> = self.peers.values().filter_map(|peer| peer.communicator()).collect();
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
        for want in self.wants.values() {
            if want.until > want.deadline || !self.peers.contains_key(&want.peer) {
                return Err(format!("{want:?} waits for nothing"));
            }
        }
        self.slot_holds()
    }

    fn slot_holds(&self) -> Result<(), String> {
        let standing = |device| self.peers.get(device).and_then(|peer| peer.ready()).map(|(_, at)| at);
        let holds = match &self.slot {
            None => true,
            Some(Slot::Proposed { transfer, peer, round }) => {
                let want = self.wants.get(transfer);
                want.is_some_and(|want| want.peer == *peer && want.round == Some(*round))
                    && standing(peer).is_some()
            }
            Some(Slot::Sending { transfer, peer, communicator }) => {
                self.wants.contains_key(transfer) && standing(peer) == Some(*communicator)
            }
            Some(Slot::Granted { transfer, peer, .. }) => {
                self.expects.contains_key(transfer) && transfer.sender == *peer && standing(peer).is_some()
            }
            Some(Slot::Receiving { transfer, peer, communicator }) => {
                self.expects.contains_key(transfer) && standing(peer) == Some(*communicator)
            }
            Some(Slot::Clearing { communicator, whose }) => {
                let holder = self.holder_of(*communicator).and_then(|device| self.peers.get(&device));
                let is_answered = match whose {
                    Whose::Source(ticket) => !self.wants.values().any(|want| want.ticket == *ticket),
                    Whose::Room(transfer) => !self.expects.contains_key(transfer),
                };
                is_answered && holder.is_some_and(|peer| matches!(peer.stage, Stage::Aborting { .. }))
            }
        };
        if holds { Ok(()) } else { Err(format!("the slot is held for {:?}", self.slot)) }
    }
}
