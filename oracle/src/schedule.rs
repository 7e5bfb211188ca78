//! What is broken at the same time. Each promise stands while so much is whole: a majority of the coordinators, a copy of each block
//! at whoever is left. A fault begins once what is under way leaves it that much, so that no promise is voided by the overlap, and what
//! fewer are hit by is not judged as if more were.

use crate::plan::{Fault, Plan, Step};
use crate::report::Hit;
use std::collections::VecDeque;

/// Steps that are looked at for one that may begin.
const WINDOW: usize = 16;
/// So many nodes are hit one after the other while something is given copies yet of which nothing is promised; then all has to be whole.
pub const MOST_UNSEEN: usize = 7;

/// How large the cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// How many coordinators it has.
    pub coordinators: usize,
    /// How many nodes.
    pub nodes: usize,
    /// How many of them hold a block.
    pub replicas: usize,
}

/// What is broken now, as whoever breaks it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Broken {
    /// Coordinators that are gone, are stopped, or do not follow yet.
    pub coordinators: usize,
    /// Nodes that are gone or stopped, or have not been heard since.
    pub nodes: usize,
    /// A node was lost since it was known that what is promised has all of its replicas among those that are there.
    pub is_thin: bool,
    /// Nodes that were hit since it was known of everything else.
    pub unseen: usize,
    /// Something lacks a copy yet.
    pub is_healing: bool,
    /// What is under way is to be alone.
    pub is_alone: bool,
    /// Damaged records are being read.
    pub is_read: bool,
}

impl Broken {
    /// Says whether everything is whole.
    pub fn is_nothing(self) -> bool {
        Broken { is_read: false, ..self } == Broken::default()
    }

    /// Ends what was to be alone where everything else is whole again.
    #[must_use]
    pub fn ends_alone(self) -> Broken {
        let is_over = Broken { is_alone: false, ..self }.is_nothing();
        Broken { is_alone: self.is_alone && !is_over, ..self }
    }
}

/// What a fault shares the cluster with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    /// Nothing else.
    Alone,
    /// Whatever hits no coordinator.
    Coordinators,
    /// Whatever hits coordinators alone, and nodes that are gone and whose blocks are elsewhere by now.
    Nodes,
    /// Everything: what is damaged is no promised block.
    Records,
}

/// A step that may begin now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What happens.
    pub step: Step,
    /// Whether nothing else may begin until everything is whole again: as the step wants it, or as the cluster is too small for more.
    pub is_alone: bool,
}

/// A plan's steps, each as soon as it may be.
#[derive(Clone, Debug)]
pub struct Schedule {
    plan: Plan,
    size: Size,
    next: VecDeque<Step>,
}

impl Schedule {
    /// Makes the schedule of a plan for a cluster of this size.
    pub fn new(plan: Plan, size: Size) -> Schedule {
        Schedule { plan, size, next: VecDeque::new() }
    }

    /// Returns the next step that may begin, if there is one. Those of one lane keep their order, and nothing overtakes one that wants to be
    /// alone.
    pub fn next(&mut self, broken: Broken) -> Option<Turn> {
        let missing = WINDOW.saturating_sub(self.next.len());
        self.next.extend(self.plan.by_ref().take(missing));
        let mut waits: Vec<Lane> = Vec::new();
        if broken.is_alone {
            return None;
        }
        for at in 0..self.next.len() {
            let lane = self.lane(self.next[at]);
            let may_begin = match lane {
                Lane::Alone => at == 0 && broken.is_nothing(),
                lane => !waits.contains(&lane) && self.leaves_enough(lane, broken),
            };
            if may_begin {
                let is_alone = lane == Lane::Alone;
                return self.next.remove(at).map(|step| Turn { step, is_alone });
            }
            if lane == Lane::Alone {
                return None;
            }
            waits.push(lane);
        }
        None
    }

    /// Says what the first step waits for while none may begin.
    pub fn waits_for(&self, broken: Broken) -> &'static str {
        if broken.is_alone {
            return "what is alone to be over and whole";
        }
        let Some(first) = self.next.front() else { return "nothing" };
        match self.lane(*first) {
            Lane::Alone => "all to be whole, for one that is alone",
            Lane::Coordinators => "coordinators to follow",
            Lane::Nodes if broken.is_thin => "copies elsewhere of what is promised",
            Lane::Nodes if broken.unseen >= MOST_UNSEEN => "all to be whole, after several",
            Lane::Nodes => "a node to be back",
            Lane::Records => "damaged records to be read",
        }
    }

    /// Says whether no plan has anything more.
    pub fn is_over(&self) -> bool {
        self.next.is_empty() && self.plan.clone().next().is_none()
    }

    fn lane(&self, step: Step) -> Lane {
        match step.fault {
            // The gap in reads that a coordinator's end makes can be told only where no node is hit.
            Fault::KillLeader | Fault::KillFollower | Fault::PauseLeader
                if !step.alone && self.leaves_enough(Lane::Coordinators, Broken::default()) =>
            {
                Lane::Coordinators
            }
            Fault::KillNode | Fault::RestartNode | Fault::PauseNode
                if self.leaves_enough(Lane::Nodes, Broken::default()) =>
            {
                Lane::Nodes
            }
            Fault::FlipBits => Lane::Records,
            _ => Lane::Alone,
        }
    }

    /// Says whether promises stand when one more is hit.
    fn leaves_enough(&self, lane: Lane, broken: Broken) -> bool {
        match lane {
            // A majority, for changes to go on.
            Lane::Coordinators => {
                self.size.coordinators.saturating_sub(broken.coordinators + 1) > self.size.coordinators / 2
            }
            // As many as hold a block, for what the one had to find room elsewhere; and nothing that is promised has lost a copy by the
            // one before.
            Lane::Nodes => {
                !broken.is_thin
                    && broken.unseen < MOST_UNSEEN
                    && self.size.nodes.saturating_sub(broken.nodes + 1) >= self.size.replicas
            }
            // Those of before are seen first.
            Lane::Records => !broken.is_read,
            Lane::Alone => broken.is_nothing(),
        }
    }
}

/// Returns whom what is under way hits, and this fault besides.
pub fn hit_by(fault: Fault, broken: Broken, before: Hit) -> Hit {
    let own = if fault.spares_nodes() { Hit::Coordinators } else { Hit::Nodes };
    if broken.is_nothing() { own } else { own.and(before) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const SIZE: Size = Size { coordinators: 3, nodes: 4, replicas: 2 };
    const OF_FIVE: Size = Size { coordinators: 5, ..SIZE };

    /// A cluster that is broken by a schedule, and mends at random.
    struct Cluster {
        size: Size,
        broken: Broken,
        /// The most that were gone at once, of coordinators and of nodes.
        most_coordinators: usize,
        most_nodes: usize,
        /// The most that were hit before all was whole.
        most_unseen: usize,
        /// How often coordinators were hit beside nodes.
        overlaps: usize,
    }

    impl Cluster {
        fn of(size: Size) -> Cluster {
            let broken = Broken::default();
            Cluster { size, broken, most_coordinators: 0, most_nodes: 0, most_unseen: 0, overlaps: 0 }
        }

        /// Hits it as a step says; checks that promises stand.
        fn hit(&mut self, turn: Turn, lane: Lane) {
            let Turn { step, is_alone } = turn;
            assert!(!self.broken.is_alone, "{step:?} beside what is to be alone");
            assert_eq!(is_alone, lane == Lane::Alone, "{step:?}");
            match lane {
                Lane::Alone => {
                    assert!(self.broken.is_nothing(), "{step:?} while {:?}", self.broken);
                    self.broken.is_alone = true;
                    match step.fault.spares_nodes() {
                        true => self.broken.coordinators = 1,
                        false => self.hit_node(),
                    }
                }
                Lane::Coordinators => {
                    self.overlaps += usize::from(self.broken.nodes > 0);
                    self.broken.coordinators += 1;
                    self.most_coordinators = self.most_coordinators.max(self.broken.coordinators);
                    let left = self.size.coordinators - self.broken.coordinators;
                    assert!(left > self.size.coordinators / 2, "no majority is left by {step:?}");
                }
                Lane::Nodes => {
                    assert!(!self.broken.is_thin, "{step:?} takes a second copy");
                    assert!(self.broken.unseen < MOST_UNSEEN, "{step:?} before all was whole");
                    self.hit_node();
                    self.most_unseen = self.most_unseen.max(self.broken.unseen);
                    self.most_nodes = self.most_nodes.max(self.broken.nodes);
                    let left = self.size.nodes - self.broken.nodes;
                    assert!(left >= self.size.replicas, "no room is left by {step:?}");
                }
                Lane::Records => {}
            }
        }

        fn hit_node(&mut self) {
            let Broken { nodes, unseen, .. } = self.broken;
            self.broken = Broken {
                nodes: nodes + 1,
                is_thin: true,
                unseen: unseen + 1,
                is_healing: true,
                ..self.broken
            };
        }

        fn mends(&mut self, random: &mut Random) {
            match random.below(8) {
                0 | 1 => self.broken.coordinators = self.broken.coordinators.saturating_sub(1),
                2 | 3 => self.broken.nodes = self.broken.nodes.saturating_sub(1),
                // All is whole without those that are gone; what is promised is so first.
                4 => (self.broken.is_thin, self.broken.is_healing, self.broken.unseen) = (false, false, 0),
                _ => self.broken.is_thin = false,
            }
            self.broken = self.broken.ends_alone();
        }

        /// Has so many steps of a schedule begin; returns them.
        fn take(&mut self, schedule: &mut Schedule, steps: usize, random: &mut Random) -> Vec<Step> {
            let mut came = Vec::new();
            while came.len() < steps {
                match schedule.next(self.broken) {
                    Some(turn) => {
                        self.hit(turn, schedule.lane(turn.step));
                        came.push(turn.step);
                    }
                    // A schedule that waits for more than everything being whole would not end here.
                    None => self.mends(random),
                }
            }
            came
        }
    }

    #[test]
    fn faults_overlap_and_void_no_promise() {
        for (size, most) in [(SIZE, 1), (OF_FIVE, 2)] {
            for seed in 0..50 {
                let mut schedule = Schedule::new(Plan::new(seed, Fault::OF_PROCESSES.to_vec()), size);
                let mut cluster = Cluster::of(size);
                cluster.take(&mut schedule, 300, &mut Random::new(seed));
                assert!(cluster.most_unseen > 2, "seed {seed} waits for all to be whole each time");
                assert!(cluster.most_nodes == 2 && cluster.overlaps > 10, "seed {seed} overlaps nothing");
                assert_eq!(cluster.most_coordinators, most, "seed {seed} of {size:?}");
            }
        }
    }

    #[test]
    fn each_step_of_the_plan_comes_once_and_those_of_a_lane_in_order() {
        let plan = Plan::new(7, Fault::OF_PROCESSES.to_vec());
        let mut schedule = Schedule::new(plan.clone(), SIZE);
        let came = Cluster::of(SIZE).take(&mut schedule, 400, &mut Random::new(7));
        let planned: Vec<Step> = plan.take(400 - WINDOW).collect();
        assert!(planned.iter().all(|step| came.contains(step)));
        let of = |steps: &[Step], lane| -> Vec<Step> {
            steps.iter().copied().filter(|step| schedule.lane(*step) == lane).collect()
        };
        for lane in [Lane::Alone, Lane::Coordinators, Lane::Nodes, Lane::Records] {
            let (planned, came) = (of(&planned, lane), of(&came, lane));
            assert!(!planned.is_empty() && came.starts_with(&planned), "{lane:?}");
        }
    }

    #[test]
    fn nothing_begins_beside_what_is_to_be_alone() {
        let mut schedule = Schedule::new(Plan::new(1, Fault::OF_PROCESSES.to_vec()), SIZE);
        assert_eq!(schedule.next(Broken { is_alone: true, ..Broken::default() }), None);
        assert!(schedule.next(Broken::default()).is_some());
        let mut flips = Schedule::new(Plan::new(1, vec![Fault::FlipBits]), SIZE);
        assert_eq!(flips.next(Broken { is_read: true, ..Broken::default() }), None);
        assert!(flips.next(Broken::default()).is_some());
    }

    #[test]
    fn nodes_are_hit_while_nothing_that_is_promised_lacks_a_copy_and_until_all_is_to_be_seen_whole() {
        let mut schedule = Schedule::new(Plan::new(1, vec![Fault::PauseNode]), SIZE);
        let healing = Broken { is_healing: true, unseen: MOST_UNSEEN - 1, ..Broken::default() };
        let waits = [
            (Broken { is_thin: true, ..healing }, "copies elsewhere of what is promised"),
            (Broken { unseen: MOST_UNSEEN, ..healing }, "all to be whole, after several"),
            (Broken { nodes: 2, ..healing }, "a node to be back"),
        ];
        for (broken, what) in waits {
            assert_eq!((schedule.next(broken), schedule.waits_for(broken)), (None, what));
        }
        assert!(schedule.next(healing).is_some());
        let mut alone = Schedule::new(Plan::new(1, vec![Fault::WrongClock]), SIZE);
        assert_eq!(alone.next(healing), None);
        assert_eq!(alone.waits_for(healing), "all to be whole, for one that is alone");
        assert!(alone.next(Broken::default()).is_some());
    }

    #[test]
    fn what_the_cluster_has_no_room_for_is_alone_until_all_is_whole() {
        // Neither coordinators nor nodes, nodes alone, coordinators alone.
        for (coordinators, nodes) in [(1, 2), (3, 2), (1, 4)] {
            let size = Size { coordinators, nodes, replicas: 2 };
            let mut schedule = Schedule::new(Plan::new(1, Fault::OF_PROCESSES.to_vec()), size);
            let mut cluster = Cluster::of(size);
            // That nothing begins beside them is checked with each.
            cluster.take(&mut schedule, 300, &mut Random::new(1));
            assert_eq!(cluster.most_coordinators, usize::from(coordinators == 3), "{size:?}");
            assert_eq!(cluster.most_nodes, if nodes == 4 { 2 } else { 0 }, "{size:?}");
            assert_eq!(cluster.overlaps, 0, "{size:?}");
        }
        assert!(Schedule::new(Plan::new(1, Vec::new()), SIZE).is_over());
    }

    #[test]
    fn what_is_alone_is_so_until_its_node_is_back_too() {
        let alone = Broken { is_alone: true, ..Broken::default() };
        assert!(alone.ends_alone().is_nothing());
        // The cluster is whole without the node that is gone.
        for waits in [
            Broken { nodes: 1, ..alone },
            Broken { is_thin: true, ..alone },
            Broken { is_healing: true, ..alone },
            Broken { coordinators: 1, ..alone },
        ] {
            assert_eq!(waits.ends_alone(), waits);
        }
    }

    #[test]
    fn a_fault_beside_others_is_not_judged_as_if_it_were_alone() {
        let whole = Broken::default();
        let thin = Broken { is_thin: true, unseen: 1, is_healing: true, ..whole };
        assert_eq!(hit_by(Fault::KillLeader, whole, Hit::Nodes), Hit::Coordinators);
        assert_eq!(hit_by(Fault::KillLeader, thin, Hit::Nodes), Hit::Both);
        assert_eq!(hit_by(Fault::KillNode, thin, Hit::Nodes), Hit::Nodes);
        assert_eq!(hit_by(Fault::FlipBits, whole, Hit::Coordinators), Hit::Nodes);
    }
}
