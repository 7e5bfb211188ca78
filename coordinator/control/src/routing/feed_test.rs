//! Stories of an engine's events on a bad line, and a property: what is known converges to the truth, and never promises what is
//! gone.

use super::super::names::{EngineHash, Medium, StoredBlock, content};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn block(number: u64) -> StoredBlock {
    StoredBlock { hash: EngineHash(number), content: Some(content(&[number as u32], None, [])) }
}

fn stored(number: u64) -> CacheEvent {
    CacheEvent::Stored { parent: None, blocks: vec![block(number)], medium: Medium::Device, group: 0 }
}

fn removed(number: u64) -> CacheEvent {
    CacheEvent::Removed { hashes: vec![EngineHash(number)], medium: Medium::Device, group: 0 }
}

/// An engine: its cache, what it has published since it started, and how many batches of that it can repeat.
struct Engine {
    cache: BTreeSet<u64>,
    published: Vec<Batch>,
    ring: usize,
    clock: u64,
}

impl Engine {
    fn new(ring: usize) -> Engine {
        Engine { cache: BTreeSet::new(), published: Vec::new(), ring, clock: 1 }
    }

    fn publish(&mut self, event: CacheEvent) -> Batch {
        match &event {
            CacheEvent::Stored { blocks, .. } => self.cache.extend(blocks.iter().map(|block| block.hash.0)),
            CacheEvent::Removed { hashes, .. } => {
                for hash in hashes {
                    self.cache.remove(&hash.0);
                }
            }
            CacheEvent::Cleared => self.cache.clear(),
        }
        self.clock += 10;
        let sequence = self.published.len() as u64;
        let batch = Batch { sequence, at_us: self.clock, events: vec![event] };
        self.published.push(batch.clone());
        batch
    }

    fn restart(&mut self) {
        *self = Engine { clock: self.clock + 1000, ..Engine::new(self.ring) };
    }

    fn repeat(&self, from: u64) -> Vec<Batch> {
        let oldest = self.published.len().saturating_sub(self.ring);
        self.published.iter().skip(oldest).filter(|batch| batch.sequence >= from).cloned().collect()
    }
}

/// A feed, and the hand that has batches repeated when it asks.
struct Line {
    feed: Feed,
    asked: Option<u64>,
}

impl Line {
    fn new(can_replay: bool) -> Line {
        Line { feed: Feed::new(10_000, can_replay), asked: None }
    }

    fn tell(&mut self, event: FeedEvent) {
        let mut effects = Vec::new();
        self.feed.step(event, &mut effects);
        if let Some(FeedEffect::Replay { from }) = effects.pop() {
            self.asked = Some(from);
        }
    }

    /// Has everything repeated that is asked for, until nothing is.
    fn settle(&mut self, engine: &Engine) {
        for _ in 0..20 {
            let Some(from) = self.asked.take() else { return };
            for batch in engine.repeat(from) {
                self.tell(FeedEvent::Replayed(batch));
                if self.asked.is_some() {
                    break;
                }
            }
            if self.asked.is_none() {
                self.tell(FeedEvent::ReplayEnded);
            }
        }
        panic!("it asks for ever");
    }

    fn known(&self) -> BTreeSet<u64> {
        (0..64).filter(|number| self.feed.index().has(EngineHash(*number))).collect()
    }
}

fn set(numbers: &[u64]) -> BTreeSet<u64> {
    numbers.iter().copied().collect()
}

#[test]
fn who_comes_late_learns_what_is_repeated() {
    let mut engine = Engine::new(100);
    for number in 0..5 {
        engine.publish(stored(number));
    }
    engine.publish(removed(2));
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[0, 1, 3, 4]), true));
    assert_eq!(line.feed.newest(), Some(5));
}

#[test]
fn who_comes_too_late_knows_what_it_does_not_know() {
    let mut engine = Engine::new(2);
    for number in 0..5 {
        engine.publish(stored(number));
    }
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[3, 4]), false));
    line.tell(FeedEvent::Heard(engine.publish(CacheEvent::Cleared)));
    line.tell(FeedEvent::Heard(engine.publish(stored(7))));
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[7]), true), "nothing is all there was");
}

#[test]
fn a_gap_is_filled_while_what_follows_waits() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    line.tell(FeedEvent::Heard(engine.publish(stored(0))));
    engine.publish(removed(0));
    line.tell(FeedEvent::Heard(engine.publish(stored(1))));
    line.tell(FeedEvent::Heard(engine.publish(stored(2))));
    assert_eq!((line.known(), line.asked, line.feed.is_exact()), (set(&[0]), Some(1), false));
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[1, 2]), true));
    assert_eq!((line.feed.counters().gaps, line.feed.counters().given_up), (1, 0));
}

#[test]
fn a_gap_that_nobody_fills_costs_what_is_known() {
    let mut engine = Engine::new(1);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    line.tell(FeedEvent::Heard(engine.publish(stored(0))));
    for number in 1..4 {
        engine.publish(stored(number));
    }
    line.tell(FeedEvent::Heard(engine.publish(stored(4))));
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[4]), false));
    assert_eq!(line.feed.counters().given_up, 1);
    // So does one of an engine that repeats nothing, at once.
    let mut line = Line::new(false);
    line.tell(FeedEvent::Connected);
    for (at, number) in [(0, 10), (1, 11), (3, 13)] {
        line.tell(FeedEvent::Heard(Batch { sequence: at, at_us: at, events: vec![stored(number)] }));
    }
    assert_eq!((line.known(), line.asked), (set(&[13]), None));
}

#[test]
fn an_engine_that_starts_anew_is_noticed_by_its_clock() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    let old: Vec<Batch> = (0..4).map(|number| engine.publish(stored(number))).collect();
    for batch in &old {
        line.tell(FeedEvent::Heard(batch.clone()));
        line.tell(FeedEvent::Heard(old[0].clone()));
    }
    assert_eq!(line.known(), set(&[0, 1, 2, 3]), "what comes twice changes nothing");
    engine.restart();
    engine.publish(stored(8));
    line.tell(FeedEvent::Heard(engine.publish(stored(9))));
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[8, 9]), true));
    assert_eq!(line.feed.counters().restarts, 1);
}

#[test]
fn after_a_lost_connection_the_last_batch_tells_whether_it_is_the_same_engine() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    for number in 0..3 {
        line.tell(FeedEvent::Heard(engine.publish(stored(number))));
    }
    line.tell(FeedEvent::Lost);
    engine.publish(removed(0));
    line.tell(FeedEvent::Connected);
    assert_eq!(line.asked, Some(2));
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[1, 2]), true));
    assert_eq!(line.feed.counters().given_up, 0);
    line.tell(FeedEvent::Lost);
    engine.restart();
    for number in 10..20 {
        engine.publish(stored(number));
    }
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), ((10..20).collect(), true));
}

#[test]
fn what_cannot_be_told_after_a_lost_connection_is_given_up() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    line.tell(FeedEvent::Heard(engine.publish(stored(0))));
    line.tell(FeedEvent::Lost);
    line.tell(FeedEvent::Connected);
    line.tell(FeedEvent::Heard(engine.publish(stored(1))));
    line.tell(FeedEvent::ReplayFailed);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[1]), false));
    let mut line = Line::new(false);
    line.tell(FeedEvent::Connected);
    line.tell(FeedEvent::Heard(Batch { sequence: 0, at_us: 1, events: vec![stored(5)] }));
    assert!(line.feed.is_exact());
    line.tell(FeedEvent::Lost);
    line.tell(FeedEvent::Connected);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[]), false));
}

#[test]
fn a_silence_is_asked_about_and_a_later_gap_still_filled() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    line.tell(FeedEvent::Heard(engine.publish(stored(0))));
    engine.publish(removed(0));
    line.tell(FeedEvent::Quiet);
    line.settle(&engine);
    assert_eq!(line.known(), set(&[]), "the last batch was lost");
    line.tell(FeedEvent::Quiet);
    line.settle(&engine);
    engine.publish(stored(1));
    line.tell(FeedEvent::Heard(engine.publish(stored(2))));
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.counters().given_up), (set(&[1, 2]), 0));
}

#[test]
fn what_waits_for_a_replay_is_bounded() {
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    let many = MAX_HELD_BATCHES as u64 + 10;
    for at in 0..many {
        line.tell(FeedEvent::Heard(Batch { sequence: at, at_us: at, events: vec![stored(at % 7)] }));
    }
    assert!(line.feed.held.len() <= MAX_HELD_BATCHES);
    assert_eq!((line.feed.newest(), line.feed.is_exact()), (Some(many - 1), false));
    line.tell(FeedEvent::ReplayEnded);
    assert_eq!(line.feed.newest(), Some(many - 1), "an answer that nobody waits for any more");
}

#[test]
fn what_is_lost_while_a_gap_is_filled_is_asked_for_too() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    engine.publish(stored(0));
    line.tell(FeedEvent::Heard(engine.publish(stored(1))));
    let repeated = engine.repeat(line.asked.take().expect("a gap"));
    // While these are on their way, one more is lost, and the next arrives.
    engine.publish(stored(2));
    line.tell(FeedEvent::Heard(engine.publish(stored(3))));
    repeated.into_iter().for_each(|batch| line.tell(FeedEvent::Replayed(batch)));
    line.tell(FeedEvent::ReplayEnded);
    assert_eq!(line.asked, Some(2), "another gap");
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[0, 1, 2, 3]), true));
    assert_eq!(line.feed.counters().given_up, 0);
}

#[test]
fn an_engine_that_begins_to_publish_while_it_is_asked_is_asked_once_more() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    let repeated = engine.repeat(line.asked.take().expect("for all"));
    assert_eq!(repeated, [], "it has published nothing yet");
    engine.publish(stored(0));
    line.tell(FeedEvent::Heard(engine.publish(stored(1))));
    line.tell(FeedEvent::ReplayEnded);
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[0, 1]), true));
    // One that repeats nothing at all is asked twice and not for ever.
    let silent = Engine::new(0);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.tell(FeedEvent::Heard(Batch { sequence: 5, at_us: 9, events: vec![stored(5)] }));
    line.settle(&silent);
    assert_eq!((line.known(), line.feed.is_exact()), (set(&[5]), false));
}

#[test]
fn a_replay_that_failed_is_tried_again_and_what_is_known_stays_meanwhile() {
    let mut engine = Engine::new(100);
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    line.tell(FeedEvent::Heard(engine.publish(stored(0))));
    engine.publish(stored(1));
    line.tell(FeedEvent::Heard(engine.publish(stored(2))));
    line.asked = None;
    line.tell(FeedEvent::ReplayFailed);
    assert_eq!((line.known(), line.feed.is_exact(), line.feed.is_wanting()), (set(&[2]), false, true));
    for _ in 0..10 {
        line.tell(FeedEvent::Again);
        assert_eq!((line.asked.take(), line.feed.is_wanting()), (Some(0), false));
        line.tell(FeedEvent::ReplayFailed);
        assert_eq!((line.known(), line.feed.is_wanting()), (set(&[2]), true));
    }
    line.tell(FeedEvent::Again);
    line.settle(&engine);
    assert_eq!((line.known(), line.feed.is_exact(), line.feed.is_wanting()), (set(&[0, 1, 2]), true, false));
    line.tell(FeedEvent::Again);
    assert_eq!(line.asked, None, "nothing is missing");
}

#[test]
fn an_engine_that_has_forgotten_the_first_batches_is_not_asked_for_ever() {
    let mut engine = Engine::new(2);
    for number in 0..5 {
        engine.publish(stored(number));
    }
    let mut line = Line::new(true);
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    let mut asked = 0;
    while line.feed.is_wanting() {
        line.tell(FeedEvent::Again);
        line.settle(&engine);
        asked += 1;
        assert!(asked < 10, "it asks for ever");
    }
    assert_eq!((line.known(), line.feed.is_exact(), asked), (set(&[3, 4]), false, SHORT_REPLAYS - 1));
}

/// What happens on a line that loses much and repeats slowly.
#[derive(Clone, Debug)]
enum Slowly {
    /// A batch is published; it arrives, or does not.
    Published(u64, bool),
    /// One more of those that are being repeated arrives, or that was all.
    Repeated,
    /// What is being repeated breaks off.
    BreaksOff,
}

fn slow_story() -> impl Strategy<Value = Vec<Slowly>> {
    let happens = prop_oneof![
        6 => (0..20u64, prop::bool::weighted(2.0 / 3.0)).prop_map(|(block, comes)| Slowly::Published(block, comes)),
        8 => Just(Slowly::Repeated),
        1 => Just(Slowly::BreaksOff),
    ];
    prop::collection::vec(happens, 0..200)
}

/// What an engine repeats, as it stood when it was asked.
struct Repeats(Option<std::vec::IntoIter<Batch>>);

impl Repeats {
    fn go_on(&mut self, line: &mut Line, engine: &Engine) {
        let event = match &mut self.0 {
            None => return,
            Some(rest) => rest.next().map_or(FeedEvent::ReplayEnded, FeedEvent::Replayed),
        };
        if event == FeedEvent::ReplayEnded {
            self.0 = None;
        }
        self.tell(line, engine, event);
    }

    fn tell(&mut self, line: &mut Line, engine: &Engine, event: FeedEvent) {
        line.tell(event);
        if let Some(from) = line.asked.take() {
            self.0 = Some(engine.repeat(from).into_iter());
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_line_loses_while_it_repeats_all_of_it_is_known_in_the_end(story in slow_story()) {
        let mut engine = Engine::new(1000);
        let (mut line, mut repeats) = (Line::new(true), Repeats(None));
        repeats.tell(&mut line, &engine, FeedEvent::Connected);
        for happens in story {
            match happens {
                Slowly::Published(block, comes) => {
                    let event = if engine.cache.contains(&block) { removed(block) } else { stored(block) };
                    let batch = engine.publish(event);
                    if comes {
                        repeats.tell(&mut line, &engine, FeedEvent::Heard(batch));
                    }
                }
                Slowly::Repeated => repeats.go_on(&mut line, &engine),
                Slowly::BreaksOff => {
                    if repeats.0.take().is_some() {
                        repeats.tell(&mut line, &engine, FeedEvent::ReplayFailed);
                    }
                }
            }
            prop_assert!(!line.feed.is_exact() || line.feed.newest().is_none_or(|newest| {
                let cache = engine.published[..=newest as usize].iter().fold(BTreeSet::new(), |mut cache, batch| {
                    match &batch.events[0] {
                        CacheEvent::Stored { blocks, .. } => { cache.insert(blocks[0].hash.0); }
                        CacheEvent::Removed { hashes, .. } => { cache.remove(&hashes[0].0); }
                        CacheEvent::Cleared => cache.clear(),
                    }
                    cache
                });
                line.known() == cache
            }), "what is said to be exact is");
        }
        let settle = |line: &mut Line, repeats: &mut Repeats| while repeats.0.is_some() {
            repeats.go_on(line, &engine);
        };
        settle(&mut line, &mut repeats);
        repeats.tell(&mut line, &engine, FeedEvent::Again);
        settle(&mut line, &mut repeats);
        repeats.tell(&mut line, &engine, FeedEvent::Quiet);
        settle(&mut line, &mut repeats);
        prop_assert_eq!((line.known(), line.feed.is_exact()), (engine.cache.clone(), true));
    }
}

#[derive(Clone, Debug)]
enum Happens {
    Stored(u64),
    Removed(u64),
    Cleared,
    Restarted,
    Reconnected,
    Settled,
    Quiet,
}

#[derive(Clone, Debug)]
enum Fate {
    Arrives,
    IsLost,
    ComesTwice,
    ComesLate,
}

fn story() -> impl Strategy<Value = Vec<(Happens, Fate)>> {
    let happens = prop_oneof![
        10 => (0..20u64).prop_map(Happens::Stored),
        8 => (0..20u64).prop_map(Happens::Removed),
        1 => Just(Happens::Cleared),
        1 => Just(Happens::Restarted),
        1 => Just(Happens::Reconnected),
        4 => Just(Happens::Settled),
        1 => Just(Happens::Quiet),
    ];
    let fate = prop_oneof![
        7 => Just(Fate::Arrives),
        1 => Just(Fate::IsLost),
        1 => Just(Fate::ComesTwice),
        1 => Just(Fate::ComesLate),
    ];
    prop::collection::vec((happens, fate), 0..120)
}

fn run(story: &[(Happens, Fate)], ring: usize) -> (Line, Engine) {
    let mut engine = Engine::new(ring);
    let mut line = Line::new(true);
    let mut late = Vec::new();
    line.tell(FeedEvent::Connected);
    line.settle(&engine);
    for (happens, fate) in story {
        let event = match happens {
            Happens::Stored(number) => stored(*number),
            Happens::Removed(number) => removed(*number),
            Happens::Cleared => CacheEvent::Cleared,
            Happens::Restarted | Happens::Reconnected => {
                // A process that ends closes its connection.
                line.tell(FeedEvent::Lost);
                line.asked = None;
                if matches!(happens, Happens::Restarted) {
                    engine.restart();
                }
                late.clear();
                line.tell(FeedEvent::Connected);
                continue;
            }
            Happens::Settled => {
                line.settle(&engine);
                continue;
            }
            Happens::Quiet => {
                line.tell(FeedEvent::Quiet);
                continue;
            }
        };
        let batch = engine.publish(event);
        match fate {
            Fate::Arrives => line.tell(FeedEvent::Heard(batch)),
            Fate::IsLost => {}
            Fate::ComesTwice => {
                line.tell(FeedEvent::Heard(batch.clone()));
                line.tell(FeedEvent::Heard(batch));
            }
            Fate::ComesLate => {
                late.push(batch);
                continue;
            }
        }
        for batch in late.drain(..) {
            line.tell(FeedEvent::Heard(batch));
        }
    }
    line.settle(&engine);
    line.tell(FeedEvent::Quiet);
    line.settle(&engine);
    (line, engine)
}

proptest! {
    #[test]
    fn with_losses_repeats_delays_and_restarts_it_converges_to_the_truth(story in story()) {
        let (line, engine) = run(&story, 10_000);
        prop_assert_eq!(line.known(), engine.cache);
        prop_assert!(line.feed.is_exact());
        prop_assert_eq!(line.feed.index().invariants(), Ok(()));
    }

    #[test]
    fn where_little_is_repeated_nothing_is_promised_that_is_gone(story in story(), ring in 1..5usize) {
        let (line, engine) = run(&story, ring);
        prop_assert!(line.known().is_subset(&engine.cache), "{:?} {:?}", line.known(), engine.cache);
        if line.feed.is_exact() {
            prop_assert_eq!(line.known(), engine.cache);
        }
    }
}
