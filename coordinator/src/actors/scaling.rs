//! The raft actor as the hand of what goes by the clock: shows the scaler what devices report, ends pins whose time has come, has it
//! written down what emptying members came to, and proposes what is asked for.

use super::raft::RaftActor;
use std::time::Duration;

/// How often load is looked at; heartbeats bring it about as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl RaftActor {
    /// Another coordinator leads.
    pub(super) fn forget_loads(&mut self) {
        self.scaler.lost_leadership();
        self.drains.lost_leadership();
    }

    /// Looks at load, if that is due, and at members that are being emptied. Called by a leader only.
    pub(super) fn look_at_load(&mut self) {
        self.look_at_drains();
        let now = self.parts.clock.now();
        let Some(map) = self.parts.registry.map().filter(|_| now >= self.next_look) else { return };
        self.next_look = now + LOOK_EVERY;
        let seconds = kvhive_runtime::wall_ms() / 1000;
        let loads = self.parts.overseer.loads();
        let proposed = self.scaler.tick(seconds, &map, loads, self.parts.registry.scaling());
        let ended = kvhive_control::ended_pins(&map, kvhive_runtime::wall_ms());
        // Held on, the next change would copy it.
        drop(map);
        for (command, reason) in proposed.into_iter().chain(ended) {
            self.propose_own(command, reason);
        }
    }

    /// Looks at members that are being emptied.
    fn look_at_drains(&mut self) {
        let Some(map) = self.parts.registry.map() else { return };
        let (overseer, now) = (&self.parts.overseer, self.parts.clock.now());
        let reported = |member| overseer.reported(member);
        let told = self.drains.tick(now, &map, &self.parts.registry, overseer.loads(), reported);
        // Held on, the next change would copy it.
        drop(map);
        for (command, reason) in told {
            self.propose_own(command, reason);
        }
    }
}
