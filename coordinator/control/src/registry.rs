//! The replicated state machine: what raft applies, entry by entry, alike on every coordinator. Owns the cluster map and
//! the memory of applied requests. Decides nothing by time; who is alive is the overseer's to say, through commands.

mod tenants;

use crate::dedupe::{Dedupe, Seen};
use crate::engines::Engines;
use crate::journal::{EventPage, Journal};
use crate::repair::{self, Repair};
use crate::scaling::Scaling;
use crate::{again, departures, levels, telling, validate};
use kvhive_planted::{Bug, is};
use kvhive_protocol::control::{
    Balancing, Command, CommandReply, MAX_MEMBERS, Placing, Proposal, Registration,
};
use kvhive_protocol::data::Ack;
use kvhive_protocol::engines::Engine;
use kvhive_protocol::scaling::ScalingPolicy;
use kvhive_protocol::{
    Change, ClusterMap, Epoch, Era, Filling, Level, LogEntry, Member, MemberId, MemberState, Origin,
    ReplicaSet, RequestId, Tenant, TenantId, TenantRules, WireError,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name of the first tenant.
const DEFAULT_TENANT: &str = "default";
/// Its number.
pub(crate) const FIRST_TENANT: TenantId = TenantId(1);

/// The cluster's agreed memory of itself.
///
/// ```
/// use kvhive_control::Registry;
/// use kvhive_protocol::control::{Command, CommandReply, Proposal};
/// use kvhive_protocol::{ClusterId, Epoch, Level, RequestId, data::Ack, map::Settings};
///
/// let settings = Settings { replicas: 2, segment_blocks: 16, ack: Ack::Primary, lease_ms: 2000, heartbeat_ms: 500, serving_lease_ms: 2000 };
/// let command =
///     Command::Bootstrap { cluster: ClusterId(7), name: "laptop".into(), settings, default_secret: [1; 32], scaling: Default::default(), coordinators: vec![], level: Level::NEWEST };
/// let mut registry = Registry::new();
/// let reply = registry.apply(1, Proposal { request: RequestId { client: 9, sequence: 1 }, command });
/// assert_eq!(reply, CommandReply::Applied { epoch: Epoch(1) });
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    pub(crate) applied: u64,
    pub(crate) map: Option<Arc<ClusterMap>>,
    pub(crate) dedupe: Dedupe,
    pub(crate) journal: Journal,
    pub(crate) engines: Engines,
    pub(crate) scaling: Scaling,
    pub(crate) last: Numbers,
    /// Found again from the map: what would take too long to look up in it for each command.
    pub(crate) index: Index,
    pub(crate) repair: Option<Repair>,
}

/// The greatest numbers that have ever been given: they stay when whoever had them goes, so none comes again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) member: MemberId,
    pub(crate) tenant: TenantId,
}

/// Names and sizes of what is in the map.
#[derive(Clone, Default)]
pub(crate) struct Index {
    pub(crate) members: BTreeMap<String, MemberId>,
    tenants: BTreeMap<String, TenantId>,
    /// Bytes of members and tenants, as `validate` counts them.
    pub(crate) bytes: usize,
}

pub(crate) type Outcome = Result<CommandReply, WireError>;

impl Registry {
    /// Makes the memory of a cluster that was never started.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn from_parts(
        applied: u64,
        map: Option<ClusterMap>,
        dedupe: Dedupe,
        journal: Journal,
        scaling: Scaling,
        engines: Engines,
        last: Numbers,
    ) -> Self {
        let index = map.as_ref().map(Index::of).unwrap_or_default();
        let map = map.map(Arc::new);
        Registry { applied, map, dedupe, journal, scaling, engines, last, index, repair: None }
    }

    /// Applies the log entry at `index` and returns what it came to.
    ///
    /// A request that was applied before changes nothing and gets its first reply; one whose outcome is forgotten is
    /// rejected. So is a log entry that was applied before: indexes ascend. The epoch grows by one if anything in the
    /// map changed, else not at all. Nothing is copied unless someone still reads the map that changes. What changed becomes
    /// an event.
    pub fn apply(&mut self, index: u64, entry: impl Into<LogEntry>) -> CommandReply {
        self.repair = None;
        let LogEntry { proposal: Proposal { request, command }, origin } = entry.into();
        if index <= self.applied {
            return self.outcome(request).unwrap_or_else(|| {
                let applied = self.applied;
                CommandReply::Rejected(WireError::rejected(format_args!(
                    "log entry {index} is not after {applied}, the last one applied"
                )))
            });
        }
        self.applied = index;
        match self.dedupe.look(request, self.level()) {
            Seen::Before(reply) => {
                self.dedupe.touch(index, request.client);
                return reply;
            }
            Seen::Refused(error) => return CommandReply::Rejected(error),
            Seen::New => {}
        }
        let before = self.agreed();
        let note = telling::before(&command, self.map.as_deref());
        let origin = Origin { reason: telling::because(&command, origin.reason), ..origin };
        let is_told = matches!(command, Command::Record(_));
        let is_weighed = matches!(command, Command::Empty { .. } | Command::EmptyForSize { .. });
        let reply = self.execute(command).unwrap_or_else(CommandReply::Rejected);
        let has_happened =
            self.agreed() != before || is_told && matches!(reply, CommandReply::Applied { .. });
        if let Some(note) = note.filter(|_| has_happened) {
            self.journal.push(telling::after(note, &reply, self.repair), origin, self.epoch());
        }
        // Nothing is decided then: it is weighed anew under the same name.
        if !(is_weighed && matches!(reply, CommandReply::Rejected(WireError::StaleEpoch { .. }))) {
            self.dedupe.record(index, request, reply.clone());
        }
        debug_assert!(self.epoch() == before.0 || self.epoch() == before.0.next());
        debug_assert_eq!(self.check(), Ok(()));
        reply
    }

    /// Returns the map, none before the cluster was started. Whoever keeps it makes the next change copy it.
    pub fn map(&self) -> Option<Arc<ClusterMap>> {
        self.map.clone()
    }

    /// Returns what is agreed on about the cluster's size.
    pub fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// Returns the map's epoch, 0 before the cluster was started.
    pub fn epoch(&self) -> Epoch {
        self.map.as_ref().map_or(Epoch(0), |map| map.epoch)
    }

    /// Returns the index of the last log entry applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Returns what a request came to, if it was applied and is remembered.
    pub fn outcome(&self, request: RequestId) -> Option<CommandReply> {
        match self.dedupe.look(request, self.level()) {
            Seen::Before(reply) => Some(reply),
            Seen::New | Seen::Refused(_) => None,
        }
    }

    /// Says whether nothing was ever asked under this name, as far as is remembered.
    pub fn is_new(&self, request: RequestId) -> bool {
        matches!(self.dedupe.look(request, self.level()), Seen::New)
    }

    /// Returns what the last call of [`Registry::apply`] did to the slots because members changed; none if they did not.
    pub fn last_repair(&self) -> Option<Repair> {
        self.repair
    }

    /// Returns at most `limit` of the events after the one of number `after`.
    pub fn events(&self, after: u64, limit: usize) -> EventPage {
        self.journal.page(after, limit)
    }

    /// Returns the engines that are followed, by name.
    pub fn engines(&self) -> Arc<BTreeMap<String, Engine>> {
        self.engines.all().clone()
    }

    /// Returns the number of the newest event, 0 before the first.
    pub fn newest_event(&self) -> u64 {
        self.journal.newest()
    }

    /// Checks the whole map, unless it is so large that a debug build would do nothing else.
    fn check(&self) -> Result<(), String> {
        let is_small = |map: &&Arc<ClusterMap>| map.tenants.len().max(map.members.len()) <= 256;
        self.map.as_ref().filter(is_small).map_or(Ok(()), |map| validate::map(map))
    }

    /// Returns what is an event when it changes. Held on, the engines are copied by who changes them, which is seldom.
    fn agreed(&self) -> (Epoch, Arc<BTreeMap<String, Engine>>, ScalingPolicy) {
        (self.epoch(), self.engines(), *self.scaling.policy())
    }

    fn execute(&mut self, command: Command) -> Outcome {
        if let Command::Bootstrap { cluster, name, settings, default_secret, scaling, coordinators, level } =
            command
        {
            let coordinators = Arc::new(coordinators);
            let founded = ClusterMap { coordinators, level, ..ClusterMap::founded(cluster, name, settings) };
            return self.bootstrap(founded, default_secret, scaling);
        }
        if self.map.is_none() {
            return Err(WireError::rejected(format_args!(
                "{} needs a cluster that was started: bootstrap first",
                command.name()
            )));
        }
        levels::check_level(&command, self.level())?;
        match command {
            Command::Bootstrap { .. } => Ok(self.unchanged()),
            Command::Register(registration) => self.register(registration),
            Command::MarkDown { member, generation } => Ok(self.mark_down(member, generation)),
            Command::Leave { member, generation } => Ok(self.leave(member, generation)),
            Command::RemoveMember { member } => self.remove_member(member),
            Command::CreateTenant { name, secret, rules } => self.create_tenant(name, secret, rules),
            Command::ClearTenant { tenant } => self.clear_tenant(tenant),
            Command::RotateSecret { tenant, secret } => self.rotate_secret(tenant, secret),
            Command::DeleteTenant { tenant } => self.delete_tenant(tenant),
            Command::PlaceSlots { based_on, changes } => self.place_slots(based_on, changes),
            Command::Balance { based_on, changes } => self.balance(based_on, changes),
            Command::SetDrains { member, drains } => self.set_drains(member, drains),
            Command::Empty { member, beside } | Command::EmptyForSize { member, beside, .. } => {
                self.empty(member, beside.as_deref())
            }
            Command::SetAck { ack } => Ok(self.set_ack(ack)),
            Command::SetCoordinators { addresses } => self.set_coordinators(addresses),
            Command::SetTenantRules { tenant, change } => self.rule_tenant(tenant, &change, Change::Keep),
            Command::WeighTenant { tenant, change, weight } => self.rule_tenant(tenant, &change, weight),
            Command::Record(note) => self.check_note(&note).map(|()| self.unchanged()),
            Command::SetScaling { change } => {
                let binds = self.level() >= Level::CHECKED;
                self.scaling.change(&change, binds).map(|()| self.unchanged())
            }
            Command::ScaleBeyond { size } => self.scaling.go_beyond(size).map(|()| self.unchanged()),
            Command::RecordLoad { observation } => {
                self.scaling.record(observation);
                Ok(self.unchanged())
            }
            Command::RecordStretch { stretch } => self.scaling.remember(stretch).map(|()| self.unchanged()),
            Command::SetEngine(engine) => {
                let map = self.map.as_ref().expect("execute has checked that there is a map");
                self.engines.set(*engine, map).map(|()| self.unchanged())
            }
            Command::RemoveEngine { name } => self.engines.remove(&name).map(|()| self.unchanged()),
            Command::SetPin { name, pin } => self.set_pin(name, *pin),
            Command::RemovePin { name, ended_ms } => self.remove_pin(&name, ended_ms),
            Command::RaiseLevel { to } => self.raise_level(to),
            Command::SetCordon { member, cordoned } => self.set_cordon(member, cordoned),
            Command::MarkEnded { start } => Ok(self.mark_ended(start)),
        }
    }

    fn bootstrap(&mut self, founded: ClusterMap, secret: [u8; 32], scaling: ScalingPolicy) -> Outcome {
        if self.map.is_some() {
            return Ok(self.unchanged());
        }
        validate::name("cluster name", &founded.name)?;
        validate::settings(&founded.settings)?;
        validate::coordinators(&founded.coordinators)?;
        self.scaling.begin(scaling)?;
        let tenant =
            Tenant { name: DEFAULT_TENANT.to_owned(), era: Era(1), secret, rules: TenantRules::default() };
        self.last.tenant = FIRST_TENANT;
        let tenants = BTreeMap::from([(FIRST_TENANT, tenant)]);
        let map = ClusterMap { tenants, ..founded };
        self.index = Index::of(&map);
        self.map = Some(Arc::new(map));
        Ok(self.unchanged())
    }

    fn register(&mut self, registration: Registration) -> Outcome {
        validate::check_registration(&registration)?;
        let known = self.index.members.get(&registration.name).copied();
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        let (id, generation) = match known {
            Some(id) if is(Bug::GenerationStays) => (id, map.members[&id].generation),
            Some(id) => (id, map.members[&id].generation.next().max(again::first_generation(map.epoch))),
            None => {
                let next = next_id(map.members.len(), self.last.member.0, MAX_MEMBERS, "members")?;
                (MemberId(next), again::first_generation(map.epoch))
            }
        };
        let replaced = map.members.get(&id).map_or(0, validate::member_bytes);
        let Registration { request: _, name, data_address, metrics_address, labels, devices, codec, speaks } =
            registration;
        let state = MemberState::Up;
        // Who was being emptied or cordoned when its process ended still is.
        let drains = map.members.get(&id).is_some_and(|member| member.drains);
        let drains_since = map.members.get(&id).map_or(Epoch::default(), |member| member.drains_since);
        let cordoned = map.members.get(&id).is_some_and(|member| member.cordoned);
        let lingers = map.members.get(&id).and_then(|before| departures::lingering(before, &data_address));
        let member = Member {
            name,
            generation,
            state,
            data_address,
            metrics_address,
            labels,
            devices,
            codec,
            drains,
            speaks,
            cordoned,
            lingers,
            drains_since,
        };
        self.index.take(validate::member_bytes(&member), replaced)?;
        self.index.members.insert(member.name.clone(), id);
        self.last.member = self.last.member.max(id);

        let map = self.change();
        // A process that starts anew holds nothing: what the one before it held is lost, and its replicas take over.
        let mut repair = repair::withdraw(map, id);
        map.members.insert(id, member);
        repair::fill(map, &mut repair);
        let epoch = map.epoch;
        self.repair = Some(repair);
        Ok(CommandReply::Registered { member: id, generation, epoch })
    }

    fn place_slots(&mut self, based_on: Epoch, changes: Vec<Placing>) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        if based_on != map.epoch && !is(Bug::PlacesByOldPlan) {
            return Err(WireError::StaleEpoch { epoch: map.epoch });
        }
        validate::placement(map, &changes)?;
        let none = Filling::default();
        let is_new = |one: &Placing| {
            let lacking = map.filling.get(&one.slot).unwrap_or(&none);
            map.replicas(one.slot).0 != one.set || *lacking != one.filling
        };
        let changes: Vec<Placing> = changes.into_iter().filter(is_new).collect();
        if changes.is_empty() {
            return Ok(self.unchanged());
        }
        let map = self.change();
        if is(Bug::PlacesWithoutEpoch) {
            map.epoch = based_on;
        }
        let (slots, all) = (Arc::make_mut(&mut map.slots), Arc::make_mut(&mut map.filling));
        for Placing { slot, set, filling } in changes {
            slots[usize::from(slot.0)] = ReplicaSet(set);
            if filling.devices.is_empty() {
                all.remove(&slot);
            } else {
                all.insert(slot, filling);
            }
        }
        Ok(self.unchanged())
    }

    fn balance(&mut self, based_on: Epoch, changes: Vec<Balancing>) -> Outcome {
        let map = self.map.as_ref().expect("execute has checked that there is a map");
        if based_on != map.epoch {
            return Err(WireError::StaleEpoch { epoch: map.epoch });
        }
        validate::balancing(map, &changes)?;
        let mut balanced = (*map.balanced).clone();
        for Balancing { slot, set, .. } in changes {
            if set.is_empty() {
                balanced.remove(&slot);
            } else {
                balanced.insert(slot, ReplicaSet(set));
            }
        }
        if balanced != *map.balanced {
            self.change().balanced = Arc::new(balanced);
        }
        Ok(self.unchanged())
    }

    fn set_ack(&mut self, ack: Ack) -> CommandReply {
        if self.map.as_ref().is_some_and(|map| map.settings.ack != ack) {
            self.change().settings.ack = ack;
        }
        self.unchanged()
    }

    fn set_coordinators(&mut self, addresses: Vec<String>) -> Outcome {
        validate::coordinators(&addresses)?;
        if self.map.as_ref().is_some_and(|map| *map.coordinators != addresses) {
            self.change().coordinators = Arc::new(addresses);
        }
        Ok(self.unchanged())
    }

    /// Returns the map to change, already under its next epoch. Called once by each command that changes something.
    pub(crate) fn change(&mut self) -> &mut ClusterMap {
        let map = Arc::make_mut(self.map.as_mut().expect("execute has checked that there is a map"));
        map.epoch = map.epoch.next();
        map
    }

    pub(crate) fn unchanged(&self) -> CommandReply {
        CommandReply::Applied { epoch: self.epoch() }
    }
}

impl Index {
    fn of(map: &ClusterMap) -> Self {
        Index {
            members: map.members.iter().map(|(id, member)| (member.name.clone(), *id)).collect(),
            tenants: map.tenants.iter().map(|(id, tenant)| (tenant.name.clone(), *id)).collect(),
            bytes: map.members.values().map(validate::member_bytes).sum::<usize>()
                + map.tenants.values().map(validate::tenant_bytes).sum::<usize>(),
        }
    }

    /// Counts something that comes in the place of something else, if the map stays small enough to be sent.
    fn take(&mut self, bytes: usize, replaced: usize) -> Result<(), WireError> {
        let sum = self.bytes - replaced + bytes;
        if sum > validate::MAX_MAP_BYTES {
            return Err(WireError::rejected(format_args!(
                "the cluster map would take {sum} bytes, allowed are {}: use fewer tenants, or fewer labels on members",
                validate::MAX_MAP_BYTES
            )));
        }
        self.bytes = sum;
        Ok(())
    }
}

/// Returns the number after the greatest that there has ever been.
fn next_id(there_are: usize, last: u32, most: usize, what: &str) -> Result<u32, WireError> {
    if there_are >= most {
        return Err(WireError::rejected(format_args!(
            "the cluster has {most} {what}, which is the most it can have"
        )));
    }
    let spent = || WireError::rejected(format_args!("the cluster has no number left for more {what}"));
    last.checked_add(1).ok_or_else(spent)
}

#[cfg(test)]
#[path = "registry_test.rs"]
pub(crate) mod tests;
