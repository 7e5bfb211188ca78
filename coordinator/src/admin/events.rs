//! The journal of events over HTTP: pages, and a stream that goes on where a reader stopped. Every coordinator answers from
//! what it has applied itself, under the same numbers, so a reader goes on with whichever answers.

use super::answers::Trouble;
use super::page::number;
use super::routes::{Admin, Answer, Shared};
use crate::actors::mailbox::RaftMessage;
use crate::actors::vitals::Vitals;
use crate::control_plane::trouble;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use kvhive_control::EventPage;
use kvhive_protocol::{ClusterEvent, EventKind};
use kvhive_runtime::http::Problem;
use kvhive_runtime::stopped;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use utoipa::{IntoParams, ToSchema};

/// The most readers of the stream at a time.
const MAX_LISTENERS: usize = 64;
/// Events that a reader of the stream is sent at once; also those of a page for which nobody said how many.
const BATCH: usize = 128;
/// How often a reader is told that nothing happened: often enough that neither end takes the other for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long the raft actor may take to say what happened.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// What a reader sends that goes on: the number of the last event it has.
const LAST_EVENT_ID: &str = "last-event-id";

/// What the stream needs beside the raft actor.
pub(crate) struct Listeners {
    places: Arc<Semaphore>,
    newest: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

impl Listeners {
    /// Tells readers what `newest` says is new, until `stop`.
    pub(crate) fn new(newest: watch::Receiver<u64>, stop: watch::Receiver<bool>) -> Listeners {
        Listeners { places: Arc::new(Semaphore::new(MAX_LISTENERS)), newest, stop }
    }
}

/// Which events are asked for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Those after the one of this number; 0 for all that are remembered.
    #[serde(default, deserialize_with = "number::<_, u64, 0, 18446744073709551615>")]
    after: Option<u64>,
    /// At most so many.
    #[serde(default, deserialize_with = "number::<_, usize, 1, 1024>")]
    #[param(minimum = 1, maximum = 1024)]
    limit: Option<usize>,
    /// Only those of this kind; several separated by commas.
    kind: Option<String>,
}

/// `/v1/events`.
#[derive(Serialize, ToSchema)]
pub(super) struct EventList {
    /// In order.
    events: Vec<OneEvent>,
    /// What to ask for next: `?after=` this. Beyond the last event given where others of another kind were passed over.
    next_after: u64,
    /// The oldest that is remembered.
    oldest: u64,
    /// The newest that this coordinator knows.
    newest: u64,
    /// Some between `after` and the first given are not remembered any more.
    lost: bool,
}

/// One event.
#[derive(Serialize, ToSchema)]
pub(super) struct OneEvent {
    /// Its number; the same on every coordinator.
    sequence: u64,
    /// When, by the clock of the leader of then: milliseconds since 1970.
    at_ms: u64,
    /// The cluster map's version after it.
    epoch: u64,
    /// What kind of thing happened.
    kind: &'static str,
    /// About whom.
    subject: EventSubject,
    /// Numbers; the unit is last in the name.
    facts: BTreeMap<String, u64>,
    /// Why.
    reason: String,
}

/// Whom an event is about.
#[derive(Serialize, ToSchema)]
struct EventSubject {
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coordinator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    /// How many slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
    /// Some of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<u16>,
    /// The name of a pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
}

/// Lists what happened to the cluster and what was decided, with the reason. `limit` counts events looked at, whatever their kind.
#[utoipa::path(get, path = "/v1/events", params(EventQuery), responses((status = 200, body = EventList), (status = 503, body = Problem)))]
pub(super) async fn events(
    State(admin): Shared,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Answer<EventList> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    let (after, limit) = (query.after.unwrap_or(0), query.limit.unwrap_or(BATCH));
    let kinds = kinds(query.kind.as_deref())?;
    let page = page(&admin, after, limit).await?;
    let next_after = page.events.last().map_or(after, |event| event.sequence);
    Ok(Json(EventList {
        lost: page.lacks(after),
        events: page.events.iter().filter(|event| is_wanted(&kinds, event)).map(|event| one(event)).collect(),
        next_after,
        oldest: page.oldest,
        newest: page.newest,
    }))
}

/// Tells what happens from now on, or after a number, as server-sent events: each has the event's number as `id`, its kind as
/// `event` and the event as `data`. `gap` says that events are not remembered any more: `after`, `oldest`. A reader that breaks
/// off goes on with `Last-Event-ID`, at any coordinator. One that reads nothing for a minute is cut off.
#[utoipa::path(get, path = "/v1/events/stream", params(EventQuery, ("last-event-id" = Option<u64>, Header, description = "The last event that the reader has; comes before `after`")), responses((status = 200, content_type = "text/event-stream", description = "Events, as they happen"), (status = 503, body = Problem)))]
pub(super) async fn stream(
    State(admin): Shared,
    headers: HeaderMap,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Trouble> {
    let Query(query) = query.map_err(|error| Trouble::bad_request(error.body_text()))?;
    if query.limit.is_some() {
        return Err(Trouble::bad_request("a stream has no limit: leave it out".to_owned()));
    }
    let kinds = kinds(query.kind.as_deref())?;
    let after = match headers.get(LAST_EVENT_ID) {
        None => query.after.unwrap_or(0),
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.parse().ok());
            number.ok_or_else(|| {
                Trouble::bad_request(format!("{LAST_EVENT_ID} is not the number of an event"))
            })?
        }
    };
    let places = admin.listeners.places.clone();
    let place = places.try_acquire_owned().map_err(|_| {
        Trouble::unavailable(format!("{MAX_LISTENERS} readers follow events here: try another coordinator"))
    })?;
    if let Err(missing) = admin.sources.vitals.borrow().ready() {
        return Err(Trouble::unavailable(format!("this coordinator hears of nothing new: {missing}")));
    }
    // Asked once before the stream begins, so that a coordinator that cannot answer says so.
    let first = page(&admin, after, BATCH).await?;
    let mut reader = Reader {
        newest: admin.listeners.newest.clone(),
        vitals: admin.sources.vitals.clone(),
        stop: admin.listeners.stop.clone(),
        admin,
        kinds,
        after,
        ready: VecDeque::new(),
        _place: place,
    };
    reader.take(&first);
    let events = futures_util::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Who follows the stream. Events are looked up when the connection takes them: one that takes none costs no memory, and is
/// told of a gap if it comes back later than the journal reaches.
struct Reader {
    admin: Arc<Admin>,
    kinds: Option<Vec<EventKind>>,
    after: u64,
    ready: VecDeque<Event>,
    newest: watch::Receiver<u64>,
    vitals: watch::Receiver<Vitals>,
    stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    /// Returns what to send next; none when the stream ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Noted before it is asked: what comes meanwhile is asked for once more.
            self.newest.mark_unchanged();
            let page = page(&self.admin, self.after, BATCH).await.ok()?;
            if self.take(&page) {
                continue;
            }
            // One that is cut off hears of nothing: its reader is to go on with another.
            if !self.vitals.borrow_and_update().knows_leader {
                return None;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                changed = self.vitals.changed() => changed.ok()?,
                () = stopped(&mut self.stop) => return None,
            }
        }
    }

    /// Takes in a page; says whether there was anything on it.
    fn take(&mut self, page: &EventPage) -> bool {
        if page.lacks(self.after) && self.after > 0 {
            let gap = serde_json::json!({"after": self.after, "oldest": page.oldest});
            self.ready.push_back(Event::default().event("gap").data(gap.to_string()));
        }
        for event in &page.events {
            self.after = event.sequence;
            if is_wanted(&self.kinds, event) {
                let text = serde_json::to_string(&one(event)).expect("text and numbers always become JSON");
                let sent = Event::default().id(event.sequence.to_string()).event(event.note.kind.as_str());
                self.ready.push_back(sent.data(text));
            }
        }
        !page.events.is_empty()
    }
}

async fn page(admin: &Admin, after: u64, limit: usize) -> Result<EventPage, Trouble> {
    let asked = admin.sources.raft.ask(READ_LIMIT, |reply| RaftMessage::Events { after, limit, reply });
    asked.await.map_err(|error| trouble(error).into())
}

fn kinds(named: Option<&str>) -> Result<Option<Vec<EventKind>>, Trouble> {
    let Some(named) = named else { return Ok(None) };
    let kind = |name: &str| {
        EventKind::named(name.trim()).ok_or_else(|| {
            let name: String = name.chars().take(40).collect();
            let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
            Trouble::bad_request(format!("kind {name:?} does not exist; there are {}", all.join(", ")))
        })
    };
    named.split(',').map(kind).collect::<Result<Vec<_>, _>>().map(Some)
}

fn is_wanted(kinds: &Option<Vec<EventKind>>, event: &ClusterEvent) -> bool {
    kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.note.kind))
}

fn one(event: &ClusterEvent) -> OneEvent {
    let subject = &event.note.subject;
    OneEvent {
        sequence: event.sequence,
        at_ms: event.at_ms,
        epoch: event.epoch.0,
        kind: event.note.kind.as_str(),
        subject: EventSubject {
            member: subject.member.clone(),
            tenant: subject.tenant.clone(),
            coordinator: subject.coordinator.clone(),
            engine: subject.engine.clone(),
            slots: Some(subject.slots).filter(|slots| *slots > 0),
            examples: subject.examples.iter().map(|slot| slot.0).collect(),
            pin: subject.pin.clone(),
        },
        facts: event.note.facts.iter().cloned().collect(),
        reason: event.reason.to_string(),
    }
}
