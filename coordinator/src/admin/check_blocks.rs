//! What kvhive has of a prompt by its engine's hashes, as NVIDIA Dynamo's router asks a cache that its workers share.

use super::answers::Trouble;
use super::object::Object;
use super::routes::{Answer, Shared};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use kvhive_protocol::routing::BlockHash;
use kvhive_runtime::http::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest body: as many hashes as may be, as decimal numbers.
pub(super) const MAX_CHECK_BODY_BYTES: usize = 2 << 20;
/// The most hashes of one question.
const MAX_HASHES: usize = 65_536;

/// Blocks that are asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BlocksAsked {
    /// The engine's hashes of a prompt's blocks, from its first on: numbers of 64 bits, the last eight bytes of each.
    #[schema(max_items = 65536)]
    block_hashes: Vec<u64>,
    /// The engine that is followed whose hashes these are; not needed where all that name their blocks by hashes do so alike.
    engine: Option<String>,
}

/// Blocks that are there.
#[derive(Serialize, ToSchema)]
pub(super) struct BlocksFound {
    /// Positions of hashes, from the first of each to before the second. kvhive has prefixes: there is one at most, and it begins at 0.
    ranges: Vec<[u64; 2]>,
}

/// Says which blocks of a prompt kvhive has, by the engine's hashes of them.
#[utoipa::path(post, path = "/check_blocks", request_body = BlocksAsked, responses((status = 200, body = BlocksFound), (status = 409, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn check_blocks(
    State(admin): Shared,
    body: Result<Json<Object<BlocksAsked>>, JsonRejection>,
) -> Answer<BlocksFound> {
    let Json(Object(asked)) = body.map_err(|error| Trouble::unusable_body(&error, MAX_CHECK_BODY_BYTES))?;
    let BlocksAsked { block_hashes, engine } = asked;
    if block_hashes.len() > MAX_HASHES {
        let many = block_hashes.len();
        return Err(Trouble::bad_request(format!("there are {many} hashes, allowed are {MAX_HASHES}")));
    }
    let hashes = block_hashes.iter().map(|hash| BlockHash(hash.to_be_bytes().to_vec())).collect();
    let covered = admin.sources.control.engines().covered(engine.as_deref(), hashes).await?;
    let ranges = if covered > 0 { vec![[0, covered]] } else { Vec::new() };
    Ok(Json(BlocksFound { ranges }))
}
