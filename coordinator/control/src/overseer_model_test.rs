//! A random leader that is paused, hears late, sees its clock go back and is replaced; beside it, in true time, members
//! that serve as long as their leases allow.

use super::tests::Scene;
use super::*;
use crate::registry::tests::Cluster;
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::{Generation, Member, MemberId};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// A lease of 1 s by a clock that is one per cent slow, in true time.
const HELD_MS: u64 = 1010;
/// A serving lease of 4 s by the same clock.
const SERVING_MS: u64 = 4040;

/// What may happen to a leader and its three members.
#[derive(Clone, Debug)]
enum Happening {
    Pass(u64),
    Pause(u64),
    ClockBack(u64),
    /// A heartbeat that was sent this long ago arrives now.
    Beat {
        node: u32,
        late: u64,
    },
    /// What was proposed is applied.
    Apply,
    /// A process starts where the one before it has ended.
    Restart(u32),
    /// A process starts elsewhere, whatever the one before it does.
    Move(u32),
    /// A process says that it serves nothing any more.
    Leave(u32),
    /// Whoever saw a member's processes end has it removed, and it starts anew.
    Remove(u32),
    Clear,
    /// Another coordinator leads; with what was proposed, or without.
    NewLeader(bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        6 => (0..400_u64).prop_map(Happening::Pass),
        1 => (300..5000_u64).prop_map(Happening::Pause),
        1 => (1..3000_u64).prop_map(Happening::ClockBack),
        8 => (0..3_u32, prop_oneof![Just(0_u64), 0..2000_u64]).prop_map(|(node, late)| Happening::Beat { node, late }),
        3 => Just(Happening::Apply),
        1 => (0..3_u32).prop_map(Happening::Restart),
        1 => (0..3_u32).prop_map(Happening::Move),
        1 => (0..3_u32).prop_map(Happening::Leave),
        1 => (0..3_u32).prop_map(Happening::Remove),
        2 => Just(Happening::Clear),
        1 => any::<bool>().prop_map(Happening::NewLeader),
    ];
    prop::collection::vec(happening, 1..120)
}

/// One start of a member as it sees itself, in true time.
#[derive(Clone, Copy)]
struct Holder {
    member: MemberId,
    generation: Generation,
    /// Where its process is.
    address: u32,
    leased_until: u64,
    serves_until: u64,
    epoch: Epoch,
}

/// The leader, and what is true beside it.
struct Truth {
    scene: Scene,
    now: u64,
    holders: Vec<Holder>,
    /// Where each node's process is.
    addresses: [u32; 3],
    pending: BTreeMap<ClearTicket, Epoch>,
    proposed: Vec<Command>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Truth {
    fn begun() -> Truth {
        let mut scene = Scene::of(Cluster::serving_for(4000));
        for (node, name) in NAMES.iter().enumerate() {
            scene.cluster.register_at(name, &address(node as u32));
        }
        scene.lead();
        let (holders, pending, proposed) = Default::default();
        Truth { scene, now: 0, holders, addresses: [0, 1, 2], pending, proposed }
    }

    /// Returns what the map has of a node.
    fn known(&self, node: u32) -> (MemberId, Generation, MemberState) {
        let map = self.scene.cluster.map();
        let (id, member) = map.member(NAMES[node as usize]).expect("nobody is gone for good");
        (id, member.generation, member.state)
    }

    fn register(&mut self, node: u32) {
        let at = self.addresses[node as usize];
        self.scene.cluster.register_at(NAMES[node as usize], &address(at));
    }

    fn apply(&mut self) {
        for command in std::mem::take(&mut self.proposed) {
            self.scene.cluster.apply(command);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Pass(millis) => {
                for _ in 0..=millis / 40 {
                    self.now += millis.min(40);
                    self.scene.jump(millis.min(40));
                }
            }
            Happening::Pause(millis) => {
                self.now += millis;
                self.scene.jump(millis);
            }
            Happening::ClockBack(millis) => self.scene.now -= millis.min(self.scene.now),
            Happening::Beat { node, late } => self.beat(node, late),
            Happening::Apply => self.apply(),
            Happening::Restart(node) => {
                let at = self.addresses[node as usize];
                self.holders.retain(|held| held.address != at);
                self.register(node);
            }
            Happening::Move(node) => {
                self.addresses[node as usize] += 3;
                self.register(node);
            }
            Happening::Leave(node) => {
                let (member, generation, _) = self.known(node);
                self.holders.retain(|held| (held.member, held.generation) != (member, generation));
                self.scene.cluster.apply(Command::Leave { member, generation });
            }
            Happening::Remove(node) => {
                let (member, _, state) = self.known(node);
                if state == MemberState::Down {
                    self.holders.retain(|held| held.member != member);
                    self.scene.cluster.apply(Command::RemoveMember { member });
                    self.register(node);
                }
            }
            Happening::Clear => {
                let ticket = self.scene.clear();
                self.pending.insert(ticket, self.scene.cluster.map().epoch);
            }
            Happening::NewLeader(with_proposals) => {
                if with_proposals {
                    self.apply();
                }
                self.proposed.clear();
                self.scene.now += 77_777;
                self.scene.lead();
                self.pending.clear();
            }
        }
        self.scene.jump(0);
    }

    /// Any start of a member may speak, also one that was replaced.
    fn beat(&mut self, node: u32, late: u64) {
        let (member, newest, _) = self.known(node);
        for generation in newest.0.saturating_sub(1).max(1)..=newest.0 {
            let generation = Generation(generation);
            let is_it = |held: &&Holder| (held.member, held.generation) == (member, generation);
            let known = self.holders.iter().find(is_it).copied();
            let epoch = known.map_or(Epoch(0), |held| held.epoch);
            let verdict = self.scene.beat_as(member.0, generation.0, epoch, vec![DeviceLoad::default()]);
            let BeatVerdict::Renew { send_map } = verdict else { continue };
            let sent = self.now.saturating_sub(late);
            let (leased, serves) = known.map_or((0, 0), |held| (held.leased_until, held.serves_until));
            self.holders.retain(|held| (held.member, held.generation) != (member, generation));
            self.holders.push(Holder {
                member,
                generation,
                address: self.addresses[node as usize],
                leased_until: leased.max(sent + HELD_MS),
                serves_until: serves.max(sent + SERVING_MS),
                epoch: if send_map { self.scene.cluster.map().epoch } else { epoch },
            });
        }
    }

    /// Every clear is answered, and nobody is up or may be serving.
    fn is_over(&self) -> bool {
        let is_gone = |member: &Member| member.state == MemberState::Down && member.lingers.is_none();
        self.pending.is_empty() && self.scene.cluster.map().members.values().all(is_gone)
    }

    /// Checks what the leader asks for; what it proposes is kept.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let now = self.now;
        let leased: Vec<Holder> =
            self.holders.iter().copied().filter(|held| held.leased_until > now).collect();
        let serving: Vec<Holder> =
            self.holders.iter().copied().filter(|held| held.serves_until > now).collect();
        for effect in std::mem::take(&mut self.scene.effects) {
            match effect {
                Effect::Propose(command, _) => {
                    match &command {
                        Command::MarkDown { member, generation } => prop_assert!(
                            leased
                                .iter()
                                .all(|held| (held.member, held.generation) != (*member, *generation)),
                            "member {member} is declared down at {now} ms while it holds its lease"
                        ),
                        Command::MarkEnded { start: Some((member, generation)) } => prop_assert!(
                            serving
                                .iter()
                                .all(|held| held.member != *member || held.generation > *generation),
                            "member {member} is taken for ended at {now} ms while it serves"
                        ),
                        _ => {}
                    }
                    self.proposed.push(command);
                }
                Effect::ClearDone(ticket) => {
                    let epoch = self.pending.remove(&ticket).expect("each clear is answered once");
                    prop_assert!(
                        serving.iter().all(|held| held.epoch >= epoch),
                        "a clear is answered at {now} ms while an older map is served by"
                    );
                }
                Effect::ClearWaits(ticket, servers) => {
                    prop_assert!(!servers.is_empty() && servers.iter().all(|one| one.is_silent));
                    self.scene.ask_again(ticket);
                }
            }
        }
        Ok(())
    }
}

fn address(number: u32) -> String {
    format!("10.0.0.1:{}", 7000 + number)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]
    /// True time passes beside the leader's clock. Nobody who holds a lease is declared down; no clear is answered while
    /// anybody serves by an older map, with a lease or without; and when the leader is left in peace, whoever is silent goes down
    /// and every clear is answered.
    #[test]
    fn a_lease_is_never_judged_over_while_it_is_held(happenings in happenings()) {
        let mut truth = Truth::begun();
        for happening in happenings {
            truth.happen(happening);
            truth.check()?;
        }
        // Left in peace: nobody says anything any more.
        for _ in 0..4000 {
            truth.now += 50;
            truth.scene.jump(50);
            truth.check()?;
            truth.apply();
            if truth.is_over() {
                break;
            }
        }
        prop_assert!(truth.is_over(), "{:?} wait, of {:?}", truth.pending, truth.scene.cluster.map().members);
    }
}
