//! Single blocks in no order, by their names alone: what tiers and storage plugins ask of a cluster. Nothing here fails; what does not
//! come, or is not kept, is said of each block.

use crate::reports::{frames, refused};
use crate::serving::links::{Links, unanswered, wish_of};
use kvhive_client::{ClientError, FetchOutcome, MissReason, NamespaceClient, StoreOptions, StoreOutcome};
use kvhive_engines::Wish;
use kvhive_protocol::data::{MAX_KEYS_PER_MATCH, Refusal};
use std::time::Duration;
use tokio::time::timeout;

/// What became of blocks.
#[derive(Default)]
pub(super) struct Moved {
    /// Of each, whether it was fetched, or is kept.
    pub(super) done: Vec<bool>,
    /// Whether the cluster answered.
    pub(super) is_answered: bool,
}

/// Says of each block whether it is there; none when nobody who may have any of them answered.
pub(super) async fn which(
    space: &NamespaceClient,
    names: &[Vec<u8>],
) -> Result<Option<Vec<bool>>, ClientError> {
    let mut found = Vec::with_capacity(names.len());
    for some in names.chunks(MAX_KEYS_PER_MATCH) {
        found.extend(space.which(&space.loose_of_engine_hashes(some)).await?);
    }
    let is_answered = names.is_empty() || found.iter().any(Option::is_some);
    Ok(is_answered.then(|| found.iter().map(|is| *is == Some(true)).collect()))
}

/// Fetches blocks, each into memory of its length.
pub(super) async fn take(
    space: &NamespaceClient,
    names: &[Vec<u8>],
    into: &mut [&mut [u8]],
) -> Result<Moved, ClientError> {
    let set = space.loose_of_engine_hashes(names);
    let report = space.fetch_into(&set, 0..set.len(), into).await?;
    let is_silent = |outcome: &FetchOutcome| matches!(outcome, FetchOutcome::Missed(MissReason::Unreachable));
    Ok(Moved {
        done: report.outcomes.iter().map(|one| matches!(one, FetchOutcome::Loaded(_))).collect(),
        is_answered: report.outcomes.iter().any(|outcome| !is_silent(outcome)),
    })
}

/// Stores blocks. One that somebody else is storing counts as kept; why one is not is noted.
pub(super) async fn put(
    space: &NamespaceClient,
    names: &[Vec<u8>],
    from: &[&[u8]],
    note: impl Fn(String),
) -> Result<Moved, ClientError> {
    let set = space.loose_of_engine_hashes(names);
    let report = space.store(&set, 0..set.len(), from, StoreOptions::default()).await?;
    let frames = frames(space, &report.outcomes).await;
    let late = unanswered(&report.outcomes, space.limit(), &note);
    let is_kept = |(outcome, block): (&StoreOutcome, &&[u8])| match outcome {
        StoreOutcome::Acknowledged { .. } | StoreOutcome::Refused(Refusal::InFlight) => true,
        StoreOutcome::Refused(why) => {
            note(format!("{} bytes are not stored: {}", block.len(), refused(*why, frames)));
            false
        }
        StoreOutcome::TooFewCopies { copies, wanted } => {
            note(format!("{copies} of {wanted} replicas hold what was stored"));
            false
        }
        StoreOutcome::Unreachable => false,
    };
    Ok(Moved {
        done: report.outcomes.iter().zip(from).map(is_kept).collect(),
        is_answered: late < report.outcomes.len(),
    })
}

impl Links {
    async fn space(&self) -> Option<&NamespaceClient> {
        self.connect().await?.first()
    }

    /// Says of each block whether it is there; none when the cluster did not answer.
    pub(super) async fn which(&self, names: &[Vec<u8>], limit: Duration) -> Option<Vec<bool>> {
        let all = async {
            let space = self.space().await?.within(limit);
            which(&space, names).await.map_err(|why| self.note(why)).ok()?
        };
        let found = timeout(limit, all).await.ok().flatten();
        if found.is_none() {
            self.note("no node that may have these blocks has answered");
        }
        found
    }

    /// Fetches blocks, each into memory of its length.
    pub(super) async fn take(&self, names: &[Vec<u8>], into: &mut [&mut [u8]], limit: Duration) -> Moved {
        let all = async {
            let space = self.space().await?.within(limit);
            take(&space, names, into).await.map_err(|why| self.note(why)).ok()
        };
        self.within(limit, all).await
    }

    /// Stores blocks. One that somebody else is storing counts as kept.
    pub(super) async fn put(&self, names: &[Vec<u8>], from: &[&[u8]], limit: Duration) -> Moved {
        let all = async {
            let space = self.space().await?.within(limit);
            put(&space, names, from, |why| self.note(why)).await.map_err(|why| self.note(why)).ok()
        };
        self.within(limit, all).await
    }

    /// Sees that something becomes of blocks, whose pins are a tier's.
    pub(super) async fn wish_of_singles(&self, names: &[Vec<u8>], wish: &Wish) {
        self.in_time(async {
            let Some(space) = self.space().await else { return };
            if let Err(why) = wish_of(space, "tier", &space.loose_of_engine_hashes(names), wish).await {
                self.note(why);
            }
        })
        .await;
    }

    async fn within(&self, limit: Duration, all: impl Future<Output = Option<Moved>>) -> Moved {
        // Its calls keep to the limit; what comes before them may not.
        let moved = timeout(limit + limit, all).await;
        if moved.is_err() {
            self.note(format!("no answer within {:?}", limit + limit));
        }
        moved.ok().flatten().unwrap_or_default()
    }
}
