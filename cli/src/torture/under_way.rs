//! Faults that others may overlap: each is begun, and goes on whenever it is its time, until what was broken is mended. Which may be
//! under way together is [`kvhive_oracle::Schedule`]'s to say.

use super::inject::{GONE_MS, Injector, pick};
use super::load::CLEAR_LIMIT;
use anyhow::{Context, Result};
use kvhive_oracle::{Fault, Step};
use kvhive_protocol::Generation;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The longest that a leader is stopped.
const PAUSE_MS: u64 = 6000;
/// The longest that a node is stopped for its serving lease to end: where it lasts longer, only its membership ends.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// What was broken and is not whole yet.
pub(super) struct Unhealed {
    /// When a process of it was last killed, stopped or started.
    pub(super) since: Instant,
    pub(super) what: String,
    /// Who was hit since everything was whole.
    pub(super) hit: BTreeSet<String>,
    /// How often somebody was.
    pub(super) times: usize,
}

/// A fault that has begun.
pub(super) enum UnderWay {
    /// A process is gone until then.
    Gone { fault: Fault, id: String, begun: Instant, until: Instant },
    /// The leader is gone or stopped until a change has been made, and for so long besides.
    Leader { fault: Fault, id: String, change: Change, rest: Duration },
    /// A node is stopped.
    Paused(Paused),
    /// Damaged blocks are read.
    Looks(JoinHandle<()>),
}

/// A change that is to be made without the leader.
pub(super) enum Change {
    Waits(JoinHandle<Option<Duration>>),
    /// Made, this long after it was asked for, at that time.
    Came(Option<f64>, Instant),
}

/// A node that is stopped, while a tenant is cleared.
pub(super) struct Paused {
    id: String,
    begun: Instant,
    /// What it is stopped for longer than, and whether that is its serving lease.
    past: Duration,
    is_serving: bool,
    /// Answered when the tenant is cleared; none where nobody clears any more.
    answer: Option<oneshot::Receiver<bool>>,
    cleared: Option<bool>,
}

impl UnderWay {
    pub(super) fn hits_coordinators(&self) -> bool {
        self.coordinator().is_some()
    }

    /// Names the coordinator that is gone or stopped by it.
    fn coordinator(&self) -> Option<&String> {
        match self {
            UnderWay::Gone { fault, id, .. } if fault.spares_nodes() => Some(id),
            UnderWay::Leader { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Names the node that it keeps from serving.
    fn node(&self) -> Option<&String> {
        match self {
            UnderWay::Gone { fault, id, .. } if !fault.spares_nodes() => Some(id),
            UnderWay::Paused(paused) => Some(&paused.id),
            _ => None,
        }
    }
}

impl Paused {
    /// Says whether it may wake: past its lease, and with blocks that are stale by then, where that is possible at all.
    fn is_over(&mut self) -> bool {
        let slept = self.begun.elapsed();
        if let (None, Some(answer)) = (self.cleared, &mut self.answer) {
            match answer.try_recv() {
                Ok(cleared) => self.cleared = Some(cleared),
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => self.answer = None,
            }
        }
        let waits =
            self.cleared.is_none() && self.answer.is_some() && slept < self.past * 2 + CLEAR_LIMIT / 2;
        slept > self.past + self.past / 10 && !waits
    }
}

impl Injector<'_> {
    /// Begins a fault that others may overlap; says whether it is one.
    pub(super) fn begin(&mut self, step: Step) -> Result<bool> {
        match step.fault {
            Fault::FlipBits => self.flip_bits(step)?,
            Fault::KillLeader | Fault::PauseLeader => self.begin_leader(step)?,
            Fault::KillFollower => self.begin_follower(step)?,
            Fault::KillNode | Fault::RestartNode | Fault::PauseNode => self.begin_node(step)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Kills or stops the leader.
    fn begin_leader(&mut self, step: Step) -> Result<()> {
        let id = self.leader()?;
        let rest = match step.fault {
            Fault::PauseLeader => {
                self.ground.pause(&id);
                Duration::from_millis(PAUSE_MS * step.per_mille / 1000)
            }
            _ => {
                self.ground.kill(&id)?;
                Duration::ZERO
            }
        };
        self.breaks(step, &id);
        let load = self.load.clone();
        let change = Change::Waits(self.runtime.spawn(async move { load.beat().await }));
        self.under_way.push(UnderWay::Leader { fault: step.fault, id, change, rest });
        Ok(())
    }

    /// Kills a coordinator that follows.
    fn begin_follower(&mut self, step: Step) -> Result<()> {
        let followers = followers(self.ground.coordinators(), &self.leader()?, &self.gone_coordinators());
        let id = pick(&followers, step.victim)?.clone();
        self.ground.kill(&id)?;
        self.breaks(step, &id);
        let begun = Instant::now();
        self.under_way.push(UnderWay::Gone { fault: step.fault, id, begun, until: begun + gone(step) });
        Ok(())
    }

    /// Takes a node away for a while.
    fn begin_node(&mut self, step: Step) -> Result<()> {
        let begun = Instant::now();
        let id = self.node(step)?;
        self.hurts(&id);
        self.breaks(step, &id);
        match step.fault {
            Fault::PauseNode => return self.begin_pause(id),
            Fault::KillNode => {
                self.ground.kill(&id)?;
                self.under_way.push(UnderWay::Gone {
                    fault: step.fault,
                    id,
                    begun,
                    until: begun + gone(step),
                });
            }
            _ => {
                self.ground.finish(&id)?;
                self.under_way.push(UnderWay::Gone { fault: step.fault, id, begun, until: begun });
            }
        }
        Ok(())
    }

    /// Stops a node past its leases. Meanwhile a tenant is cleared; the node wakes with blocks of before.
    fn begin_pause(&mut self, id: String) -> Result<()> {
        let (lease, serving) = self.ground.leases();
        let is_serving = serving < MAX_PAUSE;
        let past = if is_serving { serving } else { lease };
        let begun = Instant::now();
        self.ground.pause(&id);
        let (asker, answer) = oneshot::channel();
        // Whoever clears ends before this only where the run does.
        let answer = self.clears.try_send(asker).is_ok().then_some(answer);
        self.under_way.push(UnderWay::Paused(Paused { id, begun, past, is_serving, answer, cleared: None }));
        Ok(())
    }

    /// Notes who is broken by what.
    fn breaks(&mut self, step: Step, id: &str) {
        let spares_nodes = step.fault.spares_nodes();
        self.is_thin |= !spares_nodes;
        let unhealed = if spares_nodes { &mut self.behind } else { &mut self.thin };
        let (mut hit, times) = unhealed.take().map(|one| (one.hit, one.times)).unwrap_or_default();
        hit.insert(id.to_owned());
        let what = format!("{} {id}", step.fault.name());
        *unhealed = Some(Unhealed { since: Instant::now(), what, hit, times: times + 1 });
    }

    /// A process is there again: from now on everything is to become whole with it, where it was without it, too.
    fn returns(&mut self, fault: Fault, id: &str) {
        let unhealed = if fault.spares_nodes() { &mut self.behind } else { &mut self.thin };
        heals_anew(unhealed, fault.name(), id);
    }

    /// A node's lease has ended and was not to: what it had is to be elsewhere before the next is hit, as after a fault.
    pub(super) fn lapses(&mut self, id: &str, generation: Generation) {
        self.ground.whole.lapses(id, generation);
        self.is_thin = true;
        heals_anew(&mut self.thin, "the end of the lease of", id);
    }

    /// Names the coordinators that are gone or stopped.
    pub(super) fn gone_coordinators(&self) -> BTreeSet<String> {
        self.under_way.iter().filter_map(UnderWay::coordinator).cloned().collect()
    }

    /// Names the nodes that are gone or stopped.
    pub(super) fn gone_nodes(&self) -> BTreeSet<String> {
        self.under_way.iter().filter_map(UnderWay::node).cloned().collect()
    }

    /// Has everything go on for which it is time, and sees what is whole again.
    pub(super) fn go_on(&mut self) -> Result<()> {
        for said in self.advance()? {
            self.shared.say(&said);
        }
        self.see_what_is_whole()
    }

    /// Has everything go on for which it is time; says what is over.
    pub(super) fn advance(&mut self) -> Result<Vec<String>> {
        let (mut over, mut is_read) = (Vec::new(), false);
        for one in std::mem::take(&mut self.under_way) {
            match one {
                UnderWay::Looks(looks) if looks.is_finished() => {
                    self.runtime.block_on(looks).context("reading damaged blocks")?;
                    is_read = true;
                }
                UnderWay::Gone { fault, id, begun, until } if Instant::now() >= until => {
                    self.ground.start(&id)?;
                    self.shared.made(fault);
                    self.returns(fault, &id);
                    over.push(format!(
                        "{} {id}, gone for {:.1} s",
                        fault.name(),
                        begun.elapsed().as_secs_f64()
                    ));
                }
                UnderWay::Leader { fault, id, change, rest } => {
                    let change = self.follow(fault, change)?;
                    match change {
                        Change::Came(took, at) if at.elapsed() >= rest => {
                            over.push(self.end_leader(fault, &id, took)?);
                        }
                        change => self.under_way.push(UnderWay::Leader { fault, id, change, rest }),
                    }
                }
                UnderWay::Paused(mut paused) => {
                    if paused.is_over() {
                        over.push(self.end_pause(&paused));
                    } else {
                        self.under_way.push(UnderWay::Paused(paused));
                    }
                }
                other => self.under_way.push(other),
            }
        }
        if is_read {
            self.count_damage();
        }
        Ok(over)
    }

    /// Sees whether the change has been made.
    fn follow(&mut self, fault: Fault, change: Change) -> Result<Change> {
        let Change::Waits(beat) = change else { return Ok(change) };
        if !beat.is_finished() {
            return Ok(Change::Waits(beat));
        }
        let took = self.note_beat(self.runtime.block_on(beat).context("making a change")?);
        if fault == Fault::KillLeader {
            self.shared.figures().failovers.extend(took);
        }
        Ok(Change::Came(took, Instant::now()))
    }

    fn end_leader(&mut self, fault: Fault, id: &str, took: Option<f64>) -> Result<String> {
        match fault {
            Fault::PauseLeader => self.ground.resume(id),
            _ => self.ground.start(id)?,
        }
        self.shared.made(fault);
        self.returns(fault, id);
        Ok(format!("{} {id}, changes again after {:.2} s", fault.name(), took.unwrap_or(f64::INFINITY)))
    }

    fn end_pause(&mut self, paused: &Paused) -> String {
        self.ground.resume(&paused.id);
        let slept = paused.begun.elapsed();
        let mut figures = self.shared.figures();
        figures.pauses += 1;
        figures.pauses_past_serving += u64::from(paused.is_serving);
        figures.clears_in_pauses += u64::from(paused.is_serving && paused.cleared == Some(true));
        drop(figures);
        self.shared.made(Fault::PauseNode);
        self.returns(Fault::PauseNode, &paused.id);
        let load = self.load.clone();
        let looks = async move { load.look_at_cleared().await };
        self.under_way.push(UnderWay::Looks(self.runtime.spawn(looks)));
        let said = match paused.cleared {
            Some(true) => "a tenant was cleared meanwhile",
            _ => "no clear was acknowledged meanwhile",
        };
        let name = Fault::PauseNode.name();
        format!("{name} {}, for {:.1} s, {said}", paused.id, slept.as_secs_f64())
    }
}

/// From now on everything is to become whole, with this process too.
fn heals_anew(unhealed: &mut Option<Unhealed>, what: &str, id: &str) {
    // What was given up as never whole, and what was whole without it, has nothing more to say.
    let fresh =
        || Unhealed { since: Instant::now(), what: format!("{what} {id}"), hit: BTreeSet::new(), times: 0 };
    let mut one = unhealed.take().unwrap_or_else(fresh);
    one.since = Instant::now();
    one.hit.insert(id.to_owned());
    *unhealed = Some(one);
}

/// Returns who follows, of all coordinators: those that are there and do not lead.
fn followers(mut all: Vec<String>, leader: &str, gone: &BTreeSet<String>) -> Vec<String> {
    all.retain(|id| id != leader && !gone.contains(id));
    all
}

/// Returns for how long a step's process is gone.
fn gone(step: Step) -> Duration {
    Duration::from_millis(GONE_MS * step.per_mille / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paused(begun: Instant, past: Duration) -> (Paused, oneshot::Sender<bool>) {
        let (asker, answer) = oneshot::channel();
        let id = "node-1".to_owned();
        (Paused { id, begun, past, is_serving: true, answer: Some(answer), cleared: None }, asker)
    }

    #[test]
    fn a_node_sleeps_past_its_lease_and_until_the_clear_is_acknowledged() {
        let past = Duration::from_millis(200);
        let ago = |time| Instant::now().checked_sub(time).expect("the machine runs for longer");
        let (mut early, asker) = paused(ago(past), past);
        asker.send(true).expect("somebody waits");
        assert!(!early.is_over(), "not clearly past");
        let (mut waits, asker) = paused(ago(past * 2), past);
        assert!(!waits.is_over());
        asker.send(true).expect("somebody waits");
        assert!(waits.is_over() && waits.cleared == Some(true));
        // Nobody clears any more.
        let (mut alone, asker) = paused(ago(past * 2), past);
        drop(asker);
        assert!(alone.is_over() && alone.cleared.is_none());
        let (mut never, _asker) = paused(ago(past * 2 + CLEAR_LIMIT), past);
        assert!(never.is_over());
    }

    #[test]
    fn what_hits_coordinators_takes_no_node_away() {
        let now = Instant::now();
        let gone = |fault| UnderWay::Gone { fault, id: "a".to_owned(), begun: now, until: now };
        let (follower, node) = (gone(Fault::KillFollower), gone(Fault::KillNode));
        assert!(follower.hits_coordinators() && follower.node().is_none());
        let change = Change::Came(None, now);
        let leader =
            UnderWay::Leader { fault: Fault::PauseLeader, id: "a".to_owned(), change, rest: Duration::ZERO };
        assert!(leader.hits_coordinators() && leader.node().is_none());
        assert!(!node.hits_coordinators() && node.node().is_some());
    }

    #[test]
    fn who_is_gone_already_is_no_follower_to_be_killed() {
        let all = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let gone = BTreeSet::from(["b".to_owned()]);
        assert_eq!(followers(all(&["a", "b", "c", "d", "e"]), "d", &gone), all(&["a", "c", "e"]));
    }
}
