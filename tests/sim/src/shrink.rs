//! Finds which of a failing seed's faults its failure needs.

use crate::breach::Broken;
use crate::world::{Muted, World};

/// Leaves out of a failing seed what its failure does not need: weather, then halves, quarters and so on of its faults, down to each
/// by itself (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002). What is left fails by the same rule.
pub fn shrink(broken: Broken) -> (Muted, Broken) {
    let (seed, rule) = (broken.seed, broken.rule);
    let mut best = (Muted::default(), broken);
    let fails = |muted: &Muted| World::run_without(seed, muted).err().filter(|broken| broken.rule == rule);
    let calm = Muted { weather: true, ..Muted::default() };
    if let Some(broken) = fails(&calm) {
        best = (calm, broken);
    }
    let mut parts = 1;
    loop {
        let left: Vec<u64> =
            best.1.faults.iter().filter_map(|told| told.split(':').next()?.parse().ok()).collect();
        let size = left.len().div_ceil(parts);
        if size == 0 {
            return best;
        }
        let without = |some: &[u64]| {
            let mut muted = best.0.clone();
            muted.faults.extend(some);
            Some((fails(&muted)?, muted))
        };
        match left.chunks(size).find_map(without) {
            Some((broken, muted)) => best = (muted, broken),
            None if size == 1 => return best,
            None => parts *= 2,
        }
    }
}
