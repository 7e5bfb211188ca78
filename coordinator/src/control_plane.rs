//! The control plane: what nodes, clients and other coordinators may ask, and what comes of it.

use crate::actors::mailbox::{Raft, RaftMessage};
use crate::engines::Engines;
use kvhive_protocol::control::{
    Command, CommandReply, ControlReply, ControlRequest, MAX_DEVICES, MAX_UNREACHED, Proposal,
};
use kvhive_protocol::emptying::{MAX_EMPTIED_TOLD, MAX_FRAME_SIZES, MAX_LOST_NAMED};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::load::{MAX_HOT_SLOTS, MAX_SLOTS_TOLD, MAX_TENANT_LOADS};
use kvhive_protocol::routing::MAX_ROUTE_BYTES;
use kvhive_protocol::scaling::REUSE_BUCKETS;
use kvhive_protocol::strategy::MAX_LOAD_REPORTS;
use kvhive_protocol::{Reason, WireError};
use kvhive_runtime::{AskError, Reply};
use kvhive_spans::Tracer;
use kvhive_wire::{Connection, Fault, Identity};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A request that is not through within this is answered with its deadline; the asker repeats it.
const LIMIT: Duration = Duration::from_secs(8);

/// The largest heartbeat, in bytes: one of a node whose devices each report every slot, as given away too, and as many tenants and strategies
/// as they may. A plan that names every slot is smaller.
const MAX_BEAT_BYTES: usize = 4096
    + MAX_DEVICES
        * (kvhive_protocol::SLOTS as usize / 8
            + 12 * kvhive_protocol::SLOTS as usize
            + 16 * MAX_UNREACHED
            + (12 + 20) * MAX_HOT_SLOTS
            + 576
            + 108 * MAX_TENANT_LOADS
            + 512 * MAX_LOAD_REPORTS
            + 9 * REUSE_BUCKETS
            + 24 * MAX_FRAME_SIZES
            + 18 * MAX_SLOTS_TOLD
            + 112 * MAX_EMPTIED_TOLD
            + 18 * MAX_LOST_NAMED);

/// The largest request, in bytes.
pub(crate) const MAX_REQUEST_BYTES: u32 =
    if MAX_BEAT_BYTES > MAX_ROUTE_BYTES { MAX_BEAT_BYTES as u32 } else { MAX_ROUTE_BYTES as u32 };

/// Serves control requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ControlPlane {
    raft: Raft,
    engines: Arc<Engines>,
    tracer: Tracer,
}

impl ControlPlane {
    pub(crate) fn new(raft: Raft, engines: Arc<Engines>, tracer: Tracer) -> ControlPlane {
        ControlPlane { raft, engines, tracer }
    }

    /// Returns the engines that are followed.
    pub(crate) fn engines(&self) -> &Engines {
        &self.engines
    }

    /// Serves one request of somebody in this role.
    pub(crate) async fn serve(&self, role: Role, request: ControlRequest) -> ControlReply {
        if let Err(error) = allowed(role, &request) {
            return ControlReply::Failed(error);
        }
        // What no map takes is not written into every log first.
        let sound = match &request {
            ControlRequest::Register(registration) => kvhive_control::check_registration(registration),
            ControlRequest::Submit { command, .. } => kvhive_control::check_command(command),
            _ => Ok(()),
        };
        if let Err(error) = sound {
            return match request {
                ControlRequest::Submit { .. } => ControlReply::Done(CommandReply::Rejected(error)),
                _ => ControlReply::Failed(error),
            };
        }
        match request {
            ControlRequest::FetchMap { have, linearizable } => {
                self.ask(|reply| RaftMessage::FetchMap { have, linearizable, reply }).await
            }
            ControlRequest::Register(registration) => {
                let proposal =
                    Proposal { request: registration.request, command: Command::Register(registration) };
                let reason = Reason::new("its process registers");
                self.ask(|reply| RaftMessage::Propose { proposal, reason, reply }).await
            }
            ControlRequest::Heartbeat(beat) => self.ask(|reply| RaftMessage::Heartbeat { beat, reply }).await,
            ControlRequest::Submit { request, command, reason } => {
                let reason = match &command {
                    Command::Leave { .. } => reason.or("its process ends"),
                    Command::SetPin { pin, .. } => {
                        reason.or(&pin.reason).or(format_args!("asked for by a {role}"))
                    }
                    _ => reason.or(format_args!("asked for by a {role}")),
                };
                let proposal = Proposal { request, command };
                self.ask(|reply| RaftMessage::Propose { proposal, reason, reply }).await
            }
            ControlRequest::Status => match self.raft.ask(LIMIT, |reply| RaftMessage::Status { reply }).await
            {
                Ok(status) => ControlReply::Status(status),
                Err(error) => ControlReply::Failed(trouble(error)),
            },
            ControlRequest::Balance => self.ask(|reply| RaftMessage::Balance { reply }).await,
            ControlRequest::Moves => self.ask(|reply| RaftMessage::Moves { reply }).await,
            ControlRequest::Raft(request) => self.ask(|reply| RaftMessage::Admin { request, reply }).await,
            ControlRequest::Route(request) => match self.engines.route(&request, None).await {
                Ok(answer) => ControlReply::Routed(answer),
                Err(error) => ControlReply::Failed(error),
            },
            ControlRequest::EngineLoad { engine, load } => match self.engines.set_load(&engine, load) {
                Ok(followed) => ControlReply::Engine(Box::new(followed)),
                Err(error) => ControlReply::Failed(error),
            },
            ControlRequest::Trace(ask) => ControlReply::Traced(self.tracer.answer(ask)),
            ControlRequest::Overview => {
                self.ask(|reply| RaftMessage::Overview { linearizable: true, reply }).await
            }
        }
    }

    async fn ask(&self, question: impl FnOnce(Reply<ControlReply>) -> RaftMessage) -> ControlReply {
        self.raft.ask(LIMIT, question).await.unwrap_or_else(|error| ControlReply::Failed(trouble(error)))
    }
}

/// Says what a role may ask.
fn allowed(role: Role, request: &ControlRequest) -> Result<(), WireError> {
    let (whose, what) = whose(request);
    match role == Role::Coordinator || whose.contains(&role) {
        true => Ok(()),
        false => Err(WireError::Forbidden { role: role.to_string(), what: what.to_owned() }),
    }
}

/// Says who else than coordinators may ask this, and what it is. Nothing is anybody's that is not named here.
fn whose(request: &ControlRequest) -> (&'static [Role], &'static str) {
    const ANYBODYS: &[Role] = &[Role::Client, Role::Node];
    const CLIENTS: &[Role] = &[Role::Client];
    const NODES: &[Role] = &[Role::Node];
    const NOBODYS: &[Role] = &[];
    match request {
        ControlRequest::FetchMap { .. } => (ANYBODYS, "ask for the map"),
        ControlRequest::Status => (ANYBODYS, "ask for a coordinator's status"),
        ControlRequest::Route(_) => (ANYBODYS, "have a request routed"),
        ControlRequest::EngineLoad { .. } => (ANYBODYS, "tell an engine's load"),
        ControlRequest::Register(_) => (NODES, "register"),
        ControlRequest::Heartbeat(_) => (NODES, "send heartbeats"),
        ControlRequest::Overview => (NOBODYS, "ask for an overview"),
        ControlRequest::Trace(_) => (NOBODYS, "ask for traces"),
        ControlRequest::Balance => (NOBODYS, "ask for how work is spread"),
        ControlRequest::Moves => (NOBODYS, "ask which slots move"),
        ControlRequest::Raft(_) => (NOBODYS, "manage coordinators"),
        ControlRequest::Submit { command, .. } => {
            let whose = match command {
                // What coordinators say on their own: a false word of these would have others believe what is not so.
                Command::Bootstrap { .. }
                | Command::Register(_)
                | Command::MarkDown { .. }
                | Command::MarkEnded { .. }
                | Command::RaiseLevel { .. }
                | Command::RecordLoad { .. }
                | Command::RecordStretch { .. }
                | Command::PlaceSlots { .. }
                | Command::Balance { .. }
                | Command::Record(_)
                | Command::SetCoordinators { .. } => NOBODYS,
                Command::Leave { .. } => NODES,
                Command::CreateTenant { .. }
                | Command::ClearTenant { .. }
                | Command::RotateSecret { .. }
                | Command::DeleteTenant { .. }
                | Command::RemoveMember { .. }
                | Command::SetTenantRules { .. }
                | Command::WeighTenant { .. }
                | Command::SetDrains { .. }
                | Command::Empty { .. }
                | Command::EmptyForSize { .. }
                | Command::SetCordon { .. }
                | Command::SetScaling { .. }
                | Command::ScaleBeyond { .. }
                | Command::SetAck { .. }
                | Command::SetEngine(_)
                | Command::RemoveEngine { .. }
                | Command::SetPin { .. }
                | Command::RemovePin { .. } => CLIENTS,
            };
            (whose, command.name())
        }
    }
}

/// What an actor that did not answer means to an asker.
pub(crate) fn trouble(error: AskError) -> WireError {
    match error {
        AskError::Full => WireError::busy("the coordinator's mailbox is full"),
        AskError::Deadline => WireError::Deadline,
        AskError::Closed => WireError::OutcomeUnknown,
    }
}

/// Asks another coordinator.
pub(crate) async fn ask_peer(
    address: &str,
    identity: &Identity,
    request: &ControlRequest,
    limit: Duration,
) -> Result<ControlReply, Fault> {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    let exchange = async {
        let (mut connection, _) = Connection::connect(address, identity, limit).await?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let kind = kvhive_protocol::frame::Kind::ControlRequest;
        connection.send(kind, number, request, &[]).await?;
        connection.receive_answer(kvhive_protocol::frame::Kind::ControlReply, number).await
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(Fault::Timeout(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::control::Registration;
    use kvhive_protocol::emptying::{Losses, LostBlock};
    use kvhive_protocol::load::GuestLoad;
    use kvhive_protocol::trace::TraceAsk;
    use kvhive_protocol::{EventKind, Generation, MemberId, Note, RequestId, Subject, TenantId};

    #[test]
    fn the_largest_of_each_request_is_taken_in() {
        use kvhive_protocol::control::{DeviceLoad, Heartbeat, MAX_LABELS, MAX_NAME_BYTES, Placing};
        use kvhive_protocol::load::{SlotHits, Work};
        use kvhive_protocol::map::DeviceDescription;
        use kvhive_protocol::strategy::{ChoiceReport, Estimate, Reason, StrategyReport};
        use kvhive_protocol::{DeviceId, Epoch, Filling, SLOTS, Slot};
        let request = RequestId { client: 1, sequence: 1 };
        let longest = kvhive_protocol::Reason::new("x".repeat(kvhive_protocol::events::MAX_REASON_BYTES));
        let device = DeviceId::new(MemberId(1), 0);
        let all: Vec<Slot> = Slot::all().collect();
        let set = || vec![device; kvhive_control::MAX_SET];
        let placing = |slot: &Slot| Placing {
            slot: *slot,
            set: set(),
            filling: Filling { devices: set(), streams: true },
        };
        let plan = Command::PlaceSlots { based_on: Epoch(1), changes: all.iter().map(placing).collect() };
        let tenants = vec![Default::default(); MAX_TENANT_LOADS];
        let estimate = Estimate { ranker: "x".repeat(32), hit_rate_ppm: 1 };
        let choice = ChoiceReport {
            in_charge: "x".repeat(32),
            estimates: vec![estimate; 8],
            evidence: 1,
            sampled_one_in: 1,
            switches: 1,
            reason: Reason::IsBetter,
        };
        let report = StrategyReport {
            tenant: Some(TenantId(1)),
            frame_bytes: 1,
            strategy: kvhive_protocol::Strategy::Adaptive,
            choice: Some(choice),
        };
        assert!(report.is_sound());
        let strategies = vec![report; MAX_LOAD_REPORTS];
        let occupied = vec![0; usize::from(SLOTS / 8)];
        let filled = all.iter().map(|slot| (*slot, device)).collect();
        let unreached = vec![device; MAX_UNREACHED];
        let work = Work {
            requests: u64::MAX,
            read_rate: u64::MAX,
            wait_us: u32::MAX,
            hot: all.iter().take(MAX_HOT_SLOTS).map(|slot| (*slot, u64::MAX)).collect(),
        };
        let lost = |_| LostBlock { name: u64::MAX, bytes: u64::MAX };
        let losses = |_| {
            let named = (0..MAX_LOST_NAMED / MAX_EMPTIED_TOLD).map(lost).collect();
            (MemberId(u32::MAX), Losses { unsettled_blocks: u64::MAX, named })
        };
        let load = DeviceLoad {
            occupied,
            filled,
            unreached,
            tenants,
            strategies,
            work,
            frames: vec![Default::default(); MAX_FRAME_SIZES],
            moving: vec![Default::default(); MAX_SLOTS_TOLD],
            slot_hits: vec![
                SlotHits { slot: Slot(u16::MAX), asked: u64::MAX, covered: u64::MAX };
                MAX_HOT_SLOTS
            ],
            given: vec![Default::default(); MAX_EMPTIED_TOLD],
            displaced: vec![Default::default(); MAX_EMPTIED_TOLD],
            losses: (0..MAX_EMPTIED_TOLD).map(losses).collect(),
            guests: GuestLoad {
                blocks: u64::MAX,
                bytes: u64::MAX,
                given_blocks: u64::MAX,
                fetched_blocks: u64::MAX,
            },
            ..DeviceLoad::default()
        };
        let (member, generation, epoch) = (MemberId(1), Generation(1), Epoch(1));
        let name = "x".repeat(MAX_NAME_BYTES);
        let address = "x".repeat(kvhive_control::MAX_ADDRESS_BYTES);
        let label = |at: usize| (format!("{at:0>63}"), "x".repeat(kvhive_control::MAX_LABEL_BYTES));
        let description =
            DeviceDescription { kind: name.clone(), device_bytes: 1, host_bytes: 1, disk_bytes: 1 };
        for request in [
            ControlRequest::Submit { request, command: plan, reason: longest },
            ControlRequest::Heartbeat(Heartbeat {
                member,
                generation,
                epoch,
                devices: vec![load; MAX_DEVICES],
            }),
            ControlRequest::Register(Registration {
                request,
                name,
                data_address: address.clone(),
                metrics_address: address,
                labels: (0..MAX_LABELS).map(label).collect(),
                devices: vec![description; MAX_DEVICES],
                codec: Default::default(),
                speaks: kvhive_protocol::Level::NEWEST,
            }),
        ] {
            let bytes = kvhive_protocol::codec::encode(&request).expect("it encodes").len();
            assert!(bytes <= MAX_REQUEST_BYTES as usize, "{bytes} bytes");
        }
    }

    /// Reads what begins so and goes on with zeros: of nearly every message that is one.
    fn zeros<T: serde::de::DeserializeOwned>(begin: &[u8]) -> Option<T> {
        let mut bytes = begin.to_vec();
        (0..512).find_map(|_| {
            bytes.push(0);
            kvhive_protocol::codec::decode(&bytes[..bytes.len() - 1]).ok()
        })
    }

    /// How many kinds of a message there are, as what reads it says.
    fn kinds<T: serde::de::DeserializeOwned>() -> u32 {
        let error = kvhive_protocol::codec::decode::<T>(&[255; 4]).err().expect("there are not so many");
        let said = error.to_string();
        let count = said.rsplit("i < ").next().map(|rest| rest.chars().take_while(char::is_ascii_digit));
        count.expect("it says how many").collect::<String>().parse().unwrap_or_else(|_| panic!("{said}"))
    }

    fn registration() -> Registration {
        let request = RequestId { client: 1, sequence: 1 };
        let (name, data_address, metrics_address) = ("a".into(), "a:1".into(), "a:2".into());
        let (labels, devices, codec) = Default::default();
        let speaks = kvhive_protocol::Level::NEWEST;
        Registration { request, name, data_address, metrics_address, labels, devices, codec, speaks }
    }

    fn submit(command: Command) -> ControlRequest {
        let request = RequestId { client: 1, sequence: 1 };
        ControlRequest::Submit { request, command, reason: Reason::default() }
    }

    /// Who may ask what, beside coordinators.
    const QUESTIONS: [(&str, &[Role]); 11] = [
        ("Balance", &[]),
        ("EngineLoad", &[Role::Client, Role::Node]),
        ("FetchMap", &[Role::Client, Role::Node]),
        ("Heartbeat", &[Role::Node]),
        ("Moves", &[]),
        ("Overview", &[]),
        ("Raft", &[]),
        ("Register", &[Role::Node]),
        ("Route", &[Role::Client, Role::Node]),
        ("Status", &[Role::Client, Role::Node]),
        ("Trace", &[]),
    ];

    /// Who may have what changed, beside coordinators.
    const CHANGES: [(&str, &[Role]); 30] = [
        ("balance", &[]),
        ("bootstrap", &[]),
        ("clear-tenant", &[Role::Client]),
        ("create-tenant", &[Role::Client]),
        ("delete-tenant", &[Role::Client]),
        ("empty", &[Role::Client]),
        ("empty-for-size", &[Role::Client]),
        ("leave", &[Role::Node]),
        ("mark-down", &[]),
        ("mark-ended", &[]),
        ("place-slots", &[]),
        ("raise-level", &[]),
        ("record", &[]),
        ("record-load", &[]),
        ("record-stretch", &[]),
        ("register", &[]),
        ("remove-engine", &[Role::Client]),
        ("remove-member", &[Role::Client]),
        ("remove-pin", &[Role::Client]),
        ("rotate-secret", &[Role::Client]),
        ("scale-beyond", &[Role::Client]),
        ("set-ack", &[Role::Client]),
        ("set-coordinators", &[]),
        ("set-cordon", &[Role::Client]),
        ("set-drains", &[Role::Client]),
        ("set-engine", &[Role::Client]),
        ("set-pin", &[Role::Client]),
        ("set-scaling", &[Role::Client]),
        ("set-tenant-rules", &[Role::Client]),
        ("weigh-tenant", &[Role::Client]),
    ];

    #[test]
    fn each_role_may_ask_what_is_its_own_and_nothing_else() {
        let first_word = |request: &ControlRequest| {
            let said = format!("{request:?}");
            said.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
        };
        let mut asked: Vec<(String, ControlRequest)> = Vec::new();
        for kind in 0..kinds::<ControlRequest>() {
            let example = || match kind {
                1 => Some(ControlRequest::Register(registration())),
                10 => Some(ControlRequest::Trace(TraceAsk::Newest(1))),
                _ => None,
            };
            let request: Option<ControlRequest> = zeros(&kind.to_le_bytes()).or_else(example);
            let request = request.unwrap_or_else(|| panic!("question {kind} wants an example here"));
            if !matches!(request, ControlRequest::Submit { .. }) {
                asked.push((first_word(&request), request));
            }
        }
        let mut changed: Vec<(String, ControlRequest)> = Vec::new();
        for kind in 0..kinds::<Command>() {
            let note = || Box::new(Note::new(EventKind::ClusterStarted, Subject::default()));
            let example = || match kind {
                1 => Some(Command::Register(registration())),
                10 => Some(Command::Record(note())),
                _ => None,
            };
            let command = zeros(&kind.to_le_bytes()).or_else(example);
            let command: Command = command.unwrap_or_else(|| panic!("change {kind} wants an example here"));
            changed.push((command.name().to_owned(), submit(command)));
        }
        for (all, table) in [(asked, &QUESTIONS[..]), (changed, &CHANGES[..])] {
            assert_eq!(all.len(), table.len(), "each has one row");
            for (name, request) in all {
                let row = table.iter().find(|(known, _)| *known == name);
                let (_, whose) = row.unwrap_or_else(|| panic!("who may {name}? the table does not say"));
                for role in [Role::Client, Role::Node, Role::Coordinator] {
                    let may = role == Role::Coordinator || whose.contains(&role);
                    assert_eq!(allowed(role, &request).is_ok(), may, "{role} {request:?}");
                }
            }
        }
    }
}
