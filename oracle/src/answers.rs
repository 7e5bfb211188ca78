//! What was stored, cleared and promised, and so what a fetch may answer: the bytes that somebody stored under that key since the last
//! acknowledged clear, or a miss; and no miss in the end where a block was promised.

use crate::At;
use crate::payload::{Label, Wrong};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A fetch that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Which tenant's.
    pub tenant: u16,
    /// Which prefix.
    pub name: u32,
    /// How many clears had been acknowledged when it was asked for.
    clears: u32,
}

/// What an answer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// What was asked for.
    Right,
    /// Of a time before a clear that had been acknowledged.
    Stale(Label),
    /// Whole, and another block than was asked for, or one that nobody stored.
    Foreign(Label),
    /// Not a block of this run.
    Damaged(Wrong),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Right => f.write_str("right"),
            Answer::Stale(label) => write!(f, "{label}, which a later clear had ended"),
            Answer::Foreign(label) => write!(f, "{label}, which is another"),
            Answer::Damaged(wrong) => wrong.fmt(f),
        }
    }
}

/// Stores of one prefix between two clears.
#[derive(Clone, Copy, Debug, Default)]
struct Stores {
    open: u32,
    last_returned: At,
}

/// A tenant's clears and stores.
#[derive(Debug, Default)]
struct Tenant {
    /// When each acknowledged clear was called.
    acknowledged: Vec<At>,
    /// When the one that is under way was called.
    open: Option<At>,
    stores: BTreeMap<(u32, u32), Stores>,
}

/// What a run has done to a cluster.
#[derive(Debug)]
pub struct Oracle {
    replicas: u8,
    tenants: Vec<Tenant>,
    /// Blocks of tenants that nobody clears, which every replica has acknowledged, and the number of each promise.
    promised: BTreeMap<(u16, u32, u16), u64>,
    /// Members that have lost what they held since every slot had all of its replicas.
    hurt: BTreeSet<String>,
    /// Blocks of which a copy was damaged on purpose. Whoever has it may not know, and count it: nothing is promised of them any more.
    damaged: BTreeSet<(u16, u32, u16)>,
    /// Promises that were made.
    made: u64,
    voided: u64,
    lapsed: u64,
}

impl Oracle {
    /// Begins with so many tenants, whose blocks are kept by so many members each.
    pub fn new(tenants: u16, replicas: u8) -> Oracle {
        Oracle {
            replicas,
            tenants: (0..tenants).map(|_| Tenant::default()).collect(),
            promised: BTreeMap::new(),
            hurt: BTreeSet::new(),
            damaged: BTreeSet::new(),
            made: 0,
            voided: 0,
            lapsed: 0,
        }
    }

    /// Begins a store of a prefix; returns the clears that its blocks are labelled with.
    pub fn store_begins(&mut self, tenant: u16, name: u32) -> u32 {
        let tenant = &mut self.tenants[usize::from(tenant)];
        let clears = tenant.acknowledged.len() as u32;
        tenant.stores.entry((name, clears)).or_default().open += 1;
        clears
    }

    /// Ends a store, whatever came of it: nothing of it arrives any more.
    pub fn store_ends(&mut self, tenant: u16, name: u32, clears: u32, now: At) {
        if let Some(stores) = self.tenants[usize::from(tenant)].stores.get_mut(&(name, clears)) {
            stores.open = stores.open.saturating_sub(1);
            stores.last_returned = stores.last_returned.max(now);
        }
    }

    /// A block was acknowledged by every replica. Only of a tenant that nobody clears.
    pub fn promise(&mut self, tenant: u16, name: u32, at: u16, copies: u8) {
        if copies >= self.replicas && self.may_promise(tenant, name, at) {
            self.made += 1;
            self.promised.insert((tenant, name, at), self.made);
        }
    }

    /// Begins a clear. One at a time of a tenant.
    pub fn clear_begins(&mut self, tenant: u16, now: At) {
        self.tenants[usize::from(tenant)].open = Some(now);
    }

    /// Ends a clear. One that was not acknowledged says nothing.
    pub fn clear_ends(&mut self, tenant: u16, acknowledged: bool) {
        let tenant = &mut self.tenants[usize::from(tenant)];
        if let Some(called) = tenant.open.take()
            && acknowledged
        {
            tenant.acknowledged.push(called);
        }
    }

    /// Begins a fetch.
    pub fn fetch_begins(&self, tenant: u16, name: u32) -> Asked {
        Asked { tenant, name, clears: self.tenants[usize::from(tenant)].acknowledged.len() as u32 }
    }

    /// Says what the bytes of a block are that a fetch brought, as they were read.
    pub fn judge(&self, asked: Asked, at: u16, read: Result<Label, Wrong>) -> Answer {
        let label = match read {
            Ok(label) => label,
            Err(wrong) => return Answer::Damaged(wrong),
        };
        let tenant = &self.tenants[usize::from(asked.tenant)];
        let stores = tenant.stores.get(&(asked.name, label.clears));
        let is_it = (label.tenant, label.name, label.at) == (asked.tenant, asked.name, at);
        let Some(stores) = stores.filter(|_| is_it) else { return Answer::Foreign(label) };
        let ended = asked.clears.checked_sub(1).filter(|_| label.clears < asked.clears);
        let Some(last) = ended.and_then(|last| tenant.acknowledged.get(last as usize)) else {
            return Answer::Right;
        };
        // What was under way when the last clear was called may have come after it.
        if stores.open > 0 || stores.last_returned > *last { Answer::Right } else { Answer::Stale(label) }
    }

    /// A member has lost what it held in memory. Where as many have as there are replicas, nothing is promised any more.
    pub fn hurts(&mut self, member: &str) {
        self.hurt.insert(member.to_owned());
        if self.hurt.len() >= usize::from(self.replicas) {
            self.voided += self.promised.len() as u64;
            self.promised.clear();
        }
    }

    /// Every slot has all of its replicas again, and none of them lacks anything.
    pub fn heals(&mut self) {
        self.hurt.clear();
    }

    /// A block's copy was damaged on purpose: another may have been lost already, or be lost before it is seen.
    pub fn damages(&mut self, tenant: u16, name: u32, at: u16) {
        self.damaged.insert((tenant, name, at));
        self.voided += u64::from(self.promised.remove(&(tenant, name, at)).is_some());
    }

    /// Everybody who had a block has left the cluster since it was promised, and not all of them by a fault: nothing is promised of it
    /// any more. Says whether anything was.
    pub fn lapses(&mut self, tenant: u16, name: u32, at: u16) -> bool {
        let was_promised = self.promised.remove(&(tenant, name, at)).is_some();
        self.lapsed += u64::from(was_promised);
        was_promised
    }

    /// Says whether a store may make a promise of this block.
    pub fn may_promise(&self, tenant: u16, name: u32, at: u16) -> bool {
        let block = (tenant, name, at);
        !self.promised.contains_key(&block) && !self.damaged.contains(&block)
    }

    /// Returns what has to be found once the cluster is whole.
    pub fn promised(&self) -> Vec<(u16, u32, u16)> {
        self.promised.keys().copied().collect()
    }

    /// Says whether a block has to be found.
    pub fn is_promised(&self, tenant: u16, name: u32, at: u16) -> bool {
        self.number_of(tenant, name, at).is_some()
    }

    /// Returns which promise of a block stands, if one does: what was asked for before the next was made says nothing of that one.
    pub fn number_of(&self, tenant: u16, name: u32, at: u16) -> Option<u64> {
        self.promised.get(&(tenant, name, at)).copied()
    }

    /// A promised block was not found: it is told once.
    pub fn loses(&mut self, tenant: u16, name: u32, at: u16) {
        self.promised.remove(&(tenant, name, at));
    }

    /// Returns how many promises were taken back, because as much was broken as they stand.
    pub fn voided(&self) -> u64 {
        self.voided
    }

    /// Returns how many were because everybody who had the block had left, and not all of them by a fault.
    pub fn lapsed(&self) -> u64 {
        self.lapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(clears: u32) -> Label {
        Label { tenant: 1, at: 0, clears, name: 9 }
    }

    fn stored(oracle: &mut Oracle, now: u64) -> u32 {
        let clears = oracle.store_begins(1, 9);
        oracle.store_ends(1, 9, clears, At(now));
        clears
    }

    fn clear(oracle: &mut Oracle, now: u64) {
        oracle.clear_begins(1, At(now));
        oracle.clear_ends(1, true);
    }

    #[test]
    fn what_was_stored_is_right_and_what_nobody_stored_is_foreign() {
        let mut oracle = Oracle::new(2, 2);
        stored(&mut oracle, 5);
        let asked = oracle.fetch_begins(1, 9);
        assert_eq!(oracle.judge(asked, 0, Ok(label(0))), Answer::Right);
        assert_eq!(oracle.judge(asked, 1, Ok(label(0))), Answer::Foreign(label(0)), "another block");
        assert_eq!(oracle.judge(asked, 0, Ok(label(1))), Answer::Foreign(label(1)), "of a time to come");
        let wrong = Wrong { line: 1, found: None };
        assert_eq!(oracle.judge(asked, 0, Err(wrong.clone())), Answer::Damaged(wrong));
    }

    #[test]
    fn after_an_acknowledged_clear_older_blocks_are_stale() {
        let mut oracle = Oracle::new(2, 2);
        stored(&mut oracle, 5);
        let before = oracle.fetch_begins(1, 9);
        clear(&mut oracle, 6);
        assert_eq!(oracle.judge(before, 0, Ok(label(0))), Answer::Right, "asked for before");
        let after = oracle.fetch_begins(1, 9);
        assert_eq!(oracle.judge(after, 0, Ok(label(0))), Answer::Stale(label(0)));
        assert_eq!(stored(&mut oracle, 7), 1);
        assert_eq!(oracle.judge(oracle.fetch_begins(1, 9), 0, Ok(label(1))), Answer::Right);
    }

    #[test]
    fn a_clear_that_was_not_acknowledged_makes_nothing_stale() {
        let mut oracle = Oracle::new(2, 2);
        stored(&mut oracle, 5);
        oracle.clear_begins(1, At(6));
        oracle.clear_ends(1, false);
        assert_eq!(oracle.judge(oracle.fetch_begins(1, 9), 0, Ok(label(0))), Answer::Right);
    }

    #[test]
    fn a_store_that_was_under_way_during_the_clear_may_be_seen() {
        let mut oracle = Oracle::new(2, 2);
        let clears = oracle.store_begins(1, 9);
        clear(&mut oracle, 6);
        let asked = oracle.fetch_begins(1, 9);
        assert_eq!(oracle.judge(asked, 0, Ok(label(0))), Answer::Right);
        oracle.store_ends(1, 9, clears, At(7));
        assert_eq!(oracle.judge(asked, 0, Ok(label(0))), Answer::Right);
        clear(&mut oracle, 8);
        assert_eq!(oracle.judge(oracle.fetch_begins(1, 9), 0, Ok(label(0))), Answer::Stale(label(0)));
    }

    #[test]
    fn nothing_is_promised_of_a_block_whose_copy_was_damaged() {
        let mut oracle = Oracle::new(1, 2);
        oracle.promise(0, 1, 0, 2);
        oracle.damages(0, 1, 0);
        // Whoever has the damaged copy counts it until it is read.
        oracle.promise(0, 1, 0, 2);
        assert!(oracle.promised().is_empty() && !oracle.may_promise(0, 1, 0) && oracle.may_promise(0, 1, 1));
        assert_eq!(oracle.voided(), 1);
    }

    #[test]
    fn a_promise_of_which_everybody_has_left_is_ended_and_counted_and_the_next_is_another() {
        let mut oracle = Oracle::new(1, 2);
        oracle.promise(0, 1, 0, 2);
        let first = oracle.number_of(0, 1, 0);
        oracle.promise(0, 1, 0, 2);
        assert!(first.is_some() && oracle.number_of(0, 1, 0) == first, "it stands already");
        assert!(oracle.lapses(0, 1, 0) && !oracle.lapses(0, 1, 0), "it is ended once");
        assert!(!oracle.is_promised(0, 1, 0) && oracle.may_promise(0, 1, 0));
        assert_eq!((oracle.lapsed(), oracle.voided()), (1, 0));
        oracle.promise(0, 1, 0, 2);
        assert!(oracle.is_promised(0, 1, 0) && oracle.number_of(0, 1, 0) != first);
    }

    #[test]
    fn promises_stand_until_as_many_members_are_hurt_as_there_are_replicas() {
        let mut oracle = Oracle::new(1, 2);
        oracle.promise(0, 1, 0, 1);
        assert_eq!(oracle.promised(), [], "one copy is no promise");
        oracle.promise(0, 1, 0, 2);
        oracle.hurts("a");
        oracle.hurts("a");
        assert_eq!(oracle.promised(), [(0, 1, 0)]);
        oracle.heals();
        oracle.hurts("b");
        assert_eq!((oracle.promised().len(), oracle.voided()), (1, 0));
        oracle.hurts("a");
        assert_eq!((oracle.promised().len(), oracle.voided()), (0, 1));
    }
}
