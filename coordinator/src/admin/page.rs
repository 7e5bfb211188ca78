//! Long lists in pages: those after a number, up to so many, and where to go on.

use super::answers::{Freshness, Trouble};
use serde::Deserialize;
use utoipa::IntoParams;

/// Entries of a page unless the asker says.
pub(super) const USUAL: usize = 1000;
/// The most entries of a page.
const MOST: usize = 10_000;

/// Which part of a list is wanted, and how new it must be.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    /// `linearizable` or `stale`.
    #[serde(default)]
    pub(super) consistency: Freshness,
    /// Only entries whose id is greater: the `next` of the page before.
    #[serde(default)]
    pub(super) after: Option<u32>,
    /// Entries of a page; 1000 unless said.
    #[serde(default)]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// Which part of a list by names is wanted, and how new it must be.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedListing {
    /// `linearizable` or `stale`.
    #[serde(default)]
    pub(super) consistency: Freshness,
    /// Only entries that come later: the `next` of the page before.
    #[serde(default)]
    pub(super) after: Option<String>,
    /// Entries of a page; 1000 unless said.
    #[serde(default)]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// Which part of a list is wanted that only one coordinator can give.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Only entries of greater numbers: the `next` of the page before.
    #[serde(default)]
    pub(super) after: Option<u16>,
    /// Entries of a page; 1000 unless said.
    #[serde(default)]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// As [`Part`], of a list by names.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedPart {
    /// Only entries whose name comes later: the `next` of the page before.
    #[serde(default)]
    pub(super) after: Option<String>,
    /// Entries of a page; 1000 unless said.
    #[serde(default)]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// Takes a page out of `all`, which is ascending by what is next to each entry: those after `after`, up to `limit`. With it comes where the next
/// page begins, none after the last.
///
/// # Errors
/// When the limit is out of bounds.
pub(super) fn page<K: PartialOrd + Clone, T>(
    all: impl Iterator<Item = (K, T)>,
    after: Option<K>,
    limit: Option<usize>,
) -> Result<(Vec<T>, Option<K>), Trouble> {
    let limit = limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&limit) {
        return Err(Trouble::bad_request(format!("limit is {limit}, allowed are 1 to {MOST}")));
    }
    let mut rest = all.skip_while(|(id, _)| after.as_ref().is_some_and(|after| id <= after));
    let mut page = Vec::new();
    let mut last = None;
    for (id, entry) in rest.by_ref().take(limit) {
        last = Some(id);
        page.push(entry);
    }
    Ok((page, rest.next().and(last)))
}

impl Listing {
    /// Takes the page that is wanted out of `all`, which is ascending by id. The number is where the next page begins, none
    /// after the last.
    ///
    /// # Errors
    /// When the limit is out of bounds.
    pub(super) fn page<T>(
        &self,
        all: impl Iterator<Item = (u32, T)>,
    ) -> Result<(Vec<T>, Option<u32>), Trouble> {
        page(all, self.after, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(after: Option<u32>, limit: Option<usize>) -> (Vec<u32>, Option<u32>) {
        let listing = Listing { consistency: Freshness::Stale, after, limit };
        listing.page((1..=5).map(|id| (id * 10, id * 10))).unwrap_or_else(|_| panic!("the limit is right"))
    }

    #[test]
    fn pages_are_the_whole_list() {
        assert_eq!(ids(None, None), (vec![10, 20, 30, 40, 50], None));
        assert_eq!(ids(None, Some(2)), (vec![10, 20], Some(20)));
        assert_eq!(ids(Some(20), Some(2)), (vec![30, 40], Some(40)));
        assert_eq!(ids(Some(40), Some(2)), (vec![50], None));
        // Entries may have come and gone meanwhile.
        assert_eq!(ids(Some(25), Some(3)), (vec![30, 40, 50], None));
        assert_eq!(ids(Some(50), None), (vec![], None));
    }

    #[test]
    fn a_page_has_bounds() {
        for limit in [0, MOST + 1] {
            let listing = Listing { consistency: Freshness::Stale, after: None, limit: Some(limit) };
            assert!(listing.page((1..=5).map(|id| (id, id))).is_err());
        }
    }
}
