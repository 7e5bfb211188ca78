//! The serving engines that the coordinators follow: every coordinator hears every engine's cache events itself, so that any of
//! them can say where a request should go. What is decided is `kvhive_control::routing`'s; here are its hands.

mod follow;
mod format;
mod hive;
mod route;
mod zmtp;

use follow::Line;
use hive::Hive;
use kvhive_client::NodeTraces;
use kvhive_control::routing::{Busy, Feed, room};
use kvhive_protocol::engines::{Engine, EngineLoad, Followed, Known};
use kvhive_protocol::trace::TraceAsk;
use kvhive_protocol::{Moment, WireError};
use kvhive_runtime::Clock;
use kvhive_wire::Tls;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::watch;
use tracing::info;

/// Every engine by name, as the coordinators agree on.
pub(crate) type Agreed = Arc<BTreeMap<String, Engine>>;

/// The engines that this coordinator follows.
pub(crate) struct Engines {
    followed: RwLock<BTreeMap<String, Arc<One>>>,
    hive: Hive,
    clock: Arc<dyn Clock>,
}

/// One engine that is followed.
pub(crate) struct One {
    pub(crate) engine: Engine,
    state: Mutex<State>,
}

/// What is known of one engine.
pub(crate) struct State {
    pub(crate) feed: Feed,
    pub(crate) trouble: String,
    pub(crate) ignored: u64,
    pub(crate) busy: Busy,
}

impl One {
    fn new(engine: Engine, room: usize) -> One {
        let state = State {
            feed: Feed::new(room, engine.replay.is_some()),
            trouble: String::new(),
            ignored: 0,
            busy: Busy::default(),
        };
        One { engine, state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under it left a feed that the next connection repairs.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn shown(&self, now: Moment) -> Followed {
        let state = self.state();
        let counters = state.feed.counters();
        Followed {
            engine: self.engine.clone(),
            known: state.known(),
            load: state.busy.load(now),
            trouble: state.trouble.clone(),
            batches: counters.batches,
            gaps: counters.gaps,
            given_up: counters.given_up,
            dropped: state.feed.index().dropped(),
            ignored: state.ignored,
        }
    }
}

impl State {
    pub(crate) fn known(&self) -> Known {
        Known {
            is_connected: self.feed.is_connected(),
            is_exact: self.feed.is_exact(),
            blocks: self.feed.index().len() as u64,
            sequence: self.feed.newest(),
        }
    }
}

impl Engines {
    /// Follows nobody yet. `coordinators`, `token` and `tls` are how kvhive's own blocks are asked for.
    pub(crate) fn new(
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<Tls>,
        clock: Arc<dyn Clock>,
    ) -> Engines {
        Engines { followed: RwLock::default(), hive: Hive::new(coordinators, token, tls), clock }
    }

    /// Follows whom the coordinators agree on, until `stop`.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut agreed: watch::Receiver<Agreed>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut lines: BTreeMap<String, Line> = BTreeMap::new();
        loop {
            let wanted = agreed.borrow_and_update().clone();
            self.follow(&wanted, &mut lines);
            tokio::select! {
                changed = agreed.changed() => if changed.is_err() { return },
                () = kvhive_runtime::stopped(&mut stop) => return,
            }
        }
    }

    fn follow(&self, wanted: &BTreeMap<String, Engine>, lines: &mut BTreeMap<String, Line>) {
        let room = room(wanted.len());
        let mut followed = self.followed.write().unwrap_or_else(|poison| poison.into_inner());
        followed.retain(|name, one| {
            let stays = wanted.get(name) == Some(&one.engine);
            if !stays {
                // Its line ends with its handle.
                lines.remove(name);
                info!(engine = %name, "followed no longer");
            }
            stays
        });
        for (name, engine) in wanted {
            match followed.get(name) {
                Some(one) => one.state().feed.set_room(room),
                None => {
                    info!(engine = %name, events = %engine.events, "following its events");
                    let one = Arc::new(One::new(engine.clone(), room));
                    lines.insert(name.clone(), Line::start(one.clone()));
                    followed.insert(name.clone(), one);
                }
            }
        }
    }

    fn one(&self, name: &str) -> Result<Arc<One>, WireError> {
        let followed = self.followed.read().unwrap_or_else(|poison| poison.into_inner());
        followed.get(name).cloned().ok_or_else(|| {
            let name: String = name.chars().take(64).collect();
            WireError::rejected(format_args!(
                "no engine is called {name:?}; GET /v1/engines lists those that are followed"
            ))
        })
    }

    fn all(&self) -> Vec<Arc<One>> {
        self.followed.read().unwrap_or_else(|poison| poison.into_inner()).values().cloned().collect()
    }

    /// Returns every engine that is followed, and what is known of it.
    pub(crate) fn list(&self) -> Vec<Followed> {
        let now = self.clock.now();
        self.all().iter().map(|one| one.shown(now)).collect()
    }

    /// Asks the nodes what they have kept of traced requests; an error in words.
    pub(crate) async fn traces(&self, ask: TraceAsk) -> Result<Vec<NodeTraces>, String> {
        self.hive.traces(ask).await
    }

    /// Takes down how busy an engine says that it is.
    ///
    /// # Errors
    /// When there is none of this name, or it says what cannot be.
    pub(crate) fn set_load(&self, name: &str, load: EngineLoad) -> Result<Followed, WireError> {
        load.check()?;
        let one = self.one(name)?;
        let now = self.clock.now();
        one.state().busy.reported(now, load);
        Ok(one.shown(now))
    }
}
