//! Where a prefix may stop that is kept as pages of several pools: of some every page is needed, of others only what is before the
//! stop (layers that forget, states).

/// Which pages of a pool a prefix needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Every one.
    All,
    /// So many before the stop.
    Last(usize),
}

/// What is known of a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stops {
    /// Where it may stop, in pages, ascending.
    pub at: Vec<usize>,
    /// How far each pool goes by itself.
    pub reaches: Vec<usize>,
}

/// Says where a prefix may stop whose first `pages` pages are there, by what there is of the pages of other pools.
pub fn stops(pages: usize, pools: &[(Needs, Vec<bool>)]) -> Stops {
    // Of each page, whether it may be the last one.
    let mut may = vec![true; pages];
    let mut reaches = Vec::with_capacity(pools.len());
    for (needs, there) in pools {
        let mut run = 0;
        let mut reach = 0;
        for (page, may) in may.iter_mut().enumerate() {
            run = if there.get(page) == Some(&true) { run + 1 } else { 0 };
            let needed = match needs {
                Needs::All => page + 1,
                Needs::Last(count) => (*count).clamp(1, page + 1),
            };
            if run >= needed {
                reach = page + 1;
            } else {
                *may = false;
            }
        }
        reaches.push(reach);
    }
    let at = may.iter().enumerate().filter(|(_, may)| **may).map(|(page, _)| page + 1).collect();
    Stops { at, reaches }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(pages: &str) -> Vec<bool> {
        pages.chars().map(|page| page == 'x').collect()
    }

    #[test]
    fn a_prefix_by_itself_stops_anywhere() {
        assert_eq!(stops(3, &[]), Stops { at: vec![1, 2, 3], reaches: vec![] });
        assert_eq!(stops(0, &[(Needs::All, vec![])]), Stops { at: vec![], reaches: vec![0] });
    }

    #[test]
    fn a_pool_of_which_all_is_needed_ends_it_at_its_first_gap() {
        assert_eq!(stops(4, &[(Needs::All, there("xx.x"))]), Stops { at: vec![1, 2], reaches: vec![2] });
        assert_eq!(stops(4, &[(Needs::All, there("xx"))]).reaches, [2], "what nobody spoke of is not there");
    }

    #[test]
    fn a_pool_that_forgets_lets_it_stop_where_its_window_is_whole() {
        assert_eq!(stops(5, &[(Needs::Last(1), there("..x.x"))]), Stops { at: vec![3, 5], reaches: vec![5] });
        assert_eq!(stops(5, &[(Needs::Last(2), there("x.xx."))]), Stops { at: vec![1, 4], reaches: vec![4] });
        assert_eq!(
            stops(3, &[(Needs::Last(8), there("xxx"))]).at,
            [1, 2, 3],
            "a short prefix has a short window"
        );
    }

    #[test]
    fn all_pools_must_let_it_stop() {
        let pools = [(Needs::All, there("xxx.")), (Needs::Last(1), there(".x.x"))];
        assert_eq!(stops(4, &pools), Stops { at: vec![2], reaches: vec![3, 4] });
    }
}
