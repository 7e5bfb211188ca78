//! The courier's rules, and that every question is answered whatever happens.

use crate::courier::{Courier, CourierLimits, Effect, Event};
use crate::figures::{Figures, NotSaved};
use crate::groups::{Group, Groups};
use crate::orders::{AskId, Order, Placed, Report, SaveId};
use crate::wishes::Wish;
use kvhive_protocol::Moment;
use kvhive_protocol::data::Hint;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

const WAIT: Duration = Duration::from_millis(500);

fn courier(windows: &[Option<u32>], memory: u64, asks: usize) -> Courier {
    let groups = windows.iter().map(|window| Group { block_tokens: 16, window: *window }).collect();
    let groups = Groups::new(groups, 16).expect("good groups");
    let block_bytes = vec![100; windows.len()];
    Courier::new(groups, CourierLimits { wait: WAIT, asks, memory, block_bytes })
}

struct Story {
    courier: Courier,
    now: Moment,
}

impl Story {
    /// One whose scheduler has told of a request of so many blocks.
    fn begin(mut courier: Courier, blocks: u8) -> Story {
        let now = Moment::from_millis(1000);
        let hashes = (0..blocks).map(|hash| vec![hash]).collect();
        let names = Order::Names { request: "r".to_owned(), from: 0, hashes };
        let mut effects = Vec::new();
        courier.step(now, Event::Told(names), &mut effects);
        assert_eq!(effects, []);
        Story { courier, now }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.courier.step(self.now, event, &mut effects);
        effects
    }

    fn ask(&mut self, ask: u64, from: u32, end: u32) -> Vec<Effect> {
        self.step(Event::Told(Order::Ask {
            ask: AskId(ask),
            request: "r".to_owned(),
            from,
            end,
            left_ms: 60_000,
        }))
    }

    fn found(&mut self, ask: u64, blocks: &[usize]) -> Vec<Effect> {
        self.step(Event::Found { ask: AskId(ask), blocks: Some(blocks.to_vec()) })
    }

    fn save(&mut self, save: u64, blocks: u32) -> Vec<Effect> {
        let blocks = (0..blocks).map(|at| Placed { at, block: 50 + at }).collect();
        self.step(Event::Told(Order::Save { save: SaveId(save), request: "r".to_owned(), group: 0, blocks }))
    }

    fn silent(&mut self, ask: u64) -> Vec<Effect> {
        self.ask(ask, 0, 64);
        self.step(Event::Found { ask: AskId(ask), blocks: None })
    }
}

/// What one group is asked for.
fn one(blocks: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(blocks).collect()
}

/// What is told of a save that is not made.
fn unsaved(save: u64, why: NotSaved) -> [Effect; 2] {
    [Effect::NotSaved(why), lost(save)]
}

fn lost(save: u64) -> Effect {
    Effect::Report(Report::Lost { save: SaveId(save) })
}

fn answered(ask: u64, end: u32) -> Effect {
    Effect::Report(Report::Answered { ask: AskId(ask), end })
}

#[test]
fn what_is_found_is_fetched_and_held() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    let effects = story.ask(1, 16, 64);
    assert!(
        matches!(&effects[..], [Effect::Find { groups, limit, .. }] if *groups == one(1..4) && *limit == WAIT)
    );
    story.now = story.now + Duration::from_millis(200);
    let fetch = Effect::Fetch { ask: AskId(1), groups: one(1..3), limit: Duration::from_millis(300) };
    assert_eq!(story.found(1, &[2]), [fetch]);
    let fetched = Event::Fetched { ask: AskId(1), blocks: vec![2], is_late: false };
    assert_eq!(story.step(fetched), [answered(1, 48)]);
    let groups = vec![vec![Placed { at: 1, block: 7 }, Placed { at: 2, block: 8 }]];
    let load = Order::Load { ask: AskId(1), groups: groups.clone() };
    assert_eq!(story.step(Event::Told(load)), [Effect::Load { ask: AskId(1), groups }]);
    assert!(story.courier.holds(AskId(1)));
    assert_eq!(story.step(Event::Loaded(AskId(1))), []);
    assert!(!story.courier.holds(AskId(1)));
    let figures = Figures { asks: 1, tokens_asked: 48, tokens_loaded: 32, ..Figures::default() };
    assert_eq!(story.courier.figures(), figures);
}

#[test]
fn what_does_not_come_ends_what_is_held() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    story.ask(1, 0, 64);
    story.found(1, &[4]);
    let part = Event::Fetched { ask: AskId(1), blocks: vec![3], is_late: false };
    assert_eq!(story.step(part), [answered(1, 48)]);
    story.ask(2, 0, 64);
    story.found(2, &[4]);
    let none = Event::Fetched { ask: AskId(2), blocks: vec![0], is_late: true };
    assert_eq!(story.step(none), [Effect::Release(AskId(2)), answered(2, 0)]);
}

#[test]
fn windows_are_fetched_at_the_end_and_whole_or_not_at_all() {
    let mut story = Story::begin(courier(&[None, Some(17)], 10_000, 4), 4);
    story.ask(1, 0, 64);
    let effects = story.found(1, &[4, 3]);
    assert!(matches!(&effects[..], [Effect::Fetch { groups, .. }] if groups[..] == [0..3, 2..3]));
    let part = Event::Fetched { ask: AskId(1), blocks: vec![2, 1], is_late: false };
    assert_eq!(story.step(part), [Effect::Release(AskId(1)), answered(1, 0)]);
}

#[test]
fn memory_bounds_what_is_on_its_way() {
    let mut story = Story::begin(courier(&[None], 500, 4), 4);
    assert!(matches!(&story.save(1, 3)[..], [Effect::Save { .. }]));
    story.ask(2, 0, 64);
    let effects = story.found(2, &[4]);
    assert!(matches!(&effects[..], [Effect::Fetch { groups, .. }] if *groups == one(0..2)), "what fits");
    assert_eq!(story.save(3, 1), unsaved(3, NotSaved::NoMemory));
    let stored = Event::Stored { save: SaveId(1), kept: Some(3) };
    assert_eq!(story.step(stored), [Effect::Report(Report::Saved { save: SaveId(1) })]);
    assert!(matches!(&story.save(4, 3)[..], [Effect::Save { .. }]));
    story.ask(5, 0, 64);
    assert_eq!(story.found(5, &[4]), [answered(5, 0)]);
    assert_eq!(story.courier.figures().no_memory, 3);
}

#[test]
fn a_cluster_that_is_silent_costs_two_waits_and_is_then_left_alone() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    assert_eq!(story.silent(1), [answered(1, 0)]);
    assert_eq!(story.silent(2), [answered(2, 0)]);
    assert!(story.courier.is_resting());
    assert_eq!(story.ask(3, 0, 64), [answered(3, 0)], "at once");
    assert!(matches!(&story.save(4, 1)[..], [Effect::Save { .. }]), "no request waits for it");
    story.now = story.now + Duration::from_secs(1);
    assert!(matches!(&story.ask(5, 0, 64)[..], [Effect::Find { .. }]), "one sees whether it is back");
    assert_eq!(story.ask(6, 0, 64), [answered(6, 0)]);
    assert_eq!(story.found(5, &[0]), [answered(5, 0)]);
    assert!(!story.courier.is_resting());
    assert_eq!(story.courier.figures().unasked, 2);
}

#[test]
fn saves_that_nobody_answers_are_made_again_after_a_while_by_one_first() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    for save in [1, 2] {
        assert!(matches!(&story.save(save, 1)[..], [Effect::Save { .. }]));
        assert_eq!(story.step(Event::Stored { save: SaveId(save), kept: None }), [lost(save)]);
    }
    assert_eq!(story.save(3, 1), unsaved(3, NotSaved::Rests));
    assert_eq!(story.ask(4, 0, 64), [answered(4, 0)], "who takes no save answers no question");
    story.now = story.now + Duration::from_millis(500);
    assert!(matches!(&story.save(5, 1)[..], [Effect::Save { .. }]), "one sees whether it is back");
    assert_eq!(story.save(6, 1), unsaved(6, NotSaved::Rests));
    // It was never sent: another one sees.
    assert_eq!(story.step(Event::Unsaved(SaveId(5))), [lost(5)]);
    assert!(matches!(&story.save(7, 1)[..], [Effect::Save { .. }]));
    assert_eq!(story.save(8, 1), unsaved(8, NotSaved::Rests), "nobody has answered yet");
    let saved = Effect::Report(Report::Saved { save: SaveId(7) });
    assert_eq!(story.step(Event::Stored { save: SaveId(7), kept: Some(1) }), [saved]);
    assert!(matches!(&story.save(9, 1)[..], [Effect::Save { .. }]));
    assert!(matches!(&story.ask(10, 0, 64)[..], [Effect::Find { .. }]));
    assert_eq!((story.courier.figures().blocks_lost, story.courier.saving()), (6, 1));
}

#[test]
fn a_save_that_is_answered_has_no_request_wait_in_vain_again() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    story.silent(1);
    story.silent(2);
    assert!(matches!(&story.save(3, 1)[..], [Effect::Save { .. }]));
    let saved = Effect::Report(Report::Saved { save: SaveId(3) });
    assert_eq!(story.step(Event::Stored { save: SaveId(3), kept: Some(1) }), [saved]);
    assert!(story.courier.is_resting());
    assert_eq!(story.ask(4, 0, 64), [answered(4, 0)], "at once");
    // What is found in time later on has them ask as before.
    story.now = story.now + Duration::from_millis(500);
    assert!(matches!(&story.ask(5, 0, 64)[..], [Effect::Find { .. }]));
    story.found(5, &[0]);
    assert!(matches!(&story.ask(6, 0, 64)[..], [Effect::Find { .. }]));
}

#[test]
fn a_question_that_is_answered_has_no_save_made_that_nobody_takes() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    story.ask(1, 0, 64);
    story.found(1, &[4]);
    story.ask(2, 0, 64);
    for save in [3, 4] {
        assert!(matches!(&story.save(save, 1)[..], [Effect::Save { .. }]));
        assert_eq!(story.step(Event::Stored { save: SaveId(save), kept: None }), [lost(save)]);
    }
    assert_eq!(story.found(2, &[0]), [answered(2, 0)]);
    assert_eq!(story.save(5, 1), unsaved(5, NotSaved::Rests), "matches are answered, and saves are not");
    let fetched = Event::Fetched { ask: AskId(1), blocks: vec![4], is_late: false };
    assert_eq!(story.step(fetched), [answered(1, 64)]);
    assert_eq!(story.save(6, 1), unsaved(6, NotSaved::Rests));
    assert!(matches!(&story.ask(7, 0, 64)[..], [Effect::Find { .. }]), "questions are");
}

#[test]
fn what_is_loaded_counts_and_not_what_was_asked_for() {
    let mut story = Story::begin(courier(&[None], 1000, 4), 4);
    story.ask(1, 0, 64);
    story.found(1, &[4]);
    story.step(Event::Fetched { ask: AskId(1), blocks: vec![4], is_late: false });
    // Meanwhile its engine has computed three of the four itself.
    let groups = vec![vec![Placed { at: 3, block: 7 }]];
    story.step(Event::Told(Order::Load { ask: AskId(1), groups }));
    story.step(Event::Loaded(AskId(1)));
    assert_eq!(story.courier.figures().tokens_loaded, 16);
}

#[test]
fn a_wish_is_about_all_whole_blocks_or_the_first_that_it_says() {
    let mut story = Story::begin(courier(&[None], 1000, 1), 4);
    let mut told = |request: &str, wish: &Wish| {
        let order = Order::Wish { request: request.to_owned(), wish: wish.clone() };
        match &story.step(Event::Told(order))[..] {
            [Effect::Wish { groups, wish: same, .. }] if same == wish => groups.clone(),
            effects => panic!("{effects:?}"),
        }
    };
    let pin = |tokens| Wish::Pin { name: "a".to_owned(), seconds: None, tokens };
    assert_eq!(told("r", &pin(None)), [4]);
    assert_eq!(told("r", &pin(Some(47))), [2]);
    assert_eq!(told("r", &Wish::Session(Hint::Over)), [4]);
    assert_eq!(told("nobody", &pin(None)), [0]);
}

#[test]
fn questions_beyond_the_limit_wait_and_not_for_ever() {
    let mut story = Story::begin(courier(&[None], 10_000, 1), 4);
    assert_eq!(story.ask(1, 0, 64).len(), 1);
    assert_eq!(story.ask(2, 0, 64), []);
    assert_eq!(story.ask(3, 0, 64), []);
    let effects = story.found(1, &[0]);
    assert!(matches!(&effects[..], [first, Effect::Find { ask: AskId(2), .. }] if *first == answered(1, 0)));
    story.now = story.now + WAIT;
    assert_eq!(story.step(Event::Looked), [answered(3, 0)]);
}

#[test]
fn whoever_is_dropped_frees_memory_and_lets_the_next_one_go() {
    let mut story = Story::begin(courier(&[None], 400, 1), 4);
    story.ask(1, 0, 64);
    story.found(1, &[4]);
    assert_eq!(story.ask(2, 0, 64), []);
    let effects = story.step(Event::Told(Order::Drop { ask: AskId(1) }));
    assert!(matches!(&effects[..], [Effect::Release(AskId(1)), Effect::Find { ask: AskId(2), .. }]));
    assert!(matches!(&story.found(2, &[4])[..], [Effect::Fetch { .. }]));
    assert_eq!(story.step(Event::Fetched { ask: AskId(1), blocks: vec![4], is_late: false }), []);
    assert_eq!(story.courier.figures().blocks_wasted, 4);
}

#[test]
fn a_save_of_which_a_part_is_kept_counts_as_lost() {
    let mut story = Story::begin(courier(&[None], 1000, 1), 4);
    story.save(1, 3);
    assert!(story.courier.is_saving());
    assert_eq!(story.courier.saving(), 3);
    assert_eq!(story.step(Event::Stored { save: SaveId(1), kept: Some(2) }), [lost(1)]);
    assert!(!story.courier.is_saving());
    let figures = story.courier.figures();
    assert_eq!((figures.blocks_saved, figures.blocks_lost), (2, 1));
}

#[test]
fn blocks_without_names_are_not_saved() {
    let mut story = Story::begin(courier(&[None], 1000, 1), 2);
    assert_eq!(story.save(1, 3), unsaved(1, NotSaved::Unnamed));
}

#[derive(Clone, Debug)]
enum Happening {
    Ask { from: u8, end: u8 },
    Save { blocks: u8 },
    Drop { which: usize },
    Found { which: usize, blocks: Option<(u8, u8)> },
    Fetched { which: usize, blocks: (u8, u8), is_late: bool },
    Loaded { which: usize },
    Stored { which: usize, kept: Option<u8> },
    Unsaved { which: usize },
    Time { millis: u16 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let which = 0..8usize;
    prop_oneof![
        3 => (0..8u8, 0..10u8).prop_map(|(from, end)| Happening::Ask { from, end }),
        2 => (1..9u8).prop_map(|blocks| Happening::Save { blocks }),
        1 => which.clone().prop_map(|which| Happening::Drop { which }),
        3 => (which.clone(), proptest::option::weighted(0.8, (0..9u8, 0..9u8)))
            .prop_map(|(which, blocks)| Happening::Found { which, blocks }),
        3 => (which.clone(), (0..9u8, 0..9u8), any::<bool>())
            .prop_map(|(which, blocks, is_late)| Happening::Fetched { which, blocks, is_late }),
        2 => which.clone().prop_map(|which| Happening::Loaded { which }),
        2 => (which.clone(), proptest::option::weighted(0.8, 0..9u8))
            .prop_map(|(which, kept)| Happening::Stored { which, kept }),
        1 => which.prop_map(|which| Happening::Unsaved { which }),
        1 => (0..3000u16).prop_map(|millis| Happening::Time { millis }),
    ]
}

proptest! {
    /// Every question that is not dropped is answered once, every save reported once, and no memory stays taken.
    #[test]
    fn everything_ends(happenings in proptest::collection::vec(happening(), 1..120), forgets in any::<bool>()) {
        let windows = [None, forgets.then_some(40)];
        let mut story = Story::begin(courier(&windows, 1500, 3), 8);
        let (mut open, mut saves) = (BTreeSet::new(), BTreeSet::new());
        let (mut sought, mut fetching) = (Vec::new(), Vec::new());
        let (mut held, mut saving) = (Vec::new(), Vec::new());
        let mut next = 1u64;
        let nth = |list: &Vec<u64>, which: usize| list.get(which % list.len().max(1)).copied();
        let mut all = happenings;
        // Then the world answers whatever is still out.
        for _ in 0..400 {
            all.push(Happening::Time { millis: 1 });
            all.push(Happening::Found { which: 0, blocks: None });
            all.push(Happening::Fetched { which: 0, blocks: (0, 0), is_late: false });
            all.push(Happening::Loaded { which: 0 });
            all.push(Happening::Stored { which: 0, kept: Some(0) });
        }
        for happening in all {
            let event = match happening {
                Happening::Ask { from, end } => {
                    open.insert(next);
                    next += 1;
                    let (from, end) = (u32::from(from) * 16, u32::from(end) * 16);
                    Event::Told(Order::Ask { ask: AskId(next - 1), request: "r".to_owned(), from, end, left_ms: 60_000 })
                }
                Happening::Save { blocks } => {
                    saves.insert(next);
                    next += 1;
                    let blocks = (0..u32::from(blocks)).map(|at| Placed { at, block: at + 1 }).collect();
                    let (save, request) = (SaveId(next - 1), "r".to_owned());
                    Event::Told(Order::Save { save, request, group: 0, blocks })
                }
                Happening::Drop { which } => {
                    let Some(ask) = open.iter().chain(&held).nth(which).copied() else { continue };
                    open.remove(&ask);
                    held.retain(|held| *held != ask);
                    Event::Told(Order::Drop { ask: AskId(ask) })
                }
                Happening::Found { which, blocks } => {
                    let Some(ask) = nth(&sought, which) else { continue };
                    sought.retain(|one| *one != ask);
                    let blocks = blocks.map(|(one, other)| vec![one as usize, other as usize]);
                    Event::Found { ask: AskId(ask), blocks }
                }
                Happening::Fetched { which, blocks: (one, other), is_late } => {
                    let Some(ask) = nth(&fetching, which) else { continue };
                    fetching.retain(|one| *one != ask);
                    Event::Fetched { ask: AskId(ask), blocks: vec![one as usize, other as usize], is_late }
                }
                Happening::Loaded { which } => {
                    let Some(ask) = nth(&held, which) else { continue };
                    held.retain(|one| *one != ask);
                    Event::Loaded(AskId(ask))
                }
                Happening::Stored { which, kept } => {
                    let Some(save) = nth(&saving, which) else { continue };
                    saving.retain(|one| *one != save);
                    Event::Stored { save: SaveId(save), kept: kept.map(usize::from) }
                }
                Happening::Unsaved { which } => {
                    let Some(save) = nth(&saving, which) else { continue };
                    saving.retain(|one| *one != save);
                    Event::Unsaved(SaveId(save))
                }
                Happening::Time { millis } => {
                    story.now = story.now + Duration::from_millis(u64::from(millis));
                    Event::Looked
                }
            };
            for effect in story.step(event) {
                match effect {
                    Effect::Find { ask, .. } => sought.push(ask.0),
                    Effect::Fetch { ask, .. } => fetching.push(ask.0),
                    Effect::Save { save, .. } => saving.push(save.0),
                    Effect::Report(Report::Answered { ask, end }) => {
                        prop_assert!(open.remove(&ask.0), "answered twice");
                        if story.courier.holds(ask) {
                            prop_assert!(end > 0 && end % 16 == 0);
                            held.push(ask.0);
                        }
                    }
                    Effect::Report(Report::Saved { save } | Report::Lost { save }) => {
                        prop_assert!(saves.remove(&save.0), "reported twice");
                    }
                    Effect::Release(_)
                    | Effect::Load { .. }
                    | Effect::NotSaved(_)
                    | Effect::Wish { .. } => {}
                }
            }
            prop_assert!(story.courier.used() <= 1500);
        }
        prop_assert!(open.is_empty() && saves.is_empty(), "{open:?} {saves:?}");
        prop_assert_eq!(story.courier.used(), 0);
    }
}
