//! Wrong behaviour that tests have machines show, to see that it is noticed. Each bug has one place in a machine, which asks
//! [`is`] whether the bug is planted: without the feature `on` that is `false` at compile time, and nothing of it is left.
//!
//! It says what bugs there are and which rule each breaks; what notices them is in `tests/sim`.

#[cfg(all(feature = "on", not(debug_assertions)))]
compile_error!("planted bugs are for tests: a release has none");

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident, $($rule:literal)|+;)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// Returns the rules that it breaks, as `docs/simulator.md` numbers them. Which of them is noticed first depends on what
            /// happens; by any other it is not noticed for what it is.
            pub const fn breaks(self) -> &'static [&'static str] {
                match self {
                    $(Bug::$bug => &[$($rule),+],)*
                }
            }
        }
    };
}

bugs! {
    // Coordinators: consensus.

    /// A proposal whose outcome is unknown is said not to have happened.
    LostIsNotApplied, "M3";
    /// What follows from a write is said before the disk has it.
    AnswersBeforeSync, "M2" | "M7";
    /// Who leads answers reads without asking the others whether it still does.
    ReadsWithoutAsking, "M1";
    /// A peer whose log is empty votes at once, though it may have lost it.
    NewbornVotes, "M2" | "M7";
    /// Who reads is told nothing when leadership is lost.
    LostReadsAreSilent, "B18";
    /// Nobody campaigns any more after the first few elections.
    ElectionsEnd, "M12";

    // Coordinators: what they agree on.

    /// A request that is repeated happens once more.
    RepeatsHappen, "M3";
    /// A snapshot leaves out what requests came to.
    SnapshotForgetsOutcomes, "M10";
    /// A member that starts anew keeps its generation.
    GenerationStays, "M5";
    /// Slots are placed without another epoch.
    PlacesWithoutEpoch, "M7";
    /// Slots are placed by a plan for an older map.
    PlacesByOldPlan, "M13";
    /// A page of events leaves one out.
    EventsSkip, "M6";

    // Coordinators: what their leader decides.

    /// A clear is acknowledged at once.
    ClearIsDoneAtOnce, "B11";
    /// A clear waits for nobody whose start is over by the map, though it may be serving.
    ClearForgetsAfterlives, "B11";
    /// A new leader takes it that nobody serves by a lease of the one before.
    NewLeaderForgetsLeases, "B11";
    /// A member is declared down when half its lease is over.
    DownTooEarly, "B14";
    /// A member that is being declared down is granted its lease once more.
    RenewsTheCondemned, "B14";

    // Nodes: membership and what they give away.

    /// A lease counts before the map is adopted that came with it.
    LeaseBeforeMap, "B11";
    /// A lease counts from when its answer came, not from when it was asked for.
    LeaseFromAnswer, "B14";
    /// Who is told that it is no member any more does not register again.
    FencedStaysOut, "M12";
    /// Who did not answer is taken to have been given everything.
    UnansweredIsGiven, "B15";

    // Nodes: the shard.

    /// Blocks of an ended era are found.
    EndedEraIsFound, "B2";
    /// What another tenant holds under a key is found.
    OthersAreFound, "B10";
    /// A write that was given up half-way is a block.
    AbandonedIsSeen, "B5";
    /// A block that is here is written once more, under who reads it.
    PresentIsTaken, "B3";
    /// A frame is used again while somebody reads it.
    FreedUnderReader, "B6";
    /// A copy between tiers that failed counts as done.
    FailedCopyCounts, "B8";
    /// A block leaves before those after it.
    ParentsLeaveFirst, "B9";
    /// The frame of a write that was given up is never free again.
    AbandonedLeaks, "B17";
    /// What a tenant holds is not counted less when a block leaves.
    DropsAreNotCounted, "M11";
}

/// Says whether this bug is planted: never, in a build without planted bugs.
#[cfg(not(feature = "on"))]
#[must_use]
pub const fn is(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "on")]
mod planted {
    use super::Bug;
    use std::cell::Cell;

    std::thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Says whether this bug is planted in what this thread runs.
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug in what this thread runs from now on, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}

#[cfg(feature = "on")]
pub use planted::{is, plant};
