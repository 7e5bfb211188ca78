//! The thin hand around [`Fair`]: requests that wait until they are told to go, and places that come back by themselves.

use crate::data::fair::{Entered, Fair, Ticket, Wanted};
use kvhive_protocol::TenantId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
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
    begun: Instant,
}

struct State {
    fair: Fair<oneshot::Sender<()>>,
    figures: BTreeMap<TenantId, Figures>,
}

/// A request that waits or has its turn, until it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    tenant: TenantId,
    ticket: Ticket,
    was_late: bool,
}

impl Turns {
    pub(crate) fn new(places: usize) -> Arc<Turns> {
        let state = State { fair: Fair::new(places), figures: BTreeMap::new() };
        Arc::new(Turns { state: Mutex::new(state), begun: Instant::now() })
    }

    /// Waits for a turn; none where it would come too late.
    pub(crate) async fn take(self: &Arc<Self>, wanted: Wanted) -> Option<Turn> {
        let tenant = wanted.tenant;
        let turn = |ticket| Turn { turns: self.clone(), tenant, ticket, was_late: false };
        let mut hears = None;
        let entered = {
            let mut state = self.lock();
            self.pass_on(&mut state);
            let entered = state.fair.enter(self.begun.elapsed(), wanted, || {
                let (tells, told) = oneshot::channel();
                hears = Some(told);
                tells
            });
            let figures = state.figures.entry(tenant).or_default();
            match entered {
                Entered::Goes(_) => {}
                Entered::Waits(..) => figures.waited += 1,
                Entered::Late => figures.late += 1,
            }
            entered
        };
        let turn = match (entered, hears) {
            (Entered::Goes(ticket), _) => turn(ticket),
            (Entered::Waits(ticket, patience), Some(told)) => {
                self.wait(turn(ticket), told, Instant::now() + patience).await?
            }
            _ => return None,
        };
        if let Some(bytes) = wanted.bytes {
            self.lock().figures.entry(tenant).or_default().bytes += bytes;
        }
        Some(turn)
    }

    async fn wait(&self, mut turn: Turn, mut told: oneshot::Receiver<()>, until: Instant) -> Option<Turn> {
        loop {
            let lapses = self.lock().fair.lapses_at().map_or(until, |at| self.begun + at);
            tokio::select! {
                biased;
                told = &mut told => return told.ok().map(|()| turn),
                () = sleep_until(until.min(lapses)) => {}
            }
            let mut state = self.lock();
            self.pass_on(&mut state);
            if Instant::now() >= until {
                if told.try_recv().is_ok() {
                    drop(state);
                    return Some(turn);
                }
                state.figures.entry(turn.tenant).or_default().late += 1;
                // Not dropped under this lock, which it takes itself.
                drop(state);
                turn.was_late = true;
                return None;
            }
        }
    }

    /// Returns what came of the requests of a tenant.
    pub(crate) fn figures(&self, tenant: TenantId) -> Figures {
        self.lock().figures.get(&tenant).copied().unwrap_or_default()
    }

    /// Forgets the figures of those that are not wanted any more.
    pub(crate) fn retain(&self, mut is_wanted: impl FnMut(TenantId) -> bool) {
        self.lock().figures.retain(|tenant, _| is_wanted(*tenant));
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

    /// Tells those that they may go who have a place now.
    fn pass_on(&self, state: &mut State) {
        while let Some(who) = state.fair.next(self.begun.elapsed()) {
            // Who waits no more gives the place back.
            let _ = who.send(());
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
        state.figures.entry(self.tenant).or_default().bytes += bytes;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.fair.leave(self.turns.begun.elapsed(), self.tenant, self.ticket, self.was_late);
        self.turns.pass_on(&mut state);
    }
}
