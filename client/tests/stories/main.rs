//! The client against nodes and coordinators that do what a story tells them, over real sockets. What a real node or
//! coordinator does is tested where they live, and whole clusters in the crate `tests`.

mod codecs;
mod coordinators;
mod deadlines;
mod explains;
mod failover;
mod fakes;
mod guests;
mod hostile;
mod maps;
mod matches;
mod overload;
mod releases;
mod slow;
mod stores;
mod tenants;
mod traces;
