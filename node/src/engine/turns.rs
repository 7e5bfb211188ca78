//! Whose turn it is to compute: one at a time, those with more priority first, then those that came first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Requests that may wait.
pub(super) const MOST_WAITING: usize = 16_384;

/// Who waits. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    is_taken: bool,
    /// Nobody comes any more.
    is_over: bool,
    came: u64,
    waiting: BTreeMap<(Reverse<i64>, u64), oneshot::Sender<Turn>>,
}

/// Whoever has it computes; dropped, it goes to the next.
pub(super) struct Turn(Option<Turns>);

/// A place in the line, or what it leads to. Dropped, it is passed over.
pub(super) enum Place {
    First(Turn),
    Waits(oneshot::Receiver<Turn>),
}

/// Why there is no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    Over,
    Full,
}

impl Place {
    /// Waits for the turn.
    pub(super) async fn turn(self) -> Option<Turn> {
        match self {
            Place::First(turn) => Some(turn),
            // It is given by whoever has it, or that one's drop.
            Place::Waits(comes) => comes.await.ok(),
        }
    }
}

impl Turns {
    /// Takes a place in the line.
    pub(super) fn join(&self, priority: i64) -> Result<Place, NoPlace> {
        let mut line = self.line();
        if line.is_over {
            return Err(NoPlace::Over);
        }
        if line.waiting.len() >= MOST_WAITING {
            // Who has gone is passed over when the turn comes there, which may be long, and waits no more.
            line.waiting.retain(|_, give| !give.is_closed());
        }
        if line.waiting.len() >= MOST_WAITING {
            return Err(NoPlace::Full);
        }
        Ok(self.place(&mut line, priority))
    }

    /// Takes the last place there is; none where it was taken before.
    pub(super) fn last(&self) -> Option<Place> {
        let mut line = self.line();
        if std::mem::replace(&mut line.is_over, true) {
            return None;
        }
        Some(self.place(&mut line, i64::MIN))
    }

    fn place(&self, line: &mut Line, priority: i64) -> Place {
        if !line.is_taken {
            line.is_taken = true;
            return Place::First(Turn(Some(self.clone())));
        }
        let (give, comes) = oneshot::channel();
        line.came += 1;
        let place = (Reverse(priority), line.came);
        line.waiting.insert(place, give);
        Place::Waits(comes)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn pass_on(&self) {
        loop {
            let next = {
                let mut line = self.line();
                let next = line.waiting.pop_first();
                line.is_taken = next.is_some();
                next
            };
            let Some((_, next)) = next else { return };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // Nobody waits there any more: this one's drop must not pass it on besides.
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn who_is_urgent_comes_first_and_who_has_gone_is_passed_over() {
        let turns = Turns::default();
        let first = turns.join(0).expect("it is open").turn().await.expect("it is free");
        let (say, said) = mpsc::channel();
        let mut tasks = Vec::new();
        for (name, priority) in [("late", -1), ("one", 0), ("gone", 7), ("two", 0), ("urgent", 3)] {
            let (place, say) = (turns.join(priority).expect("it is open"), say.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = place.turn().await.expect("it comes");
                say.send(name).expect("it is heard");
            }));
        }
        let (last, late) = (turns.last().expect("the first that ends it"), turns.join(9));
        assert!(turns.last().is_none() && matches!(late, Err(NoPlace::Over)));
        tasks[2].abort();
        while !tasks[2].is_finished() {
            tokio::task::yield_now().await;
        }
        drop(first);
        let _turn = last.turn().await.expect("it comes");
        for (at, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.is_ok(), at != 2);
        }
        drop(say);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["urgent", "one", "two", "late"]);
    }

    #[test]
    fn a_line_has_an_end_and_a_place_that_is_given_up_is_free() {
        let turns = Turns::default();
        let first = turns.join(0).expect("it is open");
        let mut places: Vec<Place> = (0..MOST_WAITING).map(|_| turns.join(0).expect("it is open")).collect();
        assert!(matches!(turns.join(0), Err(NoPlace::Full)));
        // Its place is free while the first still computes.
        drop(places.pop());
        places.push(turns.join(0).expect("one has gone"));
        assert!(matches!(turns.join(0), Err(NoPlace::Full)));
        drop(places);
        drop(first);
        assert!(matches!(turns.join(0), Ok(Place::First(_))));
    }
}
