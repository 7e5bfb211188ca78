//! What adapters inside serving engines decide. An engine's scheduler has a [`planner`]: which blocks of which request are asked
//! for, and what is said of them. Each of its workers has a [`courier`]: what is in flight, what memory that takes, and when a
//! cluster is left alone. What one tells the other is in [`orders`]. Where a prefix may stop that is kept in several pools is in
//! [`stops`](mod@stops). No engine's types, no sockets, no clock.

pub mod courier;
#[cfg(test)]
mod courier_test;
pub mod figures;
pub mod fingerprint;
pub mod groups;
pub mod known;
pub mod lookups;
pub mod orders;
pub mod planner;
#[cfg(test)]
mod planner_test;
pub mod rest;
pub mod stops;
pub mod tasks;
pub mod troubles;
pub mod wishes;

pub use courier::{Courier, CourierLimits, Effect, Event};
pub use figures::{Figures, NotSaved};
pub use fingerprint::fingerprint;
pub use groups::{BadGroups, Group, Groups};
pub use lookups::{Lookup, Lookups};
pub use orders::{AskId, Order, Report, SaveId, decode, encode};
pub use planner::{Matched, Planner, PlannerLimits, Scheduled};
pub use stops::{Needs, Stops, stops};
pub use tasks::{Ended, Tasks};
pub use troubles::Troubles;
pub use wishes::Wish;
