//! Store: frames from the actor, bytes from the socket straight into them, checked there, made visible, copied to the
//! other replicas, answered.

use crate::actors::core::{DeviceMessage, Reserved, Sealed};
use crate::data::check;
use crate::data::content::{Content, OnGpu};
use crate::data::counters::{add, count};
use crate::data::fair::Wanted;
use crate::data::payload::Payload;
use crate::data::plane::{DataPlane, UNSAID};
use crate::data::replicate::{Answers, Asker, Item, Known, Origin, others};
use crate::data::turns::Turn;
use crate::far::Unsound;
use crate::guards::{Landing, Lent, Unread, Verified};
use crate::view::Serving;
use kvhive_cache::acks::{self, Answer};
use kvhive_protocol::data::{
    About, Ack, DataReply, MAX_BLOCKS_PER_TRANSFER, Refusal, StoreBlock, StoreRequest, Stored,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{DeviceId, Epoch, Layout, Slot, TenantId, TraceContext, WireError};
use kvhive_spans::Span;
use kvhive_wire::{Fault, Peer};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A store waits this long for room among the bytes being received; then it is told to come back.
pub(super) const INFLIGHT_WAIT: Duration = Duration::from_millis(100);
/// A copy from another node waits longer: a client waits for that node's answer, and a refusal costs a replica.
const COPY_INFLIGHT_WAIT: Duration = Duration::from_secs(1);

/// What has become of one block so far.
pub(super) enum Taken {
    /// Its bytes match its header, and are on their way to its frame or there.
    Landing(Landing),
    /// They are there.
    Verified(Verified),
    /// It was here before.
    Present(Option<Lent>),
    Refused(Refusal),
}

/// What is done with every block of a store.
pub(super) struct Task {
    serving: Serving,
    pub(super) device: DeviceId,
    tenant: TenantId,
    ack: Ack,
    about: About,
    layout: Option<Layout>,
    blocks: Vec<(StoreBlock, Slot)>,
    /// It is a copy itself.
    copy: bool,
    /// Other members are to have copies.
    replicated: bool,
    /// Whose part its copies are.
    trace: Option<TraceContext>,
}

impl Task {
    pub(super) fn traced(self, trace: Option<TraceContext>) -> Task {
        Task { trace, ..self }
    }

    /// Returns whose blocks they are.
    pub(super) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Returns how many blocks it has.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Takes note of a block's digest, which its asker did not know.
    pub(super) fn learn_digest(&mut self, at: usize, digest: u64) {
        if let Some((block, _)) = self.blocks.get_mut(at) {
            block.header.digest = digest;
        }
    }

    /// Says what all its blocks have in common.
    fn origin(&self) -> Origin {
        let Task { serving, device, tenant, layout, about, trace, .. } = self;
        Origin {
            serving: serving.clone(),
            source: *device,
            tenant: *tenant,
            layout: *layout,
            about: *about,
            trace: *trace,
        }
    }

    /// Returns whom the slot of a block is being given to.
    fn given_to(&self, at: usize) -> Option<DeviceId> {
        self.serving.map.given_to(self.blocks[at].1)
    }

    /// Returns the slots of its blocks, in order.
    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.blocks.iter().map(|(_, slot)| *slot)
    }

    fn item(&self, at: usize, content: Content, targets: Vec<DeviceId>) -> Item {
        let (block, slot) = self.blocks[at];
        Item { at, block, slot, content, targets }
    }
}

/// What is sure of the copies of blocks.
#[derive(Default)]
struct Sure {
    /// What others say of a block, by its position.
    answered: Answers,
    /// Those that turned out not to be here: they are stored anew when they come again.
    lost: Vec<usize>,
}

impl DataPlane {
    /// Serves a store. The outer error ends the connection, the inner one refuses the request.
    pub(crate) async fn store(
        &self,
        source: &mut impl Payload,
        (peer, until): (Peer, Instant),
        span: &Span,
        request: StoreRequest,
    ) -> Result<Result<DataReply, WireError>, Fault> {
        count(&self.counters.stores);
        let payload = source.left();
        let (copy, moves) = (request.copy, request.moved && peer.role == Role::Node);
        // Before anything is looked at: what is so now may not be so after it.
        if moves {
            self.takes.pass(payload).await;
        }
        let given_by = request.moved.then_some(request.epoch);
        let task = match self.check_store(request, payload, peer) {
            Ok(task) => task.traced(span.context()),
            Err(error) => return Ok(Err(error)),
        };
        // What moves has its own pace, and no tenant asks for it.
        let turn = match moves {
            true => None,
            false => match self.store_turn(span, &task, payload, until).await {
                Ok(turn) => Some(turn),
                Err(error) => return Ok(Err(error)),
            },
        };
        let wait = Instant::now() + if copy { COPY_INFLIGHT_WAIT } else { INFLIGHT_WAIT };
        let room = self.inflight.clone().acquire_many_owned(self.permits(payload));
        let Ok(Ok(room)) = timeout_at(wait, room).await else {
            return Ok(Err(WireError::busy("as many payload bytes as allowed are under way")));
        };
        let reserved = match self.reserve(span, &task, given_by).await {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error)),
        };
        let device = self.device(task.device);
        if let Some(device) = device {
            device.work.stored();
        }
        let mut receiving = span.part("receive and verify");
        receiving.note("kvhive.bytes", payload);
        let mut taken = Vec::with_capacity(task.blocks.len());
        for ((block, _), reserved) in task.blocks.iter().zip(reserved) {
            let one = self.take_in(source, block.header.payload_bytes, reserved).await?;
            if let (Taken::Landing(_), Some(device)) = (&one, device) {
                device.traffic.stored(block.header.payload_bytes);
            }
            taken.push(one);
        }
        let taken = landed(taken).await;
        // From here on the bytes count as blocks. Two nodes that copy to each other must not wait for this room.
        drop((room, turn));
        drop(receiving);
        Ok(self.settle(span, task, taken).await)
    }

    /// Waits until it is a store's turn. A copy has no time of its own: who waits for it has been let in elsewhere.
    async fn store_turn(
        &self,
        span: &Span,
        task: &Task,
        bytes: u64,
        until: Instant,
    ) -> Result<Turn, WireError> {
        if !task.copy {
            return self.turn(span, task.tenant, Some(bytes), until).await;
        }
        let wanted = Wanted {
            tenant: task.tenant,
            weight: self.view.weight_of(task.tenant),
            bytes: Some(bytes),
            left: COPY_INFLIGHT_WAIT,
            is_part: true,
        };
        let late = || WireError::busy("as many transfers as allowed are under way");
        self.turns.take(wanted).await.ok_or_else(late)
    }

    /// Takes a frame for each block that is not here.
    pub(super) async fn reserve(
        &self,
        span: &Span,
        task: &Task,
        given_by: Option<Epoch>,
    ) -> Result<Vec<Reserved>, WireError> {
        // What is here already is held for a look at its bytes.
        let (tenant, blocks, about, pin) = (task.tenant, task.blocks.clone(), task.about, true);
        let reserve = |reply| DeviceMessage::Reserve { tenant, blocks, about, pin, given_by, reply };
        self.ask(span, task.device, reserve).await
    }

    pub(super) fn check_store(
        &self,
        request: StoreRequest,
        payload: u64,
        peer: Peer,
    ) -> Result<Task, WireError> {
        check::sizes(&request.runs, request.blocks.len(), MAX_BLOCKS_PER_TRANSFER)?;
        check::store(&request, payload, peer.role, &self.view.layouts)?;
        let serving = self.view.serves(Role::Client)?;
        check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
        if !request.copy {
            acks::leads(&serving.map, request.device, request.runs.iter().map(|run| run.slot))?;
        }
        let StoreRequest { device, tenant, ack, copy, layout, about, runs, blocks, .. } = request;
        let blocks: Vec<_> = blocks.into_iter().zip(check::slots(&runs)).collect();
        let replicated = !copy && runs.iter().any(|run| serving.map.replicas(run.slot).0.len() > 1);
        Ok(Task { serving, device, tenant, ack, layout, about, blocks, copy, replicated, trace: None })
    }

    /// Takes one block's bytes from where they come: into its frame, or past it.
    async fn take_in(
        &self,
        source: &mut impl Payload,
        bytes: u64,
        reserved: Reserved,
    ) -> Result<Taken, Fault> {
        match reserved {
            Reserved::Write(mut guard) => {
                let digest = self.paced(bytes, source.read(guard.bytes_mut())).await?;
                add(&self.counters.stored_bytes, bytes);
                Ok(guard.verify(digest).map_or_else(
                    || {
                        count(&self.counters.corrupt_blocks);
                        Taken::Refused(Refusal::Corrupt)
                    },
                    Taken::Landing,
                ))
            }
            Reserved::Present(lent) => {
                self.paced(bytes, source.skip(bytes)).await?;
                // Whoever stores what is here has not been able to use it, perhaps: one that is damaged would stay for ever.
                let checked = match &lent {
                    Some(Lent::Guard(guard)) => guard.check(),
                    Some(Lent::Far(far)) => far.check().await,
                    None => Ok(()),
                };
                if let Err(why) = checked {
                    if why == Unsound::Damaged {
                        count(&self.counters.corrupt_blocks);
                    }
                    return Ok(Taken::Refused(Refusal::NoRoom));
                }
                Ok(Taken::Present(lent))
            }
            Reserved::Refused(refusal) => {
                self.paced(bytes, source.skip(bytes)).await?;
                Ok(Taken::Refused(refusal))
            }
        }
    }

    /// Makes what was verified visible, has it copied, and answers.
    ///
    /// Without a lease nothing counts but what is here: the other replicas may be none any more, and this may be the primary no
    /// longer. They are sent it all the same.
    pub(super) async fn settle(
        &self,
        span: &Span,
        mut task: Task,
        taken: Vec<Taken>,
    ) -> Result<DataReply, WireError> {
        // What must not serve makes nothing visible; from here on, one that loses that right can only leave its asker unsure.
        self.view.check_serving_lease()?;
        let mut stored = Vec::with_capacity(taken.len());
        let mut sealing = Vec::new();
        let mut sealed_at = Vec::new();
        let mut present = Vec::new();
        let mut fresh = Vec::new();
        for (at, one) in taken.into_iter().enumerate() {
            match one {
                Taken::Verified(block) => {
                    sealing.push(block);
                    sealed_at.push(at);
                    // Until the actor says that it is visible.
                    stored.push(Stored::Refused(Refusal::WrongEra));
                }
                Taken::Present(lent) => {
                    stored.push(Stored::Kept { copies: 1, already: true });
                    present.push((at, lent));
                }
                // None is on its way any more.
                Taken::Landing(_) => stored.push(Stored::Refused(Refusal::NoRoom)),
                Taken::Refused(refusal) => stored.push(Stored::Refused(refusal)),
            }
        }
        if !sealing.is_empty() {
            if let Some(layout) = &task.layout {
                // Only now: what was refused teaches nothing. And before they are there: what they take is counted by it.
                for at in &sealed_at {
                    self.view.layouts.learn(layout, task.blocks[*at].0.header.fingerprint);
                }
            }
            let pin = task.replicated;
            let sealed = self
                .ask(span, task.device, |reply| DeviceMessage::Seal { blocks: sealing, pin, reply })
                .await?;
            for (at, sealed) in sealed_at.into_iter().zip(sealed) {
                if let Sealed::Visible(lent) = sealed {
                    stored[at] = Stored::Kept { copies: 1, already: false };
                    fresh.push((at, lent));
                }
            }
        }
        if task.copy {
            self.view.check_serving_lease()?;
            if self.view.check_lease().is_err() {
                count_for_nothing(&mut stored);
            }
            return Ok(DataReply::Stored { epoch: task.serving.map.epoch, blocks: stored });
        }
        // Slots may have begun to move, or have moved, since the store came: whoever is a replica of them now gets the copies.
        task.serving = self.view.serving().ok_or(WireError::NoLease)?;
        let map = &task.serving.map;
        acks::leads(map, task.device, task.slots())?;
        // Blocks that were here before have been copied when they came; who waits for copies has them made sure of.
        present.retain(|(at, _)| task.ack != Ack::Primary || task.given_to(*at).is_some());
        if self.view.check_lease().is_err() {
            let items = self.items(&task, fresh);
            self.replicator.later(task.origin(), items, &self.counters);
            return self.settle_alone(&task, stored);
        }
        let (sure, fresh) = tokio::join!(self.make_sure(span, &task, present), self.replicate(&task, fresh));
        for at in sure.lost {
            stored[at] = Stored::Refused(Refusal::NoRoom);
        }
        let mut answers: Vec<Vec<(DeviceId, Answer)>> = vec![Vec::new(); stored.len()];
        for (at, device, answer) in sure.answered.into_iter().chain(fresh.answered) {
            answers[at].push((device, answer));
        }
        let newest = self.view.serving().ok_or(WireError::NoLease)?.map;
        for ((one, slot), answers) in stored.iter_mut().zip(task.slots()).zip(&answers) {
            if let Stored::Kept { copies, .. } = one {
                acks::is_given(map, slot, answers)?;
                acks::has_stayed(map, &newest, slot)?;
                *copies = copies.saturating_add(acks::copies(map, slot, answers));
            }
        }
        if self.view.check_lease().is_err() {
            return self.settle_alone(&task, stored);
        }
        Ok(DataReply::Stored { epoch: map.epoch, blocks: stored })
    }

    /// Answers a store without a lease: what is kept here is one copy, by what [`acks::alone`] says of it.
    fn settle_alone(&self, task: &Task, mut stored: Vec<Stored>) -> Result<DataReply, WireError> {
        self.view.check_serving_lease()?;
        let map = &task.serving.map;
        for (one, slot) in stored.iter_mut().zip(task.slots()) {
            let Stored::Kept { copies, .. } = one else { continue };
            *copies = acks::alone(map, slot, task.ack);
            if let Some(target) = map.given_to(slot) {
                self.replicator.giving.missed(slot, target);
            }
        }
        Ok(DataReply::Stored { epoch: map.epoch, blocks: stored })
    }

    /// Has blocks copied that have come just now, in the background where nobody waits for it.
    async fn replicate(&self, task: &Task, visible: Vec<(usize, Option<Lent>)>) -> Sure {
        let mut sure = Sure::default();
        let items = self.items(task, visible);
        if task.ack == Ack::Primary && items.iter().all(|item| task.given_to(item.at).is_none()) {
            self.replicator.later(task.origin(), items, &self.counters);
        } else {
            sure.answered.extend(self.replicator.now(&task.origin(), items, &self.counters).await);
        }
        sure
    }

    /// Returns what others are to have. What is on a GPU stays there until it is known by which way it goes; then it is brought back, if it
    /// must be, in room of its own, so that copies which wait for a replica keep no fetch waiting. There is nothing where a slot had one
    /// replica when it came.
    fn items(&self, task: &Task, visible: Vec<(usize, Option<Lent>)>) -> Vec<Item> {
        let targets = |at: usize| others(&task.serving.map, task.device, task.blocks[at].1);
        let room = (self.copying.clone(), self.permits(u64::MAX));
        let mut items = Vec::with_capacity(visible.len());
        for (at, lent) in visible {
            let content = match lent {
                Some(Lent::Guard(guard)) => Content::Here(Arc::new(guard)),
                Some(Lent::Far(far)) => match far.gpu_frame() {
                    Some(frame) => Content::OnGpu(Arc::new(OnGpu::new(far, frame, Some(room.clone())))),
                    // What has just come is in memory.
                    None => {
                        far.give_up();
                        continue;
                    }
                },
                None => continue,
            };
            items.push(task.item(at, content, targets(at)));
        }
        items
    }

    /// Makes sure of the copies of blocks that were here before. Their bytes may be on disk: they are brought for those replicas
    /// alone that say that they lack them.
    async fn make_sure(&self, span: &Span, task: &Task, present: Vec<(usize, Option<Lent>)>) -> Sure {
        let mut sure = Sure::default();
        if present.is_empty() {
            return sure;
        }
        let Task { serving, device, tenant, .. } = task;
        let known = present.iter().map(|(at, _)| {
            let (block, slot) = &task.blocks[*at];
            Known { key: block.header.key, slot: *slot }
        });
        let known: Vec<Known> = known.collect();
        let asker = Asker { serving, device: *device, tenant: *tenant, trace: task.trace };
        let holders = self.replicator.holders(&asker, &known, &self.counters).await;
        let (mut lacked, mut lent) = (Vec::new(), Vec::new());
        for ((at, one), holders) in present.into_iter().zip(holders) {
            sure.answered.extend(holders.holding.into_iter().map(|who| (at, who, Answer::Holds)));
            if !holders.lacking.is_empty() && one.is_some() {
                lacked.push((at, holders.lacking));
                lent.push(one);
            }
        }
        let mut items = Vec::with_capacity(lacked.len());
        let whose = (*tenant, Instant::now() + UNSAID);
        let brought = self.bring(span, *device, whose, lent).await;
        for ((at, lacking), brought) in lacked.into_iter().zip(brought.blocks) {
            match brought {
                Some(Ok(guard)) => items.push(task.item(at, Content::Here(Arc::new(guard)), lacking)),
                Some(Err(Unread::Lost)) => sure.lost.push(at),
                Some(Err(Unread::Late)) | None => {}
            }
        }
        sure.answered.extend(self.replicator.now(&task.origin(), items, &self.counters).await);
        sure
    }
}

/// Waits until what is on its way to its frame is there. Where a GPU does not take it, there is no room for it.
pub(super) async fn landed(taken: Vec<Taken>) -> Vec<Taken> {
    let mut landed = Vec::with_capacity(taken.len());
    for one in taken {
        landed.push(match one {
            Taken::Landing(landing) => {
                landing.landed().await.map_or(Taken::Refused(Refusal::NoRoom), Taken::Verified)
            }
            other => other,
        });
    }
    landed
}

/// Says of blocks that they are here and that nobody is to rely on it.
fn count_for_nothing(stored: &mut [Stored]) {
    for one in stored {
        if let Stored::Kept { copies, .. } = one {
            *copies = 0;
        }
    }
}
