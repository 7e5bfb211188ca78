//! Followers of a device's blocks over a network that loses, repeats and reorders: what they know comes to be what is there.

use super::asker::{Asker, Block};
use super::{KIB, Setup};
use crate::NodeHandle;
use crate::actors::core::{DeviceMessage, Exported};
use crate::guards::Lent;
use kvhive_cache::policy::Strategy;
use kvhive_cache::{BlockId, CopyTicket, Effect, Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_client::{Client, ClientConfig, Follower, Taken};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Ack, DataReply, DataRequest, StoreBlock};
use kvhive_protocol::watch::{BlockTier, Held, WatchAnswer, WatchAsk, WatchRequest};
use kvhive_protocol::{
    BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId, codec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A small generator of numbers; a seed gives the same ones each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A network: of ten messages one is lost, one repeated, one held back until later.
struct Network<T>(Vec<T>);

impl<T: Clone> Network<T> {
    fn send(&mut self, random: &mut Random, message: T) {
        let copies = if random.one_in(10) { 0 } else { 1 + usize::from(random.one_in(10)) };
        self.0.extend(std::iter::repeat_n(message, copies));
    }

    /// Returns what arrives now, in whatever order.
    fn arrive(&mut self, random: &mut Random) -> Vec<T> {
        let mut arrived = Vec::new();
        let mut later = Vec::new();
        for message in self.0.drain(..) {
            if random.one_in(10) { later.push(message) } else { arrived.push(message) }
        }
        self.0 = later;
        if random.one_in(10) {
            arrived.reverse();
        }
        arrived
    }
}

/// A shard and its users.
struct World {
    shard: Shard,
    config: ShardConfig,
    random: Random,
    now_ms: u64,
    eras: BTreeMap<TenantId, Era>,
    effects: Vec<Effect>,
    copies: Vec<CopyTicket>,
    streams: u64,
}

impl World {
    fn new(seed: u64) -> World {
        World::of(seed, [12, 8, 10])
    }

    fn of(seed: u64, frames: [u32; 3]) -> World {
        let strategies = [Strategy::Lru, Strategy::Adaptive, Strategy::S3Fifo];
        let config = ShardConfig {
            classes: vec![100],
            device: TierCapacity { frames: vec![frames[0]] },
            host: TierCapacity { frames: vec![frames[1]] },
            disk: TierCapacity { frames: vec![frames[2]] },
            rules: Rules::new(strategies[seed as usize % 3]),
            unused_to_disk: seed.is_multiple_of(2),
            prefetch: 4,
            gc_per_mille: seed.is_multiple_of(5).then_some(700),
            pinned_per_mille: 500,
            max_hold: Duration::from_millis(50),
            max_writes: 8,
            low_water_per_mille: 100,
            hash_seed: seed,
        };
        let mut world = World {
            shard: Shard::new(config.clone()),
            config,
            random: Random(seed),
            now_ms: 1000,
            eras: BTreeMap::from([(TenantId(1), Era(1)), (TenantId(2), Era(1))]),
            effects: Vec::new(),
            copies: Vec::new(),
            streams: 0,
        };
        world.shard.set_tenants(world.eras.clone());
        world
    }

    fn now(&self) -> Moment {
        Moment::from_millis(self.now_ms)
    }

    fn key(session: u64, depth: u64) -> BlockKey {
        let mut bytes = [0; 32];
        bytes[..8]
            .copy_from_slice(&(session * 64 + depth + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        BlockKey::from_bytes(bytes)
    }

    /// Lets something happen to blocks.
    fn step(&mut self) {
        self.now_ms += self.random.below(20);
        let tenant = TenantId(1 + self.random.below(2) as u32);
        let session = self.random.below(8);
        match self.random.below(40) {
            0..=19 => {
                for depth in 0..=self.random.below(6) {
                    self.store(tenant, session, depth);
                }
            }
            20..=27 => {
                let keys: KeyList = [World::key(session, self.random.below(6))].into_iter().collect();
                let found = self.shard.read(self.now(), tenant, &keys);
                for id in found.into_iter().flatten() {
                    if self.random.one_in(9) {
                        self.shard.lost(id, &mut self.effects);
                    }
                    self.shard.unread(id);
                }
            }
            28..=36 => self.shard.tend(self.now(), &mut self.effects),
            37 | 38 => {
                let era = self.eras.get_mut(&tenant).expect("there are two");
                *era = era.next();
                self.shard.set_tenants(self.eras.clone());
            }
            _ if self.random.one_in(4) => {
                // The node starts anew: nothing is there, and the stream is another's.
                self.shard = Shard::new(self.config.clone());
                self.shard.set_tenants(self.eras.clone());
                self.effects.clear();
                self.copies.clear();
            }
            _ => {}
        }
        for effect in self.effects.drain(..) {
            if let Effect::Copy { ticket, .. } = effect {
                self.copies.push(ticket);
            }
        }
        while !self.copies.is_empty() && self.random.one_in(2) {
            let at = self.random.below(self.copies.len() as u64) as usize;
            let ticket = self.copies.swap_remove(at);
            let came = !self.random.one_in(5);
            self.shard.copied(ticket, came);
        }
    }

    fn store(&mut self, tenant: TenantId, session: u64, depth: u64) -> Option<BlockId> {
        let header = BlockHeader {
            key: World::key(session, depth),
            fingerprint: LayoutFingerprint::default(),
            tenant,
            era: self.eras[&tenant],
            depth: depth as u32,
            codec: Codec::Raw,
            payload_bytes: 100,
            digest: 0,
        };
        let parent = depth.checked_sub(1).map_or(BlockKey::NONE, |depth| World::key(session, depth));
        let block = StoreBlock { header, parent };
        let now = self.now();
        let slot = Slot((session % 4096) as u16);
        match self.shard.reserve(now, tenant, &block, slot, About::default(), &mut self.effects) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket),
            _ => None,
        }
    }

    /// Ends every copy that was begun.
    fn settle(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            if let Effect::Copy { ticket, .. } = effect {
                self.shard.copied(ticket, true);
            }
        }
    }

    fn answer(&mut self, tenant: Option<TenantId>, ask: WatchAsk) -> WatchAnswer {
        self.streams += 1;
        let fresh = self.random.0 ^ self.streams;
        self.shard.watch(self.now(), tenant, ask, fresh)
    }

    /// Says what is there.
    fn truth(&mut self, tenant: Option<TenantId>) -> BTreeSet<(u32, [u8; 32], u64, BlockTier)> {
        let mut held = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let WatchAnswer::Page { next, blocks, .. } =
                self.answer(tenant, WatchAsk::Page { stream: None, from: at })
            else {
                panic!("a first page is always given")
            };
            held.extend(blocks);
            from = next;
        }
        held.into_iter()
            .map(|Held { tenant, key, era, tier, .. }| (tenant.0, *key.as_bytes(), era.0, tier))
            .collect()
    }
}

fn known(follower: &Follower) -> BTreeSet<(u32, [u8; 32], u64, BlockTier)> {
    follower.iter().map(|(tenant, key, block)| (tenant.0, *key.as_bytes(), block.era.0, block.tier)).collect()
}

#[test]
fn whatever_is_lost_repeated_or_late_followers_come_to_know_what_is_there() {
    let (mut snapshots, mut events) = (0, 0);
    for seed in 0..150 {
        let mut world = World::new(seed);
        let mut random = Random(seed ^ 0xABCD);
        let tenants = [None, Some(TenantId(1)), Some(TenantId(2))];
        let mut followers: [Follower; 3] = Default::default();
        let mut there: [Network<WatchAsk>; 3] = std::array::from_fn(|_| Network(Vec::new()));
        let mut back: [Network<WatchAnswer>; 3] = std::array::from_fn(|_| Network(Vec::new()));
        let steps = 300;
        for step in 0..steps + 200 {
            // In the end nothing happens any more, and the network goes on as it does.
            if step < steps {
                world.step();
                world.shard.invariants().expect("they hold after each step");
            }
            for at in 0..3 {
                there[at].send(&mut random, followers[at].ask());
                for ask in there[at].arrive(&mut random) {
                    let answer = world.answer(tenants[at], ask);
                    events += u64::from(
                        matches!(&answer, WatchAnswer::Events { events, .. } if !events.is_empty()),
                    );
                    back[at].send(&mut random, answer);
                }
                for answer in back[at].arrive(&mut random) {
                    followers[at].take(answer);
                }
            }
        }
        for (follower, tenant) in followers.iter().zip(tenants) {
            assert_eq!(known(follower), world.truth(tenant), "seed {seed}, {tenant:?}");
            snapshots += follower.snapshots();
        }
    }
    assert!(snapshots > 450 && events > 10_000, "gaps and events both: {snapshots}, {events}");
}

#[test]
fn a_shard_that_nobody_follows_notes_nothing_and_one_that_nobody_follows_any_more_stops() {
    let mut world = World::new(1);
    for _ in 0..50 {
        world.step();
    }
    assert!(!world.shard.is_watched());
    let mut follower = Follower::default();
    assert_eq!(
        world.answer(None, WatchAsk::Events { stream: 7, after: 0 }),
        WatchAnswer::Gap { stream: None }
    );
    let answer = world.answer(None, follower.ask());
    assert_eq!(follower.take(answer), Taken::More);
    assert!(world.shard.is_watched());
    world.now_ms += 61_000;
    world.shard.tend(world.now(), &mut world.effects);
    assert!(!world.shard.is_watched());
    // Who comes back takes a snapshot.
    let answer = world.answer(None, follower.ask());
    assert_eq!((answer.clone(), follower.take(answer)), (WatchAnswer::Gap { stream: None }, Taken::More));
    let answer = world.answer(None, follower.ask());
    follower.take(answer);
    assert_eq!(known(&follower), world.truth(None));
}

#[test]
fn a_snapshot_of_several_pages_is_exact_though_blocks_come_and_go_between_them() {
    // By recency alone, so that every store is taken in.
    for seed in [0, 3, 6] {
        let mut world = World::of(seed, [20_000, 20_000, 0]);
        for number in 0..38_000 {
            world.store(TenantId(1 + number as u32 % 2), 1000 + number, 0);
            world.settle();
        }
        let mut random = Random(seed);
        let mut follower = Follower::default();
        let (mut pages, mut back) = (0, Network(Vec::new()));
        while !follower.is_following() {
            for _ in 0..50 {
                let number = random.below(40_000);
                world.store(TenantId(1 + number as u32 % 2), 1000 + number, 0);
            }
            world.shard.tend(world.now(), &mut world.effects);
            world.settle();
            if pages == 6 {
                // Half of what the pages before have told is there no more.
                let era = world.eras.entry(TenantId(1)).or_default();
                *era = era.next();
                world.shard.set_tenants(world.eras.clone());
            }
            let answer = world.answer(None, follower.ask());
            back.send(&mut random, answer);
            for answer in back.arrive(&mut random) {
                pages += u32::from(follower.take(answer) == Taken::More);
            }
        }
        loop {
            let answer = world.answer(None, follower.ask());
            if follower.take(answer) == Taken::Current {
                break;
            }
        }
        assert!(pages > 6, "{pages}");
        assert!(known(&follower) == world.truth(None), "seed {seed}");
    }
}

#[test]
fn a_snapshot_that_is_overtaken_by_more_than_is_remembered_is_taken_anew() {
    // By recency alone, so that every store is taken in.
    let mut world = World::new(3);
    let mut follower = Follower::default();
    let answer = world.answer(None, follower.ask());
    follower.take(answer);
    for number in 0..20_000 {
        world.store(TenantId(1), 100 + number, 0);
        world.store(TenantId(2), 100 + number, 0);
        world.settle();
    }
    let mut gaps = 0;
    loop {
        let answer = world.answer(None, follower.ask());
        gaps += u32::from(matches!(answer, WatchAnswer::Gap { .. }));
        if follower.take(answer) == Taken::Current {
            break;
        }
    }
    assert_eq!((gaps, follower.snapshots()), (1, 2));
    assert_eq!(known(&follower), world.truth(None));
}

#[test]
fn the_largest_answers_fit_their_frames() {
    use kvhive_protocol::watch::{BlockEvent, MAX_BLOCKS_PER_PAGE, MAX_EVENTS_PER_ANSWER};
    let held = Held {
        tenant: TenantId(u32::MAX),
        era: Era(u64::MAX),
        key: BlockKey::from_bytes([255; 32]),
        depth: u32::MAX,
        tier: BlockTier::Disk,
    };
    let blocks = vec![held; MAX_BLOCKS_PER_PAGE];
    let events = vec![(u64::MAX, BlockEvent::Stored(held)); MAX_EVENTS_PER_ANSWER];
    for answer in [
        WatchAnswer::Page { stream: u64::MAX, at: u64::MAX, from: u32::MAX, next: Some(u32::MAX), blocks },
        WatchAnswer::Events { stream: u64::MAX, after: u64::MAX, through: u64::MAX, events },
    ] {
        let reply = DataReply::Watched { epoch: kvhive_protocol::Epoch(u64::MAX), answer };
        let bytes = codec::encode(&reply).expect("within the codec's limit").len();
        assert!(bytes <= 80 * MAX_EVENTS_PER_ANSWER, "{bytes}");
    }
}

async fn ask(asker: &mut Asker, tenant: Option<TenantId>, ask: WatchAsk) -> WatchAnswer {
    let request = WatchRequest { epoch: asker.epoch, device: asker.device, tenant, ask };
    match asker.exchange(&DataRequest::Watch(request), &[]).await {
        Ok(DataReply::Watched { answer, .. }) => answer,
        other => panic!("a question for events was answered by {other:?}"),
    }
}

async fn keys_there(node: &NodeHandle) -> BTreeSet<BlockKey> {
    let export = |reply| DeviceMessage::Export { from: 0, limit: 10_000, reply };
    let (blocks, next) =
        node.devices[0].ask(Duration::from_secs(5), export).await.expect("the device answers");
    assert_eq!(next, None);
    let key = |one: &Exported| match &one.block {
        Lent::Guard(guard) => guard.header().key,
        Lent::Far(far) => far.header().key,
    };
    blocks.iter().map(key).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_a_node_comes_to_know_what_it_holds_also_after_a_panic() {
    let setup = Setup { device_frames: 16, host_frames: 16, ..Setup::default() };
    let (_coordinator, node) = setup.one().await;
    let (mut writer, mut reader) = (node.ask().await, node.ask().await);
    let mut random = Random(5);
    let mut follower = Follower::default();
    let mut back: Network<WatchAnswer> = Network(Vec::new());
    for round in 0..200 {
        let block = Block::new(round % 70, 4 * KIB);
        writer.store(std::slice::from_ref(&block), Ack::Primary).await.expect("the node serves");
        // Of ten questions one is lost, and so are answers.
        if !random.one_in(10) {
            let answer = ask(&mut reader, None, follower.ask()).await;
            back.send(&mut random, answer);
        }
        for answer in back.arrive(&mut random) {
            follower.take(answer);
        }
    }
    while follower.take(ask(&mut reader, None, follower.ask()).await) != Taken::Current {}
    let there = keys_there(&node).await;
    let told: BTreeSet<BlockKey> = follower.iter().map(|(_, key, _)| key).collect();
    assert!(told == there && there.len() >= 16, "{} of {}", told.len(), there.len());
    assert!(follower.iter().any(|(_, _, block)| block.tier == BlockTier::Host), "some have moved down");
    // Another tenant's follower hears nothing of them.
    let mut other = Follower::default();
    let nobody = Some(TenantId(99));
    while other.take(ask(&mut reader, nobody, other.ask()).await) != Taken::Current {}
    assert!(other.is_empty() && other.is_following());
    // A core that is made anew begins empty; so does what is known, after a gap.
    node.devices[0].actor().try_send(DeviceMessage::Panic).expect("the mailbox has room");
    node.is_made_anew().await;
    let mut reader = node.ask().await;
    while follower.take(ask(&mut reader, None, follower.ask()).await) != Taken::Current {}
    let told: BTreeSet<BlockKey> = follower.iter().map(|(_, key, _)| key).collect();
    assert_eq!(told, keys_there(&node).await);
    assert_eq!(node.shard_stats().await.blocks(), told.len() as u64);
    assert!(follower.snapshots() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_every_device_and_says_which_does_not_answer() {
    let (coordinator, nodes) = Setup::default().several(2).await;
    let client = ClientConfig::new(vec![coordinator.address()], super::TOKEN.to_vec());
    let client = Client::connect(client).await.expect("the coordinator answers");
    let mut watch = client.watch_blocks(None).expect("all tenants may be followed");
    assert!(client.watch_blocks(Some("nobody")).is_err());
    let report = watch.poll().await;
    assert_eq!((report.current, report.behind, report.failed.len()), (2, 0, 0));
    let mut writer = nodes[0].ask().await;
    let block = Block::new(7, KIB);
    writer.store(std::slice::from_ref(&block), Ack::All).await.expect("the node serves");
    let report = watch.poll().await;
    assert_eq!((report.current, report.failed.len()), (2, 0));
    let holders = watch.holders(block.header.tenant, &block.header.key);
    assert_eq!(holders.len(), 2, "both replicas hold it");
    nodes[1].shutdown(Duration::from_secs(5));
    let report = watch.poll().await;
    assert_eq!((report.current, report.failed.len()), (1, 1));
    assert_eq!(watch.devices().len(), 2);
}
