//! What the pairs of one GPU have to do with: frames that are sent or received into, until nothing touches them; who waits for an answer.

use super::NotCarried;
use crate::data::OnGpu;
use crate::guards::WriteGuard;
use kvhive_gpu::worker::{Extent, Packing, Rank, TransferId as Named, Worker};
use kvhive_links::Pairs;
use kvhive_links::pairs::{Ticket, Why};
use kvhive_protocol::data::{DataReply, StoreRequest};
use kvhive_protocol::pairs::TransferId;
use kvhive_protocol::{DeviceId, Generation, TraceContext};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Who waits for what becomes of a batch at one target.
pub(super) type Tell = oneshot::Sender<Result<DataReply, NotCarried>>;

/// A batch that is to be sent, to several targets at once perhaps.
pub(super) struct Outgoing {
    /// What each target's node is told of it, and as whose part.
    pub(super) stores: BTreeMap<DeviceId, (StoreRequest, Option<TraceContext>)>,
    pub(super) extents: Vec<Extent>,
    /// How they are cut, at all ends.
    pub(super) packing: Packing,
    /// Keeps the frames as they are.
    pub(super) _blocks: Vec<Arc<OnGpu>>,
    /// Whose targets were not answered for yet.
    pub(super) tell: BTreeMap<DeviceId, Tell>,
    pub(super) is_quiet: bool,
}

/// A batch that is expected.
pub(super) struct Incoming {
    pub(super) extents: Vec<Extent>,
    /// How its sender has said that they are cut.
    pub(super) packing: Packing,
    /// None once they were given back, or will not be.
    pub(super) guards: Option<Vec<WriteGuard>>,
    /// Of writes that were given up: something may write to them yet.
    pub(super) held: Vec<WriteGuard>,
    /// None once it was answered.
    pub(super) tell: Option<oneshot::Sender<Result<Vec<WriteGuard>, Why>>>,
    pub(super) is_quiet: bool,
}

/// The pairs of one GPU in one start of its member, and all that they have to do with.
pub(super) struct Life {
    pub(super) me: DeviceId,
    pub(super) generation: Generation,
    pub(super) pairs: Pairs,
    pub(super) outgoing: BTreeMap<Ticket, Outgoing>,
    pub(super) incoming: BTreeMap<TransferId, Incoming>,
    /// The worker, and which of all that this node has started; which of these is being started.
    pub(super) worker: Option<(u64, Worker)>,
    pub(super) starts: Option<u64>,
    /// What the worker calls transfers, and how many it was told of.
    pub(super) names: u64,
    pub(super) named: BTreeMap<u64, TransferId>,
    /// Communicators that the worker has let go of by itself.
    pub(super) let_go: BTreeSet<u64>,
    /// This GPU's rank in each communicator.
    pub(super) ranks: BTreeMap<u64, Rank>,
}

impl Life {
    pub(super) fn new(me: DeviceId, generation: Generation, pairs: Pairs) -> Life {
        Life {
            me,
            generation,
            pairs,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            worker: None,
            starts: None,
            names: 0,
            named: BTreeMap::new(),
            let_go: BTreeSet::new(),
            ranks: BTreeMap::new(),
        }
    }

    /// Returns the other end's rank in a communicator of two; none where there are more, of whom rank 0 sends to all.
    pub(super) fn other_rank(&self, communicator: u64) -> Option<u32> {
        let rank = self.ranks.get(&communicator).copied().unwrap_or(Rank { at: 0, of: 2 });
        (rank.of == 2).then(|| 1 - rank.at.min(1))
    }

    /// Names a transfer for the worker.
    pub(super) fn name(&mut self, transfer: TransferId) -> Named {
        self.names += 1;
        self.named.insert(self.names, transfer);
        Named(self.names)
    }

    /// The worker has ended, with all that it had.
    pub(super) fn worker_is_gone(&mut self) {
        (self.worker, self.starts) = (None, None);
        self.let_go.clear();
        self.named.clear();
        self.ranks.clear();
    }

    /// Answers for one target of a batch that was to be sent, if that was not answered for before.
    pub(super) fn answer(&mut self, ticket: Ticket, target: DeviceId, answer: Result<DataReply, NotCarried>) {
        if let Some(tell) = self.outgoing.get_mut(&ticket).and_then(|batch| batch.tell.remove(&target)) {
            // Whoever asked may be waiting no longer.
            let _ = tell.send(answer);
        }
        self.forget_sent(ticket);
    }

    /// Answers for all targets that a batch does not go to them.
    pub(super) fn does_not_go(&mut self, ticket: Ticket, why: Why) {
        let batch = self.outgoing.get_mut(&ticket);
        for tell in batch.map(|batch| std::mem::take(&mut batch.tell)).unwrap_or_default().into_values() {
            let _ = tell.send(Err(NotCarried::Pair(why)));
        }
        self.forget_sent(ticket);
    }

    /// Nothing reads the frames of a batch any more.
    pub(super) fn source_is_quiet(&mut self, ticket: Ticket) {
        if let Some(batch) = self.outgoing.get_mut(&ticket) {
            batch.is_quiet = true;
        }
        self.forget_sent(ticket);
    }

    fn forget_sent(&mut self, ticket: Ticket) {
        if self.outgoing.get(&ticket).is_some_and(|batch| batch.is_quiet && batch.tell.is_empty()) {
            self.outgoing.remove(&ticket);
        }
    }

    /// Answers a batch that was expected: its frames are given back where it has come.
    pub(super) fn arrived(&mut self, transfer: TransferId, came: Result<(), Why>) {
        if let Some(batch) = self.incoming.get_mut(&transfer)
            && let Some(tell) = batch.tell.take()
        {
            let guards = batch.guards.take();
            let answer = match came {
                Ok(()) => guards.ok_or(Why::Failed),
                Err(why) => {
                    // Whoever sends them another way finds no write of theirs under way.
                    batch.held = guards.unwrap_or_default();
                    batch.held.iter().for_each(WriteGuard::give_up);
                    Err(why)
                }
            };
            let _ = tell.send(answer);
        }
        self.forget_received(transfer);
    }

    /// Nothing writes the frames of a batch any more.
    pub(super) fn room_is_quiet(&mut self, transfer: TransferId) {
        if let Some(batch) = self.incoming.get_mut(&transfer) {
            batch.is_quiet = true;
        }
        self.forget_received(transfer);
    }

    fn forget_received(&mut self, transfer: TransferId) {
        if self.incoming.get(&transfer).is_some_and(|batch| batch.is_quiet && batch.tell.is_none()) {
            self.incoming.remove(&transfer);
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Before the frames go that it may touch.
        if let Some((_, worker)) = &self.worker {
            worker.kill();
        }
    }
}
