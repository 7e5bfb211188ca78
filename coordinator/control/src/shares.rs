//! How many replicas of slots each device may get: its share by weight, as far as failure domains allow. Where a zone must have
//! a replica of every slot, however small it is, its devices share those in the same way.

use crate::placement::Candidate;

/// Fraction bits of amounts of slots while they are divided.
const FRACTION_BITS: u32 = 20;
/// Zones, racks, hosts, members; below them devices.
const MEMBERS: usize = 3;

/// Returns how many of the first `level` replicas of `slots` slots each candidate may get: its share, rounded up.
pub(crate) fn shares(candidates: &[Candidate], slots: u32, level: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..candidates.len() as u32).collect();
    order.sort_by_key(|at| candidates[*at as usize].place.0);
    let mut tree =
        Tree { candidates, slot: u128::from(slots) << FRACTION_BITS, shares: vec![0; candidates.len()] };
    tree.divide(&order, 0, tree.slot * u128::from(level));
    tree.shares
}

struct Tree<'a> {
    candidates: &'a [Candidate],
    /// One replica of every slot.
    slot: u128,
    shares: Vec<u32>,
}

/// A domain while its parent's amount is divided.
struct Part {
    weight: u128,
    low: u128,
    high: u128,
    amount: Option<u128>,
}

impl Tree<'_> {
    fn divide(&mut self, group: &[u32], depth: usize, amount: u128) {
        if depth > MEMBERS {
            let total = self.weight(group);
            for at in group {
                let share = (u128::from(self.candidates[*at as usize].weight) * amount).div_ceil(total);
                self.shares[*at as usize] = share.div_ceil(1 << FRACTION_BITS) as u32;
            }
            return;
        }
        let children: Vec<&[u32]> =
            group.chunk_by(|one, next| self.key(*one, depth) == self.key(*next, depth)).collect();
        let sizes: Vec<Size> = children.iter().map(|child| self.size(child, depth + 1)).collect();
        let (below, above) = (spread(&sizes, amount / self.slot), spread(&sizes, amount.div_ceil(self.slot)));
        let mut parts: Vec<Part> = children
            .iter()
            .zip(&sizes)
            .map(|(child, size)| Part {
                weight: self.weight(child),
                low: self.slot * below.of(size).0,
                high: self.slot * above.of(size).1,
                amount: None,
            })
            .collect();
        fill(amount, &mut parts);
        for (child, part) in children.into_iter().zip(parts) {
            self.divide(child, depth + 1, part.amount.unwrap_or(0));
        }
    }

    fn key(&self, at: u32, depth: usize) -> u32 {
        let candidate = &self.candidates[at as usize];
        candidate.place.0.get(depth).copied().unwrap_or(candidate.device.member.0)
    }

    fn weight(&self, group: &[u32]) -> u128 {
        group.iter().map(|at| u128::from(self.candidates[*at as usize].weight)).sum()
    }

    fn size(&self, group: &[u32], depth: usize) -> Size {
        let count = |depth| {
            group.chunk_by(|one, next| self.key(*one, depth) == self.key(*next, depth)).count() as u128
        };
        let members = count(MEMBERS);
        Size { members, domains: if depth < MEMBERS { count(depth) } else { members } }
    }
}

/// How many members a domain has, and how many domains of the next kind.
struct Size {
    members: u128,
    domains: u128,
}

/// How replicas of one slot are spread over domains.
struct Spread {
    /// So many are on each that has as many members.
    each: u128,
    /// As many domains get one more.
    left: u128,
    /// Domains that would have it in a free domain of the next kind: they come first.
    first: u128,
}

impl Spread {
    /// Returns how many replicas of a slot a domain has at least and at most.
    fn of(&self, size: &Size) -> (u128, u128) {
        let low = self.each.min(size.members);
        let (has_room, is_first) = (size.members > self.each, size.domains > self.each);
        let surely = has_room && is_first && self.left >= self.first;
        let perhaps = has_room && self.left > 0 && (is_first || self.left > self.first);
        (low + u128::from(surely), low + u128::from(perhaps))
    }
}

/// Spreads `count` replicas of one slot over domains.
fn spread(sizes: &[Size], count: u128) -> Spread {
    let (mut each, mut left) = (0, count);
    loop {
        let next = sizes.iter().filter(|size| size.members > each).count() as u128;
        if next == 0 || next > left {
            let first = sizes.iter().filter(|size| size.domains > each).count() as u128;
            return Spread { each, left, first };
        }
        left -= next;
        each += 1;
    }
}

/// Divides an amount by weight, with nobody under its lowest or over its highest. Who is beyond a bound is set to it, those
/// first whose bound matters more in sum, and the rest divided again.
fn fill(amount: u128, parts: &mut [Part]) {
    loop {
        let mut left = amount;
        let mut weights = 0;
        for part in parts.iter() {
            left = left.saturating_sub(part.amount.unwrap_or(0));
            weights += if part.amount.is_none() { part.weight } else { 0 };
        }
        if weights == 0 {
            return;
        }
        let (mut over, mut under) = (0, 0);
        for part in parts.iter().filter(|part| part.amount.is_none()) {
            let share = left * part.weight / weights;
            over += share.saturating_sub(part.high);
            under += part.low.saturating_sub(share);
        }
        for part in parts.iter_mut().filter(|part| part.amount.is_none()) {
            let share = left * part.weight / weights;
            part.amount = if over == 0 && under == 0 {
                Some(share)
            } else if over >= under && share > part.high {
                Some(part.high)
            } else if under >= over && share < part.low {
                Some(part.low)
            } else {
                None
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domains::Place;
    use kvhive_protocol::{DeviceId, MemberId};

    /// One member a weight, the zone it is in before it.
    fn candidates(of: &[(u32, u64)]) -> Vec<Candidate> {
        let one = |(at, (zone, weight)): (usize, &(u32, u64))| Candidate {
            device: DeviceId::new(MemberId(at as u32 + 1), 0),
            weight: *weight,
            place: Place([*zone; 3]),
            takes: true,
        };
        of.iter().enumerate().map(one).collect()
    }

    #[test]
    fn shares_go_by_weight() {
        assert_eq!(shares(&candidates(&[(0, 1), (0, 2), (0, 5)]), 80, 1), [10, 20, 50]);
        assert_eq!(shares(&candidates(&[(0, 1), (0, 1), (0, 1)]), 100, 1), [34, 34, 34]);
    }

    #[test]
    fn nobody_gets_more_than_one_replica_of_each_slot() {
        assert_eq!(shares(&candidates(&[(0, 90), (0, 1)]), 100, 2), [100, 100]);
        assert_eq!(shares(&candidates(&[(0, 90), (0, 2), (0, 1)]), 100, 2), [100, 67, 34]);
    }

    #[test]
    fn a_small_zone_has_a_replica_of_each_slot_and_its_members_share_them() {
        let two = candidates(&[(0, 40), (0, 40), (1, 3), (1, 1)]);
        assert_eq!(shares(&two, 100, 1), [48, 48, 4, 2]);
        assert_eq!(shares(&two, 100, 2), [50, 50, 75, 25]);
        assert_eq!(shares(&two, 100, 3), [100, 100, 75, 25]);
        assert_eq!(shares(&two, 100, 4), [100, 100, 100, 100]);
    }

    #[test]
    fn more_replicas_never_mean_a_smaller_share() {
        let odd = candidates(&[(0, 7), (1, 1), (1, 90), (2, 5), (2, 5), (2, 13), (3, 1)]);
        let mut before = vec![0; odd.len()];
        for level in 1..=7 {
            let now = shares(&odd, 4096, level);
            assert!(
                before.iter().zip(&now).all(|(before, now)| before <= now),
                "{level}: {before:?} {now:?}"
            );
            assert!(now.iter().sum::<u32>() >= 4096 * level);
            before = now;
        }
    }
}
