//! What emptying nodes may cost, asked beforehand, and what it came to, as the coordinators have written it down.

use crate::admin::Admin;
use crate::commands::status::list;
use crate::report;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long it may take until every device has said what it holds, and until it is written down what emptying came to.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(250);
/// What tells of emptying.
const KINDS: &str = "drain-begun,drain-ended,drain-finished";

/// What may be lost by emptying nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MayLose {
    /// Nothing: it is refused where room is short.
    Nothing,
    /// What is least wanted, where those who stay are full: it leaves them all the time.
    LeastWanted,
    /// Whatever finds no room, but what is pinned.
    Anything,
}

/// What room those who stay have.
#[derive(Clone, Deserialize, Debug)]
pub(crate) struct Room {
    /// Who is counted: those that were asked for, and whoever is being emptied already.
    pub(crate) nodes: Vec<String>,
    /// Blocks that are to go elsewhere, and bytes of their frames.
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// Blocks of these that a replica which stays may have too.
    pub(crate) unsure_blocks: u64,
    /// Bytes that those who stay can take in before anything leaves for them.
    pub(crate) free_bytes: u64,
    /// Bytes that find no room where they would go.
    pub(crate) short_bytes: u64,
    /// Bytes more than their shares that those who get a part may get, which count as short where they find none; none from a coordinator
    /// of before.
    #[serde(default)]
    pub(crate) margin_bytes: u64,
    /// Some of those who stay are full.
    pub(crate) full: bool,
}

/// Nodes that those who stay have too little room for.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}. Start a node first, or say --yes: blocks that are pinned stay even then", self.0.told(), self.0.loss())]
pub(crate) struct Short(pub(crate) Room);

impl Room {
    /// Asks what room there is for what `nodes` hold.
    ///
    /// # Errors
    /// When no coordinator answers, or a device does not say what it holds.
    fn of(admin: &Admin, nodes: &[String]) -> Result<Room> {
        let begun = Instant::now();
        loop {
            let mut told: Value = admin.get(&format!("/v1/drains?members={}", nodes.join(",")))?;
            match told["room"].take() {
                Value::Null if begun.elapsed() > PATIENCE => bail!(
                    "not every device has said what it holds: `kvhive nodes` shows who is up; --yes empties {} all the same",
                    nodes.join(", ")
                ),
                Value::Null => std::thread::sleep(POLL),
                room => return Ok(serde_json::from_value(room)?),
            }
        }
    }

    /// Says what is held and what is free.
    pub(crate) fn told(&self) -> String {
        let Room { blocks, bytes, free_bytes, short_bytes, .. } = self;
        let short = match short_bytes {
            0 => String::new(),
            short => format!(", {} too little where it would go", report::bytes(*short)),
        };
        let unsure = match self.unsure_blocks {
            0 => String::new(),
            unsure => format!("; {unsure} of these a replica that stays may have, which has let blocks go"),
        };
        let margin = match self.margin_bytes.min(self.short_bytes) {
            0 => String::new(),
            _ => format!(
                "; {} of that is a margin, as segments do not go to all in equal parts",
                report::bytes(self.margin_bytes.min(self.short_bytes))
            ),
        };
        format!(
            "{} hold{} {} ({}) for the others, which have {} free{short}{margin}{unsure}",
            self.nodes.join(", "),
            if self.nodes.len() == 1 { "s" } else { " together" },
            report::counted(*blocks, "block"),
            report::bytes(*bytes),
            report::bytes(*free_bytes)
        )
    }

    /// Says about how many blocks would be lost.
    fn loss(&self) -> String {
        let part = |blocks: u64| u128::from(self.short_bytes) * u128::from(blocks);
        let lost = part(self.blocks).div_ceil(u128::from(self.bytes.max(1))) as u64;
        let is_bound = self.unsure_blocks > 0 || self.margin_bytes > 0;
        let about = if is_bound { "as many as" } else { "about" };
        // A margin is no block: no more are lost than are held.
        format!("{about} {} would be lost", report::counted(lost.min(self.blocks), "block"))
    }
}

/// Says what room there is for what nodes hold that are to be emptied together, and whether blocks may be lost by it.
///
/// # Errors
/// [`Short`] when room is short and that may not be; when it is not known.
pub(crate) fn check(admin: &Admin, nodes: &[String], may: MayLose) -> Result<(Option<Room>, bool)> {
    if nodes.is_empty() {
        return Ok((None, false));
    }
    let room = match Room::of(admin, nodes) {
        Ok(room) => room,
        Err(_) if may == MayLose::Anything => return Ok((None, true)),
        Err(error) => return Err(error),
    };
    let loses = may == MayLose::Anything || may == MayLose::LeastWanted && room.full;
    if room.short_bytes > 0 && !loses {
        return Err(Short(room).into());
    }
    Ok((Some(room), loses))
}

/// Returns how many pinned blocks of a node wait for room, and how many blocks others have by now; none where that is not known.
pub(crate) fn waiting(admin: &Admin, node: &str) -> Option<(u64, u64)> {
    let told: Value = admin.get(&format!("/v1/drains?members={node}")).ok()?;
    let number = |field: &str| told["drains"][0][field].as_u64();
    Some((number("waiting_blocks")?, number("moved_blocks")? + number("there_blocks")?))
}

/// What the journal tells of emptying a node, as far as it was read.
#[derive(Default)]
struct Told {
    after: u64,
    /// The newest.
    last: Value,
}

impl Told {
    /// Reads on to the end.
    fn read(&mut self, admin: &Admin, node: &str) -> Result<()> {
        loop {
            let path = format!("/v1/events?after={}&limit=1024&kind={KINDS}", self.after);
            let page: Value = admin.get(&path)?;
            let mut of_it = list(&page["events"]).iter().filter(|event| event["subject"]["member"] == node);
            if let Some(last) = of_it.next_back() {
                self.last = last.clone();
            }
            let next = page["next_after"].as_u64().unwrap_or(self.after);
            if next <= self.after {
                return Ok(());
            }
            self.after = next;
        }
    }
}

/// Says whether a change of size has begun to empty a node, by the journal: that may be taken back by another one.
///
/// # Errors
/// When no coordinator answers.
pub(crate) fn is_by_size(admin: &Admin, node: &str) -> Result<bool> {
    let mut told = Told::default();
    told.read(admin, node)?;
    Ok(begun_by_size(&told.last))
}

/// Says whether an event tells that a change of size has begun to empty a node.
fn begun_by_size(event: &Value) -> bool {
    event["kind"] == "drain-begun" && event["facts"]["members_wanted"].is_u64()
}

/// What became of blocks of nodes that were emptied.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CameTo {
    /// Slots that went to others.
    #[serde(skip_serializing)]
    pub(crate) slots: u64,
    /// Blocks that went to others, and their bytes.
    pub(crate) moved_blocks: u64,
    pub(crate) moved_bytes: u64,
    /// Blocks that others had before.
    pub(crate) there_blocks: u64,
    /// Blocks that others gave no room.
    pub(crate) declined_blocks: u64,
    /// Blocks that left elsewhere to make room.
    pub(crate) displaced_blocks: u64,
    /// Blocks that could not be read.
    pub(crate) unread_blocks: u64,
    /// Blocks that nobody holds any more because of it, and their bytes.
    pub(crate) lost_blocks: u64,
    pub(crate) lost_bytes: u64,
    /// Members that did not say what they had counted to the end.
    pub(crate) members_unheard: u64,
    /// Members that went down before they were empty: what only they held is lost, and counted nowhere.
    pub(crate) cut_short: u64,
}

/// Blocks were lost: it was done, and this is not how it should end.
#[derive(Debug, thiserror::Error)]
#[error("{} ({}) lost: {}", report::counted(.0.lost_blocks, "block"), report::bytes(.0.lost_bytes), .0.why())]
pub(crate) struct Lost(pub(crate) CameTo);

impl CameTo {
    /// Waits until it is written down what emptying `node` came to; none if nobody does.
    pub(crate) fn written(admin: &Admin, node: &str) -> Option<CameTo> {
        let begun = Instant::now();
        let mut told = Told::default();
        loop {
            // Another coordinator may be about to lead.
            let _ = told.read(admin, node);
            if told.last["kind"] == "drain-finished" {
                return serde_json::from_value(told.last["facts"].take()).ok();
            }
            if begun.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Adds another's figures.
    pub(crate) fn add(&mut self, other: &CameTo) {
        for (sum, more) in [
            (&mut self.slots, other.slots),
            (&mut self.moved_blocks, other.moved_blocks),
            (&mut self.moved_bytes, other.moved_bytes),
            (&mut self.there_blocks, other.there_blocks),
            (&mut self.declined_blocks, other.declined_blocks),
            (&mut self.displaced_blocks, other.displaced_blocks),
            (&mut self.unread_blocks, other.unread_blocks),
            (&mut self.lost_blocks, other.lost_blocks),
            (&mut self.lost_bytes, other.lost_bytes),
            (&mut self.members_unheard, other.members_unheard),
            (&mut self.cut_short, other.cut_short),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Says it in one line.
    pub(crate) fn told(&self) -> String {
        let there = match self.there_blocks {
            0 => String::new(),
            1 => ", 1 copy was there already".to_owned(),
            there => format!(", {there} copies were there already"),
        };
        let lost = match self.lost_blocks {
            0 => "lost: 0".to_owned(),
            lost => format!("lost: {lost} ({}): {}", report::bytes(self.lost_bytes), self.why()),
        };
        let unheard = match self.members_unheard {
            0 => String::new(),
            unheard => {
                format!("; {} did not say to the end what was counted", report::counted(unheard, "member"))
            }
        };
        let cut_short = match self.cut_short {
            0 => "",
            _ => "; it went down before it was empty, and what only it held is lost and not counted",
        };
        format!(
            "{} moved ({}){there}; {lost}{unheard}{cut_short}",
            report::counted(self.moved_blocks, "block"),
            report::bytes(self.moved_bytes)
        )
    }

    /// Says why blocks were lost.
    fn why(&self) -> String {
        let whys = [
            (self.declined_blocks, "were given no room by the others"),
            (self.displaced_blocks, "left the others to make room"),
            (self.unread_blocks, "could not be read"),
        ];
        let whys = whys.into_iter().filter(|(count, _)| *count > 0);
        let whys: Vec<String> = whys.map(|(count, why)| format!("{count} {why}")).collect();
        whys.join(", ")
    }

    /// Says whether it ends as it should.
    ///
    /// # Errors
    /// [`Lost`] when blocks were lost.
    pub(crate) fn is_whole(&self) -> Result<(), Lost> {
        if self.lost_blocks > 0 { Err(Lost(*self)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_says_what_moved_what_was_lost_and_why() {
        let facts = json!({"slots": 9, "moved_blocks": 96, "moved_bytes": 6 << 20, "lost_blocks": 0});
        let whole: CameTo = serde_json::from_value(facts).expect("as the journal has it");
        assert_eq!(whole.told(), "96 blocks moved (6.0 MiB); lost: 0");
        whole.is_whole().expect("nothing was lost");
        let lossy = CameTo {
            lost_blocks: 12,
            lost_bytes: 12 << 10,
            declined_blocks: 8,
            displaced_blocks: 4,
            ..whole
        };
        let why = "8 were given no room by the others, 4 left the others to make room";
        assert_eq!(lossy.told(), format!("96 blocks moved (6.0 MiB); lost: 12 (12.0 KiB): {why}"));
        let error = lossy.is_whole().expect_err("some were").to_string();
        assert_eq!(error, format!("12 blocks (12.0 KiB) lost: {why}"));
        let cut_short = CameTo { cut_short: 1, ..whole }.told();
        assert!(cut_short.ends_with(
            "lost: 0; it went down before it was empty, and what only it held is lost and not counted"
        ));
        let mut both = lossy;
        both.add(&lossy);
        assert_eq!((both.moved_blocks, both.lost_blocks), (192, 24));
    }

    #[test]
    fn a_drain_that_a_size_has_begun_is_known_by_its_event_and_not_by_its_words() {
        let reason = "from 3 to 2 members: an operator asked for it";
        let begun =
            |facts: Value| begun_by_size(&json!({"kind": "drain-begun", "facts": facts, "reason": reason}));
        assert!(begun(json!({"slots_held": 9, "members_before": 3, "members_wanted": 2})));
        assert!(!begun(json!({"slots_held": 9})), "whoever wrote that");
        assert!(!begun_by_size(&json!({"kind": "drain-ended", "facts": {"members_wanted": 2}})));
        assert!(!begun_by_size(&Value::Null), "nothing is known");
    }

    #[test]
    fn what_is_short_is_said_in_figures() {
        let room = Room {
            nodes: vec!["node-3".to_owned()],
            blocks: 84,
            bytes: 84 << 20,
            unsure_blocks: 0,
            free_bytes: 52 << 20,
            short_bytes: 32 << 20,
            margin_bytes: 0,
            full: false,
        };
        let uneven = Room { margin_bytes: 8 << 20, ..room.clone() };
        let said = Short(uneven).to_string();
        assert!(
            said.contains("32.0 MiB too little where it would go; 8.0 MiB of that is a margin, as segments do not go to all in equal parts: as many as"),
            "{said}"
        );
        let full = Room { free_bytes: 0, short_bytes: 110 << 20, margin_bytes: 26 << 20, ..room.clone() };
        let said = Short(full).to_string();
        assert!(said.contains("as many as 84 blocks would be lost"), "{said}");
        let both =
            Room { nodes: vec!["node-2".to_owned(), "node-3".to_owned()], unsure_blocks: 20, ..room.clone() };
        let said = Short(room).to_string();
        let expected = "node-3 holds 84 blocks (84.0 MiB) for the others, which have 52.0 MiB free, 32.0 MiB too little where it would \
                        go: about 32 blocks would be lost. Start a node first, or say --yes: blocks that are pinned stay even then";
        assert_eq!(said, expected);
        let said = Short(both).to_string();
        let expected = "node-2, node-3 hold together 84 blocks (84.0 MiB) for the others, which have 52.0 MiB free, 32.0 MiB too little \
                        where it would go; 20 of these a replica that stays may have, which has let blocks go: as many as 32 blocks \
                        would be lost. Start a node first, or say --yes: blocks that are pinned stay even then";
        assert_eq!(said, expected);
    }
}
