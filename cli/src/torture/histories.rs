//! Histories of metadata: concurrent callers of the admin API, each call noted with when it was made, when it was answered and what the
//! answer was, judged when the run is over.

use super::ground::Ground;
use super::load::{Load, family};
use super::shared::Shared;
use crate::admin::{Admin, Unacknowledged};
use crate::problem;
use anyhow::Result;
use kvhive_oracle::Random;
use kvhive_oracle::linear::{Event, Object, Verdict, check};
use kvhive_oracle::objects::{Pin, PinCall, Tenant, TenantCall};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Callers side by side: a search takes longer by the power of how many there are.
const CALLERS: usize = 4;
/// After this long callers go on to new objects: an outcome that nobody knows is dragged along to the end of its object's history.
const ROUND: Duration = Duration::from_secs(15);
/// Objects of a round.
const TENANTS: u64 = 2;
const PINS: u64 = 2;
/// Between a caller's calls, in milliseconds.
const PAUSE_MS: u64 = 40;
/// Steps of one search.
const BUDGET: u64 = 5_000_000;
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// How long what was made is tried to be removed at the end.
const REMOVE_LIMIT: Duration = Duration::from_secs(30);

/// Calls of one object whose outcome may be unknown, roughly: the next callers go on with another.
const MOST_UNKNOWN: u32 = 3;
/// How long a caller rests after a call of which it heard nothing.
const REST: Duration = Duration::from_millis(200);

/// What was called, by object.
#[derive(Default)]
struct Calls {
    /// How many objects there were before the present one of a name.
    turns: BTreeMap<String, (u32, u32)>,
    tenants: BTreeMap<String, Vec<Event<TenantCall>>>,
    pins: BTreeMap<String, Vec<Event<PinCall>>>,
}

/// Callers that go on.
pub(super) struct Histories {
    calls: Arc<Mutex<Calls>>,
    callers: Vec<JoinHandle<()>>,
}

/// Histories that are over.
pub(super) struct Ended(Arc<Mutex<Calls>>);

/// What came of a call.
enum Outcome {
    Done(Value),
    /// It was refused for how things are: there is none, or there is one already.
    Refused,
    Unknown,
}

fn outcome(answer: Result<Value>) -> Outcome {
    match answer {
        Ok(value) => Outcome::Done(value),
        Err(error) if matches!(problem::status(&error), Some(404)) => Outcome::Refused,
        Err(error) if problem::code(&error) == Some("rejected") => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

impl Outcome {
    /// Says whether it was done, if that is known.
    fn is_done(&self) -> Option<bool> {
        match self {
            Outcome::Done(_) => Some(true),
            Outcome::Refused => Some(false),
            Outcome::Unknown => None,
        }
    }
}

/// One caller.
struct Caller {
    admin: Admin,
    shared: Arc<Shared>,
    calls: Arc<Mutex<Calls>>,
    random: Random,
    tenant: String,
}

impl Histories {
    /// Starts the callers.
    ///
    /// # Errors
    /// When the cluster's token cannot be read.
    pub(super) fn begin(shared: &Arc<Shared>, ground: &Ground, tenant: String) -> Result<Histories> {
        let calls = Arc::<Mutex<Calls>>::default();
        let mut callers = Vec::new();
        for number in 0..CALLERS {
            let caller = Caller {
                admin: ground.admin()?.waiting(Some(Duration::ZERO)).beginning_with(number),
                shared: shared.clone(),
                calls: calls.clone(),
                random: Random::new(shared.seed).part(400 + number as u64),
                tenant: tenant.clone(),
            };
            callers.push(std::thread::spawn(move || caller.run(number == 0)));
        }
        Ok(Histories { calls, callers })
    }

    /// Waits until the callers have ended, as the run has.
    pub(super) fn end(self, shared: &Shared) -> Ended {
        for caller in self.callers {
            // One that panicked has left its calls.
            if caller.join().is_err() {
                shared.found("a caller of the admin API panicked".to_owned());
            }
        }
        Ended(self.calls)
    }
}

impl Caller {
    fn run(mut self, tidies: bool) {
        let mut last = None;
        while !self.shared.is_ending() {
            let round = self.shared.elapsed().as_secs() / ROUND.as_secs();
            if tidies && last.replace(round).is_some_and(|last| last != round) {
                self.tidy(round - 1);
            }
            let stem = format!("{}r{round}-", family(self.shared.seed));
            let object = self.random.below(TENANTS + PINS);
            if object < TENANTS {
                let name = format!("{stem}t{object}");
                self.call_tenant(format!("{name}-{:03}", self.turn(&name)));
            } else {
                let name = format!("{stem}p{object}");
                self.call_pin(&name, self.turn(&name));
            }
            std::thread::sleep(Duration::from_millis(self.random.below(PAUSE_MS)));
        }
    }

    /// Removes the objects of a round that is over, as any other call.
    fn tidy(&mut self, round: u64) {
        let stem = format!("{}r{round}-", family(self.shared.seed));
        for object in 0..TENANTS + PINS {
            let name = format!("{stem}{}{object}", if object < TENANTS { "t" } else { "p" });
            for turn in 1..=self.turn(&name) {
                match object < TENANTS {
                    true => self.delete_tenant(format!("{name}-{turn:03}")),
                    false => self.remove_pin(format!("{name}-{turn:03}")),
                }
            }
        }
    }

    /// Returns which object of a name is the present one, from 1 on.
    fn turn(&self, name: &str) -> u32 {
        let calls = self.calls.lock().unwrap_or_else(|poison| poison.into_inner());
        calls.turns.get(name).map_or(1, |(turn, _)| turn + 1)
    }

    /// Counts a call of unknown outcome, and rests.
    fn note_unknown(&self, object: &str) {
        let mut calls = self.calls.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some((name, turn)) = object.rsplit_once('-') {
            let (turns, unknown) = calls.turns.entry(name.to_owned()).or_default();
            // Of one before it that is over this says nothing.
            if turn.parse() == Ok(*turns + 1) {
                *unknown += 1;
                if *unknown >= MOST_UNKNOWN {
                    (*turns, *unknown) = (*turns + 1, 0);
                }
            }
        }
        drop(calls);
        std::thread::sleep(REST);
    }

    /// Notes a call of one kind of objects, which has returned now if its outcome is known.
    fn note<C>(
        &self,
        of: fn(&mut Calls) -> &mut BTreeMap<String, Vec<Event<C>>>,
        name: String,
        (called, is_known): (u64, bool),
        call: C,
    ) {
        let returned = is_known.then(|| self.shared.tick());
        let mut calls = self.calls.lock().unwrap_or_else(|poison| poison.into_inner());
        of(&mut calls).entry(name.clone()).or_default().push(Event { called, returned, call });
        drop(calls);
        if !is_known {
            self.note_unknown(&name);
        }
    }

    fn note_tenant(&self, name: String, called: u64, is_known: bool, call: TenantCall) {
        self.note(|calls| &mut calls.tenants, name, (called, is_known), call);
    }

    fn note_pin(&self, name: String, called: u64, is_known: bool, call: PinCall) {
        self.note(|calls| &mut calls.pins, name, (called, is_known), call);
    }

    fn call_tenant(&mut self, name: String) {
        let draw = self.random.below(100);
        let quota = self.random.below(1 << 20) + 1;
        let path = format!("/v1/tenants/{name}");
        let called = self.shared.tick();
        match draw {
            0..25 => {
                let body = json!({ "name": name, "device_quota_bytes": quota });
                let made = outcome(self.admin.post("/v1/tenants", &body)).is_done();
                self.note_tenant(name, called, made.is_some(), TenantCall::Create { quota, made });
            }
            25..45 => {
                let set = outcome(self.admin.patch(&path, &json!({ "device_quota_bytes": quota })));
                let was_there = set.is_done();
                self.note_tenant(name, called, was_there.is_some(), TenantCall::Set { quota, was_there });
            }
            45..52 => {
                let answer = self.admin.post::<Value>(&format!("{path}/clear"), &json!({}));
                // Made, and not acknowledged: to which era is not said.
                let is_made = answer.as_ref().is_err_and(|error| error.is::<Unacknowledged>());
                let era = match outcome(answer) {
                    Outcome::Done(tenant) => Some(tenant["era"].as_u64()),
                    Outcome::Refused if !is_made => Some(None),
                    _ => None,
                };
                self.note_tenant(name, called, era.is_some(), TenantCall::Clear { era });
            }
            52..60 => self.delete_tenant(name),
            _ => {
                let seen = match outcome(self.admin.get(&path)) {
                    Outcome::Done(tenant) => Some((
                        tenant["device_quota_bytes"].as_u64(),
                        tenant["era"].as_u64().unwrap_or_default(),
                    )),
                    Outcome::Refused => None,
                    // A read that nobody heard says nothing and does nothing.
                    Outcome::Unknown => return,
                };
                self.note_tenant(name, called, true, TenantCall::Read { seen });
            }
        }
    }

    fn delete_tenant(&mut self, name: String) {
        let called = self.shared.tick();
        let was_there = outcome(self.admin.delete(&format!("/v1/tenants/{name}"))).is_done();
        self.note_tenant(name, called, was_there.is_some(), TenantCall::Delete { was_there });
    }

    fn call_pin(&mut self, stem: &str, turn: u32) {
        let name = format!("{stem}-{turn:03}");
        let called = self.shared.tick();
        match self.random.below(100) {
            0..35 => {
                let mark = called;
                let body = json!({
                    "name": name, "tenant": self.tenant, "keys": [KEY], "reason": mark.to_string(),
                });
                match outcome(self.admin.post("/v1/pins", &body)) {
                    // Refused it says nothing of the pin itself, and did nothing.
                    Outcome::Refused => {}
                    set => self.note_pin(name, called, set.is_done().is_some(), PinCall::Set { mark }),
                }
            }
            35..50 => self.remove_pin(name),
            _ => {
                // The first pin after the one before it, which `~` comes after.
                let path = format!("/v1/pins?limit=1&after={stem}-{:03}~", turn - 1);
                let Outcome::Done(page) = outcome(self.admin.get(&path)) else { return };
                let pin = &page["pins"][0];
                let mark = pin["reason"].as_str().and_then(|mark| mark.parse().ok());
                let seen = mark.filter(|_| pin["name"] == name);
                self.note_pin(name, called, true, PinCall::Read { seen });
            }
        }
    }

    fn remove_pin(&mut self, name: String) {
        let called = self.shared.tick();
        let was_there = outcome(self.admin.delete(&format!("/v1/pins/{name}"))).is_done();
        self.note_pin(name, called, was_there.is_some(), PinCall::Remove { was_there });
    }
}

impl Ended {
    /// Judges every history.
    pub(super) fn judge(&self, shared: &Shared) {
        let calls = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        for (name, events) in &calls.tenants {
            judge::<Tenant>(shared, name, events);
        }
        for (name, events) in &calls.pins {
            judge::<Pin>(shared, name, events);
        }
    }
}

fn judge<O: Object<Call: std::fmt::Debug>>(shared: &Shared, name: &str, events: &[Event<O::Call>]) {
    let verdict = check::<O>(events, BUDGET);
    let mut figures = shared.figures();
    figures.histories += 1;
    figures.history_calls += events.len() as u64;
    let said = match verdict {
        Verdict::Linearizable => return,
        Verdict::Refused { longest } => {
            figures.histories_refused += 1;
            format!("not linearizable: {longest} of {} calls can be put in order", events.len())
        }
        Verdict::Undecided => {
            figures.histories_undecided += 1;
            format!("undecided after {BUDGET} steps")
        }
    };
    drop(figures);
    shared.found(format!("the history of {name} is {said}"));
    let mut events: Vec<&Event<O::Call>> = events.iter().collect();
    events.sort_by_key(|event| event.called);
    for event in events {
        let returned = event.returned.map_or_else(|| "never".to_owned(), |at| at.to_string());
        eprintln!("    {} to {returned}: {:?}", event.called, event.call);
    }
}

/// Removes what the run has made, as far as the cluster lets it.
pub(super) fn remove(shared: &Shared, ground: &Ground, runtime: &tokio::runtime::Runtime, load: &Load) {
    let Ok(admin) = ground.admin() else { return };
    let (begun, stem) = (Instant::now(), family(shared.seed));
    let names = |list: &str| -> Vec<String> {
        let all = admin.get_list(&format!("/v1/{list}"), list).unwrap_or_default();
        let all = all[list].as_array().cloned().unwrap_or_default();
        let names = all.iter().filter_map(|one| one["name"].as_str().map(str::to_owned));
        names.filter(|name| name.starts_with(&stem)).collect()
    };
    for pin in names("pins") {
        // What is left is told below.
        let _ = admin.delete::<Value>(&format!("/v1/pins/{pin}"));
    }
    for tenant in names("tenants").iter().chain(&load.tenants()) {
        while begun.elapsed() < REMOVE_LIMIT && runtime.block_on(load.client().refresh()).is_ok() {
            if load.client().map().tenant(tenant).is_none()
                || admin.delete::<Value>(&format!("/v1/tenants/{tenant}")).is_ok()
            {
                break;
            }
        }
    }
    let left = [names("pins"), names("tenants")].concat();
    if !left.is_empty() {
        shared.say(&format!("left in the cluster: {}", left.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Refused;

    #[test]
    fn a_caller_that_panicked_is_found() {
        let shared = Shared::new(1, 1);
        let callers = vec![std::thread::spawn(|| {}), std::thread::spawn(|| panic!("on purpose"))];
        Histories { calls: Arc::default(), callers }.end(&shared);
        assert_eq!(shared.figures().findings, 1);
    }

    #[test]
    fn what_is_refused_for_how_things_are_is_known_and_all_else_is_not() {
        let refused = |answer: &str| outcome(Err(Refused::new("a said".to_owned(), answer).into())).is_done();
        assert_eq!(refused(r#"{"status": 404, "code": "not_found"}"#), Some(false));
        assert_eq!(refused(r#"{"status": 409, "code": "rejected"}"#), Some(false));
        assert_eq!(refused(r#"{"status": 409, "code": "stale_epoch"}"#), None);
        assert_eq!(refused(r#"{"status": 503, "code": "outcome_unknown"}"#), None);
        assert_eq!(outcome(Ok(Value::Null)).is_done(), Some(true));
    }
}
