//! Windows into the memory of nodes of this host: opened when somebody first asks such a node for large blocks, shut when it has gone. Where
//! something of it fails, blocks come over the connection as from anywhere, and it is not tried again for a while.

use kvhive_gpu::Window;
use kvhive_protocol::block::BlockDigest;
use kvhive_protocol::share::{HostId, NotShared, ShareAnswer, ShareOffer, SharedAt};
use kvhive_wire::{Handed, Visit, this_host};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What has failed, or was refused, is not tried again before.
const REST: Duration = Duration::from_secs(30);
/// Who is on another host stays there, unless its address gets another node.
const ELSEWHERE_REST: Duration = Duration::from_secs(600);
/// Memory is looked at by pieces of this size: the processor's cache still holds one when its digest is taken.
const PIECE_BYTES: usize = 256 << 10;
/// Addresses remembered at most; the map's members are far fewer.
const MAX_ADDRESSES: usize = 8192;

/// Why blocks came over a connection that might have been looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallback {
    /// The node lets nobody look, or nobody more.
    Refused,
    /// The node did not answer, or its door stayed closed.
    Closed,
    /// What was handed over is no memory that can be looked at safely.
    Unfit,
    /// What was copied is not the block: it was written over while it was looked at, or is damaged.
    Torn,
}

impl Fallback {
    /// All of them.
    pub const ALL: [Fallback; 4] = [Fallback::Refused, Fallback::Closed, Fallback::Unfit, Fallback::Torn];

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fallback::Refused => "refused",
            Fallback::Closed => "closed",
            Fallback::Unfit => "unfit",
            Fallback::Torn => "torn",
        }
    }
}

/// Windows into nodes' memory, by the nodes' addresses.
pub struct Windows {
    host: HostId,
    places: Mutex<HashMap<String, Place>>,
    bytes: AtomicU64,
    fallbacks: [AtomicU64; Fallback::ALL.len()],
}

enum Place {
    /// Somebody tries.
    Opening,
    Open {
        opened: Arc<Opened>,
        _watch: Watch,
    },
    Rests(Instant),
}

/// Shuts the windows when their node has gone. Ends with the windows.
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One node's memory, as long as somebody has this.
pub struct Opened {
    start: u64,
    slabs: HashMap<u64, Window>,
}

impl Opened {
    fn new(offer: &ShareOffer, handed: Vec<Handed<OwnedFd>>) -> Option<Opened> {
        let mut slabs = HashMap::with_capacity(handed.len());
        for one in handed {
            match Window::map(&one.file, one.bytes) {
                Ok(window) => slabs.insert(one.number, window),
                Err(error) => {
                    tracing::warn!(%error, "memory of a node is not looked at");
                    return None;
                }
            };
        }
        Some(Opened { start: offer.start, slabs })
    }

    /// Returns the start of the node that this is the memory of.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Copies what lies somewhere and returns its digest, which says whether it is what was to lie there. None where that is no place.
    pub fn copy(&self, from: SharedAt, into: &mut [u8]) -> Option<u64> {
        let window = self.slabs.get(&from.slab)?;
        let end = from.at.checked_add(into.len() as u64)?;
        if end > window.bytes() {
            return None;
        }
        let (mut digest, mut filled) = (BlockDigest::default(), 0);
        while filled < into.len() {
            let until = into.len().min(filled + PIECE_BYTES);
            if !window.copy(from.at + filled as u64, &mut into[filled..until]) {
                return None;
            }
            filled = until;
            digest.advance(&into[..filled]);
        }
        Some(digest.finish(into))
    }
}

/// What there is of a node's memory.
pub enum Sight<'a> {
    /// It is seen.
    Open(Arc<Opened>),
    /// It may be tried to be.
    MayOpen(Attempt<'a>),
    /// It is not.
    Shut,
}

/// Somebody tries to see a node's memory. Dropped without having done so, that rests.
pub struct Attempt<'a> {
    windows: &'a Arc<Windows>,
    address: &'a str,
    rest: Duration,
    why: Option<Fallback>,
}

impl Windows {
    /// Makes none yet. None where the system does not say which host this is.
    pub fn new() -> Option<Arc<Windows>> {
        let host = this_host()?;
        Some(Arc::new(Windows {
            host,
            places: Mutex::default(),
            bytes: AtomicU64::new(0),
            fallbacks: Default::default(),
        }))
    }

    /// Returns which host this is.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Returns what there is of the memory of the node at an address.
    pub fn sight<'a>(self: &'a Arc<Self>, address: &'a str) -> Sight<'a> {
        let mut places = self.places();
        match places.get(address) {
            Some(Place::Open { opened, .. }) => return Sight::Open(opened.clone()),
            Some(Place::Opening) => return Sight::Shut,
            Some(Place::Rests(until)) if Instant::now() < *until => return Sight::Shut,
            Some(Place::Rests(_)) => {}
            None if places.len() >= MAX_ADDRESSES => return Sight::Shut,
            None => {}
        }
        places.insert(address.to_owned(), Place::Opening);
        Sight::MayOpen(Attempt { windows: self, address, rest: REST, why: Some(Fallback::Closed) })
    }

    /// Has the memory of the node at an address not be looked at for a while.
    pub fn rest(&self, address: &str, why: Fallback) {
        let rests = Place::Rests(Instant::now() + REST);
        self.places().insert(address.to_owned(), rests);
        self.fell_back(why);
    }

    /// Says that so many bytes were copied out of them.
    pub fn copied(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says why something came over a connection.
    pub fn fell_back(&self, why: Fallback) {
        self.fallbacks[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many bytes were copied out of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how often something came over a connection, for a reason.
    pub fn fallbacks(&self, why: Fallback) -> u64 {
        self.fallbacks[why as usize].load(Ordering::Relaxed)
    }

    /// Returns how many nodes' memory is seen.
    pub fn open(&self) -> usize {
        self.places().values().filter(|place| matches!(place, Place::Open { .. })).count()
    }

    /// Forgets every address but these: members that are gone from the map.
    pub fn retain(&self, mut wanted: impl FnMut(&str) -> bool) {
        self.places().retain(|address, _| wanted(address));
    }

    /// Shuts the windows of a node that has gone. Another may have its address already.
    fn shut(&self, address: &str, opened: &Weak<Opened>) {
        let mut places = self.places();
        let is_it = |place: &Place| match place {
            Place::Open { opened: now, .. } => std::ptr::eq(Arc::as_ptr(now), opened.as_ptr()),
            _ => false,
        };
        if places.get(address).is_some_and(is_it) {
            places.remove(address);
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        // Nothing is left half-done under this lock.
        self.places.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Attempt<'_> {
    /// Says that the node does not speak of this.
    pub fn is_unknown(mut self) {
        self.rest = ELSEWHERE_REST;
        self.why = None;
    }

    /// Goes by what the node answered. Returns its memory if it let this process look, and all went well by the deadline.
    pub async fn go(mut self, answer: ShareAnswer, deadline: Instant) -> Option<Arc<Opened>> {
        let offer = match answer {
            ShareAnswer::Offered(offer) => offer,
            ShareAnswer::Not(NotShared::Elsewhere) => {
                self.is_unknown();
                return None;
            }
            ShareAnswer::Not(_) => {
                self.why = Some(Fallback::Refused);
                return None;
            }
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        let (visit, handed) = match Visit::pay(&offer, limit).await {
            Ok(handed) => handed,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.why = Some(Fallback::Unfit);
                }
                tracing::debug!(%error, address = self.address, "a node's door stays closed");
                return None;
            }
        };
        self.why = Some(Fallback::Unfit);
        let opened = Arc::new(Opened::new(&offer, handed)?);
        let watch = self.watch(visit, &opened);
        let place = Place::Open { opened: opened.clone(), _watch: watch };
        self.windows.places().insert(self.address.to_owned(), place);
        Some(opened)
    }

    fn watch(&self, mut visit: Visit, opened: &Arc<Opened>) -> Watch {
        let (windows, address, opened) =
            (Arc::downgrade(self.windows), self.address.to_owned(), Arc::downgrade(opened));
        Watch(tokio::spawn(async move {
            visit.ended().await;
            // Its memory is nobody's now, and takes room for as long as this process looks at it.
            if let Some(windows) = windows.upgrade() {
                windows.shut(&address, &opened);
            }
        }))
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut places = self.windows.places();
        if let Some(place @ Place::Opening) = places.get_mut(self.address) {
            *place = Place::Rests(Instant::now() + self.rest);
            drop(places);
            if let Some(why) = self.why {
                self.windows.fell_back(why);
            }
        }
    }
}
