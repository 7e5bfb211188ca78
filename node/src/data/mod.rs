//! The data plane: connections, and what each request does.

mod bring;
mod carried;
mod check;
mod connection;
mod content;
mod counters;
mod decode;
mod fair;
mod fetch;
mod grants;
mod guests;
mod here;
mod names;
mod payload;
mod plane;
mod pull;
mod recall;
mod receive;
mod replicate;
mod server;
mod stage;
mod store;
mod traced;
mod turns;

pub(crate) use content::{Content, OnGpu};
pub(crate) use counters::{Counters, VERBS, add, count};
#[cfg(test)]
pub(crate) use fair::Wanted;
#[cfg(test)]
pub(crate) use plane::BRINGING_PLACES;
pub(crate) use plane::{DataPlane, Limits};
pub(crate) use replicate::{Asker, Item, Known, Origin, Replicator, Verdict};
pub(crate) use server::serve;
#[cfg(test)]
pub(crate) use turns::Turn;
