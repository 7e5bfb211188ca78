//! A read that is late is asked of other replicas as well, and whoever is first counts (Dean and Barroso, "The tail at scale",
//! 2013). When it is late, and for how many reads that may be done, is [`crate::waits`]'s to say.

use crate::client::Shared;
use crate::stats::count;
use kvhive_protocol::DeviceId;
use std::pin::pin;
use tokio::time::Instant;

/// What came of asking twice. At least one of both is there.
pub(crate) struct Raced<A, B> {
    pub(crate) first: Option<A>,
    pub(crate) second: Option<B>,
}

impl<A, B> Raced<A, B> {
    fn first(first: A) -> Raced<A, B> {
        Raced { first: Some(first), second: None }
    }
}

impl Shared {
    /// Awaits `first`, which asks `device`; once that is late and its answer `has_begun` not, what `second` makes besides.
    /// The other is dropped as soon as one of them ends so that it `suffices`.
    pub(crate) async fn race<A, B, S: Future<Output = B>>(
        &self,
        device: DeviceId,
        first: impl Future<Output = A>,
        has_begun: impl Fn() -> bool,
        second: impl FnOnce() -> Option<S>,
        suffices: (impl Fn(&A) -> bool, impl Fn(&B) -> bool),
    ) -> Raced<A, B> {
        let mut first = pin!(first);
        let asked = Instant::now();
        let patience = {
            let mut waits = self.waits();
            waits.earn();
            waits.patience(device)
        };
        tokio::select! {
            biased;
            ended = &mut first => return Raced::first(ended),
            () = tokio::time::sleep(patience) => {}
        }
        let second = if has_begun() { None } else { second().filter(|_| self.waits().spend()) };
        let Some(second) = second else { return Raced::first(first.await) };
        count(&self.counters.hedges, 1);
        let mut second = Box::pin(second);
        tokio::select! {
            biased;
            ended = &mut first => {
                if suffices.0(&ended) {
                    return Raced::first(ended);
                }
                Raced { first: Some(ended), second: Some(second.await) }
            }
            ended = &mut second => {
                if suffices.1(&ended) {
                    self.waits().overtaken(device, self.now(), asked.elapsed());
                    return Raced { first: None, second: Some(ended) };
                }
                Raced { first: Some(first.await), second: Some(ended) }
            }
        }
    }
}
