//! Following a shard: its events after one, or a page of what is there. A snapshot is pages taken one after another while blocks
//! come and go; each says up to which event it is true. Who applies all events after the first page's to all pages knows
//! exactly what is there: a block without an event since then is as its page says, and of any other the last event counts.

use super::Shard;
use crate::block::{Life, Record, Tier};
use crate::feed::Feed;
use kvhive_protocol::watch::{BlockEvent, BlockTier, Gone, Held, MAX_BLOCKS_PER_PAGE, WatchAnswer, WatchAsk};
use kvhive_protocol::{Era, Moment, TenantId};
use std::collections::BTreeMap;

/// Records looked at for one page.
const LOOK: u32 = 16_384;

impl From<Tier> for BlockTier {
    fn from(tier: Tier) -> BlockTier {
        match tier {
            Tier::Device => BlockTier::Device,
            Tier::Host => BlockTier::Host,
            Tier::Disk => BlockTier::Disk,
        }
    }
}

impl Shard {
    /// Answers who follows the blocks of a tenant, or of all. A first page begins a stream under the number `fresh`, which no stream
    /// of this device may have had, unless one is under way; it ends when nobody has asked for a minute.
    pub fn watch(&mut self, now: Moment, tenant: Option<TenantId>, ask: WatchAsk, fresh: u64) -> WatchAnswer {
        if self.feed.is_none() && matches!(ask, WatchAsk::Page { stream: None, .. }) {
            self.feed = Some(Box::new(Feed::new(fresh, now)));
        }
        let Some(feed) = &mut self.feed else { return WatchAnswer::Gap { stream: None } };
        feed.touch(now);
        let (stream, at) = (feed.stream(), feed.newest());
        match ask {
            WatchAsk::Events { stream, after } => feed.events(stream, after, tenant),
            WatchAsk::Page { stream: Some(asked), .. } if asked != stream => {
                WatchAnswer::Gap { stream: Some(stream) }
            }
            WatchAsk::Page { from, .. } => {
                let (blocks, next) = self.page(from, tenant);
                WatchAnswer::Page { stream, at, from, next, blocks }
            }
        }
    }

    /// Says whether somebody follows.
    pub fn is_watched(&self) -> bool {
        self.feed.is_some()
    }

    fn page(&self, from: u32, tenant: Option<TenantId>) -> (Vec<Held>, Option<u32>) {
        let all = self.index.records.len() as u32;
        let until = all.min(from.saturating_add(LOOK));
        let mut held = Vec::new();
        for at in from..until {
            if held.len() == MAX_BLOCKS_PER_PAGE {
                return (held, Some(at));
            }
            let record = &self.index.records[at as usize];
            if record.life != Life::Resident || !self.stands(record) {
                continue;
            }
            let one = self.held(record);
            if tenant.is_none_or(|tenant| one.tenant == tenant) {
                held.push(one);
            }
        }
        (held, (until < all).then_some(until))
    }

    fn held(&self, record: &Record) -> Held {
        let (tenant, era) = self.owners.of(record.owner);
        Held { tenant, era, key: record.key, depth: record.depth, tier: record.tier.into() }
    }

    /// Tells that a block is there.
    pub(super) fn tell_stored(&mut self, at: u32) {
        if self.feed.is_some() {
            let held = self.held(&self.index.records[at as usize]);
            self.tell(BlockEvent::Stored(held));
        }
    }

    /// Tells that a block lies elsewhere now.
    pub(super) fn tell_moved(&mut self, at: u32) {
        let record = &self.index.records[at as usize];
        // What a clear has ended is not there for anybody, wherever it lies.
        if self.feed.is_some() && self.stands(record) {
            let Held { tenant, key, tier, .. } = self.held(record);
            self.tell(BlockEvent::Moved { tenant, key, to: tier });
        }
    }

    /// Tells that a block is not there any more; of one of an ended era that was told with all of them.
    pub(super) fn tell_removed(&mut self, at: u32, why: Gone) {
        let record = &self.index.records[at as usize];
        if self.feed.is_some() && self.stands(record) {
            let Held { tenant, key, tier, .. } = self.held(record);
            self.tell(BlockEvent::Removed { tenant, key, from: tier, why });
        }
    }

    /// Tells which eras end when the shard goes on by these.
    pub(super) fn tell_cleared(&mut self, eras: &BTreeMap<TenantId, Era>) {
        if self.feed.is_none() {
            return;
        }
        let ended = self.tenants.iter().filter_map(|(tenant, era)| {
            // Of a tenant that is none any more nothing stands.
            let next = eras.get(tenant).copied().unwrap_or(Era(u64::MAX));
            (next != *era).then_some(BlockEvent::Cleared { tenant: *tenant, era: next })
        });
        for event in ended.collect::<Vec<_>>() {
            self.tell(event);
        }
    }

    /// Ends the stream if nobody follows any more.
    pub(super) fn rest_feed(&mut self, now: Moment) {
        if self.feed.as_ref().is_some_and(|feed| feed.is_idle(now)) {
            self.feed = None;
        }
    }

    fn tell(&mut self, event: BlockEvent) {
        if let Some(feed) = &mut self.feed {
            feed.push(event);
        }
    }
}
