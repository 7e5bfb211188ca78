//! What each mode changes: shards made from its knobs, as a node makes them of a cluster's file, do what the mode says. What a node
//! does by a codec, a priority and a batch's delay is tested there (`node/src/tests/knobs.rs`).

use super::one_node;
use super::process::{shard_tuning, tuning};
use kvhive_cache::policy::Strategy;
use kvhive_cache::{Effect, Reserve, Rules, Shard, ShardConfig, TierCapacity};
use kvhive_config::Mode;
use kvhive_node::Tuning;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{About, Run, StoreBlock};
use kvhive_protocol::{BlockHeader, BlockKey, Era, KeyList, LayoutFingerprint, Moment, Slot, TenantId};
use std::collections::BTreeMap;
use std::time::Duration;

const TENANT: TenantId = TenantId(1);

/// What a mode's knobs come to.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    /// Blocks that one match brings up of 600 on disk.
    brought_up: u64,
    /// Seconds for which a match keeps a block that asks for a minute.
    held_s: u64,
    /// Whether what was never used goes to disk.
    keeps_unused: bool,
    /// Whether some of a loop twice as large as the cache is found in it.
    keeps_of_a_loop: bool,
    /// Whether memory is used to the full.
    fills_memory: bool,
    /// How long moves and bookkeeping wait, in milliseconds.
    waits_ms: u128,
    /// How clients store blocks of tenants that ask for nothing, where there is a smaller size for them.
    codec: Codec,
    /// Reads of requests that pass one transfer of the others on a busy disk.
    priority: u32,
}

fn key(number: u64) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn block(number: u64, parent: Option<u64>, depth: u32) -> StoreBlock {
    let header = BlockHeader {
        key: key(number),
        fingerprint: LayoutFingerprint::default(),
        tenant: TENANT,
        era: Era(1),
        depth,
        codec: Codec::Raw,
        payload_bytes: 1,
        digest: 0,
    };
    StoreBlock { header, parent: parent.map_or(BlockKey::NONE, key) }
}

/// A shard of a node with these knobs.
struct Scenario {
    shard: Shard,
    now: Moment,
    effects: Vec<Effect>,
}

impl Scenario {
    fn of(tuning: Tuning, strategy: Strategy, device: u32, disk: u32, low_water_per_mille: u16) -> Scenario {
        let mut shard = Shard::new(ShardConfig {
            classes: vec![1],
            device: TierCapacity { frames: vec![device] },
            host: TierCapacity::default(),
            disk: TierCapacity { frames: vec![disk] },
            rules: Rules::new(strategy),
            max_hold: tuning.hold,
            max_writes: 8,
            low_water_per_mille,
            unused_to_disk: tuning.unused_to_disk,
            prefetch: tuning.prefetch_blocks,
            gc_per_mille: tuning.gc_per_mille,
            pinned_per_mille: 500,
            hash_seed: 1,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        Scenario { shard, now: Moment::from_millis(1000), effects: Vec::new() }
    }

    fn store(&mut self, number: u64) -> bool {
        let block = block(number, None, 0);
        match self.shard.reserve(self.now, TENANT, &block, Slot(1), About::default(), &mut self.effects) {
            Reserve::Take { ticket, .. } => self.shard.seal(ticket).is_some(),
            Reserve::Present(_) => true,
            Reserve::Refused(_) => false,
        }
    }

    fn covered(&mut self, numbers: std::ops::Range<u64>, hold: Duration) -> u32 {
        let run = Run { slot: Slot(1), keys: (numbers.end - numbers.start) as u32 };
        let keys: KeyList = numbers.map(key).collect();
        self.shard.match_runs(self.now, TENANT, &[run], &keys, hold)[0]
    }

    fn settle(&mut self) {
        loop {
            self.shard.tend(self.now, &mut self.effects);
            let effects = std::mem::take(&mut self.effects);
            for effect in &effects {
                if let Effect::Copy { ticket, .. } = effect {
                    self.shard.copied(*ticket, true);
                }
            }
            if effects.is_empty() {
                return;
            }
        }
    }
}

fn brought_up(tuning: Tuning) -> u64 {
    let mut scene = Scenario::of(tuning, tuning.strategy, 700, 600, 0);
    for number in 0..600 {
        let block = block(number, number.checked_sub(1), number as u32);
        scene.shard.restore(TENANT, &block, Slot(1), 0).expect("there is a place");
    }
    assert_eq!(scene.covered(0..600, Duration::ZERO), 600);
    scene.settle();
    scene.shard.stats().promoted
}

fn held_s(tuning: Tuning) -> u64 {
    // Under this strategy a newcomer is refused for nothing but a hold.
    let mut scene = Scenario::of(tuning, Strategy::Lru, 1, 0, 0);
    assert!(scene.store(0));
    assert_eq!(scene.covered(0..1, Duration::from_secs(60)), 1);
    let begun = scene.now;
    let mut held = 0;
    while !scene.store(1) {
        held += 1;
        scene.now = begun + Duration::from_secs(held);
    }
    held
}

fn keeps_unused(tuning: Tuning) -> bool {
    let mut scene = Scenario::of(tuning, tuning.strategy, 4, 8, 250);
    for number in 0..6 {
        scene.store(number);
        scene.settle();
    }
    scene.shard.stats().disk.blocks > 0
}

fn keeps_of_a_loop(tuning: Tuning) -> bool {
    let mut scene = Scenario::of(tuning, tuning.strategy, 50, 0, 0);
    let mut hits = 0;
    for _ in 0..20 {
        hits = 0;
        for number in 0..100 {
            hits += scene.covered(number..number + 1, Duration::ZERO);
            scene.store(number);
        }
    }
    hits > 0
}

fn fills_memory(tuning: Tuning) -> bool {
    let mut scene = Scenario::of(tuning, tuning.strategy, 50, 0, 0);
    (0..50).for_each(|number| assert!(scene.store(number)));
    scene.settle();
    scene.shard.stats().device.blocks == 50
}

fn seen(tuning: Tuning) -> Seen {
    Seen {
        brought_up: brought_up(tuning),
        held_s: held_s(tuning),
        keeps_unused: keeps_unused(tuning),
        keeps_of_a_loop: keeps_of_a_loop(tuning),
        fills_memory: fills_memory(tuning),
        waits_ms: tuning.batch_delay.as_millis(),
        codec: tuning.codec,
        priority: tuning.priority,
    }
}

/// Returns what a node makes of a mode that its cluster's file names.
fn tuning_of(mode: Mode) -> Tuning {
    let node = format!(
        r#"
            mode = "{}"
            block_sizes = [{{ size = "32KiB", share = 0.5 }}, {{ size = "64KiB", share = 0.5 }}]
            [[node.device]]
            memory = "10MiB"
        "#,
        mode.as_str()
    );
    let config = one_node::config(&node, "");
    tuning(&config.nodes[0])
}

fn of(mode: Mode) -> Seen {
    seen(tuning_of(mode))
}

/// What the mode of all kinds comes to; the others are told by what they change.
const INFERENCE: Seen = Seen {
    brought_up: 64,
    held_s: 5,
    keeps_unused: true,
    keeps_of_a_loop: true,
    fills_memory: true,
    waits_ms: 10,
    codec: Codec::Raw,
    priority: 16,
};

#[test]
fn inference_keeps_all_it_can_and_brings_up_a_little() {
    assert_eq!(of(Mode::Inference), INFERENCE);
    let simple = Tuning { strategy: Strategy::Lru, ..shard_tuning(Mode::Inference.tuning(2)) };
    assert_eq!(
        seen(simple),
        Seen { keeps_of_a_loop: false, ..INFERENCE },
        "its strategy is not the simple one"
    );
}

#[test]
fn training_keeps_a_part_of_its_loop_and_writes_to_disk_what_was_used() {
    let expected = Seen {
        brought_up: 0,
        held_s: 1,
        keeps_unused: false,
        waits_ms: 50,
        codec: Codec::Lossless,
        ..INFERENCE
    };
    assert_eq!(of(Mode::Training), expected);
    assert_eq!(shard_tuning(Mode::Training.tuning(2)).strategy, Strategy::Lirs);
}

#[test]
fn bulk_brings_up_whole_prefixes_and_holds_them_for_long() {
    let expected =
        Seen { brought_up: 512, held_s: 20, waits_ms: 50, codec: Codec::Lossless, priority: 4, ..INFERENCE };
    assert_eq!(of(Mode::Bulk), expected);
}

#[test]
fn streaming_lets_what_comes_once_pass_by() {
    let seen = of(Mode::Streaming);
    assert_eq!((seen.brought_up, seen.held_s, seen.keeps_unused, seen.waits_ms), (16, 1, false, 10));
    assert_eq!((seen.codec, seen.priority), (Codec::Raw, 16));
    // A block that was used twice outlives a stream of those that are used once.
    let survives = |strategy| {
        let mut scene = Scenario::of(shard_tuning(Mode::Streaming.tuning(2)), strategy, 50, 0, 0);
        scene.store(0);
        assert_eq!([0, 0].map(|_| scene.covered(0..1, Duration::ZERO)), [1, 1]);
        (1..500).for_each(|number| assert!(scene.store(number)));
        scene.covered(0..1, Duration::ZERO) == 1
    };
    assert!(survives(shard_tuning(Mode::Streaming.tuning(2)).strategy) && !survives(Strategy::Lru));
}

#[test]
fn interactive_moves_at_once_and_brings_up_and_holds_more() {
    assert_eq!(
        of(Mode::Interactive),
        Seen { brought_up: 256, held_s: 10, waits_ms: 2, priority: 64, ..INFERENCE }
    );
}

#[test]
fn a_threshold_over_any_mode_leaves_room_in_memory() {
    for mode in Mode::ALL {
        let knobs = kvhive_config::Tuning { gc_per_mille: 800, ..mode.tuning(2) };
        assert!(!fills_memory(shard_tuning(knobs)), "{mode:?}");
    }
}
