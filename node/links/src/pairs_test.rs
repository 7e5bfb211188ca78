//! Each rule of a GPU's pairs, told by calling the machine.

use super::*;
use kvhive_protocol::MemberId;
use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{Incarnation, UniqueId};
use std::collections::BTreeSet;
use std::time::Duration;

const fn gpu(member: u32) -> DeviceId {
    DeviceId::new(MemberId(member), 0)
}

/// The GPU that is told here; it is rank 1 with the first of the others, and rank 0 with the rest.
const ME: DeviceId = gpu(2);
const LOW: DeviceId = gpu(1);
const HIGH: DeviceId = gpu(3);
const HIGHER: DeviceId = gpu(4);
const FIRST: Generation = Generation(1);
const BYTES: u64 = 1 << 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id() -> UniqueId {
    UniqueId([7; 128])
}

fn incarnation(number: u64) -> Incarnation {
    Incarnation { generation: FIRST, number }
}

fn of(sender: DeviceId, number: u64) -> TransferId {
    TransferId { number, sender, generation: FIRST }
}

struct Told {
    pairs: Pairs,
    counted: Vec<Counted>,
    now: Moment,
    tickets: u64,
}

impl Told {
    fn new() -> Told {
        Told::with(Tuning { make_after_bytes: BYTES, ..Tuning::default() })
    }

    fn with(tuning: Tuning) -> Told {
        let mut told = Told {
            pairs: Pairs::new(ME, FIRST, tuning),
            counted: Vec::new(),
            now: Moment::from_millis(1),
            tickets: 0,
        };
        for device in [LOW, HIGH, HIGHER] {
            told.tell(Event::Peer { device, generation: FIRST });
        }
        told
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.pairs.step(self.now, event, &mut effects);
        self.pairs.invariants().unwrap_or_else(|broken| panic!("{broken}"));
        effects.retain(|effect| match effect {
            Effect::Count(counted) => {
                self.counted.push(*counted);
                false
            }
            _ => true,
        });
        effects
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now + time;
        self.tell(Event::Tick)
    }

    /// Wants a MiB to go to a peer within ten seconds.
    fn want(&mut self, peer: DeviceId) -> (Ticket, Vec<Effect>) {
        self.tickets += 1;
        let (ticket, deadline) = (Ticket(self.tickets), self.now + ms(10_000));
        (ticket, self.tell(Event::Want { ticket, peer, bytes: BYTES, deadline }))
    }

    fn expect(&mut self, transfer: TransferId) -> Vec<Effect> {
        let deadline = self.now + ms(10_000);
        self.tell(Event::Expect { transfer, bytes: BYTES, deadline })
    }

    fn hear(&mut self, from: DeviceId, word: PairWord) -> Vec<Effect> {
        let message = PairMessage { from, generation: FIRST, to: ME, to_generation: FIRST, word };
        self.tell(Event::Message(message))
    }

    fn worker(&mut self, answer: Answer) -> Vec<Effect> {
        self.tell(Event::Worker(answer))
    }

    /// Has a communicator with a peer be made and stand; returns it.
    fn ready(&mut self, peer: DeviceId) -> Communicator {
        let (_, effects) = self.want(peer);
        assert!(
            effects.iter().any(|effect| matches!(effect, Effect::UseTcp { why: Why::BeingMade, .. })),
            "{effects:?}"
        );
        if effects.contains(&Effect::StartWorker) {
            self.worker(Answer::Started);
        }
        let communicator = Communicator(self.pairs.communicators.max(1));
        if peer > ME {
            let [.., Effect::Say(offer)] = &self.worker(Answer::Made { communicator, id: id() })[..] else {
                panic!("no offer")
            };
            let PairWord::Offer { incarnation, .. } = offer.word else { panic!("{offer:?}") };
            self.hear(peer, PairWord::Accept { incarnation });
        } else {
            let number = self.pairs.peers[&peer].newest.number + 1;
            self.hear(peer, PairWord::Offer { incarnation: incarnation(number), id: id() });
            if self.pairs.worker != Worker::Up {
                self.worker(Answer::Started);
            }
        }
        let communicator = Communicator(self.pairs.communicators);
        self.worker(Answer::Ready { communicator });
        assert_eq!(self.pairs.state(peer), Some(PairState::Ready));
        communicator
    }

    /// Has a want be granted, so that it is being sent.
    fn send(&mut self, peer: DeviceId) -> (Ticket, TransferId) {
        let (ticket, effects) = self.want(peer);
        let (transfer, round) = proposed(&effects);
        self.hear(peer, PairWord::Grant { transfer, round });
        assert_eq!(self.pairs.state(peer), Some(PairState::Busy));
        (ticket, transfer)
    }

    /// Returns the incarnation that stands with a peer.
    fn standing(&self, peer: DeviceId) -> Incarnation {
        self.pairs.peers[&peer].stage.ready().expect("it stands").0
    }

    fn propose(&mut self, transfer: TransferId, round: u64) -> Vec<Effect> {
        let incarnation = self.standing(transfer.sender);
        self.hear(transfer.sender, PairWord::Propose { transfer, round, incarnation, bytes: BYTES })
    }
}

fn said(to: DeviceId, word: PairWord) -> Effect {
    Effect::Say(PairMessage { from: ME, generation: FIRST, to, to_generation: FIRST, word })
}

fn by_tcp(ticket: Ticket, why: Why) -> [Effect; 2] {
    [Effect::UseTcp { ticket, why }, Effect::SourceQuiet { ticket }]
}

fn not_here(transfer: TransferId, why: Why) -> [Effect; 2] {
    [Effect::NotArrived { transfer, why }, Effect::RoomQuiet { transfer }]
}

/// Returns what is proposed.
fn proposed(effects: &[Effect]) -> (TransferId, u64) {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Say(PairMessage { word: PairWord::Propose { transfer, round, .. }, .. }) => {
            Some((*transfer, *round))
        }
        _ => None,
    });
    found.unwrap_or_else(|| panic!("nothing is proposed: {effects:?}"))
}

#[test]
fn nothing_is_made_before_enough_was_wanted_and_nothing_is_held_up() {
    let mut told = Told::with(Tuning { make_after_bytes: 2 * BYTES, ..Tuning::default() });
    let (first, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(first, Why::TooFewBytes));
    let (second, effects) = told.want(HIGH);
    assert_eq!(effects[0], Effect::StartWorker);
    assert_eq!(effects[1..], by_tcp(second, Why::BeingMade));
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Offered));
    // Two that are far apart do not count together.
    let mut told = Told::with(Tuning { make_after_bytes: 2 * BYTES, ..Tuning::default() });
    told.want(HIGH);
    told.pass(ms(60_001));
    let (late, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(late, Why::TooFewBytes));
}

#[test]
fn rank_0_offers_and_joins_after_rank_1() {
    let mut told = Told::new();
    told.want(HIGH);
    let communicator = Communicator(1);
    assert_eq!(told.worker(Answer::Started), [Effect::Worker(Command::Id { communicator })]);
    let incarnation = incarnation(1);
    let offer = said(HIGH, PairWord::Offer { incarnation, id: id() });
    assert_eq!(told.worker(Answer::Made { communicator, id: id() }), [offer]);
    let join = Effect::Worker(Command::Join { communicator, id: id(), rank: 0, of: 2 });
    assert_eq!(told.hear(HIGH, PairWord::Accept { incarnation }), [join]);
    assert_eq!(told.hear(HIGH, PairWord::Accept { incarnation }), [], "it comes twice");
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Joining));
    assert_eq!(told.worker(Answer::Ready { communicator }), []);
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Ready));
}

#[test]
fn rank_1_asks_and_joins_what_it_is_offered_once() {
    let mut told = Told::new();
    let (ticket, effects) = told.want(LOW);
    assert_eq!(effects[0], said(LOW, PairWord::Ask { after: Incarnation::default() }));
    assert_eq!(effects[1..], by_tcp(ticket, Why::BeingMade));
    let offer = PairWord::Offer { incarnation: incarnation(4), id: id() };
    assert_eq!(told.hear(LOW, offer.clone()), [Effect::StartWorker]);
    let communicator = Communicator(1);
    let join = Effect::Worker(Command::Join { communicator, id: id(), rank: 1, of: 2 });
    let accept = said(LOW, PairWord::Accept { incarnation: incarnation(4) });
    assert_eq!(told.worker(Answer::Started), [join, accept]);
    assert_eq!(told.hear(LOW, offer), [], "it comes twice");
    assert_eq!(told.hear(LOW, PairWord::Offer { incarnation: incarnation(3), id: id() }), [], "an older one");
}

#[test]
fn a_newer_offer_says_that_the_one_before_is_no_more() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    let newer = told.standing(LOW).number + 1;
    let effects = told.hear(LOW, PairWord::Offer { incarnation: incarnation(newer), id: id() });
    let close = Effect::Worker(Command::Close { communicator });
    assert_eq!(effects, [close, said(LOW, PairWord::Broken { incarnation: incarnation(newer) })]);
    assert_eq!(told.pairs.state(LOW), Some(PairState::Aborting));
}

#[test]
fn an_ask_of_who_has_lost_it_ends_it_and_a_late_one_does_not() {
    let mut told = Told::new();
    told.ready(HIGH);
    assert_eq!(told.hear(HIGH, PairWord::Ask { after: Incarnation::default() }), []);
    let after = told.standing(HIGH);
    told.hear(HIGH, PairWord::Ask { after });
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Aborting));
}

#[test]
fn a_transfer_is_proposed_granted_and_sent() {
    let mut told = Told::new();
    let communicator = told.ready(HIGH);
    let (ticket, effects) = told.want(HIGH);
    let (transfer, round) = proposed(&effects);
    assert_eq!(effects[0], Effect::Store { ticket, transfer, peer: HIGH, bytes: BYTES });
    assert_eq!(effects.len(), 2);
    let deadline = told.now + ms(10_000);
    let send = Effect::Worker(Command::Send { communicator, transfer, ticket, deadline });
    let go = said(HIGH, PairWord::Go { transfer, round });
    assert_eq!(told.hear(HIGH, PairWord::Grant { transfer, round }), [go.clone(), send]);
    assert_eq!(
        told.hear(HIGH, PairWord::Grant { transfer, round }),
        std::slice::from_ref(&go),
        "it comes twice"
    );
    let done = told.worker(Answer::Done { communicator, transfer });
    assert_eq!(done, [Effect::Carried { ticket }, Effect::SourceQuiet { ticket }]);
    assert_eq!(told.hear(HIGH, PairWord::Grant { transfer, round }), [go], "what was sent must be received");
    let report = told.pairs.snapshot(told.now);
    assert_eq!((report.pairs[0].transfers, report.pairs[0].bytes), (1, BYTES));
}

#[test]
fn a_transfer_is_received_when_room_proposal_and_go_are_there() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    let transfer = of(LOW, 9);
    assert_eq!(told.propose(transfer, 1), [], "there is no room yet");
    assert_eq!(told.expect(transfer), [said(LOW, PairWord::Grant { transfer, round: 1 })]);
    assert_eq!(told.hear(LOW, PairWord::Go { transfer, round: 2 }), [], "another round");
    let deadline = told.now + ms(10_000);
    let receive = Effect::Worker(Command::Receive { communicator, transfer, deadline });
    assert_eq!(told.hear(LOW, PairWord::Go { transfer, round: 1 }), [receive]);
    assert_eq!(told.hear(LOW, PairWord::Go { transfer, round: 1 }), [], "it comes twice");
    let done = told.worker(Answer::Done { communicator, transfer });
    assert_eq!(done, [Effect::Arrived { transfer }, Effect::RoomQuiet { transfer }]);
    assert_eq!(told.propose(transfer, 1), [], "a proposal that comes twice");
    // What begins here from now on is younger.
    told.ready(HIGH);
    assert!(proposed(&told.want(HIGH).1).0.number > transfer.number);
}

#[test]
fn a_proposal_gives_way_to_an_older_transfer_and_not_to_a_younger_one() {
    let mut told = Told::new();
    told.ready(LOW);
    let communicator = told.ready(HIGH);
    let (_, effects) = told.want(HIGH);
    let (own, round) = proposed(&effects);
    let younger = of(HIGH, own.number);
    told.expect(younger);
    assert_eq!(told.propose(younger, 1), []);
    let older = of(LOW, own.number);
    told.expect(older);
    let withdraw = said(HIGH, PairWord::Withdraw { transfer: own, round, is_last: false });
    let grant = said(LOW, PairWord::Grant { transfer: older, round: 1 });
    assert_eq!(told.propose(older, 1), [withdraw.clone(), grant]);
    let crossed = told.hear(HIGH, PairWord::Grant { transfer: own, round });
    assert_eq!(crossed, [withdraw], "a grant that crosses the withdrawal");
    // The older one is withdrawn in its turn: the own one is next, and then the younger one.
    told.hear(LOW, PairWord::Withdraw { transfer: older, round: 1, is_last: true });
    let round = round + 1;
    told.hear(HIGH, PairWord::Grant { transfer: own, round });
    let done = told.worker(Answer::Done { communicator, transfer: own });
    assert_eq!(done.last(), Some(&said(HIGH, PairWord::Grant { transfer: younger, round: 1 })));
}

#[test]
fn what_is_not_granted_in_time_goes_by_tcp() {
    let mut told = Told::new();
    told.ready(HIGH);
    let (ticket, effects) = told.want(HIGH);
    let (transfer, round) = proposed(&effects);
    assert_eq!(told.pairs.wakes(), Some(told.now + ms(200)));
    assert_eq!(told.pass(ms(199)), []);
    let effects = told.pass(ms(1));
    assert_eq!(effects[0], said(HIGH, PairWord::Withdraw { transfer, round, is_last: true }));
    assert_eq!(effects[1..], by_tcp(ticket, Why::NotGranted));
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Ready), "the communicator stays");
    let late = told.hear(HIGH, PairWord::Grant { transfer, round });
    assert_eq!(late, [said(HIGH, PairWord::Withdraw { transfer, round, is_last: true })]);
}

#[test]
fn what_is_not_done_by_its_deadline_is_answered_and_its_slot_is_free_once_it_is_closed() {
    let mut told = Told::new();
    let communicator = told.ready(HIGH);
    told.ready(LOW);
    let broken = said(HIGH, PairWord::Broken { incarnation: told.standing(HIGH) });
    let (ticket, _) = told.send(HIGH);
    let effects = told.pass(ms(10_000));
    let abort = Effect::Worker(Command::Abort { communicator });
    assert_eq!(effects, [Effect::UseTcp { ticket, why: Why::Late }, abort, broken]);
    let (waits, effects) = told.want(LOW);
    assert_eq!(effects, [], "what was enqueued may go on");
    let effects = told.worker(Answer::Closed { communicator });
    assert_eq!(effects[0], Effect::SourceQuiet { ticket });
    assert!(matches!(effects[1], Effect::Store { ticket, .. } if ticket == waits), "{effects:?}");
    let (cold, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(cold, Why::Cold));
}

#[test]
fn a_grant_that_nobody_goes_on_with_ends_the_communicator() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    let broken = said(LOW, PairWord::Broken { incarnation: told.standing(LOW) });
    let transfer = of(LOW, 9);
    told.expect(transfer);
    told.propose(transfer, 1);
    let effects = told.pass(ms(1000));
    assert_eq!(effects[..2], not_here(transfer, Why::NoAnswer), "nothing was enqueued here");
    assert_eq!(effects[2..], [Effect::Worker(Command::Close { communicator }), broken]);
}

#[test]
fn a_withdrawal_frees_the_slot_that_it_is_of() {
    let mut told = Told::new();
    told.ready(LOW);
    let (first, second) = (of(LOW, 9), of(LOW, 10));
    told.expect(first);
    told.propose(first, 3);
    told.hear(LOW, PairWord::Withdraw { transfer: first, round: 2, is_last: false });
    assert_eq!(told.pairs.state(LOW), Some(PairState::Busy), "an older round");
    let last = told.hear(LOW, PairWord::Withdraw { transfer: first, round: 3, is_last: true });
    assert_eq!(last, not_here(first, Why::Withdrawn));
    assert_eq!(told.pairs.state(LOW), Some(PairState::Ready));
    told.hear(LOW, PairWord::Withdraw { transfer: second, round: 4, is_last: true });
    assert_eq!(told.expect(second), not_here(second, Why::Withdrawn), "it was withdrawn before");
}

#[test]
fn a_worker_that_does_not_close_is_killed_and_rests_longer_each_time() {
    let mut told = Told::new();
    for rest in [1000, 2000, 4000] {
        let communicator = told.ready(HIGH);
        let (ticket, _) = told.send(HIGH);
        told.worker(Answer::Failed { communicator });
        assert_eq!(told.pass(ms(3999)), []);
        assert_eq!(told.pass(ms(1)), [Effect::KillWorker]);
        assert_eq!(told.worker(Answer::Died), [Effect::SourceQuiet { ticket }]);
        told.now = told.now + ms(rest - 1);
        let (early, effects) = told.want(HIGHER);
        assert_eq!(effects, by_tcp(early, Why::NoWorker));
        told.now = told.now + ms(rest + 1);
    }
    let communicator = told.ready(HIGH);
    let (_, transfer) = told.send(HIGH);
    told.worker(Answer::Done { communicator, transfer });
    assert_eq!(told.pairs.worker_failures, 0, "what has carried something begins anew");
}

#[test]
fn the_death_of_the_worker_answers_everything_and_tells_everybody() {
    let mut told = Told::new();
    told.ready(LOW);
    told.ready(HIGH);
    let (sent, _) = told.send(HIGH);
    let (waits, _) = told.want(LOW);
    let expected = of(LOW, 99);
    told.expect(expected);
    let broken = [LOW, HIGH].map(|peer| said(peer, PairWord::Broken { incarnation: told.standing(peer) }));
    let effects = told.worker(Answer::Died);
    for effect in by_tcp(waits, Why::NoWorker).into_iter().chain(by_tcp(sent, Why::NoWorker)).chain(broken) {
        assert_eq!(effects.iter().filter(|other| **other == effect).count(), 1, "{effect:?} of {effects:?}");
    }
    assert!(not_here(expected, Why::NoWorker).iter().all(|effect| effects.contains(effect)));
    assert_eq!([LOW, HIGH].map(|peer| told.pairs.state(peer)), [Some(PairState::Cold); 2]);
    assert_eq!(told.worker(Answer::Died), [], "it is dead");
}

#[test]
fn a_peer_gives_up_this_communicator_and_not_an_earlier_one() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    let standing = told.standing(LOW);
    let earlier = Incarnation { number: standing.number - 1, ..standing };
    assert_eq!(told.hear(LOW, PairWord::Broken { incarnation: earlier }), []);
    let close = Effect::Worker(Command::Close { communicator });
    assert_eq!(told.hear(LOW, PairWord::Broken { incarnation: standing }), [close]);
    told.worker(Answer::Closed { communicator });
    let earlier = PairWord::Propose { transfer: of(LOW, 5), round: 9, incarnation: standing, bytes: BYTES };
    assert_eq!(told.hear(LOW, earlier), [said(LOW, PairWord::Broken { incarnation: standing })]);
}

#[test]
fn the_one_used_longest_ago_makes_room_and_none_that_was_used_lately_or_is_busy() {
    let tuning = Tuning { make_after_bytes: BYTES, max_live: 2, ..Tuning::default() };
    let mut told = Told::with(tuning);
    let oldest = told.ready(LOW);
    told.pass(ms(5000));
    told.ready(HIGH);
    let (ticket, effects) = told.want(HIGHER);
    assert_eq!(effects, by_tcp(ticket, Why::NoRoom));
    told.pass(ms(5000));
    let broken = said(LOW, PairWord::Broken { incarnation: told.standing(LOW) });
    let (ticket, effects) = told.want(HIGHER);
    assert_eq!(effects[..2], [Effect::Worker(Command::Close { communicator: oldest }), broken]);
    assert_eq!(effects[2..], by_tcp(ticket, Why::NoRoom), "it is not closed yet");
    told.worker(Answer::Closed { communicator: oldest });
    assert_eq!(told.pairs.state(LOW), Some(PairState::Idle), "nothing has failed");
    let (_, effects) = told.want(HIGHER);
    assert!(matches!(effects[0], Effect::Worker(Command::Id { .. })), "{effects:?}");
}

#[test]
fn a_proposal_whose_withdrawal_was_lost_keeps_nothing_open() {
    let mut told = Told::with(Tuning { make_after_bytes: BYTES, max_live: 1, ..Tuning::default() });
    let communicator = told.ready(LOW);
    assert_eq!(told.propose(of(LOW, 9), 1), []);
    told.pass(ms(10_000));
    let (_, effects) = told.want(HIGH);
    assert_eq!(effects[0], Effect::Worker(Command::Close { communicator }));
}

#[test]
fn a_busy_one_is_not_closed_however_long_ago_it_was_used() {
    let mut told =
        Told::with(Tuning { make_after_bytes: BYTES, max_live: 1, keep: ms(1), ..Tuning::default() });
    let communicator = told.ready(HIGH);
    let (_, transfer) = told.send(HIGH);
    told.pass(ms(9000));
    let (ticket, effects) = told.want(LOW);
    assert_eq!(effects, by_tcp(ticket, Why::NoRoom));
    told.worker(Answer::Done { communicator, transfer });
    told.pass(ms(1));
    let (_, effects) = told.want(LOW);
    assert_eq!(effects[0], Effect::Worker(Command::Close { communicator }));
}

#[test]
fn who_leaves_the_map_is_not_asked_and_is_forgotten_once_it_is_closed() {
    let mut told = Told::new();
    let communicator = told.ready(HIGH);
    let (ticket, _) = told.send(HIGH);
    let abort = Effect::Worker(Command::Abort { communicator });
    assert_eq!(told.tell(Event::Gone { device: HIGH }), [Effect::UseTcp { ticket, why: Why::Gone }, abort]);
    assert_eq!(told.pairs.state(HIGH), None);
    let (late, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(late, Why::Gone));
    assert_eq!(told.worker(Answer::Closed { communicator }), [Effect::SourceQuiet { ticket }]);
    assert!(!told.pairs.peers.contains_key(&HIGH));
    told.tell(Event::Gone { device: LOW });
    assert!(!told.pairs.peers.contains_key(&LOW), "there was nothing to close");
}

#[test]
fn a_peer_that_has_started_anew_is_known_by_what_it_says() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    told.hear(LOW, PairWord::Withdraw { transfer: of(LOW, 1), round: 70, is_last: true });
    let word = PairWord::Ask { after: Incarnation::default() };
    let message = PairMessage { from: LOW, generation: Generation(2), to: ME, to_generation: FIRST, word };
    assert_eq!(told.tell(Event::Message(message)), [Effect::Worker(Command::Close { communicator })]);
    told.worker(Answer::Closed { communicator });
    assert_eq!((told.pairs.peers[&LOW].round, told.pairs.state(LOW)), (0, Some(PairState::Idle)));
    let earlier = PairWord::Offer { incarnation: incarnation(50), id: id() };
    assert_eq!(told.hear(LOW, earlier), [], "of its earlier start");
    assert_eq!(told.expect(of(LOW, 3)), not_here(of(LOW, 3), Why::Gone), "of its earlier start");
}

#[test]
fn what_fails_rests_twice_as_long_each_time_up_to_a_bound() {
    let tuning = Tuning { rest_most: ms(3000), ..Tuning::default() };
    assert_eq!(
        [1, 2, 3, 4, 60].map(|failures| tuning.rest(failures)),
        [1000, 2000, 3000, 3000, 3000].map(ms)
    );
    let mut told = Told::new();
    for rest in [1000, 2000] {
        told.want(LOW);
        assert_eq!(told.pairs.state(LOW), Some(PairState::Offered));
        told.pass(ms(2000));
        assert_eq!(told.pairs.state(LOW), Some(PairState::Cold));
        told.pass(ms(rest));
        assert_eq!(told.pairs.state(LOW), Some(PairState::Idle));
    }
}

#[test]
fn two_ends_that_do_not_mean_the_same_move_nothing() {
    let mut told = Told::new();
    told.ready(LOW);
    let (transfer, incarnation) = (of(LOW, 9), told.standing(LOW));
    told.expect(transfer);
    let word = PairWord::Propose { transfer, round: 1, incarnation, bytes: BYTES + 1 };
    assert_eq!(told.hear(LOW, word), not_here(transfer, Why::Mismatch));
}

#[test]
fn what_the_peers_node_refuses_goes_by_tcp_at_once() {
    let mut told = Told::new();
    told.ready(HIGH);
    let (ticket, effects) = told.want(HIGH);
    let (transfer, round) = proposed(&effects);
    let effects = told.tell(Event::Refused { ticket });
    assert_eq!(effects[0], said(HIGH, PairWord::Withdraw { transfer, round, is_last: true }));
    assert_eq!(effects[1..], by_tcp(ticket, Why::Refused));
    let (ticket, _) = told.send(HIGH);
    assert_eq!(told.tell(Event::Refused { ticket }), [], "it is being sent");
}

#[test]
fn a_want_waits_for_a_communicator_as_long_as_it_is_told_to() {
    let tuning = Tuning { make_after_bytes: BYTES, wait_for_pair: ms(500), ..Tuning::default() };
    let mut told = Told::with(tuning.clone());
    let (ticket, effects) = told.want(LOW);
    assert_eq!(effects, [said(LOW, PairWord::Ask { after: Incarnation::default() })]);
    assert_eq!(told.pass(ms(500)), by_tcp(ticket, Why::BeingMade));
    let mut told = Told::with(tuning);
    let (ticket, _) = told.want(LOW);
    told.hear(LOW, PairWord::Offer { incarnation: incarnation(1), id: id() });
    told.worker(Answer::Started);
    let effects = told.worker(Answer::Ready { communicator: Communicator(1) });
    assert!(matches!(effects[0], Effect::Store { ticket: stored, .. } if stored == ticket), "{effects:?}");
}

#[test]
fn there_are_no_more_transfers_than_there_may_be_and_none_without_time() {
    let mut told = Told::with(Tuning { make_after_bytes: BYTES, max_transfers: 1, ..Tuning::default() });
    told.ready(HIGH);
    told.want(HIGH);
    let (second, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(second, Why::TooMany));
    told.expect(of(HIGH, 1));
    assert_eq!(told.expect(of(HIGH, 2)), not_here(of(HIGH, 2), Why::TooMany));
    let (ticket, deadline) = (Ticket(99), told.now);
    let effects = told.tell(Event::Want { ticket, peer: HIGH, bytes: 1, deadline });
    assert_eq!(effects, by_tcp(ticket, Why::Late));
}

#[test]
fn messages_of_strangers_earlier_starts_and_made_up_numbers_change_nothing() {
    let mut told = Told::new();
    told.ready(LOW);
    let standing = told.standing(LOW);
    let before = told.pairs.clone();
    let broken = PairWord::Broken { incarnation: standing };
    let good = PairMessage { from: LOW, generation: FIRST, to: ME, to_generation: FIRST, word: broken };
    let huge = PairWord::Propose { transfer: of(LOW, u64::MAX), round: 1, incarnation: standing, bytes: 1 };
    let others = PairWord::Propose { transfer: of(HIGH, 5), round: 1, incarnation: standing, bytes: 1 };
    let messages = [
        PairMessage { from: gpu(77), ..good.clone() },
        PairMessage { from: ME, ..good.clone() },
        PairMessage { to: HIGH, ..good.clone() },
        PairMessage { generation: Generation(0), ..good.clone() },
        PairMessage { to_generation: Generation(0), ..good.clone() },
        PairMessage { word: huge, ..good.clone() },
        PairMessage { word: others, ..good },
    ];
    for message in messages {
        assert_eq!(told.tell(Event::Message(message.clone())), [], "{message:?}");
        assert_eq!(told.pairs, before, "{message:?}");
    }
}

#[test]
fn the_report_says_how_far_each_pair_is_and_why() {
    let mut told = Told::new();
    assert_eq!(told.pairs.snapshot(told.now).worker, "not started");
    told.ready(HIGH);
    told.want(LOW);
    told.pass(ms(2000));
    let (_, transfer) = told.send(HIGH);
    told.want(HIGH);
    let report = told.pairs.snapshot(told.now + ms(400));
    assert_eq!((report.device, report.worker.as_str(), report.live, report.waiting), (ME, "runs", 1, 1));
    assert_eq!(report.slot, format!("sends {transfer} to {HIGH}"));
    let [low, high] = &report.pairs[..] else { panic!("two pairs: {report:?}") };
    assert_eq!((low.peer, low.state, low.for_ms, low.rests_ms), (LOW, PairState::Cold, 400, Some(600)));
    assert_eq!((low.why.as_deref(), low.failures), (Some("the peer did not answer in time"), 1));
    assert_eq!((high.peer, high.state, high.for_ms), (HIGH, PairState::Busy, 2400));
    let later = told.pairs.snapshot(told.now + ms(1000));
    assert_eq!((later.pairs[0].state, later.pairs[0].rests_ms), (PairState::Idle, None));
}

#[test]
fn why_has_words_of_its_own_for_each_and_is_a_failure_where_the_pair_was_at_fault() {
    let words: std::collections::BTreeSet<_> = Why::ALL.iter().map(|why| why.to_string()).collect();
    assert_eq!(words.len(), Why::ALL.len());
    let failures: Vec<Why> = Why::ALL.into_iter().filter(|why| why.is_failure()).collect();
    assert_eq!(failures, [Why::NoWorker, Why::PeerBroke, Why::NoAnswer, Why::Late, Why::Failed]);
}

#[test]
fn what_becomes_of_pairs_is_counted() {
    let mut told = Told::new();
    let first = told.ready(HIGH);
    told.worker(Answer::Failed { communicator: first });
    told.worker(Answer::Closed { communicator: first });
    told.ready(LOW);
    told.tell(Event::Gone { device: LOW });
    let expected = [Counted::Made, Counted::GivenUp(Why::Failed), Counted::Made, Counted::GivenUp(Why::Gone)];
    assert_eq!(told.counted, expected);
    let names: BTreeSet<&str> = Why::ALL.iter().map(|why| why.as_str()).collect();
    assert_eq!(names.len(), Why::ALL.len());
    assert!(Why::ALL.iter().enumerate().all(|(at, why)| *why as usize == at));
}

#[test]
fn a_gpu_that_turns_out_to_have_no_nccl_starts_no_second_worker() {
    let mut told = Told::new();
    told.tell(Event::Peer { device: HIGH, generation: FIRST });
    let (_, effects) = told.want(HIGH);
    assert_eq!(effects[0], Effect::StartWorker);
    let newer = incarnation(1);
    let effects = told.hear(LOW, PairWord::Offer { incarnation: newer, id: id() });
    assert_eq!(effects, [], "it is answered when there is a worker");
    let effects = told.worker(Answer::Unfit);
    assert_eq!(effects, [said(LOW, PairWord::Broken { incarnation: newer })]);
    assert_eq!(told.worker(Answer::Died), []);
    assert!(told.pairs.is_without());
    told.pass(Duration::from_secs(3600));
    let (late, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(late, Why::Without));
    let newer = incarnation(2);
    let effects = told.hear(LOW, PairWord::Offer { incarnation: newer, id: id() });
    assert_eq!(effects, [said(LOW, PairWord::Broken { incarnation: newer })]);
    assert_eq!([LOW, HIGH].map(|peer| told.pairs.state(peer)), [None, None], "it is no way");
}

#[test]
fn a_peer_that_does_without_nccl_is_asked_again_when_it_has_started_anew() {
    let mut told = Told::new();
    let communicator = told.ready(HIGH);
    told.tell(Event::Lacks { device: HIGH, generation: Generation(0) });
    assert_eq!(told.pairs.state(HIGH), Some(PairState::Ready), "that was said of an earlier start");
    let effects = told.tell(Event::Lacks { device: HIGH, generation: FIRST });
    assert_eq!(effects, [Effect::Worker(Command::Close { communicator })]);
    told.worker(Answer::Closed { communicator });
    told.pass(Duration::from_secs(3600));
    let (ticket, effects) = told.want(HIGH);
    assert_eq!(effects, by_tcp(ticket, Why::Without));
    assert_eq!(told.pairs.state(HIGH), None);
    told.tell(Event::Peer { device: HIGH, generation: Generation(FIRST.0 + 1) });
    let (ticket, effects) = told.want(HIGH);
    assert_eq!(effects[1..], by_tcp(ticket, Why::BeingMade));
}

fn group(word: GroupWord) -> PairWord {
    PairWord::Group(word)
}

impl Told {
    /// Wants a MiB to go to the two others of greater numbers at once, within ten seconds.
    fn want_both(&mut self) -> (Ticket, Vec<Effect>) {
        self.tickets += 1;
        let (ticket, deadline) = (Ticket(self.tickets), self.now + ms(10_000));
        let peers = vec![HIGHER, HIGH];
        (ticket, self.tell(Event::WantAll { ticket, peers, bytes: BYTES, deadline }))
    }

    /// Has a communicator with both be made and stand; returns it.
    fn both_ready(&mut self) -> Communicator {
        let (ticket, effects) = self.want_both();
        assert!(effects.contains(&by_tcp(ticket, Why::BeingMade)[0]), "{effects:?}");
        if effects.contains(&Effect::StartWorker) {
            self.worker(Answer::Started);
        }
        let communicator = Communicator(self.pairs.communicators);
        let incarnation = incarnation(self.pairs.incarnations);
        let offer = GroupWord::Offer { incarnation, id: id(), members: vec![HIGH, HIGHER] };
        let offers = [HIGH, HIGHER].map(|to| said(to, group(offer.clone())));
        assert_eq!(self.worker(Answer::Made { communicator, id: id() }), offers);
        assert_eq!(
            self.hear(HIGH, group(GroupWord::Accept { incarnation })),
            [],
            "nobody joins before all do"
        );
        assert_eq!(self.hear(HIGH, group(GroupWord::Accept { incarnation })), [], "each counts once");
        let join = Command::Join { communicator, id: id(), rank: 0, of: 3 };
        assert_eq!(self.hear(HIGHER, group(GroupWord::Accept { incarnation })), [Effect::Worker(join)]);
        self.worker(Answer::Ready { communicator });
        assert_eq!(self.pairs.group_state(&[HIGH, HIGHER]), Some(PairState::Ready));
        communicator
    }

    /// Joins what the first of the others has offered to this GPU and another.
    fn joined(&mut self) -> Incarnation {
        let incarnation = incarnation(1);
        let offer = GroupWord::Offer { incarnation, id: id(), members: vec![ME, HIGH] };
        let effects = self.hear(LOW, group(offer));
        if effects.contains(&Effect::StartWorker) {
            self.worker(Answer::Started);
        }
        let communicator = Communicator(self.pairs.communicators);
        self.worker(Answer::Ready { communicator });
        incarnation
    }
}

fn withdrawn(to: DeviceId, transfer: TransferId, round: u64) -> Effect {
    said(to, PairWord::Withdraw { transfer, round, is_last: false })
}

#[test]
fn what_goes_to_several_is_sent_once_when_all_of_them_have_granted_it() {
    let mut told = Told::new();
    let communicator = told.both_ready();
    let (ticket, effects) = told.want_both();
    let (transfer, round) = (of(ME, told.pairs.clock), told.pairs.rounds);
    let (incarnation, bytes) = (incarnation(told.pairs.incarnations), BYTES);
    let store = |peer| Effect::Store { ticket, transfer, peer, bytes };
    let propose = |to| said(to, group(GroupWord::Propose { transfer, round, incarnation, bytes }));
    assert_eq!(effects, [store(HIGH), store(HIGHER), propose(HIGH), propose(HIGHER)]);
    assert_eq!(told.hear(HIGHER, PairWord::Grant { transfer, round }), [], "one is not all");
    assert_eq!(told.hear(HIGHER, PairWord::Grant { transfer, round }), [], "nor is one twice");
    let effects = told.hear(HIGH, PairWord::Grant { transfer, round });
    let go = |to| said(to, PairWord::Go { transfer, round });
    let deadline = told.now + ms(10_000);
    let send = Effect::Worker(Command::Send { communicator, transfer, ticket, deadline });
    assert_eq!(effects, [go(HIGH), go(HIGHER), send]);
    assert_eq!(told.hear(HIGH, PairWord::Grant { transfer, round }), [go(HIGH)], "it may have been lost");
    let effects = told.worker(Answer::Done { communicator, transfer });
    assert_eq!(effects, [Effect::Carried { ticket }, Effect::SourceQuiet { ticket }]);
    let report = told.pairs.snapshot(told.now);
    let [one] = &report.groups[..] else { panic!("one group: {report:?}") };
    assert_eq!((one.root, one.transfers, one.bytes), (ME, 1, BYTES));
}

#[test]
fn who_sends_to_several_gives_its_slot_up_for_what_is_older_to_any_of_them() {
    let mut told = Told::new();
    told.both_ready();
    told.want_both();
    let (transfer, round) = (of(ME, told.pairs.clock), told.pairs.rounds);
    told.hear(HIGH, PairWord::Grant { transfer, round });
    let stale = group(GroupWord::Wound { transfer, round: round - 1 });
    assert_eq!(told.hear(HIGH, stale), [], "that is over");
    let effects = told.hear(HIGH, group(GroupWord::Wound { transfer, round }));
    assert_eq!(effects[..2], [withdrawn(HIGH, transfer, round), withdrawn(HIGHER, transfer, round)]);
    let proposed = group(GroupWord::Propose {
        transfer,
        round: round + 1,
        incarnation: incarnation(told.pairs.incarnations),
        bytes: BYTES,
    });
    assert_eq!(effects[2..], [HIGH, HIGHER].map(|to| said(to, proposed.clone())), "it comes again");
    let round = round + 1;
    told.hear(HIGH, PairWord::Grant { transfer, round });
    told.hear(HIGHER, PairWord::Grant { transfer, round });
    assert_eq!(told.hear(HIGH, group(GroupWord::Wound { transfer, round })), [], "all have granted it");
}

#[test]
fn who_has_granted_what_goes_to_several_asks_for_its_slot_for_what_is_older() {
    let mut told = Told::new();
    told.ready(HIGH);
    let incarnation = told.joined();
    let (older, younger) = (of(HIGH, 50), of(LOW, 70));
    told.expect(younger);
    let propose = GroupWord::Propose { transfer: younger, round: 4, incarnation, bytes: BYTES };
    let effects = told.hear(LOW, group(propose));
    assert_eq!(effects, [said(LOW, PairWord::Grant { transfer: younger, round: 4 })]);
    told.expect(older);
    let wound = said(LOW, group(GroupWord::Wound { transfer: younger, round: 4 }));
    assert_eq!(told.propose(older, 1), [wound]);
    assert_eq!(told.pass(ms(1)), [], "it is said once");
    let effects = told.hear(LOW, PairWord::Withdraw { transfer: younger, round: 4, is_last: false });
    assert_eq!(effects, [said(HIGH, PairWord::Grant { transfer: older, round: 1 })]);
}

#[test]
fn one_that_gives_a_group_up_ends_it_for_all() {
    let mut told = Told::new();
    let communicator = told.both_ready();
    let (ticket, _) = told.want_both();
    let (transfer, round) = (of(ME, told.pairs.clock), told.pairs.rounds);
    told.hear(HIGH, PairWord::Grant { transfer, round });
    told.hear(HIGHER, PairWord::Grant { transfer, round });
    let incarnation = incarnation(told.pairs.incarnations);
    let broken = group(GroupWord::Broken { root: ME, incarnation });
    let effects = told.hear(HIGH, broken.clone());
    let why = Why::PeerBroke;
    let abort = Effect::Worker(Command::Abort { communicator });
    assert_eq!(
        effects,
        [Effect::UseTcp { ticket, why }, said(HIGHER, broken), abort],
        "who said so knows it"
    );
    assert_eq!(told.worker(Answer::Closed { communicator }), [Effect::SourceQuiet { ticket }]);
    assert_eq!(told.pairs.group_state(&[HIGH, HIGHER]), Some(PairState::Cold));
    assert_eq!(told.want_both().1[0], Effect::UseTcp { ticket: Ticket(told.tickets), why: Why::Cold });
}

#[test]
fn a_group_of_one_that_has_left_is_of_no_use_and_is_not_joined_once_it_is_known_to_be_given_up() {
    let mut told = Told::new();
    told.both_ready();
    told.tell(Event::Gone { device: HIGH });
    assert_eq!(told.pairs.group_state(&[HIGH, HIGHER]), None);
    let (ticket, effects) = told.want_both();
    assert_eq!(effects, by_tcp(ticket, Why::Gone));
    // What is given up may be heard of before what was offered.
    let (root, incarnation) = (LOW, incarnation(9));
    assert_eq!(told.hear(LOW, group(GroupWord::Broken { root, incarnation })), []);
    let offer = GroupWord::Offer { incarnation, id: id(), members: vec![ME, HIGHER] };
    let answer = said(LOW, group(GroupWord::Broken { root, incarnation }));
    assert_eq!(told.hear(LOW, group(offer)), [answer]);
    let strange = GroupWord::Offer { incarnation, id: id(), members: vec![HIGH, HIGHER] };
    assert_eq!(told.hear(LOW, group(strange)), [], "it is not of it");
}

#[test]
fn what_was_joined_once_is_not_joined_again_when_its_other_end_has_left_and_come_back() {
    let mut told = Told::new();
    let communicator = told.ready(LOW);
    let incarnation = told.standing(LOW);
    told.tell(Event::Gone { device: LOW });
    told.worker(Answer::Closed { communicator });
    told.tell(Event::Peer { device: LOW, generation: FIRST });
    assert_eq!(told.hear(LOW, PairWord::Offer { incarnation, id: id() }), [], "it came twice");
    assert_eq!(told.pairs.state(LOW), Some(PairState::Idle));
}

#[test]
fn nothing_is_made_with_one_who_does_without_nccl_and_what_was_ends_for_the_others() {
    let mut told = Told::new();
    let communicator = told.both_ready();
    let incarnation = incarnation(told.pairs.incarnations);
    told.counted.clear();
    let effects = told.tell(Event::Lacks { device: HIGHER, generation: FIRST });
    let broken = group(GroupWord::Broken { root: ME, incarnation });
    assert_eq!(effects, [said(HIGH, broken), Effect::Worker(Command::Close { communicator })]);
    assert_eq!(told.counted, [Counted::GroupGivenUp(Why::Without)]);
    told.worker(Answer::Closed { communicator });
    told.pass(Duration::from_secs(3600));
    assert_eq!(told.pairs.group_state(&[HIGH, HIGHER]), None, "it is no way");
    let (ticket, effects) = told.want_both();
    assert_eq!(effects, by_tcp(ticket, Why::Without));
    told.tell(Event::Peer { device: HIGHER, generation: Generation(FIRST.0 + 1) });
    assert_eq!(told.pairs.group_state(&[HIGH, HIGHER]), Some(PairState::Idle));
    let (ticket, effects) = told.want_both();
    assert_eq!(effects[1..], by_tcp(ticket, Why::BeingMade));
}

#[test]
fn a_gpu_without_nccl_makes_and_joins_nothing_with_several() {
    let mut told = Told::new();
    let (_, effects) = told.want_both();
    assert_eq!(effects[0], Effect::StartWorker);
    let newer = incarnation(4);
    let offer = || group(GroupWord::Offer { incarnation: newer, id: id(), members: vec![ME, HIGH] });
    assert_eq!(told.hear(LOW, offer()), [], "it is answered when there is a worker");
    let broken = |incarnation| said(LOW, group(GroupWord::Broken { root: LOW, incarnation }));
    assert_eq!(told.worker(Answer::Unfit), [broken(newer)]);
    told.worker(Answer::Died);
    told.pass(Duration::from_secs(3600));
    assert_eq!(told.pairs.group_state(&[HIGH, HIGHER]), None);
    let (ticket, effects) = told.want_both();
    assert_eq!(effects, by_tcp(ticket, Why::Without));
    let newer = incarnation(5);
    let offer = group(GroupWord::Offer { incarnation: newer, id: id(), members: vec![ME, HIGH] });
    assert_eq!(
        told.hear(LOW, offer),
        [said(LOW, group(GroupWord::Broken { root: LOW, incarnation: newer }))]
    );
}

#[test]
fn what_becomes_of_communicators_of_several_is_counted_and_told() {
    let mut told = Told::new();
    let communicator = told.both_ready();
    told.worker(Answer::Failed { communicator });
    told.worker(Answer::Closed { communicator });
    assert_eq!(told.counted, [Counted::GroupMade, Counted::GroupGivenUp(Why::Failed)]);
    told.pass(ms(10));
    let report = told.pairs.snapshot(told.now);
    let [one] = &report.groups[..] else { panic!("one set: {report:?}") };
    assert_eq!((one.root, &one.members[..], one.state), (ME, &[HIGH, HIGHER][..], PairState::Cold));
    assert_eq!((one.failures, one.wanted_bytes, one.for_ms), (1, 0, 10));
    assert_eq!(one.why, Some(Why::Failed.to_string()));
    assert!(one.rests_ms.is_some());
    told.pass(Duration::from_secs(3600));
    let report = told.pairs.snapshot(told.now);
    assert_eq!((report.groups[0].state, report.groups[0].rests_ms), (PairState::Idle, None));
    told.joined();
    let report = told.pairs.snapshot(told.now);
    let roots: Vec<DeviceId> = report.groups.iter().map(|group| group.root).collect();
    assert_eq!(roots, [LOW, ME], "those of others too");
}
