//! What the raft actor does with effects, and what it does not do any more once it has failed.

use super::*;
use kvhive_consensus::{ConsensusConfig, LogBatch, Restored, SnapshotRecord, WriteId};
use kvhive_control::Tuning;
use kvhive_protocol::ClusterId;
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_runtime::ManualClock;
use std::sync::mpsc::{Receiver, sync_channel};

fn config(snapshot_every: u64) -> ConsensusConfig {
    ConsensusConfig {
        id: PeerId(1),
        peers: [(PeerId(1), Vec::new())].into(),
        election_ticks: 20,
        heartbeat_ticks: 3,
        max_inflight: 64,
        max_proposal_bytes: 1 << 20,
        snapshot_every,
        seed: 1,
        start: snapshot_every,
    }
}

fn settings() -> Settings {
    Settings {
        replicas: 1,
        segment_blocks: 16,
        ack: Ack::Primary,
        lease_ms: 2000,
        heartbeat_ms: 200,
        serving_lease_ms: 2000,
    }
}

fn change(sequence: u64, command: Command) -> Vec<u8> {
    let request = RequestId { client: 7, sequence };
    codec::encode(&LogEntry::from(Proposal { request, command })).expect("it is small")
}

fn bootstrap() -> Vec<u8> {
    bootstrap_at(Level::NEWEST)
}

fn bootstrap_at(level: Level) -> Vec<u8> {
    let (cluster, name) = (ClusterId(1), "tried".to_owned());
    change(
        1,
        Command::Bootstrap {
            cluster,
            name,
            settings: settings(),
            default_secret: [1; 32],
            scaling: Default::default(),
            coordinators: Vec::new(),
            level,
        },
    )
}

fn tenant(at: u64) -> Vec<u8> {
    change(
        at,
        Command::CreateTenant {
            name: format!("tenant-{at}"),
            secret: [2; 32],
            rules: kvhive_protocol::TenantRules::default(),
        },
    )
}

/// Returns the log of a lone coordinator to which these were proposed.
fn log_of(proposals: Vec<Vec<u8>>) -> Restored {
    let mut machine = Consensus::new(config(1_000_000), Restored::default()).expect("the setup is sound");
    let mut restored = Restored::default();
    let mut run = |event: Event| {
        let mut effects = Vec::new();
        machine.step(event, &mut effects);
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                let Effect::Persist { write, batch } = effect else { continue };
                restored.entries.extend(batch.entries);
                restored.hard_state = batch.hard_state.or(restored.hard_state.take());
                machine.step(Event::Persisted { write }, &mut effects);
            }
        }
    };
    for _ in 0..60 {
        run(Event::Tick);
    }
    for (at, data) in proposals.into_iter().enumerate() {
        run(Event::Propose { ticket: Ticket(at as u64 + 1), data });
    }
    restored
}

/// An actor, its log's queue, and whether it has failed.
struct Scene {
    actor: RaftActor,
    writes: Receiver<Write>,
    failure: watch::Receiver<Option<String>>,
}

impl Scene {
    fn new(restored: Restored, room: usize) -> Scene {
        let (failed, failure) = watch::channel(None);
        let (log, writes) = sync_channel(room);
        let actor = RaftActor::new(Parts {
            consensus: Consensus::new(config(10), restored).expect("the log is sound"),
            registry: Registry::new(),
            overseer: Overseer::new(Tuning::default()),
            us: PeerId(1),
            directory: Directory::new(
                PeerId(1),
                BTreeMap::new(),
                tokio::sync::mpsc::unbounded_channel().0,
                watch::channel(Vec::new()).0,
            ),
            log,
            clock: Arc::new(ManualClock::default()),
            tick: Duration::from_millis(20),
            bootstrap: Bootstrap {
                cluster: ClusterId(1),
                name: "tried".to_owned(),
                settings: settings(),
                default_secret: [1; 32],
                scaling: Default::default(),
            },
            failed,
            speaks: Level::NEWEST,
            cluster: watch::channel(Belonging::default()).0,
            events: watch::channel(0).0,
            engines: watch::channel(Default::default()).0,
            vitals: watch::channel(Vitals::UNKNOWN).0,
            client: 9,
        });
        Scene { actor, writes, failure }
    }

    /// Lets 60 ticks pass on a disk that is quick, and returns what was written.
    fn run(&mut self) -> Vec<LogBatch> {
        let mut written = Vec::new();
        for _ in 0..60 {
            self.actor.tick();
            while let Ok((write, batch)) = self.writes.try_recv() {
                written.push(batch);
                self.actor.step(Event::Persisted { write });
            }
        }
        written
    }

    fn why(&self) -> String {
        self.failure.borrow().clone().expect("it has failed")
    }
}

fn snapshots(written: &[LogBatch]) -> Vec<u64> {
    written.iter().filter_map(|batch| batch.snapshot.as_ref()).map(|snapshot| snapshot.index).collect()
}

#[test]
fn behind_an_entry_that_cannot_be_applied_nothing_is_applied_or_made_to_last() {
    let whole = log_of([bootstrap()].into_iter().chain((2..20).map(tenant)).collect());
    let mut sound = Scene::new(whole, 1000);
    assert_eq!(snapshots(&sound.run()).len(), 1, "what the other run must not come to");

    // As a newer build wrote it: entry 4 (after the leader's own, that which names the founders, and the first) is a command that this build does not know.
    let newer = [bootstrap(), vec![0xFF; 40]].into_iter().chain((3..20).map(tenant)).collect();
    let mut scene = Scene::new(log_of(newer), 1000);
    let written = scene.run();
    assert!(scene.why().starts_with("entry 4 cannot be applied"), "{}", scene.why());
    assert_eq!(scene.actor.parts.registry.applied(), 3);
    assert!(scene.actor.parts.vitals.borrow().has_failed);
    assert!(snapshots(&written).is_empty());
}

#[test]
fn a_cluster_that_goes_beyond_what_its_coordinator_speaks_goes_on_without_it() {
    let beyond = Level(Level::NEWEST.0 + 1);
    let newer = [bootstrap(), change(2, Command::RaiseLevel { to: beyond }), vec![0xFF; 40]];
    let mut scene = Scene::new(log_of(newer.to_vec()), 1000);
    scene.run();
    // Not that of the entry behind it, which says nothing to an operator.
    assert!(
        scene.why().starts_with(&format!("the cluster is at level {beyond}, from which it does not go back")),
        "{}",
        scene.why()
    );
    assert_eq!(scene.actor.parts.registry.applied(), 4);
}

#[test]
fn a_leader_has_the_level_rise_once_it_has_heard_that_all_speak_a_newer_one() {
    let mut scene = Scene::new(log_of(vec![bootstrap_at(Level::OLDEST)]), 1000);
    scene.run();
    assert_eq!(scene.actor.parts.registry.level(), Level::NEWEST, "it is all there is");
    // What others say of themselves counts while they are coordinators.
    assert_eq!(scene.actor.spoken(), [Some(Level::NEWEST)]);
    scene.actor.hear_level(PeerId(9), Level::OLDEST);
    assert_eq!(scene.actor.spoken(), [Some(Level::NEWEST)], "there is no other coordinator");
}

#[test]
fn a_leaders_snapshot_that_cannot_be_used_is_not_written() {
    let mut scene = Scene::new(Restored::default(), 1000);
    let (index, data) = (40, b"no registry".to_vec());
    let snapshot = Some(SnapshotRecord { index, term: 2, data: data.clone() });
    let batch = LogBatch { snapshot, reset: true, ..LogBatch::default() };
    // As raft asks for them.
    for effect in [Effect::Install { index, data }, Effect::Persist { write: WriteId(1), batch }] {
        scene.actor.perform(effect);
    }
    assert!(scene.why().starts_with("a leader's snapshot cannot be used"), "{}", scene.why());
    assert_eq!(scene.writes.try_iter().count(), 0);
}

#[test]
fn a_write_that_was_dropped_is_never_counted_as_durable() {
    let mut scene = Scene::new(Restored::default(), 1);
    let batch = |vote: u8| LogBatch { hard_state: Some(vec![vote]), ..LogBatch::default() };
    for write in 1..=2 {
        scene.actor.perform(Effect::Persist { write: WriteId(write), batch: batch(write as u8) });
    }
    assert_eq!(scene.why(), "the log takes no more writes");
    // There is room again; a later write would vouch for the one before it.
    assert_eq!(scene.writes.try_iter().collect::<Vec<_>>(), [(WriteId(1), batch(1))]);
    scene.actor.perform(Effect::Persist { write: WriteId(3), batch: batch(3) });
    assert_eq!(scene.writes.try_iter().count(), 0);
    let before = scene.actor.parts.consensus.status();
    scene.actor.tick();
    scene.actor.step(Event::Persisted { write: WriteId(3) });
    assert_eq!(scene.actor.parts.consensus.status(), before);
    assert_eq!(scene.writes.try_iter().count(), 0);
}
