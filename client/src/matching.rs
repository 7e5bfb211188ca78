//! Match: how far a cluster covers a prefix.

use crate::error::ClientError;
use crate::fetch::senseless;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::Backoff;
use crate::route::{Job, plan};
use kvhive_protocol::data::{DataReply, DataRequest, MAX_KEYS_PER_MATCH, MatchRequest};
use kvhive_protocol::{ClusterMap, DeviceId, KeyList};
use kvhive_wire::Fault;
use std::collections::BTreeSet;
use tokio::time::Instant;

/// How far a prefix is covered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixMatch {
    /// Blocks from the first on that are covered without a gap. They are held for a while, so that they can be fetched.
    pub covered: usize,
    /// Primaries of the blocks that nobody could be asked for and that would have counted; they count as not covered.
    pub unreachable: usize,
}

impl NamespaceClient {
    /// Says how far the cluster covers `prefix`.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a prefix of more than 65,536 blocks. Devices that cannot be reached make misses.
    pub async fn match_prefix(&self, prefix: &Prefix) -> Result<PrefixMatch, ClientError> {
        if prefix.len() > MAX_KEYS_PER_MATCH {
            return Err(ClientError::Misuse(format!(
                "{} blocks in one match, at most {MAX_KEYS_PER_MATCH}",
                prefix.len()
            )));
        }
        let deadline = self.deadline();
        let mut known: Vec<Option<bool>> = vec![None; prefix.len()];
        let mut avoid: Vec<DeviceId> = Vec::new();
        let mut backoff = Backoff::new();
        let mut looked_again = false;
        loop {
            let map = self.shared().map();
            let plan = plan(&map, prefix, open(&known), &avoid, false);
            if !plan.nowhere.is_empty() && self.shared().looks_again(&map, &mut looked_again, deadline).await
            {
                continue;
            }
            let answers = self.ask_all(&map, prefix, &plan.jobs, deadline).await;
            let mut failed = Vec::new();
            for (job, answer) in plan.jobs.iter().zip(answers) {
                match answer {
                    Ok(covered) => mark(&mut known, job, &covered),
                    Err(fault) => failed.push((job.device, fault)),
                }
            }
            if failed.is_empty()
                || !self
                    .shared()
                    .mend(&map, &failed, &mut avoid, &mut looked_again, &mut backoff, deadline)
                    .await
            {
                let segment_blocks = map.settings.segment_blocks as usize;
                let primaries = open(&known).map(|at| {
                    let home = &prefix.keys()[prefix.home(at, segment_blocks)];
                    map.replicas_of(home).primary()
                });
                let unreachable = primaries.collect::<BTreeSet<_>>().len();
                let covered = known.iter().position(|is| *is != Some(true)).unwrap_or(prefix.len());
                return Ok(PrefixMatch { covered, unreachable });
            }
        }
    }

    async fn ask_all(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        jobs: &[Job],
        deadline: Instant,
    ) -> Vec<Result<Vec<u32>, Fault>> {
        match jobs {
            // The common case needs no gathering.
            [job] => vec![self.ask_one(map, prefix, job, deadline).await],
            jobs => {
                futures_util::future::join_all(
                    jobs.iter().map(|job| self.ask_one(map, prefix, job, deadline)),
                )
                .await
            }
        }
    }

    async fn ask_one(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        job: &Job,
        deadline: Instant,
    ) -> Result<Vec<u32>, Fault> {
        let mut keys = KeyList::with_capacity(job.positions.len());
        for at in &job.positions {
            keys.push(&prefix.keys()[*at]);
        }
        let request = DataRequest::Match(MatchRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            hold_ms: u32::try_from(self.shared().config.hold.as_millis()).unwrap_or(u32::MAX),
            runs: job.runs.clone(),
            keys,
        });
        let reply = self.shared().call(map, job.device, &request, deadline).await?;
        let DataReply::Matched { covered, .. } = reply else {
            return Err(senseless("a match was answered otherwise"));
        };
        if covered.len() != job.runs.len() {
            return Err(senseless("a match's answer does not fit its question"));
        }
        Ok(covered)
    }
}

/// Returns the positions that nobody answered for, up to the first that is not covered: past it nothing counts.
fn open(known: &[Option<bool>]) -> impl Iterator<Item = usize> + '_ {
    let hole = known.iter().position(|is| *is == Some(false)).unwrap_or(known.len());
    (0..hole).filter(|at| known[*at].is_none())
}

fn mark(known: &mut [Option<bool>], job: &Job, covered: &[u32]) {
    let mut positions = job.positions.iter();
    for (run, covered) in job.runs.iter().zip(covered) {
        for (at, position) in positions.by_ref().take(run.keys as usize).enumerate() {
            known[*position] = Some((at as u32) < *covered);
        }
    }
}
