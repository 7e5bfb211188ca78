//! The admin API's answers, typed, so that its OpenAPI document is generated from them.

use super::page::number;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kvhive_protocol::{StillServing, WireError};
use kvhive_runtime::http::{Awaited, Problem};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// The cluster at a glance: what `kvhive status --json` prints.
#[derive(Serialize, ToSchema)]
pub(super) struct Cluster {
    /// The leader's name; none during an election.
    pub(super) leader: Option<String>,
    /// Raft's term.
    pub(super) term: u64,
    /// The cluster map's version.
    pub(super) epoch: u64,
    /// The cluster's name.
    pub(super) name: Option<String>,
    /// What may be said and written down in the cluster: the newest level that all its members speak; it never goes back.
    pub(super) level: Option<u16>,
    /// The cluster's random identity, in hexadecimal.
    pub(super) cluster: Option<String>,
    /// Every coordinator, as it sees itself; `unreachable` where it did not answer.
    pub(super) coordinators: Vec<Coordinator>,
    /// Every node.
    pub(super) nodes: Vec<Node>,
    /// Every device of every node that is up.
    pub(super) devices: Vec<Device>,
    /// The slots.
    pub(super) slots: Slots,
}

/// One coordinator.
#[derive(Serialize, ToSchema)]
pub(super) struct Coordinator {
    pub(super) name: String,
    pub(super) peer: u64,
    /// `leader`, `follower`, `candidate`, `pre-candidate`; `newborn` while its log is empty and it knows nothing of the others,
    /// `rejoining` while it gets back what it lost; or `unreachable`.
    pub(super) role: String,
    pub(super) term: u64,
    pub(super) committed: u64,
    pub(super) applied: u64,
    pub(super) epoch: u64,
    /// The newest level that it speaks; null where it did not answer.
    pub(super) speaks: Option<u16>,
    /// Where its admin API listens.
    pub(super) admin_address: String,
}

/// One node.
#[derive(Serialize, ToSchema)]
pub(super) struct Node {
    pub(super) id: u32,
    pub(super) name: String,
    /// `up` or `down`.
    pub(super) state: String,
    /// It is being emptied: its slots leave, and it gets none.
    pub(super) drains: bool,
    /// It is cordoned: it keeps the slots that it has and is given no others.
    pub(super) cordoned: bool,
    /// Starts of it that are over by the map and may be answering reads by an older one until their serving lease is over; null where
    /// none may. Clears wait for them.
    pub(super) lingers: Option<Lingers>,
    /// How often it has registered.
    pub(super) generation: u64,
    pub(super) data_address: String,
    pub(super) metrics_address: String,
    pub(super) labels: BTreeMap<String, String>,
    /// How many devices it has.
    pub(super) devices: usize,
    /// The newest level that it speaks.
    pub(super) speaks: u16,
    /// What it keeps of other nodes' slots for clients near it, as last reported.
    pub(super) guests: Option<Guests>,
}

/// What a node keeps of other nodes' slots.
#[derive(Serialize, ToSchema)]
pub(super) struct Guests {
    /// Blocks that are kept.
    pub(super) blocks: u64,
    /// Bytes of these.
    pub(super) bytes: u64,
    /// Blocks that clients were given since the node started.
    pub(super) given_blocks: u64,
    /// Blocks that were fetched from replicas for them.
    pub(super) fetched_blocks: u64,
}

/// Starts of a node that are over by the map.
#[derive(Serialize, ToSchema)]
pub(super) struct Lingers {
    /// The newest of them.
    pub(super) generation: u64,
    /// One of them was at another data address than the node's.
    pub(super) moved: bool,
}

/// One device.
#[derive(Serialize, ToSchema)]
pub(super) struct Device {
    /// `member/index`.
    pub(super) device: String,
    /// Its node's name.
    pub(super) node: String,
    pub(super) kind: String,
    /// Bytes of all frames in memory: of the device and the host tier.
    pub(super) capacity_bytes: u64,
    /// Bytes of blocks that its disk tier has places for.
    pub(super) disk_bytes: u64,
    /// Slots whose primary it is.
    pub(super) primary_slots: u64,
    /// Slots it holds.
    pub(super) slots: u64,
    /// Resident blocks of all tiers, the disk too, as last reported.
    pub(super) blocks: Option<u64>,
    /// Bytes of frames in use in memory, as last reported.
    pub(super) used_bytes: Option<u64>,
    /// Covered keys of all keys asked since the node started.
    pub(super) hit_rate: Option<f64>,
    /// What it is read a second, lately: bytes, and 16 KiB a request.
    pub(super) read_rate: Option<u64>,
    /// How long requests waited for its answer, lately and on average, in microseconds.
    pub(super) wait_us: Option<u32>,
    /// Its device, host and disk tier, as last reported; those that it has.
    pub(super) tiers: Vec<Tier>,
    /// What it is read and given, as last reported.
    pub(super) traffic: Option<Traffic>,
    /// Slots that it holds of which it lacks older blocks: they are on their way to it.
    pub(super) filling_slots: u64,
    /// What its strategies have chosen that choose among ways to rank, as last reported.
    pub(super) strategies: Vec<Strategy>,
}

/// One tier of a device.
#[derive(Serialize, ToSchema)]
pub(super) struct Tier {
    /// `device`, `host` or `disk`.
    pub(super) tier: String,
    pub(super) blocks: u64,
    pub(super) used_bytes: u64,
    pub(super) capacity_bytes: u64,
    /// Blocks that fetches got from there since the node started.
    pub(super) hits: u64,
    /// It has failed and takes no blocks: the node does without it until it works again, and without a GPU's until it starts anew itself.
    pub(super) closed: bool,
}

/// What a device is read and given. Counters count since the node started.
#[derive(Serialize, ToSchema)]
pub(super) struct Traffic {
    pub(super) matched_keys: u64,
    pub(super) covered_keys: u64,
    pub(super) fetched_blocks: u64,
    pub(super) stored_blocks: u64,
    pub(super) evicted_blocks: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    /// Half of the fetches of the last seconds took no longer, in microseconds; none when there were none.
    pub(super) fetch_p50_us: Option<u64>,
    /// 99 of 100 of them.
    pub(super) fetch_p99_us: Option<u64>,
}

/// What one strategy has chosen.
#[derive(Serialize, ToSchema)]
pub(super) struct Strategy {
    /// Whose blocks it ranks; none for the tenants without rules of their own.
    pub(super) tenant: Option<String>,
    pub(super) frame_bytes: u64,
    pub(super) strategy: String,
    /// The way that ranks now.
    pub(super) in_charge: String,
    /// What each way would have hit, by name.
    pub(super) hit_rates: BTreeMap<String, f64>,
    /// Uses of sampled blocks that this rests on.
    pub(super) evidence: u64,
    /// Times that another way was put in charge.
    pub(super) switches: u64,
    /// Why it is this way, in words.
    pub(super) reason: String,
}

/// The slots in numbers.
#[derive(Serialize, ToSchema)]
pub(super) struct Slots {
    pub(super) total: u64,
    /// Slots that no device holds.
    pub(super) unavailable: u64,
    /// Slots that are not where they belong yet, or of which a replica lacks blocks.
    pub(super) moving: u64,
}

/// `/v1/members`.
#[derive(Serialize, ToSchema)]
pub(super) struct Members {
    pub(super) members: Vec<Node>,
    /// What to ask `after` for the next page; null after the last.
    pub(super) next: Option<u32>,
    pub(super) epoch: u64,
}

/// `/v1/slots`.
#[derive(Serialize, ToSchema)]
pub(super) struct SlotList {
    pub(super) total: u64,
    pub(super) unavailable: u64,
    pub(super) moving: u64,
    /// Slots per device.
    pub(super) devices: Vec<Device>,
    /// The slots that were asked for.
    pub(super) slots: Vec<SlotEntry>,
    /// What to ask `after` for the next page; null after the last.
    pub(super) next: Option<u16>,
    pub(super) epoch: u64,
}

/// One slot.
#[derive(Serialize, ToSchema)]
pub(super) struct SlotEntry {
    pub(super) slot: u16,
    /// Devices that hold it, the primary first.
    pub(super) replicas: Vec<String>,
    /// Those of them that lack older blocks, in the order in which the primary gives them these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) filling: Vec<String>,
}

/// `/v1/stats`: sums over all devices; none while no device has reported to whom was asked (to a follower none does).
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    pub(super) blocks: Option<u64>,
    pub(super) used_bytes: Option<u64>,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) matched_keys: Option<u64>,
    pub(super) covered_keys: Option<u64>,
    /// Covered keys of all keys asked.
    pub(super) hit_rate: Option<f64>,
    pub(super) fetched_blocks: Option<u64>,
    pub(super) stored_blocks: Option<u64>,
    pub(super) evicted_blocks: Option<u64>,
    /// Bytes of blocks given out.
    pub(super) read_bytes: Option<u64>,
    /// Bytes of blocks taken in.
    pub(super) written_bytes: Option<u64>,
    /// The slots that are read most, hottest first.
    pub(super) hot_slots: Vec<HotSlot>,
    pub(super) devices: Vec<Device>,
}

/// A slot that is read much.
#[derive(Serialize, ToSchema)]
pub(super) struct HotSlot {
    pub(super) slot: u16,
    /// Who is read: `member/index`.
    pub(super) device: String,
    /// How many devices hold it.
    pub(super) replicas: usize,
    /// What it is read a second, lately: bytes, and 16 KiB a request.
    pub(super) read_rate: u64,
    /// Keys that were there of all that matches asked for in it, lately; null when none was asked for.
    pub(super) hit_rate: Option<f64>,
}

/// How new an answer must be.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Consistency {
    /// `linearizable` (as new as any change acknowledged before) or `stale` (what this coordinator has).
    #[serde(default)]
    pub(super) consistency: Freshness,
}

/// How new an answer must be.
#[derive(Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum Freshness {
    /// As new as any change acknowledged before.
    #[default]
    Linearizable,
    /// What this coordinator has.
    Stale,
}

/// Which slots are listed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct SlotQuery {
    /// This slot alone.
    #[serde(default, deserialize_with = "number::<_, u16, 0, 4095>")]
    #[param(maximum = 4095)]
    pub(super) slot: Option<u16>,
    /// Every slot.
    #[serde(default)]
    pub(super) full: bool,
    /// Only slots of greater numbers: the `next` of the page before.
    #[serde(default, deserialize_with = "number::<_, u16, 0, 4095>")]
    #[param(maximum = 4095)]
    pub(super) after: Option<u16>,
    /// Slots of a page; all unless said.
    #[serde(default, deserialize_with = "number::<_, usize, 1, 10000>")]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
    /// `linearizable` or `stale`.
    #[serde(default)]
    pub(super) consistency: Freshness,
}

/// An error on its way out.
pub(super) struct Trouble(Problem);

impl Trouble {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Trouble {
        Trouble(Problem::new(status, code, detail))
    }

    pub(super) fn not_found(detail: String) -> Trouble {
        Trouble::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    pub(super) fn bad_request(detail: String) -> Trouble {
        Trouble::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    pub(super) fn too_large(limit_bytes: usize) -> Trouble {
        let detail = format!("request bodies may have {limit_bytes} bytes at most");
        Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    pub(super) fn method_not_allowed() -> Trouble {
        let detail = "this route does not take that method; see /openapi.json";
        Trouble::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    }

    /// Says what is wrong with a body that should be JSON.
    pub(super) fn unusable_body(rejection: &JsonRejection, limit_bytes: usize) -> Trouble {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Trouble::too_large(limit_bytes),
            status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Trouble::new(status, "unsupported_media_type", rejection.body_text())
            }
            _ => Trouble::bad_request(rejection.body_text()),
        }
    }

    /// Says that this coordinator is none any more: whoever asks has others to ask (RFC 9110, 15.5.20).
    pub(super) fn misdirected() -> Trouble {
        let detail = "this coordinator was removed from the cluster and knows nothing of it any more: ask another, and stop this one";
        Trouble::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", detail)
    }

    pub(super) fn unavailable(detail: String) -> Trouble {
        Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }
}

/// The code of a change that was decided on a map which has moved on.
const STALE_EPOCH: &str = "stale_epoch";
/// The code of a change that the state of the cluster stands against.
const REJECTED: &str = "rejected";

impl Trouble {
    /// Says whether the state of the cluster stands against what was asked.
    pub(super) fn is_conflict(&self) -> bool {
        self.0.status() == StatusCode::CONFLICT
    }

    /// Says whether the change itself was refused, and not for when or how it was asked.
    pub(super) fn is_rejected(&self) -> bool {
        self.0.code() == REJECTED
    }

    /// Says whether it is refused for good: by the state of the cluster, or as there is nothing of what was asked.
    pub(super) fn is_refusal(&self) -> bool {
        self.is_conflict() || self.0.status() == StatusCode::NOT_FOUND
    }

    /// Says whether these words are in what people are told.
    pub(super) fn says(&self, words: &str) -> bool {
        self.0.detail().contains(words)
    }

    /// Says whether the map has moved on since it was decided.
    pub(super) fn is_stale(&self) -> bool {
        self.0.code() == STALE_EPOCH
    }
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Trouble {
        let detail = error.to_string();
        match error {
            WireError::NotLeader { .. } | WireError::NoMajority => {
                Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", WireError::NoMajority.to_string())
            }
            WireError::StillServed { by, .. } => {
                let awaited = |one: StillServing| Awaited { member: one.member, for_ms: one.for_ms };
                let waits_for = by.into_iter().map(awaited).collect();
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "still_served", detail);
                Trouble(problem.waiting_for(waits_for))
            }
            WireError::Busy { .. } | WireError::Deadline => Trouble::unavailable(detail),
            WireError::OutcomeUnknown => {
                Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", detail)
            }
            WireError::UnknownTenant { .. } => Trouble::not_found(detail),
            WireError::StaleEpoch { .. } => Trouble::new(StatusCode::CONFLICT, STALE_EPOCH, detail),
            WireError::Rejected { .. } => Trouble::new(StatusCode::CONFLICT, REJECTED, detail),
            WireError::NotYet { .. } => Trouble::new(StatusCode::CONFLICT, "not_yet", detail),
            WireError::TooLittleRoom { .. } => Trouble::new(StatusCode::CONFLICT, "too_little_room", detail),
            WireError::BeyondPolicy { .. } => Trouble::new(StatusCode::CONFLICT, "beyond_policy", detail),
            WireError::AskedOtherwise => {
                let detail = "this Idempotency-Key was sent with another query or body before, and this one changed nothing: draw \
                              another for another change";
                Trouble::new(StatusCode::UNPROCESSABLE_ENTITY, "asked_otherwise", detail)
            }
            _ => Trouble::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail),
        }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
