//! The serving engines that the coordinators follow: every coordinator hears every engine's cache events itself, so that any of
//! them can say where a request should go. What is decided is `kvhive_control::routing`'s; here are its hands.

mod follow;
pub(crate) mod format;
mod heard;
mod hive;
pub(crate) mod raw;
mod route;
pub(crate) mod zmtp;

use follow::Line;
pub(crate) use heard::{Heard, Teller, telling};
use hive::Hive;
use kvhive_client::NodeTraces;
use kvhive_control::routing::{Busy, Feed, Hashes, MAX_INDEXED_BLOCKS, room};
use kvhive_protocol::engines::{Engine, EngineLoad, Followed, Known, NamedBy};
use kvhive_protocol::routing::{BlockHash, Prompt};
use kvhive_protocol::trace::TraceAsk;
use kvhive_protocol::{Moment, WireError};
use kvhive_runtime::Clock;
use kvhive_wire::Tls;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::watch;
use tracing::info;

/// Every engine by name, as the coordinators agree on.
pub(crate) type Agreed = Arc<BTreeMap<String, Engine>>;

/// The engines that this coordinator follows.
pub(crate) struct Engines {
    followed: RwLock<BTreeMap<String, Arc<One>>>,
    hive: Hive,
    /// Who wants to know how engines name blocks.
    names: Option<Teller>,
    /// Hashes that were forgotten for want of room, of lists that are here no longer too.
    forgotten: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

/// How large the lists of hashes in full are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HashFigures {
    /// Hashes that are known.
    pub(crate) known: u64,
    /// Hashes that may be known.
    pub(crate) room: u64,
    /// Hashes that were forgotten because no more may be known.
    pub(crate) dropped: u64,
}

/// One engine that is followed.
pub(crate) struct One {
    pub(crate) engine: Arc<Engine>,
    names: Option<Teller>,
    /// The hashes that name its blocks in kvhive, where such hashes do; those that share their names there share these.
    hashes: Option<Arc<Mutex<Hashes>>>,
    forgotten: Arc<AtomicU64>,
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
    fn new(
        engine: Engine,
        room: usize,
        names: Option<Teller>,
        hashes: Option<Arc<Mutex<Hashes>>>,
        forgotten: Arc<AtomicU64>,
    ) -> One {
        let state = State {
            feed: Feed::new(room, engine.replay.is_some()),
            trouble: String::new(),
            ignored: 0,
            busy: Busy::default(),
        };
        One { engine: Arc::new(engine), names, hashes, forgotten, state: Mutex::new(state) }
    }

    /// Takes in what a batch of its events says of names: for who publishes block events by the same, and for who asks by them.
    fn tell(&self, payload: &[u8]) {
        self.learn(payload);
        if let Some(names) = self.names.as_ref().filter(|_| self.engine.blocks.is_some()) {
            names.tell(&self.engine, payload);
        }
    }

    fn hashes(&self) -> Option<MutexGuard<'_, Hashes>> {
        // Each of its doors leaves it whole, or a hash that is not found.
        self.hashes.as_ref().map(|hashes| hashes.lock().unwrap_or_else(|poison| poison.into_inner()))
    }

    /// Changes its hashes, and counts those that have no room any more.
    fn change(&self, change: impl FnOnce(&mut Hashes)) {
        let Some(mut hashes) = self.hashes() else { return };
        let before = hashes.dropped();
        change(&mut hashes);
        self.forgotten.fetch_add(hashes.dropped() - before, Ordering::Relaxed);
    }

    /// Learns what hashes a batch of its events tells of.
    fn learn(&self, payload: &[u8]) {
        if self.hashes.is_none() {
            return;
        }
        let mut told: Vec<(_, Vec<(Vec<u8>, _)>)> = Vec::new();
        // What makes no sense is told where the batch is read.
        let _ = format::stored(payload, self.engine.block_tokens, |blocks| {
            let whole = blocks.hashes.iter().map(|hash| hash.bytes().into_owned());
            let parent = blocks.parent.as_ref().map(|parent| parent.engine());
            told.push((parent, whole.zip(blocks.contents()).collect()));
        });
        self.change(|hashes| {
            for (parent, blocks) in &told {
                hashes.learn(*parent, blocks.iter().map(|(hash, content)| (&hash[..], *content)));
            }
        });
    }

    /// Returns a prompt by what names its blocks in kvhive: where the engine's hashes do, by these in full, as far as any engine has told of them.
    fn named<'a>(&self, prompt: &'a Prompt) -> Cow<'a, Prompt> {
        match self.hashes().filter(|hashes| !hashes.is_empty()) {
            Some(hashes) => {
                let hashes = hashes.of(prompt, self.engine.block_tokens);
                Cow::Owned(Prompt::Hashes { hashes, tokens: 0 })
            }
            None => Cow::Borrowed(prompt),
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

/// Says whether an engine's hashes name its blocks in kvhive, one each.
fn is_named_by_hashes(engine: &Engine) -> bool {
    engine.blocks.is_some_and(|blocks| {
        blocks.named_by == NamedBy::Hashes && blocks.layout.tokens == engine.block_tokens
    })
}

impl Engines {
    /// Follows nobody yet. `coordinators`, `token` and `tls` are how kvhive's own blocks are asked for.
    pub(crate) fn new(
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<Tls>,
        names: Option<Teller>,
        clock: Arc<dyn Clock>,
    ) -> Engines {
        let hive = Hive::new(coordinators, token, tls);
        Engines { followed: RwLock::default(), hive, names, forgotten: Arc::default(), clock }
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
                    let alike =
                        followed.values().find(|one| route::place(&one.engine) == route::place(engine));
                    let known = alike.and_then(|one| one.hashes.clone());
                    let hashes = is_named_by_hashes(engine)
                        .then(|| known.unwrap_or_else(|| Arc::new(Mutex::new(Hashes::new(room)))));
                    let (names, forgotten) = (self.names.clone(), self.forgotten.clone());
                    let one = Arc::new(One::new(engine.clone(), room, names, hashes, forgotten));
                    lines.insert(name.clone(), Line::start(one.clone()));
                    followed.insert(name.clone(), one);
                }
            }
        }
        // Each that shares a list brings its own room.
        for one in followed.values() {
            // By those that are followed: one whose line has yet to end brings none.
            let shares = |other: &&Arc<One>| match (&one.hashes, &other.hashes) {
                (Some(own), Some(other)) => Arc::ptr_eq(own, other),
                _ => false,
            };
            let sharing = followed.values().filter(shares).count();
            one.change(|hashes| hashes.set_room(room.saturating_mul(sharing).min(MAX_INDEXED_BLOCKS)));
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

    /// Says how large the lists of hashes in full are, all together.
    pub(crate) fn hash_figures(&self) -> HashFigures {
        let dropped = self.forgotten.load(Ordering::Relaxed);
        let mut figures = HashFigures { dropped, ..HashFigures::default() };
        let mut counted = BTreeSet::new();
        for one in self.all() {
            // Several share one.
            if let (Some(of), Some(hashes)) = (&one.hashes, one.hashes())
                && counted.insert(Arc::as_ptr(of).addr())
            {
                figures.known += hashes.len() as u64;
                figures.room += hashes.room() as u64;
            }
        }
        figures
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
        let held = self.hive.held(&one.engine, &blocks, (&*one.named(&prompt), None)).await;
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

#[cfg(test)]
#[path = "hashes_test.rs"]
mod tests;
