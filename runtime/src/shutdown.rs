//! The order in which a process ends: first nobody new is let in, then what is under way ends, then disks. Actors
//! and threads follow.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tracing::{info, warn};

/// When in the ending of a process something is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Listeners close, leases are given up.
    StopAccepting,
    /// Requests that are under way end.
    DrainRequests,
    /// Files are synced and closed.
    CloseDisks,
}

/// The part of the time that each stage leaves to each after it: what hangs in one shall not keep files from being synced.
const RESERVED: u32 = 4;

type Step = (String, Pin<Box<dyn Future<Output = ()> + Send>>);

/// What is to be done when the process ends.
#[derive(Default)]
pub struct Shutdown {
    stages: Mutex<BTreeMap<Stage, Vec<Step>>>,
}

impl Shutdown {
    /// Adds a step to a stage. Steps of one stage run side by side.
    pub fn at(&self, stage: Stage, name: impl Into<String>, step: impl Future<Output = ()> + Send + 'static) {
        let mut stages = self.stages.lock().unwrap_or_else(|poison| poison.into_inner());
        stages.entry(stage).or_default().push((name.into(), Box::pin(step)));
    }

    /// Runs all stages in order, within `limit` together, of which each leaves a quarter to each after it; a step that takes longer is left
    /// behind and named in the log.
    pub(crate) fn run(&self, io: &Handle, limit: Duration) {
        let stages = std::mem::take(&mut *self.stages.lock().unwrap_or_else(|poison| poison.into_inner()));
        let (end, mut later) = (Instant::now() + limit, stages.len() as u32);
        for (stage, steps) in stages {
            later -= 1;
            let end = end - limit / RESERVED * later;
            let mut running: Vec<_> = steps.into_iter().map(|(name, step)| (name, io.spawn(step))).collect();
            io.block_on(async {
                for (name, step) in &mut running {
                    let left = end.saturating_duration_since(Instant::now());
                    match tokio::time::timeout(left, &mut *step).await {
                        Ok(Ok(())) => info!(?stage, step = %name, "done"),
                        Ok(Err(error)) => warn!(?stage, step = %name, %error, "failed"),
                        Err(_) => {
                            step.abort();
                            warn!(?stage, step = %name, ?limit, "took too long and is left behind");
                        }
                    }
                }
            });
        }
    }
}

/// Waits for SIGINT or SIGTERM and returns its name.
///
/// # Errors
/// When the process may not handle signals.
pub async fn shutdown_signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
}

/// Waits until `stop` turns true or its sender is gone.
pub async fn stopped(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // Either way nobody wants this to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}
