//! `lirs`: blocks are ranked by the distance between their last two uses. A short one makes a block hot, and hot blocks take 99 %
//! of the pool; the others pass a small queue, and become hot when they come back while they are still on the stack (Jiang,
//! Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy to Improve Buffer Cache Performance",
//! SIGMETRICS 2002). LIR blocks are called hot here, HIR blocks cold; ghosts are the non-resident HIR blocks.

use super::ghosts::{Ghosts, Print, Printer};
use super::list::{Column, Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// For so many blocks of the pool there are so many ghosts: two for each. Places of those that come back or sink below
/// the stack stay empty for a while.
const BLOCKS: u32 = 8;
const GHOSTS: u32 = 16;
/// The cold queue's share of the pool is one in so many.
const COLD_SHARE: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Out,
    Hot,
    Cold,
}

/// The stack orders blocks and ghosts by their last use, the queue the cold blocks that are resident.
pub struct Lirs {
    hot_limit: usize,
    hot: usize,
    /// Of each 24 nodes on the stack, the first eight are records' and the others ghosts'.
    stack_links: Links,
    stack: List,
    queue_links: Links,
    queue: List,
    states: Column<State>,
    printer: Printer,
    ghosts: Ghosts,
    path: Path,
}

/// What a node on the stack stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stacked {
    Record(u32),
    Ghost(u32),
}

const NODES: u32 = BLOCKS + GHOSTS;

const fn node_of_record(at: u32) -> u32 {
    at / BLOCKS * NODES + at % BLOCKS
}

const fn node_of_ghost(ghost: u32) -> u32 {
    ghost / GHOSTS * NODES + BLOCKS + ghost % GHOSTS
}

const fn stacked(node: u32) -> Stacked {
    let (group, place) = (node / NODES, node % NODES);
    if place < BLOCKS {
        Stacked::Record(group * BLOCKS + place)
    } else {
        Stacked::Ghost(group * GHOSTS + place - BLOCKS)
    }
}

impl Lirs {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>()
            + Links::bytes(capacity.div_ceil(BLOCKS as usize) * NODES as usize)
            + Links::bytes(capacity)
            + Column::<State>::bytes(capacity)
            + Ghosts::bytes(capacity * GHOSTS as usize / BLOCKS as usize)
    }

    /// Makes an empty stack for `blocks` blocks.
    pub fn new(blocks: u32, seed: u64) -> Lirs {
        let capacity = blocks as usize;
        let cold = (capacity / COLD_SHARE).max(2);
        Lirs {
            hot_limit: capacity.saturating_sub(cold).max(1),
            hot: 0,
            stack_links: Links::new(capacity.div_ceil(BLOCKS as usize) * NODES as usize),
            stack: List::EMPTY,
            queue_links: Links::new(capacity),
            queue: List::EMPTY,
            states: Column::new(capacity),
            printer: Printer::new(seed),
            ghosts: Ghosts::new(capacity * GHOSTS as usize / BLOCKS as usize),
            path: Path::NONE,
        }
    }

    fn is_stacked(&self, at: u32) -> bool {
        self.stack_links.contains(node_of_record(at))
    }

    /// Puts a block on top of the stack, or just below its parent.
    fn raise(&mut self, at: u32, parent: Option<u32>) {
        let node = node_of_record(at);
        if self.is_stacked(at) {
            self.stack.leave(&mut self.stack_links, node);
        }
        let below = parent.filter(|parent| self.is_stacked(*parent)).map(node_of_record);
        self.stack.enter(&mut self.stack_links, node, below);
    }

    fn queue_up(&mut self, at: u32, parent: Option<u32>) {
        if self.queue_links.contains(at) {
            self.queue.leave(&mut self.queue_links, at);
        }
        let below = parent.filter(|parent| self.queue_links.contains(*parent));
        self.queue.enter(&mut self.queue_links, at, below);
    }

    fn heat(&mut self, at: u32, parent: Option<u32>) {
        if self.queue_links.contains(at) {
            self.queue.leave(&mut self.queue_links, at);
        }
        self.raise(at, parent);
        *self.states.entry(at) = State::Hot;
        self.hot += 1;
        if self.hot > self.hot_limit {
            self.cool_the_bottom();
        }
    }

    fn cool_the_bottom(&mut self) {
        self.prune();
        let Some(Stacked::Record(at)) = self.stack.oldest().map(stacked) else { return };
        self.stack.leave(&mut self.stack_links, node_of_record(at));
        *self.states.entry(at) = State::Cold;
        self.hot -= 1;
        self.queue_up(at, None);
        self.prune();
    }

    /// Takes off the stack what lies below the oldest hot block: only a use while stacked says that a block is hot.
    fn prune(&mut self) {
        while let Some(node) = self.stack.oldest() {
            match stacked(node) {
                Stacked::Ghost(ghost) => self.ghosts.forget(ghost),
                Stacked::Record(at) if self.states.get(at) == State::Hot => return,
                Stacked::Record(_) => {}
            }
            self.stack.leave(&mut self.stack_links, node);
        }
    }

    fn forget_ghost(&mut self, ghost: u32) {
        self.ghosts.forget(ghost);
        self.stack.leave(&mut self.stack_links, node_of_ghost(ghost));
    }

    /// Leaves a ghost in a block's place on the stack.
    fn haunt(&mut self, at: u32, key: &BlockKey) {
        if let Some(ghost) = self.new_ghost(self.printer.print(key)) {
            self.stack.enter(&mut self.stack_links, node_of_ghost(ghost), Some(node_of_record(at)));
        }
    }

    /// Makes a ghost that is not on the stack yet.
    fn new_ghost(&mut self, print: Print) -> Option<u32> {
        if let Some(again) = self.ghosts.find(print) {
            self.forget_ghost(again);
        }
        if let Some(oldest) = self.ghosts.next_to_go() {
            self.forget_ghost(oldest);
        }
        self.ghosts.remember(print)
    }
}

impl Policy for Lirs {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        let parent = self.path.step(at, visit);
        match self.states.get(at) {
            State::Out => {}
            State::Hot => {
                self.raise(at, parent);
                self.prune();
            }
            State::Cold if self.is_stacked(at) => self.heat(at, parent),
            State::Cold => {
                self.raise(at, parent);
                self.queue_up(at, parent);
            }
        }
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.removed(at, &visit.key, Removal::Dropped);
        let print = self.printer.print(&visit.key);
        let parent = self.path.step(at, visit);
        let ghost = self.ghosts.find(print);
        if let Some(ghost) = ghost {
            self.forget_ghost(ghost);
        }
        if ghost.is_some() || self.hot < self.hot_limit {
            self.heat(at, parent);
        } else {
            *self.states.entry(at) = State::Cold;
            self.raise(at, parent);
            self.queue_up(at, parent);
        }
    }

    fn refused(&mut self, visit: &Visit) {
        let print = self.printer.print(&visit.key);
        if let Some(ghost) = self.new_ghost(print) {
            self.stack.enter(&mut self.stack_links, node_of_ghost(ghost), None);
        }
        self.prune();
    }

    fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        if let Some(at) = self.queue.oldest_free(&mut self.queue_links, may_go, &mut scan) {
            return Verdict::Evict(at);
        }
        // The queue is full of what this request brought. A newcomer that would only join it is not let in; it is known when it
        // comes back, and then takes a hot block's place.
        let was_stacked = self.ghosts.find(self.printer.print(&newcomer.key)).is_some();
        if self.queue.len() > 0 && self.hot >= self.hot_limit && !was_stacked {
            return Verdict::Refuse;
        }
        let mut next = self.stack.oldest();
        for _ in 0..MAX_SCAN {
            let Some(node) = next else { break };
            if let Stacked::Record(at) = stacked(node)
                && may_go(at)
            {
                return Verdict::Evict(at);
            }
            next = self.stack_links.newer(node);
        }
        Verdict::Stuck
    }

    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal) {
        self.path.forget(at);
        let state = std::mem::take(self.states.entry(at));
        match state {
            State::Out => return,
            State::Hot => self.hot -= 1,
            State::Cold => self.queue.leave(&mut self.queue_links, at),
        }
        if self.is_stacked(at) {
            if state == State::Cold && why == Removal::Evicted {
                self.haunt(at, key);
            }
            self.stack.leave(&mut self.stack_links, node_of_record(at));
        }
        self.prune();
    }

    fn held(&mut self, most: usize) {
        self.ghosts.sized(most * GHOSTS as usize / BLOCKS as usize);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.stack_links.memory_bytes()
            + self.queue_links.memory_bytes()
            + self.states.memory_bytes()
            + self.ghosts.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn nodes_of_records_and_ghosts_fill_the_stack_without_a_gap() {
        let mut all: Vec<u32> = (0..24).map(node_of_record).chain((0..48).map(node_of_ghost)).collect();
        assert!((0..24).all(|at| stacked(node_of_record(at)) == Stacked::Record(at)));
        assert!((0..48).all(|ghost| stacked(node_of_ghost(ghost)) == Stacked::Ghost(ghost)));
        all.sort_unstable();
        assert_eq!(all, (0..72).collect::<Vec<u32>>());
    }

    #[test]
    fn a_block_that_comes_back_soon_turns_hot_and_the_oldest_hot_one_cools() {
        // Two of the four are hot.
        let mut pool = Scenario::with_room_for(4, Strategy::Lirs);
        assert_eq!(pool.serve_each("abcdef").resident(), "abef");
        assert_eq!(pool.serve_each("c").resident(), "abcf");
        assert_eq!(pool.serve_each("gh").resident(), "bcgh");
    }
}
