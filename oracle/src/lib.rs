//! What a cluster may answer while it is broken on purpose, pure: nothing here knows sockets, threads or clocks; time comes in with
//! each call.
//!
//! - [`payload`]: blocks of which every line says whose it is, so that a wrong byte tells where it came from.
//! - [`Oracle`]: what was stored, cleared and promised, and so what an answer may be.
//! - [`Plan`]: which fault comes next; the same seed gives the same plan.
//! - [`Schedule`]: which of those may begin while others are under way: as many as no promise is voided by.
//! - [`linear`]: whether a history of calls is one that a single machine could have given.
//! - [`Report`]: what came of it, each figure with the bar that it has to meet.

pub mod answers;
pub mod linear;
pub mod objects;
pub mod payload;
pub mod plan;
pub mod random;
pub mod report;
pub mod schedule;

pub use answers::{Answer, Asked, Oracle};
pub use payload::{Label, Wrong};
pub use plan::{Fault, Plan, Step};
pub use random::Random;
pub use report::{Figures, Hit, Outage, Report, Row};
pub use schedule::{Broken, Schedule, Size, Turn};

/// A time on the clock of whoever drives the cluster, in nanoseconds since it began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct At(pub u64);
