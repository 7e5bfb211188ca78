//! A node's guests with their bytes: the thin hand around [`Guests`], and the bound on their memory, whoever holds it.

use kvhive_cache::{GuestKey, Guests, Visit};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::Accept;
use kvhive_protocol::{BlockHeader, BlockKey, ClusterMap, Era, MemberId, Moment, Slot, TenantId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use zeroize::Zeroizing;

/// Bytes that one guest takes besides its own.
const BESIDES: u64 = 512;
/// The most memory that guests may be given.
pub(crate) const MAX_BYTES: u64 = 1 << 40;
/// Fetches from replicas under way at a time.
const FETCHES: usize = 64;

/// A guest. Its room is free when nobody holds it any more, be it kept or not.
pub(crate) struct Guest {
    pub(crate) header: BlockHeader,
    /// Overwritten with zeros when nobody holds it any more.
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// Who waits for a guest is told what came.
pub(crate) type Waiting = oneshot::Receiver<Option<Arc<Guest>>>;

type Rules = Guests<Arc<Guest>, oneshot::Sender<Option<Arc<Guest>>>>;

/// What came of asking for a guest.
pub(crate) enum Asked {
    /// It is here.
    Here(Arc<Guest>),
    /// Others have it fetched.
    Joined(Waiting),
    /// Whoever asked is to have it fetched.
    Fetch(Waiting),
    /// It is a miss.
    Miss,
}

/// The guests of one node.
pub(crate) struct GuestBook {
    rules: Mutex<Rules>,
    /// One permit a KiB.
    room: Arc<Semaphore>,
    limit_kib: u32,
    /// One permit a fetch.
    pub(crate) fetches: Arc<Semaphore>,
    /// What may come to a GPU, and by what it is known here.
    awaited: Mutex<HashMap<Arrival, GuestKey>>,
}

/// A block that a member was asked for, which it may send to a GPU.
type Arrival = (MemberId, TenantId, Era, BlockKey);

/// Guests that may come to a GPU for as long as somebody has this.
pub(crate) struct Awaited<'a> {
    book: &'a GuestBook,
    arrivals: Vec<Arrival>,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let mut awaited = self.book.awaited();
        for arrival in &self.arrivals {
            awaited.remove(arrival);
        }
    }
}

impl GuestBook {
    /// Keeps guests in so many bytes, at most [`MAX_BYTES`]; none keeps none.
    pub(crate) fn within(bytes: u64) -> Option<GuestBook> {
        let limit_kib = (bytes.min(MAX_BYTES) / 1024) as u32;
        (limit_kib > 0).then(|| GuestBook {
            rules: Mutex::new(Guests::within(u64::from(limit_kib) * 1024)),
            room: Arc::new(Semaphore::new(limit_kib as usize)),
            limit_kib,
            fetches: Arc::new(Semaphore::new(FETCHES)),
            awaited: Mutex::default(),
        })
    }

    /// Takes what comes to a GPU from a member for these guests; none where one of them is awaited from there already.
    pub(crate) fn awaits(
        &self,
        from: MemberId,
        keys: impl Iterator<Item = GuestKey> + Clone,
    ) -> Option<Awaited<'_>> {
        let arrival = |key: GuestKey| (from, key.tenant, key.era, key.key);
        let mut awaited = self.awaited();
        if keys.clone().any(|key| awaited.contains_key(&arrival(key))) {
            return None;
        }
        awaited.extend(keys.clone().map(|key| (arrival(key), key)));
        drop(awaited);
        Some(Awaited { book: self, arrivals: keys.map(arrival).collect() })
    }

    /// Returns which guests blocks are that a member sends to a GPU; none where one of them is not awaited from there so.
    pub(crate) fn awaited_as<'a>(
        &self,
        from: MemberId,
        headers: impl Iterator<Item = &'a BlockHeader>,
    ) -> Option<Vec<GuestKey>> {
        let awaited = self.awaited();
        let is_read =
            |key: &GuestKey, header: &BlockHeader| key.accept == Accept::Stored || header.codec == Codec::Raw;
        headers
            .map(|header| {
                let key = awaited.get(&(from, header.tenant, header.era, header.key)).copied()?;
                is_read(&key, header).then_some(key)
            })
            .collect()
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<Arrival, GuestKey>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a map in which this node is `member`. Returns the guests that have ended, whose memory is overwritten and free as they are
    /// dropped: not to be done where anybody waits.
    #[must_use]
    pub(crate) fn adopt(&self, map: &ClusterMap, member: MemberId) -> Vec<Arc<Guest>> {
        self.rules().adopt(map, member)
    }

    /// Asks for guests of slots, all by the same map.
    pub(crate) fn ask(&self, now: Moment, keys: impl Iterator<Item = (GuestKey, Slot)>) -> Vec<Asked> {
        let mut rules = self.rules();
        keys.map(|(key, slot)| match rules.ask(now, key, slot) {
            Visit::Here(guest) => Asked::Here(guest),
            Visit::Coming => Asked::Joined(wait(&mut rules, &key)),
            Visit::Fetch => Asked::Fetch(wait(&mut rules, &key)),
            Visit::Miss => Asked::Miss,
        })
        .collect()
    }

    /// Takes room for a guest of so many bytes; others leave for it. None where too much is held by those who read.
    pub(crate) fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.saturating_add(BESIDES).div_ceil(1024)).unwrap_or(u32::MAX);
        if kib > self.limit_kib {
            return None;
        }
        let mut left = 0;
        loop {
            if let Ok(room) = self.room.clone().try_acquire_many_owned(kib) {
                return Some(room);
            }
            // As much as is wanted and no more: what is still read frees nothing yet.
            if left >= u64::from(kib) {
                return None;
            }
            let (guest, bytes) = self.rules().evict()?;
            left += bytes.saturating_add(BESIDES).div_ceil(1024);
            drop(guest);
        }
    }

    /// Has those who wait for a guest have it; says whether it was still to come.
    pub(crate) fn came(&self, key: &GuestKey, guest: Guest) -> bool {
        let guest = Arc::new(guest);
        let waiting = self.rules().came(key, guest.clone(), guest.header.payload_bytes);
        let was_coming = waiting.is_some();
        for one in waiting.into_iter().flatten() {
            // Who waits no longer has it from elsewhere.
            let _ = one.send(Some(guest.clone()));
        }
        was_coming
    }

    /// Tells those who wait for a guest that it does not come.
    pub(crate) fn lacked(&self, now: Moment, key: &GuestKey) {
        let waiting = self.rules().lacked(now, key);
        for one in waiting {
            let _ = one.send(None);
        }
    }

    /// Returns how many are kept, their bytes, and the bytes that all guests take that are kept, held or coming.
    pub(crate) fn kept(&self) -> (usize, u64, u64) {
        let (kept, bytes) = self.rules().kept();
        let free = u32::try_from(self.room.available_permits()).unwrap_or(u32::MAX);
        (kept, bytes, u64::from(self.limit_kib.saturating_sub(free)) * 1024)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait(rules: &mut Rules, key: &GuestKey) -> Waiting {
    let (tell, told) = oneshot::channel();
    // Where it is not coming, or too many wait, the other end is dropped, and that says so.
    drop(rules.wait(key, tell));
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::data::Ack;
    use kvhive_protocol::map::{ReplicaSet, Settings, Tenant};
    use kvhive_protocol::{ClusterId, DeviceId, LayoutFingerprint, SLOTS};
    use tokio::sync::oneshot::error::TryRecvError;

    const SLOT: Slot = Slot(1);

    /// A map by which all slots are another's.
    fn map() -> ClusterMap {
        let settings = Settings {
            replicas: 1,
            segment_blocks: 16,
            ack: Ack::Primary,
            lease_ms: 2000,
            heartbeat_ms: 200,
            serving_lease_ms: 2000,
        };
        let mut map = ClusterMap::founded(ClusterId(1), "test", settings);
        let other = ReplicaSet(vec![DeviceId::new(MemberId(2), 0)]);
        map.slots = Arc::new(vec![other; usize::from(SLOTS)]);
        let tenant =
            Tenant { name: "default".into(), secret: [1; 32], era: Era(1), rules: Default::default() };
        map.tenants.insert(TenantId(1), tenant);
        map
    }

    fn book(bytes: u64) -> GuestBook {
        let map = map();
        let book = GuestBook::within(bytes).expect("it has room");
        assert!(book.adopt(&map, MemberId(1)).is_empty());
        book
    }

    fn key(number: u8) -> GuestKey {
        let key = BlockKey::from_bytes([number; 32]);
        GuestKey { tenant: TenantId(1), era: Era(1), key, accept: Accept::Stored }
    }

    fn guest(number: u8, bytes: usize, room: OwnedSemaphorePermit) -> Guest {
        let header = BlockHeader {
            key: key(number).key,
            fingerprint: LayoutFingerprint::default(),
            tenant: TenantId(1),
            era: Era(1),
            depth: 0,
            codec: Codec::Raw,
            payload_bytes: bytes as u64,
            digest: 0,
        };
        Guest { header, bytes: Zeroizing::new(vec![number; bytes]), _room: room }
    }

    fn ask(book: &GuestBook, number: u8) -> Asked {
        book.ask(Moment::ZERO, [(key(number), SLOT)].into_iter()).remove(0)
    }

    /// Has a guest of 3 KiB, of which three fit, be fetched; false where there is no room.
    fn fetch(book: &GuestBook, number: u8) -> bool {
        assert!(matches!(ask(book, number), Asked::Fetch(_)));
        match book.room(3 << 10) {
            Some(room) => {
                assert!(book.came(&key(number), guest(number, 3 << 10, room)));
                true
            }
            None => {
                book.lacked(Moment::ZERO, &key(number));
                false
            }
        }
    }

    #[test]
    fn guests_leave_for_others_and_those_that_are_read_take_room_until_they_are_not() {
        let book = book(12 << 10);
        assert!((0..3).all(|number| fetch(&book, number)));
        assert_eq!(book.kept(), (3, 9 << 10, 12 << 10));
        let held: Vec<Asked> = (0..3).map(|number| ask(&book, number)).collect();
        assert!(held.iter().all(|one| matches!(one, Asked::Here(_))));
        assert!(!fetch(&book, 3), "all room is held by who reads");
        drop(held);
        assert!(fetch(&book, 4));
        let (_, _, taken) = book.kept();
        assert!(taken <= 12 << 10, "{taken}");
        assert!(book.room(12 << 10).is_none(), "it would not fit beside what a guest takes besides");
    }

    #[test]
    fn guests_of_an_ended_era_are_overwritten_by_whoever_took_the_map_over_when_it_has_time() {
        let book = book(12 << 10);
        assert!((0..3).all(|number| fetch(&book, number)));
        let mut cleared = map();
        cleared.tenants.clear();
        let ended = book.adopt(&cleared, MemberId(1));
        assert_eq!(ended.len(), 3, "nothing was dropped under the lock");
        assert_eq!(book.kept(), (0, 0, 12 << 10), "their memory is taken until they are overwritten");
        drop(ended);
        assert_eq!(book.kept(), (0, 0, 0));
    }

    #[test]
    fn who_would_be_one_too_many_to_wait_is_told_at_once() {
        let book = book(12 << 10);
        let Asked::Fetch(mut first) = ask(&book, 1) else { panic!("it is not here") };
        let mut told: Vec<Waiting> = (0..1000)
            .map(|_| match ask(&book, 1) {
                Asked::Joined(told) => told,
                _ => panic!("it is being fetched"),
            })
            .collect();
        let is_told = |one: &mut Waiting| !matches!(one.try_recv(), Err(TryRecvError::Empty));
        assert!(!is_told(&mut first));
        assert!(told.iter_mut().any(is_told) && !told.iter_mut().all(is_told));
    }

    #[test]
    fn what_comes_to_a_gpu_is_a_guest_while_it_is_awaited_from_there_and_can_be_read() {
        let book = book(12 << 10);
        let held = |number: u8, codec: Codec| {
            let room = book.room(1).expect("there is room");
            BlockHeader { codec, ..guest(number, 1, room).header }
        };
        let (raw, encoded) = (held(1, Codec::Raw), held(1, Codec::Lossless));
        let (from, other) = (MemberId(7), MemberId(8));
        let asked = |of: MemberId, headers: &[BlockHeader]| book.awaited_as(of, headers.iter());
        assert_eq!(asked(from, &[raw]), None);
        let first = book.awaits(from, [key(1)].into_iter()).expect("nobody does yet");
        assert_eq!(asked(from, &[raw]), Some(vec![key(1)]));
        assert_eq!(asked(from, &[encoded]), Some(vec![key(1)]));
        assert_eq!(asked(other, &[raw]), None, "another was not asked for it");
        assert_eq!(asked(from, &[raw, held(2, Codec::Raw)]), None, "all or none");
        let other_era = BlockHeader { era: Era(2), ..raw };
        assert_eq!(asked(from, &[other_era]), None);
        // Whoever asks meanwhile for the same has it sent.
        let layout = kvhive_protocol::Layout {
            layers: 1,
            kv_heads: 1,
            head_dim: 8,
            tokens: 1,
            dtype: kvhive_protocol::Dtype::F16,
            order: kvhive_protocol::AxisOrder::LayersFirst,
        };
        let decoded = GuestKey { accept: Accept::Raw(layout), ..key(1) };
        assert!(book.awaits(from, [key(3), decoded].into_iter()).is_none());
        drop(first);
        assert_eq!(asked(from, &[raw]), None);
        let _second = book.awaits(from, [decoded].into_iter()).expect("nobody does any more");
        assert_eq!(asked(from, &[raw]), Some(vec![decoded]));
        assert_eq!(asked(from, &[encoded]), None, "its asker does not decode");
    }

    #[test]
    fn all_memory_that_may_be_configured_is_used() {
        for bytes in [1 << 20, 1 << 38, 1 << 39, MAX_BYTES] {
            assert_eq!(book(bytes).room.available_permits() as u64 * 1024, bytes);
        }
    }

    #[test]
    fn all_who_wait_are_told() {
        let book = book(12 << 10);
        let (Asked::Fetch(mut first), Asked::Joined(mut second)) = (ask(&book, 1), ask(&book, 1)) else {
            panic!("one fetches, the other waits");
        };
        let room = book.room(1).expect("there is room");
        assert!(book.came(&key(1), guest(1, 1, room)));
        let room = book.room(1).expect("there is room");
        assert!(!book.came(&key(1), guest(1, 1, room)), "it has come by another way");
        for told in [&mut first, &mut second] {
            let came = told.try_recv().expect("it was told").expect("it came");
            assert_eq!(came.bytes[..], [1]);
        }
        let Asked::Fetch(mut third) = ask(&book, 2) else { panic!("it is not here") };
        book.lacked(Moment::ZERO, &key(2));
        assert!(third.try_recv().expect("it was told").is_none());
        assert!(matches!(ask(&book, 2), Asked::Miss));
    }
}
