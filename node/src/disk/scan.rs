//! Finding records again: the page of every record is read, a bounded number at a time, and kept in few bytes; those that count
//! are read once more when they are taken in. Of two records of one block the later counts; parents come before their children.

use super::figures::{Bad, add};
use super::key_folder::KeyName;
use super::place::is_no_answer;
use super::record::{PageError, RecordHeader, TenantMark};
use super::store::Store;
use futures_util::future::join_all;
use kvhive_protocol::{BlockHeader, Era, TenantId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

/// Pages read at a time.
const AT_A_TIME: u32 = 64;

/// A whole page of a tenant that is, in its present era.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) class: usize,
    pub(crate) header: RecordHeader,
}

/// Where such a page is. A disk has many of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    /// Of whose block it is. Two blocks of one print are one here: of a billion it costs one.
    print: u64,
    /// When it was written; in its lowest byte the class.
    written: u64,
    number: u32,
    depth: u32,
}

const _: () = assert!(size_of::<Spot>() == 24);

impl Spot {
    fn of(class: usize, header: &RecordHeader) -> Spot {
        let RecordHeader { number, sequence, block, .. } = header;
        let BlockHeader { tenant, key, depth, .. } = &block.header;
        let mut bytes = [0; 36];
        bytes[..4].copy_from_slice(&tenant.0.to_le_bytes());
        // A key is a tenant's own: another's record of it is another block.
        bytes[4..].copy_from_slice(key.as_bytes());
        let written = (*sequence).min(u64::MAX >> 8) << 8 | class as u64;
        Spot { print: xxh3_64(&bytes), written, number: *number, depth: *depth }
    }

    fn class(&self) -> usize {
        usize::from(self.written as u8)
    }
}

/// Returns the bytes that a scan of so many records takes at most.
pub(crate) fn scan_bytes(records: u32) -> u64 {
    u64::from(records) * size_of::<Spot>() as u64
}

/// What a scan has seen so far, counted when it has seen all.
struct Seen {
    spots: Vec<Spot>,
    bad: [u64; Bad::ALL.len()],
    ended: u64,
    last: u64,
}

impl Store {
    /// Finds the records of these tenants' present eras. None when the disk left a question without an answer: a record that was not
    /// looked at is not a free place.
    pub(crate) async fn scan(
        self: &Arc<Self>,
        tenants: &BTreeMap<TenantId, (Era, TenantMark)>,
    ) -> Option<Vec<Spot>> {
        let within = |class| {
            self.records_within(class).unwrap_or_else(|error| {
                warn!(%error, "a file of records cannot be looked at");
                0
            })
        };
        let records: Vec<u32> = (0..self.records().len()).map(within).collect();
        let most = records.iter().map(|records| *records as usize).sum();
        let mut seen = Seen { spots: Vec::with_capacity(most), bad: [0; Bad::ALL.len()], ended: 0, last: 0 };
        for (class, records) in records.into_iter().enumerate() {
            for from in (0..records).step_by(AT_A_TIME as usize) {
                let numbers = from..records.min(from + AT_A_TIME);
                for (number, page) in self.look_at(numbers.map(|number| (class, number))).await? {
                    match (&page, self.looked_at(class, number, &page)) {
                        (_, Ok(Some(header))) => seen.take_in(class, header, tenants),
                        (_, Ok(None)) => {}
                        (Ok(Err(PageError::NoKey(name))), _) => seen.lacks_key(name, tenants),
                        (_, Err(bad)) => seen.bad[bad as usize] += 1,
                    }
                }
            }
        }
        self.go_on_after(seen.last);
        let mut spots = seen.spots;
        let all = spots.len();
        spots.sort_unstable_by_key(|one: &Spot| (one.print, std::cmp::Reverse(one.written)));
        spots.dedup_by_key(|one| one.print);
        add(&self.figures.ended, seen.ended + (all - spots.len()) as u64);
        for (counter, bad) in self.figures.bad.iter().zip(seen.bad) {
            add(counter, bad);
        }
        spots.sort_unstable_by_key(|one| (one.depth, one.class(), one.number));
        Some(spots)
    }

    /// Reads again what a scan has found. None when the disk left a question without an answer; what it has lost since is not
    /// there.
    pub(crate) async fn found(self: &Arc<Self>, spots: &[Spot]) -> Option<Vec<Found>> {
        let mut found = Vec::with_capacity(spots.len());
        for spots in spots.chunks(AT_A_TIME as usize) {
            let pages = self.look_at(spots.iter().map(|spot| (spot.class(), spot.number))).await?;
            for (spot, (number, page)) in spots.iter().zip(pages) {
                let class = spot.class();
                match self.looked_at(class, number, &page) {
                    Ok(Some(header)) if Spot::of(class, &header) == *spot => {
                        found.push(Found { class, header })
                    }
                    Ok(_) => add(&self.figures.bad[Bad::Foreign as usize], 1),
                    Err(bad) => add(&self.figures.bad[bad as usize], 1),
                }
            }
        }
        Some(found)
    }

    /// Reads some pages, each of a class and number; none when the disk gave no answer about one.
    async fn look_at(
        self: &Arc<Self>,
        places: impl Iterator<Item = (usize, u32)> + Clone,
    ) -> Option<Vec<(u32, io::Result<Result<RecordHeader, PageError>>)>> {
        let pages = join_all(places.clone().map(|(class, number)| self.read_page(class, number))).await;
        let mut looked = Vec::with_capacity(pages.len());
        for ((_, number), page) in places.zip(pages) {
            if page.as_ref().err().is_some_and(is_no_answer) {
                self.scan_got_no_answer();
                return None;
            }
            looked.push((number, page.map(|page| self.open_page(page.bytes()).map(|(header, _)| header))));
        }
        Some(looked)
    }

    /// Says which record of this place a page is; none where nothing was ever written.
    fn looked_at(
        &self,
        class: usize,
        number: u32,
        page: &io::Result<Result<RecordHeader, PageError>>,
    ) -> Result<Option<RecordHeader>, Bad> {
        match page {
            Ok(Ok(header)) => {
                let is_this = header.number == number && header.frame_bytes == self.frame_bytes(class);
                if is_this { Ok(Some(*header)) } else { Err(Bad::Foreign) }
            }
            Ok(Err(PageError::Empty)) => Ok(None),
            Ok(Err(error)) => Err((*error).into()),
            Err(_) => Err(Bad::Io),
        }
    }
}

impl Seen {
    /// Counts a record whose key is not here: it has ended, or is of another cluster's tenant of this number.
    fn lacks_key(&mut self, name: &KeyName, tenants: &BTreeMap<TenantId, (Era, TenantMark)>) {
        match tenants.get(&name.tenant) {
            Some((era, mark)) if *mark != name.mark || *era == name.era => {
                self.bad[Bad::Foreign as usize] += 1;
            }
            _ => self.ended += 1,
        }
    }

    fn take_in(
        &mut self,
        class: usize,
        header: RecordHeader,
        tenants: &BTreeMap<TenantId, (Era, TenantMark)>,
    ) {
        self.last = self.last.max(header.sequence);
        match tenants.get(&header.block.header.tenant) {
            Some((_, mark)) if *mark != header.mark => self.bad[Bad::Foreign as usize] += 1,
            Some((era, _)) if *era == header.block.header.era => self.spots.push(Spot::of(class, &header)),
            _ => self.ended += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskTuning, Geometry, movers, tenant_mark};
    use super::*;
    use crate::view::View;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::data::StoreBlock;
    use kvhive_protocol::{BlockKey, LayoutFingerprint, Slot};
    use kvhive_runtime::BootClock;
    use std::fs;

    const RECORDS: u32 = 200;
    const FRAME: u64 = 4096;
    const TENANT: TenantId = TenantId(3);

    /// The page of a record: of which block, and when it was written.
    fn page(number: u32, block: u32, sequence: u64) -> Vec<u8> {
        let header = BlockHeader {
            key: BlockKey::from_bytes([block as u8; 32]),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era: Era(1),
            depth: RECORDS - block,
            codec: Codec::Raw,
            payload_bytes: 1,
            digest: 0,
        };
        let block = StoreBlock { header, parent: BlockKey::NONE };
        let (mark, slot) = (tenant_mark(&[1]), Slot(0));
        let header = RecordHeader { number, frame_bytes: FRAME, sequence, mark, block, slot };
        let mut page = vec![0; 4096];
        header.encode(&mut page);
        page
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_scan_keeps_is_counted_and_what_changed_since_is_not_taken_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let geometry = [Geometry { frame_bytes: FRAME, records: RECORDS }];
        let tuning = DiskTuning::default();
        let open = || {
            let view = Arc::new(View::new(Arc::new(BootClock), 0, 0));
            Store::open(folder.path(), &geometry, movers().remove(0), view, None, &tuning).expect("a folder")
        };
        let path = folder.path().join(format!("records-{FRAME}"));
        drop(open());
        let mut bytes = fs::read(&path).expect("readable");
        let put = |bytes: &mut Vec<u8>, number: u32, page: &[u8]| {
            bytes[number as usize * 8192..][..4096].copy_from_slice(page);
        };
        // Each block of the first hundred is there twice, the later record first.
        for number in 0..RECORDS {
            put(&mut bytes, number, &page(number, number % 100, u64::from(RECORDS - number)));
        }
        fs::write(&path, &bytes).expect("writable");
        let store = open();
        let tenants = BTreeMap::from([(TENANT, (Era(1), tenant_mark(&[1])))]);
        let spots = store.scan(&tenants).await.expect("the disk answers");
        assert_eq!(spots.len(), 100);
        assert!((spots.capacity() * size_of::<Spot>()) as u64 <= scan_bytes(RECORDS));
        let numbers: Vec<u32> = spots.iter().map(|spot| spot.number).collect();
        assert_eq!(numbers, (0..100).rev().collect::<Vec<_>>(), "the later of each two, parents first");
        put(&mut bytes, 7, &page(7, 150, 1));
        put(&mut bytes, 8, &[0; 4096]);
        fs::write(&path, &bytes).expect("writable");
        let found = store.found(&spots).await.expect("the disk answers");
        let left: Vec<u32> = found.iter().map(|found| found.header.number).collect();
        assert_eq!(left, (0..100).rev().filter(|number| ![7, 8].contains(number)).collect::<Vec<_>>());
    }
}
