//! How a transfer goes: want, proposal, grant, go, done; and which is next.

use super::peer::Proposal;
use super::tuning::Flaw;
use super::words::{Command, Communicator, Effect, Ticket, Why};
use super::{Expected, Pairs, Slot, Want};
use kvhive_protocol::pairs::{PairWord, TransferId};
use kvhive_protocol::{DeviceId, Moment};
use std::time::Duration;

impl Pairs {
    pub(super) fn on_want(
        &mut self,
        ticket: Ticket,
        peer: DeviceId,
        bytes: u64,
        deadline: Moment,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(why) = self.take(ticket, peer, bytes, deadline, effects) {
            effects.extend([Effect::UseTcp { ticket, why }, Effect::SourceQuiet { ticket }]);
        }
    }

    /// Takes a want into the queue, or says why it goes by TCP at once.
    fn take(
        &mut self,
        ticket: Ticket,
        device: DeviceId,
        bytes: u64,
        deadline: Moment,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Why> {
        let (now, tuning) = (self.now, &self.tuning);
        let peer = self.peers.get_mut(&device).filter(|peer| !peer.leaving).ok_or(Why::Gone)?;
        if deadline <= now {
            return Err(Why::Late);
        }
        peer.wants(now, bytes, tuning);
        let wait = match peer.ready() {
            Some(_) => tuning.grant_limit,
            None => match self.seek(device, effects) {
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
        self.wants.insert(transfer, Want { ticket, peer: device, bytes, deadline, until, round: None });
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
            super::Stage::Joining { .. } | super::Stage::Ready { .. } => None,
            _ => Some(match Why::of(peer.state(self.now, false)) {
                Why::TooFewBytes => Why::PeerBroke,
                why => why,
            }),
        }
    }

    pub(super) fn on_propose(&mut self, from: DeviceId, proposal: Proposal, effects: &mut Vec<Effect>) {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Proposal { transfer, round, incarnation, .. } = proposal;
        let is_its = transfer.sender == from && transfer.generation == peer.generation;
        if !is_its || round <= peer.round {
            return;
        }
        self.clock = self.clock.max(transfer.number);
        (peer.round, peer.proposed) = (round, None);
        if peer.incarnation() != Some(incarnation) && !any {
            self.say(from, PairWord::Broken { incarnation }, effects);
        } else if !peer.was_over(transfer) {
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
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let standing = peer.ready().map(|(_, communicator)| communicator);
        let is_awaited = matches!(self.slot, Some(Slot::Proposed { transfer, peer, round })
            if (transfer, peer, round) == (granted, from, granted_round));
        if let (true, Some(communicator), Some(want)) = (is_awaited, standing, self.wants.get(&granted)) {
            peer.went = Some((granted_round, communicator));
            self.slot = Some(Slot::Sending { transfer: granted, peer: from, communicator });
            let (ticket, deadline) = (want.ticket, want.deadline);
            self.say(from, go, effects);
            let send = Command::Send { communicator, transfer: granted, ticket, deadline };
            effects.push(Effect::Worker(send));
            return;
        }
        match peer.went {
            // It came twice. Were it taken for withdrawn, what is sent could meet the next receive.
            Some((went, communicator)) if went == granted_round => {
                if standing == Some(communicator) {
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
        let Some(Slot::Granted { transfer, peer, round, .. }) = self.slot else { return };
        if (transfer, peer, round) == (gone, from, gone_round) {
            self.receive(transfer, peer, effects);
        }
    }

    fn receive(&mut self, transfer: TransferId, peer: DeviceId, effects: &mut Vec<Effect>) {
        let ready = self.peers.get(&peer).and_then(|peer| peer.ready());
        if let (Some((_, communicator)), Some(expected)) = (ready, self.expects.get(&transfer)) {
            self.slot = Some(Slot::Receiving { transfer, peer, communicator });
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
        let (peer, bytes) = match self.slot {
            Some(Slot::Sending { transfer, peer, communicator: at })
                if (transfer, at) == (done, communicator) =>
            {
                let Some(want) = self.wants.remove(&transfer) else { return };
                let ticket = want.ticket;
                effects.extend([Effect::Carried { ticket }, Effect::SourceQuiet { ticket }]);
                (peer, want.bytes)
            }
            Some(Slot::Receiving { transfer, peer, communicator: at })
                if (transfer, at) == (done, communicator) =>
            {
                let Some(expected) = self.expects.remove(&transfer) else { return };
                effects.extend([Effect::Arrived { transfer }, Effect::RoomQuiet { transfer }]);
                (peer, expected.bytes)
            }
            _ => return,
        };
        self.slot = None;
        self.worker_failures = 0;
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&peer) {
            (peer.used, peer.failures) = (now, 0);
            peer.transfers += 1;
            peer.bytes = peer.bytes.saturating_add(bytes);
        }
    }

    /// Gives a free slot to the oldest transfer that can have it. One that is held for a proposal which nobody has granted goes to an
    /// older one.
    pub(super) fn fill_slot(&mut self, effects: &mut Vec<Effect>) {
        self.drop_mismatched(effects);
        let offered = self.oldest_offered();
        match self.slot {
            None => {
                let is_ready =
                    |peer: DeviceId| self.peers.get(&peer).is_some_and(|peer| peer.ready().is_some());
                let own = self.wants.iter().find(|(_, want)| is_ready(want.peer)).map(|(own, _)| *own);
                match (own, offered) {
                    (Some(own), Some((other, from))) if other < own => self.grant(other, from, effects),
                    (Some(own), _) => self.propose(own, effects),
                    (None, Some((other, from))) => self.grant(other, from, effects),
                    (None, None) => {}
                }
            }
            Some(Slot::Proposed { transfer, peer, round }) => {
                if let Some((other, from)) = offered.filter(|(other, _)| *other < transfer)
                    && !self.has_flaw(Flaw::NoWoundWait)
                {
                    self.say(peer, PairWord::Withdraw { transfer, round, is_last: false }, effects);
                    self.grant(other, from, effects);
                }
            }
            Some(_) => {}
        }
    }

    /// Returns the oldest transfer that is proposed and expected, over a communicator that stands.
    fn oldest_offered(&self) -> Option<(TransferId, DeviceId)> {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let offered = self.peers.iter().filter_map(|(device, peer)| {
            let proposal = peer.proposed.as_ref()?;
            let (incarnation, _) = peer.ready()?;
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
        let Some(want) = self.wants.get_mut(&transfer) else { return };
        let Some((incarnation, _)) = self.peers.get(&want.peer).and_then(|peer| peer.ready()) else { return };
        self.rounds += 1;
        let (round, Want { ticket, peer, bytes, .. }) = (self.rounds, want.clone());
        if want.round.replace(round).is_none() {
            effects.push(Effect::Store { ticket, transfer, peer, bytes });
        }
        self.slot = Some(Slot::Proposed { transfer, peer, round });
        self.say(peer, PairWord::Propose { transfer, round, incarnation, bytes }, effects);
    }

    fn grant(&mut self, transfer: TransferId, from: DeviceId, effects: &mut Vec<Effect>) {
        let until = self.now + self.tuning.go_limit;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(Proposal { round, .. }) = peer.proposed.take() else { return };
        self.slot = Some(Slot::Granted { transfer, peer: from, round, until });
        self.say(from, PairWord::Grant { transfer, round }, effects);
        if self.has_flaw(Flaw::EnqueuesEarly) {
            self.receive(transfer, from, effects);
        }
    }
}
