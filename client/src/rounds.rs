//! The rounds of a call: whom each asks, and whether another one follows. What is asked, and what an answer means, is the
//! call's own.

use crate::call::Verdict;
use crate::client::Shared;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::Backoff;
use crate::route::{Job, Plan, Segment, first, plan, segment_at};
use crate::waits::{Near, Sway};
use kvhive_protocol::{ClusterMap, DeviceId, Level, MemberId, TraceContext};
use kvhive_wire::Fault;
use tokio::time::Instant;

/// What a call remembers from one round to the next.
pub(crate) struct Rounds<'a> {
    shared: &'a Shared,
    pub(crate) deadline: Instant,
    /// Who is not asked again.
    pub(crate) avoid: Vec<DeviceId>,
    /// Those of them who were not asked, or not again, because of what they have to do.
    spared: Vec<DeviceId>,
    backoff: Backoff,
    looked_again: bool,
    is_first: bool,
}

impl<'a> Rounds<'a> {
    /// Begins a call, whose time runs from now on.
    pub(crate) fn new(namespace: &'a NamespaceClient) -> Rounds<'a> {
        Rounds::until(namespace.shared(), namespace.deadline())
    }

    /// Begins a call that ends by `deadline`.
    pub(crate) fn until(shared: &'a Shared, deadline: Instant) -> Rounds<'a> {
        Rounds {
            shared,
            deadline,
            avoid: Vec::new(),
            spared: Vec::new(),
            backoff: Backoff::new(),
            looked_again: false,
            is_first: true,
        }
    }

    /// Plans a round of a read: the first as [`Shared::plan_read`] does, each later one in the map's order.
    pub(crate) fn plan(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        positions: impl Iterator<Item = usize>,
        sway: Sway,
    ) -> Plan {
        if self.is_first {
            self.shared.plan_read(map, prefix, positions, sway)
        } else {
            plan(map, prefix, positions, &self.avoid, first)
        }
    }

    /// Returns what the requests of one round go by.
    pub(crate) fn read<'r>(
        &'r self,
        map: &'r ClusterMap,
        prefix: &'r Prefix,
        trace: Option<TraceContext>,
    ) -> Read<'r> {
        Read { map, prefix, avoid: &self.avoid, deadline: self.deadline, trace }
    }

    /// Looks, once a call and for a part of its time, whether there is a newer map: nobody is left to be asked by this one. Says
    /// whether there is.
    pub(crate) async fn looks_again(&mut self, map: &ClusterMap) -> bool {
        let now = Instant::now();
        let patience = now + self.deadline.saturating_duration_since(now) / 4;
        !std::mem::replace(&mut self.looked_again, true)
            && self.shared.refresh_past(map.epoch, patience).await
    }

    /// Does what the failed requests of one round need, each thing once for all of them: a newer map, a pause, others to be
    /// asked. Says whether to ask again.
    pub(crate) async fn mend(&mut self, map: &ClusterMap, failed: &[(DeviceId, Fault)]) -> bool {
        self.is_first = false;
        let mut wanted = None;
        let mut outdated = Vec::new();
        let mut wait = false;
        for (device, fault) in failed {
            tracing::debug!(%device, %fault, "request failed");
            match self.shared.judge(map, fault) {
                Verdict::Refresh(epoch) => {
                    wanted = wanted.max(Some(epoch));
                    outdated.push(*device);
                }
                Verdict::Wait => wait = true,
                Verdict::Elsewhere | Verdict::GiveUp => self.avoid.push(*device),
                Verdict::Spare => {
                    self.spared.push(*device);
                    self.avoid.push(*device);
                }
            }
        }
        // Their blocks are where they are. Where nothing failed, guests alone were asked.
        self.looked_again |=
            !failed.is_empty() && failed.iter().all(|(device, _)| self.spared.contains(device));
        if let Some(epoch) = wanted
            && !self.shared.refresh_to(map.epoch, epoch, self.deadline).await
        {
            self.looked_again = true;
            self.avoid.extend(outdated);
        }
        (!wait || self.backoff.wait(self.deadline).await) && Instant::now() < self.deadline
    }
}

impl Rounds<'_> {
    /// Says whether one of those who may have block `at` was spared: that others lack it says nothing then.
    pub(crate) fn was_spared(&self, map: &ClusterMap, prefix: &Prefix, at: usize) -> bool {
        let (slot, _) = segment_at(map, prefix, at, &[]);
        map.replicas(slot).0.iter().any(|device| self.spared.contains(device))
    }
}

impl Shared {
    /// Plans a read: each segment is asked of the replica that is expected to answer soonest, within what `sway` allows.
    pub(crate) fn plan_read(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        positions: impl Iterator<Item = usize>,
        sway: Sway,
    ) -> Plan {
        let now = self.now();
        let near = self.near(map).map(|member| Near { member, host: host(map, member) });
        let mut waits = self.waits();
        plan(map, prefix, positions, &[], |segment| waits.choose(segment, near, sway, now))
    }

    /// Returns the member that is to be asked first where it is a replica.
    pub(crate) fn near(&self, map: &ClusterMap) -> Option<MemberId> {
        let name = self.config.near.as_ref()?;
        map.members.iter().find(|(_, member)| member.name == *name).map(|(id, _)| *id)
    }
}

/// Returns the device of a member that is asked for what none of its devices is a replica of.
fn host(map: &ClusterMap, member: MemberId) -> Option<DeviceId> {
    // At that level all members understand it.
    let up = map.devices_up().find(|(device, _)| device.member == member);
    up.filter(|_| map.level >= Level::DAYS).map(|(device, _)| device)
}

/// One round of a read.
#[derive(Clone, Copy)]
pub(crate) struct Read<'a> {
    pub(crate) map: &'a ClusterMap,
    pub(crate) prefix: &'a Prefix,
    pub(crate) avoid: &'a [DeviceId],
    pub(crate) deadline: Instant,
    /// Whose part its requests are.
    pub(crate) trace: Option<TraceContext>,
}

impl Read<'_> {
    /// Says whether there may be another replica of all that `job` asks for.
    pub(crate) fn has_others(&self, job: &Job) -> bool {
        job.runs.iter().all(|run| self.map.replicas(run.slot).0.len() > 1)
    }

    /// Returns what others than `device` are to be asked for these blocks; none unless all of them are somewhere else too.
    pub(crate) fn others(&self, device: DeviceId, positions: &[usize]) -> Option<Vec<Job>> {
        self.others_by(device, positions, first)
    }

    /// The same of those alone who lack nothing: their word that a block is not there counts.
    pub(crate) fn whole_others(&self, device: DeviceId, positions: &[usize]) -> Option<Vec<Job>> {
        self.others_by(device, positions, |segment| segment.whole().next())
    }

    fn others_by(
        &self,
        device: DeviceId,
        positions: &[usize],
        choose: impl FnMut(&Segment<'_>) -> Option<DeviceId>,
    ) -> Option<Vec<Job>> {
        let avoid: Vec<DeviceId> = self.avoid.iter().copied().chain([device]).collect();
        let plan = plan(self.map, self.prefix, positions.iter().copied(), &avoid, choose);
        plan.nowhere.is_empty().then_some(plan.jobs)
    }

    /// Says whether `device` is whom the last round would ask for block `at`, so that what it does not have is nowhere.
    pub(crate) fn is_final(&self, device: DeviceId, at: usize) -> bool {
        let (_, segment) = segment_at(self.map, self.prefix, at, self.avoid);
        first(&segment).is_none_or(|last| last == device)
    }
}
