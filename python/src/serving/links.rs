//! A worker's way to its cluster: connected when it is first needed, and anew until it is. What it is asked takes as long as it is
//! told, and never fails: what does not come is not there.

use crate::buffer::Lent;
use crate::connection::tls;
use crate::errors::Failure;
use crate::pins;
use crate::reports::{frames, refused};
use crate::transfers;
use kvhive_client::{
    Client, ClientConfig, ClientError, FetchOutcome, FrameRoom, MissReason, NamespaceClient, Prefix,
    StoreOptions, StoreOutcome,
};
use kvhive_engines::courier::Names;
use kvhive_engines::{Groups, Troubles, Wish, orders::Placed};
use kvhive_protocol::data::Refusal;
use kvhive_protocol::{Layout, Reason};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// The longest that a wish takes: nobody waits for it.
const WISH_LIMIT: Duration = Duration::from_secs(10);

/// Whose blocks these are.
pub(super) struct Place {
    pub(super) tenant: String,
    pub(super) model: String,
    pub(super) rank: u32,
    /// One a group.
    pub(super) layouts: Vec<Layout>,
}

/// A cluster, as one worker sees it.
pub(super) struct Links {
    config: ClientConfig,
    place: Place,
    groups: Groups,
    spaces: OnceCell<Vec<NamespaceClient>>,
    client: OnceLock<Client>,
    troubles: Mutex<Troubles>,
}

impl Links {
    pub(super) fn new(config: ClientConfig, place: Place, groups: Groups) -> Links {
        let (spaces, client) = (OnceCell::new(), OnceLock::new());
        Links { config, place, groups, spaces, client, troubles: Mutex::default() }
    }

    /// Returns what went wrong since this was asked last, each by itself.
    pub(super) fn troubles(&self) -> Vec<String> {
        self.lock().take()
    }

    /// Returns how many bytes went to GPUs of nodes and came from them without the host's memory, and how often some that might have did not.
    pub(super) fn on_gpu(&self) -> [u64; 3] {
        self.client.get().map_or([0; 3], |client| {
            let stats = client.stats();
            [stats.bytes_stored_on_gpu, stats.bytes_fetched_on_gpu, stats.stage_fallbacks]
        })
    }

    fn lock(&self) -> MutexGuard<'_, Troubles> {
        // Nothing is left half-done under this lock.
        self.troubles.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(super) fn note(&self, why: impl ToString) {
        self.lock().note(why);
    }

    /// Notes what is told in any case, after all else.
    pub(super) fn note_last(&self, why: impl ToString) {
        self.lock().note_last(why);
    }

    /// Connects, if it is not yet.
    pub(super) async fn connect(&self) -> Option<&[NamespaceClient]> {
        let begun = self.spaces.get_or_try_init(|| async {
            let client = Client::connect(self.config.clone()).await?;
            let Place { tenant, model, rank, layouts } = &self.place;
            let open = |(group, layout): (usize, &Layout)| {
                client.namespace(tenant, &format!("{model}/{group}"), *layout, *rank)
            };
            let spaces = layouts.iter().enumerate().map(open).collect::<Result<Vec<_>, ClientError>>()?;
            // Nobody else is here meanwhile.
            let _ = self.client.set(client);
            Ok::<_, ClientError>(spaces)
        });
        match begun.await {
            Ok(spaces) => Some(spaces),
            Err(why) => {
                self.note(why);
                None
            }
        }
    }

    fn prefix(&self, space: &NamespaceClient, group: usize, names: &Names, blocks: usize) -> Prefix {
        let hashes: Vec<&[u8]> =
            (0..blocks).map(|block| names[self.groups.hash_of(group, block)].as_slice()).collect();
        space.prefix_of_engine_hashes(&hashes)
    }

    /// Returns how many of these blocks there are in each group, and their prefixes; none when the cluster did not answer.
    pub(super) async fn find(
        &self,
        names: &Names,
        groups: &[Range<usize>],
        limit: Duration,
    ) -> Option<(Vec<usize>, Vec<Prefix>)> {
        let all = async {
            let spaces = self.connect().await?;
            let asked = spaces.iter().zip(groups).enumerate().map(|(group, (space, range))| async move {
                let prefix = self.prefix(space, group, names, range.end);
                let found = space.within(limit).match_from(&prefix, range.start).await;
                found.map(|found| (found.covered - range.start, found.unreachable, prefix))
            });
            let mut blocks = Vec::with_capacity(groups.len());
            let mut prefixes = Vec::with_capacity(groups.len());
            let mut is_silent = true;
            for answer in futures_util::future::join_all(asked).await {
                match answer {
                    Ok((covered, unreachable, prefix)) => {
                        is_silent &= unreachable > 0 && covered == 0;
                        blocks.push(covered);
                        prefixes.push(prefix);
                    }
                    Err(why) => {
                        self.note(why);
                        return None;
                    }
                }
            }
            if is_silent {
                self.note("no node that may have these blocks can be reached");
            }
            (!is_silent).then_some((blocks, prefixes))
        };
        let answered = timeout(limit, all).await;
        if answered.is_err() {
            self.note(format!("no answer within {limit:?}"));
        }
        answered.ok().flatten()
    }

    /// Fetches blocks of a group into memory for as many; returns how many came without a gap, and whether the cluster was late.
    pub(super) async fn fetch(
        &self,
        group: usize,
        prefix: &Prefix,
        range: Range<usize>,
        memory: &mut Lent,
        limit: Duration,
    ) -> (usize, bool) {
        let Some(spaces) = self.spaces.get() else { return (0, true) };
        match transfers::fetch(&spaces[group].within(limit), prefix, range, (memory, 0)).await {
            Ok(report) => {
                let is_late = report
                    .outcomes
                    .iter()
                    .any(|outcome| matches!(outcome, FetchOutcome::Missed(MissReason::Unreachable)));
                if is_late {
                    self.note(format!("not all that was found came within {limit:?}"));
                }
                (report.delivered(), is_late)
            }
            Err(why) => {
                self.note(why);
                (0, true)
            }
        }
    }

    /// Stores blocks of a group, each of which is in memory in its turn; returns how many are there, none when the cluster did not answer.
    pub(super) async fn store(
        &self,
        group: usize,
        names: &Names,
        blocks: &[Placed],
        memory: &mut Lent,
        limit: Duration,
    ) -> Option<usize> {
        let spaces = match timeout(limit, self.connect()).await {
            Ok(spaces) => spaces?,
            Err(_) => {
                self.note(format!("no connection within {limit:?}"));
                return None;
            }
        };
        let last = blocks.iter().map(|placed| placed.at as usize).max()?;
        let space = spaces[group].within(limit);
        let prefix = self.prefix(&space, group, names, last + 1);
        let (mut kept, mut is_silent, mut from) = (0, true, 0);
        while from < blocks.len() {
            let first = blocks[from].at as usize;
            let run = blocks[from..]
                .iter()
                .zip(first..)
                .take_while(|(placed, at)| placed.at as usize == *at)
                .count();
            let range = first..first + run;
            match transfers::store(&space, &prefix, range, (&mut *memory, from), StoreOptions::default())
                .await
            {
                Ok(report) => {
                    kept += report.acknowledged();
                    let frames = frames(&space, &report.outcomes).await;
                    if let Some(why) = report.outcomes.iter().find_map(|outcome| refusal(outcome, frames)) {
                        self.note(format!("a block of {} bytes is not stored: {why}", space.block_bytes()));
                    }
                    let late = unanswered(&report.outcomes, limit, |why| self.note(why));
                    is_silent &= late == run;
                }
                Err(why) => self.note(why),
            }
            from += run;
        }
        (!is_silent).then_some(kept)
    }

    /// Sees that something becomes of a request's blocks, so many of each group.
    pub(super) async fn wish(&self, names: &Names, groups: &[usize], wish: &Wish) {
        self.in_time(async {
            let Some(spaces) = self.connect().await else { return };
            for (group, (space, blocks)) in spaces.iter().zip(groups).enumerate() {
                let prefix = self.prefix(space, group, names, *blocks);
                // Each worker has blocks of its own, and pins of its own.
                let whose = format!("{}.{group}", self.place.rank);
                if let Err(why) = wish_of(space, &whose, &prefix, wish).await {
                    self.note(why);
                }
            }
        })
        .await;
    }

    /// Does what was wished for, or notes that it took too long.
    pub(super) async fn in_time(&self, all: impl Future<Output = ()>) {
        if timeout(WISH_LIMIT, all).await.is_err() {
            self.note(format!("what was wished for a request's blocks was not done within {WISH_LIMIT:?}"));
        }
    }

    /// Says what the blocks of this worker are called, for its log.
    pub(super) fn model(&self) -> &str {
        &self.place.model
    }
}

/// Sees that something becomes of blocks, for which `whose` goes with a pin's name.
pub(super) async fn wish_of(
    space: &NamespaceClient,
    whose: &str,
    blocks: &Prefix,
    wish: &Wish,
) -> Result<(), Failure> {
    let named = |name: &str| format!("{name}.{whose}");
    match wish {
        Wish::Pin { .. } | Wish::Session(_) if blocks.is_empty() => Ok(()),
        Wish::Pin { name, seconds, .. } => {
            let mode = pins::mode(seconds.map(f64::from))?;
            let reason = Reason::new("wished for by kv_hints of a request");
            Ok(space.pin(&named(name), blocks, mode, reason).await?)
        }
        Wish::Unpin { name } => Ok(space.unpin(&named(name)).await?),
        Wish::Session(hint) => {
            space.release(blocks, *hint).await?;
            Ok(())
        }
    }
}

fn refusal(outcome: &StoreOutcome, frames: Option<FrameRoom>) -> Option<String> {
    match outcome {
        // Another engine is storing the same.
        StoreOutcome::Refused(Refusal::InFlight) => None,
        StoreOutcome::Refused(refusal) => Some(refused(*refusal, frames)),
        StoreOutcome::TooFewCopies { copies, wanted } => {
            Some(format!("{copies} of {wanted} replicas hold it"))
        }
        StoreOutcome::Acknowledged { .. } | StoreOutcome::Unreachable => None,
    }
}

/// Returns how many blocks no node took in time, and notes it.
pub(super) fn unanswered(outcomes: &[StoreOutcome], limit: Duration, note: impl Fn(String)) -> usize {
    let late = outcomes.iter().filter(|one| matches!(one, StoreOutcome::Unreachable)).count();
    if late > 0 {
        note(format!(
            "{late} of {} blocks are not stored: no node took them within {limit:?}",
            outcomes.len()
        ));
    }
    late
}

/// Says which cluster is meant, as every adapter is told: where its coordinators are, the token, and three files where it speaks TLS.
pub(super) fn cluster(
    coordinators: Vec<String>,
    token: Vec<u8>,
    files: Option<(PathBuf, PathBuf, PathBuf)>,
) -> Result<ClientConfig, Failure> {
    Ok(ClientConfig { tls: tls(files, None)?, ..ClientConfig::new(coordinators, token) })
}

/// Checks the sizes of a worker's blocks.
pub(super) fn layouts(block_bytes: &[u64], groups: &Groups) -> Result<Vec<Layout>, Failure> {
    let sized = block_bytes.iter().enumerate().map(|(group, bytes)| {
        let bytes = u32::try_from(*bytes).ok().filter(|bytes| *bytes > 0);
        let bytes =
            bytes.ok_or_else(|| Failure::misuse(format!("blocks of group {group} have no usable size")))?;
        Ok(Layout::opaque(bytes, groups.block_tokens(group)))
    });
    sized.collect()
}
