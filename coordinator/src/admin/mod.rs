//! The admin API: what an operator sees and does, as JSON over HTTP, on every coordinator. Reads are linearizable: a
//! follower asks the leader; `?consistency=stale` answers from what it has itself.

mod answers;
mod asked;
pub(crate) mod audit;
mod backup;
mod balance;
mod check_blocks;
mod config;
mod dashboard;
mod devices;
mod document;
mod drains;
mod engines;
mod events;
mod figures;
pub(crate) mod fuzz;
mod lanes;
mod layouts;
mod members;
mod moves;
mod object;
mod once;
mod overview;
mod page;
mod pins;
mod raft;
mod route;
mod routes;
mod scaling;
mod tenants;
mod traces;

pub(crate) use config::Own;
pub(crate) use events::Listeners;
pub(crate) use routes::{Admin, Sources, serve};
