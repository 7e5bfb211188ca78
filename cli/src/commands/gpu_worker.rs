//! `kvhive gpu-worker`: the process that makes a GPU's calls of NCCL. A node starts it; nobody types it.

use anyhow::{Context, Result};
use std::os::fd::AsFd;

/// Works for the node whose socket is standard input.
pub(crate) fn run() -> Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("there is no standard input")?;
    kvhive_gpu::worker::serve(socket).context("a GPU's worker is started by its node alone, and ends")
}
