//! The hands that break things: one fault after the other, each over before the next, by the plan of a seed.

use super::ground::Ground;
use super::load::{CLEAR_LIMIT, Clears, Load};
use super::rot;
use super::shared::Shared;
use anyhow::{Context, Result};
use kvhive_oracle::{Fault, Hit, Outage, Plan, Random, Step};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The longest that a process is gone.
pub(super) const GONE_MS: u64 = 4000;
/// After a change has been made again, nodes have their leases renewed within this.
const RENEWAL: Duration = Duration::from_secs(1);
/// How often blocks are fetched of which a bit was flipped.
const LOOKS: u32 = 6;
const AGAIN: Duration = Duration::from_millis(50);
/// The longest that a leader is stopped.
const PAUSE_MS: u64 = 6000;
/// The longest that a node is stopped for its serving lease to end: where it lasts longer, only its membership ends.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Breaks one cluster.
pub(super) struct Injector<'a> {
    pub(super) ground: Ground,
    load: &'a Load,
    pub(super) shared: &'a Arc<Shared>,
    runtime: &'a tokio::runtime::Runtime,
    clears: Clears,
    random: Random,
    /// How often there was no coordinator.
    outages: u32,
}

impl<'a> Injector<'a> {
    pub(super) fn new(
        ground: Ground,
        load: &'a Load,
        shared: &'a Arc<Shared>,
        runtime: &'a tokio::runtime::Runtime,
        clears: Clears,
    ) -> Injector<'a> {
        let random = Random::new(shared.seed).part(2);
        Injector { ground, load, shared, runtime, clears, random, outages: 0 }
    }

    /// Parts wanted faults into those that can be made here, and why the others cannot.
    pub(super) fn possible(&self, wanted: Vec<Fault>) -> (Vec<Fault>, Vec<String>) {
        let has_disks =
            self.ground.nodes().iter().any(|node| !rot::files(self.ground.dir(), node).is_empty());
        let followers = self.ground.coordinators().len().saturating_sub(1);
        let (mut kinds, mut skipped) = (Vec::new(), Vec::new());
        for fault in wanted {
            let lacks = match fault {
                Fault::FlipBits if !has_disks => Some("no node has a disk tier".to_owned()),
                Fault::KillFollower if followers == 0 => Some("one coordinator has no followers".to_owned()),
                fault if Fault::OF_HOSTS.contains(&fault) => self.ground.lacks(fault),
                _ => None,
            };
            match lacks {
                Some(why) => skipped.push(format!("{}: {why}", fault.name())),
                None => kinds.push(fault),
            }
        }
        (kinds, skipped)
    }

    /// Makes one fault after the other until the time is over.
    ///
    /// # Errors
    /// When the cluster's processes cannot be handled any more.
    pub(super) fn run(&mut self, plan: Plan, until: Duration) -> Result<()> {
        for step in plan {
            self.shared.rest(Duration::from_millis(step.rest_ms));
            if self.shared.is_ending() || self.shared.elapsed() > until {
                break;
            }
            self.outages += u32::from(step.fault == Fault::KillCoordinators);
            self.shared.hits(match step.fault {
                Fault::KillCoordinators => Hit::Outage(self.outages),
                fault if fault.spares_nodes() => Hit::Coordinators,
                _ => Hit::Nodes,
            });
            let what = self.perform(step)?;
            self.shared.made(step.fault);
            self.mend(step.fault, &what)?;
        }
        Ok(())
    }

    /// Gives the cluster back.
    pub(super) fn end(self) -> Ground {
        self.ground
    }

    /// Waits until the cluster is whole, and looks for what was promised where nodes were hit.
    fn mend(&mut self, fault: Fault, what: &str) -> Result<()> {
        let begun = Instant::now();
        let healed = self.ground.heal(self.shared, self.runtime, self.load)?;
        match healed {
            Ok(()) => {
                let took = begun.elapsed().as_secs_f64();
                self.shared.say(&format!("{} {what}; whole {took:.1} s later", fault.name()));
                self.shared.oracle().heals();
                if !fault.spares_nodes() {
                    self.runtime.block_on(self.load.check_promises());
                }
            }
            Err(_) if self.shared.is_interrupted() => {}
            Err(lacking) => {
                self.shared.figures().not_healed += 1;
                self.shared.found(format!("{} {what}: not whole again in time: {lacking}", fault.name()));
            }
        }
        Ok(())
    }

    /// Makes one fault. Says who was hit.
    fn perform(&mut self, step: Step) -> Result<String> {
        let gone = Duration::from_millis(GONE_MS * step.per_mille / 1000);
        match step.fault {
            Fault::KillLeader => {
                let leader = self.leader()?;
                self.ground.kill(&leader)?;
                let took = self.beat();
                self.shared.figures().failovers.extend(took);
                self.ground.start(&leader)?;
                Ok(format!("{leader}, changes again after {:.2} s", took.unwrap_or(f64::INFINITY)))
            }
            Fault::KillFollower => {
                let leader = self.leader()?;
                let followers: Vec<String> =
                    self.ground.coordinators().into_iter().filter(|id| *id != leader).collect();
                let follower = pick(&followers, step.victim)?;
                self.ground.kill(follower)?;
                self.shared.rest(gone);
                self.ground.start(follower)?;
                Ok(follower.clone())
            }
            Fault::KillCoordinators => {
                let all = self.ground.coordinators();
                let begun = Instant::now();
                for id in &all {
                    self.ground.kill(id)?;
                }
                // Shorter than nodes serve without them.
                self.shared.rest(gone / 4);
                for id in &all {
                    self.ground.start(id)?;
                }
                self.beat();
                let outage = Outage {
                    took: (begun.elapsed() + RENEWAL).as_secs_f64(),
                    serving_lease: self.ground.leases().1.as_secs_f64(),
                };
                self.shared.figures().outages.insert(self.outages, outage);
                Ok(format!("{}, changes again after {:.2} s", all.join(", "), begun.elapsed().as_secs_f64()))
            }
            Fault::KillNode => {
                let node = self.node(step)?;
                self.hurts(&node);
                self.ground.kill(&node)?;
                self.shared.rest(gone);
                self.ground.start(&node)?;
                Ok(format!("{node}, gone for {:.1} s", gone.as_secs_f64()))
            }
            Fault::RestartNode => {
                let node = self.node(step)?;
                self.hurts(&node);
                self.ground.finish(&node)?;
                self.ground.start(&node)?;
                Ok(node)
            }
            Fault::PauseLeader => {
                let leader = self.leader()?;
                self.ground.pause(&leader);
                let took = self.beat();
                self.shared.rest(Duration::from_millis(PAUSE_MS * step.per_mille / 1000));
                self.ground.resume(&leader);
                Ok(format!("{leader}, changes again after {:.2} s", took.unwrap_or(f64::INFINITY)))
            }
            Fault::PauseNode => self.pause_node(step),
            Fault::FlipBits => {
                let node = self.node(step)?;
                let before = self.ground.bad_records(self.load, &node);
                let (begun, dir) = (Instant::now(), self.ground.dir());
                let mut flipped = rot::flip(dir, &node, &mut self.random, self.load, self.shared)?;
                // Blocks come to disks when memory is full: early in a run there are none yet.
                let has_disks = !rot::files(dir, &node).is_empty();
                while flipped.is_empty() && has_disks && begun.elapsed() < MAX_PAUSE {
                    self.shared.rest(AGAIN);
                    flipped = rot::flip(dir, &node, &mut self.random, self.load, self.shared)?;
                }
                // Again, as each time one of the replicas is asked.
                for _ in 0..LOOKS {
                    self.runtime.block_on(self.load.look(&flipped));
                }
                let found = self.ground.bad_records(self.load, &node).saturating_sub(before);
                let mut figures = self.shared.figures();
                figures.flipped += flipped.len() as u64;
                figures.damage_found += found;
                Ok(format!("{} blocks of {node}, {found} found by it", flipped.len()))
            }
            _ => self.perform_on_host(step),
        }
    }

    /// Stops a node past its leases. Meanwhile a tenant is cleared; the node wakes with blocks of before.
    fn pause_node(&mut self, step: Step) -> Result<String> {
        let node = self.node(step)?;
        let (lease, serving) = self.ground.leases();
        let past = if serving < MAX_PAUSE { serving } else { lease };
        self.hurts(&node);
        let begun = Instant::now();
        self.ground.pause(&node);
        let (asker, mut answer) = oneshot::channel();
        // Whoever clears ends before this only where the run does.
        let is_asked = self.runtime.block_on(self.clears.send(asker)).is_ok();
        self.shared.rest(past + past / 10 + Duration::from_secs(1));
        // Acknowledged while it sleeps, where that is possible at all: it wakes with blocks that are stale by then.
        let mut cleared = None;
        while is_asked && cleared.is_none() && begun.elapsed() < past * 2 + CLEAR_LIMIT / 2 {
            cleared = answer.try_recv().ok();
            self.shared.rest(AGAIN);
        }
        self.ground.resume(&node);
        let mut figures = self.shared.figures();
        if begun.elapsed() > past {
            figures.pauses += 1;
            figures.pauses_past_serving += u64::from(past == serving);
            figures.clears_in_pauses += u64::from(past == serving && cleared == Some(true));
        }
        drop(figures);
        self.runtime.block_on(self.load.look_at_cleared());
        let said = match cleared {
            Some(true) => "a tenant was cleared meanwhile",
            _ => "no clear was acknowledged meanwhile",
        };
        Ok(format!("{node}, for {:.1} s, {said}", begun.elapsed().as_secs_f64()))
    }

    /// Makes a change; returns how long it took in seconds, and counts it as not healed when it never came.
    pub(super) fn beat(&self) -> Option<f64> {
        let took = self.runtime.block_on(self.load.beat());
        if took.is_none() {
            self.shared.figures().not_healed += 1;
            self.shared.found("no change could be made within 30 s of a coordinator's fault".to_owned());
        }
        took.map(|took| took.as_secs_f64())
    }

    /// A node loses what it holds.
    pub(super) fn hurts(&mut self, node: &str) {
        self.shared.oracle().hurts(node);
        self.ground.renews(self.runtime, self.load, node);
    }

    pub(super) fn leader(&self) -> Result<String> {
        self.ground.leader().context("no coordinator says that it leads")
    }

    pub(super) fn node(&self, step: Step) -> Result<String> {
        pick(&self.ground.nodes(), step.victim).cloned()
    }
}

/// Picks who is hit.
pub(super) fn pick(all: &[String], victim: u64) -> Result<&String> {
    all.get(victim as usize % all.len().max(1)).context("there is nobody to be hit")
}
