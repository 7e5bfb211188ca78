//! A port that speaks Redis, for whatever has a client for that: keys and values of any length, kept by the whole cluster. What
//! requests and replies are is told in [`parse`] and [`reply`], what they ask in [`command`], whom they are answered in
//! [`session`]; all of these only compute. `perform` asks the cluster, `serve` lets callers in, and each is a `caller`. What it can and cannot do is in
//! `docs/integrate/redis.md`.

mod caller;
mod command;
pub(crate) mod fuzz;
mod info;
mod parse;
mod pattern;
mod perform;
mod reply;
mod serve;
mod session;

pub(crate) use serve::{Door, memory_bytes};
