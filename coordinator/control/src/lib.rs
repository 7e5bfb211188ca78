//! The rules of the cluster's memory of itself, pure: no waiting, no clock, no thread, no file.
//!
//! [`Registry`] is what the coordinators agree on: it applies commands to the cluster map, each request once.
//! [`placement`] says where slots belong, the planner which of them can go there now. [`Overseer`] is the leader's own:
//! leases, failure detection, and when a tenant's clear is complete. Raft, sockets and disks are elsewhere.

mod afterlives;
mod again;
pub mod autoscaler;
mod balance;
mod clears;
mod cordon;
mod counters;
mod darts;
mod dedupe;
mod departures;
mod domains;
mod drains;
mod engines;
mod flight;
mod handicaps;
mod journal;
mod leases;
mod levels;
mod log2;
mod moves;
mod newcomers;
mod overseer;
mod pins;
pub mod placement;
mod planner;
pub mod predictor;
mod registry;
mod repair;
mod room;
pub mod routing;
mod scaler;
mod scaling;
mod shares;
mod snapshot;
mod telling;
mod tenant_rules;
mod validate;
mod wanted;
mod why;

pub use again::{Cleared, first_era};
pub use balance::BalanceTuning;
pub use clears::{ClearTicket, MAX_CLEARS, PendingClear};
pub use counters::Counters;
pub use dedupe::{MAX_CLIENTS, MAX_REPLY_BYTES, REPLY_WINDOW};
pub use domains::{DOMAIN_LABELS, Place};
pub use drains::{CameTo, Drains, is_of_this};
pub use journal::{EventPage, MAX_EVENTS, MAX_JOURNAL_BYTES};
pub use leases::{Server, grace, serving_grace};
pub use levels::{check_level, rise};
pub use overseer::{BeatVerdict, Effect, Overseer, Tuning};
pub use pins::ended_pins;
pub use registry::Registry;
pub use repair::Repair;
pub use room::{Room, Taker, Unheard, room, weigh};
pub use scaler::{Proposed, Scaler};
pub use scaling::Scaling;
pub use snapshot::{MAX_SNAPSHOT_BYTES, RestoreError, STATE_VERSION};
pub use tenant_rules::{check_change, check_rules};
pub use validate::{
    HEARTBEAT_MS, LEASE_MS, MAX_ADDRESS_BYTES, MAX_LABEL_BYTES, MAX_MAP_BYTES, MAX_REPLICAS,
    MAX_SEGMENT_BLOCKS, MAX_SERVING_LEASE_MS, MAX_SET, check_command, check_registration, check_seat,
};
pub use why::balance_reason;
