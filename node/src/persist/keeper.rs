//! Keeps a node's snapshot: takes in the one that stands when the node begins to serve, writes a new one every so often, and
//! the last one when the node ends in order. A snapshot that was not taken in is never replaced: it has what the node lacks.

use super::{Extent, Holdings, Loaded, PersistError, PersistProgress, Saved, folder, load, save};
use crate::config::PersistConfig;
use crate::data::{add, count};
use crate::view::Serving;
use kvhive_runtime::stopped;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

/// How often it is looked whether the node serves, by which map, and whether a device has lost its blocks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long blocks of slots that this node does not hold are waited for: after a restart its slots come back one by one.
const SLOTS_LIMIT: Duration = Duration::from_secs(120);
/// The shortest pause before what did not work out is tried again; doubled each time.
const PAUSE_LEAST: Duration = Duration::from_millis(250);
/// The longest.
const PAUSE_MOST: Duration = Duration::from_secs(60);

/// How the node stands to the snapshot that is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Standing {
    /// Not all of it is taken in yet.
    #[default]
    Pending,
    /// It was taken in, or none is there, when devices had been made anew so often.
    TakenIn { restarts: u64 },
    /// It cannot be taken in, or not all of it.
    Refused { why: String },
}

/// Keeps one node's snapshot.
pub(crate) struct Keeper {
    holdings: Holdings,
    config: PersistConfig,
    standing: Mutex<Standing>,
}

impl Keeper {
    pub(crate) fn new(holdings: Holdings, config: PersistConfig) -> Keeper {
        Keeper { holdings, config, standing: Mutex::default() }
    }

    /// Runs until `stop` turns true.
    pub(crate) async fn run(&self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep() => {}
            () = stopped(&mut stop) => {}
        }
    }

    async fn keep(&self) {
        let mut due = self.config.every.map(|every| Instant::now() + every);
        loop {
            // A device that is made anew from here on has lost its blocks: the snapshot has what it had of them.
            let restarts = self.holdings.restarts();
            self.take_in().await;
            while restarts == self.holdings.restarts() {
                let look = Instant::now() + LOOK_EVERY;
                sleep_until(due.map_or(look, |due| due.min(look))).await;
                if let (Some(every), Some(at)) = (self.config.every, due)
                    && at <= Instant::now()
                {
                    // From its beginning: how long it takes does not make the next one later.
                    due = Some(Instant::now() + every);
                    self.write().await;
                }
            }
        }
    }

    /// Takes the snapshot in once the node serves, and again what its slots did not admit as they come back.
    async fn take_in(&self) {
        let restarts = self.holdings.restarts();
        self.stand(Standing::Pending);
        let mut pause = PAUSE_LEAST;
        let mut until = None;
        loop {
            let held = own_slots(&self.serving().await);
            match load(&self.holdings, &self.config.folder, None, &mut |_| {}).await {
                Ok(loaded) => {
                    self.tell(&loaded, until.is_none());
                    let until = *until.get_or_insert_with(|| Instant::now() + SLOTS_LIMIT);
                    if loaded.elsewhere > 0 && self.gains_slots(&held, until).await {
                        continue;
                    }
                    if loaded.other_secret + loaded.too_large == 0 {
                        return self.stand(Standing::TakenIn { restarts });
                    }
                    let why = format!(
                        "{} of its blocks were written under another secret and {} are larger than this node's frames",
                        loaded.other_secret, loaded.too_large
                    );
                    return self.refuse(why);
                }
                Err(PersistError::Io { path, source }) if is_absent(&path, &source) => {
                    info!(folder = %self.config.folder.display(), "no snapshot stands; the node begins empty");
                    return self.stand(Standing::TakenIn { restarts });
                }
                Err(PersistError::NotServing) => sleep(LOOK_EVERY).await,
                Err(
                    error
                    @ (PersistError::Busy { .. } | PersistError::InUse { .. } | PersistError::Io { .. }),
                ) => {
                    warn!(%error, again_in = ?pause, "the snapshot is not taken in yet");
                    count(&self.holdings.counters.snapshot_failures);
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MOST);
                }
                Err(error) => return self.refuse(error.to_string()),
            }
        }
    }

    fn refuse(&self, why: String) {
        error!(
            folder = %self.config.folder.display(),
            why,
            "the snapshot was not taken in; it stays as it is, and none is written, until it is moved away or the node is \
             restarted so that it can be taken in"
        );
        count(&self.holdings.counters.snapshot_failures);
        self.stand(Standing::Refused { why });
    }

    fn stand(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, loaded: &Loaded, is_first: bool) {
        let Loaded {
            blocks,
            bytes,
            already,
            ended,
            elsewhere,
            other_secret,
            too_large,
            other_layout,
            no_room,
            damaged,
        } = *loaded;
        info!(
            blocks,
            bytes,
            already,
            ended,
            elsewhere,
            other_secret,
            too_large,
            other_layout,
            no_room,
            damaged,
            "snapshot taken in"
        );
        add(&self.holdings.counters.snapshot_loaded_blocks, blocks);
        if is_first {
            add(&self.holdings.counters.snapshot_damaged_blocks, damaged);
        }
    }

    /// Waits until the node serves.
    async fn serving(&self) -> Serving {
        let view = &self.holdings.view;
        loop {
            match view.leased() {
                Ok(serving) => return serving,
                Err(_) => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits until the node holds a slot that it did not hold; says whether that came in time.
    async fn gains_slots(&self, held: &BTreeSet<usize>, until: Instant) -> bool {
        while Instant::now() < until {
            if !own_slots(&self.serving().await).is_subset(held) {
                return true;
            }
            sleep(LOOK_EVERY).await;
        }
        false
    }

    /// Writes what the node holds, unless that would replace a snapshot that was not taken in. An older one stands when it fails.
    pub(crate) async fn write(&self) {
        if self.holdings.view.serving().is_none() {
            // It never served, so it holds nothing.
            return;
        }
        match self.save(Extent::Memory, &mut |_| {}).await {
            Ok(Saved { blocks, bytes, resumed }) => {
                info!(blocks, bytes, resumed, "snapshot written");
                count(&self.holdings.counters.snapshots);
            }
            Err(error) => {
                warn!(%error, "no snapshot was written; the one before it stands");
                count(&self.holdings.counters.snapshot_failures);
            }
        }
    }

    pub(super) fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// Returns the folder of the node's snapshot, or of the one of this name beside it.
    pub(super) fn folder(&self, name: Option<&str>) -> PathBuf {
        let own = &self.config.folder;
        name.map_or_else(|| own.clone(), |name| folder::beside(own, &format!("@{name}")))
    }

    /// Writes what the node holds to its own folder, unless that would replace a snapshot that was not taken in.
    pub(super) async fn save(
        &self,
        extent: Extent,
        progress: &mut (dyn FnMut(PersistProgress) + Send),
    ) -> Result<Saved, PersistError> {
        let path = &self.config.folder;
        let why = match self.standing() {
            Standing::TakenIn { restarts } if restarts == self.holdings.restarts() => None,
            Standing::TakenIn { .. } => Some("a device was made anew since".to_owned()),
            Standing::Pending => Some("it is still being taken in".to_owned()),
            Standing::Refused { why } => Some(why),
        };
        if let Some(why) = why.filter(|_| folder::stands(path)) {
            return Err(PersistError::NotTakenIn { path: path.clone(), why });
        }
        save(&self.holdings, path, extent, progress).await
    }
}

fn is_absent(path: &std::path::Path, source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::NotFound && folder::is_manifest(path)
}

fn own_slots(serving: &Serving) -> BTreeSet<usize> {
    let own = |set: &kvhive_protocol::ReplicaSet| set.0.iter().any(|device| device.member == serving.member);
    serving.map.slots.iter().enumerate().filter(|(_, set)| own(set)).map(|(slot, _)| slot).collect()
}
