//! What every HTTP listener of a cluster's processes has in common: who may do what, and how a refusal looks.

mod access;
mod problem;
mod tls;

pub use access::{Access, AccessError, Role, required};
pub use problem::Problem;
pub use tls::record_tls;
