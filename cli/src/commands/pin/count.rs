//! How many of the blocks that a pin names are pinned, by the word of the nodes that have them.

use crate::report::{counted, counted_are};
use anyhow::Result;
use kvhive_client::{Client, Explanation, Place};
use kvhive_protocol::BlockKey;
use kvhive_protocol::explain::Explained;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long nodes are given to hear of a pin: a few heartbeats.
const LIMIT: Duration = Duration::from_secs(4);
/// How often they are asked.
const EVERY: Duration = Duration::from_millis(200);

/// What has become of the blocks that a pin names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Counted {
    /// Pinned wherever they are.
    pub(super) pinned: usize,
    /// Pinned on one replica and not on another.
    pub(super) partly: usize,
    /// There, and pinned nowhere: as much is pinned as may be, or a node has not heard of the pin yet.
    pub(super) refused: usize,
    /// Not stored: pinned when they come.
    pub(super) absent: usize,
    /// Nobody who may hold them has answered.
    pub(super) unheard: usize,
}

impl Counted {
    pub(super) fn of(explanation: &Explanation) -> Counted {
        let mut counted = Counted::default();
        for block in &explanation.blocks {
            // What a slot's move has left behind is nobody's to pin.
            let holds = block.replicas.iter().filter(|one| one.place != Place::Elsewhere);
            let pinned = holds.filter_map(|one| match one.said {
                Ok(Explained::Here { pinned, .. }) => Some(pinned),
                _ => None,
            });
            let pinned: Vec<bool> = pinned.collect();
            let is_unheard =
                block.replicas.iter().any(|one| one.place != Place::Elsewhere && one.said.is_err());
            let of_these = match (pinned.contains(&true), pinned.contains(&false)) {
                (false, false) if is_unheard => &mut counted.unheard,
                (true, false) => &mut counted.pinned,
                (true, true) => &mut counted.partly,
                (false, true) => &mut counted.refused,
                (false, false) => &mut counted.absent,
            };
            *of_these += 1;
        }
        counted
    }

    /// Says in words what was not pinned, and why not; none where all that is there is pinned.
    pub(super) fn remark(&self) -> Option<String> {
        let Counted { partly, refused, unheard, .. } = *self;
        if unheard > 0 && refused + partly == 0 {
            return Some(format!(
                "nobody who may hold {} has answered: the pin stands, and is heeded when they do; `kvhive pin list` shows it",
                counted(unheard as u64, "block")
            ));
        }
        let what = match (refused, partly) {
            (0, 0) => return None,
            (0, partly) => format!("{} pinned on some replicas only", counted_are(partly as u64, "block")),
            (refused, 0) => format!("{} stored and not pinned", counted_are(refused as u64, "block")),
            (refused, partly) => {
                format!(
                    "{} stored and not pinned, and {partly} on some replicas only",
                    counted_are(refused as u64, "block")
                )
            }
        };
        Some(format!(
            "{what}: at most half of a device's frames, and half of what a tenant is promised there, are pinned at a time. They are pinned when \
             others are no longer; `kvhive pin remove` ends a pin, and more devices or nodes make room for more"
        ))
    }
}

/// Asks the nodes what they have pinned, until they have heard of the pin or have had the time to.
///
/// # Errors
/// When the tenant is not known.
pub(super) async fn count(client: &Client, tenant: &str, keys: &[BlockKey]) -> Result<Counted> {
    let end = Instant::now() + LIMIT;
    loop {
        let counted = Counted::of(&client.explain_keys(tenant, keys).await?);
        if counted.refused + counted.partly + counted.unheard == 0 || Instant::now() >= end {
            return Ok(counted);
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pinned_is_told_with_the_reason() {
        let all = Counted { pinned: 3, absent: 2, ..Counted::default() };
        assert_eq!(all.remark(), None);
        let unheard =
            Counted { pinned: 3, unheard: 2, ..Counted::default() }.remark().expect("two are not known");
        assert!(unheard.starts_with("nobody who may hold 2 blocks has answered"), "{unheard}");
        let some = Counted { pinned: 3, refused: 2, ..Counted::default() }.remark().expect("two are not");
        assert!(some.starts_with("2 blocks are stored and not pinned: at most half"), "{some}");
        let partly = Counted { partly: 1, ..Counted::default() }.remark().expect("one is not everywhere");
        assert!(partly.starts_with("1 block is pinned on some replicas only"), "{partly}");
    }
}
