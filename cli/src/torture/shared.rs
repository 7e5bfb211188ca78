//! What all parts of a run share: its clock, what is known of the cluster, and what was found.

use super::holders::Holders;
use kvhive_oracle::{At, Fault, Figures, Hit, Oracle};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Findings that are kept in words; all are counted.
const MAX_FINDINGS: usize = 40;
/// How often it is seen how late this process itself is.
const LAG_EVERY: Duration = Duration::from_millis(10);
/// How far back.
const LAG_SAMPLES: usize = 2000;
const POLL: Duration = Duration::from_millis(20);

/// What is shared.
pub(super) struct Shared {
    /// What the run's numbers come from.
    pub(super) seed: u64,
    begun: Instant,
    /// Taken before the oracle by whoever takes both: a promise is made or ended by what stands.
    holders: Mutex<Holders>,
    oracle: Mutex<Oracle>,
    figures: Mutex<Figures>,
    findings: Mutex<Vec<String>>,
    /// How late timers of this process were, and when.
    lags: Mutex<VecDeque<(Duration, Duration)>>,
    /// Whom each fault has hit.
    hits: Mutex<Vec<Hit>>,
    ending: AtomicBool,
    interrupted: AtomicBool,
    next: AtomicU64,
}

fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left behind is counted all the same: the run has failed then.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Shared {
    /// Begins.
    pub(super) fn new(seed: u64, tenants: u16) -> Shared {
        Shared {
            seed,
            begun: Instant::now(),
            holders: Mutex::default(),
            oracle: Mutex::new(Oracle::new(tenants, 1)),
            figures: Mutex::default(),
            findings: Mutex::default(),
            lags: Mutex::default(),
            hits: Mutex::new(vec![Hit::Coordinators]),
            ending: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            next: AtomicU64::new(1),
        }
    }

    /// Begins anew with what is known of a cluster of so many replicas, and of who has what is to be promised.
    pub(super) fn know(&self, tenants: u16, replicas: u8, holders: Holders) {
        *self.holders() = holders;
        *self.oracle() = Oracle::new(tenants, replicas);
    }

    pub(super) fn holders(&self) -> MutexGuard<'_, Holders> {
        open(&self.holders)
    }

    pub(super) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        open(&self.oracle)
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        open(&self.figures)
    }

    /// Returns for how long it has gone on.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns what time it is.
    pub(super) fn now(&self) -> At {
        At(u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns a number that is larger than any that was returned before: the order of calls and returns.
    pub(super) fn tick(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// Tells whoever watches.
    pub(super) fn say(&self, text: &str) {
        eprintln!("{:>7.1} s  {text}", self.elapsed().as_secs_f64());
    }

    /// Something is not as it has to be.
    pub(super) fn found(&self, text: String) {
        self.say(&format!("FOUND: {text}"));
        self.figures().findings += 1;
        let mut findings = open(&self.findings);
        if findings.len() < MAX_FINDINGS {
            findings.push(format!("at {:.1} s: {text}", self.elapsed().as_secs_f64()));
        }
    }

    pub(super) fn findings(&self) -> Vec<String> {
        open(&self.findings).clone()
    }

    /// A fault was made.
    pub(super) fn made(&self, fault: Fault) {
        *self.figures().faults.entry(fault).or_default() += 1;
    }

    pub(super) fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.figures().faults.iter().map(|(fault, count)| (fault.name(), *count)).collect()
    }

    /// Says whom the fault hits that comes.
    pub(super) fn hits(&self, hit: Hit) {
        open(&self.hits).push(hit);
    }

    /// For so long promised blocks could not be read, from when there had been so many faults on.
    pub(super) fn gap(&self, gap: Duration, faults: usize) {
        let hits = open(&self.hits);
        let mut since = hits.iter().skip(faults.saturating_sub(1)).copied();
        let first = since.next().unwrap_or(Hit::Coordinators);
        let hit = match first {
            // Of the outage that it began in, whatever comes after.
            Hit::Outage(_) => first,
            _ => since.fold(first, Hit::and),
        };
        drop(hits);
        self.figures().gap(gap.as_secs_f64(), hit);
    }

    /// Returns whom the present fault hits.
    pub(super) fn hit(&self) -> Hit {
        open(&self.hits).last().copied().unwrap_or(Hit::Coordinators)
    }

    /// Returns how many faults there have been.
    pub(super) fn faults_so_far(&self) -> usize {
        open(&self.hits).len()
    }

    /// Ends the clients.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Says whether somebody has asked it to end before its time.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Waits that long, or until the run ends.
    pub(super) fn rest(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time && !self.is_ending() {
            std::thread::sleep(POLL.min(time));
        }
    }

    /// Has a signal to end end the run, so that everything that was broken is mended.
    pub(super) fn heed_signals(self: &Arc<Self>, runtime: &tokio::runtime::Runtime) {
        let shared = self.clone();
        runtime.spawn(async move {
            if kvhive_runtime::shutdown_signal().await.is_ok() {
                shared.say("ending");
                shared.interrupted.store(true, Ordering::SeqCst);
                shared.end();
            }
        });
    }

    /// Sees how late the machine is, by a thread of its own: timers of the runtime are late by what its clients do, too. Ends with what
    /// is shared, as reads are judged after the run has ended, too.
    pub(super) fn watch_lag(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        std::thread::spawn(move || {
            loop {
                let begun = Instant::now();
                std::thread::sleep(LAG_EVERY);
                let Some(shared) = shared.upgrade() else { return };
                shared.note_lag(begun.elapsed().saturating_sub(LAG_EVERY));
            }
        });
    }

    fn note_lag(&self, lag: Duration) {
        let mut lags = open(&self.lags);
        if lags.len() >= LAG_SAMPLES {
            lags.pop_front();
        }
        lags.push_back((self.elapsed(), lag));
    }

    /// Returns how late a timer of this process was at most since then: what a call that ends late may owe to the machine.
    pub(super) fn lag_since(&self, then: Duration) -> Duration {
        let lags = open(&self.lags);
        let since = lags.iter().rev().take_while(|(at, _)| *at >= then).map(|(_, lag)| *lag);
        since.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_late_the_machine_was_is_told_for_the_time_that_is_asked() {
        let shared = Shared::new(1, 1);
        shared.note_lag(Duration::from_millis(300));
        std::thread::sleep(Duration::from_millis(2));
        let then = shared.elapsed();
        assert_eq!(shared.lag_since(then), Duration::ZERO);
        shared.note_lag(Duration::from_millis(5));
        assert_eq!(shared.lag_since(then), Duration::from_millis(5));
        assert_eq!(shared.lag_since(Duration::ZERO), Duration::from_millis(300));
    }

    #[test]
    fn gaps_are_counted_by_whom_the_fault_hits() {
        let shared = Shared::new(1, 1);
        let before = shared.faults_so_far();
        shared.gap(Duration::from_millis(500), before);
        shared.hits(Hit::Nodes);
        shared.gap(Duration::from_secs(1), shared.faults_so_far());
        // It began before the node was hit.
        shared.gap(Duration::from_secs(2), before);
        shared.hits(Hit::Outage(1));
        let outage = shared.faults_so_far();
        shared.hits(Hit::Nodes);
        shared.gap(Duration::from_secs(3), outage);
        let figures = shared.figures();
        assert_eq!((&figures.gaps_coordinators[..], &figures.gaps_nodes[..]), (&[0.5][..], &[1.0][..]));
        assert_eq!((&figures.gaps_both[..], &figures.gaps_outage[..]), (&[2.0][..], &[(1, 3.0)][..]));
    }

    #[test]
    fn what_is_found_and_made_is_counted() {
        let shared = Shared::new(1, 1);
        for _ in 0..=MAX_FINDINGS {
            shared.found("nothing".to_owned());
        }
        shared.made(Fault::KillNode);
        assert_eq!((shared.figures().findings, shared.findings().len()), (41, MAX_FINDINGS));
        assert_eq!(shared.faults(), BTreeMap::from([("kill-node", 1)]));
    }
}
