//! What an overseer has counted.

/// What happened since the overseer was made, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Heartbeats that renewed a lease.
    pub renewed: u64,
    /// Heartbeats that were fenced.
    pub fenced: u64,
    /// Heartbeats whose device reports did not fit the member and were left out.
    pub unsound_reports: u64,
    /// Leases that ran out: proposals to declare a member down.
    pub expired: u64,
    /// Such proposals made again.
    pub reproposed: u64,
    /// Plans proposed.
    pub plans: u64,
    /// Slots that were to belong elsewhere because of how much they are asked for.
    pub balanced: u64,
    /// Times at which the leader itself had been paused.
    pub pauses: u64,
    /// Clears that every member has confirmed or outlived.
    pub clears_done: u64,
    /// Times that an asker was told who keeps a clear from being acknowledged.
    pub clears_waiting: u64,
}
