//! Which block leaves when a shard is full: the seam between the shard's rules and the policies that it can be given.
//!
//! A policy decides only what leaves the pool (all tiers of one shard together) and what is not worth letting in. In which tier a
//! block rests is the shard's own matter. A policy knows blocks by the number of their record: dense, below the shard's
//! capacity, one block at a time, used again after [`Policy::removed`].

pub mod adaptive;
mod arc;
#[cfg(test)]
mod contract_test;
mod ghosts;
mod lfu;
mod lirs;
mod list;
mod lru;
mod lru2;
mod paged;
mod s3fifo;
#[cfg(test)]
mod scenario;
mod shrinking;
mod sieve;
mod sketch;
mod strategy;
mod wtinylfu;

pub use arc::Arc;
pub use lfu::Lfu;
pub use lirs::Lirs;
pub use lru::Lru;
pub use lru2::LruTwo;
pub use paged::Paged;
pub use s3fifo::S3Fifo;
pub use shrinking::Shrinking;
pub use sieve::Sieve;
pub use strategy::{Shrink, build, most_bytes, shrinks};
pub use wtinylfu::WTinyLfu;

pub use kvhive_protocol::data::Hint;
pub use kvhive_protocol::strategy::{ChoiceReport, Strategy, UnknownStrategy};
use kvhive_protocol::{BlockKey, Moment};

/// One request as far as this shard sees it. The calls that follow, until the next request, are its.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Request {
    /// When it came.
    pub now: Moment,
    /// Number of this request in this shard; grows.
    pub number: u64,
    /// Blocks that it names.
    pub blocks: u32,
    /// Blocks of them, from the start, that were resident.
    pub covered: u32,
    /// Tokens of its prompt, 0 if not known.
    pub input_tokens: u32,
    /// Tokens of its answer, 0 if not known.
    pub output_tokens: u32,
    /// What the engine said.
    pub hint: Hint,
}

/// One block of a request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Visit {
    /// Its key; ghosts are known by it.
    pub key: BlockKey,
    /// The record of the block before it in its prefix, if that is resident in this shard.
    pub parent: Option<u32>,
    /// Blocks before it in its prefix.
    pub depth: u32,
    /// Whether it is the last block of its request and not full of tokens.
    pub partial: bool,
}

/// What a policy says to a block that has no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// This block leaves for it.
    Evict(u32),
    /// The newcomer is worth less than what would leave for it.
    Refuse,
    /// Nothing may leave now.
    Stuck,
}

/// Why a block is not resident any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// For want of room: the policy itself said so. It may be remembered as a ghost.
    Evicted,
    /// A clear, a move to another device, a failed disk: says nothing about its worth.
    Dropped,
}

/// Decides what leaves.
pub trait Policy: Send {
    /// A request begins.
    fn begin(&mut self, request: &Request);

    /// More is known of the request at hand: a store has said what a match could not. Those that listen to neither hints nor
    /// tokens pass over it.
    fn about(&mut self, _request: &Request) {}

    /// A resident block was used by the request.
    fn hit(&mut self, at: u32, visit: &Visit);

    /// A block has become resident as record `at`.
    fn inserted(&mut self, at: u32, visit: &Visit);

    /// A block of the request was not taken, by [`Verdict::Refuse`] or because the pool is stuck.
    fn refused(&mut self, visit: &Visit);

    /// Says what leaves for `newcomer`. `may_go` says whether a block can go at all (it is a leaf, nobody reads or holds
    /// it); where it says no, the policy proposes its next best, and gives up with [`Verdict::Stuck`] after a bounded search.
    /// Nothing changes by this call but what the policy needs for itself: the shard follows with [`Policy::removed`].
    fn victim(&mut self, newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict;

    /// The block of record `at`, known by `key`, is gone.
    fn removed(&mut self, at: u32, key: &BlockKey, why: Removal);

    /// A resident block has become a leaf, its last child being gone; or it was inserted with children, and is none. That a
    /// block is no leaf any more once a child of it is inserted goes without saying.
    fn set_leaf(&mut self, _at: u32, _leaf: bool) {}

    /// The engine has said what it expects of the session of a resident block, without using it. Those that do not listen to
    /// hints pass over it. A prefix is told from its tail to its head.
    fn hinted(&mut self, _at: u32, _key: &BlockKey, _hint: Hint) {}

    /// Says what would leave next, whoever comes; `may_go` as in [`Policy::victim`]. None when nothing may, or when it takes a
    /// newcomer to tell.
    fn next_to_leave(&mut self, may_go: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        let nobody = Visit { key: BlockKey::NONE, parent: None, depth: 0, partial: false };
        match self.victim(&nobody, may_go) {
            Verdict::Evict(at) => Some(at),
            Verdict::Refuse | Verdict::Stuck => None,
        }
    }

    /// Says which way to rank it has chosen and why, if it is one that chooses.
    fn report(&self) -> Option<ChoiceReport> {
        None
    }

    /// Chooses now, by the evidence at hand, if it is one that chooses.
    fn adjust(&mut self) {}

    /// Appends the records that would leave next and were not named since their last use, coldest first, at most `limit`.
    /// For a shard that re-encodes what is cold before it lets anything go ([`shrinks`]); others name none.
    fn coldest(&mut self, _limit: usize, _cold: &mut Vec<u32>) {}

    /// So many blocks were held at once at most, or a few thousand: of a pool that grows with what it holds, no more ghosts need be
    /// remembered than of one that has room for so many, and none than its capacity allows. Not told, it goes by that.
    fn held(&mut self, _most: usize) {}

    /// Bytes of memory that it holds, ghosts included.
    fn memory_bytes(&self) -> usize;
}
