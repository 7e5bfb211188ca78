//! The hands that break things by the plan of a seed: what may overlap goes on side by side ([`super::under_way`]), everything else is over
//! before the next begins.

use super::ground::{Ground, HEAL_LIMIT};
use super::load::{Clears, Load};
use super::rot;
use super::shared::Shared;
use super::under_way::{UnderWay, Unhealed};
use super::whole::Whole;
use anyhow::{Context, Result};
use kvhive_oracle::schedule::hit_by;
use kvhive_oracle::{Broken, Fault, Hit, Outage, Random, Schedule, Step, Turn};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest that a process is gone.
pub(super) const GONE_MS: u64 = 4000;
/// After a change has been made again, nodes have their leases renewed within this.
const RENEWAL: Duration = Duration::from_secs(1);
/// How often it is seen whether something is to go on.
const EVERY: Duration = Duration::from_millis(50);
/// How often damaged blocks are fetched, besides by those who read anyway.
const LOOKS: u32 = 2;

/// Breaks one cluster.
pub(super) struct Injector<'a> {
    pub(super) ground: Ground,
    pub(super) load: &'a Load,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) runtime: &'a tokio::runtime::Runtime,
    pub(super) clears: Clears,
    random: Random,
    /// How often there was no coordinator.
    outages: u32,
    pub(super) under_way: Vec<UnderWay>,
    /// Whether what is under way is to be alone.
    pub(super) is_alone: bool,
    /// What coordinators have not recovered from yet.
    pub(super) behind: Option<Unhealed>,
    /// What nodes have not.
    pub(super) thin: Option<Unhealed>,
    /// A node was hit since it was known that what is promised has all of its copies.
    pub(super) is_thin: bool,
    /// Nodes that are there again and that the coordinators have not heard of since.
    unheard: BTreeSet<String>,
    /// How long promised blocks were looked for, of the time that is accounted for next.
    looked: Duration,
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
        Injector {
            ground,
            load,
            shared,
            runtime,
            clears,
            random,
            outages: 0,
            under_way: Vec::new(),
            is_alone: false,
            behind: None,
            thin: None,
            is_thin: false,
            unheard: BTreeSet::new(),
            looked: Duration::ZERO,
        }
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

    /// Makes one fault after the other, and beside each other where they may be, until the time is over.
    ///
    /// # Errors
    /// When the cluster's processes cannot be handled any more.
    pub(super) fn run(&mut self, mut schedule: Schedule, until: Duration) -> Result<()> {
        while !schedule.is_over() && !self.shared.is_ending() && self.shared.elapsed() < until {
            let mut begun = Instant::now();
            self.go_on()?;
            let broken = self.broken();
            let Some(Turn { step, is_alone }) = schedule.next(broken) else {
                self.shared.rest(EVERY);
                self.spend(schedule.waits_for(broken), &mut begun);
                continue;
            };
            self.shared.rest(Duration::from_millis(step.rest_ms));
            self.spend("the rest before a fault", &mut begun);
            if self.shared.is_ending() {
                break;
            }
            let is_outage = self.ends_majority(step);
            self.outages += u32::from(is_outage);
            self.shared.hits(match is_outage {
                true => Hit::Outage(self.outages),
                false => hit_by(step.fault, self.broken(), self.shared.hit()),
            });
            self.is_alone = is_alone;
            if self.begin(step)? {
                self.spend("faults to be begun", &mut begun);
                continue;
            }
            let what = self.perform(step)?;
            self.shared.made(step.fault);
            self.mend(step.fault, &what)?;
            self.spend("what is broken by itself to be over and whole", &mut begun);
        }
        while !self.under_way.is_empty() && !self.shared.is_ending() {
            self.go_on()?;
            self.shared.rest(EVERY);
        }
        self.count_damage();
        Ok(())
    }

    /// Accounts for the time since `begun`, which begins anew.
    fn spend(&mut self, what: &'static str, begun: &mut Instant) {
        let looked = std::mem::take(&mut self.looked);
        let spent = std::mem::replace(begun, Instant::now()).elapsed().saturating_sub(looked);
        let mut figures = self.shared.figures();
        *figures.waited.entry(what).or_default() += spent.as_secs_f64();
        *figures.waited.entry("promised blocks to be looked for").or_default() += looked.as_secs_f64();
    }

    /// Looks for every promised block.
    fn look(&mut self) {
        let begun = Instant::now();
        self.runtime.block_on(self.load.check_promises());
        self.looked += begun.elapsed();
    }

    /// Says whether it may be that nobody leads for as long as this takes.
    pub(super) fn ends_majority(&self, step: Step) -> bool {
        let all = self.ground.coordinators().len();
        match step.fault {
            Fault::KillCoordinators => true,
            Fault::PowerCut => all - cuts_of(step, all) <= all / 2,
            _ => false,
        }
    }

    /// Notes how long nobody led, from `begun` on; a change has been made again.
    pub(super) fn end_outage(&mut self, begun: Instant) {
        let outage = Outage {
            took: (begun.elapsed() + RENEWAL).as_secs_f64(),
            serving_lease: self.ground.leases().1.as_secs_f64(),
        };
        self.shared.figures().outages.insert(self.outages, outage);
    }

    /// Says what is broken now.
    fn broken(&self) -> Broken {
        Broken {
            coordinators: self.behind.as_ref().map_or(0, |behind| behind.hit.len()),
            nodes: self.gone_nodes().len() + self.unheard.len(),
            is_thin: self.is_thin,
            unseen: self.thin.as_ref().map_or(0, |thin| thin.times),
            is_healing: self.thin.is_some(),
            is_alone: self.is_alone,
            is_read: self.under_way.iter().any(|one| matches!(one, UnderWay::Looks(_))),
        }
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
                    self.look();
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

    /// Sees whether nodes or coordinators are whole again that were hit, and looks for what was promised where nodes were.
    pub(super) fn see_what_is_whole(&mut self) -> Result<()> {
        self.ground.revive()?;
        self.ground.tell_ends(self.shared);
        if self.behind.is_some() && self.under_way.iter().all(|one| !one.hits_coordinators()) {
            let lacking = self.ground.silent();
            settle(self.shared, &mut self.behind, lacking, "coordinators follow");
        }
        if self.thin.is_some() {
            self.see_whether_nodes_are()?;
        }
        // Also what was heard of just now, before the next fault.
        let lapsed = self.shared.holders().take_lapsed();
        for (id, generation) in lapsed {
            self.lapses(&id, generation);
        }
        self.is_alone = self.broken().ends_alone().is_alone;
        Ok(())
    }

    /// The same of nodes: what is promised is whole before everything is.
    fn see_whether_nodes_are(&mut self) -> Result<()> {
        let gone = self.gone_nodes();
        let (lacking, is_thin) = match self.runtime.block_on(self.load.follow()) {
            Err(error) => (Some(format!("no map: {error}")), true),
            Ok(map) => {
                self.unheard = self.ground.whole.unheard(&map, &gone);
                let is_thin = self.ground.whole.is_thin(&map, &gone, self.load.promised_slots());
                (self.ground.whole.lacking(&map, &gone), is_thin)
            }
        };
        let has_copies = self.is_thin && !is_thin;
        if let Some(thin) = self.thin.as_ref().filter(|_| has_copies) {
            let took = thin.since.elapsed().as_secs_f64();
            self.shared.say(&format!("what is promised has its copies {took:.1} s after {}", thin.what));
        }
        let is_whole = settle(self.shared, &mut self.thin, lacking, "nodes are whole");
        if is_whole {
            self.ground.renewed(&gone);
        }
        if self.thin.is_none() || has_copies {
            self.is_thin = false;
        }
        if self.thin.is_none() {
            self.unheard.clear();
        }
        if is_whole || has_copies {
            self.shared.oracle().heals();
            self.look();
        }
        Ok(())
    }

    /// Makes one fault that nothing else overlaps. Says who was hit.
    fn perform(&mut self, step: Step) -> Result<String> {
        let gone = Duration::from_millis(GONE_MS * step.per_mille / 1000);
        match step.fault {
            Fault::KillCoordinators => {
                let all = self.ground.coordinators();
                let serving = self.ground.leases().1;
                let begun = Instant::now();
                for id in &all {
                    self.ground.kill(id)?;
                }
                // Shorter than nodes serve without them, by as much as it takes until they are heard again.
                self.shared.rest(gone.min(serving / 4));
                for id in &all {
                    self.ground.start(id)?;
                }
                self.beat();
                self.end_outage(begun);
                Ok(format!("{}, changes again after {:.2} s", all.join(", "), begun.elapsed().as_secs_f64()))
            }
            _ => self.perform_on_host(step),
        }
    }

    /// Flips bits of records on a node's disk, and has them read.
    pub(super) fn flip_bits(&mut self, step: Step) -> Result<()> {
        let node = self.node(step)?;
        let flipped = rot::flip(self.ground.dir(), &node, &mut self.random, self.load, self.shared)?;
        // Blocks come to disks when memory is full: early in a run there are none yet.
        if flipped.is_empty() {
            return Ok(());
        }
        self.shared.figures().flipped += flipped.len() as u64;
        self.shared.made(Fault::FlipBits);
        self.shared.say(&format!("flip-bits {} blocks of {node}", flipped.len()));
        let (load, mut blocks) = (self.load.clone(), flipped);
        blocks.sort_unstable();
        blocks.dedup();
        let looks = async move {
            // Again, as each time one of the replicas is asked.
            for _ in 0..LOOKS {
                load.look(&blocks).await;
            }
        };
        self.under_way.push(UnderWay::Looks(self.runtime.spawn(looks)));
        Ok(())
    }

    /// Counts what nodes have found to be damaged since they were last asked.
    pub(super) fn count_damage(&mut self) {
        for node in self.standing_nodes() {
            self.count_damage_of(&node);
        }
    }

    /// The same of one of them.
    fn count_damage_of(&mut self, node: &str) {
        let found = self.ground.new_damage(self.load, node);
        self.shared.figures().damage_found += found;
    }

    /// Makes a change; returns how long it took in seconds, and counts it as not healed when it never came.
    pub(super) fn beat(&self) -> Option<f64> {
        let took = self.runtime.block_on(self.load.beat());
        self.note_beat(took)
    }

    pub(super) fn note_beat(&self, took: Option<Duration>) -> Option<f64> {
        if took.is_none() {
            self.shared.figures().not_healed += 1;
            self.shared.found("no change could be made within 30 s of a coordinator's fault".to_owned());
        }
        took.map(|took| took.as_secs_f64())
    }

    /// A node loses what it holds.
    pub(super) fn hurts(&mut self, node: &str) {
        // What its process has found is forgotten with it.
        self.count_damage_of(node);
        self.shared.oracle().hurts(node);
        self.ground.renews(self.runtime, self.load, node);
    }

    /// Returns who leads, of those that are there: the others may name one for a while that is gone or stopped.
    pub(super) fn leader(&self) -> Result<String> {
        let gone = self.gone_coordinators();
        self.ground.leader_but(&gone).context("no coordinator says that it leads")
    }

    /// Picks a node of those that are there: one that has something promised to lose, where one has.
    pub(super) fn node(&self, step: Step) -> Result<String> {
        let (mut there, map) = (self.standing_nodes(), self.load.client().map());
        let holds = |id: &String| Whole::holds(&map, id, self.load.promised_slots());
        if there.iter().any(holds) {
            there.retain(holds);
        }
        pick(&there, step.victim).cloned()
    }

    fn standing_nodes(&self) -> Vec<String> {
        let gone = self.gone_nodes();
        let is_there = |node: &String| !gone.contains(node) && !self.unheard.contains(node);
        self.ground.nodes().into_iter().filter(is_there).collect()
    }
}

/// Ends what was not healed where nothing is lacking any more, or where that takes too long. Says whether it is healed.
fn settle(shared: &Shared, unhealed: &mut Option<Unhealed>, lacking: Option<String>, healed: &str) -> bool {
    let Some(one) = unhealed.take() else { return false };
    let Some(lacking) = lacking else {
        let took = one.since.elapsed().as_secs_f64();
        shared.say(&format!("{healed} {took:.1} s after {}", one.what));
        return true;
    };
    if one.since.elapsed() > HEAL_LIMIT {
        shared.figures().not_healed += 1;
        shared.found(format!("{}: not whole again in time: {lacking}", one.what));
    } else {
        *unhealed = Some(one);
    }
    false
}

/// Returns of how many coordinators' disks, of so many, a step cuts the power.
pub(super) fn cuts_of(step: Step, all: usize) -> usize {
    1 + step.per_mille as usize % all.max(1)
}

/// Picks who is hit.
pub(super) fn pick(all: &[String], victim: u64) -> Result<&String> {
    all.get(victim as usize % all.len().max(1)).context("there is nobody to be hit")
}
