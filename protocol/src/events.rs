//! Cluster events: what the coordinators decided and what happened to the cluster, in the order of the log. Every coordinator
//! derives the same ones under the same numbers, so a reader goes on with another where it stopped with the first.

use crate::control::{MAX_NAME_BYTES, Proposal};
use crate::error::WireError;
use crate::growing::grows;
use crate::ids::{Epoch, Slot};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest reason, in bytes; a longer one is cut short.
pub const MAX_REASON_BYTES: usize = 400;
/// The most numbers that one event carries.
pub const MAX_FACTS: usize = 12;
/// The longest name of such a number, in bytes.
pub const MAX_FACT_BYTES: usize = 40;
/// The most slots that one event names; how many it concerns is a number.
pub const MAX_EXAMPLES: usize = 8;

/// Why something was decided, in words and numbers, for people. Bounded, on one line.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Reason(String);

impl Reason {
    /// Takes as much of a text as a reason may have.
    pub fn new(text: impl fmt::Display) -> Reason {
        let mut text = text.to_string().replace(char::is_control, " ");
        if text.len() > MAX_REASON_BYTES {
            let most = MAX_REASON_BYTES - "…".len();
            let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        Reason(text)
    }

    /// Returns the words; none where nobody gave a reason.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns this reason, or another where nobody gave one.
    pub fn or(self, otherwise: impl fmt::Display) -> Reason {
        if self.0.is_empty() { Reason::new(otherwise) } else { self }
    }
}

impl TryFrom<String> for Reason {
    type Error = String;

    fn try_from(text: String) -> Result<Reason, String> {
        if text.len() > MAX_REASON_BYTES || text.contains(char::is_control) {
            return Err(format!("a reason is one line of {MAX_REASON_BYTES} bytes at most"));
        }
        Ok(Reason(text))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of thing happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum EventKind {
    /// The cluster was started, for the first and only time.
    ClusterStarted,
    /// A coordinator leads from now on.
    LeaderElected,
    /// A node is a member from now on, or anew after a restart: what it held before is lost with its memory.
    MemberRegistered,
    /// A member was silent for longer than its lease: others take its place. It may be answering reads until its serving lease ends.
    MemberDown,
    /// A member said that it stops.
    MemberLeft,
    /// A member is being emptied.
    DrainBegun,
    /// A member takes slots again.
    DrainEnded,
    /// Slots begin to be copied, or have arrived.
    SlotsPlaced,
    /// There is a new tenant.
    TenantCreated,
    /// A tenant's older blocks do not exist any more.
    TenantCleared,
    /// How a tenant's blocks are kept has changed.
    TenantRulesChanged,
    /// How many replicas a store waits for by default has changed.
    AckChanged,
    /// How the cluster's size may change has changed, or an operator asked for one.
    ScalingChanged,
    /// Another size is recommended.
    SizeRecommended,
    /// Slots belong elsewhere, or on more devices, because of how much they are read; or go by their hash again.
    SlotsBalanced,
    /// An engine's events are followed from now on, or are followed elsewhere.
    EngineFollowed,
    /// An engine's events are followed no longer.
    EngineForgotten,
    /// The cluster goes on by an older state: from a backup, or from what one coordinator had. What came after it is forgotten.
    ClusterRestored,
    /// A tenant has another secret: its older blocks do not exist any more, and its keys are others.
    TenantSecretRotated,
    /// A tenant and its blocks do not exist any more.
    TenantDeleted,
    /// A member is none any more: it was emptied and has left, or was down and an operator had it forgotten.
    MemberRemoved,
    /// A prefix is pinned, or its pin has changed.
    PinAdded,
    /// A pin has ended, or was removed.
    PinRemoved,
    /// Others are coordinators than before, or elsewhere, and nodes and clients are told.
    CoordinatorsChanged,
    /// Every member speaks a newer level, and the cluster is at it from now on.
    LevelRaised,
    /// A member that was being emptied holds no slot any more, and this is what became of its blocks.
    DrainFinished,
    /// A member keeps what it has and is given no more slots.
    MemberCordoned,
    /// A member is given slots again.
    MemberUncordoned,
    /// Of a member that went down, or of those that a restored state does not know, nothing serves any more.
    MemberEnded,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 29] = [
        EventKind::ClusterStarted,
        EventKind::LeaderElected,
        EventKind::MemberRegistered,
        EventKind::MemberDown,
        EventKind::MemberLeft,
        EventKind::DrainBegun,
        EventKind::DrainEnded,
        EventKind::SlotsPlaced,
        EventKind::TenantCreated,
        EventKind::TenantCleared,
        EventKind::TenantRulesChanged,
        EventKind::AckChanged,
        EventKind::ScalingChanged,
        EventKind::SizeRecommended,
        EventKind::SlotsBalanced,
        EventKind::EngineFollowed,
        EventKind::EngineForgotten,
        EventKind::ClusterRestored,
        EventKind::TenantSecretRotated,
        EventKind::TenantDeleted,
        EventKind::MemberRemoved,
        EventKind::PinAdded,
        EventKind::PinRemoved,
        EventKind::CoordinatorsChanged,
        EventKind::LevelRaised,
        EventKind::DrainFinished,
        EventKind::MemberCordoned,
        EventKind::MemberUncordoned,
        EventKind::MemberEnded,
    ];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::ClusterStarted => "cluster-started",
            EventKind::LeaderElected => "leader-elected",
            EventKind::MemberRegistered => "member-registered",
            EventKind::MemberDown => "member-down",
            EventKind::MemberLeft => "member-left",
            EventKind::DrainBegun => "drain-begun",
            EventKind::DrainEnded => "drain-ended",
            EventKind::SlotsPlaced => "slots-placed",
            EventKind::TenantCreated => "tenant-created",
            EventKind::TenantCleared => "tenant-cleared",
            EventKind::TenantRulesChanged => "tenant-rules-changed",
            EventKind::AckChanged => "ack-changed",
            EventKind::ScalingChanged => "scaling-changed",
            EventKind::SizeRecommended => "size-recommended",
            EventKind::SlotsBalanced => "slots-balanced",
            EventKind::EngineFollowed => "engine-followed",
            EventKind::EngineForgotten => "engine-forgotten",
            EventKind::ClusterRestored => "cluster-restored",
            EventKind::TenantSecretRotated => "tenant-secret-rotated",
            EventKind::TenantDeleted => "tenant-deleted",
            EventKind::MemberRemoved => "member-removed",
            EventKind::PinAdded => "pin-added",
            EventKind::PinRemoved => "pin-removed",
            EventKind::CoordinatorsChanged => "coordinators-changed",
            EventKind::LevelRaised => "level-raised",
            EventKind::DrainFinished => "drain-finished",
            EventKind::MemberCordoned => "member-cordoned",
            EventKind::MemberUncordoned => "member-uncordoned",
            EventKind::MemberEnded => "member-ended",
        }
    }

    /// Returns the kind of this name.
    pub fn named(name: &str) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom or what an event is about, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Subject {
    /// A member.
    pub member: Option<String>,
    /// A tenant.
    pub tenant: Option<String>,
    /// A coordinator.
    pub coordinator: Option<String>,
    /// An engine.
    pub engine: Option<String>,
    /// How many slots.
    pub slots: u32,
    /// Some of those slots, at most [`MAX_EXAMPLES`].
    pub examples: Vec<Slot>,
    /// The name of a pin.
    #[serde(default)]
    pub pin: Option<String>,
}
grows!(Subject);

impl Subject {
    /// Makes a subject of one member.
    pub fn member(name: impl Into<String>) -> Subject {
        Subject { member: Some(name.into()), ..Subject::default() }
    }

    /// Makes a subject of one tenant.
    pub fn tenant(name: impl Into<String>) -> Subject {
        Subject { tenant: Some(name.into()), ..Subject::default() }
    }

    /// Makes a subject of one coordinator.
    pub fn coordinator(name: impl Into<String>) -> Subject {
        Subject { coordinator: Some(name.into()), ..Subject::default() }
    }

    /// Makes a subject of one engine.
    pub fn engine(name: impl Into<String>) -> Subject {
        Subject { engine: Some(name.into()), ..Subject::default() }
    }

    /// Makes a subject of slots, of which it names a few.
    pub fn slots(slots: impl ExactSizeIterator<Item = Slot>) -> Subject {
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        Subject { slots: count, examples: slots.take(MAX_EXAMPLES).collect(), ..Subject::default() }
    }
}

/// What an event says, without when and why: also what a leader may have written down that changes no map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// What kind of thing.
    pub kind: EventKind,
    /// About whom.
    pub subject: Subject,
    /// Numbers, by name; the unit is last in the name. At most [`MAX_FACTS`].
    pub facts: Vec<(String, u64)>,
}

impl Note {
    /// Makes a note without numbers.
    pub fn new(kind: EventKind, subject: Subject) -> Note {
        Note { kind, subject, facts: Vec::new() }
    }

    /// Adds a number; one too many is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: u64) -> Note {
        if self.facts.len() < MAX_FACTS {
            self.facts.push((name.to_owned(), value));
        }
        self
    }

    /// Adds a number unless it is zero.
    #[must_use]
    pub fn with_some(self, name: &str, value: u64) -> Note {
        if value == 0 { self } else { self.with(name, value) }
    }

    /// Checks that it is as small as notes are.
    ///
    /// # Errors
    /// [`WireError::Rejected`] with what is too large.
    pub fn check(&self) -> Result<(), WireError> {
        let Subject { member, tenant, coordinator, engine, slots: _, examples, pin } = &self.subject;
        let names = [member, tenant, coordinator, engine, pin];
        let sizes = [
            ("numbers", self.facts.len(), MAX_FACTS),
            ("example slots", examples.len(), MAX_EXAMPLES),
            (
                "bytes of a name",
                names.into_iter().flatten().map(String::len).max().unwrap_or(0),
                MAX_NAME_BYTES,
            ),
            (
                "bytes of a number's name",
                self.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0),
                MAX_FACT_BYTES,
            ),
        ];
        match sizes.into_iter().find(|(_, found, most)| found > most) {
            Some((what, found, most)) => {
                Err(WireError::rejected(format_args!("an event has {found} {what}, allowed are {most}")))
            }
            None => Ok(()),
        }
    }
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterEvent {
    /// Its place among all events of the cluster, from 1, without gaps.
    pub sequence: u64,
    /// When, by the leader's wall clock: milliseconds since 1970. Two leaders' clocks may differ: the sequence is the order.
    pub at_ms: u64,
    /// The map's epoch after it.
    pub epoch: Epoch,
    /// What happened to whom.
    pub note: Note,
    /// Why.
    pub reason: Reason,
}

/// What the leader adds to a change when it puts it into the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Origin {
    /// Its wall clock: milliseconds since 1970.
    pub at_ms: u64,
    /// Why the change is made.
    pub reason: Reason,
}

/// A raft log entry's data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// The change and its name.
    pub proposal: Proposal,
    /// When and why.
    pub origin: Origin,
}

impl From<Proposal> for LogEntry {
    /// Puts a change into the log at no time and for no reason.
    fn from(proposal: Proposal) -> LogEntry {
        LogEntry { proposal, origin: Origin::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_reason_is_one_short_line_whatever_it_is_made_of() {
        let long = Reason::new("é".repeat(MAX_REASON_BYTES));
        assert!(long.as_str().len() <= MAX_REASON_BYTES && long.as_str().ends_with('…'));
        assert_eq!(Reason::new("two\nlines").as_str(), "two lines");
        assert_eq!(Reason::try_from(long.to_string()), Ok(long));
        assert!(Reason::try_from("x".repeat(MAX_REASON_BYTES + 1)).is_err());
        assert!(Reason::try_from("two\nlines".to_owned()).is_err());
        let forged = codec::encode(&"x".repeat(MAX_REASON_BYTES + 1)).expect("it encodes");
        assert!(codec::decode::<Reason>(&forged).is_err());
    }

    #[test]
    fn every_kind_is_found_by_its_name() {
        for (at, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(EventKind::named(kind.as_str()), Some(kind));
            assert_eq!(kind as usize, at, "all are listed, in order");
        }
    }

    #[test]
    fn what_is_larger_than_events_are_is_refused() {
        let sound = Note::new(EventKind::SlotsPlaced, Subject::slots((0..4096).map(Slot)));
        assert_eq!((sound.subject.slots, sound.subject.examples.len()), (4096, MAX_EXAMPLES));
        assert_eq!(sound.check(), Ok(()));
        let full = (0..100).fold(sound.clone(), |note, at| note.with("slots_begun", at));
        assert_eq!(full.facts.len(), MAX_FACTS);
        let named = |subject| Note { subject, ..sound.clone() };
        for unsound in [
            named(Subject::member("x".repeat(64))),
            named(Subject { examples: vec![Slot(1); MAX_EXAMPLES + 1], ..Subject::default() }),
            sound.clone().with(&"x".repeat(MAX_FACT_BYTES + 1), 1),
            Note { facts: vec![(String::new(), 1); MAX_FACTS + 1], ..sound.clone() },
        ] {
            assert!(matches!(unsound.check(), Err(WireError::Rejected { .. })), "{unsound:?}");
        }
    }
}
