//! Coordinators as a whole: real ones on loopback, with logs on disk, asked through their sockets as operators, nodes and
//! clients ask them. Ports are free ones; every folder is temporary.

mod access;
mod admin;
mod changes;
mod engines;
mod events;
mod fake_engine;
mod group;
mod http;
mod lists;
mod once;
mod pins;
mod raft_peers;
mod restarts;
mod roles;
mod strategies;
mod tenants;
mod traffic;
