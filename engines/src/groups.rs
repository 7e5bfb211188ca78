//! Groups of layers that share a block table, and which of their blocks make up how many tokens.

use std::ops::Range;
use thiserror::Error;

/// The most groups that a model has; those in use have fewer than ten.
pub const MAX_GROUPS: usize = 64;

/// Layers that share a block table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// Tokens of one of its blocks.
    pub block_tokens: u32,
    /// How many tokens back its layers look, the token itself included; none where they look back to the first.
    pub window: Option<u32>,
}

/// All groups of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Groups {
    groups: Vec<Group>,
    hash_tokens: u32,
    unit_tokens: u32,
}

/// Why groups do not make a model.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadGroups {
    /// None, or more than there may be.
    #[error("{0} groups of layers: allowed is 1 to {MAX_GROUPS}")]
    Count(usize),
    /// A size that is no whole number of hashes, or none.
    #[error("blocks of {block_tokens} tokens where one hash names {hash_tokens}")]
    Size {
        /// Of a group.
        block_tokens: u32,
        /// Of a hash.
        hash_tokens: u32,
    },
    /// The sizes have no common multiple that a prompt could have.
    #[error("the groups' sizes have no usable common multiple")]
    Unit,
}

impl Groups {
    /// Checks groups whose blocks an engine names by hashes of `hash_tokens` tokens each.
    ///
    /// # Errors
    /// When they are not what any model has.
    pub fn new(groups: Vec<Group>, hash_tokens: u32) -> Result<Groups, BadGroups> {
        if groups.is_empty() || groups.len() > MAX_GROUPS {
            return Err(BadGroups::Count(groups.len()));
        }
        let mut unit_tokens = 1u32;
        for Group { block_tokens, .. } in &groups {
            if hash_tokens == 0 || *block_tokens == 0 || block_tokens % hash_tokens != 0 {
                return Err(BadGroups::Size { block_tokens: *block_tokens, hash_tokens });
            }
            let shared = greatest_divisor(unit_tokens, *block_tokens);
            unit_tokens = (unit_tokens / shared).checked_mul(*block_tokens).ok_or(BadGroups::Unit)?;
        }
        Ok(Groups { groups, hash_tokens, unit_tokens })
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Says whether there are none, which never is so.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns tokens of one block of a group.
    pub fn block_tokens(&self, group: usize) -> u32 {
        self.groups[group].block_tokens
    }

    /// Returns the most tokens up to this many that are whole blocks in every group.
    pub fn whole(&self, tokens: u32) -> u32 {
        tokens - tokens % self.unit_tokens
    }

    /// Returns how many tokens so many hashes name.
    pub fn named(&self, hashes: usize) -> u32 {
        u32::try_from(hashes).unwrap_or(u32::MAX).saturating_mul(self.hash_tokens)
    }

    /// Says whether layers of some group forget: then a hit is good at its very end, and not before.
    pub fn any_forgets(&self) -> bool {
        self.groups.iter().any(|group| group.window.is_some())
    }

    /// Returns the blocks of a group that a hit of the tokens `from..end` needs, where those before `from` are there. Both ends are
    /// whole blocks in every group.
    pub fn needed(&self, group: usize, from: u32, end: u32) -> Range<usize> {
        let Group { block_tokens, window } = self.groups[group];
        let seen = window.map_or(0, |window| end.saturating_sub(window.saturating_sub(1)));
        let first = from.max(seen) / block_tokens;
        first.min(end / block_tokens) as usize..(end / block_tokens) as usize
    }

    /// Returns how many blocks of a group are whole within so many tokens.
    pub fn blocks(&self, group: usize, tokens: u32) -> usize {
        (tokens / self.groups[group].block_tokens) as usize
    }

    /// Returns which hash names a block: the last one in it, which is chained from all before.
    pub fn hash_of(&self, group: usize, block: usize) -> usize {
        let each = (self.groups[group].block_tokens / self.hash_tokens) as usize;
        (block + 1) * each - 1
    }
}

fn greatest_divisor(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(block_tokens: u32, window: Option<u32>) -> Group {
        Group { block_tokens, window }
    }

    #[test]
    fn layers_that_look_back_to_the_first_token_need_every_block() {
        let groups = Groups::new(vec![group(16, None)], 16).expect("one group");
        assert_eq!(groups.needed(0, 0, 64), 0..4);
        assert_eq!(groups.needed(0, 32, 64), 2..4);
        assert_eq!(groups.needed(0, 64, 64), 4..4);
        assert_eq!(groups.whole(79), 64);
    }

    #[test]
    fn layers_with_a_window_need_the_blocks_that_it_reaches() {
        let groups = Groups::new(vec![group(32, None), group(32, Some(128))], 32).expect("two groups");
        // Token 640 looks back at 513 to 639: four blocks.
        assert_eq!(groups.needed(1, 0, 640), 16..20);
        assert_eq!(groups.needed(1, 576, 640), 18..20);
        assert_eq!(groups.needed(1, 0, 64), 0..2);
        let one = Groups::new(vec![group(32, Some(1))], 32).expect("one group");
        assert_eq!(one.needed(0, 0, 64), 2..2, "a token that sees itself alone needs nothing");
    }

    #[test]
    fn groups_of_two_sizes_meet_at_their_common_multiple() {
        let groups = Groups::new(vec![group(32, None), group(48, None)], 16).expect("two groups");
        assert_eq!((groups.whole(100), groups.whole(95)), (96, 0));
        assert_eq!((groups.hash_of(0, 0), groups.hash_of(0, 2), groups.hash_of(1, 1)), (1, 5, 5));
        assert_eq!(groups.named(6), 96);
    }

    #[test]
    fn what_no_model_has_is_refused() {
        assert_eq!(Groups::new(Vec::new(), 16), Err(BadGroups::Count(0)));
        let odd = Groups::new(vec![group(24, None)], 16);
        assert_eq!(odd, Err(BadGroups::Size { block_tokens: 24, hash_tokens: 16 }));
        let apart = vec![group(65_537, None), group(65_539, None), group(65_543, None)];
        assert_eq!(Groups::new(apart, 1), Err(BadGroups::Unit));
    }
}
