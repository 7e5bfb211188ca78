//! Stories of the journal: what becomes an event, with which numbers, and that every coordinator tells the same.

use kvhive_control::{Effect, Overseer, Registry, Tuning};
use kvhive_protocol::control::{Command, CommandReply, DeviceLoad, Heartbeat, Proposal, Registration};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::{DeviceDescription, Settings};
use kvhive_protocol::scaling::{ScalingChange, ScalingMode};
use kvhive_protocol::{
    Change, ClusterEvent, ClusterId, EventKind, Generation, LogEntry, MemberId, Moment, Note, Origin, Reason,
    RequestId, RulesChange, Subject, TenantId, TenantRules,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

struct Story {
    registry: Registry,
    index: u64,
}

impl Story {
    fn begin() -> Story {
        let mut story = Story { registry: Registry::new(), index: 0 };
        let settings = Settings {
            replicas: 2,
            segment_blocks: 16,
            ack: Ack::All,
            lease_ms: 1000,
            heartbeat_ms: 200,
            serving_lease_ms: 1000,
        };
        let (cluster, name) = (ClusterId(1), "told".to_owned());
        story.does(
            Command::Bootstrap {
                cluster,
                name,
                settings,
                default_secret: [1; 32],
                scaling: Default::default(),
                coordinators: Vec::new(),
                level: kvhive_protocol::Level::NEWEST,
            },
            "its logs were empty",
        );
        story
    }

    fn does(&mut self, command: Command, reason: &str) -> CommandReply {
        self.index += 1;
        let proposal = Proposal { request: RequestId { client: 1, sequence: self.index }, command };
        let origin = Origin { at_ms: 1000 * self.index, reason: Reason::new(reason) };
        self.registry.apply(self.index, LogEntry { proposal, origin })
    }

    fn register(&mut self, name: &str) -> CommandReply {
        let device =
            DeviceDescription { kind: "host".into(), device_bytes: 1 << 20, host_bytes: 0, disk_bytes: 0 };
        let registration = Registration {
            request: RequestId { client: 5, sequence: 5 },
            name: name.into(),
            data_address: "127.0.0.1:7810".into(),
            metrics_address: "127.0.0.1:7811".into(),
            labels: BTreeMap::new(),
            codec: Default::default(),
            speaks: kvhive_protocol::Level::NEWEST,
            devices: vec![device],
        };
        self.does(Command::Register(registration), "its process started")
    }

    fn events(&self) -> Vec<Arc<ClusterEvent>> {
        self.registry.events(0, 1000).events
    }

    fn last(&self) -> Arc<ClusterEvent> {
        self.events().pop().expect("something happened")
    }
}

fn fact(event: &ClusterEvent, name: &str) -> Option<u64> {
    event.note.facts.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

#[test]
fn each_change_is_told_once_with_whom_when_why_and_numbers() {
    let mut story = Story::begin();
    assert_eq!(
        *story.last(),
        ClusterEvent {
            sequence: 1,
            at_ms: 1000,
            epoch: kvhive_protocol::Epoch(1),
            note: Note::new(EventKind::ClusterStarted, Subject::default())
                .with("replicas", 2)
                .with("lease_ms", 1000),
            reason: Reason::new("its logs were empty"),
        }
    );
    for name in ["a", "b", "c"] {
        story.register(name);
    }
    story.does(Command::SetDrains { member: MemberId(2), drains: true }, "a new kernel");
    let drain = story.last();
    assert_eq!((drain.note.kind, drain.reason.as_str()), (EventKind::DrainBegun, "a new kernel"));
    assert_eq!(drain.note.subject, Subject::member("b"));
    assert!(fact(&drain, "slots_held").is_some_and(|slots| slots > 0));
    // What changes nothing is no event, nor what is refused.
    let told = story.registry.newest_event();
    story.does(Command::SetDrains { member: MemberId(2), drains: true }, "again");
    story.does(Command::ClearTenant { tenant: TenantId(9) }, "nobody knows it");
    story.does(Command::MarkDown { member: MemberId(1), generation: Generation(9) }, "another start of it");
    assert_eq!(story.registry.newest_event(), told);
    story.does(
        Command::MarkDown { member: MemberId(1), generation: Generation(1) },
        "no heartbeat for 1060 ms",
    );
    let down = story.last();
    assert_eq!((down.note.kind, &down.note.subject), (EventKind::MemberDown, &Subject::member("a")));
    // Nobody had been given a copy of anything yet.
    assert_eq!(fact(&down, "slots_lost"), Some(4096));
    story
        .does(Command::CreateTenant { name: "t".into(), secret: [2; 32], rules: TenantRules::default() }, "");
    let change = RulesChange { host_quota_bytes: Change::Set(77), ..RulesChange::default() };
    story.does(Command::SetTenantRules { tenant: TenantId(2), change }, "");
    assert_eq!(fact(&story.last(), "host_quota_bytes"), Some(77));
    story.does(Command::ClearTenant { tenant: TenantId(2) }, "");
    let cleared = story.last();
    assert_eq!((&cleared.note.subject, fact(&cleared, "era")), (&Subject::tenant("t"), Some(2)));
    story.does(Command::RotateSecret { tenant: TenantId(2), secret: [9; 32] }, "it leaked");
    let rotated = story.last();
    assert_eq!((rotated.note.kind, rotated.reason.as_str()), (EventKind::TenantSecretRotated, "it leaked"));
    assert_eq!((&rotated.note.subject, fact(&rotated, "era")), (&Subject::tenant("t"), Some(3)));
    story.does(Command::DeleteTenant { tenant: TenantId(2) }, "");
    let deleted = story.last();
    assert_eq!((deleted.note.kind, &deleted.note.subject), (EventKind::TenantDeleted, &Subject::tenant("t")));
    let note = Note::new(EventKind::LeaderElected, Subject::coordinator("c-1")).with("term", 7);
    let epoch = story.registry.epoch();
    story.does(Command::Record(Box::new(note.clone())), "a majority voted");
    assert_eq!((&story.last().note, story.registry.epoch()), (&note, epoch));
    let unsound = note.with(&"x".repeat(99), 1);
    assert!(matches!(story.does(Command::Record(Box::new(unsound)), ""), CommandReply::Rejected(_)));
    let sequences: Vec<u64> = story.events().iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=story.registry.newest_event()).collect::<Vec<_>>());
}

#[test]
fn a_policy_of_the_size_that_changes_is_told_and_one_that_stays_is_not() {
    let mut story = Story::begin();
    let change = ScalingChange { mode: Some(ScalingMode::Act), floor: Some(3), ..ScalingChange::default() };
    story.does(Command::SetScaling { change }, "it was watched for a week");
    let told = story.last();
    assert_eq!(
        (told.note.kind, told.reason.as_str()),
        (EventKind::ScalingChanged, "it was watched for a week")
    );
    assert_eq!((fact(&told, "mode_act"), fact(&told, "floor")), (Some(1), Some(3)));
    story.does(Command::SetScaling { change }, "again");
    let refused = ScalingChange { floor: Some(0), ..ScalingChange::default() };
    story.does(Command::SetScaling { change: refused }, "nobody may");
    assert_eq!(story.registry.newest_event(), told.sequence);
}

#[test]
fn a_restored_coordinator_tells_the_same_and_goes_on_with_the_same_numbers() {
    let mut story = Story::begin();
    for turn in 0..2 * kvhive_control::MAX_EVENTS as u64 {
        let ack = if turn % 2 == 0 { Ack::Primary } else { Ack::All };
        story.does(Command::SetAck { ack }, "to and fro");
    }
    let mut twin =
        Story { registry: Registry::restore(&story.registry.snapshot()).expect("sound"), index: story.index };
    for one in [&mut story, &mut twin] {
        one.register("a");
    }
    assert_eq!(story.registry.snapshot(), twin.registry.snapshot());
    assert_eq!(story.events(), twin.events());
    let page = twin.registry.events(5, 10);
    assert!(page.lacks(5) && page.newest == 2 * kvhive_control::MAX_EVENTS as u64 + 2);
    assert_eq!(page.oldest, page.newest + 1 - kvhive_control::MAX_EVENTS as u64);
}

#[test]
fn many_slots_of_one_plan_are_one_event_whose_reason_says_what_begins_and_why() {
    let mut story = Story::begin();
    for name in ["a", "b", "c"] {
        story.register(name);
    }
    let mut overseer = Overseer::new(Tuning::default());
    let mut now = Moment::from_millis(0);
    overseer.became_leader(now, story.registry.map().as_deref());
    story.does(Command::SetDrains { member: MemberId(1), drains: true }, "a new kernel");
    let before = story.registry.newest_event();
    for _ in 0..40 {
        now = now + Duration::from_millis(100);
        let map = story.registry.map().expect("it was started");
        for (id, member) in &map.members {
            let occupied = vec![255; 512];
            let load = DeviceLoad { occupied, ..DeviceLoad::default() };
            let (generation, epoch) = (member.generation, map.epoch);
            let beat = Heartbeat { member: *id, generation, epoch, devices: vec![load] };
            overseer.heartbeat_confirmed(now, beat, &map);
        }
        let mut effects = Vec::new();
        overseer.tick(now, &map, &mut effects);
        for effect in effects {
            let Effect::Propose(command, reason) = effect else { continue };
            story.does(command, reason.as_str());
        }
    }
    let plans = story.registry.events(before, 100).events;
    let plan = plans.first().expect("slots begin to leave");
    assert_eq!(plan.note.kind, EventKind::SlotsPlaced);
    let begun = fact(plan, "copies_begun").expect("they are given away");
    assert!(begun > 0 && u64::from(plan.note.subject.slots) >= begun, "{plan:?}");
    assert_eq!(plan.note.subject.examples.len(), 8.min(plan.note.subject.slots as usize));
    assert!(plan.reason.as_str().contains("begin to be copied to"), "{}", plan.reason);
    assert!(plan.reason.as_str().contains("being emptied: a"), "{}", plan.reason);
    let all = format!("{begun} of them as members are being emptied that have them");
    assert!(plan.reason.as_str().contains(&all) && !plan.reason.as_str().contains("lack"), "{}", plan.reason);
    assert!(plans.len() < 10, "slots that wait are not told again: {}", plans.len());
}

#[test]
fn a_member_that_is_declared_down_is_said_to_have_been_silent_for_so_long() {
    let mut story = Story::begin();
    story.register("a");
    let mut overseer = Overseer::new(Tuning::default());
    let map = story.registry.map().expect("it was started");
    overseer.became_leader(Moment::ZERO, Some(&map));
    let mut reasons = Vec::new();
    for at in 1..30 {
        let mut effects = Vec::new();
        overseer.tick(Moment::from_millis(100 * at), &map, &mut effects);
        reasons.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Propose(Command::MarkDown { .. }, reason) => Some(reason),
            _ => None,
        }));
    }
    let first = reasons.first().expect("its lease runs out");
    assert_eq!(first.as_str(), "no heartbeat for 1100 ms, its lease is 1000 ms");
}
