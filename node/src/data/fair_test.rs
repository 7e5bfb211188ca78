//! Tenants that want more than there is: what each gets, how long each waits, and who is told that it would be late.

use super::*;

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn wanted(tenant: u32, bytes: u64, left: Duration) -> Wanted {
    Wanted { tenant: TenantId(tenant), weight: 1, bytes: Some(bytes), left, is_part: false }
}

/// Enters one that is known by its tenant.
fn enter(fair: &mut Fair<u32>, now: Duration, wanted: Wanted) -> Entered {
    fair.enter(now, wanted, || wanted.tenant.0)
}

/// Enters as many as there are in a range.
fn flood(fair: &mut Fair<u32>, now: Duration, wanted: Wanted, times: std::ops::Range<usize>) {
    for _ in times {
        enter(fair, now, wanted);
    }
}

/// A place goes from one to the next; returns whose it is.
fn pass(fair: &mut Fair<u32>, now: Duration) -> Option<u32> {
    let (id, ticket) = fair.held.first().map(|held| (held.tenant, held.ticket))?;
    fair.leave(now, id, ticket, false);
    fair.next(now)
}

#[test]
fn nobody_waits_while_there_are_places() {
    let mut fair = Fair::new(3);
    assert!((0..3).all(|_| matches!(enter(&mut fair, MS, wanted(1, MIB, MS)), Entered::Goes(_))));
    assert!(matches!(enter(&mut fair, MS, wanted(1, MIB, LONG)), Entered::Waits(_, LONG)));
    assert_eq!((fair.waiting(), fair.next(MS)), (1, None));
    assert_eq!(pass(&mut fair, 2 * MS), Some(1));
    assert_eq!((fair.waiting(), fair.next(2 * MS)), (0, None));
}

#[test]
fn tenants_that_always_want_more_get_the_same_bytes_whatever_they_ask_at_a_time() {
    let mut fair = Fair::new(4);
    // One asks very often for a little, one seldom for much, one for something between.
    let sizes: [(u32, usize, u64); 3] = [(1, 40, MIB / 8), (2, 8, 8 * MIB), (3, 20, MIB)];
    for (tenant, times, bytes) in sizes {
        flood(&mut fair, MS, wanted(tenant, bytes, LONG), 0..times);
    }
    let mut given = [0u64; 4];
    for _ in 0..10_000 {
        let who = pass(&mut fair, MS).expect("many wait");
        let (_, _, bytes) = sizes[who as usize - 1];
        given[who as usize] += bytes;
        enter(&mut fair, MS, wanted(who, bytes, LONG));
    }
    let most = given.into_iter().max().expect("four");
    assert!(given[1..].iter().all(|one| most - one <= 2 * 8 * MIB), "{given:?}");
}

#[test]
fn tenants_that_always_want_more_get_bytes_by_their_weights_also_after_these_have_changed() {
    let mut fair = Fair::new(4);
    let sizes: [(u32, u64); 3] = [(0, 2 * MIB), (1, MIB / 4), (2, MIB)];
    for weights in [[1, 2, 5], [1000, 10, 10], [1, 1, 1]] {
        let wanted = |at: u32| {
            let (tenant, bytes) = sizes[at as usize];
            Wanted { weight: weights[at as usize], ..wanted(tenant, bytes, LONG) }
        };
        for (tenant, _) in sizes {
            flood(&mut fair, MS, wanted(tenant), 0..60);
        }
        let mut given = [0u64; 3];
        for turn in 0..22_000 {
            let who = pass(&mut fair, MS).expect("many wait");
            // What they were given by the weights of before is made up for first.
            if turn >= 2_000 {
                given[who as usize] += sizes[who as usize].1;
            }
            enter(&mut fair, MS, wanted(who));
        }
        let of_weight: Vec<f64> = (0..3).map(|at| given[at] as f64 / f64::from(weights[at])).collect();
        let most = of_weight.iter().copied().fold(0.0, f64::max);
        assert!(of_weight.iter().all(|one| *one >= 0.95 * most), "{weights:?}: {given:?}");
        let waits = fair.tenants.values().filter(|one| one.waiting() > 0);
        assert_eq!(fair.waiting_weight, waits.map(|one| u64::from(one.weight)).sum::<u64>());
    }
}

#[test]
fn who_weighs_more_is_expected_to_wait_for_less_of_what_others_have_waiting() {
    // Nine of another tenant wait, a MiB each, which take a millisecond each.
    for (weight, waits) in [(1, 3), (8, 2)] {
        let mut fair = known(MS, 9);
        let heavy = |left| Wanted { weight, ..wanted(2, MIB, left) };
        assert!(matches!(enter(&mut fair, MS, heavy(LONG)), Entered::Waits(..)));
        // One of its own is ahead, and of the other's as much or an eighth.
        let sharing = 1.0 + 1.0 / f64::from(weight);
        assert_eq!(fair.expected(TenantId(2), false), ((sharing + 1.0) * 1e-3, sharing * 1e-3));
        assert_eq!(enter(&mut fair, MS, heavy(waits * MS)), Entered::Late);
    }
}

#[test]
fn what_shows_later_counts_as_if_it_had_been_known() {
    let mut fair = Fair::new(1);
    let unknown = |tenant| Wanted { bytes: None, ..wanted(tenant, 0, LONG) };
    for tenant in [1, 2] {
        flood(&mut fair, MS, unknown(tenant), 0..10);
    }
    let mut given = [0u64; 3];
    for _ in 0..3000 {
        let (id, ticket) =
            fair.held.first().map(|held| (held.tenant, held.ticket)).expect("one is under way");
        let bytes = if id == TenantId(1) { MIB } else { 4 * MIB };
        fair.measured(ticket, bytes);
        given[id.0 as usize] += bytes;
        pass(&mut fair, MS);
        enter(&mut fair, MS, unknown(id.0));
    }
    assert!(given[1].abs_diff(given[2]) <= 16 * MIB, "{given:?}");
}

/// Two tenants that always want more have one place, of which the first keeps each for too long; one's requests come to `first` bytes each, the
/// other's to a MiB, which shows when they end. Returns how many each had.
fn shared(first: u64) -> [usize; 2] {
    let mut fair = Fair::new(1);
    let unknown = |tenant| Wanted { bytes: None, ..wanted(tenant, 0, LONG) };
    for tenant in [0, 1] {
        flood(&mut fair, MS, unknown(tenant), 0..10);
    }
    let (mut now, mut had) = (MS, [0; 2]);
    for _ in 0..1000 {
        let (id, ticket) = fair.held.first().map(|held| (held.tenant, held.ticket)).expect("one has it");
        if id == TenantId(0) {
            now = fair.lapses_at().expect("it is held");
            assert!(fair.next(now).is_some(), "it is another's");
        }
        now += MS;
        fair.measured(ticket, if id == TenantId(0) { first } else { MIB });
        fair.leave(now, id, ticket, false);
        had[id.0 as usize] += 1;
        enter(&mut fair, now, unknown(id.0));
        fair.next(now);
    }
    assert!(fair.lapsed.is_empty() && fair.held.len() == 1);
    had
}

#[test]
fn what_is_brought_after_its_place_was_one_no_more_counts_too() {
    let [slow, other] = shared(MIB);
    assert!(slow.abs_diff(other) <= 4, "{slow} {other}");
}

#[test]
fn who_finds_nothing_does_not_go_before_all_others_for_ever() {
    let [finds_nothing, other] = shared(0);
    let share = (MIB / LEAST_BYTES) as usize;
    assert!((share - 4..=share + 4).contains(&(finds_nothing / other)), "{finds_nothing} {other}");
}

#[test]
fn a_place_that_is_given_up_before_anything_went_costs_next_to_nothing_and_is_no_measure() {
    for lapses in [false, true] {
        let mut fair = Fair::new(2);
        let unknown = Wanted { bytes: None, ..wanted(1, 0, LONG) };
        enter(&mut fair, MS, wanted(2, 64 * MIB, LONG));
        let Entered::Goes(first) = enter(&mut fair, MS, unknown) else { panic!("it is free") };
        fair.measured(first, 8 * MIB);
        fair.leave(MS, TenantId(1), first, false);
        let Entered::Goes(given_up) = enter(&mut fair, MS, unknown) else { panic!("it is free") };
        let given = |fair: &Fair<u32>| fair.tenants[&TenantId(1)].given;
        assert_eq!(given(&fair), charge(16 * MIB, 1), "it counts as the one before");
        flood(&mut fair, MS, wanted(3, MIB, LONG), 0..2);
        if lapses {
            assert_eq!(fair.next(100 * MS), Some(3));
        }
        fair.leave(100 * MS, TenantId(1), given_up, false);
        assert_eq!(given(&fair), charge(8 * MIB + LEAST_BYTES, 1));
        assert_eq!(fair.tenants[&TenantId(1)].usual.value(), 8.0 * MIB as f64);
        assert_eq!((fair.takes.value(), fair.brings.value()), (0.0, 0.0));
    }
}

#[test]
fn one_that_comes_now_and_then_waits_for_one_turn_of_a_flood() {
    let mut fair = Fair::new(2);
    flood(&mut fair, MS, wanted(1, MIB, LONG), 0..500);
    for _ in 0..100 {
        assert!((0..50).all(|_| pass(&mut fair, MS).is_some()));
        flood(&mut fair, MS, wanted(1, MIB, LONG), 0..50);
        assert!(matches!(enter(&mut fair, MS, wanted(2, MIB, LONG)), Entered::Waits(..)));
        assert!((0..2).any(|_| pass(&mut fair, MS) == Some(2)));
    }
}

#[test]
fn who_did_not_want_anything_is_owed_nothing_for_it() {
    let mut fair = Fair::new(1);
    flood(&mut fair, MS, wanted(1, MIB, LONG), 0..1000);
    assert!((0..900).all(|_| pass(&mut fair, MS).is_some()));
    flood(&mut fair, MS, wanted(2, MIB, LONG), 0..50);
    let turns = (0..40).filter(|_| pass(&mut fair, MS) == Some(2)).count();
    assert!((19..=21).contains(&turns), "{turns} of 40");
}

/// One place, of which it is known that each MiB takes so long, with as many waiting as said of tenant 1.
fn known(takes: Duration, waiting: usize) -> Fair<u32> {
    let mut fair = Fair::new(1);
    flood(&mut fair, Duration::ZERO, wanted(1, MIB, LONG), 0..waiting + 1);
    fair.takes.add(takes.as_secs_f64());
    fair.brings.add(MIB as f64);
    fair
}

#[test]
fn who_would_be_late_is_told_before_anything_is_done() {
    // Nine wait: a tenth waits for 10 ms and takes one itself.
    let mut fair = known(MS, 9);
    assert_eq!(enter(&mut fair, MS, wanted(1, MIB, 10 * MS)), Entered::Late);
    assert_eq!(fair.waiting(), 9);
    assert!(matches!(enter(&mut fair, MS, wanted(1, MIB, 12 * MS)), Entered::Waits(_, _)));
    // What another tenant has waiting is ahead of it by no more than its own.
    assert!(matches!(enter(&mut fair, MS, wanted(2, MIB, 3 * MS)), Entered::Waits(_, _)));
    assert_eq!(enter(&mut fair, MS, wanted(3, 4 * MIB, 3 * MS)), Entered::Late, "its own takes longer");
}

#[test]
fn while_some_go_without_nobody_of_the_same_tenant_waits_long() {
    let mut fair = known(MS, 9);
    assert_eq!(enter(&mut fair, MS, wanted(1, MIB, LONG)), Entered::Waits(Ticket(10), LONG - MS));
    fair.leave(LONG, TenantId(1), Ticket(10), true);
    assert_eq!(enter(&mut fair, LONG, wanted(1, MIB, LONG)), Entered::Late, "nine are ahead");
    let of_another = enter(&mut fair, LONG, wanted(2, MIB, LONG));
    assert_eq!(of_another, Entered::Waits(Ticket(12), LONG - MS), "it had nothing to do with it");
    let part = Wanted { is_part: true, ..wanted(1, MIB, LONG) };
    assert!(matches!(enter(&mut fair, LONG, part), Entered::Waits(_, _)), "somebody waits for it");
}

#[test]
fn the_next_place_is_no_farther_than_what_others_wait_for() {
    let mut fair = known(MS, 0);
    enter(&mut fair, MS, Wanted { weight: 1000, ..wanted(1, LEAST_BYTES, LONG) });
    flood(&mut fair, MS, wanted(2, MIB, LONG), 0..1);
    let Entered::Waits(late, _) = enter(&mut fair, MS, wanted(2, MIB, LONG)) else { panic!("it has time") };
    // One of the other's, of a sixty-fourth, and then its own.
    assert_eq!(fair.expected(TenantId(2), false).1, (1.0 + 1.0 / 64.0) * 1e-3);
    fair.leave(LONG, TenantId(2), late, true);
    let strained = enter(&mut fair, LONG, wanted(2, MIB, LONG));
    assert!(matches!(strained, Entered::Waits(_, at_most) if at_most <= 5 * MS), "{strained:?}");
}

#[test]
fn what_others_wait_for_goes_before_what_is_only_asked() {
    let mut fair = known(MS, 9);
    let part = Wanted { is_part: true, ..wanted(1, MIB, 3 * MS) };
    fair.enter(MS, part, || 7);
    assert_eq!(pass(&mut fair, MS), Some(7));
    assert_eq!(pass(&mut fair, MS), Some(1));
}

#[test]
fn a_place_is_not_kept_from_others_by_a_slow_peer() {
    let mut fair = Fair::new(1);
    let Entered::Goes(slow) = enter(&mut fair, MS, wanted(1, 64 * MIB, LONG)) else { panic!("it is free") };
    enter(&mut fair, MS, wanted(2, MIB, LONG));
    // 10 ms, and 250 ms for as many bytes.
    assert_eq!(fair.lapses_at(), Some(261 * MS));
    assert_eq!(fair.next(260 * MS), None);
    assert_eq!(fair.next(261 * MS), Some(2));
    fair.leave(300 * MS, TenantId(1), slow, false);
    assert_eq!(fair.held.len(), 1, "it gave back what was its own no more");
    // It has been given those bytes all the same.
    enter(&mut fair, 262 * MS, wanted(1, MIB, LONG));
    enter(&mut fair, 262 * MS, wanted(2, MIB, LONG));
    assert_eq!(pass(&mut fair, 263 * MS), Some(2));
}

#[test]
fn tenants_that_want_nothing_are_forgotten() {
    let mut fair = Fair::new(1);
    for tenant in 0..10_000 {
        enter(&mut fair, MS, wanted(tenant, MIB, LONG));
        pass(&mut fair, MS);
    }
    assert!(fair.tenants.len() <= 2 * FIRST_SWEEP, "{} are remembered", fair.tenants.len());
    assert!(fair.order.is_empty() && (fair.waiting_bytes, fair.waiting_weight) == (0, 0));
}

/// Serves two tenants for ten seconds, at places that take 4 ms for a MiB: requests of so many a second of each, all of them with as much
/// time. Returns how many of each were done in time, how many were told no, and the longest time from the question to the end, by tenant.
fn served(rates: [f64; 2], left: Duration) -> [(usize, usize, Duration); 2] {
    const PLACES: usize = 4;
    let mut fair = Fair::new(PLACES);
    let mut came = BTreeMap::new();
    let mut ends: Vec<(Duration, TenantId, Ticket)> = Vec::new();
    let mut all = [(0, 0, Duration::ZERO); 2];
    let mut due = [0.0f64; 2];
    let mut patience: Vec<(Duration, TenantId, Ticket)> = Vec::new();
    for step in 0..100_000u32 {
        let now = step * MS / 10;
        let over = |list: &mut Vec<(Duration, TenantId, Ticket)>| -> Vec<_> {
            let (over, on) = std::mem::take(list).into_iter().partition(|(at, ..)| *at <= now);
            *list = on;
            over
        };
        for (at, tenant, ticket) in over(&mut ends) {
            fair.leave(at, tenant, ticket, false);
            let took = at - came[&ticket];
            let one = &mut all[tenant.0 as usize];
            if took <= left { (one.0, one.2) = (one.0 + 1, one.2.max(took)) } else { one.1 += 1 }
        }
        for (_, tenant, ticket) in over(&mut patience) {
            if !ends.iter().any(|(_, _, other)| *other == ticket) {
                let waited = fair.waiting();
                fair.leave(now, tenant, ticket, true);
                all[tenant.0 as usize].1 += waited - fair.waiting();
            }
        }
        for tenant in [0, 1] {
            while due[tenant] <= now.as_secs_f64() {
                due[tenant] += 1.0 / rates[tenant];
                match enter(&mut fair, now, wanted(tenant as u32, MIB, left)) {
                    Entered::Goes(ticket) => {
                        came.insert(ticket, now);
                    }
                    Entered::Waits(ticket, allowed) => {
                        came.insert(ticket, now);
                        patience.push((now + allowed, TenantId(tenant as u32), ticket));
                    }
                    Entered::Late => all[tenant].1 += 1,
                }
            }
        }
        while fair.next(now).is_some() {}
        for held in &fair.held {
            if held.since == now {
                ends.push((now + 4 * MS, held.tenant, held.ticket));
            }
        }
    }
    all
}

#[test]
fn a_flood_leaves_the_other_tenant_its_time_and_all_that_is_done_is_in_time() {
    // A thousand a second are done at most.
    let [alone, _] = served([900.0, 1e-9], 100 * MS);
    assert!(alone.0 >= 8900 && alone.1 == 0, "{alone:?}");
    let [flood, other] = served([2600.0, 400.0], 100 * MS);
    assert!(other.0 >= 3990 && other.1 <= 10, "who asks for less than half gets it: {other:?}");
    assert!(other.2 <= 15 * MS, "and soon: {other:?}");
    assert!(flood.0 >= 5700, "the rest is the flood's: {flood:?}");
    let [one, two] = served([1500.0, 3000.0], 100 * MS);
    assert!(one.0.abs_diff(two.0) <= 200 && one.0 + two.0 >= 9700, "{one:?} {two:?}");
}
