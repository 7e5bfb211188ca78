//! When a store may be answered, and what the answer says: rules over the map that a primary serves by and what other replicas
//! say of a block.

use kvhive_protocol::data::{Ack, Refusal, Stored};
use kvhive_protocol::{ClusterMap, DeviceId, Slot, WireError};

/// What a replica says of a block, for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It holds the block.
    Holds,
    /// It has no room that it would give the block: as if it had taken and then evicted it.
    Declines,
}

impl Answer {
    /// Returns what a replica's word on a copy means; none where it may take the block another time.
    pub fn of(said: Stored) -> Option<Answer> {
        match said {
            // It holds no lease, so it may be no replica any more.
            Stored::Kept { copies: 0, .. } => None,
            Stored::Kept { .. } => Some(Answer::Holds),
            Stored::Refused(Refusal::NoRoom | Refusal::TooLarge) => Some(Answer::Declines),
            Stored::Refused(Refusal::InFlight | Refusal::WrongEra | Refusal::Corrupt) => None,
        }
    }
}

/// Says whether `device` takes blocks of these slots from clients: the primary does, and tells the other replicas.
///
/// # Errors
/// [`WireError::StaleEpoch`] with the map's own epoch when another is primary: whichever of the two maps is older, its owner
/// refreshes.
pub fn leads(
    map: &ClusterMap,
    device: DeviceId,
    mut slots: impl Iterator<Item = Slot>,
) -> Result<(), WireError> {
    if slots.any(|slot| map.replicas(slot).primary() != Some(device)) {
        return Err(WireError::StaleEpoch { epoch: map.epoch });
    }
    Ok(())
}

/// Checks that a slot that is being given away is given this block too, before it is acknowledged: the slot may be gone a moment
/// later.
///
/// # Errors
/// [`WireError::Busy`] while who is given the slot has not said anything of the block.
pub fn is_given(map: &ClusterMap, slot: Slot, answers: &[(DeviceId, Answer)]) -> Result<(), WireError> {
    match map.given_to(slot) {
        Some(target) if answers.iter().all(|(device, _)| *device != target) => {
            Err(WireError::busy("a slot is on its way to a node that has not taken its blocks"))
        }
        _ => Ok(()),
    }
}

/// Checks that a slot that was being given away by the map that copies were made by has not gone since: who has it now may have
/// given it on before the copies came.
///
/// # Errors
/// [`WireError::StaleEpoch`] with the newer map's epoch when it has.
pub fn has_stayed(then: &ClusterMap, now: &ClusterMap, slot: Slot) -> Result<(), WireError> {
    let is_same =
        then.replicas(slot) == now.replicas(slot) && then.filling.get(&slot) == now.filling.get(&slot);
    if then.given_to(slot).is_none() || is_same {
        return Ok(());
    }
    Err(WireError::StaleEpoch { epoch: now.epoch })
}

/// Returns how many replicas beside the primary hold a block, as far as they count for an acknowledgement. One that lacks older
/// blocks counts when all that lack none hold this one too: it takes over only when none of these is left.
pub fn copies(map: &ClusterMap, slot: Slot, answers: &[(DeviceId, Answer)]) -> u8 {
    let holds = |device: &DeviceId| answers.contains(&(*device, Answer::Holds));
    let set = map.replicas(slot).0.get(1..).unwrap_or_default();
    let is_whole_everywhere = set.iter().filter(|device| !map.is_filling(slot, **device)).all(holds);
    let counts =
        |device: &&DeviceId| holds(device) && (is_whole_everywhere || !map.is_filling(slot, **device));
    set.iter().filter(counts).count() as u8
}

/// Returns what a copy counts for that a primary keeps which holds no lease: another that was made primary may drop it. So it is enough
/// for who asks for the primary's word alone; where all of a slot's replicas are this one, it counts for nothing to who asks for all.
/// A slot that was on its way to another node may be gone.
pub fn alone(map: &ClusterMap, slot: Slot, ack: Ack) -> u8 {
    let is_enough = ack.copies(map.replicas(slot).0.len()) < 2;
    u8::from(map.given_to(slot).is_none() && (ack == Ack::Primary || !is_enough))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_map::{device, founded};
    use kvhive_protocol::map::ReplicaSet;
    use kvhive_protocol::{Epoch, Filling};
    use std::sync::Arc;

    const SLOT: Slot = Slot(5);

    /// The slot is on these members; some lack blocks, and the first of them may be given some.
    fn map(set: &[u32], lacking: &[u32], streams: bool) -> ClusterMap {
        let mut map = ClusterMap { epoch: Epoch(7), ..founded() };
        let devices = |members: &[u32]| members.iter().map(|member| device(*member)).collect::<Vec<_>>();
        Arc::make_mut(&mut map.slots)[usize::from(SLOT.0)] = ReplicaSet(devices(set));
        if !lacking.is_empty() {
            Arc::make_mut(&mut map.filling).insert(SLOT, Filling { devices: devices(lacking), streams });
        }
        map
    }

    fn holding(members: &[u32]) -> Vec<(DeviceId, Answer)> {
        members.iter().map(|member| (device(*member), Answer::Holds)).collect()
    }

    #[test]
    fn a_copy_of_a_primary_without_a_lease_is_enough_for_who_asks_for_its_word_alone() {
        let two = map(&[1, 2], &[], false);
        assert_eq!([Ack::Primary, Ack::Quorum, Ack::All].map(|ack| alone(&two, SLOT, ack)), [1, 1, 1]);
        let one = map(&[1], &[], false);
        assert_eq!([Ack::Primary, Ack::Quorum, Ack::All].map(|ack| alone(&one, SLOT, ack)), [1, 0, 0]);
        let given = map(&[1, 2], &[2], true);
        assert_eq!([Ack::Primary, Ack::All].map(|ack| alone(&given, SLOT, ack)), [0, 0], "it may be gone");
    }

    const STALE: Result<(), WireError> = Err(WireError::StaleEpoch { epoch: Epoch(7) });

    #[test]
    fn clients_store_at_the_primary_alone() {
        let map = map(&[1, 2], &[], false);
        assert_eq!(leads(&map, device(1), [SLOT].into_iter()), Ok(()));
        assert_eq!(leads(&map, device(2), [SLOT].into_iter()), STALE);
        assert_eq!(leads(&map, device(1), [SLOT, Slot(6)].into_iter()), STALE);
    }

    #[test]
    fn what_is_given_away_is_acknowledged_when_who_gets_it_has_answered_for_it() {
        let given = map(&[1, 2, 3], &[3], true);
        assert!(matches!(is_given(&given, SLOT, &holding(&[2])), Err(WireError::Busy { .. })));
        assert_eq!(is_given(&given, SLOT, &holding(&[3])), Ok(()));
        assert_eq!(is_given(&given, SLOT, &[(device(3), Answer::Declines)]), Ok(()));
        assert_eq!(is_given(&map(&[1, 3], &[3], false), SLOT, &[]), Ok(()), "nobody gives it anything yet");
    }

    #[test]
    fn a_slot_that_went_while_copies_were_made_is_asked_for_elsewhere() {
        let (given, gone) = (map(&[1, 3], &[3], true), map(&[3], &[], false));
        assert_eq!(has_stayed(&given, &given, SLOT), Ok(()));
        assert_eq!(has_stayed(&given, &gone, SLOT), STALE);
        assert_eq!(has_stayed(&map(&[1, 2], &[], false), &given, SLOT), Ok(()), "it had every block then");
    }

    #[test]
    fn who_lacks_older_blocks_counts_when_all_others_hold_the_block() {
        let map = map(&[1, 2, 3], &[3], true);
        for (holders, counted) in [(&[][..], 0), (&[2], 1), (&[3], 0), (&[2, 3], 2)] {
            assert_eq!(copies(&map, SLOT, &holding(holders)), counted, "{holders:?}");
        }
        assert_eq!(copies(&map, SLOT, &[(device(2), Answer::Declines)]), 0);
        assert_eq!(copies(&self::map(&[1, 3], &[3], false), SLOT, &holding(&[3])), 1);
    }

    #[test]
    fn a_refusal_that_may_be_none_another_time_is_no_answer() {
        let refused = |refusal| Answer::of(Stored::Refused(refusal));
        assert_eq!(Answer::of(Stored::Kept { copies: 1, already: true }), Some(Answer::Holds));
        assert_eq!(refused(Refusal::NoRoom), Some(Answer::Declines));
        assert_eq!(Answer::of(Stored::Kept { copies: 0, already: false }), None, "nobody is to rely on it");
        for passing in [Refusal::InFlight, Refusal::WrongEra, Refusal::Corrupt] {
            assert_eq!(refused(passing), None);
        }
    }
}
