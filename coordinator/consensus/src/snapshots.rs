//! Snapshots: when one is taken, for this peer's own log and for peers that lag or are new, and when one is sent again.

use crate::machine::Consensus;
use crate::messages::MAX_SNAPSHOT_BYTES;
use crate::types::{Effect, LogBatch, PeerId};
use raft::{ProgressState, SnapshotStatus};

/// A snapshot that a peer has not confirmed after this many election timeouts is sent again.
const SNAPSHOT_PATIENCE: u64 = 8;

impl Consensus {
    pub(crate) fn on_snapshot_taken(&mut self, index: u64, data: Vec<u8>, effects: &mut Vec<Effect>) {
        let Some((_, group)) = self.snapshot_asked.take_if(|(asked, _)| *asked == index) else { return };
        if data.len() > MAX_SNAPSHOT_BYTES {
            // No peer could be sent it, and without its entries none could catch up.
            self.oversized_snapshots += 1;
            return;
        }
        // A peer that lags less than this gets entries instead of the whole state.
        let keep = self.config.snapshot_every / 2;
        if let Some(snapshot) = self.raw.mut_store().compact(index, &data, &group, keep) {
            let batch = LogBatch { snapshot: Some(snapshot), ..LogBatch::default() };
            let write = self.next_write();
            // No ready waits for it: the entries that it replaces are durable already.
            self.unpersisted.push_back((write, 0, Vec::new()));
            effects.push(Effect::Persist { write, batch });
        }
    }

    /// Asks for a snapshot when the log has grown, or somebody is to be sent one that does not exist.
    pub(crate) fn ask_for_snapshot(&mut self, effects: &mut Vec<Effect>) {
        let behind = self.applied - self.raw.store().snapshot_index().max(self.snapshot_tried);
        let wanted = self.raw.store().take_wanted() && behind > 0;
        if (wanted || behind >= self.config.snapshot_every) && self.snapshot_asked.is_none() {
            self.snapshot_asked = Some((self.applied, self.group()));
            self.snapshot_tried = self.applied;
            effects.push(Effect::TakeSnapshot { index: self.applied });
        }
    }

    /// Has snapshots sent again that were not confirmed in time.
    pub(crate) fn repeat_snapshots(&mut self) {
        let patience = u64::from(self.config.election_ticks) * SNAPSHOT_PATIENCE;
        let overdue: Vec<PeerId> = self
            .snapshots_sent
            .iter()
            .filter(|(_, sent)| self.ticks - **sent > patience)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in overdue {
            self.snapshots_sent.remove(&peer);
            let waits = self.raw.raft.prs().get(peer.0).is_some_and(|pr| pr.state == ProgressState::Snapshot);
            if waits {
                self.raw.report_snapshot(peer.0, SnapshotStatus::Failure);
            }
        }
    }
}
