//! What adapters inside serving engines are made of: their scheduler's side and their workers' side, as Python holds them. What
//! decides is in the crate `kvhive-engines`.

mod courier;
mod links;
mod objects;
mod pages;
mod planner;
mod singles;
mod tier;

use kvhive_protocol::Moment;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub(crate) use courier::EngineCourier;
pub(crate) use objects::EngineObjects;
pub(crate) use pages::{EnginePages, engine_stops};
pub(crate) use planner::{EnginePlanner, engine_fingerprint};
pub(crate) use tier::EngineTier;

/// The longest that a store takes where nobody waits longer for an answer.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// Returns how long a store may take for somebody who waits so long for an answer: no step waits for it, so that it is as patient at least.
fn store_limit(wait: Duration) -> Duration {
    wait.max(STORE_LIMIT)
}

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the time of this process.
fn now() -> Moment {
    Moment::from_nanos(u64::try_from(BEGUN.elapsed().as_nanos()).unwrap_or(u64::MAX))
}
