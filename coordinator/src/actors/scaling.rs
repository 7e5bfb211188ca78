//! The raft actor as the hand of the scaler: shows it the clock and what devices report, proposes what it asks for.

use super::raft::RaftActor;
use std::time::Duration;

/// How often load is looked at; heartbeats bring it about as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl RaftActor {
    /// Looks at load, if that is due. Called by a leader only.
    pub(super) fn look_at_load(&mut self) {
        let now = self.parts.clock.now();
        let Some(map) = self.parts.registry.map().filter(|_| now >= self.next_look) else { return };
        self.next_look = now + LOOK_EVERY;
        let seconds = kvhive_runtime::wall_ms() / 1000;
        let loads = self.parts.overseer.loads();
        let proposed = self.scaler.tick(seconds, &map, loads, self.parts.registry.scaling());
        // Held on, the next change would copy it.
        drop(map);
        for (command, reason) in proposed {
            self.propose_own(command, reason);
        }
    }
}
