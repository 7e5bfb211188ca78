//! What every HTTP listener of a cluster's processes has in common: who may do what, how a refusal
//! looks, and what exported figures say.

mod access;
mod help;
mod problem;
mod tls;

pub use access::{Access, AccessError, Role, required};
pub use help::{HELP, describe, help_line};
pub use problem::{Awaited, Problem};
pub use tls::record_tls;
