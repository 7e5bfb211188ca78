//! Uses that the policies have not been told of yet. A match looks up a few of its keys; what it means for each of its blocks is
//! told later, off the request's path, a piece with each [`Shard::tend`]. What waits is bounded in blocks, and so is what one
//! call tells: where more is used than a tend tells, a match tells as much of what came before as it adds.

use super::Shard;
use super::moves::Why;
use crate::block::{Life, Mark};
use crate::policy::Request;
use kvhive_protocol::{KeyList, TenantId};
use std::collections::VecDeque;

/// Blocks whose uses wait at most.
const MAX_WAITING: usize = 16_384;
/// Blocks of one entry: a longer run is several.
const PIECE: u32 = 512;
/// Blocks that one [`Shard::tell_some`] tells, up to a piece more; and that one store tells at most, of its own request and again of all.
const TOLD_AT_ONCE: usize = 1024;

/// One use of a piece of a prefix: a block and the blocks before it.
struct Use {
    at: u32,
    generation: u32,
    /// Blocks used, this one included.
    count: u32,
    /// Whether its run begins with it, and ends.
    begins: bool,
    ends: bool,
    request: Request,
}

/// What waits, oldest first.
pub(super) struct Uses {
    queue: VecDeque<Use>,
    blocks: usize,
    /// Blocks that the run at hand may still have brought up.
    ahead: u32,
}

impl Uses {
    /// Nothing waits.
    pub(super) const NONE: Uses = Uses { queue: VecDeque::new(), blocks: 0, ahead: 0 };

    /// Returns the bytes that they take at most.
    pub(super) const fn bytes() -> usize {
        MAX_WAITING * size_of::<Use>()
    }

    /// Takes out what the latest request has used, if it is this one, and if that is no more than is told at once.
    fn take_of(&mut self, request: u64) -> VecDeque<Use> {
        let (mut from, mut blocks) = (self.queue.len(), 0);
        while let Some(one) = from.checked_sub(1).and_then(|at| self.queue.get(at)) {
            if one.request.number != request {
                break;
            }
            blocks += one.count as usize;
            if blocks > TOLD_AT_ONCE {
                return VecDeque::new();
            }
            from -= 1;
        }
        self.blocks -= blocks;
        self.queue.split_off(from)
    }
}

impl Shard {
    /// Tells the policies a bounded piece of what was used since they were told last.
    pub fn tell_some(&mut self) {
        self.tell_uses(TOLD_AT_ONCE);
    }

    /// Returns how many blocks' uses the policies have not been told of yet.
    pub fn untold(&self) -> usize {
        self.uses.blocks
    }

    /// Tells all that waits before a store, where that is little.
    pub(super) fn tell_few(&mut self) {
        if self.uses.blocks <= TOLD_AT_ONCE {
            self.tell_all();
        }
    }

    /// Tells what the request at hand has used before its store, so that a prefix is told from its head, however much of
    /// others' waits.
    pub(super) fn tell_own(&mut self) {
        let mut path = Vec::new();
        for one in self.uses.take_of(self.request.number) {
            self.tell_one(&one, &mut path);
        }
    }

    /// Tells all that waits: before what is said of sessions, which is to come after their uses.
    pub(super) fn tell_all(&mut self) {
        self.tell_uses(self.uses.blocks);
    }

    /// Notes the use of a run of blocks that are linked to one another, `keys` from `from` on, up to the last of them.
    pub(super) fn note_run(
        &mut self,
        tenant: TenantId,
        keys: &KeyList,
        from: usize,
        count: u32,
        (at, generation): (u32, u32),
        request: Request,
    ) {
        let mut noted = 0;
        while count - noted > PIECE {
            let begins = noted == 0;
            noted += PIECE;
            let key = keys.get(from + noted as usize - 1);
            if let Some(at) = key.and_then(|key| self.visible(tenant, &key)) {
                let generation = self.index.records[at as usize].generation;
                self.note(Use { at, generation, count: PIECE, begins, ends: false, request });
            }
        }
        self.note(Use { at, generation, count: count - noted, begins: noted == 0, ends: true, request });
    }

    /// Notes the use of one block.
    pub(super) fn note_one(&mut self, (at, generation): (u32, u32), request: Request) {
        self.note(Use { at, generation, count: 1, begins: true, ends: true, request });
    }

    fn note(&mut self, one: Use) {
        let blocks = self.uses.blocks + one.count as usize;
        self.tell_uses(blocks.saturating_sub(MAX_WAITING));
        self.uses.blocks += one.count as usize;
        self.uses.queue.push_back(one);
    }

    /// Tells the policies what was used, the oldest first, of so many blocks at least if as many wait, and of less than a piece
    /// more.
    fn tell_uses(&mut self, blocks: usize) {
        let (mut path, mut told) = (Vec::new(), 0);
        while told < blocks
            && let Some(one) = self.uses.queue.pop_front()
        {
            told += one.count as usize;
            self.uses.blocks -= one.count as usize;
            self.tell_one(&one, &mut path);
        }
    }

    /// Tells one use, from the head of the piece to its end. `path` is there to be used again.
    fn tell_one(&mut self, one: &Use, path: &mut Vec<u32>) {
        if one.begins {
            self.uses.ahead = self.config.prefetch;
        }
        let Some(mut at) = self.index.named(one.at, one.generation) else { return };
        path.clear();
        for _ in 0..one.count {
            path.push(at);
            let Some(parent) = self.linked(self.index.records[at as usize].parent) else { break };
            at = parent;
        }
        let mut ahead = self.uses.ahead;
        for at in path.iter().rev() {
            self.tell_use(*at, &one.request, &mut ahead);
        }
        self.uses.ahead = ahead;
        // All that was asked for is here: what follows it is likely the conversation's next turn.
        if one.ends && one.request.covered == one.request.blocks {
            self.want_continuation(path[0], ahead);
        }
    }

    fn tell_use(&mut self, at: u32, request: &Request, ahead: &mut u32) {
        let record = &mut self.index.records[at as usize];
        if record.life != Life::Resident {
            return;
        }
        if record.used_by(request.number as u32) {
            // One that was before its session's end says nothing against that.
            record.set(Mark::OVER, false);
        }
        record.set(Mark::USED, true);
        record.set(Mark::REUSED, true);
        let generation = record.generation;
        let (class, party) = (record.class, usize::from(record.party));
        if *ahead > 0 && self.want(at, Why::Used) {
            *ahead -= 1;
        }
        if !self.expected.is_empty() {
            self.expected.came(request.now, at, generation);
        }
        let visit = self.visit_of(at);
        let ranking = self.parties[party].ranking(class);
        ranking.begin(request);
        ranking.hit(at, &visit);
    }

    /// A store met the block where it is.
    pub(super) fn used(&mut self, at: u32) {
        if !self.is_of_session(self.index.records[at as usize].request) {
            let request = self.request;
            self.tell_use(at, &request, &mut 0);
        }
    }
}
