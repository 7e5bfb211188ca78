//! Starts of members that are over by the map and may be serving still, as their leader counts the time that is left to them. Which
//! there are is in the map, so a new leader knows; until when, each leader knows for itself: of those that went while it leads from
//! what it granted them, of all others a whole serving lease from when it was elected.

use crate::leases::{Record, Server, again};
use kvhive_protocol::{ClusterMap, Epoch, Generation, MemberId, Moment};
use std::collections::BTreeMap;
use std::time::Duration;

/// What may be left of a member's ended starts.
#[derive(Clone, Copy, Debug)]
struct Afterlife {
    /// The newest of them; none for members that no map has.
    generation: Option<Generation>,
    until: Moment,
    /// The oldest map that one of them may serve by.
    epoch: Epoch,
    /// Set once it was proposed that it is over: when to propose it again, and how long to wait after that.
    proposed: Option<(Moment, Duration)>,
}

impl Afterlife {
    fn beginning(generation: Option<Generation>, until: Moment, epoch: Epoch) -> Afterlife {
        Afterlife { generation, until, epoch, proposed: None }
    }
}

/// All that may be serving though the map has it no more.
#[derive(Clone, Default)]
pub(crate) struct Afterlives {
    /// By member; none is for those that no map has.
    left: BTreeMap<Option<MemberId>, Afterlife>,
}

impl Afterlives {
    /// Follows the map. `ended` are the starts that the map had up until now and has no more; what is not among them may serve until
    /// `inherited`, by any map.
    pub(crate) fn sync(&mut self, map: &ClusterMap, ended: &BTreeMap<MemberId, Record>, inherited: Moment) {
        let lingers = |id: &MemberId| map.members.get(id).and_then(|member| member.lingers);
        self.left.retain(|id, _| id.as_ref().map_or(map.strangers, |id| lingers(id).is_some()));
        if map.strangers {
            let all = || Afterlife::beginning(None, inherited, Epoch(0));
            self.left.entry(None).or_insert_with(all);
        }
        for (id, member) in &map.members {
            let Some(lingering) = member.lingers else { continue };
            let generation = Some(lingering.generation);
            let known = self.left.get(&Some(*id)).copied();
            if known.is_some_and(|known| known.generation == generation) {
                continue;
            }
            let fresh = match ended.get(id) {
                Some(record) if record.generation == lingering.generation => {
                    Afterlife::beginning(generation, record.serving_until, record.epoch)
                }
                // It came and went between two looks: it was granted nothing here.
                Some(record) => {
                    Afterlife::beginning(generation, record.serving_until.max(inherited), Epoch(0))
                }
                None => Afterlife::beginning(generation, inherited, Epoch(0)),
            };
            let both = known.map_or(fresh, |known| Afterlife {
                until: known.until.max(fresh.until),
                epoch: known.epoch.min(fresh.epoch),
                ..fresh
            });
            self.left.insert(Some(*id), both);
        }
    }

    /// Returns those who may be serving by a map older than that of `epoch`.
    pub(crate) fn serving_before(&self, epoch: Epoch, now: Moment) -> impl Iterator<Item = Server> {
        let left = self.left.iter().filter(move |(_, one)| one.epoch < epoch && one.until > now);
        left.map(|(member, one)| Server { member: *member, until: one.until, is_silent: true })
    }

    /// Returns one that is over and for which a proposal is due, and remembers that it was made.
    pub(crate) fn outlived(
        &mut self,
        now: Moment,
        first: Duration,
        most: Duration,
    ) -> Option<Option<(MemberId, Generation)>> {
        let is_due = |one: &Afterlife| one.until <= now && one.proposed.is_none_or(|(again, _)| again <= now);
        let (id, one) = self.left.iter_mut().find(|(_, one)| is_due(one))?;
        one.proposed = Some(again(now, one.proposed, first, most));
        Some(id.zip(one.generation))
    }
}
