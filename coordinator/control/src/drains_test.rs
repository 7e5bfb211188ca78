//! Stories of what emptying members comes to.

use super::*;
use crate::planner::Planner;
use crate::planner::tests::goes_on;
use crate::registry::tests::{Cluster, bootstrap};
use kvhive_protocol::control::CommandReply;
use kvhive_protocol::emptying::LostBlock;

/// A cluster whose leader is told what devices have counted; time in milliseconds.
struct Scene {
    cluster: Cluster,
    drains: Drains,
    now: u64,
    loads: BTreeMap<DeviceId, DeviceLoad>,
    /// Who has said nothing since the epoch.
    silent: BTreeMap<MemberId, Epoch>,
}

impl Scene {
    fn of(names: &[&str]) -> Scene {
        Scene::with(Cluster::with_replicas(1), names)
    }

    fn with(mut cluster: Cluster, names: &[&str]) -> Scene {
        for name in names {
            cluster.register(name, 1);
        }
        let mut scene = Scene {
            cluster,
            drains: Drains::default(),
            now: 0,
            loads: BTreeMap::new(),
            silent: BTreeMap::new(),
        };
        scene.move_slots();
        scene
    }

    fn drain(&mut self, member: u32) {
        self.cluster.apply(Command::SetDrains { member: MemberId(member), drains: true });
    }

    fn move_slots(&mut self) {
        let mut planner = Planner::new(4096);
        while let Some(plan) = planner.plan(&self.cluster.map(), &goes_on()) {
            self.cluster.apply(plan);
        }
    }

    fn report(&mut self, by: u32, given: &[(u32, Given)], displaced: &[(u32, Displaced)]) {
        let load = DeviceLoad {
            given: given.iter().map(|(of, given)| (MemberId(*of), *given)).collect(),
            displaced: displaced.iter().map(|(of, displaced)| (MemberId(*of), *displaced)).collect(),
            ..DeviceLoad::default()
        };
        self.loads.insert(DeviceId::new(MemberId(by), 0), load);
    }

    /// Returns what a member has reported.
    fn load(&mut self, by: u32) -> &mut DeviceLoad {
        self.loads.get_mut(&DeviceId::new(MemberId(by), 0)).expect("it has reported")
    }

    /// Has a member say which blocks it counts as lost, by their names, and of how many it does not know yet.
    fn report_lost(&mut self, by: u32, of: u32, named: &[u64], unsettled_blocks: u64) {
        let lost = Displaced {
            blocks: named.len() as u64 + unsettled_blocks,
            lost_blocks: named.len() as u64,
            lost_bytes: 10 * named.len() as u64,
        };
        self.report(by, &[], &[(of, lost)]);
        let named = named.iter().map(|name| LostBlock { name: *name, bytes: 10 }).collect();
        self.load(by).losses = vec![(MemberId(of), Losses { unsettled_blocks, named })];
    }

    /// Lets 100 ms pass; returns what was proposed and is applied now.
    fn tick(&mut self) -> Vec<(Note, String)> {
        let proposed = self.proposed();
        for (command, _) in &proposed {
            let reply = self.cluster.apply(command.clone());
            assert!(matches!(reply, CommandReply::Applied { .. }), "{reply:?}");
        }
        proposed.into_iter().map(|(command, reason)| (noted(command), reason.to_string())).collect()
    }

    fn proposed(&mut self) -> Vec<Proposed> {
        self.now += 100;
        let map = self.cluster.map();
        let reported = |id| Some(self.silent.get(&id).copied().unwrap_or(map.epoch));
        let loads = self.loads.iter().map(|(device, load)| (*device, load));
        self.drains.tick(Moment::from_millis(self.now), &map, &self.cluster.registry, loads, reported)
    }
}

fn noted(command: Command) -> Note {
    let Command::Record(note) = command else { panic!("{command:?}") };
    *note
}

fn fact(note: &Note, name: &str) -> u64 {
    note.facts.iter().find(|(fact, _)| fact == name).map_or(0, |(_, value)| *value)
}

fn moved(blocks: u64) -> Given {
    Given { moved_blocks: blocks, moved_bytes: 10 * blocks, ..Given::default() }
}

#[test]
fn what_became_of_the_blocks_is_written_down_once_when_no_slot_is_left() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report(2, &[(2, Given { declined_blocks: 3, lost_blocks: 2, lost_bytes: 20, ..moved(7) })], &[]);
    scene.report(1, &[], &[(2, Displaced { blocks: 4, lost_blocks: 4, lost_bytes: 40 })]);
    assert_eq!(scene.tick(), [], "slots are left");
    scene.move_slots();
    let told = scene.tick();
    let [(note, reason)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((note.kind, note.subject.member.as_deref()), (EventKind::DrainFinished, Some("goes")));
    let facts =
        ["moved_blocks", "moved_bytes", "lost_blocks", "lost_bytes", "declined_blocks", "displaced_blocks"];
    assert_eq!(facts.map(|name| fact(note, name)), [7, 70, 6, 60, 3, 4]);
    assert!(fact(note, "slots") > 1000, "{note:?}");
    assert!(reason.contains("7 blocks moved, lost: 6; 3 were given no room; 4 left elsewhere"), "{reason}");
    for _ in 0..100 {
        assert_eq!(scene.tick(), []);
    }
}

#[test]
fn who_has_not_counted_to_the_end_is_waited_for_and_not_for_ever() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.tick();
    scene.silent.insert(MemberId(1), scene.cluster.map().epoch);
    scene.move_slots();
    let ticks = std::iter::repeat_with(|| scene.tick()).position(|told| !told.is_empty());
    assert_eq!(ticks, Some(PATIENCE.as_millis() as usize / 100));
    let last = scene.cluster.registry.events(0, 1000).events.pop().expect("something happened");
    assert_eq!((last.note.kind, fact(&last.note, "members_unheard")), (EventKind::DrainFinished, 1));
}

#[test]
fn who_takes_blocks_and_begins_anew_meanwhile_takes_nothing_back_of_what_it_had_told() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report(1, &[], &[(2, Displaced { blocks: 4, lost_blocks: 4, lost_bytes: 40 })]);
    scene.tick();
    scene.cluster.register("stays", 1);
    scene.report(1, &[], &[(2, Displaced { blocks: 1, lost_blocks: 1, lost_bytes: 10 })]);
    scene.tick();
    scene.move_slots();
    let told = scene.tick();
    let [(note, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(["lost_blocks", "lost_bytes", "displaced_blocks"].map(|name| fact(note, name)), [5, 50, 5]);
}

#[test]
fn a_block_that_several_have_let_go_is_lost_once() {
    let mut scene = Scene::of(&["stays", "stays-too", "goes", "goes-too"]);
    scene.drain(3);
    scene.drain(4);
    scene.report_lost(1, 3, &[7, 8], 0);
    scene.report_lost(2, 3, &[8, 9], 0);
    scene.tick();
    scene.report_lost(2, 4, &[9, 10], 0);
    let load = scene.loads.get_mut(&DeviceId::new(MemberId(2), 0)).expect("it has reported");
    load.losses
        .push((MemberId(3), Losses { unsettled_blocks: 0, named: vec![LostBlock { name: 8, bytes: 10 }] }));
    load.displaced.push((MemberId(3), Displaced { blocks: 1, lost_blocks: 1, lost_bytes: 10 }));
    scene.move_slots();
    let told = scene.tick();
    let lost: Vec<[u64; 2]> =
        told.iter().map(|(note, _)| ["lost_blocks", "lost_bytes"].map(|name| fact(note, name))).collect();
    assert_eq!(lost, [[2, 20], [2, 20]], "7 and 8 of the first, 9 and 10 of the second");
    assert_eq!(fact(&told[1].0, "lost_blocks_of_all"), 4);
}

#[test]
fn what_is_being_found_out_is_waited_for_and_counts_as_lost_where_nobody_does() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report_lost(1, 2, &[7], 3);
    scene.move_slots();
    assert_eq!(scene.tick(), [], "of three it is not known");
    scene.report_lost(1, 2, &[7, 8], 0);
    let told = scene.tick();
    assert_eq!(told.iter().map(|(note, _)| fact(note, "lost_blocks")).collect::<Vec<u64>>(), [2]);

    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report_lost(1, 2, &[7], 3);
    scene.move_slots();
    let told: Vec<_> = (0..100).flat_map(|_| scene.tick()).collect();
    let [(note, reason)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(fact(note, "lost_blocks"), 4);
    assert!(reason.contains("of 3 of the lost it was not found out"), "{reason}");
}

#[test]
fn what_was_counted_before_a_member_is_emptied_once_more_is_not_of_it() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report(2, &[(2, moved(7))], &[]);
    scene.tick();
    scene.cluster.apply(Command::SetDrains { member: MemberId(2), drains: false });
    scene.tick();
    // Its heartbeat of before is the last that has come.
    scene.silent.insert(MemberId(2), scene.cluster.map().epoch);
    scene.drain(2);
    scene.tick();
    scene.move_slots();
    let told: Vec<_> = (0..100).flat_map(|_| scene.tick()).collect();
    let facts = |note: &Note| ["moved_blocks", "members_unheard"].map(|name| fact(note, name));
    assert_eq!(told.iter().map(|(note, _)| facts(note)).collect::<Vec<_>>(), [[0, 1]]);
}

#[test]
fn a_new_leader_writes_down_as_much_and_nothing_twice() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report(2, &[(2, moved(7))], &[]);
    scene.tick();
    scene.drains.lost_leadership();
    scene.move_slots();
    let first = scene.proposed();
    // It is not known whether that came through.
    scene.drains.lost_leadership();
    let second = scene.proposed();
    assert_eq!((first.len(), &first), (1, &second));
    scene.cluster.apply(first[0].0.clone());
    let again = scene.cluster.apply(second[0].0.clone());
    assert!(matches!(again, CommandReply::Rejected(_)), "{again:?}");
    assert_eq!(scene.tick(), []);
}

#[test]
fn one_that_leaves_as_soon_as_it_is_empty_is_told_of_all_the_same() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.report(2, &[(2, moved(7))], &[]);
    scene.tick();
    scene.move_slots();
    let generation = scene.cluster.map().members[&MemberId(2)].generation;
    scene.cluster.apply(Command::Leave { member: MemberId(2), generation });
    scene.loads.clear();
    let told = scene.tick();
    assert_eq!(told.iter().map(|(note, _)| fact(note, "moved_blocks")).collect::<Vec<_>>(), [7]);
    assert_eq!(scene.tick(), []);
}

#[test]
fn one_that_goes_down_with_slots_is_said_to_have_taken_blocks_along() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.tick();
    scene.cluster.mark_down(MemberId(2));
    let told = scene.tick();
    let [(note, reason)] = &told[..] else { panic!("{told:?}") };
    assert!(fact(note, "cut_short") == 1 && reason.contains("went down before it was empty"), "{reason}");
}

#[test]
fn one_that_goes_down_for_a_moment_takes_nothing_along_that_all_replicas_acknowledged() {
    type Change = fn(&mut Scene);
    let nothing: Change = |_| {};
    // What is acknowledged by whom, what happens before the leader looks and what once the member has gone, whether it may have been alone
    // with something.
    let cases: [(&str, Ack, Change, Change, u64); 10] = [
        ("others have it all", Ack::All, nothing, nothing, 0),
        ("copies go in the background", Ack::Primary, nothing, nothing, 1),
        ("one may lack a copy", Ack::Quorum, nothing, nothing, 1),
        (
            "all acknowledge since a moment ago",
            Ack::Primary,
            |scene| {
                scene.cluster.apply(Command::SetAck { ack: Ack::All });
            },
            nothing,
            1,
        ),
        ("one has let blocks go", Ack::All, |scene| scene.load(2).evicted_blocks = 3, nothing, 1),
        ("one lets some go meanwhile", Ack::All, nothing, |scene| scene.load(2).evicted_blocks = 3, 1),
        ("a tier of one has failed", Ack::All, |scene| scene.load(1).tiers[2].closed = true, nothing, 1),
        (
            "one has not said what it has",
            Ack::All,
            |scene| {
                scene.loads.remove(&DeviceId::new(MemberId(2), 0));
            },
            nothing,
            1,
        ),
        (
            "one does not say it again",
            Ack::All,
            |scene| {
                scene.silent.insert(MemberId(2), scene.cluster.map().epoch);
            },
            nothing,
            1,
        ),
        (
            "one has gone too",
            Ack::All,
            nothing,
            |scene| {
                scene.cluster.mark_down(MemberId(1));
                scene.cluster.register("one", 1);
            },
            1,
        ),
    ];
    for (what, ack, before, after, cut_short) in cases {
        let mut begin = bootstrap(2);
        if let Command::Bootstrap { settings, .. } = &mut begin {
            settings.ack = ack;
        }
        let mut scene = Scene::with(Cluster::begun_by(begin), &["one", "two", "goes"]);
        scene.cluster.fill();
        scene.drain(3);
        scene.report(3, &[(3, moved(7))], &[]);
        scene.report(1, &[], &[]);
        scene.report(2, &[], &[]);
        before(&mut scene);
        assert_eq!(scene.tick(), [], "slots are left");
        scene.cluster.mark_down(MemberId(3));
        after(&mut scene);
        scene.cluster.register("goes", 1);
        scene.loads.remove(&DeviceId::new(MemberId(3), 0));
        let told: Vec<_> = (0..100).flat_map(|_| scene.tick()).collect();
        let [(note, reason)] = &told[..] else { panic!("{what}: {told:?}") };
        let facts = ["moved_blocks", "cut_short"].map(|name| fact(note, name));
        assert_eq!(facts, [7, cut_short], "{what}: {reason}");
        assert!(reason.contains("it went down before it was empty"), "{what}: {reason}");
        let spared = "one, two have every block that all replicas acknowledged";
        assert_eq!(reason.contains(spared), cut_short == 0, "{what}: {reason}");
    }
}

#[test]
fn what_is_taken_back_is_told_of_no_more() {
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.tick();
    scene.cluster.apply(Command::SetDrains { member: MemberId(2), drains: false });
    assert_eq!((scene.tick(), scene.drains.going.len()), (vec![], 0));
    scene.drain(2);
    scene.move_slots();
    assert_eq!(scene.tick().len(), 1, "the second time it is");
}

#[test]
fn members_that_are_emptied_together_are_summed_up_with_the_last() {
    let mut scene = Scene::of(&["stays", "one", "two"]);
    scene.drain(2);
    scene.drain(3);
    scene.report(2, &[(2, moved(7))], &[]);
    scene.report(3, &[(3, moved(5))], &[]);
    scene.report(1, &[], &[(3, Displaced { blocks: 1, lost_blocks: 1, lost_bytes: 10 })]);
    scene.tick();
    scene.move_slots();
    let told = scene.tick();
    let facts = |(note, _): &(Note, String)| {
        ["moved_blocks", "lost_blocks", "members_emptied", "moved_blocks_of_all", "lost_blocks_of_all"]
            .map(|name| fact(note, name))
    };
    assert_eq!(told.iter().map(facts).collect::<Vec<_>>(), [[7, 0, 0, 0, 0], [5, 1, 2, 12, 1]]);
}

#[test]
fn a_cluster_whose_members_could_not_read_of_it_is_told_nothing() {
    let mut cluster = Cluster::at_level(Level::FIRST);
    for name in ["stays", "goes"] {
        cluster.register_speaking(name, Level::FIRST);
    }
    cluster.apply(Command::SetDrains { member: MemberId(2), drains: true });
    let mut drains = Drains::default();
    let map = cluster.map();
    let told = drains.tick(Moment::ZERO, &map, &cluster.registry, std::iter::empty(), |_| Some(map.epoch));
    assert_eq!((told, drains.going.len()), (vec![], 0));
}

#[test]
fn one_that_is_forgotten_is_told_of_as_it_went() {
    // By an operator, who did so at once when it was down.
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.tick();
    scene.cluster.mark_down(MemberId(2));
    scene.cluster.apply(Command::RemoveMember { member: MemberId(2) });
    let told = scene.tick();
    let [(note, reason)] = &told[..] else { panic!("{told:?}") };
    assert!(fact(note, "cut_short") == 1 && reason.contains("went down before it was empty"), "{reason}");
    // By itself, as it was empty and left at once.
    let mut scene = Scene::of(&["stays", "goes"]);
    scene.drain(2);
    scene.tick();
    scene.move_slots();
    let generation = scene.cluster.map().members[&MemberId(2)].generation;
    scene.cluster.apply(Command::Leave { member: MemberId(2), generation });
    assert!(!scene.cluster.map().members.contains_key(&MemberId(2)));
    let told = scene.tick();
    let [(note, reason)] = &told[..] else { panic!("{told:?}") };
    assert!(fact(note, "cut_short") == 0 && !reason.contains("went down"), "{reason}");
}
