//! What several devices' words on one block come to.

use kvhive_protocol::explain::{Departure, Explained, Since};
use kvhive_protocol::{DeviceId, LayoutFingerprint};
use std::time::Duration;

/// What a device is to a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Its slot is placed there.
    Whole,
    /// Its slot is placed there, and older blocks of it are still to come.
    Filling,
    /// Its slot is not: whatever is there is found by nobody.
    Elsewhere,
    /// The slot is not known.
    Unknown,
}

/// Why a device has said nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Silence {
    /// Its node holds no lease by which it serves this map, or none at all.
    NoLease,
    /// It did not answer within this time.
    Late(Duration),
    /// It could not be reached.
    Unreachable(String),
    /// It would not answer.
    Refused(String),
    /// Time was over before it was its turn.
    NotAsked,
}

/// What one device says of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Which.
    pub device: DeviceId,
    /// What it is to the block.
    pub place: Place,
    /// What it says.
    pub said: Result<Explained, Silence>,
}

/// Why a block is a hit or a miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is there.
    Here,
    /// It is being written.
    Coming,
    /// It is there in another layout: the asker would not know how to read it.
    OtherLayout(LayoutFingerprint),
    /// Nobody is to have it: no replica of its slot is left.
    Unplaced,
    /// It lies on this device alone, which its slot has left.
    Stray(DeviceId),
    /// It was there, or was to come, and is not: so this device says, where it went last.
    Gone(DeviceId, Departure),
    /// Whoever may have it has not answered.
    Unheard,
    /// Its slot has just been placed where nobody has brought its blocks yet.
    Filling,
    /// It has neither come nor gone for so long.
    Never {
        /// What was before that time.
        since: Since,
        /// How long that is, in seconds.
        for_s: u32,
    },
}

impl Verdict {
    /// Says whether it is a hit.
    pub fn is_here(self) -> bool {
        self == Verdict::Here
    }

    /// Says whether a device that the block is not placed on may know more.
    pub(super) fn may_be_elsewhere(self) -> bool {
        matches!(self, Verdict::Unplaced | Verdict::Unheard | Verdict::Filling | Verdict::Never { .. })
    }
}

/// Says what the devices' words come to, for who reads the layout `wanted` or, without one, any. Where one has it nothing else
/// counts; then what happened last does; and that nothing has, only where all have said so.
pub(crate) fn fold(replicas: &[Replica], wanted: Option<LayoutFingerprint>) -> Verdict {
    let placed = || replicas.iter().filter(|one| one.place != Place::Elsewhere);
    let mut other_layout = None;
    for one in placed() {
        if let Ok(Explained::Here { fingerprint, .. }) = one.said {
            if wanted.is_none_or(|wanted| wanted == fingerprint) {
                return Verdict::Here;
            }
            other_layout = Some(fingerprint);
        }
    }
    if let Some(fingerprint) = other_layout {
        return Verdict::OtherLayout(fingerprint);
    }
    if placed().any(|one| one.said == Ok(Explained::Coming)) {
        return Verdict::Coming;
    }
    if placed().next().is_none() {
        return Verdict::Unplaced;
    }
    let has_it = |one: &&Replica| matches!(one.said, Ok(Explained::Here { .. }));
    if let Some(stray) = replicas.iter().find(has_it) {
        return Verdict::Stray(stray.device);
    }
    let gone = replicas.iter().filter_map(|one| match one.said {
        Ok(Explained::Gone(departure)) => Some((one.device, departure)),
        _ => None,
    });
    if let Some((device, departure)) = gone.min_by_key(|(_, departure)| departure.ago_s) {
        return Verdict::Gone(device, departure);
    }
    if placed().any(|one| one.said.is_err()) {
        return Verdict::Unheard;
    }
    if placed().all(|one| one.place == Place::Filling) {
        return Verdict::Filling;
    }
    // Whoever remembers longest.
    let unknown = placed().filter_map(|one| match one.said {
        Ok(Explained::Unknown { since, for_s }) => Some((for_s, since)),
        _ => None,
    });
    let (for_s, since) = unknown.max().unwrap_or((0, Since::Began));
    Verdict::Never { since, for_s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::watch::{BlockTier, Gone};
    use kvhive_protocol::{MemberId, Slot, Strategy};

    const WANTED: LayoutFingerprint = LayoutFingerprint([1; 16]);
    const OTHER: LayoutFingerprint = LayoutFingerprint([2; 16]);

    fn device(member: u32) -> DeviceId {
        DeviceId::new(MemberId(member), 0)
    }

    fn here(fingerprint: LayoutFingerprint) -> Explained {
        Explained::Here {
            tier: BlockTier::Host,
            codec: Codec::Raw,
            bytes: 100,
            fingerprint,
            slot: Slot(1),
            pinned: false,
        }
    }

    fn departure(why: Gone, ago_s: u32) -> Departure {
        Departure { why, from: Some(BlockTier::Device), strategy: Strategy::Lru, ago_s }
    }

    fn gone(why: Gone, ago_s: u32) -> Explained {
        Explained::Gone(departure(why, ago_s))
    }

    fn unknown(since: Since, for_s: u32) -> Explained {
        Explained::Unknown { since, for_s }
    }

    /// Members 0, 1, … say this of a block that is placed on them.
    fn verdict<const N: usize>(said: [Result<Explained, Silence>; N]) -> Verdict {
        fold(&replicas(said.map(|said| (Place::Whole, said))), Some(WANTED))
    }

    fn replicas<const N: usize>(said: [(Place, Result<Explained, Silence>); N]) -> Vec<Replica> {
        let replica = |(at, (place, said))| Replica { device: device(at), place, said };
        (0..).zip(said).map(replica).collect()
    }

    #[test]
    fn one_that_has_it_makes_it_a_hit_whatever_others_say() {
        let evicted = gone(Gone::Evicted, 3);
        assert_eq!(verdict([Ok(evicted), Ok(here(WANTED))]), Verdict::Here);
        assert_eq!(verdict([Err(Silence::NoLease), Ok(here(WANTED))]), Verdict::Here);
        assert_eq!(verdict([Ok(here(OTHER)), Ok(here(WANTED))]), Verdict::Here);
        assert_eq!(verdict([Ok(here(OTHER)), Ok(evicted)]), Verdict::OtherLayout(OTHER));
        assert_eq!(verdict([Ok(Explained::Coming), Ok(evicted)]), Verdict::Coming);
        assert_eq!(fold(&replicas([(Place::Whole, Ok(here(OTHER)))]), None), Verdict::Here, "any layout");
    }

    #[test]
    fn what_happened_last_is_why_it_is_gone() {
        let (older, newer) = (gone(Gone::Evicted, 60), gone(Gone::Declined, 5));
        assert_eq!(verdict([Ok(older), Ok(newer)]), Verdict::Gone(device(1), departure(Gone::Declined, 5)));
        let never = unknown(Since::Began, 900);
        let evicted = Verdict::Gone(device(0), departure(Gone::Evicted, 60));
        assert_eq!(verdict([Ok(older), Ok(never)]), evicted);
        assert_eq!(verdict([Ok(older), Err(Silence::NotAsked)]), evicted);
    }

    #[test]
    fn it_never_came_only_if_everybody_says_so() {
        let said = [Ok(unknown(Since::Placed, 40)), Ok(unknown(Since::Forgotten, 700))];
        assert_eq!(verdict(said), Verdict::Never { since: Since::Forgotten, for_s: 700 });
        let late = Err(Silence::Late(Duration::from_secs(5)));
        assert_eq!(verdict([Ok(unknown(Since::Began, 700)), late]), Verdict::Unheard);
        assert_eq!(verdict([]), Verdict::Unplaced);
    }

    #[test]
    fn a_slot_that_is_being_filled_is_no_reason_while_another_has_all_of_it() {
        let never = Ok(unknown(Since::Placed, 4));
        let filling = (Place::Filling, never.clone());
        assert_eq!(fold(&replicas([filling.clone()]), None), Verdict::Filling);
        let both = replicas([filling, (Place::Whole, Ok(unknown(Since::Began, 90)))]);
        assert_eq!(fold(&both, None), Verdict::Never { since: Since::Began, for_s: 90 });
    }

    #[test]
    fn what_lies_where_its_slot_is_not_is_found_by_nobody() {
        let never = (Place::Whole, Ok(unknown(Since::Placed, 40)));
        let stray = (Place::Elsewhere, Ok(here(WANTED)));
        let both = replicas([never.clone(), stray.clone()]);
        assert_eq!(fold(&both, Some(WANTED)), Verdict::Stray(device(1)));
        assert_eq!(fold(&replicas([stray]), Some(WANTED)), Verdict::Unplaced);
        let left = replicas([never, (Place::Elsewhere, Ok(gone(Gone::Evicted, 8)))]);
        assert_eq!(fold(&left, None), Verdict::Gone(device(1), departure(Gone::Evicted, 8)));
    }
}
