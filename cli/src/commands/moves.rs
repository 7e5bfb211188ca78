//! `kvhive moves`.

use super::status::{list, size, text};
use crate::admin::Target;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;

/// Rows of the table unless all are asked for.
const SHOWN: usize = 20;

/// Show which slots are on their way: from whom, to whom, how far, and why
///
/// A slot is served from where it is until who gets it has all of it. `planned`: nobody new has it yet. `waiting`: who is to have it gets new
/// blocks and has yet to be given the older ones. `copying`: its primary gives its blocks away. `kvhive events` says what was decided when.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  kvhive moves                      # how many and why, and the first of them
  kvhive moves --all                # each of them
  watch -n1 kvhive moves            # while a node is emptied")]
pub(crate) struct Moves {
    #[command(flatten)]
    target: Target,
    /// Show every one
    #[arg(long)]
    all: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Moves {
    /// Prints what moves.
    ///
    /// # Errors
    /// When no coordinator answers, or none leads.
    pub(crate) fn run(self) -> Result<()> {
        let answer: Value = self.target.resolve()?.get_list("/v1/moves", "moves")?;
        if self.json {
            return report::print_json(&answer);
        }
        let moves = list(&answer["moves"]);
        if moves.is_empty() {
            println!("nothing moves: every slot is where it belongs");
            return Ok(());
        }
        println!(
            "{} on the way, {} being copied now, {} have gone so far",
            report::counted_are(moves.len() as u64, "slot"),
            text(&answer, "copying"),
            size(&answer, "moved_bytes")
        );
        for (reason, count) in reasons(moves) {
            println!("  {count:>5}  {reason}");
        }
        println!();
        let most = if self.all { usize::MAX } else { SHOWN };
        let mut table = report::table(&["SLOT", "FROM", "TO", "LEAVES", "STAGE", "GONE", "FOR", "WHY"]);
        for one in moves.iter().take(most) {
            let devices = |field: &str| {
                let all: Vec<&str> = list(&one[field]).iter().filter_map(Value::as_str).collect();
                if all.is_empty() { "-".to_owned() } else { all.join(" ") }
            };
            let for_s =
                one["for_ms"].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s", ms / 1e3));
            table.add_row([
                text(one, "slot"),
                text(one, "from"),
                devices("to"),
                devices("leaves"),
                text(one, "stage"),
                size(one, "moved_bytes"),
                for_s,
                text(one, "why"),
            ]);
        }
        report::print_table(&table);
        if moves.len() > most {
            println!("\n{} more; --all shows them", moves.len() - most);
        }
        Ok(())
    }
}

/// Counts what moves for the same reason, most first.
fn reasons(moves: &[Value]) -> Vec<(String, usize)> {
    let counted = moves.iter().fold(BTreeMap::<String, usize>::new(), |mut all, one| {
        *all.entry(text(one, "reason")).or_default() += 1;
        all
    });
    let mut counted: Vec<_> = counted.into_iter().collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reasons_are_counted_most_first() {
        let one = |reason: &str| json!({ "reason": reason });
        let moves = [one("a"), one("b"), one("b")];
        assert_eq!(reasons(&moves), [("b".to_owned(), 2), ("a".to_owned(), 1)]);
    }
}
