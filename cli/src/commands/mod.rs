//! The verbs, one file each.

pub(crate) mod backup;
pub(crate) mod balance;
pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod coordinator;
pub(crate) mod cordon;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod drain;
pub(crate) mod engines;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod generated;
pub(crate) mod gpu_worker;
mod links;
pub(crate) mod moves;
mod named;
pub(crate) mod node;
mod node_snapshot;
pub(crate) mod pin;
mod prompt;
pub(crate) mod raft;
pub(crate) mod replay;
pub(crate) mod route;
pub(crate) mod scale;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod tenants;
pub(crate) mod tls;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod up;

/// Makes the runtime of a command that talks to the data plane.
///
/// # Errors
/// When the system gives no threads.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
