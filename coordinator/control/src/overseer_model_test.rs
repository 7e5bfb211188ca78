//! A random leader that is paused, hears late, sees its clock go back and is replaced; beside it, in true time, members
//! that serve as long as their lease allows.

use super::tests::Scene;
use super::*;
use kvhive_protocol::MemberId;
use kvhive_protocol::control::DeviceLoad;
use proptest::prelude::*;

/// A lease of 1 s by a clock that is one per cent slow, in true time.
const HELD_MS: u64 = 1010;

/// What may happen to a leader and its three members.
#[derive(Clone, Debug)]
enum Happening {
    Pass(u64),
    Pause(u64),
    ClockBack(u64),
    /// A heartbeat that was sent this long ago arrives now.
    Beat {
        member: u32,
        late: u64,
    },
    /// What was proposed is applied.
    Apply,
    Restart(u32),
    Clear,
    /// Another coordinator leads; with what was proposed, or without.
    NewLeader(bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        6 => (0..400_u64).prop_map(Happening::Pass),
        1 => (300..5000_u64).prop_map(Happening::Pause),
        1 => (1..3000_u64).prop_map(Happening::ClockBack),
        8 => (1..4_u32, prop_oneof![Just(0_u64), 0..2000_u64]).prop_map(|(member, late)| Happening::Beat { member, late }),
        3 => Just(Happening::Apply),
        1 => (1..4_u32).prop_map(Happening::Restart),
        2 => Just(Happening::Clear),
        1 => any::<bool>().prop_map(Happening::NewLeader),
    ];
    prop::collection::vec(happening, 1..120)
}

/// One start of a member as it sees itself, in true time.
#[derive(Clone, Copy)]
struct Holder {
    member: u32,
    generation: u64,
    serves_until: u64,
    epoch: Epoch,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]
    /// True time passes beside the leader's clock. Nobody who holds a lease is declared down; no clear is answered while
    /// anybody holds one under an older map; and when the leader is left in peace, whoever is silent goes down and every
    /// clear is answered.
    #[test]
    fn a_lease_is_never_judged_over_while_it_is_held(happenings in happenings()) {
        let names = ["a", "b", "c"];
        let mut scene = Scene::with(&names);
        let mut truth = 0_u64;
        let mut holders: Vec<Holder> = Vec::new();
        let mut pending: BTreeMap<ClearTicket, Epoch> = BTreeMap::new();
        let mut proposed: Vec<Command> = Vec::new();
        for happening in happenings {
            match happening {
                Happening::Pass(millis) => {
                    for _ in 0..=millis / 40 {
                        truth += millis.min(40);
                        scene.jump(millis.min(40));
                    }
                }
                Happening::Pause(millis) => {
                    truth += millis;
                    scene.jump(millis);
                }
                Happening::ClockBack(millis) => scene.now -= millis.min(scene.now),
                Happening::Beat { member, late } => {
                    // Any start of it may speak, also one that was replaced.
                    let now = scene.cluster.map().members[&MemberId(member)].generation.0;
                    for generation in now.saturating_sub(1).max(1)..=now {
                        let known = holders.iter().find(|held| (held.member, held.generation) == (member, generation));
                        let epoch = known.map_or(Epoch(0), |held| held.epoch);
                        let verdict = scene.beat_as(member, generation, epoch, vec![DeviceLoad::default()]);
                        if let BeatVerdict::Renew { send_map } = verdict {
                            let sent = truth.saturating_sub(late);
                            let until = known.map_or(0, |held| held.serves_until).max(sent + HELD_MS);
                            let epoch = if send_map { scene.cluster.map().epoch } else { epoch };
                            holders.retain(|held| (held.member, held.generation) != (member, generation));
                            holders.push(Holder { member, generation, serves_until: until, epoch });
                        }
                    }
                }
                Happening::Apply => {
                    for command in proposed.drain(..) {
                        scene.cluster.apply(command);
                    }
                }
                Happening::Restart(member) => {
                    scene.cluster.register(names[member as usize - 1], 1);
                }
                Happening::Clear => {
                    let ticket = scene.clear();
                    pending.insert(ticket, scene.cluster.map().epoch);
                }
                Happening::NewLeader(with_proposals) => {
                    for command in proposed.drain(..).filter(|_| with_proposals) {
                        scene.cluster.apply(command);
                    }
                    scene.now += 77_777;
                    scene.lead();
                    pending.clear();
                }
            }
            scene.jump(0);
            let serving: Vec<Holder> = holders.iter().copied().filter(|held| held.serves_until > truth).collect();
            for effect in scene.effects.drain(..) {
                match effect {
                    Effect::Propose(command, _) => {
                        if let Command::MarkDown { member, generation } = &command {
                            prop_assert!(
                                serving.iter().all(|held| (held.member, held.generation) != (member.0, generation.0)),
                                "member {} is declared down at {} ms while it serves", member, truth
                            );
                        }
                        proposed.push(command);
                    }
                    Effect::ClearDone(ticket) => {
                        let epoch = pending.remove(&ticket).expect("each clear is answered once");
                        prop_assert!(
                            serving.iter().all(|held| held.epoch >= epoch),
                            "a clear is answered at {} ms while an older map is served by", truth
                        );
                    }
                }
            }
        }
        // Left in peace: nobody says anything any more.
        let mut down: Vec<u32> = Vec::new();
        let mut done = 0;
        for _ in 0..2000 {
            scene.jump(50);
            for effect in std::mem::take(&mut scene.effects) {
                match effect {
                    Effect::Propose(command, _) => {
                        if let Command::MarkDown { member, .. } = &command {
                            down.push(member.0);
                        }
                        scene.cluster.apply(command);
                    }
                    Effect::ClearDone(_) => done += 1,
                }
            }
        }
        prop_assert_eq!(done, pending.len());
        prop_assert_eq!(scene.cluster.map().devices_up().count(), 0, "{:?} went down", down);
    }
}
