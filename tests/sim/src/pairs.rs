//! GPUs that talk by NCCL pairs: their machines, workers that make communicators which match or hang as NCCL's do, and what must
//! hold whatever becomes of messages, workers and processes. [`explore`] goes through every interleaving of two or three of them up
//! to a bound; [`Storm`] through one, drawn from a seed, of up to six.

mod explore;
mod gpu;
mod nccl;
mod rules;
mod storm;

pub use explore::{Bounds, Explored, Scenario, explore};
pub use kvhive_links::pairs::Flaw;
pub use storm::{Calm, Storm};
