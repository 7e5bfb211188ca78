//! Values: bytes of any length under names that may be given others, for those who bring keys of their own. A value is a block
//! like any other and never changes; which block a name means is kept by the primary of the name's slot (decision 50).

use crate::call::Verdict;
use crate::client::{Client, Shared};
use crate::error::ClientError;
use crate::fetch::{FetchOutcome, MissReason, run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::{Backoff, in_time};
use crate::route::{Job, plan, primary, split};
use crate::store::{StoreOptions, StoreOutcome};
use kvhive_protocol::data::{Ack, DataReply, DataRequest, Hint};
use kvhive_protocol::names::{
    Life, ListedName, MAX_NAME_BYTES, MAX_NAMES_PER_REQUEST, Meaning, NameAnswer, NameOp, NameVerb,
    NamesAnswer, NamesAsk, NamesRequest, Target, When,
};
use kvhive_protocol::{BlockKey, ClusterMap, DeviceId, Epoch, Layout, Level, MemberId, WireError};
use kvhive_wire::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// What the values' namespace is called, where engines' are called after their models.
const MODEL: &str = "values";

/// A tenant's values. Cheap to clone.
#[derive(Clone)]
pub struct Values {
    blocks: NamespaceClient,
}

/// What a name means: a value that was stored, and may have left since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    key: BlockKey,
    meaning: Meaning,
}

impl Kept {
    /// Returns the value's length.
    pub fn bytes(&self) -> u64 {
        self.meaning.target.bytes
    }

    /// Returns for how many milliseconds it is kept at most, if that is limited.
    pub fn left_ms(&self) -> Option<u64> {
        self.meaning.left_ms
    }

    fn block(&self) -> BlockKey {
        self.meaning.target.block(&self.key)
    }
}

/// How a value is put.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Put {
    /// When.
    pub when: When,
    /// For how long.
    pub life: Life,
    /// When it counts as stored; the cluster's default when none.
    pub ack: Option<Ack>,
}

/// What became of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The name means it, instead of this.
    Done(Option<Kept>),
    /// The condition did not hold: the name means what it meant.
    Unwanted(Option<Kept>),
    /// It was not stored, and the name means what it meant.
    NotStored(StoreOutcome),
}

impl Client {
    /// Opens a tenant's values.
    ///
    /// # Errors
    /// When the map known here has no such tenant.
    pub fn values(&self, tenant: &str) -> Result<Values, ClientError> {
        self.namespace(tenant, MODEL, Layout::ANY_LENGTH, 0).map(|blocks| Values { blocks })
    }
}

impl Values {
    /// Says what names mean, in their order.
    ///
    /// # Errors
    /// When the cluster's members do not all keep names yet, or a name has more than 4096 bytes. A name whose node does not answer in
    /// time means nothing, as in a cache everywhere.
    pub async fn look(&self, names: &[&[u8]]) -> Result<Vec<Option<Kept>>, ClientError> {
        let keys = self.keys(names)?;
        let ops = keys.iter().map(|key| NameOp { key: *key, verb: NameVerb::Look }).collect();
        let answers = self.act(ops).await?;
        let kept = |(key, answer): (&BlockKey, Option<NameAnswer>)| {
            Some(Kept { key: *key, meaning: answer?.before? })
        };
        Ok(keys.iter().zip(answers).map(kept).collect())
    }

    /// Fetches values, checked; none for one that has left: its name means nothing any more then.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] for a value of more than 256 MiB, of which there is none.
    pub async fn fetch(&self, kept: &[Kept]) -> Result<Vec<Option<Vec<u8>>>, ClientError> {
        let mut values: Vec<Vec<u8>> = Vec::with_capacity(kept.len());
        for one in kept {
            if one.bytes() > self.blocks.block_bytes() {
                return Err(ClientError::Misuse(format!("a value of {} bytes", one.bytes())));
            }
            values.push(vec![0; one.bytes() as usize]);
        }
        // Of one value that is asked for twice, both are fetched: that is rare, and each has memory of its own.
        let full: Vec<usize> = (0..kept.len()).filter(|at| kept[*at].bytes() > 0).collect();
        let prefix = Prefix::loose(full.iter().map(|at| kept[*at].block()).collect());
        let mut targets: Vec<&mut [u8]> =
            values.iter_mut().filter(|value| !value.is_empty()).map(Vec::as_mut_slice).collect();
        let report = self.blocks.fetch_into(&prefix, 0..full.len(), &mut targets).await?;
        let mut values: Vec<Option<Vec<u8>>> = values.into_iter().map(Some).collect();
        let mut left = Vec::new();
        for (at, outcome) in full.into_iter().zip(report.outcomes) {
            if let FetchOutcome::Missed(reason) = outcome {
                values[at] = None;
                if reason == MissReason::Absent {
                    left.push(kept[at]);
                }
            }
        }
        self.let_go(&left).await?;
        Ok(values)
    }

    /// Puts a value under a name: it is stored first, so that the name means the one value or the other at every moment.
    ///
    /// # Errors
    /// As [`Values::look`], and when the name's node does not answer in time: whether the name means the value is not known then.
    pub async fn put(&self, name: &[u8], value: &[u8], put: Put) -> Result<PutOutcome, ClientError> {
        let key = self.keys(&[name])?[0];
        if put.when != When::Always {
            // Spares the bytes; what counts is asked again with the change itself.
            let before = self.look(&[name]).await?[0];
            if before.is_some() != (put.when == When::Present) {
                return Ok(PutOutcome::Unwanted(before));
            }
        }
        let target = Target { nonce: nonce()?, bytes: value.len() as u64 };
        if !value.is_empty() {
            let prefix = Prefix::loose(vec![target.block(&key)]);
            let options = StoreOptions { ack: put.ack, ..StoreOptions::default() };
            let report = self.blocks.store(&prefix, 0..1, &[value], options).await?;
            match report.outcomes[0] {
                StoreOutcome::Acknowledged { .. } => {}
                outcome => return Ok(PutOutcome::NotStored(outcome)),
            }
        }
        let verb = NameVerb::Set { name: name.to_vec(), target, when: put.when, life: put.life };
        let answer = self.act(vec![NameOp { key, verb }]).await?.pop().flatten();
        let answer = answer.ok_or(ClientError::Connection(Fault::Refused(WireError::NoLease)))?;
        let before = answer.before.map(|meaning| Kept { key, meaning });
        if answer.done {
            Ok(PutOutcome::Done(before.filter(|before| before.meaning.target != target)))
        } else {
            self.over(&[Kept { key, meaning: Meaning { target, left_ms: None } }]).await?;
            Ok(PutOutcome::Unwanted(before))
        }
    }

    /// Lets names mean nothing; returns what they meant. None for a name whose node did not answer in time, which may go on.
    ///
    /// # Errors
    /// As [`Values::look`].
    pub async fn forget(&self, names: &[&[u8]]) -> Result<Vec<Option<Option<Kept>>>, ClientError> {
        let keys = self.keys(names)?;
        let ops = keys.iter().map(|key| NameOp { key: *key, verb: NameVerb::Drop { only: None } }).collect();
        let answers = self.act(ops).await?;
        let kept = |(key, answer): (&BlockKey, Option<NameAnswer>)| {
            Some(answer?.before.map(|meaning| Kept { key: *key, meaning }))
        };
        Ok(keys.iter().zip(answers).map(kept).collect())
    }

    /// Tells those who hold these values that nobody will ask for them: they make room first.
    ///
    /// # Errors
    /// None that matters to what was said before; those of [`NamespaceClient::release`].
    pub async fn over(&self, kept: &[Kept]) -> Result<(), ClientError> {
        let blocks: Vec<BlockKey> = kept.iter().filter(|kept| kept.bytes() > 0).map(Kept::block).collect();
        if !blocks.is_empty() {
            self.blocks.release(&Prefix::loose(blocks), Hint::Over).await?;
        }
        Ok(())
    }

    /// Says which of these values are here still.
    ///
    /// # Errors
    /// As [`NamespaceClient::survey`].
    pub async fn are_here(&self, kept: &[Kept]) -> Result<Vec<bool>, ClientError> {
        let one = |kept: &Kept| {
            let (bytes, prefix) = (kept.bytes(), Prefix::loose(vec![kept.block()]));
            async move { Ok(bytes == 0 || self.blocks.survey(&prefix).await?.covered() == 1) }
        };
        let mut here = Vec::with_capacity(kept.len());
        for some in kept.chunks(SURVEYS) {
            here.extend(run_all(some.iter().map(one).collect()).await);
        }
        here.into_iter().collect()
    }

    /// Lists names from a position on, about `limit` of them, and says from where the list goes on. Names that are there all the
    /// while are listed; their values may have left.
    ///
    /// # Errors
    /// When a node does not answer: its names are missing.
    pub async fn list(&self, from: u64, limit: u32) -> Result<(Vec<Vec<u8>>, Option<u64>), ClientError> {
        let mut names: Vec<ListedName> = Vec::new();
        let mut next: Option<u64> = None;
        for answer in self.ask_all(&NamesAsk::List { from, limit }).await? {
            let NamesAnswer::Listed { names: some, next: on } = answer else {
                return Err(senseless("a list of names was answered otherwise").into());
            };
            names.extend(some);
            next = next.into_iter().chain(on).min();
        }
        names.sort_unstable_by_key(|one| one.position);
        // Whole positions, and none that some node has more of.
        if let Some(last) = names.get(limit as usize) {
            next = next.into_iter().chain([last.position]).min();
        }
        if next.is_some_and(|next| names.first().is_some_and(|first| next <= first.position)) {
            // As many share one position as are wanted: no client ends there.
            next = next.map(|next| next + 1);
        }
        names.retain(|one| next.is_none_or(|next| one.position < next));
        Ok((names.into_iter().map(|one| one.name).collect(), next))
    }

    /// Returns how many names there are.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn count(&self) -> Result<u64, ClientError> {
        let mut sum = 0;
        for answer in self.ask_all(&NamesAsk::Count).await? {
            let NamesAnswer::Counted(names) = answer else {
                return Err(senseless("a count of names was answered otherwise").into());
            };
            sum += names;
        }
        Ok(sum)
    }

    /// Lets names mean nothing whose values have left, unless they mean others by now.
    async fn let_go(&self, kept: &[Kept]) -> Result<(), ClientError> {
        if kept.is_empty() {
            return Ok(());
        }
        let only = |kept: &Kept| NameVerb::Drop { only: Some(kept.meaning.target.nonce) };
        let ops = kept.iter().map(|kept| NameOp { key: kept.key, verb: only(kept) }).collect();
        self.act(ops).await.map(|_| ())
    }

    fn keys(&self, names: &[&[u8]]) -> Result<Vec<BlockKey>, ClientError> {
        if let Some(name) = names.iter().find(|name| name.len() > MAX_NAME_BYTES) {
            return Err(ClientError::Misuse(format!(
                "a name of {} bytes, at most {MAX_NAME_BYTES} are allowed",
                name.len()
            )));
        }
        Ok(self.blocks.loose_keys(names.iter().copied()))
    }

    /// Has things done about names, each at the primary of its slot; none for one that did not answer in time.
    async fn act(&self, ops: Vec<NameOp>) -> Result<Vec<Option<NameAnswer>>, ClientError> {
        let shared = self.blocks.shared();
        let prefix = Prefix::loose(ops.iter().map(|op| op.key).collect());
        let mut answers: Vec<Option<NameAnswer>> = vec![None; ops.len()];
        let mut given_up = vec![false; ops.len()];
        let deadline = self.blocks.deadline();
        let mut backoff = Backoff::new();
        loop {
            let map = shared.map();
            speaks(&map)?;
            let open = (0..ops.len()).filter(|at| answers[*at].is_none() && !given_up[*at]);
            let plan = plan(&map, &prefix, open, &[], primary);
            let jobs: Vec<Job> =
                plan.jobs.into_iter().flat_map(|job| split(job, MAX_NAMES_PER_REQUEST)).collect();
            let mut troubles: Vec<Verdict> =
                plan.nowhere.first().map(|_| Verdict::Elsewhere).into_iter().collect();
            let tasks = jobs.into_iter().map(|job| self.act_at(&map, job, &ops, deadline)).collect();
            for (job, answer) in run_all(tasks).await {
                match answer {
                    Ok(done) => {
                        for (at, answer) in job.positions.iter().zip(done) {
                            answers[*at] = Some(answer);
                        }
                    }
                    Err(fault) => {
                        tracing::debug!(device = %job.device, %fault, "names not answered for");
                        let verdict = shared.judge(&map, &fault);
                        if verdict.is_final() {
                            job.positions.iter().for_each(|at| given_up[*at] = true);
                        }
                        troubles.push(verdict);
                    }
                }
            }
            if !mend(shared, &map, &troubles, &mut backoff, deadline).await {
                return Ok(answers);
            }
        }
    }

    async fn act_at(
        &self,
        map: &Arc<ClusterMap>,
        job: Job,
        ops: &[NameOp],
        deadline: Instant,
    ) -> (Job, Result<Vec<NameAnswer>, Fault>) {
        let some = job.positions.iter().map(|at| ops[*at].clone()).collect();
        let answer = match self.ask(map, job.device, NamesAsk::Do(some), deadline).await {
            Ok((NamesAnswer::Done(done), _)) if done.len() == job.positions.len() => Ok(done),
            Ok(_) => Err(senseless("what became of names does not fit what was asked")),
            Err(fault) => Err(fault),
        };
        (job, answer)
    }

    async fn ask(
        &self,
        map: &ClusterMap,
        device: DeviceId,
        ask: NamesAsk,
        deadline: Instant,
    ) -> Result<(NamesAnswer, Epoch), Fault> {
        let (epoch, tenant) = (map.epoch, self.blocks.tenant);
        let request = DataRequest::Names(NamesRequest { epoch, device, tenant, ask });
        match self.blocks.shared().call(map, device, &request, None, deadline).await? {
            DataReply::Named { answer, epoch } => Ok((answer, epoch)),
            _ => Err(senseless("a question about names was answered otherwise")),
        }
    }

    /// Asks every node that is up.
    async fn ask_all(&self, ask: &NamesAsk) -> Result<Vec<NamesAnswer>, ClientError> {
        let shared = self.blocks.shared();
        let deadline = in_time(shared.config.request_timeout);
        let mut backoff = Backoff::new();
        loop {
            let map = shared.map();
            speaks(&map)?;
            let mut first: BTreeMap<MemberId, DeviceId> = BTreeMap::new();
            for (device, _) in map.devices_up() {
                first.entry(device.member).or_insert(device);
            }
            let tasks =
                first.into_values().map(|device| self.ask(&map, device, ask.clone(), deadline)).collect();
            let answers: Result<Vec<_>, Fault> = run_all(tasks).await.into_iter().collect();
            let (fault, verdict) = match answers {
                Ok(answers) => match answers.iter().map(|(_, epoch)| *epoch).max() {
                    Some(newest) if newest <= map.epoch => {
                        return Ok(answers.into_iter().map(|(answer, _)| answer).collect());
                    }
                    // By a newer map there may be others to ask.
                    Some(newest) => {
                        (Fault::Refused(WireError::StaleEpoch { epoch: newest }), Verdict::Refresh(newest))
                    }
                    None => {
                        let nobody = "no node of the cluster is up by the newest map that is known";
                        (Fault::Refused(WireError::busy(nobody)), Verdict::Elsewhere)
                    }
                },
                Err(fault) => {
                    let verdict = shared.judge(&map, &fault);
                    (fault, verdict)
                }
            };
            if verdict.is_final() || !mend(shared, &map, &[verdict], &mut backoff, deadline).await {
                return Err(fault.into());
            }
        }
    }
}

/// Values that are surveyed side by side.
const SURVEYS: usize = 64;

/// Checks that every member keeps names.
fn speaks(map: &ClusterMap) -> Result<(), ClientError> {
    if map.level >= Level::NAMES {
        return Ok(());
    }
    Err(ClientError::Misuse(format!(
        "names need a cluster at level {}, and this one is at {}: upgrade its other members",
        Level::NAMES,
        map.level
    )))
}

/// Does what failed requests need, each thing once. Says whether to ask again.
async fn mend(
    shared: &Arc<Shared>,
    map: &ClusterMap,
    troubles: &[Verdict],
    backoff: &mut Backoff,
    deadline: Instant,
) -> bool {
    let wanted = troubles.iter().filter_map(|verdict| match verdict {
        Verdict::Refresh(epoch) => Some(*epoch),
        _ => None,
    });
    let mut again = false;
    if let Some(epoch) = wanted.max() {
        again = shared.refresh_to(map.epoch, epoch, deadline).await;
    }
    let waits = troubles.iter().any(|verdict| !verdict.is_final());
    if waits && !again && backoff.wait(deadline).await {
        if troubles.contains(&Verdict::Elsewhere) {
            let now = Instant::now();
            let patience = now + deadline.saturating_duration_since(now) / 4;
            shared.refresh_past(map.epoch, patience).await;
        }
        again = true;
    }
    again && Instant::now() < deadline
}

fn nonce() -> Result<u64, ClientError> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| ClientError::Misuse(format!("no random bytes: {error}")))?;
    Ok(u64::from_le_bytes(nonce))
}
