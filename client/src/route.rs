//! Where blocks are asked for: pure decisions over a cluster map.

use crate::prefix::Prefix;
use kvhive_protocol::data::Run;
use kvhive_protocol::{BlockKey, ClusterMap, DeviceId, Filling, MemberId, ReplicaSet, Slot};

/// What one device is asked: some positions of a prefix, in order, as runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Job {
    pub(crate) device: DeviceId,
    pub(crate) runs: Vec<Run>,
    pub(crate) positions: Vec<usize>,
    /// The device is no replica of these: it is asked as one that is near, and has them fetched.
    pub(crate) is_guest: bool,
}

impl Job {
    fn empty(device: DeviceId, is_guest: bool) -> Job {
        Job { device, runs: Vec::new(), positions: Vec::new(), is_guest }
    }
}

/// Jobs for the positions that some device serves, and the positions that none does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) nowhere: Vec<usize>,
}

/// The segment that somebody is to be asked for.
pub(crate) struct Segment<'a> {
    pub(crate) home: &'a BlockKey,
    pub(crate) set: &'a ReplicaSet,
    pub(crate) filling: Option<&'a Filling>,
    pub(crate) avoid: &'a [DeviceId],
    /// Replicas that every slot has.
    pub(crate) replicas: usize,
}

impl Segment<'_> {
    /// Those who may be asked, in the map's order.
    pub(crate) fn left(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.set.0.iter().copied().filter(|device| !self.avoid.contains(device))
    }

    /// Those of them who lack nothing.
    pub(crate) fn whole(&self) -> impl Iterator<Item = DeviceId> + '_ {
        let lacks = |device: &DeviceId| self.filling.is_some_and(|filling| filling.devices.contains(device));
        self.left().filter(move |device| !lacks(device))
    }

    /// One of this member that lacks nothing.
    pub(crate) fn of(&self, member: MemberId) -> Option<DeviceId> {
        self.whole().find(|device| device.member == member)
    }
}

/// Plans `positions` (growing) of `prefix`: each segment goes to whom `choose` says, or nowhere.
pub(crate) fn plan(
    map: &ClusterMap,
    prefix: &Prefix,
    positions: impl Iterator<Item = usize>,
    avoid: &[DeviceId],
    mut choose: impl FnMut(&Segment<'_>) -> Option<DeviceId>,
) -> Plan {
    let segment_blocks = map.settings.segment_blocks as usize;
    let mut plan = Plan::default();
    // The segment looked at last: its home, slot and job. A prefix walks through one after the other.
    let mut last: Option<(usize, Slot, Option<usize>)> = None;
    for at in positions {
        let home = prefix.home(at, segment_blocks);
        let (fresh, slot, job) = match last {
            Some((known, slot, job)) if known == home => (false, slot, job),
            _ => {
                let (slot, segment) = segment_at(map, prefix, at, avoid);
                let job = choose(&segment).map(|device| {
                    let is_guest = !segment.set.contains(device);
                    let is_its = |job: &Job| (job.device, job.is_guest) == (device, is_guest);
                    plan.jobs.iter().position(is_its).unwrap_or_else(|| {
                        plan.jobs.push(Job::empty(device, is_guest));
                        plan.jobs.len() - 1
                    })
                });
                last = Some((home, slot, job));
                (true, slot, job)
            }
        };
        let Some(job) = job else {
            plan.nowhere.push(at);
            continue;
        };
        let job = &mut plan.jobs[job];
        job.positions.push(at);
        match job.runs.last_mut() {
            Some(run) if !fresh => run.keys += 1,
            _ => job.runs.push(Run { slot, keys: 1 }),
        }
    }
    plan
}

/// Returns the segment that block `at` of `prefix` is of, and its slot.
pub(crate) fn segment_at<'a>(
    map: &'a ClusterMap,
    prefix: &'a Prefix,
    at: usize,
    avoid: &'a [DeviceId],
) -> (Slot, Segment<'a>) {
    let home = &prefix.keys()[prefix.home(at, map.settings.segment_blocks as usize)];
    let slot = home.slot();
    let (set, filling) = (map.replicas(slot), map.filling.get(&slot));
    (slot, Segment { home, set, filling, avoid, replicas: usize::from(map.settings.replicas) })
}

/// Chooses the primary or nobody.
pub(crate) fn primary(segment: &Segment<'_>) -> Option<DeviceId> {
    segment.set.primary().filter(|primary| !segment.avoid.contains(primary))
}

/// Chooses the first replica that is left: of those that lack older blocks one only if nobody else is.
pub(crate) fn first(segment: &Segment<'_>) -> Option<DeviceId> {
    segment.whole().next().or_else(|| segment.left().next())
}

/// Plans the whole of `prefix` for every replica of its slots: one job a device.
pub(crate) fn every_replica(map: &ClusterMap, prefix: &Prefix) -> Vec<Job> {
    let segment_blocks = map.settings.segment_blocks as usize;
    let mut jobs: Vec<Job> = Vec::new();
    let mut at = 0;
    while at < prefix.len() {
        let home = prefix.home(at, segment_blocks);
        let end = (at..prefix.len()).find(|next| prefix.home(*next, segment_blocks) != home);
        let end = end.unwrap_or(prefix.len());
        let slot = prefix.keys()[home].slot();
        for device in &map.replicas(slot).0 {
            let known = jobs.iter().position(|job| job.device == *device);
            let number = known.unwrap_or(jobs.len());
            if known.is_none() {
                jobs.push(Job::empty(*device, false));
            }
            jobs[number].runs.push(Run { slot, keys: (end - at) as u32 });
            jobs[number].positions.extend(at..end);
        }
        at = end;
    }
    jobs
}

/// Splits the jobs that are over `blocks` blocks, keeping runs whole or cut at a block.
pub(crate) fn split(job: Job, blocks: usize) -> Vec<Job> {
    if job.positions.len() <= blocks {
        return vec![job];
    }
    let mut parts = Vec::new();
    let mut runs = job.runs.into_iter();
    let mut open: Option<Run> = runs.next();
    for positions in job.positions.chunks(blocks.max(1)) {
        let mut part = Job { positions: positions.to_vec(), ..Job::empty(job.device, job.is_guest) };
        let mut room = positions.len() as u32;
        while let Some(run) = open.filter(|_| room > 0) {
            let keys = run.keys.min(room);
            part.runs.push(Run { slot: run.slot, keys });
            room -= keys;
            open = if run.keys > keys { Some(Run { keys: run.keys - keys, ..run }) } else { runs.next() };
        }
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::Settings;
    use kvhive_protocol::{ClusterId, SLOTS};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn device(number: u32) -> DeviceId {
        DeviceId::new(MemberId(number), 0)
    }

    fn key(number: u64) -> BlockKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[24..].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        BlockKey::from_bytes(bytes)
    }

    /// Slot s is on devices s % 3 and (s + 1) % 3.
    fn map(segment_blocks: u32) -> ClusterMap {
        let settings = Settings {
            replicas: 2,
            segment_blocks,
            ack: Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 200,
            serving_lease_ms: 2000,
        };
        ClusterMap {
            slots: Arc::new(
                (0..u32::from(SLOTS))
                    .map(|slot| ReplicaSet(vec![device(slot % 3), device((slot + 1) % 3)]))
                    .collect(),
            ),
            ..ClusterMap::founded(ClusterId(1), "test", settings)
        }
    }

    #[test]
    fn a_segment_lives_where_its_first_key_says() {
        let prefix = Prefix::chained((0..10).map(key).collect());
        let plan = plan(&map(4), &prefix, 0..10, &[], first);
        for job in &plan.jobs {
            let mut positions = job.positions.iter();
            for run in &job.runs {
                for _ in 0..run.keys {
                    let at = positions.next().expect("runs cover the positions");
                    assert_eq!(prefix.keys()[at - at % 4].slot(), run.slot);
                }
            }
            assert_eq!(positions.next(), None);
        }
        let mut all: Vec<usize> = plan.jobs.iter().flat_map(|job| job.positions.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn every_replica_of_a_segment_gets_all_of_it_in_order() {
        let prefix = Prefix::chained((0..22).map(key).collect());
        let jobs = every_replica(&map(4), &prefix);
        for at in 0..22 {
            let slot = u32::from(prefix.keys()[at - at % 4].slot().0);
            let mut holders: Vec<DeviceId> =
                jobs.iter().filter(|job| job.positions.contains(&at)).map(|job| job.device).collect();
            holders.sort_unstable();
            let mut expected = vec![device(slot % 3), device((slot + 1) % 3)];
            expected.sort_unstable();
            assert_eq!(holders, expected);
        }
        for job in jobs {
            assert!(job.positions.is_sorted());
            let slots = job.runs.iter().flat_map(|run| std::iter::repeat_n(run.slot, run.keys as usize));
            let homes = job.positions.iter().map(|at| prefix.keys()[at - at % 4].slot());
            assert!(slots.eq(homes));
        }
    }

    #[test]
    fn part_of_a_prefix_keeps_its_home_keys() {
        let prefix = Prefix::chained((0..12).map(key).collect());
        let plan = plan(&map(4), &prefix, 6..7, &[], first);
        assert_eq!(plan.jobs[0].runs, [Run { slot: prefix.keys()[4].slot(), keys: 1 }]);
    }

    #[test]
    fn a_device_that_failed_is_passed_over_while_there_is_another() {
        let prefix = Prefix::loose(vec![key(1)]);
        let slot = u32::from(key(1).slot().0);
        let set = [device(slot % 3), device((slot + 1) % 3)];
        let ask = |avoid: &[DeviceId]| plan(&map(4), &prefix, 0..1, avoid, first);
        assert_eq!(ask(&[]).jobs[0].device, set[0]);
        assert_eq!(ask(&[set[0]]).jobs[0].device, set[1]);
        assert_eq!(ask(&set), Plan { jobs: vec![], nowhere: vec![0] });
        let stores = plan(&map(4), &prefix, 0..1, &[set[0]], primary);
        assert_eq!(stores, Plan { jobs: vec![], nowhere: vec![0] });
    }

    #[test]
    fn a_replica_that_lacks_blocks_is_asked_last() {
        let prefix = Prefix::loose(vec![key(1)]);
        let slot = key(1).slot();
        let mut map = map(4);
        let set = [device(7), device(8), device(9)];
        Arc::make_mut(&mut map.slots)[usize::from(slot.0)] = ReplicaSet(set.to_vec());
        let filling = Filling { devices: vec![set[1]], streams: true };
        Arc::make_mut(&mut map.filling).insert(slot, filling);
        let ask = |avoid: &[DeviceId]| plan(&map, &prefix, 0..1, avoid, super::first).jobs[0].device;
        assert_eq!(ask(&[]), set[0]);
        assert_eq!(ask(&[set[0]]), set[2]);
        assert_eq!(ask(&[set[0], set[2]]), set[1]);
    }

    proptest! {
        #[test]
        fn split_jobs_are_the_whole_job(keys in 1..200usize, segment in 1..9u32, blocks in 1..40usize) {
            let prefix = Prefix::chained((0..keys as u64).map(key).collect());
            for job in plan(&map(segment), &prefix, 0..keys, &[], first).jobs {
                let parts = split(job.clone(), blocks);
                let positions: Vec<usize> = parts.iter().flat_map(|part| part.positions.clone()).collect();
                prop_assert_eq!(&positions, &job.positions);
                for part in &parts {
                    prop_assert!(part.positions.len() <= blocks);
                    let covered: u32 = part.runs.iter().map(|run| run.keys).sum();
                    prop_assert_eq!(covered as usize, part.positions.len());
                }
                let slots = |jobs: &[Job]| -> Vec<Slot> {
                    let runs = jobs.iter().flat_map(|job| &job.runs);
                    runs.flat_map(|run| std::iter::repeat_n(run.slot, run.keys as usize)).collect()
                };
                prop_assert_eq!(slots(&parts), slots(&[job]));
            }
        }
    }
}
