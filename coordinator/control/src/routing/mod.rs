//! Which serving process should take a request, pure: what each engine's own cache holds, as its events say ([`Feed`] over
//! [`Index`]), how busy it is ([`Busy`]), and what the request would cost there ([`rank`]). Sockets, message formats and clocks are elsewhere.

mod busy;
mod feed;
mod hashes;
mod index;
mod names;
mod score;
mod words;

pub use busy::Busy;
pub use feed::{Batch, Feed, FeedCounters, FeedEffect, FeedEvent, MAX_HELD_BATCHES, MAX_HELD_BLOCKS};
pub use hashes::Hashes;
pub use index::{Index, MAX_GROUPS, MAX_INDEXED_BLOCKS, MAX_KNOWN_BLOCKS, Own, room};
pub use names::{Asked, CacheEvent, Content, EngineHash, Medium, StoredBlock, content};
pub use score::{Judged, Piece, choose, rank};
