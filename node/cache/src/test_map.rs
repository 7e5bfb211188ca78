//! Maps for tests of what a node does by one.

use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_protocol::{ClusterId, ClusterMap, DeviceId, Generation, Level, Member, MemberId, MemberState};
use std::collections::BTreeMap;

/// The first device of a member.
pub(crate) fn device(member: u32) -> DeviceId {
    DeviceId::new(MemberId(member), 0)
}

/// A member that is up, without devices.
pub(crate) fn member(id: u32) -> Member {
    Member {
        name: format!("node-{id}"),
        generation: Generation(1),
        state: MemberState::Up,
        data_address: String::new(),
        metrics_address: String::new(),
        labels: BTreeMap::new(),
        devices: Vec::new(),
        codec: Default::default(),
        speaks: Level::NEWEST,
        cordoned: false,
        lingers: None,
        drains_since: Default::default(),
        drains: false,
    }
}

/// A cluster of one replica a slot, without members.
pub(crate) fn founded() -> ClusterMap {
    let settings = Settings {
        replicas: 1,
        segment_blocks: 16,
        ack: Ack::Primary,
        lease_ms: 2000,
        heartbeat_ms: 200,
        serving_lease_ms: 2000,
    };
    ClusterMap::founded(ClusterId(1), "test", settings)
}
