//! What went wrong and waits to be told: each by itself, so that an engine's log, which has each message once, has each once whatever
//! else went wrong beside it.

/// How many wait at most; of more it is told how many there were.
const MOST: usize = 4;

/// What went wrong since somebody was told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Troubles {
    waiting: Vec<String>,
    more: usize,
    last: Option<String>,
}

impl Troubles {
    /// Takes in what went wrong. What waits already is not told twice; what is too much is counted.
    pub fn note(&mut self, why: impl ToString) {
        let why = why.to_string();
        if self.waiting.contains(&why) {
            return;
        }
        if self.waiting.len() < MOST {
            self.waiting.push(why);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Takes in what is told in any case, after all else: how it ends.
    pub fn note_last(&mut self, why: impl ToString) {
        self.last = Some(why.to_string());
    }

    /// Returns what went wrong since this was asked last, each by itself, and behind it how often more did.
    pub fn take(&mut self) -> Vec<String> {
        let Troubles { waiting: mut troubles, more, last } = std::mem::take(self);
        if more > 0 {
            troubles.push(format!("and {more} more, which are not told"));
        }
        troubles.extend(last);
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_by_itself_and_once() {
        let mut troubles = Troubles::default();
        assert!(troubles.take().is_empty());
        for why in ["late", "full", "late"] {
            troubles.note(why);
        }
        assert_eq!(troubles.take(), ["late", "full"]);
        assert!(troubles.take().is_empty());
        troubles.note("late");
        assert_eq!(troubles.take(), ["late"], "it happened again");
    }

    #[test]
    fn what_is_too_much_is_counted_and_how_it_ends_is_told_in_any_case() {
        let mut troubles = Troubles::default();
        troubles.note_last("3 blocks are still being saved");
        for at in 0..MOST + 2 {
            troubles.note(at);
        }
        troubles.note(0);
        troubles.note_last("2 blocks are still being saved");
        let told = ["0", "1", "2", "3", "and 2 more, which are not told", "2 blocks are still being saved"];
        assert_eq!(troubles.take(), told);
        troubles.note("late");
        assert_eq!(troubles.take(), ["late"], "what was told is over");
    }
}
