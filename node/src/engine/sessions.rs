//! Conversations that an engine knows: how many turns each has had, and which blocks the last one was of.

use std::collections::{BTreeMap, HashMap};

/// Sessions that are known at a time; of more, the one that was asked longest ago is forgotten.
const MOST: usize = 4096;

/// Sessions by name; `P` is what names the blocks of a turn.
pub(super) struct Sessions<P> {
    known: HashMap<String, Session<P>>,
    /// Names by when they were asked last.
    by_age: BTreeMap<u64, String>,
    asked: u64,
}

struct Session<P> {
    turns: u64,
    blocks: Option<P>,
    asked: u64,
}

impl<P> Default for Sessions<P> {
    fn default() -> Self {
        Sessions { known: HashMap::new(), by_age: BTreeMap::new(), asked: 0 }
    }
}

impl<P> Sessions<P> {
    /// Counts a turn; returns which one it was.
    pub(super) fn turn(&mut self, name: &str, blocks: Option<P>) -> u64 {
        self.asked += 1;
        let asked = self.asked;
        let new = || Session { turns: 0, blocks: None, asked };
        let session = self.known.entry(name.to_owned()).or_insert_with(new);
        self.by_age.remove(&session.asked);
        *session = Session { turns: session.turns + 1, blocks, asked };
        let turns = session.turns;
        self.by_age.insert(asked, name.to_owned());
        if self.known.len() > MOST
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.known.remove(&oldest);
        }
        turns
    }

    /// Forgets a session; returns the blocks of its last turn, and none where it was not known.
    pub(super) fn end(&mut self, name: &str) -> Option<Option<P>> {
        let session = self.known.remove(name)?;
        self.by_age.remove(&session.asked);
        Some(session.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_and_who_was_asked_longest_ago_is_forgotten() {
        let mut sessions = Sessions::default();
        assert_eq!(
            [sessions.turn("a", Some(1)), sessions.turn("b", None), sessions.turn("a", Some(2))],
            [1, 1, 2]
        );
        for at in 0..MOST - 1 {
            sessions.turn(&at.to_string(), None);
        }
        assert_eq!((sessions.end("b"), sessions.end("a"), sessions.end("a")), (None, Some(Some(2)), None));
        assert_eq!((sessions.known.len(), sessions.by_age.len()), (MOST - 1, MOST - 1));
    }
}
