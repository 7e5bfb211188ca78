//! Whose turn it is to compute: one at a time, those with more priority first, then those that came first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Who waits. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    is_taken: bool,
    came: u64,
    waiting: BTreeMap<(Reverse<i32>, u64), oneshot::Sender<Turn>>,
}

/// Whoever has it computes; dropped, it goes to the next.
pub(super) struct Turn(Option<Turns>);

impl Turns {
    /// Waits for a turn. Whoever stops waiting is passed over.
    pub(super) async fn take(&self, priority: i32) -> Option<Turn> {
        let comes = {
            let mut line = self.line();
            if !line.is_taken {
                line.is_taken = true;
                return Some(Turn(Some(self.clone())));
            }
            let (give, comes) = oneshot::channel();
            line.came += 1;
            let place = (Reverse(priority), line.came);
            line.waiting.insert(place, give);
            comes
        };
        // It is given by whoever has it, or that one's drop.
        comes.await.ok()
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
        let first = turns.take(0).await.expect("it is free");
        let (say, said) = mpsc::channel();
        let mut tasks = Vec::new();
        for (name, priority) in [("late", -1), ("one", 0), ("gone", 7), ("two", 0), ("urgent", 3)] {
            let (turns, say) = (turns.clone(), say.clone());
            let waiting = turns.line().waiting.len();
            tasks.push(tokio::spawn({
                let turns = turns.clone();
                async move {
                    let _turn = turns.take(priority).await.expect("it comes");
                    say.send(name).expect("it is heard");
                }
            }));
            while turns.line().waiting.len() == waiting {
                tokio::task::yield_now().await;
            }
        }
        tasks[2].abort();
        while !tasks[2].is_finished() {
            tokio::task::yield_now().await;
        }
        drop(first);
        for (at, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.is_ok(), at != 2);
        }
        drop(say);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["urgent", "one", "two", "late"]);
        assert!(!turns.line().is_taken && turns.take(0).await.is_some());
    }
}
