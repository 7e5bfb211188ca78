//! Faults of hosts: of the network, of a coordinator's disk, of memory and of clocks.

use super::inject::{GONE_MS, Injector, cuts_of, pick};
use super::isolated::{Group, SyncErrors, Trouble};
use anyhow::{Context, Result, bail};
use kvhive_oracle::{Fault, Step};
use std::time::{Duration, Instant};

/// For how many leases a process is cut off: for less than one or for clearly more, as nobody knows what becomes of it between.
const SHORT: (f64, f64) = (0.15, 0.6);
const LONG: (f64, f64) = (1.75, 3.5);
/// The most packets of a hundred that are lost.
const MOST_LOST: u64 = 30;
/// How slow a slow network is, in Mbit/s.
const SLOW_MBIT: u64 = 8;
/// After trouble that may or may not have ended a lease, it is seen within so many leases which of the two: the lease lasts for one, whoever
/// grants it waits a little longer, and the others are to hear of it on a machine that is busy.
const SETTLE: u32 = 2;
/// How long a process may go on after a failed sync.
const SYNC_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

impl Injector<'_> {
    /// Makes a fault of a host. Says who was hit.
    pub(super) fn perform_on_host(&mut self, step: Step) -> Result<String> {
        let gone = Duration::from_millis(GONE_MS * step.per_mille / 1000);
        match step.fault {
            Fault::Cut | Fault::CutOneWay => self.cut(step),
            Fault::Lose => {
                let share = 1 + MOST_LOST * step.per_mille / 1000;
                self.trouble(step, Trouble::Loses(share), gone, &format!("{share} packets of 100"))
            }
            Fault::Reset => self.trouble(step, Trouble::Resets, gone / 4, "every connection"),
            Fault::Slow => self.trouble(step, Trouble::Slow(SLOW_MBIT), gone, &format!("{SLOW_MBIT} Mbit/s")),
            Fault::FullDisk => {
                let id = self.coordinator(step)?;
                self.ground.excuse(&id);
                self.disk(&id)?.fill()?;
                let took = self.beat();
                self.shared.rest(gone);
                self.disk(&id)?.free();
                Ok(format!("{id}, changes again after {:.2} s", took.unwrap_or(f64::INFINITY)))
            }
            Fault::SyncError => self.fail_syncs(step),
            Fault::PowerCut => self.cut_power(step, gone / 8),
            Fault::LittleMemory => {
                let node = self.node(step)?;
                let pid = self.ground.pid(&node).context("a node that does not run")?;
                self.hurts(&node);
                self.ground.excuse(&node);
                let bytes = (1 + 7 * step.per_mille / 1000) << 20;
                let group = Group::limit(pid, bytes)?;
                self.shared.rest(gone);
                drop(group);
                let ended = self.has_ended(&node)?;
                if ended {
                    self.ground.start(&node)?;
                } else {
                    self.ground.stays(self.load, &node);
                    self.settles();
                }
                let said = if ended { "and was killed" } else { "and lived" };
                Ok(format!("{node}, which may take {} MiB more, {said}", bytes >> 20))
            }
            Fault::WrongClock => {
                let id = self.anybody(step)?;
                let hours = step.per_mille as i64 % 25 - 12;
                if self.ground.nodes().contains(&id) {
                    self.hurts(&id);
                }
                self.ground.set_clock(&id, Some(hours))?;
                self.ground.kill(&id)?;
                self.ground.start(&id)?;
                // From its next start on; until then it goes by the wrong one.
                self.ground.set_clock(&id, None)?;
                Ok(format!("{id}, {hours:+} h"))
            }
            other => bail!("{} is no fault of a host", other.name()),
        }
    }

    /// Cuts the power of coordinators' disks: of one, of two or of all, one after the other, each before the one before it follows again.
    fn cut_power(&mut self, step: Step, time: Duration) -> Result<String> {
        let mut all = self.ground.coordinators();
        let (first, begun) = (step.victim as usize % all.len().max(1), Instant::now());
        all.rotate_left(first);
        all.truncate(cuts_of(step, all.len()));
        for id in &all {
            self.ground.excuse(id);
            self.disk(id)?.cut_power()?;
            self.shared.rest(time);
            // It may have ended by itself, as it should.
            if !self.has_ended(id)? {
                self.ground.kill(id)?;
            }
            self.disk(id)?.power_on()?;
            self.ground.start(id)?;
        }
        let took = self.beat();
        if self.ends_majority(step) {
            self.end_outage(begun);
        }
        Ok(format!("{}, changes again after {:.2} s", all.join(", "), took.unwrap_or(f64::INFINITY)))
    }

    /// Cuts a process off from all others, or one way only.
    fn cut(&mut self, step: Step) -> Result<String> {
        let id = self.anybody(step)?;
        let trouble = match (step.fault, step.victim % 2) {
            (Fault::Cut, _) => Trouble::Cut,
            (_, 0) => Trouble::Mute,
            _ => Trouble::Deaf,
        };
        let is_long = step.per_mille > 300;
        let (least, most) = if is_long { LONG } else { SHORT };
        let share = least + (most - least) * step.per_mille as f64 / 1000.0;
        let time = self.ground.leases().0.mul_f64(share);
        if is_long && self.ground.nodes().contains(&id) {
            // It is no member any more when it is heard again.
            self.hurts(&id);
        }
        self.ground.isolation()?.network().trouble(&id, trouble)?;
        self.shared.rest(time);
        self.ground.isolation()?.network().mend(&id);
        if !is_long {
            self.settles();
        }
        Ok(format!("{id}, {trouble:?} for {:.1} s", time.as_secs_f64()))
    }

    /// Makes trouble at a process' link for a while.
    fn trouble(&mut self, step: Step, trouble: Trouble, time: Duration, what: &str) -> Result<String> {
        let id = self.anybody(step)?;
        if self.ground.nodes().contains(&id) {
            // Whether its lease ends by it is not known.
            self.shared.oracle().hurts(&id);
        }
        self.ground.isolation()?.network().trouble(&id, trouble)?;
        self.shared.rest(time);
        self.ground.isolation()?.network().mend(&id);
        self.settles();
        Ok(format!("{id}, {what} for {:.1} s", time.as_secs_f64()))
    }

    /// Waits until it is known whether a lease has ended by what was done: before that a cluster is not said to be whole.
    fn settles(&self) {
        self.shared.rest(settled_after(self.ground.leases().0));
    }

    /// Has every sync of a coordinator's log fail: it has to end rather than go on.
    fn fail_syncs(&mut self, step: Step) -> Result<String> {
        let id = self.coordinator(step)?;
        let pid = self.ground.pid(&id).context("a coordinator that does not run")?;
        self.ground.excuse(&id);
        let errors = SyncErrors::begin(pid)?;
        let begun = Instant::now();
        let mut ended = false;
        while !ended && begun.elapsed() < SYNC_LIMIT && !self.shared.is_ending() {
            self.beat();
            ended = self.has_ended(&id)?;
            self.shared.rest(POLL);
        }
        drop(errors);
        if ended {
            self.ground.start(&id)?;
        } else if !self.shared.is_ending() {
            self.shared.figures().outlived_sync_errors += 1;
            self.shared.found(format!("{id} went on for {SYNC_LIMIT:?} after its syncs had failed"));
        }
        Ok(format!("{id}, which ended after {:.1} s", begun.elapsed().as_secs_f64()))
    }

    /// Says whether a process has ended by itself.
    fn has_ended(&mut self, id: &str) -> Result<bool> {
        self.ground.has_ended(id)
    }

    fn disk(&mut self, id: &str) -> Result<&mut super::isolated::Disk> {
        self.ground.isolation()?.disk(id).context("it has no disk of its own")
    }

    fn coordinator(&self, step: Step) -> Result<String> {
        pick(&self.ground.coordinators(), step.victim).cloned()
    }

    fn anybody(&self, step: Step) -> Result<String> {
        pick(&[self.ground.coordinators(), self.ground.nodes()].concat(), step.victim).cloned()
    }
}

/// Returns how long after trouble it is known whether a lease as long as this has ended by it.
fn settled_after(lease: Duration) -> Duration {
    lease * SETTLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_said_to_be_whole_two_leases_of_its_own_after_trouble_at_the_earliest() {
        for lease in [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(30)] {
            assert!(settled_after(lease) >= lease * 2);
        }
    }
}
