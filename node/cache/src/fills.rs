//! What a node gives away: of each slot whose primary is one of its devices and of which a replica lacks blocks, who is being
//! given them and how far that is. Told by the map; what it says of a slot holds for the map that it was last told.

use kvhive_planted::{Bug, is};
use kvhive_protocol::emptying::{Given, MAX_EMPTIED_TOLD};
use kvhive_protocol::load::SlotGiven;
use kvhive_protocol::{ClusterMap, DeviceId, Epoch, Generation, MemberId, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Slots whose blocks one device gives to another in one pass over all that it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// Its number, one of its own.
    pub number: u64,
    /// Who gives.
    pub source: DeviceId,
    /// Who is given.
    pub target: DeviceId,
    /// Which slots.
    pub slots: Arc<BTreeSet<Slot>>,
}

/// How a pass ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// The target has answered for every block.
    Whole,
    /// The target has answered for every block that it was given; a disk did not give some in time.
    Late,
    /// Some did not get there; another pass may do better.
    Partial,
    /// The target did not answer.
    Unanswered,
}

/// What became of one block in a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The target did not have it and has it now.
    Moved,
    /// The target had it.
    There,
    /// The target gives it no room. Whether anybody else holds it is asked when its slot has gone.
    Declined,
    /// It cannot be read any more.
    Unreadable {
        /// Nobody else holds it who stays.
        is_last: bool,
    },
    /// The disk did not give it in time.
    Late {
        /// Nobody else holds it who stays.
        is_last: bool,
    },
    /// It is pinned and is given no room: its slot stays until there is some.
    Waits,
}

impl Fate {
    /// Returns what becomes of a block whose bytes are not at hand: lost where it lay, or not there in time, of the slot that `source`
    /// gives away.
    pub fn unread(map: &ClusterMap, source: DeviceId, slot: Slot, is_late: bool) -> Fate {
        let is_alone = !map.stays_elsewhere(slot, source);
        match is_late {
            // It is where it was, and goes with whoever is being emptied.
            true => Fate::Late { is_last: is_alone && map.is_emptied(source.member) },
            false => Fate::Unreadable { is_last: is_alone },
        }
    }

    /// Returns what becomes of a block that is given no room; none when it is to be offered once more, as one is that nobody else
    /// holds who stays, or that is pinned.
    pub fn declined(is_first: bool, is_last: bool, is_pinned: bool) -> Option<Fate> {
        match (is_first && (is_last || is_pinned), is_pinned) {
            (true, _) => None,
            (false, true) => Some(Fate::Waits),
            (false, false) => Some(Fate::Declined),
        }
    }
}

/// Passes in a row without an answer after which a target counts as one that does not answer.
const PATIENCE: u32 = 3;
/// Passes in a row for which a disk that does not give a block in time is waited for: what it does not give then is as good as
/// lost.
const LATE_PASSES: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waits,
    /// In the round of this number.
    UnderWay(u64),
    Done,
}

/// One slot's blocks on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Job {
    source: DeviceId,
    target: DeviceId,
    /// Which start of the target: another one has lost what this one got.
    generation: Generation,
    stage: Stage,
    /// A block has not got there that came after the round had passed it.
    missed: bool,
    /// The member that is being emptied by it, if one is.
    empties: Option<MemberId>,
    /// What passes before the last one did for good.
    before: Given,
    /// What the last pass did, or does.
    pass: Given,
}

impl Job {
    /// Returns who gives, who is given, and which start of it.
    fn way(&self) -> (DeviceId, DeviceId, Generation) {
        (self.source, self.target, self.generation)
    }

    fn begin_pass(&mut self) {
        self.before.moved_blocks += self.pass.moved_blocks;
        self.before.moved_bytes += self.pass.moved_bytes;
        self.pass = Given::default();
    }

    /// Returns what all its passes came to. Of blocks that were declined or late the last one tells, which was offered all of them
    /// again; so it did what was moved before, and found it there.
    fn came_to(&self) -> Given {
        let mut sum = self.pass;
        sum.there_blocks = sum.there_blocks.saturating_sub(self.before.moved_blocks);
        if self.stage == Stage::Done {
            sum.waiting_blocks = 0;
        } else {
            // The others may get there yet.
            sum = Given {
                moved_blocks: sum.moved_blocks,
                moved_bytes: sum.moved_bytes,
                waiting_blocks: sum.waiting_blocks,
                ..Given::default()
            };
        }
        sum.add(&self.before);
        sum
    }
}

/// What a node gives away.
#[derive(Debug, Default)]
pub struct Fills {
    jobs: BTreeMap<Slot, Job>,
    rounds: u64,
    /// Whose turn it was last.
    last: Option<(DeviceId, DeviceId)>,
    /// Passes in a row that a target has not answered.
    unanswered: BTreeMap<DeviceId, u32>,
    /// Passes in a row in which the disk of a source was late.
    late: BTreeMap<DeviceId, u32>,
    /// What emptying came to of slots that have gone, by who gave and which member is being emptied.
    gone: BTreeMap<(DeviceId, MemberId), Given>,
    /// Since which map each member is being emptied.
    since: BTreeMap<MemberId, Epoch>,
    epoch: Epoch,
}

impl Fills {
    /// Follows the map that the node serves by from now on.
    pub fn adopt(&mut self, map: &ClusterMap, member: MemberId) {
        if map.epoch == self.epoch {
            return;
        }
        self.epoch = map.epoch;
        let mut before = std::mem::take(&mut self.jobs);
        self.forget_what_is_over(map, &mut before);
        for (slot, filling) in map.filling.iter().filter(|(_, filling)| filling.streams) {
            let source = map.replicas(*slot).primary().filter(|device| device.member == member);
            let target = filling.devices.first().copied();
            let (Some(source), Some(target)) = (source, target) else { continue };
            let Some(generation) = map.members.get(&target.member).map(|member| member.generation) else {
                continue;
            };
            let fresh = Job {
                source,
                target,
                generation,
                stage: Stage::Waits,
                missed: false,
                empties: None,
                before: Given::default(),
                pass: Given::default(),
            };
            // Whom it empties stays that one: what was counted is of it.
            let empties = |job: &Job| job.empties.or(map.emptied_of(*slot));
            let way = (source, target, generation);
            let job = before.get(slot).filter(|job| job.way() == way).copied().unwrap_or(fresh);
            self.jobs.insert(*slot, Job { empties: empties(&job), ..job });
        }
        self.keep_what_has_gone(map, &before);
        let jobs = &self.jobs;
        self.unanswered.retain(|target, _| jobs.values().any(|job| job.target == *target));
    }

    /// Forgets what was counted of members that are not being emptied any more, or once more since.
    fn forget_what_is_over(&mut self, map: &ClusterMap, jobs: &mut BTreeMap<Slot, Job>) {
        self.since.retain(|member, since| map.emptied_since(*member) == Some(*since));
        let since = &self.since;
        self.gone.retain(|(_, member), _| since.contains_key(member));
        for job in jobs.values_mut() {
            if job.empties.take_if(|member| !since.contains_key(member)).is_some() {
                (job.before, job.pass) = (Given::default(), Given::default());
            }
        }
        self.since.extend(map.members.keys().filter_map(|id| Some((*id, map.emptied_since(*id)?))));
    }

    /// Sums up what slots came to that have arrived where they were given, as long as a member is being emptied of them. Of those that go
    /// another way now it counts what has moved.
    fn keep_what_has_gone(&mut self, map: &ClusterMap, before: &BTreeMap<Slot, Job>) {
        let goes_on = |slot: &Slot, job: &Job| self.jobs.get(slot).is_some_and(|now| now.way() == job.way());
        for (slot, job) in before.iter().filter(|(slot, job)| !goes_on(slot, job)) {
            let has_arrived = map.replicas(*slot).contains(job.target) && !map.is_filling(*slot, job.target);
            let Some(member) = job.empties else { continue };
            let whole = job.came_to();
            let moved = Given {
                moved_blocks: whole.moved_blocks,
                moved_bytes: whole.moved_bytes,
                ..Given::default()
            };
            let is_whole = job.stage == Stage::Done && has_arrived;
            self.gone.entry((job.source, member)).or_default().add(if is_whole { &whole } else { &moved });
        }
    }

    /// Begins the next pass, to a target that is not among those that are `busy`: all slots that one device has yet to give to another.
    /// Every pair of devices has its turn.
    pub fn begin(&mut self, busy: &BTreeSet<DeviceId>) -> Option<Round> {
        let is_next = |job: &&Job| job.stage == Stage::Waits && !busy.contains(&job.target);
        let waiting = self.jobs.values().filter(is_next);
        let pairs: BTreeSet<(DeviceId, DeviceId)> = waiting.map(|job| (job.source, job.target)).collect();
        let after = pairs.iter().find(|pair| self.last.is_none_or(|last| **pair > last));
        let (source, target) = after.or(pairs.first()).copied()?;
        self.last = Some((source, target));
        self.rounds += 1;
        let mut slots = BTreeSet::new();
        for (slot, job) in &mut self.jobs {
            if job.stage == Stage::Waits && (job.source, job.target) == (source, target) {
                (job.stage, job.missed) = (Stage::UnderWay(self.rounds), false);
                job.begin_pass();
                slots.insert(*slot);
            }
        }
        Some(Round { number: self.rounds, source, target, slots: Arc::new(slots) })
    }

    /// Says whether any slot of the round is still to be given.
    pub fn is_wanted(&self, round: &Round) -> bool {
        self.jobs.values().any(|job| job.stage == Stage::UnderWay(round.number))
    }

    /// Says which member is being emptied by giving the slot away, if one is.
    pub fn empties(&self, slot: Slot) -> Option<MemberId> {
        self.jobs.get(&slot)?.empties
    }

    /// Notes what became of a block of so many bytes in a pass.
    pub fn note(&mut self, round: &Round, slot: Slot, bytes: u64, fate: Fate) {
        let is_under_way = |job: &&mut Job| job.stage == Stage::UnderWay(round.number);
        let Some(job) = self.jobs.get_mut(&slot).filter(is_under_way) else { return };
        let (pass, before) = (&mut job.pass, &mut job.before);
        let lost_from = match fate {
            Fate::Moved => {
                pass.moved_blocks += 1;
                pass.moved_bytes += bytes;
                return;
            }
            Fate::There => {
                pass.there_blocks += 1;
                return;
            }
            // Its slot is given anew until there is room.
            Fate::Waits => {
                pass.waiting_blocks += 1;
                job.missed = true;
                return;
            }
            Fate::Declined => {
                pass.declined_blocks += 1;
                None
            }
            // The next pass hears nothing of it: it has gone from here.
            Fate::Unreadable { is_last } => {
                before.unread_blocks += 1;
                is_last.then_some(before)
            }
            Fate::Late { is_last } => {
                pass.unread_blocks += 1;
                is_last.then_some(pass)
            }
        };
        if let Some(lost_from) = lost_from {
            lost_from.lost_blocks += 1;
            lost_from.lost_bytes += bytes;
        }
    }

    /// Returns what `source` has given of the slots of each member that is being emptied, ascending.
    pub fn given(&self, source: DeviceId) -> Vec<(MemberId, Given)> {
        let mut sums: BTreeMap<MemberId, Given> = BTreeMap::new();
        for ((_, member), given) in self.gone.iter().filter(|((from, _), _)| *from == source) {
            sums.entry(*member).or_default().add(given);
        }
        for job in self.jobs.values().filter(|job| job.source == source) {
            if let Some(member) = job.empties {
                sums.entry(member).or_default().add(&job.came_to());
            }
        }
        sums.into_iter().take(MAX_EMPTIED_TOLD).collect()
    }

    /// Returns what `source` has given so far of slots that are on their way from it, ascending, of `limit` slots at most.
    pub fn moving(&self, source: DeviceId, limit: usize) -> Vec<SlotGiven> {
        let begun = self.jobs.iter().filter(|(_, job)| job.source == source);
        let given = begun.map(|(slot, job)| {
            let Given { moved_blocks, moved_bytes, .. } = job.came_to();
            SlotGiven { slot: *slot, moved_blocks, moved_bytes }
        });
        given.filter(|one| one.moved_blocks > 0).take(limit).collect()
    }

    /// Ends a pass. A slot of which a block did not get there begins anew.
    pub fn ended(&mut self, round: &Round, how: Pass) {
        let late = self.late.entry(round.source).or_default();
        *late = if how == Pass::Late { *late + 1 } else { 0 };
        let is_all = how == Pass::Whole || how == Pass::Late && *late >= LATE_PASSES;
        let is_all = is_all || is(Bug::UnansweredIsGiven);
        for job in self.jobs.values_mut().filter(|job| job.stage == Stage::UnderWay(round.number)) {
            let is_done = is_all && !job.missed;
            job.stage = if is_done { Stage::Done } else { Stage::Waits };
        }
        if how != Pass::Unanswered {
            self.unanswered.remove(&round.target);
        } else if self.jobs.values().any(|job| job.target == round.target) {
            *self.unanswered.entry(round.target).or_default() += 1;
        }
    }

    /// Returns whom `source` is to give blocks to and who does not answer, ascending, at most `limit` of them.
    pub fn unreached(&self, source: DeviceId, limit: usize) -> Vec<DeviceId> {
        let is_of =
            |target: &DeviceId| self.jobs.values().any(|job| (job.source, job.target) == (source, *target));
        let silent = self.unanswered.iter().filter(|(_, passes)| **passes >= PATIENCE);
        silent.map(|(target, _)| *target).filter(is_of).take(limit).collect()
    }

    /// A new block of the slot did not get to `target`: if that is being given the slot, it is given all of it again.
    pub fn missed(&mut self, slot: Slot, target: DeviceId) {
        let Some(job) = self.jobs.get_mut(&slot).filter(|job| job.target == target) else { return };
        job.missed = true;
        if job.stage == Stage::Done {
            job.stage = Stage::Waits;
        }
    }

    /// Returns what `source` has given completely, ascending.
    pub fn filled(&self, source: DeviceId) -> Vec<(Slot, DeviceId)> {
        let done = |job: &Job| job.stage == Stage::Done && job.source == source;
        self.jobs.iter().filter(|(_, job)| done(job)).map(|(slot, job)| (*slot, job.target)).collect()
    }

    /// Returns how many slots are yet to be given, wholly or in part.
    pub fn left(&self) -> usize {
        self.jobs.values().filter(|job| job.stage != Stage::Done).count()
    }
}

#[cfg(test)]
#[path = "fills_test.rs"]
mod tests;
