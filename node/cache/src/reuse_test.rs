//! The curve, compared with caches of each size.

use super::*;
use proptest::prelude::*;

fn print_of(block: u64) -> u64 {
    // As even as a key's own bytes.
    let mut mixed = block.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^= mixed >> 29;
    mixed = mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ mixed >> 32
}

fn share_within(report: &Reuse, blocks: u64) -> f64 {
    let within: u64 = report.counts[..=reuse_bucket(blocks)].iter().sum();
    within as f64 / (report.counts.iter().sum::<u64>() + report.never).max(1) as f64
}

/// Hit share of a cache of whole requests' blocks that lets go what was used longest ago, tails first.
fn lru(requests: &[Vec<u64>], room: usize) -> f64 {
    let mut resident: Vec<u64> = Vec::new();
    let (mut hits, mut asked) = (0, 0);
    for request in requests {
        asked += request.len();
        hits += request.iter().take_while(|block| resident.contains(block)).count();
        for block in request.iter().rev() {
            resident.retain(|other| other != block);
            resident.push(*block);
        }
        let over = resident.len().saturating_sub(room);
        resident.drain(..over);
    }
    hits as f64 / asked.max(1) as f64
}

#[test]
fn the_curve_says_what_caches_of_other_sizes_would_hit() {
    let mut dice = 5_u64;
    let mut draw = |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % below
    };
    // Conversations that come back, near ones more often.
    let requests: Vec<Vec<u64>> = (0..3000_u64)
        .map(|at| {
            let session = at.saturating_sub(draw(at.min(200) + 1).min(draw(200)));
            (0..3 + session % 5).map(|turn| session * 8 + turn).collect()
        })
        .collect();
    let mut curve = ReuseCurve::new(400);
    for request in &requests {
        curve.asked(request.iter().map(|block| print_of(*block)));
    }
    for room in [100, 200, 400, 800, 1600] {
        let (said, is) = (share_within(curve.report(), room as u64), lru(&requests, room));
        assert!((said - is).abs() < 0.05, "{room}: {said} {is}");
    }
}

#[test]
fn a_large_shard_is_sampled_and_memory_stays_bounded() {
    let mut curve = ReuseCurve::new(1 << 20);
    assert_eq!(curve.one_in, 1024);
    // A loop over 1.5 times the room: nothing hits at once the size, everything at twice.
    for at in 0..6_u64 * 1_572_864 / 64 {
        let first = at * 64 % 1_572_864;
        curve.asked((first..first + 64).map(print_of));
    }
    let report = curve.report();
    assert!(share_within(report, 1 << 20) < 0.01, "{report:?}");
    assert!(share_within(report, 1 << 21) > 0.75, "{report:?}");
    assert!(curve.memory_bytes() < 512 << 10, "{}", curve.memory_bytes());
    assert!(curve.memory_bytes() <= ReuseCurve::bytes());
    // A small shard's samples are all blocks, and a request may name more than it remembers.
    let mut curve = ReuseCurve::new(64);
    curve.asked((0..65_536).map(print_of));
    assert!(curve.memory_bytes() <= ReuseCurve::bytes(), "{}", curve.memory_bytes());
}

proptest! {
    #[test]
    fn turns_and_sums_never_disagree(requests in prop::collection::vec(prop::collection::vec(0_u64..300, 1..20), 1..200)) {
        let mut curve = ReuseCurve::new(64);
        for request in requests {
            let asked = curve.report.asked;
            curve.asked(request.iter().map(|block| print_of(*block)));
            prop_assert_eq!(curve.report.asked, asked + request.len() as u64);
            prop_assert_eq!(curve.sum(curve.turns.len() as u32) as usize, curve.turn_of.len());
            for (print, turn) in &curve.turn_of {
                prop_assert_eq!(curve.turns[*turn as usize], *print);
            }
            prop_assert_eq!(curve.report.counts.iter().sum::<u64>() + curve.report.never, curve.report.asked);
        }
    }
}
