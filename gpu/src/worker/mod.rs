//! NCCL in a process of its own, one for each GPU of a node: a library that may hang, in a process that may be killed.
//!
//! The node starts it with a socket as its standard input, lends it the GPU's memory by a handle, and tells it what to do by small
//! messages; answers come when they come. All calls of NCCL are made by one thread of that process. When a call does not return, a second
//! thread ends the process; when the node is gone, it ends as well. Nothing that happens to it touches the node's own memory or context.
//!
//! A [`Worker`] is the node's side, [`serve`] the process's. Which pairs there are, who talks when, and what is done after a failure is decided
//! by whoever tells them; here it is only done.

mod channel;
mod handle;
mod issuer;
mod message;
mod plan;
mod serve;
mod watch;

pub use handle::{Heard, TellError, Worker};
#[doc(hidden)]
pub use message::fuzz_messages;
pub use message::{Answer, Command, Extent, Garbled, PairId, Setup, TransferId, Why};
pub use nccl_rs::{Rank, UniqueId};
pub use plan::{LEAST_BYTES, MOST_BYTES, Packing};
pub use serve::{ServeError, serve};
