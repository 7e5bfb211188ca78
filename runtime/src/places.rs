//! Places for strangers: a bounded number of connections that have not shown yet what they want. When all are taken, the one
//! that has waited longest makes room, so that idle sockets keep nobody out.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// Places of which so many can be taken at a time. Cheap to clone.
#[derive(Clone)]
pub struct Places {
    most: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// Those that wait, from the one that has waited longest; a dropped sender turns its place's holder out.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    /// Those that are being served.
    served: usize,
}

/// One place. Given back when dropped.
pub struct Place {
    taken: Arc<Mutex<Taken>>,
    state: State,
    turned_out: oneshot::Receiver<()>,
}

enum State {
    Waits(u64),
    Served(oneshot::Sender<()>),
    Out,
}

impl Places {
    /// Makes `most` places.
    pub fn new(most: usize) -> Places {
        Places { most, taken: Arc::default() }
    }

    /// Takes a place for somebody who waits. When there is none, whoever has waited longest is turned out; none when
    /// everybody is being served.
    pub fn enter(&self) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.waiting.len() + taken.served >= self.most {
            taken.waiting.pop_first()?;
        }
        let (keeper, turned_out) = oneshot::channel();
        let number = taken.wait(keeper);
        Some(Place { taken: self.taken.clone(), state: State::Waits(number), turned_out })
    }
}

impl Taken {
    fn wait(&mut self, keeper: oneshot::Sender<()>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, keeper);
        number
    }
}

impl Place {
    /// Says that its holder is being served: it is not turned out until it waits again.
    pub fn serve(&mut self) {
        let State::Waits(number) = self.state else { return };
        let mut taken = lock(&self.taken);
        self.state = match taken.waiting.remove(&number) {
            Some(keeper) => {
                taken.served += 1;
                State::Served(keeper)
            }
            None => State::Out,
        };
    }

    /// Says that its holder waits again, from now.
    pub fn wait(&mut self) {
        match std::mem::replace(&mut self.state, State::Out) {
            State::Served(keeper) => {
                let mut taken = lock(&self.taken);
                taken.served -= 1;
                self.state = State::Waits(taken.wait(keeper));
            }
            other => self.state = other,
        }
    }

    /// Waits until somebody else needs the place.
    pub async fn turned_out(&mut self) {
        std::future::poll_fn(|cx| self.poll_turned_out(cx)).await;
    }

    /// As [`Place::turned_out`], for who polls.
    pub fn poll_turned_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state, State::Out) {
            return Poll::Ready(());
        }
        // Nothing is ever sent: the end of the sender is what counts.
        let ended = Pin::new(&mut self.turned_out).poll(cx).map(|_| ());
        if ended.is_ready() {
            self.state = State::Out;
        }
        ended
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        match &self.state {
            State::Waits(number) => drop(taken.waiting.remove(number)),
            State::Served(_) => taken.served -= 1,
            State::Out => {}
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing is left half-done under this lock.
    taken.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn is_out(place: &mut Place) -> bool {
        place.poll_turned_out(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn whoever_has_waited_longest_makes_room() {
        let places = Places::new(2);
        let (mut first, mut second) = (places.enter().expect("room"), places.enter().expect("room"));
        let mut third = places.enter().expect("the first makes room");
        assert_eq!([is_out(&mut first), is_out(&mut second), is_out(&mut third)], [true, false, false]);
        drop(second);
        let mut fourth = places.enter().expect("a place was given back");
        assert_eq!([is_out(&mut third), is_out(&mut fourth)], [false, false]);
    }

    #[test]
    fn whoever_is_served_stays_and_waits_from_then_on() {
        let places = Places::new(2);
        let (mut served, mut other) = (places.enter().expect("room"), places.enter().expect("room"));
        served.serve();
        let mut third = places.enter().expect("the other makes room");
        assert_eq!([is_out(&mut served), is_out(&mut other), is_out(&mut third)], [false, true, false]);
        third.serve();
        assert!(places.enter().is_none(), "nobody waits");
        served.wait();
        third.wait();
        let _fourth = places.enter().expect("one waits");
        assert_eq!([is_out(&mut served), is_out(&mut third)], [true, false]);
        // What one that is out says changes nothing.
        served.serve();
        served.wait();
        drop(served);
        let taken = lock(&places.taken);
        assert_eq!((taken.waiting.len(), taken.served), (2, 0));
    }
}
