//! The policy that each strategy stands for, and whether it shrinks blocks.

use super::adaptive::Adaptive;
use super::{Arc, Lfu, Lirs, Lru, LruTwo, Paged, Policy, S3Fifo, Shrinking, Sieve, WTinyLfu};
use kvhive_protocol::strategy::Strategy;

/// How cold blocks become smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shrink {
    /// Every bit comes back.
    Lossless,
    /// To fewer bits: which codec makes them is the host's matter.
    Quantize,
}

/// Makes a strategy's policy, empty, for a pool of at most `capacity` blocks. `seed` decides how ghosts and counts are hashed,
/// nothing else.
pub fn build(strategy: Strategy, capacity: u32, seed: u64) -> Box<dyn Policy> {
    match strategy {
        Strategy::Lru => Box::new(Lru::new(capacity)),
        Strategy::Lfu => Box::new(Lfu::aging(capacity)),
        Strategy::Lru2 => Box::new(LruTwo::new(capacity, seed)),
        Strategy::Adaptive => Box::new(Adaptive::new(capacity as usize)),
        Strategy::Arc => Box::new(Arc::new(capacity, seed)),
        Strategy::Lirs => Box::new(Lirs::new(capacity, seed)),
        Strategy::S3Fifo => Box::new(S3Fifo::new(capacity, seed)),
        Strategy::Sieve => Box::new(Sieve::new(capacity)),
        Strategy::WTinyLfu => Box::new(WTinyLfu::new(capacity, seed)),
        Strategy::Paged => Box::new(Paged::new(capacity)),
        Strategy::Compressed | Strategy::Quantized => Box::new(Shrinking::new(capacity)),
    }
}

/// Says how a shard shrinks the blocks that [`Policy::coldest`] names before it lets any go, if it does.
pub const fn shrinks(strategy: Strategy) -> Option<Shrink> {
    match strategy {
        Strategy::Compressed => Some(Shrink::Lossless),
        Strategy::Quantized => Some(Shrink::Quantize),
        _ => None,
    }
}

/// Returns the bytes that its policy takes at most, ghosts included, for a pool of so many blocks.
pub fn most_bytes(strategy: Strategy, capacity: u32) -> usize {
    match strategy {
        Strategy::Lru => Lru::most_bytes(capacity),
        Strategy::Lfu => Lfu::most_bytes(capacity),
        Strategy::Lru2 => LruTwo::most_bytes(capacity),
        Strategy::Adaptive => Adaptive::most_bytes(capacity),
        Strategy::Arc => Arc::most_bytes(capacity),
        Strategy::Lirs => Lirs::most_bytes(capacity),
        Strategy::S3Fifo => S3Fifo::most_bytes(capacity),
        Strategy::Sieve => Sieve::most_bytes(capacity),
        Strategy::WTinyLfu => WTinyLfu::most_bytes(capacity),
        Strategy::Paged => Paged::most_bytes(capacity),
        Strategy::Compressed | Strategy::Quantized => Shrinking::most_bytes(capacity),
    }
}
