//! The rules of a node, pure: what one shard keeps and gives up, how a node holds its lease, and the same rules run over
//! a trace. Nothing here knows bytes, sockets, threads or clocks; time comes in with each call.
//!
//! - [`Shard`]: index, prefix match, three tiers, pins and holds, parties and policies, the typed life of a block.
//! - [`Member`]: registration, heartbeats, lease and map of one node.
//! - [`acks`]: when a store may be answered.
//! - [`Heat`]: how much each slot is read.
//! - [`Tenure`], [`Lapses`]: since when a device has its slots, and when its node had no lease last.
//! - [`Fills`]: which slots' blocks a node gives to other nodes; [`Nearest`]: in which order.
//! - [`Guests`]: blocks of others' slots that a node keeps for clients near it.
//! - [`Names`]: which blocks names mean that can be given another meaning.
//! - [`Displacing`]: what a device lets go of for slots of members that are being emptied.
//! - [`Intake`]: which blocks of a snapshot may still find room; [`held_at_once`]: how many of a fetch are read.
//! - [`simulate`]: a shard without bytes.

pub mod acks;
mod answers;
mod block;
mod declined;
mod departed;
mod displacing;
mod expected;
mod feed;
mod fills;
mod frames;
mod guests;
mod heat;
mod index;
mod intake;
pub mod member;
mod names;
mod nearest;
mod orphans;
mod owners;
mod party;
pub mod policy;
mod ranking;
mod recency;
pub mod reuse;
mod shard;
pub mod simulate;
mod stats;
mod table;
mod tenure;
#[cfg(test)]
mod test_map;

pub use answers::{CopyVerdict, Effect, Listed, Reserve, ShardConfig};
pub use block::{BlockId, CopyTicket, ShrinkTicket, Tier, WriteTicket};
pub use displacing::{Displacing, Holder, Unsettled};
pub use fills::{Fate, Fills, Pass, Round};
pub use frames::TierCapacity;
pub use guests::{GuestKey, Guests, Visit};
pub use heat::Heat;
pub use intake::{Intake, held_at_once};
pub use member::{Member, MemberEffect, MemberEvent, MemberTuning, Tenancy};
pub use names::{Names, TooEarly};
pub use nearest::Nearest;
pub use party::{Quota, Rules};
pub use shard::{Known, Pinned, Shard};
pub use stats::{Collected, Reason, ShardStats, TierStats};
pub use tenure::{Lapses, Tenure};
