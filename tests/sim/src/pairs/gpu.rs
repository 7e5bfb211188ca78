//! One simulated GPU: its machine, its worker and what became of its transfers.

use kvhive_links::Pairs;
use kvhive_links::pairs::{Answer, Communicator, Flaw, Ticket, Tuning};
use kvhive_protocol::pairs::{TransferId, UniqueId};
use kvhive_protocol::{DeviceId, Generation, MemberId, Moment};
use std::collections::{BTreeMap, VecDeque};

/// What is enqueued on a communicator.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Operation {
    Send(TransferId, Ticket),
    Receive(TransferId),
}

/// A communicator as one worker has it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct End {
    /// Number of its id, once it has joined or, as rank 0, made it.
    pub(crate) id: Option<usize>,
    pub(crate) has_joined: bool,
    pub(crate) is_ready: bool,
    pub(crate) is_closing: bool,
    pub(crate) operation: Option<Operation>,
}

/// A process that calls NCCL.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Worker {
    pub(crate) ends: BTreeMap<Communicator, End>,
    /// It answers nothing any more.
    pub(crate) hangs: bool,
}

/// What became of a transfer at one end.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Fate {
    /// By when it is to be answered.
    pub(crate) deadline: Moment,
    /// Whether it went by NCCL.
    pub(crate) answer: Option<bool>,
    pub(crate) is_quiet: bool,
    /// What is in its frames, where it is received.
    pub(crate) content: Option<TransferId>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Gpu {
    pub(crate) machine: Pairs,
    pub(crate) generation: Generation,
    pub(crate) worker: Option<Worker>,
    /// What the worker has said and the machine has not heard.
    pub(crate) answers: VecDeque<Answer>,
    pub(crate) wants: BTreeMap<Ticket, Fate>,
    pub(crate) rooms: BTreeMap<TransferId, Fate>,
}

/// Returns the name of a GPU.
pub(crate) fn device(at: usize) -> DeviceId {
    DeviceId::new(MemberId(at as u32 + 1), 0)
}

/// Returns which GPU this names.
pub(crate) fn index(device: DeviceId) -> usize {
    device.member.0 as usize - 1
}

/// Returns the id of a number.
pub(crate) fn id(number: usize) -> UniqueId {
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    UniqueId(bytes)
}

/// Returns the number of an id.
pub(crate) fn number(id: &UniqueId) -> usize {
    u64::from_le_bytes(id.0[..8].try_into().expect("eight bytes")) as usize
}

impl Gpu {
    pub(crate) fn start(at: usize, generation: Generation, tuning: &Tuning, flaw: Option<Flaw>) -> Gpu {
        Gpu {
            machine: Pairs::new(device(at), generation, tuning.clone()).with_flaw(flaw),
            generation,
            worker: None,
            answers: VecDeque::new(),
            wants: BTreeMap::new(),
            rooms: BTreeMap::new(),
        }
    }

    /// Says whether everything is answered and nothing touches any frame.
    pub(crate) fn is_at_rest(&self) -> bool {
        let mut fates = self.wants.values().chain(self.rooms.values());
        fates.all(|fate| fate.answer.is_some() && fate.is_quiet)
    }

    /// The worker's process ends, with everything that it did.
    pub(crate) fn end_worker(&mut self) {
        if self.worker.take().is_some() {
            self.answers.clear();
            self.answers.push_back(Answer::Died);
        }
    }
}
