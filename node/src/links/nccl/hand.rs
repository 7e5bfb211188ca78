//! The hand of one GPU's pairs: reads the clock, tells the machine what happened, and does what it asks for.

use super::calls::command_worker;
use super::figures::Figures;
use super::state::{Incoming, Life, Outgoing};
use super::{NotCarried, OwnGpu, Without, announced};
use crate::config::NcclConfig;
use crate::data::OnGpu;
use crate::guards::WriteGuard;
use crate::links::Parcel;
use crate::links::tcp::Tcp;
use crate::view::{Serving, View};
use futures_util::future::join_all;
use kvhive_gpu::DeviceKind;
use kvhive_gpu::worker::{Extent, Packing};
use kvhive_links::Pairs;
use kvhive_links::pairs::{self, Effect, Event, Ticket, Tuning, Why};
use kvhive_protocol::data::{DataReply, DataRequest, PairRequest, ReceiveRequest};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{PairMessage, PairsReport, TransferId};
use kvhive_protocol::{DeviceId, Level, MemberState, Moment, WireError};
use kvhive_wire::Fault;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

/// What is said to a peer and not heard within this is lost.
const SAID_LIMIT: Duration = Duration::from_secs(2);
/// After the machine should have answered, its answer is waited for so long: it has one always.
const GRACE: Duration = Duration::from_millis(50);

/// The pairs of one GPU of this node.
pub(super) struct Hand {
    pub(super) config: NcclConfig,
    pub(super) gpu: OwnGpu,
    pub(super) index: u16,
    view: Arc<View>,
    tcp: Arc<Tcp>,
    /// What is said to peers waits for no transfer that is under way.
    words: Arc<Tcp>,
    io: Handle,
    state: Mutex<State>,
    pub(super) figures: Figures,
    /// Told when the machine may want to wake earlier.
    pub(super) changed: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) life: Option<Life>,
    /// Lives of earlier starts, by their workers, until these have ended: they may yet touch frames.
    pub(super) former: BTreeMap<u64, Life>,
    /// Workers that were started.
    workers: u64,
    /// Batches that were to be sent: no two in any life have one number.
    tickets: u64,
}

impl Hand {
    /// Makes the pairs of a GPU, of which there are none before there is a map.
    pub(super) fn start(
        config: NcclConfig,
        gpu: OwnGpu,
        index: u16,
        (view, [tcp, words], io): (Arc<View>, [Arc<Tcp>; 2], Handle),
    ) -> Arc<Hand> {
        let (state, figures, changed) = (Mutex::default(), Figures::default(), Notify::new());
        let hand = Arc::new(Hand { config, gpu, index, view, tcp, words, io, state, figures, changed });
        hand.io.spawn(Hand::keep_time(Arc::downgrade(&hand)));
        hand
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tuning(&self) -> Tuning {
        let NcclConfig { max_pairs, after_bytes, keep, start, .. } = self.config;
        Tuning {
            max_live: max_pairs,
            make_after_bytes: after_bytes,
            keep,
            start_limit: start,
            ..Tuning::default()
        }
    }

    /// Tells the machine the time, when it asks for that, until the hand is gone.
    async fn keep_time(hand: Weak<Hand>) {
        while let Some(own) = hand.upgrade() {
            let wakes = own.lock().life.as_ref().and_then(|life| life.pairs.wakes());
            let left = wakes.map(|at| at.since(own.view.now()));
            tokio::select! {
                () = own.changed.notified() => {}
                () = tokio::time::sleep(left.unwrap_or(SAID_LIMIT)) => own.step(Event::Tick),
            }
        }
    }

    /// Goes by a map: who is in it, in which start; and which start of this node it is.
    pub(super) fn adopt(self: &Arc<Self>, serving: &Serving) {
        let map = &serving.map;
        let me = DeviceId::new(serving.member, self.index);
        let own = map.members.get(&serving.member).filter(|_| map.level >= Level::LINKS);
        let generation = own.map(|own| own.generation);
        {
            let mut state = self.lock();
            let is_same = |life: &Life| (life.me, Some(life.generation)) == (me, generation);
            if !state.life.as_ref().is_some_and(is_same) {
                if let Some(former) = state.life.take()
                    && let Some((number, worker)) = &former.worker
                {
                    worker.kill();
                    let number = *number;
                    state.former.insert(number, former);
                }
                state.life = generation
                    .map(|generation| Life::new(me, generation, Pairs::new(me, generation, self.tuning())));
            }
        }
        let is_gpu = |kind: &str| kind == DeviceKind::Cuda.as_str();
        let others = map.members.iter().filter(|(id, _)| **id != serving.member);
        let mut there: BTreeMap<DeviceId, _> = BTreeMap::new();
        for (id, member) in others.filter(|(_, member)| member.state == MemberState::Up) {
            let gpus = member.devices.iter().zip(0..).filter(|(device, _)| is_gpu(&device.kind));
            there.extend(gpus.map(|(_, index)| (DeviceId::new(*id, index), member.generation)));
        }
        let known = self.lock().life.as_ref().map(|life| life.pairs.peers()).unwrap_or_default();
        known.into_iter().filter(|device| !there.contains_key(device)).for_each(|device| {
            self.step(Event::Gone { device });
        });
        there.into_iter().for_each(|(device, generation)| self.step(Event::Peer { device, generation }));
    }

    pub(super) fn state(&self, target: DeviceId) -> Option<PairState> {
        self.lock().life.as_ref()?.pairs.state(target)
    }

    pub(super) fn report(&self) -> Option<PairsReport> {
        let now = self.view.now();
        Some(self.lock().life.as_ref()?.pairs.snapshot(now))
    }

    pub(super) fn hear(self: &Arc<Self>, message: PairMessage) -> Result<(), Without> {
        let is_without = self.lock().life.as_ref().is_some_and(|life| life.pairs.is_without());
        if is_without {
            return Err(Without);
        }
        self.step(Event::Message(message));
        Ok(())
    }

    pub(super) fn state_to_all(&self, targets: &[DeviceId]) -> Option<PairState> {
        self.view.serving().filter(|serving| serving.map.level >= Level::DAYS)?;
        self.lock().life.as_ref()?.pairs.group_state(targets)
    }

    /// Returns how a batch is cut that begins now: its targets are told so with it. All can be told what the cluster's level has.
    fn packing(&self) -> Packing {
        match self.view.serving() {
            Some(serving) if serving.map.level >= Level::PACKED => Packing::Together,
            _ => Packing::Apart,
        }
    }

    /// Has a batch get to all its targets, of whom there are parcels of the same blocks; returns what becomes of it at each.
    pub(super) async fn carry(
        self: &Arc<Self>,
        parcels: &[Parcel<'_>],
        blocks: Vec<Arc<OnGpu>>,
        deadline: Instant,
    ) -> Vec<Result<DataReply, NotCarried>> {
        let extents: Vec<Extent> = blocks.iter().map(|block| block.extent()).collect();
        let bytes = extents.iter().map(|extent| extent.bytes).sum();
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut tell, mut told) = (BTreeMap::new(), Vec::with_capacity(parcels.len()));
        for parcel in parcels {
            let (one, other) = oneshot::channel();
            tell.insert(parcel.target, one);
            told.push(other);
        }
        let stores = parcels.iter().filter_map(|parcel| {
            let store = announced(parcel)?;
            Some((parcel.target, (store, parcel.trace)))
        });
        let packing = self.packing();
        let stores = stores.collect();
        let batch = Outgoing { stores, extents, packing, _blocks: blocks, tell, is_quiet: false };
        {
            let mut state = self.lock();
            state.tickets += 1;
            let ticket = Ticket(state.tickets);
            match state.life.as_mut() {
                // Whoever waits is told so by that.
                None => drop(batch),
                Some(life) => {
                    life.outgoing.insert(ticket, batch);
                    let deadline = self.view.now() + left;
                    let event = match parcels {
                        [parcel] => Event::Want { ticket, peer: parcel.target, bytes, deadline },
                        parcels => {
                            let peers = parcels.iter().map(|parcel| parcel.target).collect();
                            Event::WantAll { ticket, peers, bytes, deadline }
                        }
                    };
                    self.step_in(&mut state, event);
                }
            }
        }
        self.changed.notify_one();
        let answers = told.into_iter().map(|told| async move {
            match timeout_at(deadline + GRACE, told).await {
                Ok(Ok(answer)) => answer,
                // Nobody is there to carry it.
                Ok(Err(_)) => Err(NotCarried::Pair(Why::NoWorker)),
                Err(_) => Err(NotCarried::Pair(Why::Late)),
            }
        });
        join_all(answers).await
    }

    pub(super) async fn expect(
        self: &Arc<Self>,
        (transfer, packing): (TransferId, Packing),
        guards: Vec<WriteGuard>,
        limit: Duration,
    ) -> Result<Vec<WriteGuard>, Why> {
        let extents: Option<Vec<Extent>> = guards.iter().map(WriteGuard::extent).collect();
        let extents = extents.ok_or(Why::Refused)?;
        let bytes = extents.iter().map(|extent| extent.bytes).sum();
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.lock();
            let life = state.life.as_mut().ok_or(Why::NoWorker)?;
            if life.incoming.contains_key(&transfer) {
                return Err(Why::Mismatch);
            }
            let batch = Incoming {
                extents,
                packing,
                guards: Some(guards),
                held: Vec::new(),
                tell: Some(tell),
                is_quiet: false,
            };
            life.incoming.insert(transfer, batch);
            let deadline = self.view.now() + limit;
            self.step_in(&mut state, Event::Expect { transfer, bytes, deadline });
        }
        self.changed.notify_one();
        match tokio::time::timeout(limit + GRACE, told).await {
            Ok(Ok(arrived)) => arrived,
            _ => Err(Why::Late),
        }
    }

    /// Tells the machine what happened, and does what it asks for.
    fn step(self: &Arc<Self>, event: Event) {
        let mut state = self.lock();
        self.step_in(&mut state, event);
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn step_in(self: &Arc<Self>, state: &mut State, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.view.now();
            let State { life: Some(life), workers, .. } = state else { return };
            if matches!(event, Event::Worker(pairs::Answer::Died)) {
                life.worker_is_gone();
            }
            let mut effects = Vec::new();
            life.pairs.step(now, event, &mut effects);
            for effect in effects {
                events.extend(self.perform(life, workers, now, effect));
            }
        }
    }

    /// Does one thing; returns what came of it at once.
    fn perform(
        self: &Arc<Self>,
        life: &mut Life,
        workers: &mut u64,
        now: Moment,
        effect: Effect,
    ) -> Option<Event> {
        self.figures.note(&effect);
        match effect {
            Effect::Store { ticket, transfer, peer, .. } => self.announce(life, ticket, transfer, peer),
            Effect::Say(message) => {
                self.say(message);
                None
            }
            Effect::Worker(command) => command_worker(life, now, command),
            Effect::StartWorker => self.start_worker(life, workers),
            Effect::KillWorker => {
                match &life.worker {
                    Some((_, worker)) => worker.kill(),
                    // One that is being started is killed before it is told anything.
                    None => return Some(Event::Worker(pairs::Answer::Died)),
                }
                None
            }
            // What the targets' nodes say of the store is the answer.
            Effect::Carried { .. } | Effect::Count(_) => None,
            Effect::UseTcp { ticket, why } => {
                life.does_not_go(ticket, why);
                None
            }
            Effect::SourceQuiet { ticket } => {
                life.source_is_quiet(ticket);
                None
            }
            Effect::Arrived { transfer } => {
                life.arrived(transfer, Ok(()));
                None
            }
            Effect::NotArrived { transfer, why } => {
                life.arrived(transfer, Err(why));
                None
            }
            Effect::RoomQuiet { transfer } => {
                life.room_is_quiet(transfer);
                None
            }
        }
    }

    /// Has a target's node expect a batch, and answers for it what that says.
    fn announce(
        self: &Arc<Self>,
        life: &mut Life,
        ticket: Ticket,
        transfer: TransferId,
        target: DeviceId,
    ) -> Option<Event> {
        let batch = life.outgoing.get(&ticket);
        let announced = batch.and_then(|batch| Some((batch.packing, batch.stores.get(&target)?.clone())));
        let (Some((packing, (store, trace))), Some(serving)) = (announced, self.view.serving()) else {
            return Some(Event::Refused { ticket });
        };
        let hand = self.clone();
        self.io.spawn(async move {
            let deadline = Instant::now() + super::super::COPY_LIMIT;
            let request = ReceiveRequest { store, transfer };
            let request = match packing {
                Packing::Apart => DataRequest::Receive(request),
                Packing::Together => DataRequest::Packed(request),
            };
            let answer = hand.tcp.exchange(&serving.map, target, (trace, &request), &[], deadline).await;
            let mut state = hand.lock();
            let Some(life) = state.life.as_mut() else { return };
            let is_refused = answer.is_err();
            life.answer(ticket, target, answer.map_err(NotCarried::Answer));
            if is_refused {
                hand.step_in(&mut state, Event::Refused { ticket });
                drop(state);
                hand.changed.notify_one();
            }
        });
        None
    }

    /// Says something to another GPU's node. It may be lost.
    fn say(self: &Arc<Self>, message: PairMessage) {
        let Some(serving) = self.view.serving() else { return };
        let hand = self.clone();
        self.io.spawn(async move {
            let (to, generation) = (message.to, message.to_generation);
            let request = DataRequest::Pair(PairRequest { epoch: serving.map.epoch, message });
            let deadline = Instant::now() + SAID_LIMIT;
            match hand.words.exchange(&serving.map, to, (None, &request), &[], deadline).await {
                Ok(_) => {}
                Err(Fault::Refused(WireError::NotCarried { .. })) => {
                    hand.step(Event::Lacks { device: to, generation });
                }
                Err(fault) => tracing::debug!(peer = %to, %fault, "a word to another GPU is lost"),
            }
        });
    }
}
