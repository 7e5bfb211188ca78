//! Stories of an engine's cache as its events tell it, and a model of it.

use super::super::names::content;
use super::*;
use kvhive_protocol::routing::{BlockHash, Prompt};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Four tokens a block: block `at` of a prompt has the tokens `4 at` and on, plus the prompt's own number.
fn tokens(prompt: u32, blocks: u32) -> Vec<u32> {
    (0..4 * blocks).map(|token| prompt * 1000 + token).collect()
}

fn hash(prompt: u32, at: u32) -> EngineHash {
    EngineHash((u64::from(prompt) << 32) | (u64::from(at) + 1))
}

fn stored(prompt: u32, range: std::ops::Range<u32>, medium: Medium, group: u8) -> CacheEvent {
    let all = tokens(prompt, range.end);
    let block = |at: u32| StoredBlock {
        hash: hash(prompt, at),
        content: Some(content(&all[4 * at as usize..4 * at as usize + 4], None, [])),
    };
    CacheEvent::Stored {
        parent: range.start.checked_sub(1).map(|at| hash(prompt, at)),
        blocks: range.map(block).collect(),
        medium,
        group,
    }
}

fn removed(prompt: u32, at: u32, medium: Medium) -> CacheEvent {
    CacheEvent::Removed { hashes: vec![hash(prompt, at)], medium, group: 0 }
}

fn asked(prompt: u32, blocks: u32) -> Asked {
    Asked::of(&Prompt::Tokens { tokens: tokens(prompt, blocks), adapter: None, salt: None }, 4)
}

fn told(events: &[CacheEvent]) -> Index {
    let mut index = Index::new(1000);
    for event in events {
        index.apply(event);
        assert_eq!(index.invariants(), Ok(()));
    }
    index
}

fn own(device: u64, host: u64, disk: u64) -> Own {
    Own { device, host, disk }
}

#[test]
fn a_prompt_is_found_by_its_tokens_and_by_the_engines_hashes() {
    let index = told(&[stored(1, 0..5, Medium::Device, 0)]);
    assert_eq!(index.covers(&asked(1, 5)), own(5, 0, 0));
    assert_eq!(index.covers(&asked(1, 9)), own(5, 0, 0));
    assert_eq!(index.covers(&asked(2, 5)), own(0, 0, 0));
    let by_hash = |prompt| {
        let hashes = (0..7).map(|at| BlockHash(hash(prompt, at).0.to_be_bytes().to_vec())).collect();
        Asked::of(&Prompt::Hashes { hashes, tokens: 28 }, 4)
    };
    assert_eq!(index.covers(&by_hash(1)), own(5, 0, 0));
    assert_eq!(index.covers(&by_hash(2)), own(0, 0, 0));
}

#[test]
fn a_block_that_is_gone_ends_what_is_covered() {
    let mut index = told(&[stored(1, 0..5, Medium::Device, 0), removed(1, 2, Medium::Device)]);
    assert_eq!(index.covers(&asked(1, 5)), own(2, 0, 0));
    index.apply(&stored(1, 2..3, Medium::Device, 0));
    assert_eq!(index.covers(&asked(1, 5)), own(5, 0, 0));
    index.apply(&CacheEvent::Cleared);
    assert_eq!((index.covers(&asked(1, 5)), index.len()), (own(0, 0, 0), 0));
}

#[test]
fn children_of_a_parent_that_comes_late_are_found_when_it_has_come() {
    let mut index = told(&[stored(1, 3..5, Medium::Device, 0), stored(1, 1..3, Medium::Device, 0)]);
    assert_eq!(index.covers(&asked(1, 5)), own(0, 0, 0));
    index.apply(&stored(1, 0..1, Medium::Device, 0));
    assert_eq!(index.covers(&asked(1, 5)), own(5, 0, 0));
    assert_eq!(index.invariants(), Ok(()));
}

#[test]
fn an_event_that_says_no_tokens_adds_a_medium_to_what_is_known() {
    let without = |medium| CacheEvent::Stored {
        parent: None,
        blocks: (0..3).map(|at| StoredBlock { hash: hash(1, at), content: None }).collect(),
        medium,
        group: 0,
    };
    let mut index = told(&[stored(1, 0..3, Medium::Device, 0), without(Medium::Host)]);
    for at in 0..3 {
        index.apply(&removed(1, at, Medium::Device));
    }
    assert_eq!(index.covers(&asked(1, 3)), own(0, 3, 0));
    // And the other way round: the tokens come after.
    let index = told(&[without(Medium::Disk), stored(1, 0..3, Medium::Host, 0)]);
    assert_eq!(index.covers(&asked(1, 3)), own(0, 3, 0));
}

#[test]
fn a_block_counts_when_every_group_of_layers_has_it() {
    let mut index = told(&[stored(1, 0..4, Medium::Device, 0), stored(1, 0..2, Medium::Host, 1)]);
    assert_eq!(index.covers(&asked(1, 4)), own(0, 2, 0));
    index.apply(&stored(1, 0..4, Medium::Device, 1));
    assert_eq!(index.covers(&asked(1, 4)), own(4, 0, 0));
    index.apply(&stored(1, 0..4, Medium::Device, MAX_GROUPS));
    assert_eq!(index.covers(&asked(1, 4)), own(4, 0, 0), "such a group is not told apart");
}

#[test]
fn beyond_its_room_it_forgets_the_oldest_and_promises_less() {
    let mut index = Index::new(10);
    for prompt in 0..5 {
        index.apply(&stored(prompt, 0..4, Medium::Device, 0));
        assert_eq!(index.invariants(), Ok(()));
    }
    assert_eq!((index.len(), index.dropped()), (10, 10));
    let found: Vec<u64> = (0..5).map(|prompt| index.covers(&asked(prompt, 4)).blocks()).collect();
    assert_eq!(found, [0, 0, 0, 4, 4], "of prompt 2 the beginning went");
    index.set_room(3);
    assert_eq!((index.len(), index.covers(&asked(4, 4)).blocks()), (3, 0));
}

#[test]
fn each_engine_has_its_share_of_the_room() {
    assert_eq!(room(0), MAX_KNOWN_BLOCKS);
    assert_eq!(room(1), MAX_KNOWN_BLOCKS);
    assert_eq!(room(256) * 256, MAX_INDEXED_BLOCKS);
}

fn events() -> impl Strategy<Value = Vec<CacheEvent>> {
    let medium = prop_oneof![Just(Medium::Device), Just(Medium::Host), Just(Medium::Disk)];
    let one = prop_oneof![
        6 => (0..4u32, 0..6u32, 1..4u32, medium.clone())
            .prop_map(|(prompt, from, count, medium)| stored(prompt, from..from + count, medium, 0)),
        4 => (0..4u32, 0..9u32, medium).prop_map(|(prompt, at, medium)| removed(prompt, at, medium)),
        1 => Just(CacheEvent::Cleared),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn the_index_says_of_every_prompt_what_a_plain_list_says(events in events()) {
        let mut index = Index::new(1000);
        let mut plain: BTreeMap<EngineHash, BTreeSet<Medium>> = BTreeMap::new();
        // Blocks whose every ancestor was heard of while they were there, since the last clear.
        for event in &events {
            index.apply(event);
            prop_assert_eq!(index.invariants(), Ok(()));
            match event {
                CacheEvent::Stored { blocks, medium, .. } => for block in blocks {
                    plain.entry(block.hash).or_default().insert(*medium);
                },
                CacheEvent::Removed { hashes, medium, .. } => for hash in hashes {
                    if let Some(media) = plain.get_mut(hash) {
                        media.remove(medium);
                        if media.is_empty() {
                            plain.remove(hash);
                        }
                    }
                },
                CacheEvent::Cleared => plain.clear(),
            }
        }
        prop_assert_eq!(index.len(), plain.len());
        for prompt in 0..4 {
            let mut expected = Own::default();
            for at in 0..9 {
                match plain.get(&hash(prompt, at)).and_then(|media| media.first()) {
                    Some(Medium::Device) => expected.device += 1,
                    Some(Medium::Host) => expected.host += 1,
                    Some(Medium::Disk) => expected.disk += 1,
                    None => break,
                }
            }
            prop_assert_eq!(index.covers(&asked(prompt, 9)), expected);
        }
    }

    #[test]
    fn a_small_index_never_promises_more_than_a_large_one(events in events(), room in 0..12usize) {
        let (mut small, mut large) = (Index::new(room), Index::new(1000));
        for event in &events {
            small.apply(event);
            large.apply(event);
            prop_assert_eq!(small.invariants(), Ok(()));
            prop_assert!(small.len() <= room);
            for prompt in 0..4 {
                let asked = asked(prompt, 9);
                prop_assert!(small.covers(&asked).blocks() <= large.covers(&asked).blocks());
            }
        }
    }
}
