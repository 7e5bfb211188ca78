//! How a block leaves: out of sight at once, its frame and its record when nobody needs them any more.

use super::Shard;
use crate::answers::Effect;
use crate::block::{BlockId, Life, Mark, NO_PARENT};
use crate::policy::Removal;
use kvhive_planted::{Bug, is};
use kvhive_protocol::Slot;
use kvhive_protocol::watch::Gone;

impl Shard {
    /// Takes a resident block out of sight; its frame comes back now, or when its last reader and copy have gone.
    pub(super) fn drop_block(&mut self, at: u32, why: Removal, gone: Gone, effects: &mut Vec<Effect>) {
        self.tell_removed(at, gone);
        self.forget_pin(at);
        let hash = self.index.hide(&self.owners, at);
        self.note_gone(at, hash, gone);
        self.recency.remove(&mut self.index.records, at);
        let bared = self.unlink(at);
        if !is(Bug::DropsAreNotCounted) {
            self.count_resident(at, -1);
        }
        let record = &mut self.index.records[at as usize];
        record.life = Life::Leaving;
        if record.take(Mark::AHEAD) {
            // What has not left the disk yet was not brought.
            let was_brought = !record.is(Mark::COMING);
            self.stats.prefetch_wasted += u64::from(was_brought);
            self.stats.prefetch_cancelled += u64::from(!was_brought);
        }
        self.occupied[usize::from(record.slot)] -= 1;
        let (id, slot) = (BlockId { index: at, generation: record.generation }, Slot(record.slot));
        effects.push(Effect::Drop { id, slot, gone });
        let (party, class) = (record.party, record.class);
        let key = self.owners.salt_of(record.owner).key(&record.key);
        self.parties[usize::from(party)].ranking(class).removed(at, &key, why);
        self.tell_leaf(bared, true);
        self.finish_leaving(at);
    }

    pub(super) fn finish_leaving(&mut self, at: u32) {
        let record = self.index.records[at as usize];
        let is_read = record.readers > 0 && !is(Bug::FreedUnderReader);
        if record.life == Life::Leaving && !is_read && !record.is_worked_on() {
            self.give(record.tier, record.class, record.party);
            self.free(at);
        }
    }

    /// Gives a hidden record back.
    pub(super) fn free(&mut self, at: u32) {
        self.owners.leave(self.index.records[at as usize].owner);
        self.expected.forget(at);
        self.index.free(at);
    }

    /// Tells whoever ranks a block that it has become a leaf, or that it is none.
    pub(super) fn tell_leaf(&mut self, at: Option<u32>, leaf: bool) {
        let Some(at) = at.filter(|_| leaf || !is(Bug::ParentsLeaveFirst)) else { return };
        let record = &self.index.records[at as usize];
        let (party, class) = (record.party, record.class);
        if record.life == Life::Resident && (!leaf || record.is_bare()) {
            self.parties[usize::from(party)].ranking(class).set_leaf(at, leaf);
        }
    }

    /// Takes a block off its parent; returns that if it is a leaf now. Its own children, if it goes before them (a clear, an abandoned write, a lost block),
    /// find their link dangling: it names a stay that has ended.
    pub(super) fn unlink(&mut self, at: u32) -> Option<u32> {
        let link = std::mem::replace(&mut self.index.records[at as usize].parent, NO_PARENT);
        self.index.records[at as usize].children = 0;
        let parent = self.linked(link)?;
        let children = &mut self.index.records[parent as usize].children;
        *children -= 1;
        (*children == 0).then_some(parent)
    }

    /// Returns the record that a link to a parent names, while that stay lasts.
    pub(super) fn linked(&self, (index, generation): (u32, u32)) -> Option<u32> {
        let at = self.index.named(index, generation)?;
        matches!(self.index.records[at as usize].life, Life::Resident | Life::Filling).then_some(at)
    }

    /// A resident block turned out to be unreadable where it is kept: it goes at once, whoever its children are.
    pub fn lost(&mut self, id: BlockId, effects: &mut Vec<Effect>) {
        if self.tear_out(id, Gone::Lost, effects) {
            self.stats.lost += 1;
        }
    }

    /// A block that has just been sealed is taken back: whoever stored it was not there to hear of it.
    pub fn take_back(&mut self, id: BlockId, effects: &mut Vec<Effect>) {
        if self.tear_out(id, Gone::TakenBack, effects) {
            self.stats.abandoned += 1;
        }
    }

    /// Lets a resident block go whoever its children are.
    fn tear_out(&mut self, id: BlockId, gone: Gone, effects: &mut Vec<Effect>) -> bool {
        let Some(at) = self.index.named(id.index, id.generation) else { return false };
        let record = &self.index.records[at as usize];
        if record.life != Life::Resident {
            return false;
        }
        let has_children = record.children > 0;
        if has_children {
            self.note_torn(at);
        }
        self.drop_block(at, Removal::Dropped, gone, effects);
        if has_children {
            self.begin_to_mend();
        }
        true
    }
}
