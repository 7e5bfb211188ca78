//! How things end that do not go well: limits, communicators that are given up, the worker's death. Each transfer is answered at
//! once; its frames are quiet when nothing that was enqueued can touch them any more.

use super::groups::GroupId;
use super::peer::Stage;
use super::words::{Command, Communicator, Counted, Effect, Why};
use super::{Over, Pairs, Slot, Whose, Worker};
use kvhive_protocol::pairs::{PairWord, TransferId};
use kvhive_protocol::{DeviceId, Moment};

impl Pairs {
    /// Ends what has come to its limit.
    pub(super) fn expire(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        if matches!(self.worker, Worker::Starting { until } if until <= now) {
            self.kill(effects);
        }
        let is_due = |until: Option<Moment>| until.is_some_and(|until| until <= now);
        let peers = self.peers.iter();
        let due: Vec<DeviceId> =
            peers.filter(|(_, peer)| is_due(peer.stage.until())).map(|(device, _)| *device).collect();
        for device in due {
            match self.peers.get(&device).map(|peer| &peer.stage) {
                Some(Stage::Aborting { until: Some(_), .. }) => self.kill(effects),
                Some(Stage::Waking { .. }) => self.give_up(device, Why::NoWorker, true, effects),
                Some(Stage::Making { .. }) => self.give_up(device, Why::Failed, false, effects),
                _ => self.give_up(device, Why::NoAnswer, true, effects),
            }
        }
        let groups = self.groups.iter();
        let due: Vec<GroupId> =
            groups.filter(|(_, group)| is_due(group.stage.until())).map(|(id, _)| *id).collect();
        for id in due {
            match self.groups.get(&id).map(|group| &group.stage) {
                Some(Stage::Aborting { until: Some(_), .. }) => self.kill(effects),
                Some(Stage::Waking { .. }) => self.give_up_group(id, Why::NoWorker, None, effects),
                Some(Stage::Making { .. }) => self.give_up_group(id, Why::Failed, None, effects),
                _ => self.give_up_group(id, Why::NoAnswer, None, effects),
            }
        }
        self.expire_slot(effects);
        let wants = self.wants.iter().filter(|(_, want)| want.until <= now);
        let late: Vec<TransferId> = wants.map(|(transfer, _)| *transfer).collect();
        for transfer in late {
            self.expire_want(transfer, effects);
        }
        let in_slot = self.slot.as_ref().and_then(Slot::transfer);
        let expects = self.expects.iter().filter(|(at, one)| one.deadline <= now && Some(**at) != in_slot);
        let late: Vec<TransferId> = expects.map(|(transfer, _)| *transfer).collect();
        for transfer in late {
            self.drop_expected(transfer, Why::Late, effects);
        }
    }

    /// What both ends have promised is ended with its communicator alone: the other end may have enqueued it.
    fn expire_slot(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let deadline = |transfer: &TransferId| self.expects.get(transfer).map(|one| one.deadline);
        let (over, limit, why) = match &self.slot {
            Some(Slot::Sending { transfer, over, .. }) => {
                (*over, self.wants.get(transfer).map(|want| want.deadline), Why::Late)
            }
            Some(Slot::Receiving { transfer, over, .. }) => (*over, deadline(transfer), Why::Late),
            Some(Slot::Granted { transfer, over, until, .. }) => {
                (*over, deadline(transfer).map(|deadline| deadline.min(*until)), Why::NoAnswer)
            }
            Some(Slot::Proposed { .. } | Slot::Clearing { .. }) | None => return,
        };
        if limit.is_none_or(|limit| limit <= now) {
            self.give_up_over(over, why, effects);
        }
    }

    fn give_up_over(&mut self, over: Over, why: Why, effects: &mut Vec<Effect>) {
        match over {
            Over::Pair(device) => self.give_up(device, why, true, effects),
            Over::Group(id) => self.give_up_group(id, why, None, effects),
        }
    }

    fn expire_want(&mut self, transfer: TransferId, effects: &mut Vec<Effect>) {
        let Some(want) = self.wants.get(&transfer) else { return };
        if matches!(self.slot, Some(Slot::Sending { transfer: sent, .. }) if sent == transfer) {
            return;
        }
        let is_ready = self.way_to(&want.peers).is_some();
        let why = match (want.deadline <= self.now, is_ready) {
            (true, _) => Why::Late,
            (false, true) => Why::NotGranted,
            (false, false) => Why::BeingMade,
        };
        self.drop_want(transfer, why, effects);
    }

    /// Answers a want that is not enqueued.
    pub(super) fn drop_want(&mut self, transfer: TransferId, why: Why, effects: &mut Vec<Effect>) {
        let Some(want) = self.wants.get(&transfer) else { return };
        let (ticket, round) = (want.ticket, want.round);
        if matches!(self.slot, Some(Slot::Proposed { transfer: held, .. }) if held == transfer) {
            self.slot = None;
        }
        if let Some(round) = round {
            self.withdraw(transfer, round, true, effects);
        }
        self.wants.remove(&transfer);
        effects.extend([Effect::UseTcp { ticket, why }, Effect::SourceQuiet { ticket }]);
    }

    /// Answers an expectation that is not promised.
    pub(super) fn drop_expected(&mut self, transfer: TransferId, why: Why, effects: &mut Vec<Effect>) {
        if self.expects.remove(&transfer).is_some() {
            effects.extend([Effect::NotArrived { transfer, why }, Effect::RoomQuiet { transfer }]);
        }
    }

    /// Gives up what there is with a peer, and answers all transfers with it.
    pub(super) fn give_up(&mut self, device: DeviceId, why: Why, tell: bool, effects: &mut Vec<Effect>) {
        let (now, is_enqueued) = (self.now, self.end_transfers_over(Over::Pair(device), why, effects));
        let Some(peer) = self.peers.get_mut(&device) else { return };
        let is_idle = matches!(peer.stage, Stage::Idle | Stage::Cold { .. } | Stage::Aborting { .. });
        if is_idle {
            return;
        }
        effects.push(Effect::Count(Counted::GivenUp(why)));
        peer.why = Some(why);
        peer.wanted_bytes = 0;
        if why.rests() {
            peer.failures = peer.failures.saturating_add(1);
        }
        let incarnation = match &peer.stage {
            Stage::Waking { offer: Some((incarnation, _)), .. } => Some(*incarnation),
            _ => peer.stage.incarnation(),
        };
        match peer.stage.communicator() {
            None => peer.rest(now, &self.tuning, why.rests()),
            Some(communicator) => {
                let is_joining = matches!(peer.stage, Stage::Joining { .. });
                let until = self.abort_communicator(communicator, is_enqueued || is_joining, why, effects);
                self.enter(device, Stage::Aborting { communicator, until, rests: why.rests() });
            }
        }
        if let Some(incarnation) = incarnation.filter(|_| tell) {
            self.say(device, PairWord::Broken { incarnation }, effects);
        }
    }

    /// Has the worker give up a communicator; returns by when it is to have done so, unless it is to be dead by then.
    pub(super) fn abort_communicator(
        &self,
        communicator: Communicator,
        is_used: bool,
        why: Why,
        effects: &mut Vec<Effect>,
    ) -> Option<Moment> {
        if self.worker != Worker::Up {
            return None;
        }
        effects.push(Effect::Worker(match is_used || why == Why::Failed {
            true => Command::Abort { communicator },
            false => Command::Close { communicator },
        }));
        Some(self.now + self.tuning.abort_limit)
    }

    /// A GPU has left or started anew: nothing that it is in is of use any more.
    pub(super) fn give_up_all_with(&mut self, device: DeviceId, effects: &mut Vec<Effect>) {
        self.give_up(device, Why::Gone, false, effects);
        self.give_up_groups_with(device, Why::Gone, effects);
        let wants = self.wants.iter().filter(|(_, want)| want.peers.contains(&device));
        let wants: Vec<TransferId> = wants.map(|(transfer, _)| *transfer).collect();
        for transfer in wants {
            self.drop_want(transfer, Why::Gone, effects);
        }
    }

    /// Answers all transfers over a communicator, and those to it that may be meant to come over it; says whether one of them is enqueued.
    pub(super) fn end_transfers_over(&mut self, over: Over, why: Why, effects: &mut Vec<Effect>) -> bool {
        let mut is_enqueued = false;
        if self.slot.as_ref().and_then(Slot::over) == Some(over) {
            let enqueued = match self.slot.take() {
                Some(Slot::Sending { transfer, communicator, .. }) => {
                    let want = self.wants.remove(&transfer);
                    want.map(|want| {
                        effects.push(Effect::UseTcp { ticket: want.ticket, why });
                        (communicator, Whose::Source(want.ticket))
                    })
                }
                Some(Slot::Receiving { transfer, communicator, .. }) => {
                    let expected = self.expects.remove(&transfer);
                    expected.map(|_| {
                        effects.push(Effect::NotArrived { transfer, why });
                        (communicator, Whose::Room(transfer))
                    })
                }
                _ => None,
            };
            is_enqueued = enqueued.is_some();
            self.slot = enqueued.map(|(communicator, whose)| Slot::Clearing { communicator, whose });
        }
        // Who sends to it, and to whom it sends.
        let (root, members) = match over {
            Over::Pair(device) => (device, std::slice::from_ref(&device).to_vec()),
            Over::Group(id) => {
                (id.root, self.groups.get(&id).map(|group| group.members.clone()).unwrap_or_default())
            }
        };
        let is_own = matches!(over, Over::Pair(_)) || root == self.me;
        let wants = self.wants.iter().filter(|(_, want)| is_own && want.peers == members);
        let wants: Vec<TransferId> = wants.map(|(transfer, _)| *transfer).collect();
        for transfer in wants {
            self.drop_want(transfer, why, effects);
        }
        let in_slot = self.slot.as_ref().and_then(Slot::transfer);
        let expects =
            self.expects.keys().filter(|transfer| transfer.sender == root && Some(**transfer) != in_slot);
        let expects: Vec<TransferId> = expects.copied().collect();
        for transfer in expects {
            self.drop_expected(transfer, why, effects);
        }
        if let Some(peer) = self.peers.get_mut(&root) {
            peer.proposed.take_if(|proposal| proposal.over == over);
        }
        is_enqueued
    }

    pub(super) fn on_failed(&mut self, communicator: Communicator, effects: &mut Vec<Effect>) {
        if let Some(over) = self.holder_of(communicator) {
            self.give_up_over(over, Why::Failed, effects);
        }
    }

    pub(super) fn on_closed(&mut self, communicator: Communicator, effects: &mut Vec<Effect>) {
        let Some(over) = self.holder_of(communicator) else { return };
        // Whatever the worker closes without being told has failed.
        self.give_up_over(over, Why::Failed, effects);
        match over {
            Over::Pair(device) => self.nothing_is_left(device),
            Over::Group(id) => self.forget_group(id),
        }
        if matches!(self.slot, Some(Slot::Clearing { communicator: at, .. }) if at == communicator) {
            self.clear_slot(effects);
        }
    }

    /// A peer's communicator is no more.
    fn nothing_is_left(&mut self, device: DeviceId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&device) else { return };
        let Stage::Aborting { rests, .. } = peer.stage else { return };
        if peer.leaving {
            self.forget_peer(device);
        } else {
            peer.rest(now, &self.tuning, rests);
        }
    }

    fn clear_slot(&mut self, effects: &mut Vec<Effect>) {
        match self.slot.take() {
            Some(Slot::Clearing { whose: Whose::Source(ticket), .. }) => {
                effects.push(Effect::SourceQuiet { ticket });
            }
            Some(Slot::Clearing { whose: Whose::Room(transfer), .. }) => {
                effects.push(Effect::RoomQuiet { transfer });
            }
            other => self.slot = other,
        }
    }

    /// Kills the worker: what it does not end is ended by its death.
    fn kill(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.worker, Worker::Dying | Worker::Down { .. } | Worker::Unfit) {
            return;
        }
        self.worker = Worker::Dying;
        effects.push(Effect::KillWorker);
        self.give_up_all(effects);
    }

    fn give_up_all(&mut self, effects: &mut Vec<Effect>) {
        let devices: Vec<DeviceId> = self.peers.keys().copied().collect();
        for device in devices {
            let is_live = self.peers.get(&device).is_some_and(|peer| peer.stage.is_live());
            if is_live {
                self.give_up(device, Why::NoWorker, true, effects);
            }
            if let Some(Stage::Aborting { until, .. }) =
                self.peers.get_mut(&device).map(|peer| &mut peer.stage)
            {
                *until = None;
            }
        }
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.give_up_group(id, Why::NoWorker, None, effects);
            if let Some(Stage::Aborting { until, .. }) =
                self.groups.get_mut(&id).map(|group| &mut group.stage)
            {
                *until = None;
            }
        }
    }

    pub(super) fn on_died(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.worker, Worker::Down { .. } | Worker::Unfit) {
            return;
        }
        self.worker = Worker::Dying;
        self.give_up_all(effects);
        let devices: Vec<DeviceId> = self.peers.keys().copied().collect();
        for device in devices {
            self.nothing_is_left(device);
        }
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.forget_group(id);
        }
        self.clear_slot(effects);
        self.worker_failures = self.worker_failures.saturating_add(1);
        self.worker = Worker::Down { until: self.now + self.tuning.rest(self.worker_failures) };
    }
}
