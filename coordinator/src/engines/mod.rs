//! The serving engines that the coordinators follow: every coordinator hears every engine's cache events itself, so that any of
//! them can say where a request should go. What is decided is `kvhive_control::routing`'s; here are its hands.

mod follow;
pub(crate) mod format;
mod hive;
mod route;
pub(crate) mod zmtp;

use follow::Line;
use hive::Hive;
use kvhive_client::NodeTraces;
use kvhive_control::routing::{Busy, Feed, room};
use kvhive_protocol::engines::{Engine, EngineLoad, Followed, Known, NamedBy};
use kvhive_protocol::routing::{BlockHash, Prompt};
use kvhive_protocol::trace::TraceAsk;
use kvhive_protocol::{Moment, WireError};
use kvhive_runtime::Clock;
use kvhive_wire::Tls;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::{mpsc, watch};
use tracing::info;

/// Every engine by name, as the coordinators agree on.
pub(crate) type Agreed = Arc<BTreeMap<String, Engine>>;

/// The engines that this coordinator follows.
pub(crate) struct Engines {
    followed: RwLock<BTreeMap<String, Arc<One>>>,
    hive: Hive,
    /// Who wants to know how engines name blocks.
    names: Option<mpsc::Sender<Heard>>,
    clock: Arc<dyn Clock>,
}

/// A batch of an engine's events, for who publishes ours by the same names.
pub(crate) struct Heard {
    pub(crate) engine: Arc<Engine>,
    pub(crate) payload: Vec<u8>,
}

/// One engine that is followed.
pub(crate) struct One {
    pub(crate) engine: Arc<Engine>,
    names: Option<mpsc::Sender<Heard>>,
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
    fn new(engine: Engine, room: usize, names: Option<mpsc::Sender<Heard>>) -> One {
        let state = State {
            feed: Feed::new(room, engine.replay.is_some()),
            trouble: String::new(),
            ignored: 0,
            busy: Busy::default(),
        };
        One { engine: Arc::new(engine), names, state: Mutex::new(state) }
    }

    /// Tells who publishes block events what this engine says of its blocks. One that is busy misses it: such blocks are then told by
    /// their own keys.
    fn tell_names(&self, payload: &[u8]) {
        if let Some(names) = self.names.as_ref().filter(|_| self.engine.blocks.is_some()) {
            let _ = names.try_send(Heard { engine: self.engine.clone(), payload: payload.to_vec() });
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under it left a feed that the next connection repairs.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn shown(&self, now: Moment) -> Followed {
        let state = self.state();
        let counters = state.feed.counters();
        Followed {
            engine: (*self.engine).clone(),
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
        names: Option<mpsc::Sender<Heard>>,
        clock: Arc<dyn Clock>,
    ) -> Engines {
        Engines { followed: RwLock::default(), hive: Hive::new(coordinators, token, tls), names, clock }
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
            let stays = wanted.get(name) == Some(&*one.engine);
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
                    let one = Arc::new(One::new(engine.clone(), room, self.names.clone()));
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

    /// Says how many blocks from the first on kvhive has of an engine's prompt by its hashes: of the engine of this name, or of the only one
    /// whose blocks are named by hashes.
    ///
    /// # Errors
    /// When there is none, or more than one, or the nodes cannot be asked.
    pub(crate) async fn covered(&self, name: Option<&str>, hashes: Vec<BlockHash>) -> Result<u64, WireError> {
        let by_hashes =
            |one: &Arc<One>| one.engine.blocks.is_some_and(|blocks| blocks.named_by == NamedBy::Hashes);
        let one = match name {
            Some(name) => Some(self.one(name)?).filter(by_hashes),
            None => {
                let mut all: Vec<Arc<One>> = self.all().into_iter().filter(by_hashes).collect();
                // Alike in what names their blocks, they have the same ones.
                all.dedup_by(|one, other| route::place(&one.engine) == route::place(&other.engine));
                if all.len() > 1 {
                    return Err(WireError::rejected(format_args!(
                        "{} engines name blocks by hashes, each its own way: say which is meant",
                        all.len()
                    )));
                }
                all.pop()
            }
        };
        let blocks = one.as_ref().and_then(|one| one.engine.blocks);
        let (Some(one), Some(blocks)) = (one, blocks) else {
            return Err(WireError::rejected(format_args!(
                "no engine that is followed names its blocks in kvhive by hashes: see named_by of POST /v1/engines"
            )));
        };
        let prompt = Prompt::Hashes { hashes, tokens: 0 };
        let held = self.hive.held(&one.engine, &blocks, (&prompt, None)).await;
        let held = held.map_err(|why| WireError::busy(&why))?;
        Ok(held.tokens() / u64::from(blocks.layout.tokens.max(1)))
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
