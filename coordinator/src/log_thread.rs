//! The thread that writes the log: whatever has queued up meanwhile goes under one sync.

use crate::actors::mailbox::RaftMessage;
use crate::log::LogStore;
use kvhive_consensus::{LogBatch, WriteId};
use kvhive_runtime::{SendError, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Writes that wait for the disk; raft's own bounds keep it far below.
const MAX_WAITING: usize = 16_384;
/// Writes under one sync.
const MAX_GROUP: usize = 1024;
/// Wait for room in the raft actor's mailbox: what is durable must be told.
const TELL_PAUSE: Duration = Duration::from_millis(1);

/// What the log thread has done.
#[derive(Debug, Default)]
pub(crate) struct LogFigures {
    /// Syncs.
    pub(crate) syncs: AtomicU64,
    /// Writes under them.
    pub(crate) writes: AtomicU64,
    /// Microseconds they took together.
    pub(crate) micros: AtomicU64,
}

/// A write on its way to the disk.
pub(crate) type Write = (WriteId, LogBatch);

/// Makes the queue to the log thread.
pub(crate) fn queue() -> (SyncSender<Write>, Receiver<Write>) {
    sync_channel(MAX_WAITING)
}

/// Writes until the queue's sender is gone or the disk fails; a failure is told to the raft actor, which ends everything.
pub(crate) fn run(
    mut store: LogStore,
    queue: Receiver<Write>,
    raft: Sender<RaftMessage>,
    figures: Arc<LogFigures>,
) {
    let mut batches = Vec::new();
    while let Ok((mut last, first)) = queue.recv() {
        batches.clear();
        batches.push(first);
        while batches.len() < MAX_GROUP
            && let Ok((write, batch)) = queue.try_recv()
        {
            last = write;
            batches.push(batch);
        }
        let begun = Instant::now();
        let written = store.write(&batches);
        figures.micros.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        figures.syncs.fetch_add(1, Ordering::Relaxed);
        figures.writes.fetch_add(batches.len() as u64, Ordering::Relaxed);
        match written {
            Ok(()) => {
                while raft.try_send(RaftMessage::Persisted { write: last }) == Err(SendError::Full) {
                    std::thread::sleep(TELL_PAUSE);
                }
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(%reason, "the log failed; this coordinator ends");
                while raft.try_send(RaftMessage::LogFailed { reason: reason.clone() }) == Err(SendError::Full)
                {
                    std::thread::sleep(TELL_PAUSE);
                }
                return;
            }
        }
    }
}
