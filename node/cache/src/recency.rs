//! Recency within each tier: which block moves down when its tier runs short. What leaves the pool is a policy's matter.
//!
//! Lists with a second chance (CLOCK: Corbato, 1969), linked through the records. A block that was used since it came to
//! its place goes back to the young end when its turn comes. A child stored with its parent enters on the old side of it, so
//! that a prefix moves down from its tail.

use crate::block::{Mark, NIL, Record, Tier};

/// Blocks looked at for one that may move, before the search is given up.
const MAX_SCAN: usize = 64;

#[derive(Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

const EMPTY: List = List { oldest: NIL, newest: NIL, len: 0 };

/// The recency lists of every tier, party and size class.
pub(crate) struct Recency {
    classes: usize,
    lists: [Vec<List>; 3],
}

impl Recency {
    pub(crate) fn new(classes: usize) -> Recency {
        Recency { classes, lists: [const { Vec::new() }; 3] }
    }

    fn list(&mut self, tier: Tier, party: u16, class: u8) -> &mut List {
        let at = usize::from(party) * self.classes + usize::from(class);
        let lists = &mut self.lists[tier as usize];
        if lists.len() <= at {
            lists.resize(at + 1, EMPTY);
        }
        &mut lists[at]
    }

    /// Lists a block where its tier, party and class say: just before its parent, or as the newest.
    pub(crate) fn insert(&mut self, records: &mut [Record], at: u32) {
        let record = &mut records[at as usize];
        debug_assert!(!record.is(Mark::LISTED), "a block is listed once");
        record.set(Mark::LISTED, true);
        record.set(Mark::USED, false);
        let (parent, request) = (record.parent.0, record.request);
        let place = (record.tier, record.party, record.class);
        let beside = records.get(parent as usize).is_some_and(|other| {
            let together = other.request == request && !other.is(Mark::USED);
            other.is(Mark::LISTED) && together && (other.tier, other.party, other.class) == place
        });
        let newer = if beside { parent } else { NIL };
        self.link(records, at, newer);
    }

    /// Links a block in on the old side of `newer`, at the young end if that is none.
    fn link(&mut self, records: &mut [Record], at: u32, newer: u32) {
        let Record { tier, party, class, .. } = records[at as usize];
        let list = self.list(tier, party, class);
        list.len += 1;
        let older = if newer == NIL {
            std::mem::replace(&mut list.newest, at)
        } else {
            records[newer as usize].older
        };
        if older == NIL {
            list.oldest = at;
        } else {
            records[older as usize].newer = at;
        }
        if newer != NIL {
            records[newer as usize].older = at;
        }
        (records[at as usize].older, records[at as usize].newer) = (older, newer);
    }

    /// Takes a block out, if it is listed.
    pub(crate) fn remove(&mut self, records: &mut [Record], at: u32) {
        let Record { tier, party, class, older, newer, .. } = records[at as usize];
        if !records[at as usize].take(Mark::LISTED) {
            return;
        }
        let list = self.list(tier, party, class);
        list.len -= 1;
        if older == NIL {
            list.oldest = newer;
        } else {
            records[older as usize].newer = newer;
        }
        if newer == NIL {
            self.list(tier, party, class).newest = older;
        } else {
            records[newer as usize].older = older;
        }
        let record = &mut records[at as usize];
        (record.older, record.newer) = (NIL, NIL);
    }

    /// Returns the coldest block of a list that may move now.
    pub(crate) fn coldest(
        &mut self,
        records: &mut [Record],
        tier: Tier,
        party: u16,
        class: u8,
    ) -> Option<u32> {
        let mut at = self.list(tier, party, class).oldest;
        for _ in 0..MAX_SCAN {
            let record = records.get(at as usize)?;
            let (newer, is_used) = (record.newer, record.is(Mark::USED));
            if !is_used && record.is_movable() {
                return Some(at);
            }
            if is_used && newer != NIL {
                self.remove(records, at);
                records[at as usize].set(Mark::USED, false);
                records[at as usize].set(Mark::LISTED, true);
                self.link(records, at, NIL);
            } else if is_used {
                records[at as usize].set(Mark::USED, false);
                continue;
            }
            at = newer;
        }
        None
    }

    /// Returns how many blocks are listed for a tier, party and class.
    pub(crate) fn len(&self, tier: Tier, party: u16, class: u8) -> u32 {
        let at = usize::from(party) * self.classes + usize::from(class);
        self.lists[tier as usize].get(at).map_or(0, |list| list.len)
    }

    /// Returns how many blocks are listed.
    pub(crate) fn listed(&self) -> usize {
        self.lists.iter().flatten().map(|list| list.len as usize).sum()
    }

    /// Returns the blocks of a list, oldest first.
    pub(crate) fn of<'a>(
        &'a self,
        records: &'a [Record],
        tier: Tier,
        party: u16,
        class: u8,
    ) -> impl Iterator<Item = u32> + 'a {
        let at = usize::from(party) * self.classes + usize::from(class);
        let mut next = self.lists[tier as usize].get(at).map_or(NIL, |list| list.oldest);
        std::iter::from_fn(move || {
            let at = next;
            next = records.get(at as usize)?.newer;
            Some(at)
        })
    }
}
