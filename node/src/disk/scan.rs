//! Finding records again: the page of every record is read, a bounded number at a time. Of two records of one block the later
//! counts; parents come before their children.

use super::figures::{Bad, add};
use super::record::{PageError, RecordHeader, TenantMark};
use super::store::Store;
use futures_util::future::join_all;
use kvhive_protocol::{Era, TenantId};
use std::collections::BTreeMap;
use std::io;
use tracing::warn;

/// Pages read at a time.
const AT_A_TIME: u32 = 64;

/// A whole page of a tenant that is, in its present era.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) class: usize,
    pub(crate) header: RecordHeader,
}

impl Store {
    /// Finds the records of these tenants' present eras.
    pub(crate) async fn scan(&self, tenants: &BTreeMap<TenantId, (Era, TenantMark)>) -> Vec<Found> {
        let mut found = Vec::new();
        let mut last = 0;
        for class in 0..self.records().len() {
            let records = self.records_within(class).unwrap_or_else(|error| {
                warn!(%error, "a file of records cannot be looked at");
                0
            });
            for from in (0..records).step_by(AT_A_TIME as usize) {
                let numbers = from..records.min(from + AT_A_TIME);
                let pages = join_all(numbers.clone().map(|number| self.read_page(class, number))).await;
                for (number, page) in numbers.zip(pages) {
                    let Some(header) = self.looked_at(class, number, page.map(|page| decode(page.bytes())))
                    else {
                        continue;
                    };
                    last = last.max(header.sequence);
                    match tenants.get(&header.block.header.tenant) {
                        Some((_, mark)) if *mark != header.mark => {
                            add(&self.figures.bad[Bad::Foreign as usize], 1);
                        }
                        Some((era, _)) if *era == header.block.header.era => {
                            found.push(Found { class, header });
                        }
                        _ => add(&self.figures.ended, 1),
                    }
                }
            }
        }
        self.go_on_after(last);
        let all = found.len();
        found.sort_unstable_by_key(|one: &Found| {
            let header = &one.header.block.header;
            (header.tenant, header.key, std::cmp::Reverse(one.header.sequence))
        });
        // A key is a tenant's own: another's record of it is another block.
        found.dedup_by_key(|one| (one.header.block.header.tenant, one.header.block.header.key));
        add(&self.figures.ended, (all - found.len()) as u64);
        found.sort_by_key(|one| one.header.block.header.depth);
        found
    }

    /// Counts what is no record of this place.
    fn looked_at(
        &self,
        class: usize,
        number: u32,
        page: io::Result<Result<RecordHeader, PageError>>,
    ) -> Option<RecordHeader> {
        let bad = match page {
            Ok(Ok(header)) => {
                if header.number == number && header.frame_bytes == self.frame_bytes(class) {
                    return Some(header);
                }
                Bad::Foreign
            }
            Ok(Err(PageError::Empty)) => return None,
            Ok(Err(PageError::Damaged)) => Bad::Damaged,
            Err(_) => Bad::Io,
        };
        add(&self.figures.bad[bad as usize], 1);
        None
    }
}

fn decode(page: &[u8]) -> Result<RecordHeader, PageError> {
    RecordHeader::decode(page)
}
