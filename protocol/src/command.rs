//! Commands: changes of the cluster's memory of itself that coordinators agree on through raft, and what applying one came to.

use crate::control::{Balancing, Placing, Registration};
use crate::data::Ack;
use crate::engines::Engine;
use crate::error::WireError;
use crate::events::{EventKind, Note};
use crate::ids::{ClusterId, Epoch, Era, Generation, MemberId, RequestId, TenantId};
use crate::level::Level;
use crate::map::Settings;
use crate::pins::Pin;
use crate::scaling::{Observation, ScalingChange, ScalingPolicy, Stretch};
use crate::tenant::{Change, RulesChange, TenantRules};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A change of the cluster's memory of itself: an entry of the raft log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Starts the cluster; does nothing when it has started.
    Bootstrap {
        /// Its random identity.
        cluster: ClusterId,
        /// Its name.
        name: String,
        /// What holds for all of it.
        settings: Settings,
        /// The secret of the tenant `default`.
        default_secret: [u8; 32],
        /// How its size may change, until an operator says otherwise.
        scaling: ScalingPolicy,
        /// `host:port` of the coordinators' control plane.
        coordinators: Vec<String>,
        /// The level that every coordinator speaks.
        level: Level,
    },
    /// A node starts.
    Register(Registration),
    /// A member's lease ran out.
    MarkDown {
        /// Who.
        member: MemberId,
        /// Which start of it; another one is not concerned.
        generation: Generation,
    },
    /// A member says that it stops. One that was being emptied and holds no slot any more is a member no longer.
    Leave {
        /// Who.
        member: MemberId,
        /// Which start of it.
        generation: Generation,
    },
    /// A new tenant.
    CreateTenant {
        /// Its name.
        name: String,
        /// What its block keys are derived from.
        secret: [u8; 32],
        /// How its blocks are kept and stored.
        rules: TenantRules,
    },
    /// Ends the tenant's era: its blocks do not exist any more.
    ClearTenant {
        /// Whose.
        tenant: TenantId,
    },
    /// New places for some slots, planned on the map of epoch `based_on`; refused when the map has moved on.
    PlaceSlots {
        /// The epoch that was planned on.
        based_on: Epoch,
        /// The slots and where they are from then on, each once.
        changes: Vec<Placing>,
    },
    /// Changes the default acknowledgement of stores.
    SetAck {
        /// The new default.
        ack: Ack,
    },
    /// Changes some of a tenant's rules, on top of whatever they are when this is applied.
    SetTenantRules {
        /// Whose.
        tenant: TenantId,
        /// Which become what.
        change: RulesChange,
    },
    /// Begins to empty a member, or ends that. Where it begins, a leader looks first whether the others have room, and has it be
    /// [`Command::Empty`].
    SetDrains {
        /// Which.
        member: MemberId,
        /// Whether it is to be emptied.
        drains: bool,
    },
    /// Writes down an event that changes no map.
    Record(Box<Note>),
    /// Changes how the cluster's size may change.
    SetScaling {
        /// What becomes of the policy.
        change: ScalingChange,
    },
    /// How a stretch of time was, for every coordinator to foresee the next from.
    RecordLoad {
        /// The whole cluster's load.
        observation: Observation,
    },
    /// New places where slots belong, decided on the map of epoch `based_on`; refused when the map has moved on.
    Balance {
        /// The epoch that it was decided on.
        based_on: Epoch,
        /// The slots, each once; at most [`MAX_BALANCED`](crate::control::MAX_BALANCED).
        changes: Vec<Balancing>,
    },
    /// Follows an engine, or follows it as it is described now.
    SetEngine(Box<Engine>),
    /// Follows an engine no longer.
    RemoveEngine {
        /// Its name.
        name: String,
    },
    /// Gives a tenant another secret and ends its era: its blocks do not exist any more, and no key of before says anything of
    /// one that comes.
    RotateSecret {
        /// Whose.
        tenant: TenantId,
        /// What its block keys are derived from from then on.
        secret: [u8; 32],
    },
    /// Ends a tenant: it and its blocks do not exist any more. Its number is nobody's again.
    DeleteTenant {
        /// Which.
        tenant: TenantId,
    },
    /// Forgets a member that is down. Its number is nobody's again.
    RemoveMember {
        /// Which.
        member: MemberId,
    },
    /// Pins a prefix; a pin of this name becomes this one.
    SetPin {
        /// Its name.
        name: String,
        /// What is pinned, and how long.
        pin: Box<Pin>,
    },
    /// Ends a pin.
    RemovePin {
        /// Its name.
        name: String,
        /// Only if it is one that ends by then.
        ended_ms: Option<u64>,
    },
    /// Tells nodes and clients where the coordinators are from now on.
    SetCoordinators {
        /// `host:port` of the control plane of each that votes; 1 to [`MAX_COORDINATORS`](crate::control::MAX_COORDINATORS).
        addresses: Vec<String>,
    },
    /// Has the cluster be at a newer level, for good.
    RaiseLevel {
        /// Which: every member speaks it.
        to: Level,
    },
    /// Has a member be given no more slots than it has, or ends that.
    SetCordon {
        /// Which.
        member: MemberId,
        /// Whether it is cordoned.
        cordoned: bool,
    },
    /// Nothing that was over by the map serves any more: its serving lease has run out.
    MarkEnded {
        /// Whose starts, up to and including which; none for members that no map has.
        start: Option<(MemberId, Generation)>,
    },
    /// Has the cluster be of this size, whatever floor and ceiling its policy has.
    ScaleBeyond {
        /// Members.
        size: u32,
    },
    /// Begins to empty a member.
    Empty {
        /// Which.
        member: MemberId,
        /// Who else is being emptied, at most, by what the room for it was found; none where it may lose blocks.
        beside: Option<Vec<MemberId>>,
    },
    /// Begins to empty a member as the cluster is to have another size. A leader looks first whether the others have room, unless it may
    /// lose blocks.
    EmptyForSize {
        /// Which.
        member: MemberId,
        /// Whether it is emptied whatever room there is.
        may_lose: bool,
        /// As of [`Command::Empty`]; whoever asks says nothing.
        beside: Option<Vec<MemberId>>,
        /// How many members there are.
        from: u32,
        /// How many there are to be.
        to: u32,
    },
    /// What sizes of the cluster would have covered in a stretch of time, for whoever leads next to go on from.
    RecordStretch {
        /// The figures.
        stretch: Stretch,
    },
    /// As [`Command::SetTenantRules`], and changes how much of a node the tenant gets beside others.
    WeighTenant {
        /// Whose.
        tenant: TenantId,
        /// Which rules become what.
        change: RulesChange,
        /// What becomes of its weight; 1 where it is as for everybody.
        weight: Change<u16>,
    },
}

impl Command {
    /// Names the command, for logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Bootstrap { .. } => "bootstrap",
            Command::Register(_) => "register",
            Command::MarkDown { .. } => "mark-down",
            Command::Leave { .. } => "leave",
            Command::CreateTenant { .. } => "create-tenant",
            Command::ClearTenant { .. } => "clear-tenant",
            Command::RotateSecret { .. } => "rotate-secret",
            Command::DeleteTenant { .. } => "delete-tenant",
            Command::RemoveMember { .. } => "remove-member",
            Command::SetCoordinators { .. } => "set-coordinators",
            Command::PlaceSlots { .. } => "place-slots",
            Command::SetDrains { .. } => "set-drains",
            Command::Balance { .. } => "balance",
            Command::SetAck { .. } => "set-ack",
            Command::SetTenantRules { .. } => "set-tenant-rules",
            Command::Record(_) => "record",
            Command::SetEngine(_) => "set-engine",
            Command::RemoveEngine { .. } => "remove-engine",
            Command::SetScaling { .. } => "set-scaling",
            Command::RecordLoad { .. } => "record-load",
            Command::SetPin { .. } => "set-pin",
            Command::RemovePin { .. } => "remove-pin",
            Command::RaiseLevel { .. } => "raise-level",
            Command::SetCordon { .. } => "set-cordon",
            Command::MarkEnded { .. } => "mark-ended",
            Command::ScaleBeyond { .. } => "scale-beyond",
            Command::Empty { .. } => "empty",
            Command::EmptyForSize { .. } => "empty-for-size",
            Command::RecordStretch { .. } => "record-stretch",
            Command::WeighTenant { .. } => "weigh-tenant",
        }
    }

    /// Returns from which level on it can be written down: a build of an older one could not read it.
    pub fn needs(&self) -> Level {
        match self {
            Command::SetPin { .. } | Command::RemovePin { .. } => Level::PINS,
            Command::Record(note) if note.kind == EventKind::DrainFinished => Level::PINS,
            Command::SetCordon { .. } => Level::CORDONS,
            Command::ScaleBeyond { .. } | Command::Empty { .. } => Level::CHECKED,
            Command::EmptyForSize { .. } => Level::SIZES,
            Command::RecordStretch { .. } | Command::WeighTenant { .. } => Level::DAYS,
            // It came with another form of the state, which no build of before reads: whoever reads it knows the command. Held back by a level, it
            // would leave clears unacknowledged in clusters that keep below one by `max_level`.
            Command::MarkEnded { .. } => Level::FIRST,
            _ => Level::FIRST,
        }
    }

    /// Returns whose blocks it ends: it is done when no member serves them any more.
    pub fn ends_blocks_of(&self) -> Option<TenantId> {
        match self {
            Command::ClearTenant { tenant }
            | Command::RotateSecret { tenant, .. }
            | Command::DeleteTenant { tenant } => Some(*tenant),
            _ => None,
        }
    }
}

// Secrets stay out of logs.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What applying a command came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CommandReply {
    /// Applied (or already so); the map has this epoch now.
    Applied {
        /// The epoch after it.
        epoch: Epoch,
    },
    /// The node is a member.
    Registered {
        /// Its id.
        member: MemberId,
        /// Its generation.
        generation: Generation,
        /// The epoch after it.
        epoch: Epoch,
    },
    /// The tenant exists.
    TenantCreated {
        /// Its id.
        tenant: TenantId,
        /// The epoch after it.
        epoch: Epoch,
    },
    /// The tenant's older blocks do not exist: it was cleared, or has another secret.
    TenantCleared {
        /// Its era now.
        era: Era,
        /// The epoch after it.
        epoch: Epoch,
    },
    /// It was not applied, and never will be under this request id.
    Rejected(WireError),
    /// The tenant and its blocks do not exist.
    TenantDeleted {
        /// The epoch after it.
        epoch: Epoch,
    },
}

impl CommandReply {
    /// Returns the epoch from which on a tenant's older blocks do not exist, where that is what it came to.
    pub fn ended_blocks_at(&self) -> Option<Epoch> {
        match self {
            CommandReply::TenantCleared { epoch, .. } | CommandReply::TenantDeleted { epoch } => Some(*epoch),
            _ => None,
        }
    }
}

/// A change and its name. With when and why it is a [`LogEntry`].
///
/// [`LogEntry`]: crate::events::LogEntry
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Its name for repeats.
    pub request: RequestId,
    /// The change.
    pub command: Command,
}
