//! What a node gives away: of each slot whose primary is one of its devices and of which a replica lacks blocks, who is being
//! given them and how far that is. Told by the map; what it says of a slot holds for the map that it was last told.

use kvhive_protocol::emptying::{Given, MAX_EMPTIED_TOLD};
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
    /// The target gives it no room.
    Declined {
        /// Nobody else holds it who stays.
        is_last: bool,
    },
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
    /// It is pinned and is given no room: its slot stays for now.
    Waits,
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
    epoch: Epoch,
}

impl Fills {
    /// Follows the map that the node serves by from now on.
    pub fn adopt(&mut self, map: &ClusterMap, member: MemberId) {
        if map.epoch == self.epoch {
            return;
        }
        self.epoch = map.epoch;
        let before = std::mem::take(&mut self.jobs);
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
            let is_same =
                |job: &&Job| (job.source, job.target, job.generation) == (source, target, generation);
            let job = before.get(slot).filter(is_same).copied().unwrap_or(fresh);
            self.jobs.insert(*slot, Job { empties: map.emptied_of(*slot), ..job });
        }
        self.keep_what_has_gone(map, &before);
        let jobs = &self.jobs;
        self.unanswered.retain(|target, _| jobs.values().any(|job| job.target == *target));
    }

    /// Sums up what slots came to that have arrived where they were given, as long as a member is being emptied of them.
    fn keep_what_has_gone(&mut self, map: &ClusterMap, before: &BTreeMap<Slot, Job>) {
        for (slot, job) in before.iter().filter(|(slot, _)| !self.jobs.contains_key(slot)) {
            let has_arrived = map.replicas(*slot).contains(job.target) && !map.is_filling(*slot, job.target);
            if let Some(member) = job.empties.filter(|_| job.stage == Stage::Done && has_arrived) {
                self.gone.entry((job.source, member)).or_default().add(&job.came_to());
            }
        }
        self.gone.retain(|(_, member), _| map.is_emptied(*member));
    }

    /// Begins the next pass: all slots that one device has yet to give to another. Every pair of devices has its turn.
    pub fn begin(&mut self) -> Option<Round> {
        let waiting = self.jobs.values().filter(|job| job.stage == Stage::Waits);
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
            Fate::Declined { is_last } => {
                pass.declined_blocks += 1;
                is_last.then_some(pass)
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

    /// Ends a pass. A slot of which a block did not get there begins anew.
    pub fn ended(&mut self, round: &Round, how: Pass) {
        let late = self.late.entry(round.source).or_default();
        *late = if how == Pass::Late { *late + 1 } else { 0 };
        let is_all = how == Pass::Whole || how == Pass::Late && *late >= LATE_PASSES;
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
mod tests {
    use super::*;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::{ReplicaSet, Settings};
    use kvhive_protocol::{ClusterId, Filling, Member, MemberState, SLOTS};

    const US: MemberId = MemberId(1);

    fn device(member: u32) -> DeviceId {
        DeviceId::new(MemberId(member), 0)
    }

    /// Every slot is on member 1 first; `lacking` slots are being given to a member.
    fn map(epoch: u64, lacking: &[(u16, u32)]) -> ClusterMap {
        let member = |id: u32| {
            let member = Member {
                name: format!("node-{id}"),
                generation: Generation(1),
                state: MemberState::Up,
                data_address: String::new(),
                metrics_address: String::new(),
                labels: BTreeMap::new(),
                devices: Vec::new(),
                codec: Default::default(),
                speaks: kvhive_protocol::Level::NEWEST,
                drains: false,
                cordoned: false,
                lingers: None,
            };
            (MemberId(id), member)
        };
        let filling =
            |(slot, to): &(u16, u32)| (Slot(*slot), Filling { devices: vec![device(*to)], streams: true });
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 200,
            serving_lease_ms: 2000,
        };
        ClusterMap {
            epoch: Epoch(epoch),
            members: BTreeMap::from([1, 2, 3].map(member)),
            slots: Arc::new(vec![ReplicaSet(vec![device(1), device(2), device(3)]); usize::from(SLOTS)]),
            filling: Arc::new(lacking.iter().map(filling).collect()),
            ..ClusterMap::founded(ClusterId(1), "test", settings)
        }
    }

    #[test]
    fn a_pass_gives_all_slots_of_one_target_and_what_is_given_is_said() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2), (5, 3), (9, 2)]), US);
        let first = fills.begin().expect("there is something to give");
        assert_eq!((first.target, first.slots.len()), (device(2), 2));
        assert_eq!(fills.filled(device(1)), []);
        fills.ended(&first, Pass::Whole);
        assert_eq!(fills.filled(device(1)), [(Slot(3), device(2)), (Slot(9), device(2))]);
        assert_eq!(fills.left(), 1);
        let second = fills.begin().expect("the other target");
        fills.ended(&second, Pass::Partial);
        assert_eq!(fills.begin().map(|round| round.slots), Some(second.slots), "it failed and begins anew");
    }

    #[test]
    fn a_target_that_does_not_answer_keeps_no_other_waiting_and_is_told() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2), (5, 3)]), US);
        for _ in 0..PATIENCE {
            assert_eq!(fills.unreached(device(1), 9), []);
            let silent = fills.begin().expect("its turn");
            assert_eq!(silent.target, device(2));
            fills.ended(&silent, Pass::Unanswered);
            let other = fills.begin().expect("the other's turn");
            assert_eq!(other.target, device(3));
            fills.ended(&other, Pass::Partial);
        }
        assert_eq!(fills.unreached(device(1), 9), [device(2)]);
        assert_eq!(fills.unreached(device(2), 9), []);
        fills.adopt(&map(2, &[(5, 3)]), US);
        assert_eq!(fills.unreached(device(1), 9), [], "it is not to be given anything any more");
    }

    #[test]
    fn a_disk_that_is_late_is_waited_for_and_not_for_ever() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2)]), US);
        for passes in 1..=LATE_PASSES {
            let round = fills.begin().expect("it is not given yet");
            fills.ended(&round, Pass::Late);
            assert_eq!(fills.filled(device(1)).len(), usize::from(passes == LATE_PASSES));
        }
    }

    #[test]
    fn a_block_that_did_not_get_there_has_its_slot_given_again() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2), (9, 2)]), US);
        let round = fills.begin().expect("there is something to give");
        fills.missed(Slot(3), device(2));
        fills.missed(Slot(9), device(3));
        fills.ended(&round, Pass::Whole);
        assert_eq!(fills.filled(device(1)), [(Slot(9), device(2))]);
        fills.missed(Slot(9), device(2));
        assert_eq!(fills.filled(device(1)), []);
        let again = fills.begin().expect("both again");
        assert_eq!(again.slots.len(), 2);
        fills.ended(&again, Pass::Whole);
        assert_eq!(fills.left(), 0);
    }

    #[test]
    fn a_newer_map_keeps_what_was_given_unless_the_target_has_lost_it() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2)]), US);
        let round = fills.begin().expect("there is something to give");
        fills.ended(&round, Pass::Whole);
        fills.adopt(&map(2, &[(3, 2), (4, 2)]), US);
        assert_eq!(fills.filled(device(1)), [(Slot(3), device(2))]);
        let mut restarted = map(3, &[(3, 2), (4, 2)]);
        restarted.members.get_mut(&MemberId(2)).expect("it is there").generation = Generation(2);
        fills.adopt(&restarted, US);
        assert_eq!((fills.filled(device(1)).len(), fills.left()), (0, 2));
        fills.adopt(&map(4, &[]), US);
        assert_eq!((fills.left(), fills.begin()), (0, None));
    }

    /// The same with member 1 being emptied.
    fn emptied(epoch: u64, lacking: &[(u16, u32)]) -> ClusterMap {
        let mut map = map(epoch, lacking);
        map.members.get_mut(&US).expect("it is there").drains = true;
        map
    }

    #[test]
    fn what_emptying_comes_to_is_told_by_the_last_pass_and_kept_when_the_slot_has_gone() {
        let mut fills = Fills::default();
        fills.adopt(&emptied(1, &[(3, 2)]), US);
        let first = fills.begin().expect("there is something to give");
        for fate in [Fate::Moved, Fate::There, Fate::Declined { is_last: true }, Fate::Late { is_last: true }]
        {
            fills.note(&first, Slot(3), 10, fate);
        }
        fills.note(&first, Slot(3), 10, Fate::Unreadable { is_last: false });
        fills.ended(&first, Pass::Partial);
        let told = |fills: &Fills| fills.given(device(1));
        let moved = Given { moved_blocks: 1, moved_bytes: 10, unread_blocks: 1, ..Given::default() };
        assert_eq!(told(&fills), [(US, moved)], "what did not get there may yet");
        let second = fills.begin().expect("once more");
        // What was there, what was moved, what was late; and the one that was declined still is.
        for fate in [Fate::There, Fate::There, Fate::Moved, Fate::Declined { is_last: true }] {
            fills.note(&second, Slot(3), 10, fate);
        }
        fills.ended(&second, Pass::Whole);
        let all = Given {
            moved_blocks: 2,
            moved_bytes: 20,
            there_blocks: 1,
            declined_blocks: 1,
            unread_blocks: 1,
            lost_blocks: 1,
            lost_bytes: 10,
            waiting_blocks: 0,
        };
        assert_eq!(told(&fills), [(US, all)]);
        let mut arrived = emptied(2, &[]);
        fills.adopt(&arrived, US);
        assert_eq!((told(&fills), fills.given(device(2))), (vec![(US, all)], vec![]));
        arrived.epoch = Epoch(3);
        arrived.members.get_mut(&US).expect("it is there").drains = false;
        fills.adopt(&arrived, US);
        assert_eq!(told(&fills), [], "it is over");
    }

    #[test]
    fn a_pinned_block_without_room_keeps_its_slot_where_it_is() {
        let mut fills = Fills::default();
        fills.adopt(&emptied(1, &[(3, 2), (9, 2)]), US);
        let round = fills.begin().expect("there is something to give");
        fills.note(&round, Slot(3), 10, Fate::Waits);
        fills.ended(&round, Pass::Whole);
        assert_eq!(fills.filled(device(1)), [(Slot(9), device(2))]);
        assert_eq!(fills.given(device(1)), [(US, Given { waiting_blocks: 1, ..Given::default() })]);
        let again = fills.begin().expect("it is tried again");
        fills.note(&again, Slot(3), 10, Fate::Moved);
        fills.ended(&again, Pass::Whole);
        let moved = Given { moved_blocks: 1, moved_bytes: 10, ..Given::default() };
        assert_eq!((fills.left(), fills.given(device(1))), (0, vec![(US, moved)]));
    }

    #[test]
    fn what_moves_for_other_reasons_is_no_emptying() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2)]), US);
        let round = fills.begin().expect("there is something to give");
        fills.note(&round, Slot(3), 10, Fate::Moved);
        fills.ended(&round, Pass::Whole);
        assert_eq!((fills.empties(Slot(3)), fills.given(device(1))), (None, vec![]));
    }

    #[test]
    fn a_pass_that_nobody_wants_any_more_changes_nothing() {
        let mut fills = Fills::default();
        fills.adopt(&map(1, &[(3, 2)]), US);
        let round = fills.begin().expect("there is something to give");
        assert!(fills.is_wanted(&round));
        fills.adopt(&map(2, &[(3, 3)]), US);
        assert!(!fills.is_wanted(&round));
        fills.ended(&round, Pass::Whole);
        assert_eq!(fills.filled(device(1)), []);
        fills.adopt(&map(3, &[(3, 2)]), MemberId(2));
        assert_eq!(fills.begin(), None, "another gives that");
    }
}
