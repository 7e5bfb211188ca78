//! How a transfer goes: want, proposal, grant, go, done; and which is next.

use super::groups::GroupId;
use super::peer::{Proposal, Stage};
use super::tuning::Flaw;
use super::words::{Command, Communicator, Effect, Ticket, Why};
use super::{Expected, Over, Pairs, Slot, Standing, Want};
use kvhive_protocol::pairs::{GroupWord, MAX_GROUP_MEMBERS, PairWord, TransferId};
use kvhive_protocol::{DeviceId, Moment};
use std::collections::BTreeSet;
use std::time::Duration;

impl Pairs {
    pub(super) fn on_want(
        &mut self,
        ticket: Ticket,
        peers: Vec<DeviceId>,
        bytes: u64,
        deadline: Moment,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(why) = self.take(ticket, peers, bytes, deadline, effects) {
            effects.extend([Effect::UseTcp { ticket, why }, Effect::SourceQuiet { ticket }]);
        }
    }

    /// Takes a want into the queue, or says why it goes by TCP at once.
    fn take(
        &mut self,
        ticket: Ticket,
        peers: Vec<DeviceId>,
        bytes: u64,
        deadline: Moment,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Why> {
        let now = self.now;
        let is_there = |device: &DeviceId| self.peers.get(device).is_some_and(|peer| !peer.leaving);
        if peers.is_empty() || peers.len() > MAX_GROUP_MEMBERS || !peers.iter().all(is_there) {
            return Err(Why::Gone);
        }
        if deadline <= now {
            return Err(Why::Late);
        }
        if peers.len() > 1 {
            self.wish(&peers, bytes);
        } else if let Some(peer) = self.peers.get_mut(&peers[0]) {
            peer.wants(now, bytes, &self.tuning);
        }
        let wait = match self.way_to(&peers) {
            Some(_) => self.tuning.grant_limit,
            None => match self.seek(&peers, effects) {
                Why::BeingMade if self.tuning.wait_for_pair > Duration::ZERO => self.tuning.wait_for_pair,
                why => return Err(why),
            },
        };
        if self.wants.len() >= self.tuning.max_transfers {
            return Err(Why::TooMany);
        }
        self.clock += 1;
        let transfer = TransferId { number: self.clock, sender: self.me, generation: self.generation };
        let until = deadline.min(now + wait);
        self.wants.insert(transfer, Want { ticket, peers, bytes, deadline, until, round: None });
        Ok(())
    }

    pub(super) fn on_refused(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let found = self.wants.iter().find(|(_, want)| want.ticket == ticket).map(|(transfer, _)| *transfer);
        let is_sent = |transfer: TransferId| matches!(self.slot, Some(Slot::Sending { transfer: sent, .. }) if sent == transfer);
        if let Some(transfer) = found.filter(|transfer| !is_sent(*transfer)) {
            self.drop_want(transfer, Why::Refused, effects);
        }
    }

    pub(super) fn on_expect(
        &mut self,
        transfer: TransferId,
        bytes: u64,
        deadline: Moment,
        effects: &mut Vec<Effect>,
    ) {
        self.clock = self.clock.max(transfer.number.min(1 << 62));
        if self.expects.contains_key(&transfer) {
            return;
        }
        match self.why_not_expected(transfer, deadline) {
            None => drop(self.expects.insert(transfer, Expected { bytes, deadline })),
            Some(why) => {
                effects.extend([Effect::NotArrived { transfer, why }, Effect::RoomQuiet { transfer }]);
            }
        }
    }

    fn why_not_expected(&self, transfer: TransferId, deadline: Moment) -> Option<Why> {
        let Some(peer) = self.peers.get(&transfer.sender).filter(|peer| !peer.leaving) else {
            return Some(Why::Gone);
        };
        let is_in_slot = self.slot.as_ref().and_then(Slot::transfer) == Some(transfer);
        if transfer.generation != peer.generation {
            return Some(Why::Gone);
        } else if deadline <= self.now {
            return Some(Why::Late);
        } else if peer.was_over(transfer) || is_in_slot {
            return Some(Why::Withdrawn);
        } else if self.expects.len() >= self.tuning.max_transfers {
            return Some(Why::TooMany);
        }
        // Who sends has a communicator that stands, so this end has joined; or has given it up since.
        match peer.stage {
            Stage::Joining { .. } | Stage::Ready { .. } => None,
            _ if self.has_group_of(transfer.sender) => None,
            _ => Some(match Why::of(peer.stage.state(self.now, false)) {
                Why::TooFewBytes => Why::PeerBroke,
                why => why,
            }),
        }
    }

    pub(super) fn on_propose(&mut self, from: DeviceId, proposal: Proposal, effects: &mut Vec<Effect>) {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Proposal { transfer, round, over, incarnation, .. } = proposal;
        let is_its = transfer.sender == from && transfer.generation == peer.generation;
        if !is_its || round <= peer.round {
            return;
        }
        self.clock = self.clock.max(transfer.number);
        (peer.round, peer.proposed) = (round, None);
        let was_over = peer.was_over(transfer);
        let known = self.stage_of(over).and_then(Stage::incarnation);
        if known != Some(incarnation) && !any {
            let word = match over {
                Over::Pair(_) => PairWord::Broken { incarnation },
                Over::Group(GroupId { root, .. }) => PairWord::Group(GroupWord::Broken { root, incarnation }),
            };
            self.say(from, word, effects);
        } else if let Some(peer) = self.peers.get_mut(&from).filter(|_| !was_over) {
            peer.proposed = Some(proposal);
        }
    }

    pub(super) fn on_grant(
        &mut self,
        from: DeviceId,
        granted: TransferId,
        granted_round: u64,
        effects: &mut Vec<Effect>,
    ) {
        let go = PairWord::Go { transfer: granted, round: granted_round };
        let want = self.wants.get(&granted).filter(|want| want.peers.contains(&from));
        if let (Some(Slot::Proposed { transfer, over, round, granted: by }), Some(want)) =
            (&mut self.slot, want)
            && (*transfer, *round) == (granted, granted_round)
        {
            by.insert(from);
            let (is_by_all, over) = (by.len() == want.peers.len(), *over);
            let Want { ticket, deadline, ref peers, .. } = *want;
            let peers = peers.clone();
            let Some(Standing { communicator, .. }) = self.standing(over).filter(|_| is_by_all) else {
                return;
            };
            self.slot = Some(Slot::Sending { transfer: granted, over, communicator });
            for one in peers {
                if let Some(peer) = self.peers.get_mut(&one) {
                    peer.went = Some((granted_round, communicator));
                }
                self.say(one, go.clone(), effects);
            }
            let send = Command::Send { communicator, transfer: granted, ticket, deadline };
            effects.push(Effect::Worker(send));
            return;
        }
        let stands = |communicator| {
            let over = self.holder_of(communicator);
            over.and_then(|over| self.standing(over)).is_some()
        };
        match self.peers.get(&from).and_then(|peer| peer.went) {
            // It came twice. Were it taken for withdrawn, what is sent could meet the next receive.
            Some((went, communicator)) if went == granted_round => {
                if stands(communicator) {
                    self.say(from, go, effects);
                }
            }
            Some((went, _)) if granted_round < went => {}
            _ => {
                let is_last = !self.wants.contains_key(&granted);
                let word = PairWord::Withdraw { transfer: granted, round: granted_round, is_last };
                self.say(from, word, effects);
            }
        }
    }

    pub(super) fn on_go(
        &mut self,
        from: DeviceId,
        gone: TransferId,
        gone_round: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Slot::Granted { transfer, over, round, .. }) = self.slot else { return };
        if (transfer, transfer.sender, round) == (gone, from, gone_round) {
            self.receive(transfer, over, effects);
        }
    }

    fn receive(&mut self, transfer: TransferId, over: Over, effects: &mut Vec<Effect>) {
        let standing = self.standing(over);
        if let (Some(Standing { communicator, .. }), Some(expected)) = (standing, self.expects.get(&transfer))
        {
            self.slot = Some(Slot::Receiving { transfer, over, communicator });
            let deadline = expected.deadline;
            effects.push(Effect::Worker(Command::Receive { communicator, transfer, deadline }));
        }
    }

    pub(super) fn on_withdraw(
        &mut self,
        from: DeviceId,
        (withdrawn, withdrawn_round): (TransferId, u64),
        is_last: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if withdrawn.sender != from {
            return;
        }
        peer.round = peer.round.max(withdrawn_round);
        if peer.proposed.as_ref().is_some_and(|proposal| proposal.round <= withdrawn_round) {
            peer.proposed = None;
        }
        // A grant of an earlier round stays: what was sent by it may have left the sender already.
        match self.slot {
            Some(Slot::Granted { transfer, round, .. })
                if transfer == withdrawn && (round == withdrawn_round || is_last) =>
            {
                self.slot = None;
            }
            _ => {}
        }
        let in_slot = self.slot.as_ref().and_then(Slot::transfer);
        if is_last && in_slot != Some(withdrawn) {
            peer.is_over(withdrawn);
            self.drop_expected(withdrawn, Why::Withdrawn, effects);
        }
    }

    pub(super) fn on_done(
        &mut self,
        communicator: Communicator,
        done: TransferId,
        effects: &mut Vec<Effect>,
    ) {
        let (over, bytes) = match self.slot {
            Some(Slot::Sending { transfer, over, communicator: at })
                if (transfer, at) == (done, communicator) =>
            {
                let Some(want) = self.wants.remove(&transfer) else { return };
                let ticket = want.ticket;
                effects.extend([Effect::Carried { ticket }, Effect::SourceQuiet { ticket }]);
                (over, want.bytes)
            }
            Some(Slot::Receiving { transfer, over, communicator: at })
                if (transfer, at) == (done, communicator) =>
            {
                let Some(expected) = self.expects.remove(&transfer) else { return };
                effects.extend([Effect::Arrived { transfer }, Effect::RoomQuiet { transfer }]);
                (over, expected.bytes)
            }
            _ => return,
        };
        self.slot = None;
        self.worker_failures = 0;
        let now = self.now;
        match over {
            Over::Pair(peer) => {
                let Some(peer) = self.peers.get_mut(&peer) else { return };
                (peer.used, peer.failures) = (now, 0);
                peer.transfers += 1;
                peer.bytes = peer.bytes.saturating_add(bytes);
            }
            Over::Group(id) => self.group_carried(id, bytes),
        }
    }

    /// Gives a free slot to the oldest transfer that can have it. One that is held for a proposal which nobody has granted goes to an
    /// older one.
    pub(super) fn fill_slot(&mut self, effects: &mut Vec<Effect>) {
        self.drop_mismatched(effects);
        let offered = self.oldest_offered();
        match self.slot {
            None => match (self.oldest_own(), offered) {
                (Some(own), Some((other, from))) if other < own => self.grant(other, from, effects),
                (Some(own), _) => self.propose(own, effects),
                (None, Some((other, from))) => self.grant(other, from, effects),
                (None, None) => {}
            },
            Some(Slot::Proposed { transfer, round, .. }) => {
                if let Some((other, from)) = offered.filter(|(other, _)| *other < transfer)
                    && !self.has_flaw(Flaw::NoWoundWait)
                {
                    self.withdraw(transfer, round, false, effects);
                    self.grant(other, from, effects);
                }
            }
            // Its sender may wait for another that has granted nothing yet, and that for this one.
            Some(Slot::Granted { transfer, over: Over::Group(_), round, is_wounded: false, .. }) => {
                let oldest = self.oldest_own().into_iter().chain(offered.map(|(other, _)| other)).min();
                if oldest.is_some_and(|oldest| oldest < transfer)
                    && !self.has_flaw(Flaw::NoWounds)
                    && let Some(Slot::Granted { is_wounded, .. }) = &mut self.slot
                {
                    *is_wounded = true;
                    let word = PairWord::Group(GroupWord::Wound { transfer, round });
                    self.say(transfer.sender, word, effects);
                }
            }
            Some(_) => {}
        }
    }

    /// Says that a proposal does not hold any more.
    pub(super) fn withdraw(
        &self,
        transfer: TransferId,
        round: u64,
        is_last: bool,
        effects: &mut Vec<Effect>,
    ) {
        for peer in self.wants.get(&transfer).iter().flat_map(|want| &want.peers) {
            self.say(*peer, PairWord::Withdraw { transfer, round, is_last }, effects);
        }
    }

    /// Returns the oldest transfer from here that can go.
    fn oldest_own(&self) -> Option<TransferId> {
        let mut wants = self.wants.iter();
        wants.find(|(_, want)| self.way_to(&want.peers).is_some()).map(|(own, _)| *own)
    }

    /// Returns the oldest transfer that is proposed and expected, over a communicator that stands.
    fn oldest_offered(&self) -> Option<(TransferId, DeviceId)> {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let offered = self.peers.iter().filter_map(|(device, peer)| {
            let proposal = peer.proposed.as_ref()?;
            let Standing { incarnation, .. } = self.standing(proposal.over)?;
            let is_of = incarnation == proposal.incarnation || any;
            (is_of && self.expects.contains_key(&proposal.transfer)).then_some((proposal.transfer, *device))
        });
        offered.min()
    }

    /// The two ends must mean the same: of those that do not, nothing is moved.
    fn drop_mismatched(&mut self, effects: &mut Vec<Effect>) {
        let mut proposals = self.peers.values().filter_map(|peer| peer.proposed.as_ref());
        let found = proposals.find(|proposal| {
            self.expects.get(&proposal.transfer).is_some_and(|expected| expected.bytes != proposal.bytes)
        });
        if let Some(transfer) = found.map(|proposal| proposal.transfer) {
            self.drop_expected(transfer, Why::Mismatch, effects);
        }
    }

    fn propose(&mut self, transfer: TransferId, effects: &mut Vec<Effect>) {
        let way = self.wants.get(&transfer).and_then(|want| self.way_to(&want.peers));
        let Some(Standing { over, incarnation, .. }) = way else { return };
        self.rounds += 1;
        let round = self.rounds;
        let Some(want) = self.wants.get_mut(&transfer) else { return };
        let is_first = want.round.replace(round).is_none();
        let Want { ticket, bytes, ref peers, .. } = *want;
        let peers = peers.clone();
        if is_first {
            effects.extend(peers.iter().map(|peer| Effect::Store { ticket, transfer, peer: *peer, bytes }));
        }
        self.slot = Some(Slot::Proposed { transfer, over, round, granted: BTreeSet::new() });
        let word = match over {
            Over::Pair(_) => PairWord::Propose { transfer, round, incarnation, bytes },
            Over::Group(_) => PairWord::Group(GroupWord::Propose { transfer, round, incarnation, bytes }),
        };
        peers.into_iter().for_each(|peer| self.say(peer, word.clone(), effects));
    }

    fn grant(&mut self, transfer: TransferId, from: DeviceId, effects: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(Proposal { round, over, .. }) = peer.proposed.take() else { return };
        let until = self.now
            + match over {
                Over::Pair(_) => self.tuning.go_limit,
                // Its sender may have to wait for others.
                Over::Group(_) => self.tuning.go_limit + self.tuning.grant_limit,
            };
        self.slot = Some(Slot::Granted { transfer, over, round, until, is_wounded: false });
        self.say(from, PairWord::Grant { transfer, round }, effects);
        if self.has_flaw(Flaw::EnqueuesEarly) {
            self.receive(transfer, over, effects);
        }
    }
}
