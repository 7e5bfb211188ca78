//! Numbers of things in words that people read.

/// Writes a number of things, of one of which `noun` is the word.
pub fn counted(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Writes a number of things of which something is said: "1 slot is", "2 slots are".
pub fn counted_are(count: impl Into<u64>, noun: &str) -> String {
    let count = count.into();
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", counted(count, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_thing_nothing_is_said_as_of_several() {
        let said = [0_u64, 1, 2].map(|count| counted_are(count, "slot"));
        assert_eq!(said, ["0 slots are", "1 slot is", "2 slots are"]);
        assert_eq!([1_u32, 3].map(|count| counted(count, "member")), ["1 member", "3 members"]);
    }
}
