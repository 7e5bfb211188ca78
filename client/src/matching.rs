//! Match: how far a cluster covers a prefix.

use crate::error::ClientError;
use crate::fetch::{run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::rounds::{Read, Rounds};
use crate::route::Job;
use crate::waits::Sway;
use kvhive_protocol::KeyList;
use kvhive_protocol::data::{DataReply, DataRequest, MatchRequest};
use kvhive_wire::Fault;
use std::collections::BTreeSet;

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
        self.match_from(prefix, 0).await
    }

    /// Says how far the cluster covers `prefix` for somebody who has its first `from` blocks: they are not asked for, and count as
    /// covered.
    ///
    /// # Errors
    /// As [`NamespaceClient::match_prefix`], and for a prefix that has fewer blocks.
    pub async fn match_from(&self, prefix: &Prefix, from: usize) -> Result<PrefixMatch, ClientError> {
        self.check_length(prefix, "match")?;
        self.check_range(prefix, &(from..prefix.len()), prefix.len().saturating_sub(from))?;
        let mut known: Vec<Option<bool>> = vec![None; prefix.len()];
        known[..from].fill(Some(true));
        let (known, unreachable) = self.seek(prefix, known).await;
        let covered = known.iter().position(|is| *is != Some(true)).unwrap_or(prefix.len());
        Ok(PrefixMatch { covered, unreachable })
    }

    /// Says of each block of a set without order whether the cluster has it; none where nobody could be asked. What is there is held
    /// for a while, so that it can be fetched.
    ///
    /// # Errors
    /// As [`NamespaceClient::match_prefix`].
    pub async fn which(&self, set: &Prefix) -> Result<Vec<Option<bool>>, ClientError> {
        self.check_length(set, "match")?;
        Ok(self.seek(set, vec![None; set.len()]).await.0)
    }

    /// Asks for what is not known yet and counts; says how many primaries nobody could be asked instead of.
    async fn seek(&self, prefix: &Prefix, mut known: Vec<Option<bool>>) -> (Vec<Option<bool>>, usize) {
        let is_loose = prefix.is_loose();
        let mut call = self.call("match prefix", open(&known, is_loose).count());
        let mut rounds = Rounds::new(self);
        loop {
            let map = self.shared().map();
            let plan = rounds.plan(&map, prefix, open(&known, is_loose), Sway::MATCH);
            if !plan.nowhere.is_empty() && rounds.looks_again(&map).await {
                continue;
            }
            let read = rounds.read(&map, prefix, call.trace);
            let tasks = plan.jobs.into_iter().map(|job| self.match_job(&read, job)).collect();
            let mut failed = Vec::new();
            for (job, answer) in run_all(tasks).await.into_iter().flatten() {
                match answer {
                    Ok(covered) => mark(&mut known, &job, &covered),
                    Err(fault) => failed.push((job.device, fault)),
                }
            }
            if failed.is_empty() || !rounds.mend(&map, &failed).await {
                let segment_blocks = map.settings.segment_blocks as usize;
                let primaries = open(&known, is_loose).map(|at| {
                    let home = &prefix.keys()[prefix.home(at, segment_blocks)];
                    map.replicas_of(home).primary()
                });
                let unreachable = primaries.collect::<BTreeSet<_>>().len();
                let covered = known.iter().take_while(|is| **is == Some(true)).count();
                call.span.note("kvhive.covered", covered);
                return (known, unreachable);
            }
        }
    }

    /// Asks one device; if it is late, other replicas besides, but none that has yet to be given its older blocks: what that lacks
    /// may well be there. Its answer may then be missing.
    async fn match_job(&self, read: &Read<'_>, job: Job) -> Vec<Answered> {
        if !read.has_others(&job) {
            return vec![self.ask_one(read, job).await];
        }
        let device = job.device;
        let positions = job.positions.clone();
        let others = || {
            let jobs = read.whole_others(device, &positions)?;
            Some(async { run_all(jobs.into_iter().map(|job| self.ask_one(read, job)).collect()).await })
        };
        let suffices =
            (|one: &Answered| one.1.is_ok(), |all: &Vec<Answered>| all.iter().all(|one| one.1.is_ok()));
        // Boxed, so that matches of clusters without replicas are no larger for it.
        let race = self.shared().race(device, self.ask_one(read, job), || false, others, suffices);
        let raced = Box::pin(race).await;
        match raced.second {
            Some(second) if second.iter().all(|one| one.1.is_ok()) => second,
            second => raced.first.into_iter().chain(second.into_iter().flatten()).collect(),
        }
    }

    async fn ask_one(&self, read: &Read<'_>, job: Job) -> Answered {
        let answer = self.ask(read, &job).await;
        (job, answer)
    }

    async fn ask(&self, read: &Read<'_>, job: &Job) -> Result<Vec<u32>, Fault> {
        let mut keys = KeyList::with_capacity(job.positions.len());
        for at in &job.positions {
            keys.push(&read.prefix.keys()[*at]);
        }
        let request = DataRequest::Match(MatchRequest {
            epoch: read.map.epoch,
            device: job.device,
            tenant: self.tenant,
            hold_ms: u32::try_from(self.shared().config.hold.as_millis()).unwrap_or(u32::MAX),
            runs: job.runs.clone(),
            keys,
        });
        let reply = self.shared().call(read.map, job.device, &request, read.trace, read.deadline).await?;
        let DataReply::Matched { covered, .. } = reply else {
            return Err(senseless("a match was answered otherwise"));
        };
        if covered.len() != job.runs.len() {
            return Err(senseless("a match's answer does not fit its question"));
        }
        Ok(covered)
    }
}

/// What one device said of what it was asked.
type Answered = (Job, Result<Vec<u32>, Fault>);

/// Returns the positions that nobody answered for and that count: of a prefix, those up to the first that is not covered.
fn open(known: &[Option<bool>], is_loose: bool) -> impl Iterator<Item = usize> + '_ {
    let hole = known.iter().position(|is| !is_loose && *is == Some(false)).unwrap_or(known.len());
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
