//! Which way is taken, told as stories; and what holds whatever is measured.

use super::*;
use proptest::prelude::*;

const A: DeviceId = DeviceId::new(kvhive_protocol::MemberId(2), 0);
const MIB: u64 = 1 << 20;
const HOST: Ends = Ends { same_process: false, same_host: true, both_gpu_tiers: false, nccl: None };
const GPUS: Ends =
    Ends { same_process: false, same_host: false, both_gpu_tiers: true, nccl: Some(PairState::Ready) };

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// Says that so many transfers of 4 MiB went by a way at so many MB/s.
fn measured(links: &mut Links, ms: u64, transport: TransportKind, mb_per_s: u64, times: u64) {
    for _ in 0..times {
        let took = Duration::from_nanos(4 * MIB * 1000 / mb_per_s);
        links.ended(at(ms), A, transport, 4 * MIB, Some(took), true);
    }
}

fn chosen(links: &mut Links, ms: u64, ends: Ends) -> (TransportKind, String) {
    let choice = links.choose(at(ms), A, 4 * MIB, ends);
    (choice.transport, choice.reason.to_string())
}

#[test]
fn what_is_not_measured_is_taken_in_order_of_what_the_ends_have() {
    let mut links = Links::default();
    let all =
        Ends { same_process: true, same_host: true, both_gpu_tiers: true, nccl: Some(PairState::Ready) };
    let mut taken = |ends| chosen(&mut links, 0, ends);
    assert_eq!(taken(all), (TransportKind::InProcess, "both ends are one process".to_owned()));
    assert_eq!(taken(HOST), (TransportKind::SharedMemory, "not measured yet".to_owned()));
    assert_eq!(taken(GPUS), (TransportKind::Nccl, "not measured yet".to_owned()));
    let tcp = (TransportKind::Tcp, "there is no other way".to_owned());
    assert_eq!(taken(Ends::default()), tcp);
    assert_eq!(taken(Ends { both_gpu_tiers: true, ..Ends::default() }), tcp, "one end has no NCCL");
    assert_eq!(taken(Ends { both_gpu_tiers: false, ..GPUS }), tcp, "blocks are in the host's memory");
}

#[test]
fn a_pair_that_is_not_ready_is_passed_over_and_one_that_is_not_there_is_asked_for() {
    for state in [PairState::Offered, PairState::Joining, PairState::Aborting, PairState::Cold] {
        let mut links = Links::default();
        let (transport, reason) = chosen(&mut links, 0, Ends { nccl: Some(state), ..GPUS });
        assert_eq!(transport, TransportKind::Tcp);
        assert_eq!(reason, format!("there is no other way; nccl: its pair is {state}"));
    }
    for state in [PairState::Idle, PairState::Ready, PairState::Busy] {
        let choice = chosen(&mut Links::default(), 0, Ends { nccl: Some(state), ..GPUS });
        assert_eq!(choice.0, TransportKind::Nccl, "{state}");
    }
}

#[test]
fn what_is_measured_faster_is_taken_at_that_size() {
    let mut links = Links::default();
    chosen(&mut links, 0, GPUS);
    measured(&mut links, 1, TransportKind::Tcp, 900, 3);
    measured(&mut links, 1, TransportKind::Nccl, 500, 2);
    assert_eq!(chosen(&mut links, 2, GPUS).0, TransportKind::Nccl, "two measurements are not enough");
    measured(&mut links, 3, TransportKind::Nccl, 500, 1);
    let (transport, reason) = chosen(&mut links, 4, GPUS);
    assert_eq!((transport, reason.as_str()), (TransportKind::Tcp, "900.0 MB/s, nccl 500.0 MB/s"));
    let small = links.choose(at(5), A, 1000, GPUS);
    assert_eq!((small.transport, small.reason.why), (TransportKind::Nccl, Why::First), "another size");
}

#[test]
fn what_is_in_use_stays_until_another_is_clearly_faster() {
    let mut links = Links::default();
    chosen(&mut links, 0, GPUS);
    measured(&mut links, 1, TransportKind::Nccl, 1000, 3);
    measured(&mut links, 1, TransportKind::Tcp, 1050, 3);
    assert_eq!(chosen(&mut links, 2, GPUS).0, TransportKind::Nccl);
    measured(&mut links, 3, TransportKind::Tcp, 2000, 3);
    assert_eq!(chosen(&mut links, 4, GPUS).0, TransportKind::Tcp);
}

#[test]
fn what_fails_rests_longer_each_time_and_is_tried_with_one_transfer() {
    let mut links = Links::default();
    let mut now = 0;
    for (failures, rest_ms) in
        [(1, 1000), (2, 2000), (3, 4000), (4, 8000), (5, 16_000), (6, 32_000), (7, 60_000)]
    {
        let (transport, reason) = chosen(&mut links, now, HOST);
        assert_eq!(transport, TransportKind::SharedMemory);
        let tried = format!("tried again after {} failures", failures - 1);
        assert_eq!(reason, if failures == 1 { "not measured yet".to_owned() } else { tried });
        let (transport, _) = chosen(&mut links, now, HOST);
        let is_first = failures == 1;
        assert_eq!(transport == TransportKind::SharedMemory, is_first, "others wait for what becomes of it");
        links.ended(at(now), A, TransportKind::SharedMemory, MIB, Some(Duration::from_secs(1)), false);
        let (transport, reason) = chosen(&mut links, now + rest_ms - 1, HOST);
        assert_eq!(transport, TransportKind::Tcp);
        let rests = format!("shared-memory: rests for 1 ms after {failures} failures");
        assert_eq!(reason, format!("there is no other way; {rests}"));
        now += rest_ms;
    }
    chosen(&mut links, now, HOST);
    links.ended(at(now), A, TransportKind::SharedMemory, MIB, Some(Duration::from_millis(1)), true);
    assert_eq!(chosen(&mut links, now, HOST).0, TransportKind::SharedMemory);
    assert_eq!(links.report(at(now))[0].transports[0].failures, 7);
}

#[test]
fn a_try_that_nobody_tells_the_end_of_is_over_in_time() {
    let mut links = Links::default();
    chosen(&mut links, 0, HOST);
    links.ended(at(0), A, TransportKind::SharedMemory, MIB, Some(Duration::ZERO), false);
    assert_eq!(chosen(&mut links, 1000, HOST).0, TransportKind::SharedMemory);
    assert_eq!(chosen(&mut links, 30_999, HOST).0, TransportKind::Tcp);
    assert_eq!(chosen(&mut links, 31_000, HOST).0, TransportKind::SharedMemory);
}

#[test]
fn tcp_is_taken_when_everything_rests() {
    let mut links = Links::default();
    chosen(&mut links, 0, HOST);
    for transport in [TransportKind::SharedMemory, TransportKind::Tcp] {
        links.ended(at(0), A, transport, MIB, Some(Duration::ZERO), false);
    }
    let (transport, reason) = chosen(&mut links, 0, HOST);
    assert_eq!(transport, TransportKind::Tcp);
    assert_eq!(reason, "everything has failed and rests; shared-memory: rests for 1000 ms after 1 failures");
}

#[test]
fn an_old_measurement_is_made_again_with_a_share_of_the_bytes() {
    let mut links = Links::default();
    chosen(&mut links, 0, GPUS);
    measured(&mut links, 0, TransportKind::Nccl, 2000, 3);
    let mut by = Vec::new();
    for number in 1..300 {
        let now = 31_000 + number * 10;
        let choice = links.choose(at(now), A, 4 * MIB, GPUS);
        if choice.transport == TransportKind::Tcp {
            assert_eq!(choice.reason.why, Why::Measures);
            by.push(number);
        }
        measured(&mut links, now, choice.transport, 1000, 1);
    }
    assert_eq!(by, [63, 127, 191], "one of 64, until there are enough that are new");
    let mut idle = links.clone();
    idle.taken_by(A, TransportKind::Tcp);
    for number in 0..1000 {
        let ends = Ends { nccl: Some(PairState::Idle), ..GPUS };
        measured(&mut idle, 100_000 + number, TransportKind::Tcp, 9000, 3);
        assert_eq!(
            chosen(&mut idle, 100_000 + number, ends).0,
            TransportKind::Tcp,
            "no pair is made to measure"
        );
    }
}

#[test]
fn a_device_that_is_gone_is_forgotten_and_so_is_who_was_asked_for_longest_ago() {
    let mut links = Links::default();
    chosen(&mut links, 0, HOST);
    links.retain(|target| *target != A);
    links.ended(at(1), A, TransportKind::Tcp, MIB, Some(Duration::ZERO), true);
    assert_eq!(links.report(at(1)), []);
    for number in 0..=MAX_TARGETS as u64 {
        let target = DeviceId::new(kvhive_protocol::MemberId(number as u32), 0);
        links.choose(at(number + 1), target, MIB, HOST);
    }
    let report = links.report(at(9999));
    assert_eq!((report.len(), report[0].target.member.0), (MAX_TARGETS, 1));
}

#[test]
fn the_report_says_what_was_taken_and_what_is_known() {
    let mut links = Links::default();
    chosen(&mut links, 0, HOST);
    measured(&mut links, 5, TransportKind::SharedMemory, 3000, 1);
    links.ended(at(6), A, TransportKind::SharedMemory, MIB, Some(Duration::ZERO), false);
    chosen(&mut links, 10, HOST);
    let [link] = &links.report(at(20))[..] else { panic!("one link") };
    assert_eq!((link.target, link.transport), (A, TransportKind::Tcp));
    let [shared, tcp] = &link.transports[..] else { panic!("two ways: {link:?}") };
    assert_eq!((shared.transfers, shared.bytes, shared.failures), (1, 4 * MIB, 1));
    assert_eq!(shared.rests_ms, Some(986));
    let [rate] = shared.rates[..] else { panic!("one size") };
    assert_eq!((rate.below_bytes, rate.samples, rate.ago_ms), (Some(16 * MIB), 1, 15));
    assert_eq!((tcp.transport, tcp.transfers, tcp.rests_ms), (TransportKind::Tcp, 0, None));
}

#[test]
fn what_the_other_end_fetches_is_told_and_keeps_what_was_said_of_the_same_way() {
    let mut links = Links::default();
    links.went(at(1), A, TransportKind::SharedMemory, MIB);
    links.went(at(2), A, TransportKind::Tcp, 4 * MIB);
    let [link] = &links.report(at(3))[..] else { panic!("one link") };
    assert_eq!((link.transport, &link.reason[..]), (TransportKind::Tcp, "the other end fetches it so"));
    let [shared, tcp] = &link.transports[..] else { panic!("two ways: {link:?}") };
    assert_eq!(
        (shared.transfers, shared.bytes, shared.rates.len()),
        (1, MIB, 0),
        "nobody knows how long it took"
    );
    assert_eq!((tcp.transfers, tcp.bytes, tcp.rates.len()), (1, 4 * MIB, 0));
    // Why it is not sent by a pair is still to be read when it was sent otherwise.
    links.choose(
        at(4),
        A,
        4 * MIB,
        Ends { both_gpu_tiers: true, nccl: Some(PairState::Cold), ..Ends::default() },
    );
    links.went(at(5), A, TransportKind::Tcp, 4 * MIB);
    let (_, choice) = links.chosen().next().expect("one link");
    assert_eq!(choice.reason.as_str(), "pair-cold");
}

#[test]
fn what_was_only_offered_does_not_end_the_rest_of_a_way() {
    let mut links = Links::default();
    chosen(&mut links, 1, HOST);
    links.ended(at(2), A, TransportKind::SharedMemory, MIB, None, false);
    let rests = |links: &Links| {
        let [link] = &links.report(at(3))[..] else { panic!("one link") };
        let shared = link.transports.iter().find(|one| one.transport == TransportKind::SharedMemory);
        shared.map(|one| (one.transfers, one.failures, one.rests_ms))
    };
    let before = rests(&links);
    assert_eq!(before.and_then(|(.., rests)| rests), Some(999));
    links.went(at(3), A, TransportKind::SharedMemory, MIB);
    assert_eq!(rests(&links), before.map(|(given, failures, rests)| (given + 1, failures, rests)));
}

impl Links {
    /// Has a way be the one in use at 4 MiB.
    fn taken_by(&mut self, target: DeviceId, transport: TransportKind) {
        let link = self.links.get_mut(&target).expect("it was chosen for");
        link.taken[rates::class(4 * MIB)] = Some(transport);
    }
}

proptest! {
    /// Whatever is measured, only ways that both ends have are taken, none that rests beside TCP, few bytes go for a measurement alone,
    /// and the same calls give the same choices.
    #[test]
    fn choices_keep_their_promises(
        steps in proptest::collection::vec((0u64..40_000, 0u8..32, 1u64..40_000_000, 1u64..100_000_000, 0u8..10), 1..200)
    ) {
        let run = || {
            let (mut links, mut now, mut choices) = (Links::default(), 0, Vec::new());
            for (wait, ends, bytes, nanos, luck) in &steps {
                now += wait;
                let states = [None, Some(PairState::Idle), Some(PairState::Ready), Some(PairState::Cold)];
                let ends = Ends {
                    same_process: ends & 1 != 0 && ends & 2 != 0,
                    same_host: ends & 2 != 0,
                    both_gpu_tiers: ends & 4 != 0,
                    nccl: states[usize::from(ends >> 3)],
                };
                let rested = links.report(at(now));
                let choice = links.choose(at(now), A, *bytes, ends);
                assert!(ends.has(choice.transport));
                let ways = rested.iter().flat_map(|link| &link.transports);
                for way in ways.filter(|way| way.rests_ms.is_some() && way.transport != TransportKind::Tcp) {
                    assert_ne!(way.transport, choice.transport, "it rests");
                }
                if *luck < 9 {
                    links.ended(at(now), A, choice.transport, *bytes, Some(Duration::from_nanos(*nanos)), *luck > 2);
                }
                let link = &links.links[&A];
                let mut both = link.measured_bytes.iter().zip(&link.chosen_bytes);
                assert!(both.all(|(measured, chosen)| *measured <= chosen / MEASURED_ONE_IN));
                choices.push(choice);
            }
            choices
        };
        prop_assert_eq!(run(), run());
    }
}
