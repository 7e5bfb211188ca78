//! `kvhive drain`.

use super::status::{list, text};
use crate::admin::{Admin, Target};
use crate::drains::{self, CameTo, MayLose};
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvhive_protocol::Level;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often it is looked how many slots are left.
const POLL: Duration = Duration::from_millis(250);
/// After how long without a slot that leaves it is asked whether pinned blocks wait for room, and again whether others still move.
const PINNED: Duration = Duration::from_secs(5);
/// How long no coordinator need answer while it waits.
const SILENCE: Duration = Duration::from_secs(30);

/// Empty a node before it is stopped: its slots go to other nodes with their blocks, then it may be ended
///
/// It ends with a report: how many blocks moved, how many were lost and why. Refused where the others have too little room, unless --yes
/// is said. It ends with 3 when it was done and blocks were lost.
#[derive(Args, Debug)]
pub(crate) struct Drain {
    #[command(flatten)]
    target: Target,
    /// The node's name
    node: String,
    /// End it: the node may hold slots again
    #[arg(long, conflicts_with = "no_wait")]
    undo: bool,
    /// With --undo: do nothing where there is no node of this name, for a service manager before each start
    #[arg(long, requires = "undo")]
    if_known: bool,
    /// Forget a node that is down and whose process has surely ended: no list has it, and clears wait for it no more. One that was emptied and then ended is forgotten by itself
    #[arg(long, conflicts_with_all = ["no_wait", "undo"])]
    forget: bool,
    /// Return at once; `kvhive nodes` shows how many slots are left
    #[arg(long)]
    no_wait: bool,
    /// Empty it although the others have too little room for what it holds: blocks are lost then, but none that is pinned
    #[arg(long)]
    yes: bool,
    /// How long no slot may leave.
    #[arg(skip)]
    stalls: Option<Duration>,
    /// Why, for the journal.
    #[arg(skip)]
    reason: Option<String>,
    /// How many members there are and are to be, for the journal.
    #[arg(skip)]
    for_size: Option<(usize, usize)>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// A node that gets no emptier.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} of {node} left, and none has gone to another node for {limit:?}: `kvhive nodes` shows who is up, `kvhive events` why moves fail, `kvhive drain {node} --undo` takes it back",
    report::counted(*left, "slot")
)]
pub(crate) struct Stalled {
    node: String,
    left: u64,
    limit: Duration,
}

/// A node that keeps slots of which pinned blocks find no room elsewhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} of {node} left, as {} no room in the others: start a node, or unpin some (`kvhive pin list`); it goes on then, and `kvhive drain {node} --undo` takes it back",
    report::counted(*left, "slot"), if *blocks == 1 { "a pinned block finds".to_owned() } else { format!("{blocks} pinned blocks find") }
)]
struct PinnedStay {
    node: String,
    left: u64,
    blocks: u64,
}

/// What emptying a node came to.
#[derive(Debug)]
pub(crate) struct Emptied {
    /// Slots that it held before.
    pub(crate) slots: u64,
    /// Slots that it holds still.
    pub(crate) left: u64,
    /// Blocks that it had reported before.
    pub(crate) blocks: u64,
    /// What became of them, unless nobody has written it down.
    pub(crate) came_to: Option<CameTo>,
    /// It was empty before this was asked.
    pub(crate) was_before: bool,
}

/// A node that went down before it was empty.
#[derive(Debug, thiserror::Error)]
#[error("{node} has gone down before it was empty: what only it held is lost{}", .emptied.came_to.map_or(String::new(), |came_to| format!(" ({})", came_to.told())))]
struct CutShort {
    node: String,
    emptied: Emptied,
}

/// How a node ended that was waited for.
enum End {
    /// Its slots have gone to others.
    Empty,
    /// It went down with so many slots, as one does whose lease has run out.
    WentDown(u64),
}

impl Drain {
    /// Asks for it and waits until it is done.
    ///
    /// # Errors
    /// When no coordinator answers, there is no such node, or nobody else could take its slots.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        let path = format!("/v1/members/{}", self.node);
        if self.undo {
            if self.if_known && !self.is_known(&admin)? {
                if self.json {
                    return report::print_json(&Value::Null);
                }
                println!("there is no node {}: nothing to undo", self.node);
                return Ok(());
            }
            let before: Value = admin.get(&path)?;
            let node: Value = admin.patch(&path, &json!({"drains": false}))?;
            if self.json {
                return report::print_json(&node);
            }
            println!("{}", undone(&self.node, before["drains"] == true, node["cordoned"] == true));
            return Ok(());
        }
        if self.forget {
            let _: Value = admin.delete(&path)?;
            if self.json {
                return report::print_json(&json!({"forgotten": self.node}));
            }
            println!("{} is forgotten: a node that registers under its name is a new one", self.node);
            return Ok(());
        }
        let begun = Instant::now();
        let before: Value = admin.get("/v1/cluster")?;
        // What has begun goes on, whatever room there is.
        let may = if self.yes || self.drains(&before) { MayLose::Anything } else { MayLose::Nothing };
        if self.is_known_down(&before) {
            // What it holds nobody has said since it went: its room would be that of nothing.
            match self.no_wait {
                true => eprintln!("{}", down(&self.node, "it is emptied when it is back")),
                false => bail!("{}", self.is_down()),
            }
        } else if self.has_taker(&before)
            && let (Some(room), _) = drains::check(&admin, std::slice::from_ref(&self.node), may)?
        {
            eprintln!("{}", room.told());
        }
        let emptied = match self.empty(&admin) {
            Ok(emptied) => emptied,
            Err(error) => {
                if let Some(cut) = error.downcast_ref::<CutShort>().filter(|_| self.json) {
                    self.print(&cut.emptied, begun.elapsed().as_secs_f64())?;
                }
                return Err(error);
            }
        };
        self.tell(&emptied, begun.elapsed().as_secs_f64())?;
        // What was told before was told by whoever waited for it then.
        match emptied.came_to.filter(|_| !emptied.was_before) {
            Some(came_to) => Ok(came_to.is_whole()?),
            None => Ok(()),
        }
    }

    fn print(&self, emptied: &Emptied, seconds: f64) -> Result<()> {
        let Emptied { slots, left, blocks, came_to, was_before } = emptied;
        let mut all = json!({
            "node": self.node, "slots": slots, "slots_left": left, "blocks": blocks, "seconds": seconds,
            "is_reported": came_to.is_some(), "was_before": was_before,
        });
        if let (Value::Object(all), Some(Value::Object(more))) =
            (&mut all, came_to.map(serde_json::to_value).transpose()?)
        {
            all.extend(more);
        }
        report::print_json(&all)
    }

    fn tell(&self, emptied: &Emptied, seconds: f64) -> Result<()> {
        if self.json {
            return self.print(emptied, seconds);
        }
        let Emptied { slots, blocks, came_to, was_before, .. } = *emptied;
        if was_before {
            let came_to =
                came_to.map_or(String::new(), |came_to| format!(" (what that came to: {})", came_to.told()));
            println!("{} was emptied before, and holds no slot{came_to}; it may be stopped", self.node);
            return Ok(());
        }
        if self.no_wait {
            println!(
                "{} is being emptied of {}; `kvhive nodes` shows how many are left, `kvhive events` tells what it came to",
                self.node,
                report::counted(slots, "slot")
            );
            return Ok(());
        }
        println!(
            "{} is empty: {} went to other nodes in {seconds:.1} s (it held {}); it may be stopped",
            self.node,
            report::counted(slots, "slot"),
            report::counted(blocks, "block")
        );
        match came_to {
            Some(came_to) => println!("{}", came_to.told()),
            None => println!(
                "no coordinator has written down what became of its blocks: `kvhive events --kind drain-finished` may tell"
            ),
        }
        Ok(())
    }

    /// Makes the command that empties a node and waits for that.
    pub(crate) fn of(target: Target, node: &str) -> Drain {
        let node = node.to_owned();
        Drain {
            target,
            node,
            undo: false,
            if_known: false,
            forget: false,
            no_wait: false,
            yes: false,
            stalls: None,
            reason: None,
            for_size: None,
            json: false,
        }
    }

    /// Makes it go on although blocks are lost, or not.
    pub(crate) fn losing(self, yes: bool) -> Drain {
        Drain { yes, ..self }
    }

    /// Has the journal say why.
    pub(crate) fn because(self, reason: &str) -> Drain {
        Drain { reason: Some(reason.to_owned()), ..self }
    }

    /// Has the journal say that the cluster's size changes by it.
    pub(crate) fn for_size(self, from: usize, to: usize) -> Drain {
        Drain { for_size: Some((from, to)), ..self }
    }

    /// Makes it give up when no slot has left for this long.
    pub(crate) fn giving_up_after(self, limit: Duration) -> Drain {
        Drain { stalls: Some(limit), ..self }
    }

    /// Makes it begin, and wait for nothing.
    pub(crate) fn without_waiting(self) -> Drain {
        Drain { no_wait: true, ..self }
    }

    /// Begins to empty the node and, unless that is not wanted, waits until it is.
    ///
    /// # Errors
    /// When no coordinator answers, there is no such node, or nobody else could take its slots.
    pub(crate) fn empty(&self, admin: &Admin) -> Result<Emptied> {
        let before: Value = admin.get("/v1/cluster")?;
        if !self.has_taker(&before) {
            bail!("no other node that is up could take the slots of {}: start one first", self.node);
        }
        if !self.no_wait && self.is_known_down(&before) {
            bail!("{}", self.is_down());
        }
        let mut patch = json!({"drains": true, "may_lose": self.yes});
        if let Some(reason) = &self.reason {
            patch["reason"] = reason.as_str().into();
        }
        // Before, no coordinator may be told that.
        if let Some((from, to)) = self.for_size
            && before["level"].as_u64() >= Some(Level::SIZES.0.into())
        {
            patch["for_size"] = json!({"from": from, "to": to});
        }
        let _: Value = admin.patch(&format!("/v1/members/{}", self.node), &patch)?;
        let (slots, blocks) = self.holds(&before);
        let was_before = slots == 0 && self.drains(&before);
        let emptied = |left, came_to| Emptied { slots, left, blocks, came_to, was_before };
        if self.no_wait {
            return Ok(emptied(slots, None));
        }
        if was_before {
            return Ok(emptied(0, CameTo::written(admin, &self.node)));
        }
        let end = self.wait(admin, slots)?;
        // It may have gone down, and be forgotten by now.
        let came_to = CameTo::written(admin, &self.node);
        let (left, is_gone) = match end {
            End::Empty => (0, false),
            End::WentDown(left) => (left, true),
        };
        // Where nobody has written down whether others had what was acknowledged, it may have been lost.
        if came_to.map_or(is_gone, |came_to| came_to.cut_short > 0) {
            return Err(CutShort { node: self.node.clone(), emptied: emptied(left, came_to) }.into());
        }
        if is_gone {
            eprintln!(
                "{} has gone down with {} left: others have every block that all replicas acknowledged, as `ack` asks (`kvhive events --kind drain-finished` names them); what a store asked less for may be lost",
                self.node,
                report::counted(left, "slot")
            );
        }
        Ok(emptied(0, came_to))
    }

    fn drains(&self, status: &Value) -> bool {
        let is_it = |node: &Value| text(node, "name") == self.node && node["drains"] == json!(true);
        list(&status["nodes"]).iter().any(is_it)
    }

    fn is_known(&self, admin: &Admin) -> Result<bool> {
        let members = admin.get_list("/v1/members", "members")?;
        Ok(list(&members["members"]).iter().any(|member| text(member, "name") == self.node))
    }

    fn has_taker(&self, status: &Value) -> bool {
        list(&status["nodes"]).iter().any(|node| {
            text(node, "name") != self.node && text(node, "state") == "up" && node["drains"] != json!(true)
        })
    }

    /// Says why a node that is down is not emptied.
    fn is_down(&self) -> String {
        let cannot = "what only it holds cannot move. Start it first; or, if its process has ended for good,";
        down(&self.node, &format!("{cannot} `kvhive drain {} --forget`", self.node))
    }

    fn is_up(&self, status: &Value) -> bool {
        self.is(status, "up")
    }

    fn is_known_down(&self, status: &Value) -> bool {
        self.is(status, "down")
    }

    fn is(&self, status: &Value, state: &str) -> bool {
        let is_it = |node: &Value| text(node, "name") == self.node && text(node, "state") == state;
        list(&status["nodes"]).iter().any(is_it)
    }

    /// Returns how many slots the node holds, and how many blocks it last reported.
    fn holds(&self, status: &Value) -> (u64, u64) {
        let devices = list(&status["devices"]).iter().filter(|device| text(device, "node") == self.node);
        devices.fold((0, 0), |(slots, blocks), device| {
            let number = |field: &str| device[field].as_u64().unwrap_or(0);
            (slots + number("slots"), blocks + number("blocks"))
        })
    }

    fn wait(&self, admin: &Admin, slots: u64) -> Result<End> {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} slots have left {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(slots).with_style(style).with_message(self.node.clone());
        let mut answered = Instant::now();
        let (mut least, mut since) = (slots, Instant::now());
        let (mut asked, mut moved) = (Instant::now(), None);
        loop {
            let status: Value = match admin.get("/v1/cluster") {
                Ok(status) => status,
                // Another coordinator may be about to lead.
                Err(_) if answered.elapsed() < SILENCE => {
                    std::thread::sleep(POLL);
                    continue;
                }
                Err(error) => {
                    return Err(
                        error.context("it goes on without this command; `kvhive nodes` shows how far it is")
                    );
                }
            };
            answered = Instant::now();
            // Emptied to the end and ended meanwhile: it is no member any more.
            if !list(&status["nodes"]).iter().any(|node| text(node, "name") == self.node) {
                bar.finish_and_clear();
                return Ok(End::Empty);
            }
            let (left, _) = self.holds(&status);
            if !self.is_up(&status) {
                bar.finish_and_clear();
                // Who was empty when it went has lost nothing; others hold what it held.
                return Ok(if least == 0 { End::Empty } else { End::WentDown(least) });
            }
            if left > 0 && !self.has_taker(&status) {
                bail!(
                    "{} left, and no other node that is up could take what is left: start one, or --undo",
                    report::counted(left, "slot")
                );
            }
            if left < least {
                (least, since) = (left, Instant::now());
            }
            bar.set_position(slots.saturating_sub(left));
            if left > 0 && since.elapsed() > PINNED && asked.elapsed() > PINNED {
                asked = Instant::now();
                // Slots leave at the end of a pass; while blocks do, it is not the pinned ones that hold it up.
                let before = moved;
                let waiting = drains::waiting(admin, &self.node);
                moved = waiting.map(|(_, moved)| moved);
                if let Some((blocks @ 1.., _)) = waiting
                    && before.is_some_and(|before| moved == Some(before))
                {
                    return Err(PinnedStay { node: self.node.clone(), left, blocks }.into());
                }
            }
            if left > 0
                && let Some(limit) = self.stalls
                && since.elapsed() > limit
            {
                return Err(Stalled { node: self.node.clone(), left, limit }.into());
            }
            if left == 0 {
                bar.finish_and_clear();
                return Ok(End::Empty);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Says of a node that is down that nobody knows what it holds, and what follows.
fn down(node: &str, so: &str) -> String {
    format!(
        "{node} is down, and what it holds is not known: its slots are served by those who have them too; {so}"
    )
}

/// Says what has come of the end of a drain: one that is cordoned is given no slots by that.
fn undone(node: &str, drained: bool, cordoned: bool) -> String {
    let ended = if drained { "is emptied no further" } else { "was not being emptied" };
    match (drained, cordoned) {
        (true, false) => format!("{node} may hold slots again"),
        (false, false) => format!("{node} {ended}: nothing to undo"),
        (_, true) => {
            format!("{node} {ended}, and is cordoned: it is given no slots before `kvhive uncordon {node}`")
        }
    }
}

#[cfg(test)]
#[path = "drain_test.rs"]
mod tests;
