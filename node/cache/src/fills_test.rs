//! Stories of what a node gives away.

use super::*;
use crate::test_map::{device, founded, member};
use kvhive_protocol::map::ReplicaSet;
use kvhive_protocol::{Filling, SLOTS};

const US: MemberId = MemberId(1);

/// Every slot is on member 1 first; `lacking` slots are being given to a member.
fn map(epoch: u64, lacking: &[(u16, u32)]) -> ClusterMap {
    let filling =
        |(slot, to): &(u16, u32)| (Slot(*slot), Filling { devices: vec![device(*to)], streams: true });
    ClusterMap {
        epoch: Epoch(epoch),
        members: BTreeMap::from([1, 2, 3].map(|id| (MemberId(id), member(id)))),
        slots: Arc::new(vec![ReplicaSet(vec![device(1), device(2), device(3)]); usize::from(SLOTS)]),
        filling: Arc::new(lacking.iter().map(filling).collect()),
        ..founded()
    }
}

fn begin(fills: &mut Fills) -> Option<Round> {
    fills.begin(&BTreeSet::new())
}

#[test]
fn a_target_has_one_pass_at_a_time_and_others_do_not_wait_for_it() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2), (5, 3)]), US);
    let slow = begin(&mut fills).expect("there is something to give");
    fills.adopt(&map(2, &[(3, 2), (4, 2), (5, 3)]), US);
    let busy = BTreeSet::from([slow.target]);
    let other = fills.begin(&busy).expect("the other target");
    assert_eq!((slow.target, other.target), (device(2), device(3)));
    assert_eq!(fills.begin(&busy), None, "the slot that came since is given when the first pass has ended");
    fills.ended(&other, Pass::Whole);
    fills.ended(&slow, Pass::Whole);
    let after = begin(&mut fills).expect("what came since");
    assert_eq!(after.slots.iter().copied().collect::<Vec<_>>(), [Slot(4)]);
}

#[test]
fn a_pass_gives_all_slots_of_one_target_and_what_is_given_is_said() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2), (5, 3), (9, 2)]), US);
    let first = begin(&mut fills).expect("there is something to give");
    assert_eq!((first.target, first.slots.len()), (device(2), 2));
    assert_eq!(fills.filled(device(1)), []);
    fills.ended(&first, Pass::Whole);
    assert_eq!(fills.filled(device(1)), [(Slot(3), device(2)), (Slot(9), device(2))]);
    assert_eq!(fills.left(), 1);
    let second = begin(&mut fills).expect("the other target");
    fills.ended(&second, Pass::Partial);
    assert_eq!(begin(&mut fills).map(|round| round.slots), Some(second.slots), "it failed and begins anew");
}

#[test]
fn what_was_given_of_a_slot_so_far_is_told_until_it_has_gone() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2), (5, 2)]), US);
    assert_eq!(fills.moving(device(1), 9), [], "nothing has gone yet");
    let round = begin(&mut fills).expect("there is something to give");
    for (slot, bytes, fate) in [(3, 10, Fate::Moved), (3, 20, Fate::Moved), (5, 7, Fate::There)] {
        fills.note(&round, Slot(slot), bytes, fate);
    }
    let given = |moved_blocks, moved_bytes| [SlotGiven { slot: Slot(3), moved_blocks, moved_bytes }];
    assert_eq!(fills.moving(device(1), 9), given(2, 30));
    assert_eq!((fills.moving(device(1), 0), fills.moving(device(2), 9)), (vec![], vec![]));
    // Another pass finds there what the first has brought, and adds what it has not.
    fills.ended(&round, Pass::Partial);
    let round = begin(&mut fills).expect("it was not whole");
    fills.note(&round, Slot(3), 10, Fate::There);
    fills.note(&round, Slot(3), 5, Fate::Moved);
    fills.ended(&round, Pass::Whole);
    assert_eq!(fills.moving(device(1), 9), given(3, 35));
    fills.adopt(&map(2, &[]), US);
    assert_eq!(fills.moving(device(1), 9), []);
}

#[test]
fn a_target_that_does_not_answer_keeps_no_other_waiting_and_is_told() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2), (5, 3)]), US);
    for _ in 0..PATIENCE {
        assert_eq!(fills.unreached(device(1), 9), []);
        let silent = begin(&mut fills).expect("its turn");
        assert_eq!(silent.target, device(2));
        fills.ended(&silent, Pass::Unanswered);
        let other = begin(&mut fills).expect("the other's turn");
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
        let round = begin(&mut fills).expect("it is not given yet");
        fills.ended(&round, Pass::Late);
        assert_eq!(fills.filled(device(1)).len(), usize::from(passes == LATE_PASSES));
    }
}

#[test]
fn a_block_that_did_not_get_there_has_its_slot_given_again() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2), (9, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.missed(Slot(3), device(2));
    fills.missed(Slot(9), device(3));
    fills.ended(&round, Pass::Whole);
    assert_eq!(fills.filled(device(1)), [(Slot(9), device(2))]);
    fills.missed(Slot(9), device(2));
    assert_eq!(fills.filled(device(1)), []);
    let again = begin(&mut fills).expect("both again");
    assert_eq!(again.slots.len(), 2);
    fills.ended(&again, Pass::Whole);
    assert_eq!(fills.left(), 0);
}

#[test]
fn a_newer_map_keeps_what_was_given_unless_the_target_has_lost_it() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.ended(&round, Pass::Whole);
    fills.adopt(&map(2, &[(3, 2), (4, 2)]), US);
    assert_eq!(fills.filled(device(1)), [(Slot(3), device(2))]);
    let mut restarted = map(3, &[(3, 2), (4, 2)]);
    restarted.members.get_mut(&MemberId(2)).expect("it is there").generation = Generation(2);
    fills.adopt(&restarted, US);
    assert_eq!((fills.filled(device(1)).len(), fills.left()), (0, 2));
    fills.adopt(&map(4, &[]), US);
    assert_eq!((fills.left(), begin(&mut fills)), (0, None));
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
    let first = begin(&mut fills).expect("there is something to give");
    for fate in [Fate::Moved, Fate::There, Fate::Declined, Fate::Late { is_last: true }] {
        fills.note(&first, Slot(3), 10, fate);
    }
    fills.note(&first, Slot(3), 10, Fate::Unreadable { is_last: false });
    fills.ended(&first, Pass::Partial);
    let told = |fills: &Fills| fills.given(device(1));
    let moved = Given { moved_blocks: 1, moved_bytes: 10, unread_blocks: 1, ..Given::default() };
    assert_eq!(told(&fills), [(US, moved)], "what did not get there may yet");
    let second = begin(&mut fills).expect("once more");
    // What was there, what was moved, what was late; and the one that was declined still is.
    for fate in [Fate::There, Fate::There, Fate::Moved, Fate::Declined] {
        fills.note(&second, Slot(3), 10, fate);
    }
    fills.ended(&second, Pass::Whole);
    let all = Given {
        moved_blocks: 2,
        moved_bytes: 20,
        there_blocks: 1,
        declined_blocks: 1,
        unread_blocks: 1,
        ..Given::default()
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
fn what_has_moved_counts_also_where_a_slot_goes_another_way_then() {
    let mut fills = Fills::default();
    fills.adopt(&emptied(1, &[(3, 2)]), US);
    let first = begin(&mut fills).expect("there is something to give");
    for fate in [Fate::Moved, Fate::Moved, Fate::There, Fate::Declined] {
        fills.note(&first, Slot(3), 10, fate);
    }
    let moved = |blocks| Given { moved_blocks: blocks, moved_bytes: 10 * blocks, ..Given::default() };
    assert_eq!(fills.given(device(1)), [(US, moved(2))]);
    fills.adopt(&emptied(2, &[(3, 3)]), US);
    assert_eq!(fills.given(device(1)), [(US, moved(2))], "another gets the slot");
    let second = begin(&mut fills).expect("it is given to that one");
    fills.note(&second, Slot(3), 10, Fate::Moved);
    assert_eq!(fills.given(device(1)), [(US, moved(3))]);
}

#[test]
fn a_slot_counts_for_whom_it_was_given_away_at_first_also_when_another_leaves_too() {
    let other = MemberId(2);
    let leaves = |epoch, members: &[MemberId]| {
        let mut map = map(epoch, &[(3, 3)]);
        Arc::make_mut(&mut map.slots)[3] = ReplicaSet(vec![device(1), device(2), device(3)]);
        for id in members {
            map.members.get_mut(id).expect("it is there").drains = true;
        }
        map
    };
    let mut fills = Fills::default();
    fills.adopt(&leaves(1, &[other]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.note(&round, Slot(3), 10, Fate::Moved);
    let moved = Given { moved_blocks: 1, moved_bytes: 10, ..Given::default() };
    assert_eq!(fills.given(device(1)), [(other, moved)]);
    fills.adopt(&leaves(2, &[US, other]), US);
    assert_eq!(fills.given(device(1)), [(other, moved)]);
    fills.adopt(&leaves(3, &[US]), US);
    assert_eq!(fills.given(device(1)), [(US, Given::default())], "the other's is over");
}

#[test]
fn who_is_emptied_once_more_is_counted_anew() {
    let mut fills = Fills::default();
    fills.adopt(&emptied(1, &[(3, 2), (4, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.note(&round, Slot(3), 10, Fate::Moved);
    fills.note(&round, Slot(4), 10, Fate::Moved);
    fills.ended(&round, Pass::Whole);
    fills.adopt(&emptied(2, &[(4, 2)]), US);
    assert_eq!(fills.given(device(1))[0].1.moved_blocks, 2);
    // It was not being emptied for a moment, in a map that never came here.
    let mut again = emptied(4, &[(4, 2)]);
    again.members.get_mut(&US).expect("it is there").drains_since = Epoch(4);
    fills.adopt(&again, US);
    assert_eq!(fills.given(device(1)), [(US, Given::default())]);
}

#[test]
fn a_pinned_block_without_room_keeps_its_slot_where_it_is() {
    let mut fills = Fills::default();
    fills.adopt(&emptied(1, &[(3, 2), (9, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.note(&round, Slot(3), 10, Fate::Waits);
    fills.ended(&round, Pass::Whole);
    assert_eq!(fills.filled(device(1)), [(Slot(9), device(2))]);
    assert_eq!(fills.given(device(1)), [(US, Given { waiting_blocks: 1, ..Given::default() })]);
    let again = begin(&mut fills).expect("it is tried again");
    fills.note(&again, Slot(3), 10, Fate::Moved);
    fills.ended(&again, Pass::Whole);
    let moved = Given { moved_blocks: 1, moved_bytes: 10, ..Given::default() };
    assert_eq!((fills.left(), fills.given(device(1))), (0, vec![(US, moved)]));
}

#[test]
fn what_moves_for_other_reasons_is_no_emptying() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    fills.note(&round, Slot(3), 10, Fate::Moved);
    fills.ended(&round, Pass::Whole);
    assert_eq!((fills.empties(Slot(3)), fills.given(device(1))), (None, vec![]));
}

#[test]
fn a_pass_that_nobody_wants_any_more_changes_nothing() {
    let mut fills = Fills::default();
    fills.adopt(&map(1, &[(3, 2)]), US);
    let round = begin(&mut fills).expect("there is something to give");
    assert!(fills.is_wanted(&round));
    fills.adopt(&map(2, &[(3, 3)]), US);
    assert!(!fills.is_wanted(&round));
    fills.ended(&round, Pass::Whole);
    assert_eq!(fills.filled(device(1)), []);
    fills.adopt(&map(3, &[(3, 2)]), MemberId(2));
    assert_eq!(begin(&mut fills), None, "another gives that");
}

#[test]
fn what_is_given_no_room_is_offered_once_more_where_it_would_be_missed() {
    let offered_again = [(true, true, false), (true, false, true)];
    assert!(
        offered_again.iter().all(|(first, last, pinned)| Fate::declined(*first, *last, *pinned).is_none())
    );
    assert_eq!(Fate::declined(true, false, false), Some(Fate::Declined));
    assert_eq!(Fate::declined(false, true, false), Some(Fate::Declined));
    assert_eq!(Fate::declined(false, true, true), Some(Fate::Waits));
}

#[test]
fn what_cannot_be_read_is_lost_with_whoever_leaves_as_the_last_that_holds_it() {
    let mut map = map(1, &[]);
    let fates =
        |map: &ClusterMap| [true, false].map(|is_late| Fate::unread(map, device(1), Slot(3), is_late));
    let fate = |late, lost| [Fate::Late { is_last: late }, Fate::Unreadable { is_last: lost }];
    assert_eq!(fates(&map), fate(false, false));
    Arc::make_mut(&mut map.slots)[3] = ReplicaSet(vec![device(1)]);
    assert_eq!(fates(&map), fate(false, true), "late is not gone");
    map.members.get_mut(&US).expect("it is there").drains = true;
    assert_eq!(fates(&map), fate(true, true));
}
