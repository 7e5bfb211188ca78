//! What a run came to: figures, each with the bar that it has to meet.

use crate::plan::Fault;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Of a hundred promises that are looked for, so many may end by leases that no fault was to end: a run that excuses more shows nothing of what
/// is kept, whether the machine has no time for its nodes or nodes are taken for lost that are not.
const MOST_LAPSED: f64 = 1.0;

/// Whom the present fault hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hit {
    /// Coordinators alone, or nobody.
    Coordinators,
    /// Nodes, or the network.
    Nodes,
    /// Coordinators and nodes at the same time.
    Both,
    /// Every coordinator: the outage of this number.
    Outage(u32),
}

impl Hit {
    /// Returns whom this and another hit.
    #[must_use]
    pub fn and(self, other: Hit) -> Hit {
        if self == other { self } else { Hit::Both }
    }
}

/// A time without any coordinator.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outage {
    /// How long it took, in seconds.
    pub took: f64,
    /// For how long nodes may serve alone, in seconds.
    pub serving_lease: f64,
}

/// What was counted and measured.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// Blocks that fetches brought, every byte of them compared.
    pub reads_verified: u64,
    /// Blocks that fetches did not bring.
    pub misses: u64,
    /// Blocks that stores brought to the cluster.
    pub blocks_stored: u64,
    /// Blocks with bytes that nobody stored under their key.
    pub wrong_bytes: u64,
    /// Blocks of before an acknowledged clear.
    pub stale: u64,
    /// Promised blocks, looked for once the cluster was whole: how often one was.
    pub promises_checked: u64,
    /// Blocks of which nothing was promised any more, because as much was broken as they stand.
    pub promises_ended: u64,
    /// The same because everybody who had the block had left the cluster, and not all of them by a fault.
    pub promises_lapsed: u64,
    /// Starts of nodes that left the cluster and were neither ended nor stopped past their lease: a machine that has no time for them
    /// ends leases, too.
    pub leases_lapsed: u64,
    /// Promised blocks that were looked for and not found.
    pub lost: u64,
    /// Reads that took longer than their deadline, 100 ms, and as late as the machine itself was.
    pub late_reads: u64,
    /// Times for which promised blocks could not be read while coordinators alone were hit, in seconds.
    pub gaps_coordinators: Vec<f64>,
    /// The same while nodes or the network were.
    pub gaps_nodes: Vec<f64>,
    /// The same while both were.
    pub gaps_both: Vec<f64>,
    /// The same while no coordinator was there at all, with the number of the outage that they began in.
    pub gaps_outage: Vec<(u32, f64)>,
    /// The outages that are over, by their numbers.
    pub outages: BTreeMap<u32, Outage>,
    /// From a leader's kill to the next change that was made, in seconds.
    pub failovers: Vec<f64>,
    /// Blocks on disk of which a bit was flipped.
    pub flipped: u64,
    /// Records that nodes then found to be damaged.
    pub damage_found: u64,
    /// Times that the cluster was not whole again in time after a fault.
    pub not_healed: u64,
    /// Processes that went on after a sync of their log had failed.
    pub outlived_sync_errors: u64,
    /// Processes that ended by themselves.
    pub ended: u64,
    /// Clears that were acknowledged.
    pub clears: u64,
    /// Nodes that were stopped for longer than a lease.
    pub pauses: u64,
    /// Of those: for longer than they may serve without being heard, so that a clear can be acknowledged meanwhile.
    pub pauses_past_serving: u64,
    /// Of those: a clear was.
    pub clears_in_pauses: u64,
    /// Calls of metadata whose histories were checked.
    pub history_calls: u64,
    /// Histories of single objects that were checked.
    pub histories: u64,
    /// Of those: not linearizable.
    pub histories_refused: u64,
    /// Of those: not decided in as many steps as they were given.
    pub histories_undecided: u64,
    /// What was found that is not as it has to be, counted here or not.
    pub findings: u64,
    /// How often each kind of fault was made.
    pub faults: BTreeMap<Fault, u64>,
    /// What the plan of faults waited for, and how long, in seconds.
    pub waited: BTreeMap<&'static str, f64>,
    /// Kinds that were asked for by name: a run that made none of one shows nothing of it.
    pub asked: BTreeSet<Fault>,
}

/// What a figure has to be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

/// One figure, with the bar that it has to meet, if it has one.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
    /// What it has to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
    /// Whether it is.
    pub met: bool,
}

/// All figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// One after the other.
    pub rows: Vec<Row>,
    /// Whether every bar is met.
    pub passed: bool,
}

/// Returns the value that this share of `values` does not exceed (nearest rank); none where there are none.
fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().checked_sub(1)?)).copied()
}

impl Figures {
    /// For so long a promised block could not be read, from when the present fault hit these.
    pub fn gap(&mut self, seconds: f64, hit: Hit) {
        match hit {
            Hit::Coordinators => self.gaps_coordinators.push(seconds),
            Hit::Nodes => self.gaps_nodes.push(seconds),
            Hit::Both => self.gaps_both.push(seconds),
            Hit::Outage(number) => self.gaps_outage.push((number, seconds)),
        }
    }

    /// Returns the gaps that are judged as if some coordinators were hit, and those of which nothing is promised. While an outage of all
    /// coordinators is shorter than nodes may serve alone, reads are to go on; of a longer one, or one that did not end, nothing is said.
    fn gaps(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut judged, mut others) = (self.gaps_coordinators.clone(), Vec::new());
        for (number, gap) in &self.gaps_outage {
            let is_short = |outage: &Outage| outage.took < outage.serving_lease;
            let is_judged = self.outages.get(number).is_some_and(is_short);
            if is_judged { &mut judged } else { &mut others }.push(*gap);
        }
        (judged, others)
    }

    /// Says whether something is to be shown of a kind of fault: it was made, or asked for.
    fn shows(&self, fault: Fault) -> bool {
        self.asked.contains(&fault) || self.faults.contains_key(&fault)
    }

    /// Judges them; times only where they are to be, as a machine that does other things besides says nothing of them.
    pub fn report(&self, judges_times: bool) -> Report {
        let mut rows = Vec::new();
        let mut row = |name, value: f64, unit, bar: Option<Bar>| {
            let met = match bar {
                None => true,
                Some(Bar::AtMost(most)) => value <= most,
                Some(Bar::AtLeast(least)) => value >= least,
            };
            rows.push(Row { name, value, unit, bar, met });
        };
        let none = Some(Bar::AtMost(0.0));
        let some = Some(Bar::AtLeast(1.0));
        // What is counted by one kind of fault alone is judged where that kind is: nothing is met by what was not tried.
        let some_of = |fault| some.filter(|_| self.shows(fault));
        let none_of = |fault| none.filter(|_| self.shows(fault));
        let missing = self.asked.iter().filter(|fault| !self.faults.contains_key(fault)).count();
        row("faults made", self.faults.values().sum::<u64>() as f64, "faults", some);
        row("kinds asked for and not made", missing as f64, "kinds", none);
        // A run that read nothing proves nothing.
        row("reads verified", self.reads_verified as f64, "blocks", some);
        row("misses", self.misses as f64, "blocks", None);
        row("stored", self.blocks_stored as f64, "blocks", None);
        row("wrong bytes", self.wrong_bytes as f64, "blocks", none);
        row("promises checked", self.promises_checked as f64, "blocks", some);
        row("promises ended by what was broken", self.promises_ended as f64, "blocks", None);
        row("leases that no fault was to end and that ended", self.leases_lapsed as f64, "leases", None);
        row("promises ended by such leases", self.promises_lapsed as f64, "blocks", None);
        let promises = self.promises_checked + self.promises_lapsed;
        let share = 100.0 * self.promises_lapsed as f64 / promises.max(1) as f64;
        let few = Some(Bar::AtMost(MOST_LAPSED)).filter(|_| judges_times);
        row("of 100 promises so many ended by such leases", share, "blocks", few);
        row("lost acknowledged blocks", self.lost as f64, "blocks", none);
        row("clears acknowledged", self.clears as f64, "clears", some);
        row("stale answers after a clear", self.stale as f64, "blocks", none);
        row("reads past deadline + 100 ms", self.late_reads as f64, "reads", none);
        row("times not whole again after a fault", self.not_healed as f64, "times", none);
        row("nodes stopped past a lease", self.pauses as f64, "times", some_of(Fault::PauseNode));
        // Where they are never stopped for so long nothing can be acknowledged meanwhile.
        let in_pauses = some.filter(|_| self.pauses_past_serving > 0);
        row(
            "clears acknowledged while a node was stopped",
            self.clears_in_pauses as f64,
            "clears",
            in_pauses,
        );
        let outlived = self.outlived_sync_errors as f64;
        row("sync errors that did not end a process", outlived, "times", none_of(Fault::SyncError));
        row("processes that ended by themselves", self.ended as f64, "times", none);
        let (gaps, unjudged) = self.gaps();
        row("gaps of which nothing is promised", unjudged.len() as f64, "times", None);
        if let Some(longest) = quantile(&unjudged, 1.0) {
            row("gap of which nothing is promised, max", longest, "s", None);
        }
        type Times<'a> = (&'a [f64], Option<Bar>, Option<f64>, f64);
        let mut times = |names: [&'static str; 4], (values, count, p99, max): Times<'_>| {
            row(names[0], values.len() as f64, "times", count);
            let Some(longest) = quantile(values, 1.0) else { return };
            row(names[1], quantile(values, 0.5).unwrap_or(longest), "s", None);
            let p99 = p99.filter(|_| judges_times).map(Bar::AtMost);
            row(names[2], quantile(values, 0.99).unwrap_or(longest), "s", p99);
            row(names[3], longest, "s", Some(Bar::AtMost(max)).filter(|_| judges_times && max.is_finite()));
        };
        let names = [
            "gaps in promised reads, coordinators hit",
            "gap, coordinators hit, p50",
            "gap, coordinators hit, p99",
            "gap, coordinators hit, max",
        ];
        times(names, (&gaps, None, None, 0.2));
        let names = [
            "gaps in promised reads, nodes hit",
            "gap, nodes hit, p50",
            "gap, nodes hit, p99",
            "gap, nodes hit, max",
        ];
        times(names, (&self.gaps_nodes, None, Some(3.0), 5.0));
        let names = [
            "gaps in promised reads, both hit",
            "gap, both hit, p50",
            "gap, both hit, p99",
            "gap, both hit, max",
        ];
        // A node's end is known when somebody leads: of the two together there is no bar, but that no read is late.
        times(names, (&self.gaps_both, None, None, f64::INFINITY));
        let names = [
            "leaders killed",
            "leader killed to next change, p50",
            "leader killed to next change, p99",
            "leader killed to next change, max",
        ];
        times(names, (&self.failovers, some_of(Fault::KillLeader), Some(3.0), 5.0));
        row("bits flipped on disk", self.flipped as f64, "blocks", some_of(Fault::FlipBits));
        let damage = self.damage_found as f64;
        row("damaged records that nodes found", damage, "records", some_of(Fault::FlipBits));
        if self.flipped > 0 && self.reads_verified > 0 {
            row(
                "of 100 reads so many of damaged records",
                100.0 * damage / self.reads_verified as f64,
                "reads",
                None,
            );
        }
        row("calls in histories", self.history_calls as f64, "calls", some);
        row("histories checked", self.histories as f64, "histories", some);
        row("histories not linearizable", self.histories_refused as f64, "histories", none);
        row("histories undecided", self.histories_undecided as f64, "histories", none);
        row("findings", self.findings as f64, "findings", none);
        let passed = rows.iter().all(|row| row.met);
        Report { rows, passed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        Figures {
            reads_verified: 10,
            promises_checked: 1,
            clears: 1,
            history_calls: 4,
            histories: 1,
            faults: BTreeMap::from([(Fault::KillNode, 1)]),
            ..Figures::default()
        }
    }

    /// Names the bars that are not met.
    fn unmet(figures: &Figures) -> Vec<&'static str> {
        let report = figures.report(true);
        assert_eq!(report.passed, report.rows.iter().all(|row| row.met));
        report.rows.iter().filter(|row| !row.met).map(|row| row.name).collect()
    }

    #[test]
    fn gaps_of_an_outage_count_while_nodes_may_serve_alone() {
        let mut figures = good();
        figures.gap(1.0, Hit::Outage(1));
        figures.gap(2.0, Hit::Outage(2));
        let told = |figures: &Figures, name: &str| {
            figures.report(true).rows.iter().find(|row| row.name == name).map(|row| row.value)
        };
        figures.outages.insert(1, Outage { took: 6.0, serving_lease: 5.0 });
        // Of one that is not over nothing is known.
        assert_eq!(unmet(&figures), [""; 0]);
        assert_eq!(told(&figures, "gaps of which nothing is promised"), Some(2.0));
        assert_eq!(told(&figures, "gap of which nothing is promised, max"), Some(2.0));
        // Told after it has ended, a gap is of the outage that it began in.
        figures.outages.insert(3, Outage { took: 4.0, serving_lease: 5.0 });
        assert_eq!(unmet(&figures), [""; 0]);
        figures.gap(0.5, Hit::Outage(3));
        assert_eq!(unmet(&figures), ["gap, coordinators hit, max"]);
        assert_eq!(told(&figures, "gap, coordinators hit, max"), Some(0.5));
    }

    #[test]
    fn gaps_while_both_are_hit_are_told_and_not_judged() {
        let mut figures = good();
        figures.gap(4.0, Hit::Nodes.and(Hit::Coordinators));
        assert_eq!(unmet(&figures), [""; 0]);
        let rows = figures.report(true).rows;
        let told = rows.iter().find(|row| row.name == "gap, both hit, max").map(|row| row.value);
        assert_eq!(told, Some(4.0));
        assert_eq!(Hit::Nodes.and(Hit::Nodes), Hit::Nodes);
    }

    #[test]
    fn promises_that_leases_ended_are_told_beside_what_was_lost_and_are_few() {
        let figures = Figures { promises_checked: 792, promises_lapsed: 8, leases_lapsed: 2, ..good() };
        let rows = figures.report(true).rows;
        let told = |name: &str| rows.iter().find(|row| row.name == name).map(|row| (row.value, row.bar));
        assert_eq!(told("promises ended by such leases"), Some((8.0, None)));
        assert_eq!(told("leases that no fault was to end and that ended"), Some((2.0, None)));
        assert_eq!(unmet(&figures), [""; 0]);
        let more = Figures { promises_lapsed: 9, ..figures.clone() };
        assert_eq!(unmet(&more), ["of 100 promises so many ended by such leases"]);
        assert_eq!(unmet(&Figures { lost: 1, ..figures }), ["lost acknowledged blocks"]);
    }

    #[test]
    fn nothing_is_met_by_what_was_not_tried() {
        let asked = |fault| Figures { asked: BTreeSet::from([fault]), ..good() };
        assert_eq!(unmet(&asked(Fault::KillLeader)), ["kinds asked for and not made", "leaders killed"]);
        let flips =
            ["kinds asked for and not made", "bits flipped on disk", "damaged records that nodes found"];
        assert_eq!(unmet(&asked(Fault::FlipBits)), flips);
        let pauses = ["kinds asked for and not made", "nodes stopped past a lease"];
        assert_eq!(unmet(&asked(Fault::PauseNode)), pauses);
        assert_eq!(unmet(&asked(Fault::Cut)), ["kinds asked for and not made"]);
        assert_eq!(unmet(&asked(Fault::KillNode)), [""; 0]);
        let mut figures = asked(Fault::FlipBits);
        figures.faults.insert(Fault::FlipBits, 1);
        assert_eq!(unmet(&figures), flips[1..]);
        (figures.flipped, figures.damage_found) = (8, 1);
        assert_eq!(unmet(&figures), [""; 0]);
        let paused = Figures { pauses: 1, pauses_past_serving: 1, ..good() };
        assert_eq!(unmet(&paused), ["clears acknowledged while a node was stopped"]);
        // A bar of a kind that was not made is none.
        let is_judged = |figures: &Figures| {
            let rows = figures.report(true).rows;
            rows.iter().any(|row| row.name.starts_with("sync errors") && row.bar.is_some())
        };
        assert!(!is_judged(&good()) && is_judged(&asked(Fault::SyncError)));
    }

    #[test]
    fn each_bar_fails_by_itself() {
        assert_eq!(unmet(&good()), [""; 0]);
        let nothing = ["faults made", "reads verified", "promises checked", "clears acknowledged"];
        assert_eq!(
            unmet(&Figures::default()),
            [&nothing[..], &["calls in histories", "histories checked"]].concat()
        );
        type Break = fn(&mut Figures);
        let broken: [(&str, Break); 12] = [
            ("sync errors that did not end a process", |figures| {
                figures.faults.insert(Fault::SyncError, 1);
                figures.outlived_sync_errors = 1;
            }),
            ("findings", |figures| figures.findings = 1),
            ("processes that ended by themselves", |figures| figures.ended = 1),
            ("wrong bytes", |figures| figures.wrong_bytes = 1),
            ("lost acknowledged blocks", |figures| figures.lost = 1),
            ("stale answers after a clear", |figures| figures.stale = 1),
            ("reads past deadline + 100 ms", |figures| figures.late_reads = 1),
            ("times not whole again after a fault", |figures| figures.not_healed = 1),
            ("gap, coordinators hit, max", |figures| figures.gaps_coordinators = vec![0.3]),
            ("gap, nodes hit, max", |figures| figures.gaps_nodes = [vec![0.1; 200], vec![6.0]].concat()),
            ("histories not linearizable", |figures| figures.histories_refused = 1),
            ("histories undecided", |figures| figures.histories_undecided = 1),
        ];
        for (name, breaks) in broken {
            let mut figures = good();
            breaks(&mut figures);
            assert_eq!(unmet(&figures), [name]);
        }
        let slow = Figures { failovers: vec![4.0], ..good() };
        assert_eq!(unmet(&slow), ["leader killed to next change, p99"]);
        assert!(slow.report(false).passed && !Figures { lost: 1, ..slow }.report(false).passed);
    }
}
