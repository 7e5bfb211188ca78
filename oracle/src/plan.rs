//! Which fault comes next. The same seed and the same kinds give the same plan; who is hit is drawn as a number, and told by whoever
//! knows how many there are.

use crate::random::Random;

/// One kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// `kill -9` of the coordinator that leads.
    KillLeader,
    /// `kill -9` of a coordinator that follows.
    KillFollower,
    /// `kill -9` of every coordinator at once.
    KillCoordinators,
    /// `kill -9` of a node.
    KillNode,
    /// A node is ended in order and started again.
    RestartNode,
    /// The coordinator that leads is stopped for longer than an election takes.
    PauseLeader,
    /// A node is stopped for longer than its leases, and a tenant is cleared meanwhile.
    PauseNode,
    /// Bits of blocks in a disk tier's files are flipped.
    FlipBits,
    /// A host is cut off from all others.
    Cut,
    /// What a host sends is lost, and what is sent to it arrives.
    CutOneWay,
    /// Packets of a host are lost at random.
    Lose,
    /// Connections of a host are reset.
    Reset,
    /// A host sends at a few Mbit/s.
    Slow,
    /// The disk of a coordinator has no room left.
    FullDisk,
    /// The disk of a coordinator fails to sync.
    SyncError,
    /// The power of a coordinator's disk is cut: what was not synced is gone.
    PowerCut,
    /// A node has less memory than it wants.
    LittleMemory,
    /// A process' wall clock is hours off.
    WrongClock,
}

impl Fault {
    /// Those that need nothing but the processes themselves.
    pub const OF_PROCESSES: [Fault; 8] = [
        Fault::KillLeader,
        Fault::KillFollower,
        Fault::KillCoordinators,
        Fault::KillNode,
        Fault::RestartNode,
        Fault::PauseLeader,
        Fault::PauseNode,
        Fault::FlipBits,
    ];

    /// Those that need hosts of their own: a network and disks that only they use.
    pub const OF_HOSTS: [Fault; 10] = [
        Fault::Cut,
        Fault::CutOneWay,
        Fault::Lose,
        Fault::Reset,
        Fault::Slow,
        Fault::FullDisk,
        Fault::SyncError,
        Fault::PowerCut,
        Fault::LittleMemory,
        Fault::WrongClock,
    ];

    /// Finds a kind by its name.
    pub fn named(name: &str) -> Option<Fault> {
        Fault::OF_PROCESSES.into_iter().chain(Fault::OF_HOSTS).find(|fault| fault.name() == name)
    }

    /// Returns its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillLeader => "kill-leader",
            Fault::KillFollower => "kill-follower",
            Fault::KillCoordinators => "kill-all-coordinators",
            Fault::KillNode => "kill-node",
            Fault::RestartNode => "restart-node",
            Fault::PauseLeader => "pause-leader",
            Fault::PauseNode => "pause-node-past-lease",
            Fault::FlipBits => "flip-bits",
            Fault::Cut => "cut-off",
            Fault::CutOneWay => "cut-one-way",
            Fault::Lose => "lose-packets",
            Fault::Reset => "reset-connections",
            Fault::Slow => "slow-network",
            Fault::FullDisk => "full-disk",
            Fault::SyncError => "fsync-error",
            Fault::PowerCut => "power-cut",
            Fault::LittleMemory => "little-memory",
            Fault::WrongClock => "wrong-clock",
        }
    }

    /// Returns how often it comes in a round: what a percentile is told of comes more often than what is shown by once.
    fn weight(self) -> usize {
        match self {
            Fault::FlipBits => 8,
            Fault::PauseNode => 5,
            Fault::KillLeader | Fault::KillNode => 2,
            _ => 1,
        }
    }

    /// Says whether coordinators alone are hit by it.
    pub fn spares_nodes(self) -> bool {
        matches!(
            self,
            Fault::KillLeader
                | Fault::KillFollower
                | Fault::KillCoordinators
                | Fault::PauseLeader
                | Fault::FullDisk
                | Fault::SyncError
                | Fault::PowerCut
        )
    }
}

/// One fault of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// What happens.
    pub fault: Fault,
    /// Who is hit, of as many as there are: whoever has this number modulo how many.
    pub victim: u64,
    /// How long it lasts, in thousandths of the range that its kind has.
    pub per_mille: u64,
    /// How long nothing happens before it, in milliseconds.
    pub rest_ms: u64,
    /// Whether nothing else is to be broken meanwhile, also where it might.
    pub alone: bool,
}

/// The longest rest before a fault.
const MAX_REST_MS: u64 = 100;

/// A plan without an end.
#[derive(Clone, Debug)]
pub struct Plan {
    random: Random,
    kinds: Vec<Fault>,
    /// What comes before any kind comes again.
    round: Vec<Fault>,
}

impl Plan {
    /// Makes the plan of a seed from these kinds.
    pub fn new(seed: u64, kinds: Vec<Fault>) -> Plan {
        Plan { random: Random::new(seed).part(1), kinds, round: Vec::new() }
    }

    fn shuffle(&mut self, faults: &mut [Fault]) {
        for at in (1..faults.len()).rev() {
            faults.swap(at, self.random.below(at as u64 + 1) as usize);
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    /// In each round every kind comes once before any comes again, and then some do, in an order of its own each time. Ends at once
    /// where there are no kinds.
    fn next(&mut self) -> Option<Step> {
        if self.round.is_empty() {
            let (mut once, mut again) = (self.kinds.clone(), Vec::new());
            for kind in &self.kinds {
                again.extend(std::iter::repeat_n(*kind, kind.weight() - 1));
            }
            self.shuffle(&mut once);
            self.shuffle(&mut again);
            // Taken from its end.
            self.round = [again, once].concat();
        }
        let fault = self.round.pop()?;
        Some(Step {
            fault,
            victim: self.random.draw(),
            per_mille: self.random.below(1001),
            rest_ms: self.random.below(MAX_REST_MS),
            alone: self.random.below(2) == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_tells_the_same_plan_again_and_another_seed_another() {
        let plan = |seed| Plan::new(seed, Fault::OF_PROCESSES.to_vec()).take(50).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for fault in Fault::OF_PROCESSES.into_iter().chain(Fault::OF_HOSTS) {
            assert_eq!(Fault::named(fault.name()), Some(fault));
        }
        assert_eq!(Fault::named("rain"), None);
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let length: usize = Fault::OF_PROCESSES.iter().map(|fault| fault.weight()).sum();
        let plan: Vec<Step> = Plan::new(3, Fault::OF_PROCESSES.to_vec()).take(length * 10).collect();
        for round in plan.chunks(length) {
            let once = &round[..Fault::OF_PROCESSES.len()];
            let kinds: BTreeSet<Fault> = once.iter().map(|step| step.fault).collect();
            assert_eq!(kinds.len(), Fault::OF_PROCESSES.len());
            let pauses = round.iter().filter(|step| step.fault == Fault::PauseNode).count();
            assert_eq!(pauses, Fault::PauseNode.weight());
        }
        assert_eq!(Plan::new(3, Vec::new()).next(), None);
    }
}
