//! The way of one slot from where it is to where it belongs, a step at a time, so that its blocks are always somewhere: a
//! device that is to have it becomes a replica that lacks its older blocks, is given them, and only then may another leave.

use kvhive_protocol::control::Placing;
use kvhive_protocol::{DeviceId, Filling, ReplicaSet, Slot};
use std::collections::BTreeSet;

/// What is known of one slot when its next step is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present<'a> {
    pub(crate) slot: Slot,
    pub(crate) set: &'a ReplicaSet,
    pub(crate) filling: Option<&'a Filling>,
    /// Where it belongs, the primary first.
    pub(crate) wanted: &'a [DeviceId],
    /// Its primary has nothing to give.
    pub(crate) is_empty: bool,
    /// Who is being given the primary's blocks has them all.
    pub(crate) is_filled: bool,
    /// Replicas that lack blocks because another was lost are to be given them.
    pub(crate) is_due: bool,
    /// The primary may begin to give blocks away.
    pub(crate) may_start: bool,
    /// Devices that did not answer those who were to give them blocks.
    pub(crate) avoided: &'a BTreeSet<DeviceId>,
    /// Replicas that settings ask for.
    pub(crate) replicas: usize,
}

/// Returns where the slot is to be next; none while it is where it belongs or something is awaited.
pub(crate) fn next(now: &Present<'_>) -> Option<Placing> {
    let (set, wanted) = (&now.set.0, now.wanted);
    set.first().filter(|_| !wanted.is_empty())?;
    let lacking: &[DeviceId] = now.filling.map_or(&[], |filling| &filling.devices);
    let streams = now.filling.is_some_and(|filling| filling.streams);
    if streams && !now.is_filled && !now.is_empty && wanted.contains(&lacking[0]) {
        // Who does not answer stays a replica that lacks blocks; stores need not wait for it any more.
        return if now.avoided.contains(&lacking[0]) { now.progress(set, lacking, true) } else { None };
    }
    // Only of who was being given blocks is it known since when it has every new one: no other may take the primary's place.
    let is_elsewhere = |device: &&DeviceId| device.member != set[0].member;
    let given = match (streams, now.is_empty) {
        (false, _) => 0,
        (true, true) => 1 + lacking[1..].iter().take_while(is_elsewhere).count(),
        (true, false) => usize::from(now.is_filled),
    };
    let given = &lacking[..given];
    let lacking = &lacking[given.len()..];
    let set = &in_place(set, given, lacking);
    let useful = useful(now, set, lacking);
    let incomplete: Vec<DeviceId> =
        wanted.iter().filter(|device| lacking.contains(device) || !set.contains(device)).copied().collect();
    if incomplete.is_empty() {
        return if wanted[0] == set[0] || given.first() == Some(&wanted[0]) {
            now.changed(wanted.to_vec(), Filling::default())
        } else if (now.may_start || now.is_empty) && !now.avoided.contains(&wanted[0]) {
            // Copies may have been dropped on their way to it, which the primary has.
            now.changed(useful, Filling { devices: vec![wanted[0]], streams: true })
        } else {
            now.progress(set, lacking, !given.is_empty())
        };
    }
    let first = incomplete.iter().find(|device| !now.avoided.contains(device)).copied();
    let may_start =
        |first: &DeviceId| now.is_empty || now.may_start && (!set.contains(first) || now.is_due || streams);
    let Some(first) = first.filter(may_start) else {
        return now.progress(set, lacking, !given.is_empty());
    };
    let mut next = useful;
    let mut devices = vec![first];
    if !next.contains(&first) {
        next.push(first);
    }
    for device in incomplete.into_iter().filter(|device| *device != first) {
        let is_replica = next.contains(&device);
        let members: BTreeSet<_> = next.iter().map(|one| one.member).collect();
        if is_replica || now.is_empty || members.len() < now.replicas {
            devices.push(device);
            if !is_replica {
                next.push(device);
            }
        }
    }
    now.changed(next, Filling { devices, streams: true })
}

/// Lets a replica that is being emptied give what it has, where those who stay may have let some of that go: it becomes primary, and who was
/// primary is given what it lacks, behind one that is to have the slot and has nothing yet. What that one takes in, nobody loses.
pub(crate) fn turned(now: &Present<'_>, from: DeviceId) -> Option<Placing> {
    let (primary, replicas) = now.set.0.split_first()?;
    let known: &[DeviceId] = now.filling.map_or(&[], |filling| &filling.devices);
    let others = replicas.iter().filter(|device| **device != from);
    let mut set: Vec<DeviceId> = [from, *primary].into_iter().chain(others.copied()).collect();
    let is_missing = |device: &&DeviceId| !now.avoided.contains(device) && **device != from;
    let new = |device: &&DeviceId| !now.set.contains(**device) || known.contains(device);
    let first = *now.wanted.iter().filter(is_missing).find(new).unwrap_or(primary);
    if !set.contains(&first) {
        set.push(first);
    }
    let mut devices = vec![first];
    for device in known.iter().chain([primary]) {
        if !devices.contains(device) {
            devices.push(*device);
        }
    }
    now.changed(set, Filling { devices, streams: true })
}

/// Returns the replicas that are worth keeping while others are given blocks. What lacks blocks and is not wanted was to stand in
/// for one that has come back. Of those that lack nothing and are not wanted, as many stay as make the copies that settings ask for.
fn useful(now: &Present<'_>, set: &[DeviceId], lacking: &[DeviceId]) -> Vec<DeviceId> {
    let is_whole_wanted = |device: &&DeviceId| now.wanted.contains(device) && !lacking.contains(device);
    let mut spare = now.replicas.saturating_sub(set.iter().filter(is_whole_wanted).count());
    let mut kept = Vec::with_capacity(set.len());
    for (at, device) in set.iter().enumerate() {
        let is_wanted = now.wanted.contains(device);
        let is_spare = !is_wanted && !lacking.contains(device);
        // The primary stays until another takes its place.
        if is_wanted || at == 0 || is_spare && spare > 0 {
            kept.push(*device);
        }
        spare = spare.saturating_sub(usize::from(is_spare));
    }
    kept
}

/// Lets a device that was given everything take the place of another of its own member: two that lack nothing would be one
/// copy too many there.
fn in_place(set: &[DeviceId], given: &[DeviceId], lacking: &[DeviceId]) -> Vec<DeviceId> {
    let mut set = set.to_vec();
    for device in given {
        let is_other = |other: &DeviceId| {
            other.member == device.member
                && other != device
                && !lacking.contains(other)
                && !given.contains(other)
        };
        if let Some(other) = set.iter().position(is_other) {
            set[other] = *device;
            if let Some(later) = set.iter().rposition(|one| one == device).filter(|later| *later != other) {
                set.remove(later);
            }
        }
    }
    set
}

impl Present<'_> {
    /// Notes what has come, if anything has, and begins nothing.
    fn progress(&self, set: &[DeviceId], lacking: &[DeviceId], has_come: bool) -> Option<Placing> {
        let filling = Filling { devices: lacking.to_vec(), streams: false };
        if has_come { self.changed(set.to_vec(), filling) } else { None }
    }

    fn changed(&self, set: Vec<DeviceId>, filling: Filling) -> Option<Placing> {
        let is_same = self.set.0 == set && *self.filling.unwrap_or(&Filling::default()) == filling;
        (!is_same).then_some(Placing { slot: self.slot, set, filling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::MemberId;
    use proptest::prelude::*;

    fn devices(numbers: &[u32]) -> Vec<DeviceId> {
        numbers.iter().map(|number| DeviceId::new(MemberId(*number), 0)).collect()
    }

    static NOBODY: BTreeSet<DeviceId> = BTreeSet::new();

    /// One slot on its way, as the registry would keep it.
    struct Way {
        set: ReplicaSet,
        filling: Option<Filling>,
        wanted: Vec<DeviceId>,
        replicas: usize,
    }

    impl Way {
        fn new(set: &[u32], lacking: &[u32], wanted: &[u32]) -> Way {
            let filling = Filling { devices: devices(lacking), streams: false };
            Way {
                set: ReplicaSet(devices(set)),
                filling: Some(filling).filter(|filling| !filling.devices.is_empty()),
                wanted: devices(wanted),
                replicas: wanted.len(),
            }
        }

        fn present(&self) -> Present<'_> {
            Present {
                slot: Slot(3),
                set: &self.set,
                filling: self.filling.as_ref(),
                wanted: &self.wanted,
                is_empty: false,
                is_filled: false,
                is_due: true,
                may_start: true,
                avoided: &NOBODY,
                replicas: self.replicas,
            }
        }

        fn take(&mut self, placing: Option<Placing>) -> Option<()> {
            let Placing { set, filling, .. } = placing?;
            self.set = ReplicaSet(set);
            self.filling = Some(filling).filter(|filling| !filling.devices.is_empty());
            Some(())
        }

        fn is(&self, set: &[u32], lacking: &[u32]) -> bool {
            let devices_lacking = self.filling.as_ref().map_or(Vec::new(), |filling| filling.devices.clone());
            self.set.0 == devices(set) && devices_lacking == devices(lacking)
        }
    }

    #[test]
    fn a_slot_moves_by_being_copied_first() {
        let mut way = Way::new(&[1], &[], &[2]);
        let step = next(&way.present());
        way.take(step).expect("it begins");
        assert!(way.is(&[1, 2], &[2]) && way.filling.as_ref().is_some_and(|filling| filling.streams));
        assert_eq!(next(&way.present()), None, "it is under way");
        let step = next(&Present { is_filled: true, ..way.present() });
        way.take(step).expect("it ends");
        assert!(way.is(&[2], &[]));
        assert_eq!(next(&way.present()), None);
    }

    #[test]
    fn a_slot_without_blocks_moves_in_two_steps_whatever_else_is_under_way() {
        let mut way = Way::new(&[1, 2], &[], &[3, 4]);
        for expected in [&[1, 2, 3, 4][..], &[3, 4]] {
            let step = next(&Present { is_empty: true, may_start: false, ..way.present() });
            way.take(step).expect("it goes on");
            assert_eq!(way.set.0, devices(expected));
        }
    }

    #[test]
    fn what_was_lost_is_given_again_when_it_is_due() {
        let mut way = Way::new(&[1, 3], &[3], &[1, 3]);
        assert_eq!(next(&Present { is_due: false, ..way.present() }), None);
        assert_eq!(next(&Present { may_start: false, ..way.present() }), None);
        let step = next(&way.present());
        way.take(step).expect("it begins");
        assert!(way.is(&[1, 3], &[3]));
        let step = next(&Present { is_filled: true, ..way.present() });
        way.take(step).expect("it ends");
        assert!(way.is(&[1, 3], &[]));
    }

    #[test]
    fn who_comes_back_is_given_blocks_instead_of_who_stood_in() {
        let mut way = Way::new(&[1, 3], &[3], &[2, 1]);
        let step = next(&Present { is_due: false, ..way.present() });
        way.take(step).expect("it begins at once");
        assert!(way.is(&[1, 2], &[2]));
        let step = next(&Present { is_filled: true, ..way.present() });
        way.take(step).expect("it ends");
        assert!(way.is(&[2, 1], &[]));
    }

    #[test]
    fn who_does_not_answer_holds_nobody_up() {
        let mut way = Way::new(&[1], &[], &[2]);
        let step = next(&way.present());
        way.take(step).expect("it begins");
        let avoided: BTreeSet<DeviceId> = devices(&[2]).into_iter().collect();
        let step = next(&Present { avoided: &avoided, ..way.present() });
        way.take(step).expect("it ends");
        assert!(way.is(&[1, 2], &[2]) && way.filling.as_ref().is_some_and(|filling| !filling.streams));
        assert_eq!(next(&Present { avoided: &avoided, ..way.present() }), None);
        let step = next(&way.present());
        way.take(step).expect("it begins again when it may answer");
        assert!(way.filling.as_ref().is_some_and(|filling| filling.streams));
    }

    #[test]
    fn an_empty_report_gives_nothing_to_who_was_not_being_given_anything() {
        // A copy to a replica may have been dropped since the report.
        let way = Way::new(&[1, 2], &[], &[2]);
        let step = next(&Present { is_empty: true, ..way.present() }).expect("it begins");
        assert_eq!((step.set, step.filling.devices), (devices(&[1, 2]), devices(&[2])));
    }

    #[test]
    fn a_replica_becomes_primary_once_it_surely_has_everything() {
        let mut way = Way::new(&[1, 2], &[], &[2, 1]);
        let step = next(&way.present());
        way.take(step).expect("it begins");
        assert!(way.is(&[1, 2], &[2]));
        let step = next(&Present { is_filled: true, ..way.present() });
        way.take(step).expect("it ends");
        assert!(way.is(&[2, 1], &[]));
    }

    proptest! {
        /// However reports come, each step keeps a primary that was a replica and lacks nothing, adds only replicas that
        /// are known to lack blocks, keeps as many replicas as there were up to what is asked for; and with all of them the
        /// slot gets where it belongs.
        #[test]
        fn every_way_is_safe_and_ends(
            set in prop::sample::subsequence(vec![1u32, 2, 3, 4, 5], 1..4),
            wanted in prop::sample::subsequence(vec![1u32, 2, 3, 4, 5], 3).prop_shuffle(),
            replicas in 1..4usize,
            lacking in 0..3usize,
            others in prop::collection::vec(any::<bool>(), 4),
            reports in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..6u32, any::<bool>()), 0..12),
        ) {
            let wanted = &wanted[..replicas];
            let lacking = &set[set.len() - lacking.min(set.len() - 1)..];
            let mut way = Way::new(&set, lacking, wanted);
            // Some belong on another device of the member that has them, or that stands in.
            for (device, other) in way.wanted.iter_mut().zip(others) {
                device.index = u16::from(other);
            }
            let all = (true, true, true, false, 9, false);
            let peace = std::iter::repeat_n(all, 24);
            for (is_filled, is_due, may_start, is_empty, silent, turns) in reports.into_iter().chain(peace) {
                if turns {
                    way.wanted.rotate_left(1);
                }
                let avoided: BTreeSet<DeviceId> = devices(&[silent]).into_iter().collect();
                let present =
                    Present { is_filled, is_due, may_start, is_empty, avoided: &avoided, ..way.present() };
                let Some(placing) = next(&present) else { continue };
                let is_new = |device: &&DeviceId| !way.set.contains(**device);
                prop_assert!(way.set.contains(placing.set[0]) && !placing.filling.devices.contains(&placing.set[0]));
                prop_assert!(placing.set.iter().filter(is_new).all(|device| placing.filling.devices.contains(device)));
                prop_assert!(placing.filling.devices.iter().all(|device| placing.set.contains(device)));
                let whole = |device: &&DeviceId| !placing.filling.devices.contains(device);
                let mut members: Vec<_> = placing.set.iter().filter(whole).map(|device| device.member).collect();
                members.sort_unstable();
                prop_assert!(members.is_sorted_by(|one, next| one < next), "{members:?}");
                let replicas = |set: &[DeviceId]| {
                    let members: std::collections::BTreeSet<_> = set.iter().map(|device| device.member).collect();
                    members.len()
                };
                prop_assert!(replicas(&placing.set) >= replicas(&way.set.0).min(way.replicas));
                let had = way.filling.as_ref().map_or(&[][..], |filling| &filling.devices);
                let first_was_lacking = had.contains(&placing.set[0]);
                let streamed = way.filling.as_ref().is_some_and(|filling| filling.streams);
                prop_assert!(!first_was_lacking || streamed && had[0] == placing.set[0] && (is_filled || is_empty));
                prop_assert!(placing.set.len() <= 2 * way.replicas.max(way.set.0.len()));
                way.take(Some(placing));
            }
            prop_assert_eq!(&way.set.0, &way.wanted);
            prop_assert_eq!(way.filling, None);
        }
    }
}
