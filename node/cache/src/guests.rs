//! Guests: blocks of slots that a node is no replica of, which it has fetched from one for clients near it. They lie in memory of their own and
//! no shard knows them: for acknowledgements, moves, drains and events they are not there. Decides which are kept, which are fetched once for all
//! who want them, and which leave; what holds the bytes, and who waits, is its caller's.
//!
//! Those asked for once leave before those asked for again, so that whoever reads much once does not push out what many read. That is the
//! segmented LRU of Karedla, Love and Wherry (1994).

use kvhive_protocol::data::Accept;
use kvhive_protocol::{BlockKey, ClusterId, ClusterMap, Era, MemberId, Moment, SLOTS, Slot, TenantId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Blocks that are being fetched at a time; those beyond it are misses.
const MAX_COMING: usize = 16_384;
/// Those who wait for one block, and those who wait for any: those beyond them are told that it is a miss. One who has gone counts until the
/// block has come.
const MAX_WAITING_FOR_ONE: usize = 256;
const MAX_WAITING: usize = 65_536;
/// Keys that are remembered not to have come.
const MAX_LACKED: usize = 16_384;
/// A key that did not come is not looked for again for so long: its askers turn to the replicas themselves.
const LACKED_FOR: Duration = Duration::from_millis(250);
/// Of the bytes that are kept, those asked for again take at most so many of a hundred.
const AGAIN_PERCENT: u64 = 75;

/// What a guest is known by: a block of one era, as its askers can read it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GuestKey {
    /// Whose block.
    pub tenant: TenantId,
    /// By the map of who asks.
    pub era: Era,
    /// Which block.
    pub key: BlockKey,
    /// How it is stored.
    pub accept: Accept,
}

/// What is to be done for who asks for a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Visit<B> {
    /// It is here.
    Here(B),
    /// It is being fetched: wait for it ([`Guests::wait`]).
    Coming,
    /// Have it fetched, and say what came of it ([`Guests::came`] or [`Guests::lacked`]); wait for it as others do.
    Fetch,
    /// It is a miss here.
    Miss,
}

struct Kept<B> {
    block: B,
    bytes: u64,
    slot: Slot,
    /// Its place in one of the orders.
    turn: u64,
    is_again: bool,
}

struct Coming<W> {
    slot: Slot,
    waiting: Vec<W>,
    /// It was asked for in another cluster, whose ids may be the same: nobody here may see it.
    is_over: bool,
}

/// The guests of one node: blocks `B`, waited for by `W`.
pub struct Guests<B, W> {
    limit: u64,
    bytes: u64,
    again_bytes: u64,
    kept: HashMap<GuestKey, Kept<B>>,
    /// Those asked for once and those asked for again, each the oldest use first.
    once: BTreeMap<u64, GuestKey>,
    again: BTreeMap<u64, GuestKey>,
    turns: u64,
    coming: HashMap<GuestKey, Coming<W>>,
    /// How many wait, for all that are coming.
    waiting: usize,
    /// Those that did not come, and until when that counts; in the order in which that ends.
    lacked: HashMap<GuestKey, Moment>,
    lacked_order: VecDeque<(Moment, GuestKey)>,
    /// Of the map that was taken over last: the tenants' eras, and which slots are this node's own.
    eras: BTreeMap<TenantId, Era>,
    own: Vec<bool>,
    cluster: Option<ClusterId>,
}

impl<B: Clone, W> Guests<B, W> {
    /// Makes room for none yet: what is kept together has `limit` bytes at most, as its caller sees to ([`Guests::evict`]).
    pub fn within(limit: u64) -> Guests<B, W> {
        Guests {
            limit,
            bytes: 0,
            again_bytes: 0,
            kept: HashMap::new(),
            once: BTreeMap::new(),
            again: BTreeMap::new(),
            turns: 0,
            coming: HashMap::new(),
            waiting: 0,
            lacked: HashMap::new(),
            lacked_order: VecDeque::new(),
            eras: BTreeMap::new(),
            own: Vec::new(),
            cluster: None,
        }
    }

    /// Takes over a map in which this node is `member`. Guests of ended eras end, and those of slots that it is a replica of from now on:
    /// these its devices answer for. Returns those that have ended: they are for the caller to drop, as overwriting them may take long. Who waits
    /// for a block of another cluster is told nothing but that nobody tells them.
    #[must_use]
    pub fn adopt(&mut self, map: &ClusterMap, member: MemberId) -> Vec<B> {
        let is_same = self.cluster.replace(map.cluster).is_none_or(|known| known == map.cluster);
        self.eras = map.tenants.iter().map(|(id, tenant)| (*id, tenant.era)).collect();
        let is_own = |slot| map.replicas(Slot(slot)).0.iter().any(|device| device.member == member);
        self.own = (0..SLOTS).map(is_own).collect();
        let over =
            |(key, kept): (&GuestKey, &Kept<B>)| (!is_same || !self.may_stay(key, kept.slot)).then_some(*key);
        let over: Vec<GuestKey> = self.kept.iter().filter_map(over).collect();
        let over = over.iter().filter_map(|key| self.take(key)).map(|(block, _)| block).collect();
        if !is_same {
            for coming in self.coming.values_mut() {
                coming.is_over = true;
                coming.waiting.clear();
            }
            self.waiting = 0;
        }
        // Another map may have it elsewhere.
        self.lacked.clear();
        self.lacked_order.clear();
        over
    }

    /// Says whether a guest may be here by the map at hand.
    fn may_stay(&self, key: &GuestKey, slot: Slot) -> bool {
        self.eras.get(&key.tenant) == Some(&key.era) && self.own.get(usize::from(slot.0)) == Some(&false)
    }

    /// Asks for a guest of a slot.
    pub fn ask(&mut self, now: Moment, key: GuestKey, slot: Slot) -> Visit<B> {
        if !self.may_stay(&key, slot) {
            return Visit::Miss;
        }
        if let Some(block) = self.kept.get(&key).map(|kept| kept.block.clone()) {
            self.use_again(&key);
            return Visit::Here(block);
        }
        if let Some(coming) = self.coming.get(&key) {
            return if coming.is_over { Visit::Miss } else { Visit::Coming };
        }
        if self.is_lacked(now, &key) || self.coming.len() >= MAX_COMING {
            return Visit::Miss;
        }
        self.coming.insert(key, Coming { slot, waiting: Vec::new(), is_over: false });
        Visit::Fetch
    }

    /// Has somebody wait for a block that is being fetched; gives it back where none is, or too many wait.
    pub fn wait(&mut self, key: &GuestKey, who: W) -> Option<W> {
        match self.coming.get_mut(key).filter(|coming| !coming.is_over) {
            Some(coming) if coming.waiting.len() < MAX_WAITING_FOR_ONE && self.waiting < MAX_WAITING => {
                coming.waiting.push(who);
                self.waiting += 1;
                None
            }
            _ => Some(who),
        }
    }

    /// A block that was to be fetched is here. It is kept if it may be seen by the map at hand; returns who waits for it. None if it was not to
    /// come any more: it has by another way, or was given up.
    pub fn came(&mut self, key: &GuestKey, block: B, bytes: u64) -> Option<Vec<W>> {
        let Coming { slot, waiting, is_over } = self.coming.remove(key)?;
        self.waiting -= waiting.len();
        if !is_over && self.may_stay(key, slot) {
            self.keep(*key, Kept { block, bytes, slot, turn: 0, is_again: waiting.len() > 1 });
        }
        Some(waiting)
    }

    /// A block that was to be fetched did not come; returns who waits for it.
    pub fn lacked(&mut self, now: Moment, key: &GuestKey) -> Vec<W> {
        let Some(coming) = self.coming.remove(key) else { return Vec::new() };
        self.waiting -= coming.waiting.len();
        if coming.is_over {
            return coming.waiting;
        }
        if self.lacked_order.len() >= MAX_LACKED
            && let Some((_, oldest)) = self.lacked_order.pop_front()
        {
            self.lacked.remove(&oldest);
        }
        let until = now + LACKED_FOR;
        if self.lacked.insert(*key, until).is_none() {
            self.lacked_order.push_back((until, *key));
        }
        coming.waiting
    }

    fn is_lacked(&mut self, now: Moment, key: &GuestKey) -> bool {
        while let Some((_, oldest)) = self.lacked_order.front().copied().filter(|(until, _)| *until <= now) {
            self.lacked_order.pop_front();
            self.lacked.remove(&oldest);
        }
        self.lacked.contains_key(key)
    }

    /// Takes one guest out for others: of those asked for once that of longest ago, else of all.
    pub fn evict(&mut self) -> Option<(B, u64)> {
        let first = |order: &BTreeMap<u64, GuestKey>| order.first_key_value().map(|(_, key)| *key);
        let key = first(&self.once).or_else(|| first(&self.again))?;
        self.take(&key)
    }

    fn use_again(&mut self, key: &GuestKey) {
        if let Some(mut kept) = self.take_out(key) {
            kept.is_again = true;
            self.keep(*key, kept);
        }
    }

    fn keep(&mut self, key: GuestKey, mut kept: Kept<B>) {
        self.turns += 1;
        kept.turn = self.turns;
        self.bytes += kept.bytes;
        if kept.is_again {
            self.again.insert(kept.turn, key);
            self.again_bytes += kept.bytes;
        } else {
            self.once.insert(kept.turn, key);
        }
        self.kept.insert(key, kept);
        let most = self.limit / 100 * AGAIN_PERCENT;
        while self.again_bytes > most
            && let Some((_, oldest)) = self.again.first_key_value()
        {
            let oldest = *oldest;
            let Some(mut kept) = self.take_out(&oldest) else { break };
            kept.is_again = false;
            self.keep(oldest, kept);
        }
    }

    fn take(&mut self, key: &GuestKey) -> Option<(B, u64)> {
        self.take_out(key).map(|kept| (kept.block, kept.bytes))
    }

    fn take_out(&mut self, key: &GuestKey) -> Option<Kept<B>> {
        let kept = self.kept.remove(key)?;
        self.bytes -= kept.bytes;
        if kept.is_again {
            self.again.remove(&kept.turn);
            self.again_bytes -= kept.bytes;
        } else {
            self.once.remove(&kept.turn);
        }
        Some(kept)
    }

    /// Returns how many are kept, and their bytes.
    pub fn kept(&self) -> (usize, u64) {
        (self.kept.len(), self.bytes)
    }
}

#[cfg(test)]
#[path = "guests_test.rs"]
mod tests;
