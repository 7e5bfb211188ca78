//! How long a peer waits for a leader before it wants to be one.

use crate::machine::Consensus;

impl Consensus {
    /// Raft draws election timeouts from the thread's randomness. They are replaced before they are ever compared, by one
    /// that follows from seed, peer, term, role and the elections so far: candidates that collide draw anew.
    pub(crate) fn own_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        // SplitMix64 (Steele, Lea and Flood 2014).
        let mut word = self.config.seed;
        for part in [self.config.id.0, raft.term, raft.state as u64, self.elections] {
            word = (word ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
            word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word ^= word >> 31;
        }
        let base = self.config.election_ticks as usize;
        raft.set_randomized_election_timeout(base + (word % base as u64) as usize);
    }
}
