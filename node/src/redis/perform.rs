//! Does what is asked of values, by a client of the cluster: whichever node is asked, all of them answer.

use super::command::{Ask, Says, Scan, Set};
use super::pattern;
use super::reply::Reply;
use super::serve::Door;
use crate::data::{add, count};
use bytes::Bytes;
use futures_util::future::join_all;
use kvhive_client::{ClientError, Kept, Put, PutOutcome, StoreOutcome, Values};
use kvhive_protocol::data::Refusal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Values that are put side by side for one caller.
const PUTS: usize = 16;
/// Bytes of values that are fetched at a time for callers who ask for one after the other.
const FETCHED_AT_ONCE: u64 = 4 << 20;

/// A value that finds no frame is stored again after each of these; then its caller is told.
const ROOM_PAUSES_MS: [u64; 9] = [5, 10, 20, 40, 80, 160, 320, 640, 1280];

type Answer = Result<Reply, Reply>;

/// A value, and the room that it takes.
struct InRoom {
    value: Vec<u8>,
    _room: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for InRoom {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

impl Door {
    /// Does one thing.
    pub(super) async fn perform(&self, values: &Values, ask: &Ask) -> Reply {
        let answered = match ask {
            Ask::Get(name) => self.get_some(values, &[name]).await.map(|mut replies| replies.remove(0)),
            Ask::MGet(names) => self.get_all(values, names).await,
            Ask::Set(set) => self.set(values, set).await,
            Ask::MSet(pairs) => self.set_all(values, pairs).await,
            Ask::Exists(names) => exists(values, names).await,
            Ask::Drop(names) => self.drop_all(values, names).await,
            Ask::Scan(scan) => list(values, scan).await,
            Ask::Size => values.count().await.map(|names| Reply::count(names as usize)).map_err(told),
            Ask::Length(name) => look(values, name).await.map(|kept| {
                Reply::Integer(kept.map_or(0, |kept| i64::try_from(kept.bytes()).unwrap_or(i64::MAX)))
            }),
            Ask::Left { name, ms } => look(values, name).await.map(|kept| Reply::Integer(left(kept, *ms))),
            Ask::Type(name) => {
                look(values, name).await.map(|kept| Reply::Word(kept.map_or("none", |_| "string")))
            }
        };
        answered.unwrap_or_else(|refusal| refusal)
    }

    /// Gets values for a caller who has asked for one after the other, without waiting for each: as many of the first as are fetched at a
    /// time, one at least. What follows has room when these are sent.
    pub(super) async fn get_some(&self, values: &Values, names: &[&Bytes]) -> Result<Vec<Reply>, Reply> {
        let asked: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
        let kept = values.look(&asked).await.map_err(told)?;
        let mut bytes = 0;
        let fit = kept.iter().take_while(|kept| {
            bytes += kept.map_or(0, |kept| kept.bytes());
            bytes <= FETCHED_AT_ONCE
        });
        let count = fit.count().max(1);
        self.get_kept(values, &kept[..count]).await
    }

    /// Gets values for one answer, which has to have room as a whole.
    async fn get_all(&self, values: &Values, names: &[Bytes]) -> Answer {
        let asked: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
        let kept = values.look(&asked).await.map_err(told)?;
        Ok(Reply::Array(self.get_kept(values, &kept).await?))
    }

    async fn get_kept(&self, values: &Values, kept: &[Option<Kept>]) -> Result<Vec<Reply>, Reply> {
        let mut found = self.fetch(values, kept.iter().flatten().copied()).await?.into_iter();
        let replies = kept.iter().map(|kept| kept.and_then(|_| found.next()).flatten());
        let replies: Vec<Reply> = replies.map(|value| value.map_or(Reply::Nil, Reply::Bulk)).collect();
        let hits = replies.iter().filter(|reply| **reply != Reply::Nil).count() as u64;
        add(&self.counters.redis_hits, hits);
        add(&self.counters.redis_misses, replies.len() as u64 - hits);
        Ok(replies)
    }

    /// Fetches values into the room that is there for them: they keep it until the last of these is dropped.
    async fn fetch(
        &self,
        values: &Values,
        kept: impl Iterator<Item = Kept>,
    ) -> Result<Vec<Option<Bytes>>, Reply> {
        let kept: Vec<Kept> = kept.collect();
        let bytes = kept.iter().map(Kept::bytes).fold(0, u64::saturating_add);
        let room = Arc::new(self.room(bytes).await?);
        let fetched = values.fetch(&kept).await.map_err(told)?;
        let in_room = |value| Bytes::from_owner(InRoom { value, _room: room.clone() });
        Ok(fetched.into_iter().map(|value| value.map(in_room)).collect())
    }

    async fn set(&self, values: &Values, set: &Set) -> Answer {
        let put = Put { when: set.when, life: set.life, ack: None };
        let mut outcome = values.put(&set.name, &set.value, put).await.map_err(told)?;
        for pause in ROOM_PAUSES_MS {
            // Frames that are being written or copied are free again in a moment, and clients of Redis take an error for the end.
            if outcome != PutOutcome::NotStored(StoreOutcome::Refused(Refusal::NoRoom)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            outcome = values.put(&set.name, &set.value, put).await.map_err(told)?;
        }
        let (done, before) = match outcome {
            PutOutcome::Done(before) => (true, before),
            PutOutcome::Unwanted(before) => (false, before),
            PutOutcome::NotStored(outcome) => return Err(not_stored(outcome, set.value.len())),
        };
        let reply = match set.says {
            Says::Done if done => Reply::OK,
            Says::Done => Reply::Nil,
            Says::Number => Reply::Integer(i64::from(done)),
            Says::Before => match before {
                Some(before) => {
                    self.fetch(values, [before].into_iter()).await?.remove(0).map_or(Reply::Nil, Reply::Bulk)
                }
                None => Reply::Nil,
            },
        };
        if done {
            self.tidy(values, before);
        }
        Ok(reply)
    }

    /// Sets values that callers have asked for one after the other, of names that differ, side by side.
    pub(super) async fn set_each(&self, values: &Values, sets: &[&Set]) -> Vec<Reply> {
        let mut replies = Vec::with_capacity(sets.len());
        for some in sets.chunks(PUTS) {
            let put = some
                .iter()
                .map(|set| async move { self.set(values, set).await.unwrap_or_else(|refusal| refusal) });
            replies.extend(join_all(put).await);
        }
        replies
    }

    async fn set_all(&self, values: &Values, pairs: &[(Bytes, Bytes)]) -> Answer {
        // Of a name that is there twice the last value counts.
        let last: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(name, value)| (name, value)).collect();
        let set = |(name, value): (&Bytes, &Bytes)| Set {
            name: name.clone(),
            value: value.clone(),
            when: Default::default(),
            life: Default::default(),
            says: Says::Done,
        };
        let sets: Vec<Set> = last.into_iter().map(set).collect();
        let replies = self.set_each(values, &sets.iter().collect::<Vec<_>>()).await;
        match replies.iter().position(|reply| *reply != Reply::OK) {
            None => Ok(Reply::OK),
            Some(first) => {
                let done = replies.iter().filter(|reply| **reply == Reply::OK).count();
                let why = if let Reply::Error(why) = &replies[first] { why.as_str() } else { "" };
                Err(Reply::Error(format!("{why} ({done} of {} keys were set)", replies.len())))
            }
        }
    }

    async fn drop_all(&self, values: &Values, names: &[Bytes]) -> Answer {
        let asked: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
        let dropped = values.forget(&asked).await.map_err(told)?;
        let silent = dropped.iter().filter(|dropped| dropped.is_none()).count();
        let gone: Vec<Kept> = dropped.into_iter().flatten().flatten().collect();
        let count = gone.len();
        self.tidy(values, gone);
        if silent > 0 {
            let why = format!("TRYAGAIN the nodes of {silent} keys did not answer: these may be there still");
            return Err(Reply::Error(why));
        }
        Ok(Reply::count(count))
    }

    /// Has values make room that nobody can ask for any more; not while there is much to tidy: they leave in their time then.
    fn tidy(&self, values: &Values, gone: impl IntoIterator<Item = Kept>) {
        let gone: Vec<Kept> = gone.into_iter().collect();
        let Ok(permit) = self.tidying.clone().try_acquire_owned() else { return };
        if gone.is_empty() {
            return;
        }
        let values = values.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = values.over(&gone).await {
                tracing::debug!(%error, "values were not told that they are over");
            }
        });
    }

    /// Counts what one reply says.
    pub(super) fn counted(&self, reply: &Reply) {
        count(&self.counters.redis_commands);
        if let Reply::Error(_) = reply {
            count(&self.counters.redis_errors);
        }
    }
}

async fn look(values: &Values, name: &Bytes) -> Result<Option<Kept>, Reply> {
    Ok(values.look(&[name]).await.map_err(told)?.pop().flatten())
}

async fn exists(values: &Values, names: &[Bytes]) -> Answer {
    let asked: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
    let kept: Vec<Kept> = values.look(&asked).await.map_err(told)?.into_iter().flatten().collect();
    let here = values.are_here(&kept).await.map_err(told)?;
    Ok(Reply::count(here.into_iter().filter(|here| *here).count()))
}

async fn list(values: &Values, scan: &Scan) -> Answer {
    let (names, next) = values.list(scan.cursor, scan.count).await.map_err(told)?;
    let is_asked = |name: &Vec<u8>| {
        !scan.nothing && scan.pattern.as_ref().is_none_or(|pattern| pattern::matches(pattern, name))
    };
    let names = names.into_iter().filter(is_asked).map(|name| Reply::Bulk(Bytes::from(name))).collect();
    Ok(Reply::Array(vec![Reply::text(next.unwrap_or(0).to_string()), Reply::Array(names)]))
}

fn left(kept: Option<Kept>, ms: bool) -> i64 {
    match kept.map(|kept| kept.left_ms()) {
        None => -2,
        Some(None) => -1,
        Some(Some(left)) => {
            let left = i64::try_from(left).unwrap_or(i64::MAX);
            // To the nearest second, as Redis tells it.
            if ms { left } else { left.saturating_add(500) / 1000 }
        }
    }
}

fn not_stored(outcome: StoreOutcome, bytes: usize) -> Reply {
    Reply::Error(match outcome {
        StoreOutcome::Refused(Refusal::TooLarge) => {
            format!("ERR a value of {bytes} bytes fits no frame of the node that would hold it (block_sizes)")
        }
        StoreOutcome::Refused(Refusal::NoRoom) => {
            "OOM every frame of its size is in use or held; try again".to_owned()
        }
        StoreOutcome::Refused(refusal) => format!("TRYAGAIN the value was not taken: {refusal:?}"),
        StoreOutcome::TooFewCopies { copies, wanted } => {
            format!("TRYAGAIN {copies} copies were made of the {wanted} that are to be")
        }
        StoreOutcome::Unreachable | StoreOutcome::Acknowledged { .. } => {
            "TRYAGAIN the value's node did not answer in time".to_owned()
        }
    })
}

fn told(error: ClientError) -> Reply {
    match error {
        ClientError::Misuse(_) | ClientError::UnknownTenant(_) => Reply::wrong(error),
        _ => Reply::Error(format!("TRYAGAIN {error}")),
    }
}
