//! What becomes of a block that is given to a replica, by what that says of it.

use kvhive_cache::acks::Answer;
use kvhive_protocol::data::{Refusal, Stored};

/// What became of a block that was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The target did not have it before and has it now.
    Moved,
    /// The target had it.
    There,
    /// The target gives it no room.
    Declined,
    /// The target takes it a little later: it goes by an older map, or is being given it already.
    Later,
    /// It did not get there.
    Missing,
}

impl Verdict {
    /// Returns what the target's word on a block means that it did not have; it has said none of one that could not be sent.
    pub(super) fn of(said: Option<Stored>) -> Verdict {
        match said.map(|said| (said, Answer::of(said))) {
            Some((_, Some(Answer::Holds))) => Verdict::Moved,
            Some((_, Some(Answer::Declines))) => Verdict::Declined,
            Some((Stored::Refused(Refusal::InFlight), None)) => Verdict::Later,
            Some((_, None)) | None => Verdict::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_under_way_is_worth_another_try_at_once() {
        let refused = |why| Some(Stored::Refused(why));
        for (said, verdict) in [
            (Some(Stored::Kept { copies: 1, already: false }), Verdict::Moved),
            (Some(Stored::Kept { copies: 0, already: false }), Verdict::Missing),
            (refused(Refusal::NoRoom), Verdict::Declined),
            (refused(Refusal::TooLarge), Verdict::Declined),
            (refused(Refusal::InFlight), Verdict::Later),
            (refused(Refusal::WrongEra), Verdict::Missing),
            (refused(Refusal::Corrupt), Verdict::Missing),
            (None, Verdict::Missing),
        ] {
            assert_eq!(Verdict::of(said), verdict, "{said:?}");
        }
    }
}
