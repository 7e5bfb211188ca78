//! Guests: blocks of slots that this node is no replica of, which it has fetched from one for a client near it, once for all who want them.
//! What is kept of them is [`crate::book`]'s to say. A miss here says nothing of what replicas have: whoever asks turns to these.

use crate::book::{Asked, Guest, Waiting};
use crate::data::check;
use crate::data::counters::{Counters, add, count};
use crate::data::decode::Held;
use crate::data::fetch::Found;
use crate::data::plane::DataPlane;
use crate::links::{Fetching, Links};
use crate::view::{Serving, View};
use kvhive_cache::GuestKey;
use kvhive_client::{Fallback, Opened};
use kvhive_protocol::data::{
    Accept, DataRequest, FetchRequest, GuestRequest, MAX_BLOCKS_PER_TRANSFER, PullRequest, Run,
};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::share::Looked;
use kvhive_protocol::{
    ClusterMap, DeviceId, Era, KeyList, Level, MemberId, Slot, TenantId, TraceContext, WireError,
};
use kvhive_spans::Span;
use kvhive_wire::Fault;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

/// A replica that has not sent what it was asked for within this is given up. Whoever asks may wait for less.
const LIMIT: Duration = Duration::from_secs(2);

impl DataPlane {
    /// Finds guests, has those fetched that are not here, and waits for them.
    pub(super) async fn visit(
        &self,
        span: &Span,
        (role, deadline): (Role, Instant),
        request: GuestRequest,
    ) -> Result<Found, WireError> {
        let begun = Instant::now();
        // A node asks replicas alone: so nobody asks in a circle.
        if role != Role::Client {
            return Err(WireError::Forbidden { role: role.to_string(), what: "ask for guests".to_owned() });
        }
        let GuestRequest { fetch, limit_ms } = request;
        let FetchRequest { epoch, device, tenant, runs, keys, accept } = fetch;
        count(&self.counters.fetches);
        check::sizes(&runs, keys.len(), MAX_BLOCKS_PER_TRANSFER)?;
        let serving = self.view.serves(role)?;
        check::admits(&serving, epoch, device, tenant, &[])?;
        let map = &serving.map;
        let is_own = |run: &Run| map.replicas(run.slot).0.iter().any(|of| of.member == serving.member);
        if runs.iter().any(is_own) {
            // One of both goes by an older map.
            return Err(WireError::StaleEpoch { epoch: map.epoch });
        }
        let book = self.view.guests.as_ref();
        let book =
            book.ok_or_else(|| WireError::NotCarried { why: "this node keeps no guests".to_owned() })?;
        let era = map.tenants.get(&tenant).map(|tenant| tenant.era).unwrap_or_default();
        let wanted: Vec<(GuestKey, Slot)> = keys
            .iter()
            .zip(check::slots(&runs))
            .map(|(key, slot)| (GuestKey { tenant, era, key, accept }, slot))
            .collect();
        let asked = book.ask(self.view.now(), wanted.iter().copied());
        let mut found = Vec::with_capacity(asked.len());
        let mut waiting: Vec<(usize, Waiting, bool)> = Vec::new();
        let mut errands: BTreeMap<Option<DeviceId>, VecDeque<(GuestKey, Slot)>> = BTreeMap::new();
        for (at, (one, wanted)) in asked.into_iter().zip(wanted).enumerate() {
            let here = match one {
                Asked::Here(guest) => Some(Held::Guest(guest)),
                Asked::Joined(told) => {
                    waiting.push((at, told, true));
                    None
                }
                Asked::Fetch(told) => {
                    waiting.push((at, told, false));
                    errands.entry(source(map, wanted.1)).or_default().push_back(wanted);
                    None
                }
                Asked::Miss => None,
            };
            add(&self.counters.guests_here, u64::from(here.is_some()));
            found.push(here);
        }
        let mut fetching = span.part("fetch guests");
        fetching.note("kvhive.blocks", errands.values().map(VecDeque::len).sum::<usize>());
        for (source, left) in errands {
            let errand = Errand {
                view: self.view.clone(),
                counters: self.counters.clone(),
                serving: serving.clone(),
                left,
            };
            let turn = book.fetches.clone().try_acquire_owned();
            // Without a turn or a replica the errand ends here, and says so to all who wait.
            if let (Some(source), Ok(turn)) = (source, turn) {
                let (links, trace) = (self.replicator.links.clone(), fetching.context());
                // Not this asker's alone: it goes on when this one has gone.
                tokio::spawn(errand.run(links, source, (tenant, era, accept), trace, turn));
            }
        }
        let until = deadline.min(begun + Duration::from_millis(u64::from(limit_ms)).min(LIMIT));
        for (at, told, is_joined) in waiting {
            if let Ok(Ok(Some(guest))) = timeout_at(until, told).await {
                let counter = match is_joined {
                    true => &self.counters.guests_joined,
                    false => &self.counters.guests_fetched,
                };
                count(counter);
                found[at] = Some(Held::Guest(guest));
            }
        }
        let missed = found.iter().filter(|one| one.is_none()).count();
        add(&self.counters.guests_missed, missed as u64);
        fetching.note("kvhive.missed", missed);
        drop(fetching);
        // Not while it waits for another node: others could be sent theirs meanwhile.
        let bytes = found.iter().flatten().map(|held| held.bytes().len() as u64).sum();
        let turn = match bytes {
            0 => None,
            bytes => Some(self.turn(span, tenant, Some(bytes), deadline).await?),
        };
        Ok(Found::guests(begun, found, turn))
    }
}

impl DataPlane {
    /// Returns a device of this node whose GPU has room for guests and may be a pair with another node's.
    fn gpu_for_guests(&self, source: DeviceId) -> Option<DeviceId> {
        let member = self.view.serving()?.member;
        let links = &self.replicator.links;
        let own = (0..self.devices().len() as u16).map(|index| DeviceId::new(member, index));
        own.into_iter().find(|own| self.passing(*own).is_some() && links.is_pair(*own, source))
    }

    /// Notes what was copied out of another node's memory. One whose blocks are not where it says is not looked at for a while.
    fn has_looked(&self, serving: &Serving, member: MemberId, (bytes, is_torn): (u64, bool)) {
        let Some((windows, member)) = self.windows.as_ref().zip(serving.map.members.get(&member)) else {
            return;
        };
        windows.copied(bytes);
        if is_torn {
            windows.rest(&member.data_address, Fallback::Torn);
        }
    }
}

/// Returns who is asked for blocks of a slot: its first replica that lacks nothing, which clients would ask.
fn source(map: &ClusterMap, slot: Slot) -> Option<DeviceId> {
    let filling = map.filling.get(&slot);
    let lacks = |device: &DeviceId| filling.is_some_and(|filling| filling.devices.contains(device));
    map.replicas(slot).0.iter().copied().find(|device| !lacks(device))
}

/// The memory of the replica that is asked.
struct Sight<'a> {
    opened: &'a Opened,
    copied: u64,
    /// Something that was looked at is not what was to be there.
    is_torn: bool,
}

/// Blocks that one replica is to be asked for. Whatever becomes of it, those who wait for them are told.
struct Errand {
    view: Arc<View>,
    counters: Arc<Counters>,
    serving: Serving,
    /// Those that have not come yet, in the order in which they are asked for.
    left: VecDeque<(GuestKey, Slot)>,
}

impl Drop for Errand {
    fn drop(&mut self) {
        while let Some((key, _)) = self.left.pop_front() {
            self.lacks(&key);
        }
    }
}

impl Errand {
    async fn run(
        mut self,
        links: Arc<Links>,
        source: DeviceId,
        of: (TenantId, Era, Accept),
        trace: Option<TraceContext>,
        turn: OwnedSemaphorePermit,
    ) {
        let until = Instant::now() + LIMIT;
        let fetched = timeout_at(until, self.fetch(&links, source, of, trace, until)).await;
        if let Err(fault) = fetched.unwrap_or(Err(Fault::Timeout(LIMIT))) {
            count(&self.counters.guest_failures);
            tracing::debug!(%source, %fault, "guests were not fetched");
        }
        drop(turn);
    }

    async fn fetch(
        &mut self,
        links: &Links,
        source: DeviceId,
        (tenant, era, accept): (TenantId, Era, Accept),
        trace: Option<TraceContext>,
        until: Instant,
    ) -> Result<(), Fault> {
        let mut runs: Vec<Run> = Vec::new();
        for (_, slot) in &self.left {
            match runs.last_mut().filter(|run| run.slot == *slot) {
                Some(run) => run.keys += 1,
                None => runs.push(Run { slot: *slot, keys: 1 }),
            }
        }
        let keys: KeyList = self.left.iter().map(|(wanted, _)| wanted.key).collect();
        let (epoch, blocks) = (self.serving.map.epoch, keys.len());
        let fetch = FetchRequest { epoch, device: source, tenant, runs, keys, accept };
        let asked = (&self.serving, trace);
        let is_understood = self.serving.map.level >= Level::DAYS;
        let plane = links.plane().filter(|_| is_understood);
        let opened = match &plane {
            Some(plane) => plane.sight_of(&self.serving, source.member).await,
            None => None,
        };
        // As long as this is here, what comes to the GPU is known to be wanted.
        let to = plane.as_ref().and_then(|plane| plane.gpu_for_guests(source));
        let awaited = self.view.guests.as_ref().filter(|_| to.is_some());
        let awaited =
            awaited.and_then(|book| book.awaits(source.member, self.left.iter().map(|(key, _)| *key)));
        let request = match is_understood {
            true => DataRequest::Pull(Box::new(PullRequest {
                fetch,
                start: opened.as_ref().map(|opened| opened.start()),
                to: to.filter(|_| awaited.is_some()),
            })),
            false => DataRequest::Fetch(fetch),
        };
        let mut fetching = links.fetch(asked, source, &request, until).await?;
        drop(awaited);
        let mut sight = opened.as_deref().map(|opened| Sight { opened, copied: 0, is_torn: false });
        let found = fetching.take_blocks();
        if found.len() != blocks {
            return Err(Fault::Protocol(WireError::malformed(format_args!(
                "{} blocks were answered for {blocks}",
                found.len()
            ))));
        }
        for one in found {
            let Some((wanted, _)) = self.left.front().copied() else { break };
            match self.take(&mut fetching, (one, &mut sight), &wanted, (tenant, era)).await? {
                Some(guest) => {
                    let bytes = guest.header.payload_bytes;
                    // It may have come to the GPU too.
                    if self.view.guests.as_ref().is_some_and(|book| book.came(&wanted, guest)) {
                        self.counters.guest_came(bytes);
                    }
                }
                None => self.lacks(&wanted),
            }
            self.left.pop_front();
        }
        if let Some((plane, sight)) = plane.zip(sight) {
            plane.has_looked(&self.serving, source.member, (sight.copied, sight.is_torn));
        }
        fetching.end(epoch).await
    }

    /// Takes one block in and checks it. None for what is not to be had.
    async fn take(
        &self,
        fetching: &mut Fetching,
        (found, sight): (Looked, &mut Option<Sight<'_>>),
        wanted: &GuestKey,
        (tenant, era): (TenantId, Era),
    ) -> Result<Option<Guest>, Fault> {
        let (header, at) = match found {
            Looked::At(header, at) => (header, Some(at)),
            Looked::Sent(header) => (header, None),
            // It may have come to the GPU.
            Looked::Miss => return Ok(None),
        };
        // One that goes by another map may have it in another era.
        let is_it = header.key == wanted.key && header.tenant == tenant && header.era == era;
        let book = self.view.guests.as_ref().filter(|_| is_it);
        let Some(room) = book.and_then(|book| book.room(header.payload_bytes)) else {
            if at.is_none() {
                fetching.skip(header.payload_bytes).await?;
            }
            return Ok(None);
        };
        let mut bytes = Zeroizing::new(vec![0; header.payload_bytes as usize]);
        match (at, sight) {
            (Some(at), Some(sight)) => {
                if sight.opened.copy(at, &mut bytes) != Some(header.digest) {
                    // Written over meanwhile, or damaged: whoever wants it asks the replicas.
                    sight.is_torn = true;
                    return Ok(None);
                }
                sight.copied += header.payload_bytes;
            }
            (Some(_), None) => {
                let told = format_args!("a place was told to one who looks at none");
                return Err(Fault::Protocol(WireError::malformed(told)));
            }
            (None, _) => {
                if fetching.read(&mut bytes).await? != header.digest {
                    count(&self.counters.corrupt_blocks);
                    return Ok(None);
                }
            }
        }
        Ok(Some(Guest { header, bytes, _room: room }))
    }

    fn lacks(&self, key: &GuestKey) {
        if let Some(book) = &self.view.guests {
            book.lacked(self.view.now(), key);
        }
    }
}
