//! `kvhive raft`: the coordinators themselves.

use super::config;
use super::status::{list, text};
use crate::admin::{Admin, Target};
use crate::cluster::place;
use crate::problem;
use crate::report;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often it is looked how far a coordinator is.
const POLL: Duration = Duration::from_millis(250);
/// A coordinator that is not heard for this long while it is waited for does not run, or is not reached.
const SILENCE: Duration = Duration::from_secs(60);
/// For how long nobody may lead while one is about to be elected.
const ELECTION: Duration = Duration::from_secs(4);
/// After this it is said that it is waited for.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// Look after the coordinators: who they are, who leads; add, remove and replace them while everything goes on
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Raft {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "Examples:
  kvhive raft status
  kvhive raft replace coord-3 coord-4 --config cluster.toml   # coord-4 as this file has it; start it beside this command
  kvhive raft transfer coord-1";

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show every coordinator: its vote, how far its log is, whether the leader hears it
    Status,
    /// Add a coordinator, which follows without a vote until it is promoted
    ///
    /// Its data_dir must be empty, and its own cluster file must name it and enough of the others: of each majority one.
    Add {
        /// Its name
        name: String,
        #[command(flatten)]
        seat: Seat,
    },
    /// Give a coordinator that follows its vote, once it has caught up
    Promote {
        /// Its name
        name: String,
    },
    /// Remove a coordinator, if the others can go on without it; if it leads, another does first
    Remove {
        /// Its name
        name: String,
    },
    /// Put a new coordinator in another's place: add it, wait until it has caught up, then change both in one step
    Replace {
        /// Who leaves
        old: String,
        /// Who comes; nothing is changed until it has caught up
        new: String,
        #[command(flatten)]
        seat: Seat,
    },
    /// Hand leadership to another coordinator, without an election timeout; returns when it leads
    ///
    /// A leader that is told to end does so by itself. Changes that are under way meanwhile are repeated by their askers.
    Transfer {
        /// The coordinator's name
        name: String,
    },
}

/// Where a new coordinator is.
#[derive(Args, Debug)]
struct Seat {
    /// Cluster file that describes it: its number and addresses are taken from there
    #[arg(long, value_name = "FILE", required_unless_present = "peer")]
    config: Option<PathBuf>,
    /// Its number in raft; not one that another coordinator has
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "config",
        requires = "raft_address",
        requires = "admin_address"
    )]
    peer: Option<u64>,
    /// Where the others reach its raft and control plane
    #[arg(long, value_name = "HOST:PORT", requires = "peer")]
    raft_address: Option<String>,
    /// Where its admin API is reached
    #[arg(long, value_name = "HOST:PORT", requires = "peer")]
    admin_address: Option<String>,
}

impl Seat {
    /// Returns what the coordinators are told of it.
    fn body(&self, name: &str) -> Result<Value> {
        let Some(file) = &self.config else {
            return Ok(json!({
                "name": name,
                "peer": self.peer,
                "raft_address": self.raft_address,
                "admin_address": self.admin_address,
            }));
        };
        let all = place::all(&config::read(file)?, file);
        let own = &place::find(&all, name, file)?.own;
        Ok(json!({
            "name": own.name,
            "peer": own.peer,
            "raft_address": own.raft_address,
            "admin_address": own.admin_address,
        }))
    }
}

impl Raft {
    /// Does what was asked.
    ///
    /// # Errors
    /// When no coordinator answers, or it is refused.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        let (group, said) = match &self.verb {
            Verb::Status => (status(&admin)?, String::new()),
            Verb::Add { name, seat } => {
                let group = add(&admin, name, seat)?;
                let said = added(&group, name);
                (group, said)
            }
            Verb::Promote { name } => {
                needs_leader(&admin)?;
                self.wait(&admin, name)?;
                (promote(&admin, name, None)?, format!("{name} votes"))
            }
            Verb::Remove { name } => {
                let group: Value = admin.delete(&format!("/v1/raft/members/{name}"))?;
                (
                    group,
                    format!(
                        "{name} is removed: stop it, and empty its data_dir before it is ever added again"
                    ),
                )
            }
            Verb::Replace { old, new, seat } => {
                if old == new {
                    bail!(
                        "{old} cannot take its own place: give the new one a name and a number of its own; one whose folder is lost is started \
                         with an empty data_dir instead"
                    );
                }
                needs_leader(&admin)?;
                let before: Value = admin.get("/v1/raft")?;
                if member(&before, old).is_none() {
                    bail!("there is no coordinator {old:?}; `kvhive raft status` lists those that there are");
                }
                add(&admin, new, seat)?;
                self.wait(&admin, new)?;
                let group = promote(&admin, new, Some(old))?;
                (group, format!("{new} votes in place of {old}: stop {old}"))
            }
            Verb::Transfer { name } => {
                let group: Value = admin.post("/v1/raft/transfer", &json!({"to": name}))?;
                let said = format!("{} leads in term {}", text(&group, "leader"), text(&group, "term"));
                (group, said)
            }
        };
        admin.remember_coordinators(&group);
        if self.json {
            return report::print_json(&group);
        }
        if said.is_empty() {
            show(&group)
        } else {
            println!("{said}")
        }
        Ok(())
    }

    /// Waits until a coordinator has what the leader has.
    fn wait(&self, admin: &Admin, name: &str) -> Result<()> {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} entries {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style).with_message(format!("of the log are at {name}"));
        let (mut heard, mut is_told) = (Instant::now(), false);
        loop {
            let group = admin.get::<Value>("/v1/raft");
            if group.is_err() {
                // Another coordinator may be about to lead.
                needs_leader(admin)?;
            }
            if let Ok(group) = group {
                let Some(known) = member(&group, name) else {
                    bail!("{name} is no coordinator of this cluster; `kvhive raft add` makes it one");
                };
                if known["role"] == "voter" {
                    return Ok(());
                }
                if known["heard"] == true {
                    heard = Instant::now();
                }
                let (matched, lag) = (known["matched"].as_u64(), known["lag"].as_u64());
                bar.set_length(matched.unwrap_or(0) + lag.unwrap_or(0));
                bar.set_position(matched.unwrap_or(0));
                if known["heard"] == true && lag == Some(0) {
                    bar.finish_and_clear();
                    return Ok(());
                }
            }
            if heard.elapsed() > SILENCE {
                bail!(
                    "{name} was not heard for {SILENCE:?}: see that it runs with an empty data_dir and a cluster file that names it \
                     and the others, then ask again"
                );
            }
            if !is_told && heard.elapsed() > TELL_AFTER {
                is_told = true;
                // Also where no bar is seen.
                eprintln!(
                    "waiting for {name}, which the leader does not hear: start it, with an empty data_dir and a cluster file that names it and \
                     the others; given up after {SILENCE:?}"
                );
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Adds a coordinator, unless one that was removed answers where it is to be: what it has of before must go first.
fn add(admin: &Admin, name: &str, seat: &Seat) -> Result<Value> {
    let body = seat.body(name)?;
    let own: Result<Value> =
        admin.of_coordinator(&text(&body, "admin_address")).get("/v1/raft?consistency=stale");
    // One that does not run yet, or is no coordinator of any cluster, answers otherwise or not at all.
    if own.is_err_and(|error| problem::was_removed(&error)) {
        bail!(
            "{name} was removed from this cluster and runs on what it has of then: stop it, empty its data_dir, then add it and start it anew"
        );
    }
    admin.post("/v1/raft/members", &body)
}

/// Says what adding a coordinator came to. One that votes is there already: nobody may be told to empty its folder.
fn added(group: &Value, name: &str) -> String {
    if member(group, name).is_some_and(|known| matches!(known["role"].as_str(), Some("voter" | "leader"))) {
        return format!("{name} votes already: nothing is to be done");
    }
    format!(
        "{name} is added without a vote: start it with an empty data_dir, then `kvhive raft promote {name}`. Was it a coordinator \
         before? Then stop it and empty its data_dir first: what it has of then is not to vote"
    )
}

/// Returns what each coordinator that answers knows by itself, and where it does.
fn known_by_each(admin: &Admin) -> Vec<(String, Value)> {
    let own = |one: &Admin| {
        let group: Value = one.get("/v1/raft?consistency=stale").ok()?;
        Some((one.first_url().to_owned(), group))
    };
    admin.each().iter().filter_map(own).collect()
}

/// Says whether coordinators answer and none of them knows of one that leads.
fn is_leaderless(known: &[(String, Value)]) -> bool {
    !known.is_empty() && known.iter().all(|(_, group)| group["leader"].is_null())
}

/// Waits as long as an election takes where coordinators answer and nobody leads them.
///
/// # Errors
/// When nobody does then either: nothing can be changed, and it is no use to wait for it.
fn needs_leader(admin: &Admin) -> Result<()> {
    let begun = Instant::now();
    while is_leaderless(&known_by_each(admin)) {
        if begun.elapsed() > ELECTION {
            bail!(
                "nobody leads the coordinators: nothing can be changed before a majority of them runs and reaches one another \
                 (`kvhive raft status`)"
            );
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Returns how the coordinators stand; where nobody leads as the one that has most of the log knows it, and that is said.
fn status(admin: &Admin) -> Result<Value> {
    // Who follows waits for a leader for long: first it is asked whether there is one.
    let known = known_by_each(admin);
    let error = match !is_leaderless(&known) {
        true => match admin.get("/v1/raft") {
            Ok(group) => return Ok(group),
            Err(error) => error,
        },
        false => anyhow::anyhow!("nobody leads the coordinators"),
    };
    let most = known.into_iter().max_by_key(|(_, group)| {
        let number = |field: &str| group[field].as_u64().unwrap_or(0);
        (number("committed"), number("term"))
    });
    let Some((url, mut group)) = most else { return Err(error) };
    eprintln!(
        "nobody leads the coordinators: this is what {url} knows by itself, and whom it hears it does not say. Nothing can be changed before a \
         majority of them runs and reaches one another"
    );
    group["leader"] = Value::Null;
    group["known_by"] = url.into();
    Ok(group)
}

/// Gives a coordinator its vote. Its last word, that it has everything, may be a moment behind its log.
fn promote(admin: &Admin, name: &str, replaces: Option<&str>) -> Result<Value> {
    let (path, body) = (format!("/v1/raft/members/{name}/promote"), json!({"replaces": replaces}));
    let begun = Instant::now();
    loop {
        match admin.post(&path, &body) {
            Err(error)
                if begun.elapsed() < SILENCE / 6 && format!("{error:#}").contains("gets no vote before") =>
            {
                std::thread::sleep(POLL);
            }
            promoted => return promoted,
        }
    }
}

fn member<'a>(group: &'a Value, name: &str) -> Option<&'a Value> {
    list(&group["coordinators"]).iter().find(|known| known["name"] == name)
}

fn show(group: &Value) {
    println!(
        "leader {}   term {}   committed {}   applied {}\n",
        text(group, "leader"),
        text(group, "term"),
        text(group, "committed"),
        text(group, "applied")
    );
    let mut table = report::table(&["COORDINATOR", "PEER", "ROLE", "HAS", "LACKS", "HEARD", "RAFT", "ADMIN"]);
    for known in list(&group["coordinators"]) {
        let is_leader = known["name"] == group["leader"];
        let lacks = match known["takes_snapshot"] == true {
            true => "the state".to_owned(),
            false => text(known, "lag"),
        };
        table.add_row([
            text(known, "name"),
            text(known, "peer"),
            if is_leader { "leader".to_owned() } else { text(known, "role") },
            text(known, "matched"),
            lacks,
            match known["heard"] == true {
                true => "yes".to_owned(),
                false if group["known_by"].is_null() => "no".to_owned(),
                false => "-".to_owned(),
            },
            text(known, "raft_address"),
            text(known, "admin_address"),
        ]);
    }
    report::print_table(&table);
}
