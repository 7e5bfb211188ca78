//! The objects of a cluster's metadata whose histories are checked: a tenant with its rules and era, and a pin.

use crate::linear::Object;

/// A tenant, by its name.
pub struct Tenant;

/// What a call of a tenant was, and what it said. An answer of `None` is one that nobody heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TenantCall {
    /// Made with this quota; says whether it was, or there was one.
    Create {
        /// Its quota.
        quota: u64,
        /// Whether it was made.
        made: Option<bool>,
    },
    /// Given this quota; says whether there was one.
    Set {
        /// Its quota from now on.
        quota: u64,
        /// Whether there was one.
        was_there: Option<bool>,
    },
    /// Cleared; says to which era, if there was one.
    Clear {
        /// Its era from now on, or that there was none.
        era: Option<Option<u64>>,
    },
    /// Ended; says whether there was one.
    Delete {
        /// Whether there was one.
        was_there: Option<bool>,
    },
    /// Read: quota and era, if there is one.
    Read {
        /// What it said.
        seen: Option<(Option<u64>, u64)>,
    },
}

/// What is known of a tenant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TenantState {
    /// There is none.
    Absent,
    /// There is one.
    Present {
        /// Its quota.
        quota: u64,
        /// The least that its era can be.
        least_era: u64,
        /// Whether it is exactly that.
        exact: bool,
    },
}

/// Takes an era that was told for one that is known in part.
fn known(state: &TenantState, era: u64, raised: u64) -> Option<TenantState> {
    let TenantState::Present { quota, least_era, exact } = *state else { return None };
    let least_era = least_era + raised;
    let fits = if exact { era == least_era } else { era >= least_era };
    fits.then_some(TenantState::Present { quota, least_era: era, exact: true })
}

impl Object for Tenant {
    type State = TenantState;
    type Call = TenantCall;

    fn first() -> TenantState {
        TenantState::Absent
    }

    fn step(state: &TenantState, call: &TenantCall) -> Option<TenantState> {
        let is_there = matches!(state, TenantState::Present { .. });
        // What an answer says of whether there was one has to be so; one that nobody heard says nothing.
        let fits = |said: Option<bool>| said.is_none_or(|said| said == is_there);
        match *call {
            TenantCall::Create { quota, made } => match *state {
                // One of a name that was used before is another tenant: its era says nothing of that one's.
                TenantState::Absent => made.is_none_or(|made| made).then_some(TenantState::Present {
                    quota,
                    least_era: 0,
                    exact: false,
                }),
                TenantState::Present { .. } => fits(made.map(|made| !made)).then(|| state.clone()),
            },
            TenantCall::Set { quota, was_there } => fits(was_there).then(|| match *state {
                TenantState::Present { least_era, exact, .. } => {
                    TenantState::Present { quota, least_era, exact }
                }
                TenantState::Absent => state.clone(),
            }),
            TenantCall::Clear { era: Some(Some(era)) } => known(state, era, 1),
            TenantCall::Clear { era: Some(None) } => (!is_there).then(|| state.clone()),
            TenantCall::Clear { era: None } => Some(match *state {
                TenantState::Present { quota, least_era, exact } => {
                    TenantState::Present { quota, least_era: least_era + 1, exact }
                }
                TenantState::Absent => state.clone(),
            }),
            TenantCall::Delete { was_there } => fits(was_there).then_some(TenantState::Absent),
            TenantCall::Read { seen: None } => (!is_there).then(|| state.clone()),
            TenantCall::Read { seen: Some((quota, era)) } => {
                let TenantState::Present { quota: has, .. } = *state else { return None };
                (quota == Some(has)).then(|| known(state, era, 0))?
            }
        }
    }
}

/// A pin, by its name; its reason says which of its makers it is of.
pub struct Pin;

/// What a call of a pin was, and what it said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PinCall {
    /// Made, or put in the place of one, with this mark.
    Set {
        /// The mark.
        mark: u64,
    },
    /// Removed; says whether there was one.
    Remove {
        /// Whether there was one.
        was_there: Option<bool>,
    },
    /// Read: its mark, if there is one.
    Read {
        /// What it said.
        seen: Option<u64>,
    },
}

impl Object for Pin {
    type State = Option<u64>;
    type Call = PinCall;

    fn first() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, call: &PinCall) -> Option<Option<u64>> {
        match *call {
            PinCall::Set { mark } => Some(Some(mark)),
            PinCall::Remove { was_there } => {
                was_there.is_none_or(|was_there| was_there == state.is_some()).then_some(None)
            }
            PinCall::Read { seen } => (seen == *state).then_some(*state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Event, Verdict, check};

    /// Calls one after the other.
    fn in_turn<C>(calls: impl IntoIterator<Item = C>) -> Vec<Event<C>> {
        let event = |(at, call)| Event { called: at as u64 * 2, returned: Some(at as u64 * 2 + 1), call };
        calls.into_iter().enumerate().map(event).collect()
    }

    fn tenants(calls: Vec<TenantCall>) -> bool {
        check::<Tenant>(&in_turn(calls), 10_000) == Verdict::Linearizable
    }

    use TenantCall::{Clear, Create, Delete, Read, Set};

    #[test]
    fn a_tenants_life_is_accepted() {
        assert!(tenants(vec![
            Read { seen: None },
            Create { quota: 5, made: Some(true) },
            Create { quota: 6, made: Some(false) },
            Read { seen: Some((Some(5), 17)) },
            Set { quota: 7, was_there: Some(true) },
            Clear { era: Some(Some(18)) },
            Read { seen: Some((Some(7), 18)) },
            Delete { was_there: Some(true) },
            Delete { was_there: Some(false) },
            Set { quota: 9, was_there: Some(false) },
            Create { quota: 1, made: Some(true) },
            Read { seen: Some((Some(1), 17)) },
        ]));
    }

    #[test]
    fn what_a_tenant_cannot_say_is_refused() {
        let made = || Create { quota: 5, made: Some(true) };
        for bad in [
            vec![made(), made()],
            vec![made(), Read { seen: None }],
            vec![made(), Read { seen: Some((Some(6), 1)) }],
            vec![made(), Set { quota: 7, was_there: Some(true) }, Read { seen: Some((Some(5), 1)) }],
            vec![made(), Read { seen: Some((Some(5), 3)) }, Clear { era: Some(Some(3)) }],
            vec![made(), Read { seen: Some((Some(5), 3)) }, Clear { era: Some(Some(5)) }],
            vec![made(), Clear { era: Some(Some(4)) }, Read { seen: Some((Some(5), 3)) }],
            vec![made(), Delete { was_there: Some(false) }],
            vec![made(), Delete { was_there: Some(true) }, Read { seen: Some((Some(5), 1)) }],
        ] {
            assert!(!tenants(bad.clone()), "{bad:?}");
        }
    }

    #[test]
    fn a_clear_that_nobody_heard_of_may_have_raised_the_era() {
        let after = |era| {
            let mut events = in_turn([
                Create { quota: 5, made: Some(true) },
                Read { seen: Some((Some(5), 3)) },
                Clear { era: None },
                Read { seen: Some((Some(5), era)) },
            ]);
            events[2].returned = None;
            check::<Tenant>(&events, 10_000) == Verdict::Linearizable
        };
        assert!(after(3) && after(4) && !after(5));
    }

    #[test]
    fn a_pin_is_what_was_pinned_last() {
        let pins = |calls: Vec<PinCall>| check::<Pin>(&in_turn(calls), 1000) == Verdict::Linearizable;
        use PinCall::{Read, Remove, Set};
        assert!(pins(vec![
            Set { mark: 1 },
            Set { mark: 2 },
            Read { seen: Some(2) },
            Remove { was_there: Some(true) }
        ]));
        assert!(!pins(vec![Set { mark: 1 }, Set { mark: 2 }, Read { seen: Some(1) }]));
        assert!(!pins(vec![Remove { was_there: Some(true) }]));
        assert!(!pins(vec![Set { mark: 1 }, Remove { was_there: Some(true) }, Read { seen: Some(1) }]));
    }
}
