//! Long lists in pages: those after a number, up to so many, and where to go on.

use super::answers::Freshness;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

/// Entries of a page unless the asker says.
pub(super) const USUAL: usize = 1000;
/// How much of what somebody says is told again.
const ECHO: usize = 32;

/// Reads a number of a query that has bounds: one outside of them is refused by what is allowed.
pub(super) fn number<'de, D, N, const LEAST: u64, const MOST: u64>(said: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<u64>,
{
    let text = String::deserialize(said)?;
    let number = text.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
    number.and_then(|number: u64| N::try_from(number).ok()).map(Some).ok_or_else(|| {
        let short: String = text.chars().take(ECHO).collect();
        D::Error::custom(format_args!("it is {short:?}, allowed are {LEAST} to {MOST}"))
    })
}

/// Which part of a list is wanted, and how new it must be.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    /// `linearizable` or `stale`.
    #[serde(default)]
    pub(super) consistency: Freshness,
    /// Only entries whose id is greater: the `next` of the page before.
    #[serde(default, deserialize_with = "number::<_, u32, 0, 4294967295>")]
    pub(super) after: Option<u32>,
    /// Entries of a page; 1000 unless said.
    #[serde(default, deserialize_with = "number::<_, usize, 1, 10000>")]
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
    #[serde(default, deserialize_with = "number::<_, usize, 1, 10000>")]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// Which part of a list by slots is wanted that only one coordinator can give.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Only entries of greater numbers: the `next` of the page before.
    #[serde(default, deserialize_with = "number::<_, u16, 0, 4095>")]
    #[param(maximum = 4095)]
    pub(super) after: Option<u16>,
    /// Entries of a page; 1000 unless said.
    #[serde(default, deserialize_with = "number::<_, usize, 1, 10000>")]
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
    #[serde(default, deserialize_with = "number::<_, usize, 1, 10000>")]
    #[param(minimum = 1, maximum = 10000)]
    pub(super) limit: Option<usize>,
}

/// Takes a page out of `all`, which is ascending by what is next to each entry: those after `after`, up to `limit`. With it comes where the next
/// page begins, none after the last.
pub(super) fn page<K: PartialOrd + Clone, T>(
    all: impl Iterator<Item = (K, T)>,
    after: Option<K>,
    limit: Option<usize>,
) -> (Vec<T>, Option<K>) {
    let limit = limit.unwrap_or(USUAL);
    let mut rest = all.skip_while(|(id, _)| after.as_ref().is_some_and(|after| id <= after));
    let mut page = Vec::new();
    let mut last = None;
    for (id, entry) in rest.by_ref().take(limit) {
        last = Some(id);
        page.push(entry);
    }
    (page, rest.next().and(last))
}

impl Listing {
    /// Takes the page that is wanted out of `all`, which is ascending by id. The number is where the next page begins, none
    /// after the last.
    pub(super) fn page<T>(&self, all: impl Iterator<Item = (u32, T)>) -> (Vec<T>, Option<u32>) {
        page(all, self.after, self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::SlotQuery;
    use super::super::events::EventQuery;
    use super::super::pins::PinQuery;
    use super::super::traces::HowMany;
    use super::*;
    use axum::extract::Query;
    use serde::de::DeserializeOwned;

    /// Says what is wrong with a query; nothing if nothing is.
    fn refused<T: DeserializeOwned>(query: &str) -> String {
        let uri = format!("/v1/list?{query}").parse().expect("it is one");
        Query::<T>::try_from_uri(&uri).err().map_or(String::new(), |rejection| rejection.body_text())
    }

    #[test]
    fn a_number_out_of_bounds_is_refused_by_what_is_allowed() {
        let all = |query: &str| {
            let told = [
                refused::<Listing>(query),
                refused::<Part>(query),
                refused::<SlotQuery>(query),
                refused::<EventQuery>(query),
            ];
            told.map(|told| {
                told.split_once("allowed are ").map_or(told.clone(), |(_, allowed)| allowed.to_owned())
            })
        };
        let of_any = "0 to 18446744073709551615";
        for beyond in ["-1", "1.5", "ten", "", "18446744073709551616"] {
            let told = all(&format!("after={beyond}"));
            assert_eq!(told, ["0 to 4294967295", "0 to 4095", "0 to 4095", of_any], "{beyond}");
        }
        assert_eq!(all("after=99999"), ["", "0 to 4095", "0 to 4095", ""]);
        assert_eq!(all("after=4095&limit=1024"), [""; 4]);
        for beyond in ["0", "10001", "-1", "99999999999999999999"] {
            let told = all(&format!("limit={beyond}"));
            assert_eq!(told, ["1 to 10000", "1 to 10000", "1 to 10000", "1 to 1024"], "{beyond}");
        }
        assert!(refused::<PinQuery>("limit=1025").ends_with("allowed are 1 to 1024"));
        assert!(refused::<HowMany>("limit=0").ends_with("allowed are 1 to 256"));
        let told = refused::<SlotQuery>("slot=4096");
        assert!(told.ends_with("slot: it is \"4096\", allowed are 0 to 4095"), "{told}");
    }

    fn ids(after: Option<u32>, limit: Option<usize>) -> (Vec<u32>, Option<u32>) {
        let listing = Listing { consistency: Freshness::Stale, after, limit };
        listing.page((1..=5).map(|id| (id * 10, id * 10)))
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
}
