//! What a simulation came to, in numbers: so that it is seen to do what it checks.

/// What a simulation came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Follows from everything that happened.
    pub trace: u64,
    /// Events.
    pub events: u64,
    /// Terms with a leader.
    pub leaders: usize,
    /// Blocks that were read.
    pub hits: u64,
    /// Clears that were acknowledged.
    pub clears: u64,
    /// Blocks that nodes were given because their slots moved.
    pub given: u64,
    /// Processes that crashed.
    pub crashes: u64,
    /// Changes of where slots belong because of how much they are read.
    pub balanced: u64,
    /// Times that a majority of the coordinators was gone for longer than a lease.
    pub outages: u64,
    /// Blocks that were read of nodes without a lease.
    pub hits_alone: u64,
    /// Clears that were made and not acknowledged, as somebody might be serving.
    pub clears_waiting: u64,
    /// Processes that did nothing for a while.
    pub pauses: u64,
    /// Times that blocks were late between nodes for a while.
    pub slow: u64,
    /// Bits of blocks that turned over.
    pub rotten: u64,
    /// Copies between tiers that failed.
    pub failed_copies: u64,
    /// Coordinators' disks that were lost.
    pub disks_lost: u64,
    /// Devices that died.
    pub devices_lost: u64,
}

impl Outcome {
    /// Adds up what two came to.
    pub fn add(&mut self, other: &Outcome) {
        self.trace ^= other.trace;
        self.events += other.events;
        self.leaders += other.leaders;
        self.hits += other.hits;
        self.clears += other.clears;
        self.given += other.given;
        self.crashes += other.crashes;
        self.balanced += other.balanced;
        self.outages += other.outages;
        self.hits_alone += other.hits_alone;
        self.clears_waiting += other.clears_waiting;
        self.pauses += other.pauses;
        self.slow += other.slow;
        self.rotten += other.rotten;
        self.failed_copies += other.failed_copies;
        self.disks_lost += other.disks_lost;
        self.devices_lost += other.devices_lost;
    }
}
