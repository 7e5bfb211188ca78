//! What one device holds, as far as its follower was told: a machine that is asked what to ask and told what was answered.
//! Answers may be lost, repeated, late and in any order: each is taken once, in its place, or not at all.

use kvhive_protocol::watch::{BlockEvent, BlockTier, Held, MAX_BLOCKS_PER_PAGE, WatchAnswer, WatchAsk};
use kvhive_protocol::{BlockKey, Era, TenantId};
use std::collections::HashMap;

/// A block that a device holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// In which era of its tenant.
    pub era: Era,
    /// How many blocks are before it in its prefix.
    pub depth: u32,
    /// Where it lies.
    pub tier: BlockTier,
}

type Blocks = HashMap<(TenantId, BlockKey), Block>;

/// What one device holds.
#[derive(Debug, Default)]
pub struct Follower {
    /// As of the last event applied; while a snapshot is taken, as of when the stream before it ended.
    blocks: Blocks,
    state: State,
    /// Snapshots taken.
    snapshots: u64,
    /// What has changed since it was asked last, where somebody asks.
    notes: Option<Vec<BlockChange>>,
}

/// A block that has come to a device, moved in it or left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockChange {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub key: BlockKey,
    /// How many blocks are before it in its prefix.
    pub depth: u32,
    /// Where it was; none where it was not there.
    pub before: Option<BlockTier>,
    /// Where it is; none where it is not there any more.
    pub after: Option<BlockTier>,
}

#[derive(Debug, Default)]
enum State {
    /// It knows of no stream.
    #[default]
    Lost,
    /// It takes a snapshot.
    Paging { stream: u64, base: u64, from: u32, pages: Blocks },
    /// It goes on with events.
    Following { stream: u64, applied: u64 },
}

/// What an answer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It says what is not known elsewhere: there is more to ask at once.
    More,
    /// Everything there was to know is known.
    Current,
    /// It was not what is asked now: late, repeated, or of another stream.
    Passed,
}

impl Follower {
    /// Makes one that notes what changes, for [`Follower::changes`].
    pub fn noting() -> Follower {
        Follower { notes: Some(Vec::new()), ..Follower::default() }
    }

    /// Returns what has changed since this was asked last; nothing unless it was made to note it.
    pub fn changes(&mut self) -> Vec<BlockChange> {
        self.notes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Forgets everything, as changes: the device is gone.
    pub fn end(mut self) -> Vec<BlockChange> {
        self.replace(Blocks::new());
        self.changes()
    }

    /// Goes on by other blocks.
    fn replace(&mut self, blocks: Blocks) {
        let before = std::mem::replace(&mut self.blocks, blocks);
        let Some(notes) = &mut self.notes else { return };
        for (at, block) in &self.blocks {
            note(notes, *at, before.get(at), Some(block));
        }
        for (at, block) in before.iter().filter(|(at, _)| !self.blocks.contains_key(at)) {
            note(notes, *at, Some(block), None);
        }
    }

    /// Returns what to ask now; the same until the answer has come.
    pub fn ask(&self) -> WatchAsk {
        match &self.state {
            State::Lost => WatchAsk::Page { stream: None, from: 0 },
            State::Paging { stream, from, .. } => WatchAsk::Page { stream: Some(*stream), from: *from },
            State::Following { stream, applied } => WatchAsk::Events { stream: *stream, after: *applied },
        }
    }

    /// Takes an answer.
    pub fn take(&mut self, answer: WatchAnswer) -> Taken {
        match answer {
            WatchAnswer::Gap { stream } => self.take_gap(stream),
            WatchAnswer::Page { stream, at, from, next, blocks } => {
                if blocks.len() > MAX_BLOCKS_PER_PAGE {
                    return Taken::Passed;
                }
                self.take_page(stream, at, from, next, blocks)
            }
            WatchAnswer::Events { stream, after, through, events } => {
                self.take_events(stream, after, through, &events)
            }
        }
    }

    /// Returns what is known of a block.
    pub fn get(&self, tenant: TenantId, key: &BlockKey) -> Option<Block> {
        self.blocks.get(&(tenant, *key)).copied()
    }

    /// Walks over all blocks that are known.
    pub fn iter(&self) -> impl Iterator<Item = (TenantId, BlockKey, Block)> {
        self.blocks.iter().map(|((tenant, key), block)| (*tenant, *key, *block))
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns how many snapshots were taken whole: one at the begin, and one for each gap.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// Says whether events are followed now, and no snapshot is under way.
    pub fn is_following(&self) -> bool {
        matches!(self.state, State::Following { .. })
    }

    fn take_gap(&mut self, stream: Option<u64>) -> Taken {
        let known = match self.state {
            State::Lost => return Taken::Passed,
            State::Paging { stream, .. } | State::Following { stream, .. } => stream,
        };
        // A gap in the stream at hand may be an old answer's; then the next snapshot was needless, and nothing worse.
        if stream == Some(known) && !self.is_following() {
            return Taken::Passed;
        }
        self.state = State::Lost;
        Taken::More
    }

    fn take_page(&mut self, stream: u64, at: u64, from: u32, next: Option<u32>, held: Vec<Held>) -> Taken {
        if matches!(self.state, State::Lost) && from == 0 {
            self.state = State::Paging { stream, base: at, from: 0, pages: Blocks::new() };
        }
        let State::Paging { stream: known, base, from: wanted, pages } = &mut self.state else {
            return Taken::Passed;
        };
        // A page of a snapshot before this one knows less than events from here on build on.
        if stream != *known || from != *wanted || at < *base || next.is_some_and(|next| next <= from) {
            return Taken::Passed;
        }
        for Held { tenant, era, key, depth, tier } in held {
            pages.insert((tenant, key), Block { era, depth, tier });
        }
        match next {
            Some(next) => *wanted = next,
            None => {
                let applied = *base;
                let pages = std::mem::take(pages);
                self.replace(pages);
                self.state = State::Following { stream, applied };
                self.snapshots += 1;
            }
        }
        Taken::More
    }

    fn take_events(&mut self, of: u64, after: u64, through: u64, events: &[(u64, BlockEvent)]) -> Taken {
        let State::Following { stream, applied } = &mut self.state else { return Taken::Passed };
        let known = *applied;
        // Of a question that was asked after one whose answer is not here yet, or before.
        if of != *stream || after > known || through < known {
            return Taken::Passed;
        }
        *applied = through;
        for (at, event) in events {
            if (known + 1..=through).contains(at) {
                apply(&mut self.blocks, &mut self.notes, event);
            }
        }
        if through > known { Taken::More } else { Taken::Current }
    }
}

fn note(
    notes: &mut Vec<BlockChange>,
    (tenant, key): (TenantId, BlockKey),
    before: Option<&Block>,
    after: Option<&Block>,
) {
    let depth = after.or(before).map_or(0, |block| block.depth);
    let (before, after) = (before.map(|block| block.tier), after.map(|block| block.tier));
    if before != after {
        notes.push(BlockChange { tenant, key, depth, before, after });
    }
}

fn apply(blocks: &mut Blocks, notes: &mut Option<Vec<BlockChange>>, event: &BlockEvent) {
    let at = match *event {
        BlockEvent::Stored(Held { tenant, key, .. })
        | BlockEvent::Moved { tenant, key, .. }
        | BlockEvent::Removed { tenant, key, .. } => (tenant, key),
        BlockEvent::Cleared { tenant, era } => {
            blocks.retain(|at, block| {
                let stays = at.0 != tenant || block.era >= era;
                if let Some(notes) = notes.as_mut().filter(|_| !stays) {
                    note(notes, *at, Some(block), None);
                }
                stays
            });
            return;
        }
    };
    let before = blocks.get(&at).copied();
    match *event {
        BlockEvent::Stored(Held { era, depth, tier, .. }) => {
            blocks.insert(at, Block { era, depth, tier });
        }
        BlockEvent::Moved { to, .. } => {
            // While a snapshot is caught up with, a later event may already be in it.
            if let Some(block) = blocks.get_mut(&at) {
                block.tier = to;
            }
        }
        _ => {
            blocks.remove(&at);
        }
    }
    if let Some(notes) = notes {
        note(notes, at, before.as_ref(), blocks.get(&at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::watch::Gone;

    const TENANT: TenantId = TenantId(1);

    fn key(number: u8) -> BlockKey {
        BlockKey::from_bytes([number; 32])
    }

    fn held(number: u8) -> Held {
        Held { tenant: TENANT, era: Era(1), key: key(number), depth: 0, tier: BlockTier::Device }
    }

    fn page(stream: u64, at: u64, from: u32, next: Option<u32>, blocks: &[u8]) -> WatchAnswer {
        WatchAnswer::Page {
            stream,
            at,
            from,
            next,
            blocks: blocks.iter().map(|number| held(*number)).collect(),
        }
    }

    fn removed(number: u8) -> BlockEvent {
        BlockEvent::Removed { tenant: TENANT, key: key(number), from: BlockTier::Device, why: Gone::Evicted }
    }

    fn events(stream: u64, after: u64, events: &[BlockEvent]) -> WatchAnswer {
        let events: Vec<_> = (after + 1..).zip(events.iter().copied()).collect();
        WatchAnswer::Events { stream, after, through: after + events.len() as u64, events }
    }

    fn known(follower: &Follower) -> Vec<u8> {
        let mut known: Vec<u8> = follower.iter().map(|(_, key, _)| key.as_bytes()[0]).collect();
        known.sort_unstable();
        known
    }

    #[test]
    fn a_snapshot_is_caught_up_with_by_the_events_since_its_first_page() {
        let mut follower = Follower::default();
        assert_eq!(follower.ask(), WatchAsk::Page { stream: None, from: 0 });
        assert_eq!(follower.take(page(9, 4, 0, Some(100), &[1, 2])), Taken::More);
        assert_eq!(follower.ask(), WatchAsk::Page { stream: Some(9), from: 100 });
        // Meanwhile 2 has gone, 3 has come and gone, and 4 has come.
        assert_eq!(follower.take(page(9, 8, 100, None, &[4])), Taken::More);
        assert_eq!(follower.ask(), WatchAsk::Events { stream: 9, after: 4 });
        let since = [removed(2), BlockEvent::Stored(held(3)), removed(3), BlockEvent::Stored(held(4))];
        assert_eq!(follower.take(events(9, 4, &since)), Taken::More);
        assert_eq!(follower.take(events(9, 8, &[])), Taken::Current);
        assert_eq!((known(&follower), follower.snapshots()), (vec![1, 4], 1));
    }

    #[test]
    fn what_is_late_repeated_or_early_is_passed_or_changes_nothing() {
        let mut follower = Follower::default();
        follower.take(page(9, 0, 0, None, &[1]));
        let first = events(9, 0, &[BlockEvent::Stored(held(2)), removed(1)]);
        let early = events(9, 2, &[removed(2)]);
        assert_eq!(follower.take(early.clone()), Taken::Passed);
        assert_eq!(follower.take(first.clone()), Taken::More);
        assert_eq!(follower.take(early), Taken::More);
        assert_eq!(follower.take(first), Taken::Passed);
        assert_eq!(known(&follower), [0u8; 0]);
        // Overlapping, as when an answer was lost and more had happened at the repeat.
        let overlap = events(9, 2, &[removed(2), BlockEvent::Stored(held(7))]);
        assert_eq!(follower.take(overlap), Taken::More);
        assert_eq!(known(&follower), [7]);
        for other in [events(8, 4, &[removed(7)]), page(9, 9, 0, None, &[5])] {
            assert_eq!(follower.take(other), Taken::Passed);
        }
    }

    #[test]
    fn a_page_of_a_snapshot_before_is_not_taken_for_one_of_this() {
        let mut follower = Follower::default();
        follower.take(page(9, 50, 0, Some(100), &[1]));
        assert_eq!(follower.take(page(9, 10, 100, None, &[2])), Taken::Passed);
        assert_eq!(follower.take(page(8, 60, 100, None, &[2])), Taken::Passed);
        assert_eq!(follower.take(page(9, 60, 100, Some(100), &[2])), Taken::Passed, "it would never end");
        assert_eq!(follower.take(page(9, 60, 100, None, &[3])), Taken::More);
        assert_eq!(known(&follower), [1, 3]);
    }

    #[test]
    fn after_a_gap_what_was_known_stays_until_the_next_snapshot_is_whole() {
        let mut follower = Follower::default();
        follower.take(page(9, 0, 0, None, &[1]));
        assert_eq!(follower.take(WatchAnswer::Gap { stream: Some(10) }), Taken::More);
        assert_eq!(follower.ask(), WatchAsk::Page { stream: None, from: 0 });
        follower.take(page(10, 3, 0, Some(7), &[2]));
        assert_eq!(known(&follower), [1]);
        follower.take(page(10, 3, 7, None, &[]));
        assert_eq!((known(&follower), follower.snapshots()), (vec![2], 2));
    }

    #[test]
    fn what_is_noted_adds_up_to_what_is_known_whatever_comes() {
        let mut follower = Follower::noting();
        let mut mirror: Vec<(u8, BlockTier)> = Vec::new();
        let moved = BlockEvent::Moved { tenant: TENANT, key: key(1), to: BlockTier::Disk };
        let again = BlockEvent::Stored(held(2));
        let answers = [
            page(9, 4, 0, Some(100), &[1, 2]),
            page(9, 8, 100, None, &[4]),
            events(9, 4, &[removed(2), moved, removed(7), again, removed(4)]),
            events(9, 4, &[removed(2)]),
            WatchAnswer::Gap { stream: Some(10) },
            page(10, 1, 0, None, &[2, 5]),
            events(10, 1, &[BlockEvent::Cleared { tenant: TENANT, era: Era(2) }]),
            events(10, 2, &[BlockEvent::Stored(Held { era: Era(2), ..held(6) })]),
        ];
        for answer in answers {
            follower.take(answer);
            for BlockChange { key, before, after, .. } in follower.changes() {
                let number = key.as_bytes()[0];
                let was = mirror.iter().position(|(known, _)| *known == number);
                assert_eq!(was.map(|at| mirror[at].1), before, "each change goes on from the one before");
                was.map(|at| mirror.remove(at));
                mirror.extend(after.map(|tier| (number, tier)));
            }
            mirror.sort_unstable();
            let mut known: Vec<(u8, BlockTier)> =
                follower.iter().map(|(_, key, block)| (key.as_bytes()[0], block.tier)).collect();
            known.sort_unstable();
            assert_eq!(mirror, known);
        }
        assert_eq!(mirror, [(6, BlockTier::Device)]);
        let ended = follower.end();
        assert_eq!(ended.iter().map(|change| change.after).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn a_clear_ends_older_eras_alone() {
        let mut follower = Follower::default();
        follower.take(page(9, 0, 0, None, &[1]));
        let newer = Held { era: Era(2), ..held(2) };
        let cleared = BlockEvent::Cleared { tenant: TENANT, era: Era(2) };
        follower.take(events(9, 0, &[BlockEvent::Stored(newer), cleared]));
        assert_eq!(known(&follower), [2]);
    }
}
