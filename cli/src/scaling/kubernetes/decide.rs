//! What a StatefulSet's change of size means for members: who must be empty before Kubernetes may end it, in which order, and what
//! forbids the change. Asks nobody.

use crate::report::{counted, counted_are};
use crate::scaling::{Member, Plan, Replicas};
use std::collections::BTreeMap;

/// A StatefulSet, as far as sizes go. A member bears the name of its pod: the set's name and an ordinal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StatefulSet {
    pub(crate) name: String,
    /// Pods that it is to have.
    pub(crate) replicas: u32,
    /// The ordinal of its first pod.
    pub(crate) first: u32,
}

/// Why the size must not change.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// The policy forbids it.
    #[error(
        "{} fewer than the floor of {floor}: lower it first with `kvhive scale set --floor {size}`",
        counted_are(*size as u64, "member")
    )]
    BelowFloor { size: usize, floor: usize },
    /// Members that the set does not run are enough, or too many.
    #[error(
        "of {} {others} would not be of StatefulSet {set}, and it keeps one pod at least: ask for {} or more",
        counted(*size as u64, "member"), others + 1
    )]
    OnlyOthers { set: String, size: usize, others: usize },
    /// Its pods join under other names, so nobody knows whom to empty.
    #[error(
        "StatefulSet {set} has {replicas} pods and no member is called {set}-N: a pod must join by its own name (`kvhive up --id $(POD_NAME)`), or it is the wrong set"
    )]
    NoneKnown { set: String, replicas: u32 },
}

impl StatefulSet {
    /// Plans the way to `size` members in all. Members that are not of the set stay and count.
    ///
    /// # Errors
    /// When the size must not change so.
    pub(crate) fn plan(&self, members: &[Member], size: usize, floor: usize) -> Result<Plan, Unfit> {
        if size < floor {
            return Err(Unfit::BelowFloor { size, floor });
        }
        let ours: BTreeMap<u32, &Member> =
            members.iter().filter_map(|member| Some((self.ordinal(&member.name)?, member))).collect();
        let is_other = |member: &&Member| self.ordinal(&member.name).is_none();
        // Whoever empties another one means to end it: it is not counted, as coordinators do not.
        let others: Vec<&Member> =
            members.iter().filter(is_other).filter(|member| member.is_up && !member.drains).collect();
        let to = match size.checked_sub(others.len()) {
            Some(to) if to > 0 => u32::try_from(to).unwrap_or(u32::MAX),
            _ => return Err(Unfit::OnlyOthers { set: self.name.clone(), size, others: others.len() }),
        };
        if to < self.replicas && ours.is_empty() {
            return Err(Unfit::NoneKnown { set: self.name.clone(), replicas: self.replicas });
        }
        let is_up = |ordinal: &u32| ours.get(ordinal).is_some_and(|member| member.is_up);
        let (past, end) = (self.first.saturating_add(self.replicas), self.first.saturating_add(to));
        // One that is up beyond what the set has is on its way out already. If it is to come back it does so as another process,
        // and must not be given slots before.
        let stays = |ordinal: &u32| is_up(ordinal) && *ordinal < past;
        let (stay, start): (Vec<u32>, Vec<u32>) = (self.first..end).partition(stays);
        let leave = ours.range(end..).map(|(ordinal, _)| *ordinal).rev().filter(is_up);
        // The map counts on nobody who is down: what such a member held is lost already, or elsewhere.
        let gone = (end..past).rev().filter(|ordinal| !is_up(ordinal));
        let undrain = ours
            .range(self.first..end)
            .filter(|(ordinal, member)| member.drains && (stays(ordinal) || !member.is_up));
        Ok(Plan {
            members: members.iter().filter(|member| member.is_up).count(),
            size,
            stay: self.names(stay).chain(others.iter().map(|other| other.name.clone())).collect(),
            start: self.names(start).collect(),
            leave: self.names(leave).collect(),
            undrain: undrain.map(|(_, member)| member.name.clone()).collect(),
            gone: self.names(gone).collect(),
            replicas: Some(Replicas { from: self.replicas, to }),
        })
    }

    /// Returns the ordinal of the pod of this name, if it is one of the set's.
    fn ordinal(&self, member: &str) -> Option<u32> {
        let digits = member.strip_prefix(&self.name)?.strip_prefix('-')?;
        let ordinal = digits.parse().ok().filter(|ordinal| *ordinal >= self.first)?;
        // No pod is called `node-01` or `node-+1`.
        (format!("{ordinal}") == digits).then_some(ordinal)
    }

    fn names(&self, ordinals: impl IntoIterator<Item = u32>) -> impl Iterator<Item = String> {
        ordinals.into_iter().map(|ordinal| format!("{}-{ordinal}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLOOR: usize = 1;

    fn set(replicas: u32) -> StatefulSet {
        StatefulSet { name: "node".to_owned(), replicas, first: 0 }
    }

    /// `node-1` is up, `node-1-` is down, `node-1!` drains.
    fn member(text: &str) -> Member {
        let name = text.trim_end_matches(['-', '!']).to_owned();
        let is_up = !text.ends_with('-');
        Member { name, is_up, drains: text.contains('!'), slots: if is_up { 100 } else { 0 } }
    }

    fn plan(set: &StatefulSet, members: &str, size: usize) -> Result<Plan, Unfit> {
        let members: Vec<Member> = members.split_whitespace().map(member).collect();
        set.plan(&members, size, FLOOR)
    }

    /// Who starts, who is emptied and ended, who is only ended, and the replicas.
    fn told(set: &StatefulSet, members: &str, size: usize) -> [String; 4] {
        let plan = plan(set, members, size).expect("it may be");
        let replicas = plan.replicas.expect("it is Kubernetes'");
        [
            plan.start.join(" "),
            plan.leave.join(" "),
            plan.gone.join(" "),
            format!("{}>{}", replicas.from, replicas.to),
        ]
    }

    #[test]
    fn whom_kubernetes_will_end_is_emptied_the_highest_first() {
        assert_eq!(told(&set(4), "node-0 node-1 node-2 node-3", 2), ["", "node-3 node-2", "", "4>2"]);
        let many = "node-0 node-1 node-2 node-3 node-4 node-5 node-6 node-7 node-8 node-9 node-10";
        assert_eq!(told(&set(11), many, 9), ["", "node-10 node-9", "", "11>9"], "by number, not by letter");
    }

    #[test]
    fn the_next_ordinals_come() {
        assert_eq!(told(&set(2), "node-0 node-1", 4), ["node-2 node-3", "", "", "2>4"]);
        assert_eq!(told(&set(0), "", 1), ["node-0", "", "", "0>1"], "also from nothing");
        assert_eq!(
            told(&set(3), "node-0 node-2", 3),
            ["node-1", "", "", "3>3"],
            "one that is missing is waited for"
        );
    }

    #[test]
    fn the_ordinals_begin_where_the_set_says() {
        let set = StatefulSet { first: 1, ..set(3) };
        assert_eq!(told(&set, "node-1 node-2 node-3", 2), ["", "node-3", "", "3>2"]);
        assert_eq!(told(&set, "node-1 node-2 node-3", 4), ["node-4", "", "", "3>4"]);
    }

    #[test]
    fn members_of_others_stay_and_count() {
        let members = "node-0 node-1 edge-0 node-01 other";
        assert_eq!(told(&set(2), members, 6), ["node-2", "", "", "2>3"]);
        assert_eq!(told(&set(2), members, 4), ["", "node-1", "", "2>1"]);
        let said = plan(&set(2), members, 3).expect_err("nobody of the set would be left");
        assert_eq!(said, Unfit::OnlyOthers { set: "node".to_owned(), size: 3, others: 3 });
        assert_eq!(
            told(&set(2), "node-0 node-1 edge-0!", 2),
            ["", "", "", "2>2"],
            "whom somebody ends does not"
        );
    }

    #[test]
    fn a_pod_that_never_came_is_ended_without_being_emptied() {
        assert_eq!(told(&set(4), "node-0 node-1", 2), ["", "", "node-3 node-2", "4>2"]);
        assert_eq!(
            told(&set(3), "node-0 node-1 node-2-", 2),
            ["", "", "node-2", "3>2"],
            "nor one that is down"
        );
    }

    #[test]
    fn a_set_whose_pods_nobody_knows_is_not_made_smaller() {
        let said = plan(&set(3), "kv-0 kv-1 kv-2", 4).expect_err("kv-2 might be one of its pods");
        assert_eq!(said, Unfit::NoneKnown { set: "node".to_owned(), replicas: 3 });
    }

    #[test]
    fn nothing_goes_below_the_floor() {
        let members: Vec<Member> = ["node-0", "node-1", "node-2"].map(member).into();
        let said = set(3).plan(&members, 1, 2).expect_err("two are the fewest");
        assert_eq!(said, Unfit::BelowFloor { size: 1, floor: 2 });
        assert!(set(3).plan(&members, 2, 2).is_ok());
    }

    #[test]
    fn who_stays_or_comes_holds_slots_again() {
        let plan = plan(&set(2), "node-0! node-1 node-2!- node-3!- edge-0!", 3).expect("it may be");
        assert_eq!((plan.undrain, plan.start), (words(&["node-0", "node-2"]), words(&["node-2"])));
    }

    #[test]
    fn one_that_is_ending_and_is_to_come_back_ends_first() {
        let plan = plan(&set(2), "node-0 node-1 node-2!", 3).expect("it may be");
        assert_eq!((plan.undrain.clone(), plan.start.clone()), (Vec::new(), words(&["node-2"])));
        assert!(plan.is_change());
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    proptest! {
        /// Whatever there is: every pod that Kubernetes would end and that is up is emptied first.
        #[test]
        fn nobody_that_is_up_is_ended_unemptied(
            first in 0u32..3,
            replicas in 0u32..8,
            size in 0usize..12,
            floor in 0usize..4,
            found in proptest::collection::vec((0u32..10, any::<bool>(), any::<bool>(), any::<bool>()), 0..10),
        ) {
            let set = StatefulSet { name: "node".to_owned(), replicas, first };
            let mut members: Vec<Member> = Vec::new();
            for (ordinal, is_up, drains, is_ours) in found {
                let name = format!("{}-{ordinal}", if is_ours { "node" } else { "edge" });
                if members.iter().all(|member| member.name != name) {
                    members.push(Member { name, is_up, drains, slots: 1 });
                }
            }
            let Ok(plan) = set.plan(&members, size, floor) else { return Ok(()) };
            let to = plan.replicas.expect("it is Kubernetes'").to;
            prop_assert!(to >= 1 && size >= floor);
            for ordinal in first + to..first + replicas {
                let name = format!("node-{ordinal}");
                let holds = members.iter().any(|member| member.name == name && member.is_up);
                prop_assert!(!holds || plan.leave.contains(&name), "{name} in {plan:?}");
                prop_assert!(plan.leave.contains(&name) != plan.gone.contains(&name));
            }
            let ordinals: Vec<u32> = plan.leave.iter().filter_map(|name| set.ordinal(name)).collect();
            prop_assert!(ordinals.is_sorted_by(|one, next| one > next), "{ordinals:?}");
            for name in plan.stay.iter().chain(&plan.start) {
                prop_assert!(!plan.leave.contains(name) && !plan.gone.contains(name));
            }
            prop_assert_eq!(plan.stay.len() + plan.start.len(), size);
        }
    }
}
