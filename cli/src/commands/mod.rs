//! The verbs, one file each.

pub mod config;
pub mod connect;
pub mod down;
pub mod generated;
pub mod replay;
pub mod simulate;
pub mod status;
pub mod trace;
pub mod up;

/// Makes the runtime of a command that talks to the data plane.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
