//! Finding records again: the page of every record is read, a bounded number at a time. Of two records of one block the later
//! counts; parents come before their children.

use super::figures::{Bad, add};
use super::place::is_no_answer;
use super::record::{PageError, RecordHeader, TenantMark};
use super::store::Store;
use futures_util::future::join_all;
use kvhive_protocol::{Era, TenantId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tracing::warn;

/// Pages read at a time.
const AT_A_TIME: u32 = 64;

/// A whole page of a tenant that is, in its present era.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) class: usize,
    pub(crate) header: RecordHeader,
}

/// What a scan has seen so far, counted when it has seen all.
#[derive(Default)]
struct Seen {
    found: Vec<Found>,
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
    ) -> Option<Vec<Found>> {
        let mut seen = Seen::default();
        for class in 0..self.records().len() {
            let records = self.records_within(class).unwrap_or_else(|error| {
                warn!(%error, "a file of records cannot be looked at");
                0
            });
            for from in (0..records).step_by(AT_A_TIME as usize) {
                let numbers = from..records.min(from + AT_A_TIME);
                let pages = join_all(numbers.clone().map(|number| self.read_page(class, number))).await;
                for (number, page) in numbers.zip(pages) {
                    if page.as_ref().err().is_some_and(is_no_answer) {
                        self.scan_got_no_answer();
                        return None;
                    }
                    let page = page.map(|page| RecordHeader::decode(page.bytes()));
                    match self.looked_at(class, number, page) {
                        Ok(Some(header)) => seen.take_in(class, header, tenants),
                        Ok(None) => {}
                        Err(bad) => seen.bad[bad as usize] += 1,
                    }
                }
            }
        }
        self.go_on_after(seen.last);
        let mut found = seen.found;
        let all = found.len();
        found.sort_unstable_by_key(|one: &Found| {
            let header = &one.header.block.header;
            (header.tenant, header.key, std::cmp::Reverse(one.header.sequence))
        });
        // A key is a tenant's own: another's record of it is another block.
        found.dedup_by_key(|one| (one.header.block.header.tenant, one.header.block.header.key));
        add(&self.figures.ended, seen.ended + (all - found.len()) as u64);
        for (counter, bad) in self.figures.bad.iter().zip(seen.bad) {
            add(counter, bad);
        }
        found.sort_by_key(|one| one.header.block.header.depth);
        Some(found)
    }

    /// Says which record of this place a page is; none where nothing was ever written.
    fn looked_at(
        &self,
        class: usize,
        number: u32,
        page: io::Result<Result<RecordHeader, PageError>>,
    ) -> Result<Option<RecordHeader>, Bad> {
        match page {
            Ok(Ok(header)) => {
                let is_this = header.number == number && header.frame_bytes == self.frame_bytes(class);
                if is_this { Ok(Some(header)) } else { Err(Bad::Foreign) }
            }
            Ok(Err(PageError::Empty)) => Ok(None),
            Ok(Err(PageError::Damaged)) => Err(Bad::Damaged),
            Err(_) => Err(Bad::Io),
        }
    }
}

impl Seen {
    fn take_in(
        &mut self,
        class: usize,
        header: RecordHeader,
        tenants: &BTreeMap<TenantId, (Era, TenantMark)>,
    ) {
        self.last = self.last.max(header.sequence);
        match tenants.get(&header.block.header.tenant) {
            Some((_, mark)) if *mark != header.mark => self.bad[Bad::Foreign as usize] += 1,
            Some((era, _)) if *era == header.block.header.era => self.found.push(Found { class, header }),
            _ => self.ended += 1,
        }
    }
}
