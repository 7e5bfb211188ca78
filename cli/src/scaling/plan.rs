//! Who comes and who leaves when a cluster gets another size. Names that end in numbers are taken in the order of those, as a
//! StatefulSet does: the highest leaves first, the next one comes.

use anyhow::{Result, bail};

/// A member, as far as sizes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) is_up: bool,
    pub(crate) drains: bool,
    /// Slots that the map has on its devices.
    pub(crate) slots: u64,
}

/// How many pods a StatefulSet has and is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Replicas {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// Members that are up now.
    pub(crate) members: usize,
    /// Members that are to be.
    pub(crate) size: usize,
    /// Who stays, in order.
    pub(crate) stay: Vec<String>,
    /// Who is to be started, in order.
    pub(crate) start: Vec<String>,
    /// Who is to be emptied and ended, the highest first.
    pub(crate) leave: Vec<String>,
    /// Who is being emptied, or was when it ended, and is to hold slots again.
    pub(crate) undrain: Vec<String>,
    /// Who is to be ended and is not up: there is nothing to empty.
    pub(crate) gone: Vec<String>,
    /// Where Kubernetes starts and ends them.
    pub(crate) replicas: Option<Replicas>,
}

impl Plan {
    /// Plans the way to `size` members.
    pub(crate) fn of(members: &[Member], size: usize) -> Result<Plan> {
        let mut up: Vec<&Member> = members.iter().filter(|member| member.is_up).collect();
        up.sort_by_key(|member| order(&member.name));
        let Some(last) = up.last() else { bail!("no member is up: start one by hand first") };
        if size == 0 {
            bail!("a cluster keeps one member at least");
        }
        let (prefix, _) = parted(&last.name);
        let stay: Vec<String> = up.iter().take(size).map(|member| member.name.clone()).collect();
        let leave: Vec<String> = up.iter().skip(size).rev().map(|member| member.name.clone()).collect();
        let mut start = Vec::new();
        let mut number = up
            .iter()
            .find(|member| parted(&member.name).0 == prefix)
            .map_or(0, |member| parted(&member.name).1.unwrap_or(0));
        while stay.len() + start.len() < size {
            let name = format!("{prefix}{number}");
            if !stay.contains(&name) {
                start.push(name);
            }
            number += 1;
        }
        let comes = |member: &&Member| stay.contains(&member.name) || start.contains(&member.name);
        let undrain = members.iter().filter(|member| member.drains).filter(comes);
        let undrain = undrain.map(|member| member.name.clone()).collect();
        Ok(Plan { members: up.len(), size, stay, start, leave, undrain, gone: Vec::new(), replicas: None })
    }

    /// Whether anything is to be started or ended.
    pub(crate) fn is_change(&self) -> bool {
        !(self.start.is_empty() && self.leave.is_empty() && self.gone.is_empty())
    }

    /// Whether it has come about: as many are up as wanted, and nobody who leaves.
    pub(crate) fn is_done(&self, members: &[Member]) -> bool {
        let is_up = |name: &String| members.iter().any(|member| member.is_up && member.name == *name);
        if self.leave.iter().any(is_up) {
            return false;
        }
        match self.replicas {
            // A program may start members under names of its own.
            None => members.iter().filter(|member| member.is_up).count() == self.size,
            // Kubernetes does not, and others than the set's may come and go meanwhile.
            Some(_) => self.start.iter().all(is_up),
        }
    }

    /// Returns who was to be emptied and holds slots again, or would: a process that starts anew may take the drain back.
    pub(crate) fn not_empty<'a>(&'a self, members: &'a [Member]) -> Option<&'a Member> {
        let is_leaving = |member: &&Member| self.leave.contains(&member.name);
        members.iter().filter(is_leaving).find(|member| member.slots > 0 || (member.is_up && !member.drains))
    }
}

/// Returns a name without the number at its end, and that number.
fn parted(name: &str) -> (&str, Option<u64>) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (prefix, number) = name.split_at(name.len() - digits);
    match number.parse() {
        Ok(number) => (prefix, Some(number)),
        // Without a number, or with one that is none.
        Err(_) => (name, None),
    }
}

fn order(name: &str) -> (String, Option<u64>) {
    let (prefix, number) = parted(name);
    (prefix.to_owned(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &str) -> Member {
        let name = text.trim_end_matches(['-', '!']).to_owned();
        Member { name, is_up: !text.ends_with('-'), drains: text.contains('!'), slots: 0 }
    }

    fn plan(members: &str, size: usize) -> (String, String, String) {
        let members: Vec<Member> = members.split(' ').map(member).collect();
        let plan = Plan::of(&members, size).expect("there are members");
        (plan.start.join(" "), plan.leave.join(" "), plan.undrain.join(" "))
    }

    fn words(start: &str, leave: &str, undrain: &str) -> (String, String, String) {
        (start.to_owned(), leave.to_owned(), undrain.to_owned())
    }

    #[test]
    fn the_highest_number_leaves_first_and_the_next_comes() {
        assert_eq!(plan("node-1 node-2", 4), words("node-3 node-4", "", ""));
        assert_eq!(plan("node-2 node-10 node-9 node-1", 2), words("", "node-10 node-9", ""));
        assert_eq!(plan("kvhive-0 kvhive-1 kvhive-2", 4), words("kvhive-3", "", ""));
        assert_eq!(plan("a b c", 1), words("", "c b", ""));
    }

    #[test]
    fn one_that_was_scaled_away_comes_back_and_holds_slots_again() {
        assert_eq!(plan("node-1 node-2 node-3!-", 3), words("node-3", "", "node-3"));
        assert_eq!(plan("node-1 node-3", 3), words("node-2", "", ""), "a gap is filled");
    }

    #[test]
    fn what_was_interrupted_goes_on() {
        assert_eq!(plan("node-1 node-2 node-3!", 2), words("", "node-3", ""));
        assert_eq!(plan("node-1 node-2 node-3!", 3), words("", "", "node-3"), "or is taken back");
    }

    #[test]
    fn it_is_done_when_all_have_come_and_gone() {
        let members = |text: &str| text.split(' ').map(member).collect::<Vec<Member>>();
        let two = Plan::of(&members("node-1 node-2 node-3"), 2).expect("there are members");
        assert!(!two.is_done(&members("node-1 node-2 node-3!")), "one lingers");
        assert!(two.is_done(&members("node-1 node-2 node-3!-")));
        let three = Plan::of(&members("node-1 node-2"), 3).expect("there are members");
        assert!(!three.is_done(&members("node-1 node-2")));
        assert!(three.is_done(&members("node-1 node-2 job-77")), "a program gives names of its own");
        let pods = Plan { replicas: Some(Replicas { from: 2, to: 3 }), ..three };
        assert!(!pods.is_done(&members("node-1 node-2 job-77")), "Kubernetes does not");
        assert!(pods.is_done(&members("node-1- node-2 node-3 job-77")), "another's end is not waited for");
    }

    #[test]
    fn who_holds_slots_again_is_not_ended() {
        let plan = Plan::of(&[member("node-1"), member("node-2")], 1).expect("there are members");
        let found = |member: Member| plan.not_empty(&[member]).is_some();
        assert!(!found(member("node-2!")));
        assert!(!found(member("node-2-")), "it has gone by itself, and holds nothing");
        assert!(found(member("node-2")), "its drain was taken back");
        assert!(found(Member { slots: 1, ..member("node-2!") }));
        assert!(!found(Member { slots: 1, ..member("node-1") }), "that one stays");
    }

    #[test]
    fn nobody_is_left_over_from_nobody() {
        assert!(Plan::of(&[], 3).is_err());
        assert!(Plan::of(&[member("a")], 0).is_err());
    }
}
