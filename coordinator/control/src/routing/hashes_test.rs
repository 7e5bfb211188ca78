//! Stories of hashes in full, and what always holds of them.

use super::*;
use crate::routing::content;
use proptest::prelude::*;

/// As vLLM makes one: all bytes matter, and the last eight are its number.
fn hash(number: u8) -> Vec<u8> {
    (0..32).map(|at| number.wrapping_mul(31).wrapping_add(at)).collect()
}

fn number(number: u8) -> BlockHash {
    BlockHash(hash(number)[24..].to_vec())
}

fn whole(numbers: &[u8]) -> Vec<BlockHash> {
    numbers.iter().map(|number| BlockHash(hash(*number))).collect()
}

fn made_of(tokens: std::ops::Range<u32>) -> Option<Content> {
    Some(content(&tokens.collect::<Vec<u32>>(), None, []))
}

fn of_tokens(tokens: std::ops::Range<u32>, salt: Option<&str>) -> Prompt {
    Prompt::Tokens { tokens: tokens.collect(), adapter: None, salt: salt.map(str::to_owned) }
}

fn of_numbers(numbers: &[u8]) -> Prompt {
    Prompt::Hashes { hashes: numbers.iter().map(|one| number(*one)).collect(), tokens: 0 }
}

/// Three blocks of four tokens, the last one told of before the others.
fn three() -> Hashes {
    let mut hashes = Hashes::new(100);
    hashes.learn(Some(EngineHash::of(&hash(2))), [(&hash(3)[..], made_of(8..12))]);
    hashes.learn(None, [(&hash(1)[..], made_of(0..4)), (&hash(2)[..], made_of(4..8))]);
    hashes
}

#[test]
fn a_prompts_hashes_are_known_in_full_by_its_tokens_and_by_their_numbers() {
    let hashes = three();
    assert_eq!(hashes.of(&of_tokens(0..15, None), 4), whole(&[1, 2, 3]));
    assert_eq!(hashes.of(&of_numbers(&[1, 2, 3]), 4), whole(&[1, 2, 3]));
    // Of other tokens, a salt, or blocks of another size nothing is known.
    for (prompt, block_tokens) in
        [(of_tokens(1..13, None), 4), (of_tokens(0..12, Some("mine")), 4), (of_tokens(0..12, None), 6)]
    {
        assert_eq!(hashes.of(&prompt, block_tokens), []);
    }
}

#[test]
fn what_is_not_known_ends_tokens_and_leaves_hashes_as_they_are() {
    let hashes = three();
    assert_eq!(hashes.of(&of_tokens(0..20, None), 4), whole(&[1, 2, 3]));
    let mixed = Prompt::Hashes {
        hashes: vec![number(1), number(9), BlockHash(hash(2)), BlockHash(vec![3])],
        tokens: 0,
    };
    let [first, second] = [whole(&[1]).remove(0), whole(&[2]).remove(0)];
    assert_eq!(hashes.of(&mixed, 4), [first, number(9), second, BlockHash(vec![3])]);
}

#[test]
fn a_hash_that_another_engine_cuts_stays_whole() {
    let mut hashes = three();
    hashes.learn(None, [(&number(1).0[..], made_of(0..4))]);
    assert_eq!(hashes.of(&of_tokens(0..8, None), 4), whole(&[1, 2]));
    // And one that was cut becomes whole.
    hashes.learn(None, [(&number(7).0[..], None)]);
    assert_eq!(hashes.of(&of_numbers(&[7]), 4), [number(7)]);
    hashes.learn(None, [(&hash(7)[..], None)]);
    assert_eq!(hashes.of(&of_numbers(&[7]), 4), whole(&[7]));
}

#[test]
fn what_was_told_longest_ago_is_forgotten_first() {
    let mut hashes = three();
    hashes.learn(None, [(&hash(1)[..], made_of(0..4))]);
    assert_eq!((hashes.len(), hashes.room(), hashes.dropped()), (3, 100, 0));
    hashes.set_room(2);
    assert_eq!((hashes.len(), hashes.room(), hashes.dropped()), (2, 2, 1));
    assert_eq!(hashes.of(&of_tokens(0..12, None), 4), whole(&[1, 2]), "the third was told first");
    hashes.set_room(0);
    assert!(hashes.is_empty() && hashes.dropped() == 3);
}

proptest! {
    #[test]
    fn whatever_is_told_holds(
        told in prop::collection::vec((prop::option::of(0u8..6), 0u8..6, any::<bool>(), prop::option::of(0u32..4)), 0..60),
        room in 0usize..8,
    ) {
        let mut hashes = Hashes::new(room);
        for (parent, one, is_cut, made) in told {
            let bytes = if is_cut { number(one).0 } else { hash(one) };
            let parent = parent.map(|parent| EngineHash::of(&hash(parent)));
            hashes.learn(parent, [(&bytes[..], made.and_then(|made| made_of(made..made + 4)))]);
            prop_assert_eq!(hashes.invariants(), Ok(()));
            for hash in hashes.of(&of_tokens(0..8, None), 4) {
                prop_assert!((0..6).any(|one| hash.0.ends_with(&number(one).0)));
            }
        }
    }
}
