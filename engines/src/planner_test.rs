//! The planner's rules.

use crate::groups::{Group, Groups};
use crate::orders::{AskId, Order, Placed, Report, SaveId};
use crate::planner::{Matched, Planner, PlannerLimits, Scheduled};
use crate::wishes::Wish;
use kvhive_protocol::Moment;
use std::time::Duration;

const LIMITS: PlannerLimits = PlannerLimits {
    ranks: 1,
    wait: Duration::from_millis(500),
    asks: 8,
    least_tokens: 1,
    loads: true,
    saves: true,
    known: Duration::from_secs(60),
};

/// A planner of blocks of 16 tokens, and its requests' hashes by their letters.
struct Story {
    planner: Planner,
    now: Moment,
}

impl Story {
    fn begin(windows: &[Option<u32>], limits: PlannerLimits) -> Story {
        let groups = windows.iter().map(|window| Group { block_tokens: 16, window: *window }).collect();
        let planner = Planner::new(Groups::new(groups, 16).expect("good groups"), limits);
        Story { planner, now: Moment::from_millis(1000) }
    }

    fn plain() -> Story {
        Story::begin(&[None], LIMITS)
    }

    fn later(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
    }

    /// Makes a request known whose blocks have these names.
    fn request(&mut self, request: &str, blocks: &str) {
        let hashes: Vec<Vec<u8>> = blocks.bytes().map(|letter| vec![letter]).collect();
        self.planner.learn(self.now, request, hashes.len(), hashes);
    }

    fn matched(&mut self, request: &str, local: u32, tokens: u32) -> Matched {
        self.planner.matched(self.now, request, local, tokens)
    }

    fn answer(&mut self, ask: u64, end: u32) {
        self.planner.heard(vec![Report::Answered { ask: AskId(ask), end }]);
    }

    fn step(&mut self, request: &str, table: &[u32], computed: u32) -> Vec<Order> {
        let blocks = Some(vec![table.to_vec()]);
        self.planner.scheduled(self.now, Scheduled { request, blocks, is_whole: true, computed });
        self.planner.orders()
    }
}

fn placed(given: &[(u32, u32)]) -> Vec<Placed> {
    given.iter().map(|(at, block)| Placed { at: *at, block: *block }).collect()
}

#[test]
fn what_workers_hold_is_promised_and_loaded() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 16, 70), Matched::Wait);
    let names = Order::Names {
        request: "r".to_owned(),
        from: 0,
        hashes: vec![vec![b'a'], vec![b'b'], vec![b'c'], vec![b'd']],
    };
    let ask = Order::Ask { ask: AskId(1), request: "r".to_owned(), from: 16, end: 64, left_ms: 500 };
    assert_eq!(story.planner.orders(), [names, ask]);
    assert_eq!(story.matched("r", 16, 70), Matched::Wait);
    story.answer(1, 48);
    assert_eq!(story.matched("r", 16, 70), Matched::Tokens(32));
    assert_eq!(story.matched("r", 32, 70), Matched::Tokens(16), "the engine has got more itself meanwhile");
    let tables = vec![vec![9, 8, 7, 6, 5]];
    assert!(
        story.planner.allocated(story.now, "r", tables.clone(), 32).is_err(),
        "that was not the last word"
    );
    story.planner.allocated(story.now, "r", tables, 16).expect("as promised");
    let load = Order::Load { ask: AskId(1), groups: vec![placed(&[(2, 7)])] };
    assert_eq!(story.planner.orders(), [load]);
}

#[test]
fn the_last_token_is_left_to_the_engine() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 64), Matched::Wait);
    assert!(matches!(story.planner.orders()[1], Order::Ask { end: 48, .. }));
    story.request("s", "a");
    assert_eq!(story.matched("s", 0, 16), Matched::Tokens(0));
}

#[test]
fn a_request_that_nothing_is_known_of_gets_nothing_twice() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 0);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(0));
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(0));
    story.planner.orders();
    story.planner.preempted(story.now, "r");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait, "it may have been saved since");
}

#[test]
fn all_ranks_must_hold_what_is_promised() {
    let mut story = Story::begin(&[None], PlannerLimits { ranks: 2, ..LIMITS });
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 32);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(32));

    story.request("s", "efgh");
    assert_eq!(story.matched("s", 0, 70), Matched::Wait);
    story.answer(2, 64);
    story.answer(2, 0);
    assert_eq!(story.matched("s", 0, 70), Matched::Tokens(0));
    assert_eq!(
        story.planner.orders().last(),
        Some(&Order::Drop { ask: AskId(2) }),
        "one rank holds it for nothing"
    );
}

#[test]
fn layers_that_forget_are_loaded_at_their_window_and_at_one_end_alone() {
    let two = PlannerLimits { ranks: 2, ..LIMITS };
    let mut story = Story::begin(&[None, Some(17)], two);
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 64);
    story.answer(1, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(64));
    story.planner.orders();
    let tables = vec![vec![1, 2, 3, 4, 5], vec![0, 0, 0, 14, 15]];
    story.planner.allocated(story.now, "r", tables, 64).expect("as promised");
    let groups = vec![placed(&[(0, 1), (1, 2), (2, 3), (3, 4)]), placed(&[(3, 14)])];
    assert_eq!(story.planner.orders(), [Order::Load { ask: AskId(1), groups }]);

    story.request("s", "efgh");
    assert_eq!(story.matched("s", 0, 70), Matched::Wait);
    story.answer(2, 64);
    story.answer(2, 32);
    assert_eq!(story.matched("s", 0, 70), Matched::Tokens(0), "one rank's window is elsewhere");
}

#[test]
fn one_of_several_alike_asks_for_all() {
    let mut story = Story::plain();
    for request in ["r", "s"] {
        story.request(request, "abcd");
        assert_eq!(story.matched(request, 0, 70), Matched::Wait);
    }
    let asks = story.planner.orders().into_iter().filter(|order| matches!(order, Order::Ask { .. }));
    assert_eq!(asks.count(), 1);
    story.answer(1, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(64));
    assert_eq!(
        story.matched("s", 64, 70),
        Matched::Tokens(0),
        "what was loaded for the first is the engine's own"
    );
}

#[test]
fn no_request_waits_longer_than_its_limit_for_its_turn() {
    let mut story = Story::begin(&[None], PlannerLimits { asks: 1, ..LIMITS });
    story.request("r", "abcd");
    story.request("s", "efgh");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    assert_eq!(story.matched("s", 0, 70), Matched::Wait);
    story.later(499);
    assert_eq!(story.matched("s", 0, 70), Matched::Wait);
    story.later(1);
    assert_eq!(story.matched("s", 0, 70), Matched::Tokens(0));
    assert_eq!(story.matched("r", 0, 70), Matched::Wait, "its worker answers within its own limit");
    story.later(59_999);
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.later(1);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(0), "unless it never does");
    assert_eq!(story.planner.orders().last(), Some(&Order::Drop { ask: AskId(1) }));
}

#[test]
fn a_worker_that_may_answer_late_is_not_given_up_before() {
    let mut story = Story::begin(&[None], PlannerLimits { wait: Duration::from_secs(300), ..LIMITS });
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.later(299_000);
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(64));
}

#[test]
fn a_request_has_one_limit_for_its_turn_and_all_its_answers() {
    let mut story = Story::begin(&[None], PlannerLimits { asks: 1, ..LIMITS });
    story.request("r", "abcd");
    story.request("s", "efgh");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.later(300);
    assert_eq!(story.matched("s", 32, 70), Matched::Wait);
    story.answer(1, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(64));
    story.step("r", &[1, 2, 3, 4, 5], 70);
    let left = |story: &mut Story| {
        let asks = story.planner.orders().into_iter().filter_map(|order| match order {
            Order::Ask { ask: AskId(ask), left_ms, .. } => Some((ask, left_ms)),
            _ => None,
        });
        asks.collect::<Vec<_>>()
    };
    story.planner.finished("r");
    story.planner.orders();
    assert_eq!(story.matched("s", 32, 70), Matched::Wait);
    assert_eq!(left(&mut story), [(3, 200)], "what is left of it when its turn has come");
    story.later(150);
    story.answer(3, 64);
    assert_eq!(story.matched("s", 0, 70), Matched::Wait, "it has less than it had");
    assert_eq!(left(&mut story), [(4, 50)]);
    story.later(50);
    story.answer(4, 0);
    assert_eq!(story.matched("s", 0, 70), Matched::Tokens(0));
}

#[test]
fn an_engine_that_lost_what_it_had_asks_once_more() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 32, 70), Matched::Wait);
    story.answer(1, 64);
    story.planner.orders();
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    let ask = Order::Ask { ask: AskId(2), request: "r".to_owned(), from: 0, end: 64, left_ms: 500 };
    assert_eq!(story.planner.orders(), [Order::Drop { ask: AskId(1) }, ask]);
    story.answer(2, 64);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(64));
}

#[test]
fn a_wish_goes_to_workers_who_know_all_names_before_they_forget_them() {
    let mut story = Story::plain();
    let wish = Wish::Unpin { name: "a".to_owned() };
    story.planner.wished("nobody", wish.clone());
    story.request("r", "abcd");
    story.planner.wished("r", wish.clone());
    story.planner.finished("r");
    let (request, hashes) = ("r".to_owned(), "abcd".bytes().map(|letter| vec![letter]).collect());
    let orders = [
        Order::Names { request: request.clone(), from: 0, hashes },
        Order::Wish { request: request.clone(), wish },
        Order::Forget { request },
    ];
    assert_eq!(story.planner.orders(), orders);
}

#[test]
fn blocks_that_become_whole_are_saved_once() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    let orders = story.step("r", &[5, 6, 7], 33);
    let save = |save, blocks| Order::Save { save: SaveId(save), request: "r".to_owned(), group: 0, blocks };
    assert_eq!(orders[1..], [save(1, placed(&[(0, 5), (1, 6)]))]);
    let more = Scheduled { request: "r", blocks: None, is_whole: false, computed: 48 };
    story.planner.scheduled(story.now, more.clone());
    assert_eq!(story.planner.orders(), [save(2, placed(&[(2, 7)]))]);
    story.planner.scheduled(story.now, more);
    assert_eq!(story.planner.orders(), []);
    // Another request with the same blocks, as the engine's own cache gave them.
    story.request("s", "abcz");
    assert_eq!(story.step("s", &[5, 6, 7, 9], 64).len(), 2, "its names, and the one block that is new");
}

#[test]
fn what_was_lost_is_saved_when_it_is_seen_again() {
    let mut story = Story::plain();
    story.request("r", "ab");
    story.step("r", &[5, 6], 32);
    story.planner.heard(vec![Report::Lost { save: SaveId(1) }]);
    story.request("s", "ab");
    let orders = story.step("s", &[5, 6], 32);
    assert!(matches!(&orders[1], Order::Save { blocks, .. } if blocks.len() == 2));
    story.planner.heard(vec![Report::Saved { save: SaveId(2) }]);
    story.request("t", "ab");
    assert_eq!(story.step("t", &[5, 6], 32), []);
}

#[test]
fn what_was_loaded_and_what_was_forgotten_is_not_saved() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.answer(1, 32);
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(32));
    story.planner.allocated(story.now, "r", vec![vec![5, 6, 7, 8]], 32).expect("as promised");
    story.planner.orders();
    let orders = story.step("r", &[5, 6, 0, 8], 64);
    let save = Order::Save { save: SaveId(2), request: "r".to_owned(), group: 0, blocks: placed(&[(3, 8)]) };
    assert_eq!(orders, [save], "block 0 of an engine holds nothing");
}

#[test]
fn workers_are_told_of_hashes_as_they_come_and_of_the_end() {
    let mut story = Story::plain();
    story.request("r", "ab");
    story.step("r", &[5, 6, 7], 32);
    assert_eq!(story.planner.hashes("r"), 2);
    story.planner.learn(story.now, "r", 3, vec![vec![b'c']]);
    let more = Scheduled { request: "r", blocks: None, is_whole: false, computed: 48 };
    story.planner.scheduled(story.now, more);
    let names = Order::Names { request: "r".to_owned(), from: 2, hashes: vec![vec![b'c']] };
    assert_eq!(story.planner.orders()[0], names);
    story.planner.finished("r");
    assert_eq!(story.planner.orders(), [Order::Forget { request: "r".to_owned() }]);
    assert_eq!(story.planner.hashes("r"), 0);
}

#[test]
fn who_only_saves_asks_for_nothing_and_who_only_loads_saves_nothing() {
    let mut story = Story::begin(&[None], PlannerLimits { loads: false, ..LIMITS });
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Tokens(0));
    let mut story = Story::begin(&[None], PlannerLimits { saves: false, ..LIMITS });
    story.request("r", "ab");
    assert_eq!(story.step("r", &[5, 6], 32), []);
    assert_eq!(story.matched("r", 0, 33), Matched::Wait);
}

#[test]
fn a_request_that_ends_early_lets_go_of_what_is_held_for_it() {
    let mut story = Story::plain();
    story.request("r", "abcd");
    assert_eq!(story.matched("r", 0, 70), Matched::Wait);
    story.planner.orders();
    story.planner.finished("r");
    let forget = Order::Forget { request: "r".to_owned() };
    assert_eq!(story.planner.orders(), [Order::Drop { ask: AskId(1) }, forget]);
    story.answer(1, 64);
    assert_eq!(story.planner.orders(), []);
    assert!(story.planner.allocated(story.now, "r", vec![vec![1]], 16).is_err());
}
