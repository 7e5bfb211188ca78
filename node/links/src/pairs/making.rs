//! How a communicator comes to be: rank 0, the smaller device, has an id made and offers it; rank 1 joins and says so; then rank 0
//! joins. So nobody joins alone, and each end knows of which communicator the other speaks.

use super::groups::GroupId;
use super::peer::Stage;
use super::tuning::Flaw;
use super::words::{Command, Communicator, Counted, Effect, Why};
use super::{Over, Pairs, Slot, Worker};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{Incarnation, PairWord, UniqueId};
use kvhive_protocol::{DeviceId, Moment};

impl Pairs {
    /// Has a communicator be made if enough was wanted, and returns why there is none yet.
    pub(super) fn seek(&mut self, peers: &[DeviceId], effects: &mut Vec<Effect>) -> Why {
        let &[device] = peers else { return self.seek_group(peers, effects) };
        let Some(peer) = self.peers.get(&device) else { return Why::Gone };
        if peer.lacks || self.is_without() {
            return Why::Without;
        }
        let state = peer.stage.state(self.now, false);
        if state != PairState::Idle {
            return Why::of(state);
        }
        if peer.wanted_bytes < self.tuning.make_after_bytes {
            return Why::TooFewBytes;
        }
        let after = peer.newest;
        if !self.has_worker() {
            return Why::NoWorker;
        }
        if !self.has_room(effects) {
            return Why::NoRoom;
        }
        if self.me > device {
            let until = self.now + self.tuning.offer_limit;
            self.enter(device, Stage::Asked { until });
            self.say(device, PairWord::Ask { after }, effects);
        } else {
            self.begin(device, effects);
        }
        Why::BeingMade
    }

    /// Says whether there is a worker, or can be one.
    pub(super) fn has_worker(&self) -> bool {
        match self.worker {
            Worker::Up | Worker::Starting { .. } => true,
            Worker::Down { until } => until <= self.now,
            Worker::Dying | Worker::Unfit => false,
        }
    }

    pub(super) fn live(&self) -> usize {
        let pairs = self.peers.values().filter(|peer| peer.stage.is_live()).count();
        pairs + self.groups.len()
    }

    /// Says whether there may be one more communicator. If not, the one that was used longest ago is closed, unless that was lately.
    pub(super) fn has_room(&mut self, effects: &mut Vec<Effect>) -> bool {
        if self.live() < self.tuning.max_live.max(1) {
            return true;
        }
        // What is being closed makes room soon: not one more is closed for that.
        let stages =
            self.peers.values().map(|peer| &peer.stage).chain(self.groups.values().map(|group| &group.stage));
        let closing = stages.filter(|stage| matches!(stage, Stage::Aborting { .. })).count();
        if self.live() - closing < self.tuning.max_live.max(1) {
            return false;
        }
        let in_use = self.slot.as_ref().and_then(Slot::over);
        let is_wanted = |device: &DeviceId| {
            in_use == Some(Over::Pair(*device))
                || self.wants.values().any(|want| want.peers == [*device])
                || self.expects.keys().any(|transfer| transfer.sender == *device)
        };
        // A proposal alone does not count: its withdrawal may have been lost.
        let closable = self.peers.iter().filter(|(device, peer)| {
            let is_old = peer.used + self.tuning.keep <= self.now;
            peer.stage.ready().is_some() && is_old && !is_wanted(device)
        });
        let oldest = closable.map(|(device, peer)| (peer.used, *device)).min();
        match (oldest, self.closable_group()) {
            (Some((used, _)), Some((other, id))) if other < used => {
                self.give_up_group(id, Why::MadeRoom, None, effects);
            }
            (Some((_, device)), _) => self.give_up(device, Why::MadeRoom, true, effects),
            (None, Some((_, id))) => self.give_up_group(id, Why::MadeRoom, None, effects),
            (None, None) => {}
        }
        false
    }

    /// Rank 0 makes one, as soon as there is a worker.
    fn begin(&mut self, device: DeviceId, effects: &mut Vec<Effect>) {
        match self.worker {
            Worker::Up => self.make(device, effects),
            _ => self.wake(device, None, effects),
        }
    }

    /// Has the worker be started, unless it is; returns by when it is to have been.
    pub(super) fn start_worker(&mut self, effects: &mut Vec<Effect>) -> Moment {
        let until = self.now + self.tuning.start_limit;
        if matches!(self.worker, Worker::Down { .. }) {
            self.worker = Worker::Starting { until };
            effects.push(Effect::StartWorker);
        }
        until
    }

    fn wake(&mut self, device: DeviceId, offer: Option<(Incarnation, UniqueId)>, effects: &mut Vec<Effect>) {
        let until = self.start_worker(effects);
        self.enter(device, Stage::Waking { until, offer });
    }

    pub(super) fn on_started(&mut self, effects: &mut Vec<Effect>) {
        if !matches!(self.worker, Worker::Starting { .. }) {
            return;
        }
        self.worker = Worker::Up;
        let devices: Vec<DeviceId> = self.peers.keys().copied().collect();
        for device in devices {
            match self.peers.get(&device).map(|peer| peer.stage.clone()) {
                Some(Stage::Waking { offer: None, .. }) => self.make(device, effects),
                Some(Stage::Waking { offer: Some((incarnation, id)), .. }) => {
                    self.join(device, incarnation, id, 1, effects);
                    self.say(device, PairWord::Accept { incarnation }, effects);
                }
                _ => {}
            }
        }
        self.groups_wake(effects);
    }

    /// Nothing is done by a worker that cannot be.
    pub(super) fn on_unfit(&mut self, effects: &mut Vec<Effect>) {
        if matches!(self.worker, Worker::Starting { .. }) {
            self.worker = Worker::Unfit;
            let devices: Vec<DeviceId> = self.peers.keys().copied().collect();
            for device in devices {
                self.give_up(device, Why::Without, true, effects);
            }
            let ids: Vec<GroupId> = self.groups.keys().copied().collect();
            for id in ids {
                self.give_up_group(id, Why::Without, None, effects);
            }
        }
    }

    fn make(&mut self, device: DeviceId, effects: &mut Vec<Effect>) {
        let incarnation = self.next_incarnation();
        let (communicator, until) = (self.next_communicator(), self.now + self.tuning.offer_limit);
        self.enter(device, Stage::Making { incarnation, communicator, until });
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.newest = incarnation;
        }
        effects.push(Effect::Worker(Command::Id { communicator }));
    }

    pub(super) fn on_made(&mut self, communicator: Communicator, id: UniqueId, effects: &mut Vec<Effect>) {
        let device = match self.holder_of(communicator) {
            Some(Over::Pair(device)) => device,
            Some(Over::Group(group)) => return self.on_group_made(group, id, effects),
            None => return,
        };
        let Some(Stage::Making { incarnation, .. }) = self.peers.get(&device).map(|peer| &peer.stage) else {
            return;
        };
        let (incarnation, until) = (*incarnation, self.now + self.tuning.offer_limit);
        self.enter(device, Stage::Offered { incarnation, communicator, id: id.clone(), until });
        self.say(device, PairWord::Offer { incarnation, id }, effects);
    }

    fn join(
        &mut self,
        device: DeviceId,
        incarnation: Incarnation,
        id: UniqueId,
        rank: u8,
        effects: &mut Vec<Effect>,
    ) {
        let communicator = match self.peers.get(&device).and_then(|peer| peer.stage.communicator()) {
            Some(communicator) => communicator,
            None => self.next_communicator(),
        };
        let until = self.now + self.tuning.join_limit;
        self.enter(device, Stage::Joining { incarnation, communicator, until });
        effects.push(Effect::Worker(Command::Join { communicator, id, rank, of: 2 }));
    }

    pub(super) fn on_ready(&mut self, communicator: Communicator, effects: &mut Vec<Effect>) {
        let device = match self.holder_of(communicator) {
            Some(Over::Pair(device)) => device,
            Some(Over::Group(group)) => return self.on_group_ready(group, effects),
            None => return,
        };
        let (now, grant_limit) = (self.now, self.tuning.grant_limit);
        let Some(peer) = self.peers.get_mut(&device) else { return };
        let Stage::Joining { incarnation, .. } = peer.stage else { return };
        effects.push(Effect::Count(Counted::Made));
        peer.enter(now, Stage::Ready { incarnation, communicator });
        peer.used = now;
        for want in self.wants.values_mut().filter(|want| want.peers == [device]) {
            want.until = want.deadline.min(now + grant_limit);
        }
    }

    /// Rank 1 would like one. It does not have that which it names, nor any later one.
    pub(super) fn on_ask(&mut self, from: DeviceId, after: Incarnation, effects: &mut Vec<Effect>) {
        if from < self.me {
            return;
        }
        let Some(peer) = self.peers.get(&from) else { return };
        match peer.stage {
            Stage::Idle | Stage::Cold { .. } => {
                let can_begin = self.has_worker() && self.has_room(effects);
                if can_begin {
                    self.begin(from, effects);
                }
            }
            Stage::Joining { incarnation, .. } | Stage::Ready { incarnation, .. } if incarnation <= after => {
                self.give_up(from, Why::PeerBroke, false, effects);
            }
            // An offer is on its way, or it asked before it had that.
            _ => {}
        }
    }

    pub(super) fn on_offer(
        &mut self,
        from: DeviceId,
        incarnation: Incarnation,
        id: UniqueId,
        effects: &mut Vec<Effect>,
    ) {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if from > self.me || (incarnation <= peer.newest && !any) {
            return;
        }
        peer.newest = incarnation;
        match peer.stage {
            Stage::Idle | Stage::Asked { .. } | Stage::Cold { .. } => {
                if !self.has_worker() || !self.has_room(effects) {
                    self.say(from, PairWord::Broken { incarnation }, effects);
                } else if self.worker == Worker::Up {
                    self.join(from, incarnation, id, 1, effects);
                    self.say(from, PairWord::Accept { incarnation }, effects);
                } else {
                    self.wake(from, Some((incarnation, id)), effects);
                }
            }
            Stage::Waking { until, .. } => {
                let offer = Some((incarnation, id));
                self.enter(from, Stage::Waking { until, offer });
            }
            Stage::Joining { .. } | Stage::Ready { .. } if any => {
                self.say(from, PairWord::Accept { incarnation }, effects);
            }
            Stage::Joining { .. } | Stage::Ready { .. } => {
                // Rank 0 has given up the one before.
                self.give_up(from, Why::PeerBroke, false, effects);
                self.say(from, PairWord::Broken { incarnation }, effects);
            }
            Stage::Aborting { .. } => self.say(from, PairWord::Broken { incarnation }, effects),
            // Those are rank 0's.
            Stage::Making { .. } | Stage::Offered { .. } => {}
        }
    }

    pub(super) fn on_accept(&mut self, from: DeviceId, accepted: Incarnation, effects: &mut Vec<Effect>) {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let Some(peer) = self.peers.get(&from) else { return };
        match &peer.stage {
            Stage::Offered { incarnation, id, .. } if *incarnation == accepted || any => {
                let (incarnation, id) = (*incarnation, id.clone());
                self.join(from, incarnation, id, 0, effects);
            }
            _ if peer.stage.incarnation() == Some(accepted) => {}
            _ => self.say(from, PairWord::Broken { incarnation: accepted }, effects),
        }
    }

    /// The other end has given up this communicator, or does not want it.
    pub(super) fn on_broken(&mut self, from: DeviceId, broken: Incarnation, effects: &mut Vec<Effect>) {
        let any = self.has_flaw(Flaw::AnyIncarnation);
        let Some(peer) = self.peers.get(&from) else { return };
        let offered = match &peer.stage {
            Stage::Waking { offer: Some((incarnation, _)), .. } => Some(*incarnation),
            _ => peer.stage.incarnation(),
        };
        if offered.is_some_and(|incarnation| incarnation == broken || any) {
            self.give_up(from, Why::PeerBroke, false, effects);
        }
    }

    pub(super) fn enter(&mut self, device: DeviceId, stage: Stage) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.enter(now, stage);
        }
    }
}
