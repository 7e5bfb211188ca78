//! Stories of what a device lets go of for members that are being emptied.

use super::*;
use crate::test_map::{device, founded, member};
use kvhive_protocol::{Filling, Member, ReplicaSet};

const GOES: MemberId = MemberId(1);
const GOES_TOO: MemberId = MemberId(4);

/// Slots 0 to 4: on its way from member 1 to 2; on 2 alone; on 2 and 3; on 3, where 2 had it before; on 2 and 4.
fn map(epoch: u64, drains: &[MemberId]) -> Arc<ClusterMap> {
    let mut map = ClusterMap { epoch: Epoch(epoch), ..founded() };
    for id in 1..=4 {
        map.members.insert(MemberId(id), Member { drains: drains.contains(&MemberId(id)), ..member(id) });
    }
    let slots = Arc::make_mut(&mut map.slots);
    for (slot, set) in [&[1, 2][..], &[2], &[2, 3], &[3], &[2, 4]].into_iter().enumerate() {
        slots[slot] = ReplicaSet(set.iter().map(|member| device(*member)).collect());
    }
    let filling = Filling { devices: vec![device(2)], streams: true };
    Arc::make_mut(&mut map.filling).insert(Slot(0), filling);
    Arc::new(map)
}

fn block(slot: u16) -> Unsettled {
    numbered(slot, slot.into())
}

fn numbered(slot: u16, number: u64) -> Unsettled {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    Unsettled { tenant: TenantId(0), key: BlockKey::from_bytes(key), slot: Slot(slot), bytes: 10 }
}

fn adopted(drains: &[MemberId]) -> Displacing {
    let mut displacing = Displacing::default();
    displacing.adopt(&map(1, drains), device(2));
    displacing
}

fn sum(blocks: u64, lost: u64) -> Displaced {
    Displaced { blocks, lost_blocks: lost, lost_bytes: 10 * lost }
}

fn losses(unsettled_blocks: u64, named: &[Unsettled]) -> Losses {
    let named = named.iter().map(|block| LostBlock::of(block.tenant, &block.key, block.bytes)).collect();
    Losses { unsettled_blocks, named }
}

#[test]
fn a_block_is_lost_that_nobody_holds_who_stays_when_the_others_were_asked() {
    let mut displacing = adopted(&[GOES]);
    assert_eq!([0, 1].map(|slot| displacing.empties(Slot(slot))), [Some(GOES), None]);
    for slot in 0..4 {
        displacing.displaced(GOES, &block(slot));
    }
    assert_eq!(displacing.told(), [(GOES, sum(3, 1))], "only where nobody else has its slot that is known");
    assert_eq!(displacing.losses(), [(GOES, losses(2, &[block(1)]))]);
    let asked = displacing.ask(9);
    assert_eq!(asked, [block(0), block(2)]);
    // Who is being emptied may give it away yet.
    displacing.settle(&asked[0], Holder::Leaves(GOES));
    displacing.settle(&asked[0], Holder::IsGiven);
    displacing.settle(&asked[1], Holder::Stays);
    assert_eq!(displacing.losses(), [(GOES, losses(1, &[block(1)]))]);
    displacing.settle(&asked[0], Holder::Nobody);
    displacing.settle(&asked[0], Holder::Nobody);
    assert_eq!((displacing.told(), displacing.ask(9)), (vec![(GOES, sum(3, 2))], vec![]));
    assert_eq!(displacing.losses(), [(GOES, losses(0, &[block(1), block(0)]))]);
}

#[test]
fn a_block_that_only_another_holds_that_leaves_too_is_that_ones_to_lose() {
    let mut displacing = adopted(&[GOES, GOES_TOO]);
    displacing.displaced(GOES, &block(4));
    displacing.settle(&block(4), Holder::Leaves(GOES_TOO));
    assert_eq!(displacing.losses(), [(GOES_TOO, losses(1, &[]))], "the first need not be waited for");
    displacing.settle(&block(4), Holder::Nobody);
    assert_eq!(displacing.told(), [(GOES, sum(1, 0)), (GOES_TOO, sum(0, 1))]);
}

#[test]
fn what_a_device_that_leaves_finds_no_room_for_is_not_lost_while_it_may_be_given_elsewhere() {
    let mut displacing = Displacing::default();
    displacing.adopt(&map(1, &[GOES]), device(1));
    for _ in 0..2 {
        displacing.unplaced(GOES, &block(0));
    }
    assert_eq!((displacing.told(), displacing.losses()), (vec![], vec![(GOES, losses(1, &[]))]));
    displacing.settle(&block(0), Holder::Nobody);
    assert_eq!(displacing.told(), [(GOES, sum(0, 1))]);
}

#[test]
fn who_holds_a_block_is_read_off_what_all_say() {
    let map = map(1, &[GOES]);
    let holder = |said: &[(u32, Option<bool>)]| {
        let said: Vec<_> = said.iter().map(|(member, is_there)| (device(*member), *is_there)).collect();
        Holder::of(&map, Slot(0), &said)
    };
    assert_eq!(holder(&[(1, Some(true)), (2, None), (3, Some(true))]), Some(Holder::Stays));
    assert_eq!(holder(&[(1, Some(true)), (2, Some(true))]), Some(Holder::IsGiven), "it may be another's yet");
    assert_eq!(holder(&[(1, Some(true)), (2, Some(false))]), Some(Holder::Leaves(GOES)));
    assert_eq!(holder(&[(2, Some(false)), (3, None)]), None, "the last may hold it");
    assert_eq!(holder(&[(2, Some(false)), (3, Some(false))]), Some(Holder::Nobody));
    assert_eq!(holder(&[]), Some(Holder::Nobody), "its slot is nowhere");
}

#[test]
fn all_that_wait_are_asked_for_in_turn_and_they_are_bounded() {
    let mut displacing = adopted(&[GOES]);
    for number in 0..=MAX_UNSETTLED as u64 {
        displacing.displaced(GOES, &numbered(2, number));
        displacing.displaced(GOES, &numbered(0, number));
    }
    // Beyond the bound the map says it: of slot 2 somebody stays.
    assert_eq!(displacing.losses()[0].1.unsettled_blocks, MAX_UNSETTLED as u64);
    assert_eq!(displacing.told()[0].1.lost_blocks, 1);
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(displacing.ask(1000).iter().map(|one| one.key));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), MAX_UNSETTLED);
    for number in 0..MAX_UNSETTLED as u64 {
        displacing.settle(&numbered(2, number), Holder::Nobody);
    }
    assert_eq!(displacing.losses()[0].1.named.len(), MAX_LOST_NAMED, "the others are a number");
    assert_eq!(displacing.told()[0].1.lost_blocks, MAX_UNSETTLED as u64 + 1);
}

#[test]
fn nobody_is_emptied_any_more_and_nothing_is_told() {
    let mut displacing = adopted(&[GOES]);
    displacing.displaced(GOES, &block(1));
    displacing.displaced(GOES, &block(2));
    displacing.adopt(&map(2, &[]), device(2));
    assert_eq!((displacing.empties(Slot(0)), displacing.told(), displacing.losses()), (None, vec![], vec![]));
    assert_eq!(displacing.ask(9), []);
}

#[test]
fn who_is_emptied_once_more_is_counted_anew_also_by_who_never_saw_that_it_was_not() {
    let mut displacing = adopted(&[GOES]);
    displacing.displaced(GOES, &block(1));
    displacing.adopt(&map(2, &[GOES]), device(2));
    assert_eq!(displacing.told(), [(GOES, sum(1, 1))]);
    let mut again = map(4, &[GOES]);
    Arc::make_mut(&mut again).members.get_mut(&GOES).expect("it is there").drains_since = Epoch(4);
    displacing.adopt(&again, device(2));
    assert_eq!((displacing.told(), displacing.losses()), (vec![], vec![]));
}
