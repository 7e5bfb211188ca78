//! The data plane: connections, and what each request does.

mod check;
mod connection;
mod counters;
mod fetch;
mod replicate;
mod server;
mod store;

pub(crate) use counters::Counters;
pub(crate) use replicate::Replicator;
pub(crate) use server::{DataPlane, Limits, serve};
