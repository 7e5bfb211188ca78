//! Keeps a node's snapshot: takes in the one that stands when the node begins to serve, writes a new one every so often, and
//! the last one when the node ends in order. A snapshot that was not taken in is never replaced, and one of which much was left
//! out is put aside: they have what the node lacks.

use super::{Extent, Holdings, Loaded, PersistError, PersistProgress, Saved, beside, folder, load, save};
use crate::config::PersistConfig;
use crate::data::{add, count};
use crate::view::Serving;
use kvhive_runtime::stopped;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

/// How often it is looked whether the node serves, by which map, and whether a device has lost its blocks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long disks are waited for that are being looked at.
const DISK_LIMIT: Duration = Duration::from_secs(300);
/// How long after one slot has come the next is waited for while there are blocks of others: after a restart a node's slots come
/// back in groups, each when its blocks have been copied.
const SLOTS_LIMIT: Duration = Duration::from_secs(1800);
/// After a snapshot was taken in, it is not taken in again for so many times as long as that took.
const BREATHER: u32 = 4;
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
    /// It was taken in, or none is there, when devices had been made anew so often. Much of it was left out if the next one
    /// `keeps` it.
    TakenIn { restarts: u64, keeps: bool },
    /// It cannot be taken in, or blocks of it never can.
    Refused { why: String },
}

/// A node that waits for slots of which there are blocks.
struct Awaited {
    /// What it held when it looked last.
    held: BTreeSet<usize>,
    /// The times between which one that comes is heeded.
    from: Instant,
    until: Instant,
}

/// Keeps one node's snapshot.
pub(crate) struct Keeper {
    holdings: Holdings,
    config: PersistConfig,
    standing: Mutex<Standing>,
}

/// How many damaged blocks of each snapshot are counted already.
#[derive(Default)]
struct KnownDamage {
    own: u64,
    before: u64,
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
            self.stand(Standing::Pending);
            let mut known = KnownDamage::default();
            let mut awaited = self.take_in(restarts, &mut known).await;
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
                match &awaited {
                    Some(slots) if self.has_come(slots) => awaited = self.take_in(restarts, &mut known).await,
                    Some(slots) if slots.until <= Instant::now() => awaited = None,
                    _ => {}
                }
            }
        }
    }

    /// Takes in the snapshot once the node serves, then what was put aside of one before it. Says which slots are waited for, if
    /// there are blocks of others.
    async fn take_in(&self, restarts: u64, known: &mut KnownDamage) -> Option<Awaited> {
        self.disks_are_known().await;
        let begun = Instant::now();
        let (held, own) = match self.patiently().await {
            Ok(taken_in) => taken_in,
            Err(error) => {
                self.refuse(error.to_string());
                return None;
            }
        };
        if own.other_secret + own.too_large > 0 {
            self.refuse(format!(
                "{} of its blocks were written under another secret and {} are larger than this node's frames",
                own.other_secret, own.too_large
            ));
            return None;
        }
        self.tell(&own, &self.config.folder, &mut known.own);
        let before = self.take_in_before(&mut known.before).await;
        self.stand(Standing::TakenIn { restarts, keeps: own.leaves_much() });
        let now = Instant::now();
        (own.elsewhere + before.elsewhere > 0).then(|| Awaited {
            held,
            from: now + (now - begun) * BREATHER,
            until: now + SLOTS_LIMIT,
        })
    }

    /// Waits until it is known what lies on disk: before, no block goes down there, and a full memory has no room for all of its own.
    async fn disks_are_known(&self) {
        let until = Instant::now() + DISK_LIMIT;
        while Instant::now() < until && self.holdings.stores.iter().any(|store| store.is_coming()) {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Loads the node's own snapshot, if one stands, however often that has to be tried. Returns the slots that the node held then, too.
    async fn patiently(&self) -> Result<(BTreeSet<usize>, Loaded), PersistError> {
        let mut pause = PAUSE_LEAST;
        loop {
            // Before: one that comes meanwhile counts as one that has come.
            let held = own_slots(&self.serving().await);
            match load(&self.holdings, &self.config.folder, None, &mut |_| {}).await {
                Ok(loaded) => return Ok((held, loaded)),
                Err(PersistError::Io { path, source }) if is_absent(&path, &source) => {
                    info!(folder = %self.config.folder.display(), "no snapshot stands");
                    return Ok((held, Loaded::default()));
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
                Err(error) => return Err(error),
            }
        }
    }

    /// Loads what was put aside, which goes when little of it is left out; it stays as it is when that fails.
    async fn take_in_before(&self, known_damaged: &mut u64) -> Loaded {
        let path = self.before();
        if !path.exists() {
            return Loaded::default();
        }
        let loaded = load(&self.holdings, &path, None, &mut |_| {}).await;
        let loaded = loaded.inspect(|loaded| self.tell(loaded, &path, known_damaged));
        let dealt_with = match loaded {
            Ok(loaded) if loaded.leaves_much() => {
                warn!(
                    folder = %path.display(),
                    no_room = loaded.no_room, elsewhere = loaded.elsewhere, damaged = loaded.damaged,
                    "a snapshot that was not taken in whole before leaves much out still; it is taken in again at the next start, until \
                     `kvhive node snapshots --remove before`"
                );
                Ok(loaded)
            }
            Ok(loaded) => beside::remove(&path).await.map(|()| loaded),
            Err(error) => Err(error),
        };
        dealt_with.unwrap_or_else(|error| {
            warn!(%error, "what was put aside of an earlier snapshot stays");
            count(&self.holdings.counters.snapshot_failures);
            Loaded::default()
        })
    }

    /// Says whether the node holds a slot that it did not hold.
    fn has_come(&self, awaited: &Awaited) -> bool {
        let serving = self.holdings.view.leased();
        awaited.from <= Instant::now()
            && serving.is_ok_and(|serving| !own_slots(&serving).is_subset(&awaited.held))
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

    fn tell(&self, loaded: &Loaded, folder: &Path, known_damaged: &mut u64) {
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
            folder = %folder.display(),
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
        // What one pass finds damaged the next one finds again, and more where slots have come whose blocks were not read before.
        add(&self.holdings.counters.snapshot_damaged_blocks, damaged.saturating_sub(*known_damaged));
        *known_damaged = damaged.max(*known_damaged);
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
        name.map_or_else(|| own.clone(), |name| beside::folder(own, name))
    }

    /// Returns where a snapshot goes of which much was left out.
    fn before(&self) -> PathBuf {
        beside::folder(&self.config.folder, beside::BEFORE)
    }

    /// Writes what the node holds to its own folder, unless that would replace a snapshot that was not taken in.
    pub(super) async fn save(
        &self,
        extent: Extent,
        progress: &mut (dyn FnMut(PersistProgress) + Send),
    ) -> Result<Saved, PersistError> {
        let path = &self.config.folder;
        let restarts = self.holdings.restarts();
        let (keeps, why) = match self.standing() {
            Standing::TakenIn { restarts: at, keeps } if at == restarts => (keeps, None),
            Standing::TakenIn { .. } => (false, Some("a device was made anew since".to_owned())),
            Standing::Pending => (false, Some("it is still being taken in".to_owned())),
            Standing::Refused { why } => (false, Some(why)),
        };
        if let Some(why) = why.filter(|_| folder::stands(path)) {
            return Err(PersistError::NotTakenIn { path: path.clone(), why });
        }
        let before = self.before();
        let aside = keeps.then_some(&*before).filter(|before| !before.exists());
        if keeps && aside.is_none() {
            warn!(
                folder = %path.display(), before = %before.display(),
                "a snapshot that was not taken in whole is replaced, for an earlier one is kept still"
            );
        }
        let saved = save(&self.holdings, path, aside, extent, progress).await?;
        if keeps {
            // What stands now is what the node holds.
            self.stand(Standing::TakenIn { restarts, keeps: false });
        }
        Ok(saved)
    }
}

fn is_absent(path: &Path, source: &io::Error) -> bool {
    source.kind() == io::ErrorKind::NotFound && folder::is_manifest(path)
}

fn own_slots(serving: &Serving) -> BTreeSet<usize> {
    let own = |set: &kvhive_protocol::ReplicaSet| set.0.iter().any(|device| device.member == serving.member);
    serving.map.slots.iter().enumerate().filter(|(_, set)| own(set)).map(|(slot, _)| slot).collect()
}
