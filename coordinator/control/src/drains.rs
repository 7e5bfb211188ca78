//! What emptying members comes to: the leader sums up what devices have counted of it and has that written down once the member holds no
//! slot any more. Devices count since the emptying began, so a new leader knows as much; what a device had counted is lost with it,
//! unless this leader had heard of it.

use crate::cordon;
use crate::journal::Journal;
use crate::registry::{Outcome, Registry};
use crate::room::may_lack;
use crate::scaler::Proposed;
use kvhive_protocol::control::{Command, DeviceLoad};
use kvhive_protocol::data::Ack;
use kvhive_protocol::emptying::{Displaced, Given, Losses};
use kvhive_protocol::{
    ClusterMap, DeviceId, Epoch, EventKind, Generation, Level, Member, MemberId, MemberState, Moment, Note,
    Reason, Slot, Subject, WireError, counted,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long members that are up may take to say what they have counted to the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a report may take to be written down before it is proposed again.
const AGAIN: Duration = Duration::from_secs(2);
/// How many members are named that have what one had that went.
const MAX_NAMED: usize = 3;

/// Devices, by their members' starts.
type Devices = BTreeSet<(DeviceId, Generation)>;

/// What became of the blocks of a member that is being emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CameTo {
    /// What became of those that were given away.
    pub given: Given,
    /// What others let go for them.
    pub displaced: Displaced,
}

impl CameTo {
    /// Sums up what devices report of one member.
    pub fn of<'a>(loads: impl Iterator<Item = &'a DeviceLoad>, member: MemberId) -> CameTo {
        let mut sum = CameTo::default();
        for load in loads {
            for (_, given) in load.given.iter().filter(|(of, _)| *of == member) {
                sum.given.add(given);
            }
            for (_, displaced) in load.displaced.iter().filter(|(of, _)| *of == member) {
                sum.displaced.add(displaced);
            }
        }
        sum
    }

    /// Returns how many blocks nobody holds any more because of it.
    pub fn lost_blocks(&self) -> u64 {
        self.given.lost_blocks.saturating_add(self.displaced.lost_blocks)
    }

    /// Returns their bytes.
    pub fn lost_bytes(&self) -> u64 {
        self.given.lost_bytes.saturating_add(self.displaced.lost_bytes)
    }

    fn add(&mut self, other: &CameTo) {
        self.given.add(&other.given);
        self.displaced.add(&other.displaced);
    }
}

/// Says whether what a member reports of emptying another, by the map of this epoch, is of the emptying that is under way: what was counted
/// before it began is of another.
pub fn is_of_this(map: &ClusterMap, emptied: MemberId, by: Option<Epoch>) -> bool {
    map.emptied_since(emptied).is_none_or(|since| by.is_some_and(|by| by >= since))
}

/// A member that is being emptied, or was a moment ago.
#[derive(Clone, Debug)]
struct Emptied {
    name: String,
    generation: Generation,
    /// By device and its member's start: each start counts anew.
    given: BTreeMap<(DeviceId, Generation), Given>,
    displaced: BTreeMap<(DeviceId, Generation), Displaced>,
    losses: BTreeMap<(DeviceId, Generation), Losses>,
    /// Since which epoch and when it holds no slot.
    since: Option<(Epoch, Moment)>,
    /// Who had what all replicas had acknowledged of its slots when it last held some; none where that is not known of one slot.
    spared_by: Option<Devices>,
    /// It went down, or began anew, with slots that it held.
    is_gone: bool,
    /// What was proposed, and when.
    proposed: Option<(Moment, Proposed)>,
}

/// The machine.
#[derive(Clone, Default, Debug)]
pub struct Drains {
    going: BTreeMap<MemberId, Emptied>,
    /// Who is listed as being emptied and whose report is written down.
    told: BTreeSet<MemberId>,
    /// What all came to since somebody was being emptied, and how many those were.
    together: (u64, CameTo),
    /// Blocks that are counted as lost of these, by their names.
    counted: BTreeSet<u64>,
}

impl Emptied {
    /// Takes down what a device reports of it.
    fn report(&mut self, id: MemberId, start: (DeviceId, Generation), load: &DeviceLoad) {
        if let Some((_, given)) = load.given.iter().find(|(of, _)| *of == id) {
            self.given.insert(start, *given);
        }
        if let Some((_, displaced)) = load.displaced.iter().find(|(of, _)| *of == id) {
            self.displaced.insert(start, *displaced);
        }
        match load.losses.iter().find(|(of, _)| *of == id) {
            Some((_, losses)) => self.losses.insert(start, losses.clone()),
            None => self.losses.remove(&start),
        };
    }

    /// Returns of how many blocks those who are up have yet to find out whether anybody holds them who stays.
    fn unsettled(&self, map: &ClusterMap) -> u64 {
        let is_asking = |(device, generation): &(DeviceId, Generation)| {
            let asks = |member: &Member| member.state == MemberState::Up && member.generation == *generation;
            map.members.get(&device.member).is_some_and(asks)
        };
        let asking = self.losses.iter().filter(|(start, _)| is_asking(start));
        asking.map(|(_, losses)| losses.unsettled_blocks).fold(0, u64::saturating_add)
    }

    /// Takes down whether it was there to the end, and who had all that it held if it was not.
    fn end(&mut self, map: &ClusterMap, registry: &Registry, known: Option<&Member>) {
        self.is_gone = match known {
            Some(member) => member.state == MemberState::Down || member.generation != self.generation,
            // It is forgotten: by itself once it was empty, or by an operator when it was down.
            None => registry.went_down_while_emptied(&self.name),
        };
        // Whoever went with it has spared nothing.
        let is_there = |(device, generation): &(DeviceId, Generation)| {
            let is_up = |member: &Member| member.state == MemberState::Up && member.generation == *generation;
            map.members.get(&device.member).is_some_and(is_up)
        };
        // Where fewer replicas were to acknowledge a while ago, it may be alone with what was stored then.
        let is_as_ever = registry.journal.iter().all(|event| event.note.kind != EventKind::AckChanged);
        self.spared_by = self.spared_by.take().filter(|others| is_as_ever && others.iter().all(is_there));
    }

    /// Says whether it went before it was empty, and may have had what was acknowledged and nobody else has.
    fn is_cut_short(&self) -> bool {
        self.is_gone && self.spared_by.is_none()
    }

    /// Says who has what it had, where it went and that is known.
    fn told_spared(&self, registry: &Registry) -> Option<String> {
        let others = self.spared_by.as_ref().filter(|_| self.is_gone)?;
        let map = registry.map()?;
        let known = others.iter().filter_map(|(device, _)| map.members.get(&device.member));
        let names: BTreeSet<&str> = known.map(|member| &*member.name).collect();
        let more = match names.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let have = if names.len() == 1 { "has" } else { "have" };
        let named: Vec<&str> = names.into_iter().take(MAX_NAMED).collect();
        Some(format!("{}{more} {have} every block that all replicas acknowledged", named.join(", ")))
    }
}

/// Says whether a device has all that it has acknowledged of its slots, as far as it knows.
fn is_whole(load: &DeviceLoad) -> bool {
    may_lack(load) == 0 && load.tiers.iter().all(|tier| !tier.closed)
}

/// Returns who holds slots, and of those that are being emptied (`going`) who has what all replicas acknowledged of each of their slots: another
/// device that has let nothing go since its start (`whole`), and lacks nothing that is on its way.
fn holders(
    map: &ClusterMap,
    going: &BTreeMap<MemberId, Emptied>,
    whole: &Devices,
) -> BTreeMap<MemberId, Option<Devices>> {
    let mut holders = BTreeMap::new();
    for (slot, set) in Slot::all().zip(map.slots.iter()) {
        for device in &set.0 {
            let spared_by = holders.entry(device.member).or_insert_with(|| Some(BTreeSet::new()));
            if !going.contains_key(&device.member) {
                continue;
            }
            let has = |other: &DeviceId| {
                let start = (*other, map.members.get(&other.member)?.generation);
                let is_another = other.member != device.member && !map.is_filling(slot, *other);
                (is_another && whole.contains(&start)).then_some(start)
            };
            match set.0.iter().find_map(has) {
                Some(other) => spared_by.as_mut().map(|others| others.insert(other)),
                None => spared_by.take().map(|_| false),
            };
        }
    }
    holders
}

impl Drains {
    /// Another coordinator leads: it hears of devices what they have counted.
    pub fn lost_leadership(&mut self) {
        *self = Drains::default();
    }

    /// Follows the map and what devices report; asks for what is to be written down. `reported` says by which epoch a member served when
    /// it reported last.
    pub fn tick<'a>(
        &mut self,
        now: Moment,
        map: &ClusterMap,
        registry: &Registry,
        loads: impl Iterator<Item = (DeviceId, &'a DeviceLoad)>,
        reported: impl Fn(MemberId) -> Option<Epoch>,
    ) -> Vec<Proposed> {
        self.follow(map, registry);
        if self.going.is_empty() {
            self.together = Default::default();
            self.counted.clear();
            return Vec::new();
        }
        let mut whole = Devices::new();
        for (device, load) in loads {
            let Some(start) = map.members.get(&device.member).map(|one| (device, one.generation)) else {
                continue;
            };
            // Where fewer acknowledge, copies are made in the background, and no report tells of those that fail or are dropped.
            if map.settings.ack == Ack::All && is_whole(load) {
                whole.insert(start);
            }
            let by = reported(device.member);
            for (id, going) in &mut self.going {
                if is_of_this(map, *id, by) {
                    going.report(*id, start, load);
                }
            }
        }
        let mut holders = holders(map, &self.going, &whole);
        let mut due = Vec::new();
        for (id, going) in &mut self.going {
            let known = map.members.get(id);
            if let Some(spared_by) = holders.remove(id) {
                (going.since, going.spared_by) = (None, spared_by);
                continue;
            }
            let unsettled = going.unsettled(map);
            if going.since.is_none() {
                going.end(map, registry, known);
            }
            let since = *going.since.get_or_insert((map.epoch, now));
            let up = map.members.iter().filter(|(_, member)| member.state == MemberState::Up);
            let unheard = up.filter(|(id, _)| reported(**id).is_none_or(|epoch| epoch < since.0)).count();
            if (unheard == 0 && unsettled == 0) || now.since(since.1) >= PATIENCE {
                // What was reported before it went may have been over by then.
                let is_still = |other: &(DeviceId, Generation)| {
                    whole.contains(other) && reported(other.0.member).is_some_and(|epoch| epoch >= since.0)
                };
                going.spared_by = going.spared_by.take().filter(|others| others.iter().all(is_still));
                due.push((*id, unheard as u64, unsettled));
            }
        }
        let told = |(id, unheard, unsettled)| self.tell(now, registry, id, (unheard, unsettled));
        due.into_iter().filter_map(told).collect()
    }

    /// Takes up who is being emptied, and lets go of whose report is written down or not wanted any more.
    fn follow(&mut self, map: &ClusterMap, registry: &Registry) {
        self.told.retain(|id| map.is_emptied(*id));
        let told = &mut self.told;
        self.going.retain(|id, going| {
            let is_there = map.members.contains_key(id);
            let awaits = registry.awaited_report(&going.name).is_some();
            if is_there && !awaits && map.is_emptied(*id) {
                told.insert(*id);
            }
            awaits && (!is_there || map.is_emptied(*id))
        });
        // Before that, not every member could read of it.
        if map.level < Level::PINS {
            return;
        }
        for (id, member) in map.members.iter().filter(|(_, member)| member.drains) {
            if self.going.contains_key(id) || self.told.contains(id) {
                continue;
            }
            if registry.awaited_report(&member.name).is_none() {
                self.told.insert(*id);
                continue;
            }
            let going = Emptied {
                name: member.name.clone(),
                generation: member.generation,
                given: BTreeMap::new(),
                displaced: BTreeMap::new(),
                losses: BTreeMap::new(),
                since: None,
                spared_by: None,
                is_gone: member.state == MemberState::Down,
                proposed: None,
            };
            self.going.insert(*id, going);
        }
    }

    /// Says what a member came to, unless that was just said.
    fn tell(
        &mut self,
        now: Moment,
        registry: &Registry,
        id: MemberId,
        (unheard, unsettled): (u64, u64),
    ) -> Option<Proposed> {
        let is_last = self.going.iter().all(|(other, one)| *other == id || one.proposed.is_some());
        let going = self.going.get_mut(&id)?;
        if let Some((at, proposed)) = &mut going.proposed {
            let is_due = now.since(*at) >= AGAIN;
            *at = if is_due { now } else { *at };
            return is_due.then(|| proposed.clone());
        }
        let mut sum = CameTo::default();
        going.given.values().for_each(|given| sum.given.add(given));
        going.displaced.values().for_each(|displaced| sum.displaced.add(displaced));
        // Several have let go of the same block, and each has found that nobody holds it.
        for lost in going.losses.values().flat_map(|losses| &losses.named) {
            if !self.counted.insert(lost.name) {
                sum.displaced.lost_blocks = sum.displaced.lost_blocks.saturating_sub(1);
                sum.displaced.lost_bytes = sum.displaced.lost_bytes.saturating_sub(lost.bytes);
            }
        }
        sum.displaced.lost_blocks = sum.displaced.lost_blocks.saturating_add(unsettled);
        self.together.0 += 1;
        self.together.1.add(&sum);
        let slots = registry.awaited_report(&going.name)?;
        let mut note = note(&going.name, slots, &sum)
            .with_some("members_unheard", unheard)
            .with_some("cut_short", u64::from(going.is_cut_short()));
        let mut reason = words(slots, &sum);
        if going.is_cut_short() {
            reason.push_str(
                "; it went down before it was empty, and what only it held is lost and not counted",
            );
        } else if let Some(spared) = going.told_spared(registry) {
            reason.push_str(&format!("; it went down before it was empty, and {spared}"));
        }
        if unsettled > 0 {
            reason.push_str(&format!(
                "; of {unsettled} of the lost it was not found out in time who holds them"
            ));
        }
        if unheard > 0 {
            reason.push_str(&format!(
                "; {} did not say to the end what was counted",
                counted(unheard, "member")
            ));
        }
        let (members, all) = self.together;
        if is_last && members > 1 {
            note = note
                .with("members_emptied", members)
                .with("moved_blocks_of_all", all.given.moved_blocks)
                .with("lost_blocks_of_all", all.lost_blocks());
            reason.push_str(&format!(
                "; of the {members} members emptied together {} moved, lost: {}",
                counted(all.given.moved_blocks, "block"),
                all.lost_blocks()
            ));
        }
        let proposed = (Command::Record(Box::new(note)), Reason::new(reason));
        going.proposed = Some((now, proposed.clone()));
        Some(proposed)
    }
}

impl Registry {
    /// Begins to empty a member for which there was room when it was weighed: there may be too little by now if others are being emptied
    /// besides those that it was weighed with.
    pub(crate) fn empty(&mut self, id: MemberId, beside: Option<&[MemberId]>) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        if let Some(beside) = beside.filter(|_| !map.is_emptied(id))
            && map.members.keys().any(|other| map.is_emptied(*other) && !beside.contains(other))
        {
            return Err(WireError::StaleEpoch { epoch: map.epoch });
        }
        self.set_drains(id, true)
    }

    pub(crate) fn set_drains(&mut self, id: MemberId, drains: bool) -> Outcome {
        let known = self.map.as_ref().and_then(|map| map.members.get(&id));
        let member = known.ok_or_else(|| {
            WireError::rejected(format_args!("there is no member {id}: `kvhive nodes` shows them"))
        })?;
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        if drains && !member.drains && !cordon::others_take(map, id) {
            return Err(WireError::rejected(format_args!(
                "no other member is up and takes slots: start one before {} is emptied",
                member.name
            )));
        }
        if member.drains != drains {
            let map = self.change();
            let epoch = map.epoch;
            if let Some(member) = map.members.get_mut(&id) {
                (member.drains, member.drains_since) =
                    (drains, if drains { epoch } else { Epoch::default() });
            }
        }
        Ok(self.unchanged())
    }

    /// Returns how many slots a member had when it began to be emptied, if it was not written down yet what that came to.
    pub fn awaited_report(&self, name: &str) -> Option<u64> {
        awaited(&self.journal, name)
    }

    /// Says whether a member has gone down since it began to be emptied.
    fn went_down_while_emptied(&self, name: &str) -> bool {
        let kinds = [EventKind::DrainBegun, EventKind::MemberDown, EventKind::MemberLeft];
        let last = self.journal.last_of(name, &kinds);
        last.is_some_and(|event| event.note.kind != EventKind::DrainBegun)
    }

    /// Checks what a leader has written down: two may have asked for the same report.
    pub(crate) fn check_note(&self, note: &Note) -> Result<(), WireError> {
        note.check()?;
        let name = note.subject.member.as_deref().unwrap_or_default();
        if note.kind == EventKind::DrainFinished && self.awaited_report(name).is_none() {
            return Err(WireError::rejected(format_args!(
                "what emptying {name} came to is written down already"
            )));
        }
        Ok(())
    }
}

fn awaited(journal: &Journal, name: &str) -> Option<u64> {
    let kinds = [EventKind::DrainBegun, EventKind::DrainEnded, EventKind::DrainFinished];
    let last = journal.last_of(name, &kinds).filter(|event| event.note.kind == EventKind::DrainBegun)?;
    let held = last.note.facts.iter().find(|(fact, _)| fact == "slots_held");
    Some(held.map_or(0, |(_, slots)| *slots))
}

fn note(name: &str, slots: u64, sum: &CameTo) -> Note {
    let CameTo { given, displaced } = sum;
    Note::new(EventKind::DrainFinished, Subject::member(name))
        .with("slots", slots)
        .with("moved_blocks", given.moved_blocks)
        .with("moved_bytes", given.moved_bytes)
        .with("lost_blocks", sum.lost_blocks())
        .with_some("lost_bytes", sum.lost_bytes())
        .with_some("there_blocks", given.there_blocks)
        .with_some("declined_blocks", given.declined_blocks)
        .with_some("displaced_blocks", displaced.blocks)
        .with_some("unread_blocks", given.unread_blocks)
}

fn words(slots: u64, sum: &CameTo) -> String {
    let CameTo { given, displaced } = sum;
    let mut text = format!(
        "of {} {} moved, lost: {}",
        counted(slots, "slot"),
        counted(given.moved_blocks, "block"),
        sum.lost_blocks()
    );
    for (count, what) in [
        (given.there_blocks, "copies were there already"),
        (given.declined_blocks, "were given no room"),
        (displaced.blocks, "left elsewhere to make room"),
        (given.unread_blocks, "could not be read"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}

#[cfg(test)]
#[path = "drains_test.rs"]
mod tests;
