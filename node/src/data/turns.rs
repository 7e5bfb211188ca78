//! The thin hand around [`Fair`]: requests that wait until they are told to go, and places that come back by themselves.

use crate::data::fair::{Entered, Fair, LEAST_HOLD, Ticket, Wanted};
use kvhive_protocol::TenantId;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};

/// What came of one tenant's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Figures {
    /// Bytes that went or came.
    pub(crate) bytes: u64,
    /// Those that waited for their turn.
    pub(crate) waited: u64,
    /// Those that were told that they would be late, or were.
    pub(crate) late: u64,
}

/// Turns of one thing that several tenants want.
pub(crate) struct Turns {
    state: Mutex<State>,
    /// One of those that wait has it: it looks for places that are ones no more. If all did, each would wake all.
    watch: Semaphore,
    begun: Instant,
}

/// One that waits.
struct Waiter {
    tenant: TenantId,
    bytes: u64,
    tells: oneshot::Sender<()>,
}

struct State {
    fair: Fair<Waiter>,
    /// None where nobody asks for them.
    figures: Option<BTreeMap<TenantId, Figures>>,
    /// Whose requests had waited when their turn came, in that order.
    #[cfg(test)]
    passed: Vec<TenantId>,
}

impl State {
    fn new(places: usize, figures: Option<BTreeMap<TenantId, Figures>>) -> State {
        State {
            fair: Fair::new(places),
            figures,
            #[cfg(test)]
            passed: Vec::new(),
        }
    }

    fn count(&mut self, tenant: TenantId, how: impl FnOnce(&mut Figures)) {
        if let Some(figures) = &mut self.figures {
            how(figures.entry(tenant).or_default());
        }
    }
}

/// A request that waits or has its turn, until it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    tenant: TenantId,
    ticket: Ticket,
    was_late: bool,
}

impl Turns {
    /// Of so many places, without figures.
    pub(crate) fn new(places: usize) -> Arc<Turns> {
        Turns::of(State::new(places, None))
    }

    /// Of so many places, with [`Figures`].
    pub(crate) fn counted(places: usize) -> Arc<Turns> {
        Turns::of(State::new(places, Some(BTreeMap::new())))
    }

    fn of(state: State) -> Arc<Turns> {
        Arc::new(Turns { state: Mutex::new(state), watch: Semaphore::new(1), begun: Instant::now() })
    }

    /// Waits for a turn; none where it would come too late.
    pub(crate) async fn take(self: &Arc<Self>, wanted: Wanted) -> Option<Turn> {
        let (tenant, bytes) = (wanted.tenant, wanted.bytes.unwrap_or(0));
        let turn = |ticket| Turn { turns: self.clone(), tenant, ticket, was_late: false };
        let mut hears = None;
        let entered = {
            let mut state = self.lock();
            self.pass_on(&mut state);
            let entered = state.fair.enter(self.begun.elapsed(), wanted, || {
                let (tells, told) = oneshot::channel();
                hears = Some(told);
                Waiter { tenant, bytes, tells }
            });
            state.count(tenant, |figures| match entered {
                Entered::Goes(_) => figures.bytes += bytes,
                Entered::Waits(..) => figures.waited += 1,
                Entered::Late => figures.late += 1,
            });
            entered
        };
        match (entered, hears) {
            (Entered::Goes(ticket), _) => Some(turn(ticket)),
            (Entered::Waits(ticket, patience), Some(told)) => {
                self.wait(turn(ticket), told, Instant::now() + patience).await
            }
            _ => None,
        }
    }

    async fn wait(&self, mut turn: Turn, mut told: oneshot::Receiver<()>, until: Instant) -> Option<Turn> {
        tokio::select! {
            biased;
            told = &mut told => return told.ok().map(|()| turn),
            () = sleep_until(until) => {}
            never = self.watch() => match never {},
        }
        let mut state = self.lock();
        self.pass_on(&mut state);
        if told.try_recv().is_ok() {
            drop(state);
            return Some(turn);
        }
        state.count(turn.tenant, |figures| figures.late += 1);
        // Not dropped under this lock, which it takes itself.
        drop(state);
        turn.was_late = true;
        None
    }

    /// Passes places on that are ones no more, once no other does; the next one goes on when this is dropped.
    async fn watch(&self) -> Infallible {
        // Never closed.
        let _watch = self.watch.acquire().await;
        loop {
            let at = {
                let state = self.lock();
                // No place that is given meanwhile is one no more before this.
                let soon = self.begun.elapsed() + LEAST_HOLD;
                state.fair.lapses_at().map_or(soon, |lapses| lapses.min(soon))
            };
            sleep_until(self.begun + at).await;
            self.pass_on(&mut self.lock());
        }
    }

    /// Returns what came of the requests of a tenant.
    pub(crate) fn figures(&self, tenant: TenantId) -> Figures {
        self.lock().figures.as_ref().and_then(|figures| figures.get(&tenant).copied()).unwrap_or_default()
    }

    /// Counts a request of a tenant that was late elsewhere.
    pub(crate) fn count_late(&self, tenant: TenantId) {
        self.lock().count(tenant, |figures| figures.late += 1);
    }

    /// Forgets the figures of those that are not wanted any more.
    pub(crate) fn retain(&self, mut is_wanted: impl FnMut(TenantId) -> bool) {
        if let Some(figures) = &mut self.lock().figures {
            figures.retain(|tenant, _| is_wanted(*tenant));
        }
    }

    /// Returns how many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().fair.waiting()
    }

    /// Returns how many have their turn.
    #[cfg(test)]
    pub(crate) fn holding(&self) -> usize {
        self.lock().fair.holding()
    }

    /// Returns whose requests had waited when their turn came, in that order.
    #[cfg(test)]
    pub(crate) fn passed(&self) -> Vec<TenantId> {
        self.lock().passed.clone()
    }

    /// Tells those that they may go who have a place now.
    fn pass_on(&self, state: &mut State) {
        while let Some(Waiter { tenant, bytes, tells }) = state.fair.next(self.begun.elapsed()) {
            // Who waits no more gives the place back.
            if tells.send(()).is_ok() {
                state.count(tenant, |figures| figures.bytes += bytes);
                #[cfg(test)]
                state.passed.push(tenant);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Says what it comes to, which was not known before.
    pub(crate) fn measured(&self, bytes: u64) {
        let mut state = self.turns.lock();
        state.fair.measured(self.ticket, bytes);
        state.count(self.tenant, |figures| figures.bytes += bytes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.fair.leave(self.turns.begun.elapsed(), self.tenant, self.ticket, self.was_late);
        self.turns.pass_on(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn a_place_that_is_one_no_more_wakes_who_gets_it_and_not_all_who_wait() {
        const WAITING: usize = 50;
        let (turns, polls) = (Turns::new(1), Arc::new(AtomicUsize::new(0)));
        let wanted = Wanted {
            tenant: TenantId(1),
            weight: 1,
            bytes: Some(0),
            left: Duration::from_secs(3600),
            is_part: true,
        };
        // Nobody gives its place back.
        let mut held = vec![turns.take(wanted).await.expect("it is free")];
        let mut waiting = JoinSet::new();
        for _ in 0..WAITING {
            let (turns, polls) = (turns.clone(), polls.clone());
            waiting.spawn(async move {
                let mut taking = pin!(turns.take(wanted));
                poll_fn(|context| {
                    polls.fetch_add(1, Ordering::Relaxed);
                    taking.as_mut().poll(context)
                })
                .await
            });
        }
        while let Some(taken) = waiting.join_next().await {
            held.push(taken.expect("it did not panic").expect("it had time"));
        }
        assert_eq!((held.len(), turns.waiting()), (WAITING + 1, 0));
        // If each place woke all, these were half the square.
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls <= 8 * WAITING, "{polls}");
    }
}
