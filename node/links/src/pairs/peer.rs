//! One pair as one end sees it.

use super::Over;
use super::tuning::Tuning;
use super::words::{Communicator, Why};
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{Incarnation, TransferId, UniqueId};
use kvhive_protocol::{Generation, Moment};
use std::collections::VecDeque;

/// Transfers of a peer that are remembered as withdrawn for good, for an expectation that comes after.
const MAX_OVER: usize = 16;

/// How far the communicator is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    Idle,
    /// Rank 1 has asked for one.
    Asked {
        until: Moment,
    },
    /// The worker is being started; rank 1 has been offered one.
    Waking {
        until: Moment,
        offer: Option<(Incarnation, UniqueId)>,
    },
    /// Rank 0's worker makes an id.
    Making {
        incarnation: Incarnation,
        communicator: Communicator,
        until: Moment,
    },
    /// Rank 0 has offered it.
    Offered {
        incarnation: Incarnation,
        communicator: Communicator,
        id: UniqueId,
        until: Moment,
    },
    Joining {
        incarnation: Incarnation,
        communicator: Communicator,
        until: Moment,
    },
    Ready {
        incarnation: Incarnation,
        communicator: Communicator,
    },
    /// The worker is giving it up; none: it is killed. Then it rests, or not.
    Aborting {
        communicator: Communicator,
        until: Option<Moment>,
        rests: bool,
    },
    Cold {
        until: Moment,
    },
}

impl Stage {
    /// Returns its communicator, from when one is made to when it is no more.
    pub(super) fn communicator(&self) -> Option<Communicator> {
        match *self {
            Stage::Making { communicator, .. }
            | Stage::Offered { communicator, .. }
            | Stage::Joining { communicator, .. }
            | Stage::Ready { communicator, .. }
            | Stage::Aborting { communicator, .. } => Some(communicator),
            Stage::Idle | Stage::Asked { .. } | Stage::Waking { .. } | Stage::Cold { .. } => None,
        }
    }

    /// Returns which it is while it may come to be used.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        match *self {
            Stage::Making { incarnation, .. }
            | Stage::Offered { incarnation, .. }
            | Stage::Joining { incarnation, .. }
            | Stage::Ready { incarnation, .. } => Some(incarnation),
            _ => None,
        }
    }

    /// Returns the communicator that stands.
    pub(super) fn ready(&self) -> Option<(Incarnation, Communicator)> {
        match *self {
            Stage::Ready { incarnation, communicator } => Some((incarnation, communicator)),
            _ => None,
        }
    }

    /// Says whether it counts against the bound.
    pub(super) fn is_live(&self) -> bool {
        self.communicator().is_some() || matches!(*self, Stage::Waking { .. })
    }

    /// Returns by when this stage is to be over.
    pub(super) fn until(&self) -> Option<Moment> {
        match *self {
            Stage::Asked { until }
            | Stage::Waking { until, .. }
            | Stage::Making { until, .. }
            | Stage::Offered { until, .. }
            | Stage::Joining { until, .. } => Some(until),
            Stage::Aborting { until, .. } => until,
            Stage::Idle | Stage::Ready { .. } | Stage::Cold { .. } => None,
        }
    }

    pub(super) fn state(&self, now: Moment, is_busy: bool) -> PairState {
        match *self {
            Stage::Cold { until } if until > now => PairState::Cold,
            Stage::Idle | Stage::Cold { .. } => PairState::Idle,
            Stage::Asked { .. } | Stage::Waking { .. } | Stage::Making { .. } | Stage::Offered { .. } => {
                PairState::Offered
            }
            Stage::Joining { .. } => PairState::Joining,
            Stage::Ready { .. } if is_busy => PairState::Busy,
            Stage::Ready { .. } => PairState::Ready,
            Stage::Aborting { .. } => PairState::Aborting,
        }
    }
}

/// What a peer proposes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Proposal {
    pub(super) transfer: TransferId,
    pub(super) round: u64,
    pub(super) over: Over,
    pub(super) incarnation: Incarnation,
    pub(super) bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Peer {
    pub(super) generation: Generation,
    /// It has left the map, and is forgotten once its communicator is closed.
    pub(super) leaving: bool,
    /// This start of it does without NCCL.
    pub(super) lacks: bool,
    pub(super) stage: Stage,
    pub(super) since: Moment,
    /// The newest communicator that was offered by or to it.
    pub(super) newest: Incarnation,
    /// Bytes that were wanted since one was last given up, and when the last were.
    pub(super) wanted_bytes: u64,
    wanted_at: Moment,
    pub(super) failures: u32,
    pub(super) why: Option<Why>,
    /// What it proposes, unless that is settled.
    pub(super) proposed: Option<Proposal>,
    /// The newest of its proposals.
    pub(super) round: u64,
    /// The newest proposal to it that was gone on with, and where.
    pub(super) went: Option<(u64, Communicator)>,
    over: VecDeque<TransferId>,
    pub(super) used: Moment,
    pub(super) transfers: u64,
    pub(super) bytes: u64,
}

impl Peer {
    pub(super) fn new(now: Moment, generation: Generation) -> Peer {
        Peer {
            generation,
            leaving: false,
            lacks: false,
            stage: Stage::Idle,
            since: now,
            newest: Incarnation::default(),
            wanted_bytes: 0,
            wanted_at: now,
            failures: 0,
            why: None,
            proposed: None,
            round: 0,
            went: None,
            over: VecDeque::new(),
            used: now,
            transfers: 0,
            bytes: 0,
        }
    }

    /// It has started anew: it knows nothing of what was said, and counts from the beginning.
    pub(super) fn starts_anew(&mut self, generation: Generation) {
        (self.generation, self.leaving, self.lacks, self.proposed) = (generation, false, false, None);
        (self.round, self.went, self.failures, self.wanted_bytes) = (0, None, 0, 0);
        self.over.clear();
    }

    pub(super) fn enter(&mut self, now: Moment, stage: Stage) {
        (self.stage, self.since) = (stage, now);
    }

    /// Enters what follows when nothing is left of a communicator.
    pub(super) fn rest(&mut self, now: Moment, tuning: &Tuning, rests: bool) {
        let stage = match rests {
            true => Stage::Cold { until: now + tuning.rest(self.failures) },
            false => Stage::Idle,
        };
        self.enter(now, stage);
    }

    /// Counts what is wanted of it.
    pub(super) fn wants(&mut self, now: Moment, bytes: u64, tuning: &Tuning) {
        if now.since(self.wanted_at) > tuning.wanted_within {
            self.wanted_bytes = 0;
        }
        (self.wanted_bytes, self.wanted_at) = (self.wanted_bytes.saturating_add(bytes), now);
    }

    /// Remembers that this transfer of its will not come.
    pub(super) fn is_over(&mut self, transfer: TransferId) {
        if self.over.len() == MAX_OVER {
            self.over.pop_front();
        }
        self.over.push_back(transfer);
    }

    pub(super) fn was_over(&self, transfer: TransferId) -> bool {
        self.over.contains(&transfer)
    }
}
