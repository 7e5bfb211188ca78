//! Emptying members: what room the others have beforehand, and how far it is.

use super::answers::{Freshness, Trouble};
use super::routes::{Admin, Answer, Shared};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use kvhive_control::{CameTo, Room};
use kvhive_protocol::control::{DeviceLoad, Overview};
use kvhive_protocol::{ClusterMap, DeviceId, MemberId, WireError};
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// How often it is looked again for devices that have not said what they hold, and how long that is waited for between.
const LOOKS: usize = 8;
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Who is meant.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainQuery {
    /// Names of nodes that are to leave together, with commas between; without, those that are being emptied.
    members: Option<String>,
    /// `linearizable` or `stale`.
    #[serde(default)]
    consistency: Freshness,
}

/// `/v1/drains`.
#[derive(Serialize, ToSchema)]
pub(super) struct Drains {
    /// The room that those who stay have for what the nodes hold; null while a device has not said what it holds.
    room: Option<RoomLeft>,
    /// The nodes.
    drains: Vec<Drain>,
    epoch: u64,
}

/// What would have to go elsewhere, and what room there is for it.
#[derive(Serialize, ToSchema)]
pub(super) struct RoomLeft {
    /// Who is counted: those that were asked for, and whoever is being emptied already.
    nodes: Vec<String>,
    /// Blocks that are to go elsewhere.
    blocks: u64,
    /// Those of them that a replica which stays may have, as it has let blocks go: that many have to find room only if it has none of them.
    unsure_blocks: u64,
    /// Bytes of the frames of all.
    bytes: u64,
    /// Bytes that those who stay can take in before anything leaves for them.
    free_bytes: u64,
    /// Bytes that have no room where they would go, should each of several who get a part get more than its share; emptying is refused then,
    /// unless blocks may be lost.
    short_bytes: u64,
    /// Bytes more than their shares for which there is to be room with those who get a part: where slots go is not even over devices.
    margin_bytes: u64,
    /// Some of those who stay are full: what is least wanted leaves them all the time.
    full: bool,
    /// Who gets something, as slots are placed.
    takers: Vec<RoomOfDevice>,
}

/// One device that takes slots over.
#[derive(Serialize, ToSchema)]
pub(super) struct RoomOfDevice {
    /// `member/index`.
    device: String,
    /// Its node's name.
    node: String,
    /// Bytes of frames that it would get.
    gets_bytes: u64,
    /// Bytes that it can take in before anything leaves for them.
    free_bytes: u64,
}

/// How far emptying a node is, and what it came to so far.
#[derive(Serialize, ToSchema)]
pub(super) struct Drain {
    node: String,
    /// It is being emptied.
    drains: bool,
    /// Slots that it holds.
    slots: u64,
    /// Blocks that it holds of these.
    blocks: u64,
    /// Blocks that went to others.
    moved_blocks: u64,
    /// Their bytes.
    moved_bytes: u64,
    /// Blocks that others had before.
    there_blocks: u64,
    /// Blocks that others gave no room: whatever would have left for them is worth more.
    declined_blocks: u64,
    /// Blocks that left elsewhere to make room.
    displaced_blocks: u64,
    /// Blocks that could not be read.
    unread_blocks: u64,
    /// Pinned blocks that wait for room; their slots stay until there is some.
    waiting_blocks: u64,
    /// Blocks that nobody holds any more because of it.
    lost_blocks: u64,
    /// Their bytes.
    lost_bytes: u64,
}

/// What room there is for what nodes hold that are to leave together, and how far emptying them is.
#[utoipa::path(get, path = "/v1/drains", params(DrainQuery), responses((status = 200, body = Drains), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn drains(
    State(admin): Shared,
    query: Result<Query<DrainQuery>, QueryRejection>,
) -> Answer<Drains> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let overview = admin.overview(query.consistency).await?;
    let epoch = overview.status.epoch.0;
    let Some(map) = &overview.map else { return Ok(Json(Drains { room: None, drains: Vec::new(), epoch })) };
    let named = match &query.members {
        None => map.members.iter().filter(|(_, member)| member.drains).map(|(id, _)| *id).collect(),
        Some(names) => named(map, names)?,
    };
    let room = kvhive_control::room(map, &loads(&overview), &named).ok().map(|room| told(map, room, &named));
    let drains = named.iter().map(|id| drain(&overview, map, *id)).collect();
    Ok(Json(Drains { room, drains, epoch }))
}

impl Admin {
    /// Refuses to empty a member for whose blocks the others have too little room, where the leader does not yet: before
    /// [`Level::CHECKED`](kvhive_protocol::Level::CHECKED).
    pub(super) async fn check_room(&self, name: &str) -> Result<(), Trouble> {
        let mut looks = 1..=LOOKS;
        loop {
            let overview = self.overview(Freshness::Linearizable).await?;
            let known = overview.map.as_ref().and_then(|map| Some((map, map.member(name)?.0)));
            let Some((map, member)) = known else { return Ok(()) };
            match kvhive_control::weigh(map, &loads(&overview), member, &BTreeSet::new()) {
                Ok(_) => return Ok(()),
                Err(WireError::Busy { .. }) if looks.next().is_some() => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn named(map: &ClusterMap, names: &str) -> Result<BTreeSet<MemberId>, Trouble> {
    let found = names.split(',').map(|name| map.member(name).map(|(id, _)| id).ok_or(name));
    found.collect::<Result<_, _>>().map_err(super::members::missing)
}

fn loads(overview: &Overview) -> BTreeMap<DeviceId, &DeviceLoad> {
    overview.loads.iter().map(|(device, load)| (*device, load)).collect()
}

fn told(map: &ClusterMap, room: Room, named: &BTreeSet<MemberId>) -> RoomLeft {
    let counted = map.members.iter().filter(|(id, _)| named.contains(id) || map.is_emptied(**id));
    let nodes = counted.map(|(_, member)| member.name.clone()).collect();
    let Room { blocks, unsure_blocks, bytes, free_bytes, short_bytes, margin_bytes, is_full, takers } = room;
    let takers = takers.into_iter().map(|one| RoomOfDevice {
        device: one.device.to_string(),
        node: map.owner(one.device).map(|owner| owner.name.clone()).unwrap_or_default(),
        gets_bytes: one.gets_bytes,
        free_bytes: one.free_bytes,
    });
    RoomLeft {
        nodes,
        blocks,
        unsure_blocks,
        bytes,
        free_bytes,
        short_bytes,
        margin_bytes,
        full: is_full,
        takers: takers.collect(),
    }
}

fn drain(overview: &Overview, map: &ClusterMap, id: MemberId) -> Drain {
    let came_to = CameTo::of(overview.loads.iter().map(|(_, load)| load), id);
    let of_it = |device: &DeviceId| device.member == id;
    let own = overview.loads.iter().filter(|(device, _)| of_it(device));
    let CameTo { given, displaced } = came_to;
    Drain {
        node: map.members.get(&id).map(|member| member.name.clone()).unwrap_or_default(),
        drains: map.is_emptied(id),
        slots: map.slots.iter().filter(|set| set.0.iter().any(of_it)).count() as u64,
        blocks: own.map(|(_, load)| load.held_blocks).sum(),
        moved_blocks: given.moved_blocks,
        moved_bytes: given.moved_bytes,
        there_blocks: given.there_blocks,
        declined_blocks: given.declined_blocks,
        displaced_blocks: displaced.blocks,
        unread_blocks: given.unread_blocks,
        waiting_blocks: given.waiting_blocks,
        lost_blocks: came_to.lost_blocks(),
        lost_bytes: came_to.lost_bytes(),
    }
}
