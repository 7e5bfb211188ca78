//! One look at a cluster, as the admin API tells it.

use crate::admin::Admin;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Events that are looked at.
const EVENTS: u64 = 20;
/// Tenants of one page; those beyond are told by `kvhive tenants`.
const TENANTS: u32 = 1000;

/// What was seen, and when.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) cluster: Cluster,
    pub(super) tenants: Vec<Tenant>,
    pub(super) events: Vec<Event>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Cluster {
    pub(super) name: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) coordinators: Vec<Coordinator>,
    pub(super) nodes: Vec<Node>,
    pub(super) devices: Vec<Device>,
    pub(super) slots: Slots,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Coordinator {
    pub(super) name: String,
    pub(super) role: String,
    pub(super) committed: u64,
    pub(super) applied: u64,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) drains: bool,
    pub(super) cordoned: bool,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Device {
    pub(super) device: String,
    pub(super) node: String,
    pub(super) primary_slots: u64,
    pub(super) slots: u64,
    pub(super) filling_slots: u64,
    pub(super) tiers: Vec<Tier>,
    pub(super) traffic: Option<Traffic>,
}

/// One tier of a device.
#[derive(Deserialize, Serialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct Tier {
    pub(super) tier: String,
    pub(super) blocks: u64,
    pub(super) used_bytes: u64,
    pub(super) capacity_bytes: u64,
    /// It has failed: the node does without it.
    pub(super) closed: bool,
}

#[derive(Deserialize, Clone, Copy, Debug, Default)]
#[serde(default)]
pub(super) struct Traffic {
    pub(super) matched_keys: u64,
    pub(super) covered_keys: u64,
    pub(super) fetched_blocks: u64,
    pub(super) stored_blocks: u64,
    pub(super) evicted_blocks: u64,
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
    pub(super) fetch_p50_us: Option<u64>,
    pub(super) fetch_p99_us: Option<u64>,
}

/// The slots in numbers.
#[derive(Deserialize, Serialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct Slots {
    pub(super) total: u64,
    pub(super) unavailable: u64,
    pub(super) moving: u64,
}

/// One tenant.
#[derive(Deserialize, Serialize, Clone, PartialEq, Debug, Default)]
#[serde(default)]
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) blocks: u64,
    pub(super) used_bytes: u64,
    pub(super) hit_rate: Option<f64>,
    pub(super) evicted_blocks: u64,
    /// Stored bytes over raw ones.
    pub(super) stored_ratio: Option<f64>,
}

/// One event.
#[derive(Deserialize, Serialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct Event {
    pub(super) sequence: u64,
    pub(super) at_ms: u64,
    pub(super) kind: String,
    pub(super) subject: Subject,
    pub(super) reason: String,
}

/// Whom an event is about.
#[derive(Deserialize, Serialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(super) struct Subject {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) member: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) coordinator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) engine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slots: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pin: Option<String>,
}

#[derive(Deserialize)]
struct TenantPage {
    tenants: Vec<Tenant>,
}

#[derive(Deserialize)]
struct EventPage {
    events: Vec<Event>,
}

/// Looks.
///
/// # Errors
/// When no coordinator answers.
pub(super) fn look(admin: &Admin) -> Result<Look> {
    let cluster = admin.get("/v1/cluster")?;
    let tenants: TenantPage = admin.get(&format!("/v1/tenants?limit={TENANTS}"))?;
    let newest: Value = admin.get("/v1/events?limit=1")?;
    let after = newest["newest"].as_u64().unwrap_or(0).saturating_sub(EVENTS);
    let events: EventPage = admin.get(&format!("/v1/events?after={after}"))?;
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    Ok(Look { at_ms, cluster, tenants: tenants.tenants, events: events.events })
}
