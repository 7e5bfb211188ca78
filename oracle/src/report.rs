//! What a run came to: figures, each with the bar that it has to meet.

use serde::Serialize;

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
    /// Of those, not found.
    pub lost: u64,
    /// Reads that took longer than their deadline, 100 ms, and as late as the machine itself was.
    pub late_reads: u64,
    /// Times for which promised blocks could not be read while coordinators alone were hit, in seconds.
    pub gaps_coordinators: Vec<f64>,
    /// The same while nodes or the network were.
    pub gaps_nodes: Vec<f64>,
    /// The same while no coordinator was there at all: [`Figures::settle_outage`] says which of the two they are.
    pub gaps_outage: Vec<f64>,
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
    /// Calls of metadata whose histories were checked.
    pub history_calls: u64,
    /// Histories of single objects that were checked.
    pub histories: u64,
    /// Of those: not linearizable.
    pub histories_refused: u64,
    /// Of those: not decided in as many steps as they were given.
    pub histories_undecided: u64,
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
    /// An outage of all coordinators is over. While it is shorter than nodes may serve alone, reads are to go on as if only some were
    /// hit; of a longer one nothing is promised.
    pub fn settle_outage(&mut self, took: f64, serving_lease: f64) {
        let gaps = std::mem::take(&mut self.gaps_outage);
        if took < serving_lease {
            self.gaps_coordinators.extend(gaps);
        }
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
        // A run that read nothing proves nothing.
        row("reads verified", self.reads_verified as f64, "blocks", Some(Bar::AtLeast(1.0)));
        row("misses", self.misses as f64, "blocks", None);
        row("stored", self.blocks_stored as f64, "blocks", None);
        row("wrong bytes", self.wrong_bytes as f64, "blocks", none);
        row("promises checked", self.promises_checked as f64, "blocks", Some(Bar::AtLeast(1.0)));
        row("lost acknowledged blocks", self.lost as f64, "blocks", none);
        row("clears acknowledged", self.clears as f64, "clears", None);
        row("stale answers after a clear", self.stale as f64, "blocks", none);
        row("reads past deadline + 100 ms", self.late_reads as f64, "reads", none);
        row("times not whole again after a fault", self.not_healed as f64, "times", none);
        row("sync errors that did not end a process", self.outlived_sync_errors as f64, "times", none);
        row("processes that ended by themselves", self.ended as f64, "times", none);
        let mut times = |names: [&'static str; 4], values: &[f64], p99: Option<f64>, max: f64| {
            row(names[0], values.len() as f64, "times", None);
            let Some(longest) = quantile(values, 1.0) else { return };
            row(names[1], quantile(values, 0.5).unwrap_or(longest), "s", None);
            let p99 = p99.filter(|_| judges_times).map(Bar::AtMost);
            row(names[2], quantile(values, 0.99).unwrap_or(longest), "s", p99);
            row(names[3], longest, "s", judges_times.then_some(Bar::AtMost(max)));
        };
        let names = [
            "gaps in promised reads, coordinators hit",
            "gap, coordinators hit, p50",
            "gap, coordinators hit, p99",
            "gap, coordinators hit, max",
        ];
        times(names, &self.gaps_coordinators, None, 0.2);
        let names = [
            "gaps in promised reads, nodes hit",
            "gap, nodes hit, p50",
            "gap, nodes hit, p99",
            "gap, nodes hit, max",
        ];
        times(names, &self.gaps_nodes, Some(3.0), 5.0);
        let names = [
            "leaders killed",
            "leader killed to next change, p50",
            "leader killed to next change, p99",
            "leader killed to next change, max",
        ];
        times(names, &self.failovers, Some(3.0), 5.0);
        row("bits flipped on disk", self.flipped as f64, "blocks", None);
        row("damaged records that nodes found", self.damage_found as f64, "records", None);
        row("calls in histories", self.history_calls as f64, "calls", None);
        row("histories checked", self.histories as f64, "histories", None);
        row("histories not linearizable", self.histories_refused as f64, "histories", none);
        row("histories undecided", self.histories_undecided as f64, "histories", none);
        let passed = rows.iter().all(|row| row.met);
        Report { rows, passed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        Figures { reads_verified: 10, promises_checked: 1, ..Figures::default() }
    }

    /// Names the bars that are not met.
    fn unmet(figures: &Figures) -> Vec<&'static str> {
        let report = figures.report(true);
        assert_eq!(report.passed, report.rows.iter().all(|row| row.met));
        report.rows.iter().filter(|row| !row.met).map(|row| row.name).collect()
    }

    #[test]
    fn gaps_of_an_outage_count_while_nodes_may_serve_alone() {
        let mut figures = Figures { gaps_outage: vec![1.0], ..good() };
        figures.settle_outage(6.0, 5.0);
        assert_eq!(unmet(&figures), [""; 0]);
        figures.gaps_outage = vec![1.0];
        figures.settle_outage(4.0, 5.0);
        assert_eq!(unmet(&figures), ["gap, coordinators hit, max"]);
    }

    #[test]
    fn each_bar_fails_by_itself() {
        assert_eq!(unmet(&good()), [""; 0]);
        assert_eq!(unmet(&Figures::default()), ["reads verified", "promises checked"]);
        type Break = fn(&mut Figures);
        let broken: [(&str, Break); 11] = [
            ("sync errors that did not end a process", |figures| figures.outlived_sync_errors = 1),
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
