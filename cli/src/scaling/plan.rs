//! Who comes and who leaves when a cluster gets another size. Names that end in numbers are taken in the order of those, as a
//! StatefulSet does: the highest leaves first, the next one comes.

use anyhow::{Result, bail};

/// A member, as far as sizes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) is_up: bool,
    pub(crate) drains: bool,
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
        Ok(Plan { members: up.len(), size, stay, start, leave, undrain })
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
        Member { name, is_up: !text.ends_with('-'), drains: text.contains('!') }
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
    fn nobody_is_left_over_from_nobody() {
        assert!(Plan::of(&[], 3).is_err());
        assert!(Plan::of(&[member("a")], 0).is_err());
    }
}
