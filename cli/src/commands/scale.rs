//! `kvhive scale`: how many members the cluster should have, and having it so.

use super::config;
use super::status::{list, text};
use crate::admin::{Admin, Target};
use crate::drains::{self, MayLose};
use crate::report;
use crate::scaling::{
    Beyond, Executor, Kubernetes, Local, Plan, Program, Scaled, SetName, carry_out, plan, undrains,
};
use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use kvhive_protocol::WireError;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// How often the recommendation is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// See which size is recommended and why, set the policy, bring the cluster to a size
#[derive(Args, Debug)]
pub(crate) struct Scale {
    #[command(flatten)]
    target: Target,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Show the recommended size, its reason in numbers, the policy and the forecast
    Status,
    /// Change the policy; what is not named stays
    Set(Set),
    /// Give the cluster N members: starts them, or empties those that leave and ends them only then
    ///
    /// It ends with a report of the blocks that moved and were lost. Refused where those who stay have too little room, unless --yes is
    /// said. It ends with 3 when it was done and blocks were lost.
    ///
    /// A local cluster's supervisor starts and ends nodes, Kubernetes with --kubernetes. Elsewhere the program after `--` does, without
    /// a shell: `{count}` stands for the size, `{name}` for a node that comes or leaves, as in `kvhive scale to 4 -- my-cloud resize {count}`.
    To {
        /// Members
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
        size: u32,
        /// Also fewer members than the policy's floor, or more than its ceiling; `kvhive events` tells who asked for that
        #[arg(long)]
        beyond_policy: bool,
        /// Why, for the journal of events
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Follow the recommendation while the mode is `act`, or the size that was asked for, until told to end
    Follow {
        #[command(flatten)]
        how: How,
    },
}

/// How processes are started and ended.
#[derive(Args, Debug)]
struct How {
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Take nodes away although the others have too little room for what they hold: blocks are lost then, but none that is pinned
    #[arg(long)]
    yes: bool,
    /// Have Kubernetes start and end nodes: its StatefulSet, whose pods are members by their names. Found by the kubeconfig
    /// (KUBECONFIG) or the pod's service account, whose namespace is taken if none is named. Refuses fewer than the policy's floor
    #[arg(long, value_name = "[NAMESPACE/]STATEFULSET", conflicts_with = "program")]
    kubernetes: Option<SetName>,
    /// Have nodes started and ended by whom `[scaling]` of this cluster file names
    #[arg(long, value_name = "FILE", conflicts_with_all = ["program", "kubernetes"])]
    config: Option<PathBuf>,
    /// Seconds that the program may run, that members may take to come or go, and that none of a node's slots may leave it
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit: u64,
    /// Program that starts and ends nodes, and its words [default: the local cluster's supervisor]
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Off,
    Advise,
    Act,
}

#[derive(Args, Debug)]
struct Set {
    /// What is made of a recommendation
    #[arg(long, value_name = "MODE")]
    mode: Option<Mode>,
    /// The fewest members
    #[arg(long, value_name = "N")]
    floor: Option<u32>,
    /// The most members
    #[arg(long, value_name = "N")]
    ceiling: Option<u32>,
    /// How much of what the most members would cover is to be covered (0.5 to 1)
    #[arg(long, value_name = "P")]
    keep: Option<f64>,
    /// The least seconds between a change and one to more members
    #[arg(long, value_name = "S")]
    up_cooldown: Option<u32>,
    /// Seconds that fewer members must have been enough
    #[arg(long, value_name = "S")]
    down_cooldown: Option<u32>,
    /// How many seconds ahead load is foreseen
    #[arg(long, value_name = "S")]
    look_ahead: Option<u32>,
    /// Milliseconds that requests may wait for their device, on average
    #[arg(long, value_name = "MS")]
    max_queue: Option<f64>,
    /// Give up a size that was asked for with `to`
    #[arg(long)]
    automatic: bool,
}

impl Scale {
    /// Does what was asked.
    ///
    /// # Errors
    /// When no coordinator answers, or it is refused or fails.
    pub(crate) fn run(self) -> Result<()> {
        let admin = self.target.resolve()?;
        match &self.verb {
            Verb::Status => self.show(&admin.get("/v1/scaling")?),
            Verb::Set(set) => self.show(&admin.patch("/v1/scaling", &set.patch())?),
            Verb::To { size, beyond_policy, reason, how } => {
                let may = if *beyond_policy { Beyond::Policy } else { Beyond::Nothing };
                self.to(&admin, *size, may, reason.as_deref(), how)
            }
            Verb::Follow { how } => self.follow(&admin, how),
        }
    }

    fn to(&self, admin: &Admin, size: u32, beyond: Beyond, reason: Option<&str>, how: &How) -> Result<()> {
        let mut executor = self.executor(how)?;
        // Refused before anybody is told of it.
        let plan = plan(admin, &mut *executor, size as usize, beyond)?;
        if how.dry_run {
            return self.would(admin, &*executor, &plan, beyond);
        }
        // Before room is looked at: what would be refused all the same need not lose blocks first.
        if let Some(beyond_policy) = beyond_policy(&admin.get("/v1/scaling")?, size, beyond) {
            return Err(beyond_policy.into());
        }
        let may = if how.yes { MayLose::Anything } else { MayLose::Nothing };
        drains::check(admin, &plan.leave, may)?;
        // Known first: who follows the recommendation must not undo it.
        let asked = json!({"size": size, "force": beyond == Beyond::Policy, "reason": reason});
        let _: Value = admin.post("/v1/scaling", &asked)?;
        let losing = (may, reason.unwrap_or("an operator asked for it"));
        let scaled = carry_out(&self.target, admin, &mut *executor, plan, how.limit(), losing)?;
        self.tell(&scaled)?;
        Ok(scaled.came_to.is_whole()?)
    }

    fn follow(&self, admin: &Admin, how: &How) -> Result<()> {
        let mut executor = self.executor(how)?;
        let (mut last, mut warned) = (None, Warned::default());
        eprintln!("following the recommendation with {executor}; Ctrl-C ends it");
        loop {
            match admin.get::<Value>("/v1/scaling") {
                Ok(scaling) => {
                    let target = scaling["target"].as_u64().unwrap_or(0) as u32;
                    let is_news = target > 0 && scaling["members"].as_u64() != Some(target.into());
                    let done = match is_news && (!how.dry_run || last != Some(target)) {
                        true => self.follow_to(admin, &mut *executor, &scaling, how),
                        false => Ok(()),
                    };
                    match done {
                        Ok(()) => warned.is_over(),
                        // It goes on from there the next time.
                        Err(error) => warn(warned.news(format!("{error:#}"))),
                    }
                    last = Some(target);
                }
                Err(error) => warn(warned.news(format!("{error:#}"))),
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn follow_to(
        &self,
        admin: &Admin,
        executor: &mut dyn Executor,
        scaling: &Value,
        how: &How,
    ) -> Result<()> {
        let size = scaling["target"].as_u64().unwrap_or(0);
        // What is recommended takes room into account as far as nothing had to leave yet; what an operator asked for does not. Whether
        // it may be beyond the policy was decided when they asked.
        let is_asked = !scaling["policy"]["manual"].is_null();
        let beyond = if is_asked { Beyond::Policy } else { Beyond::Nothing };
        let plan = plan(admin, executor, usize::try_from(size).unwrap_or(usize::MAX), beyond)?;
        if how.dry_run {
            return self.would(admin, executor, &plan, beyond);
        }
        let may = match is_asked {
            _ if how.yes => MayLose::Anything,
            true => MayLose::Nothing,
            false => MayLose::LeastWanted,
        };
        let why =
            if is_asked { "an operator asked for it" } else { &text(&scaling["recommendation"], "reason") };
        let is_change = plan.is_change();
        let scaled = carry_out(&self.target, admin, executor, plan, how.limit(), (may, why))?;
        // While an operator empties one that stays there is nothing to do, and that every few seconds.
        if is_change || !scaled.undrained.is_empty() { self.tell(&scaled) } else { Ok(()) }
    }

    fn executor(&self, how: &How) -> Result<Box<dyn Executor>> {
        if !how.program.is_empty() {
            return Ok(Box::new(Program { words: how.program.clone(), limit: how.limit() }));
        }
        if let Some(set) = &how.kubernetes {
            return Ok(Box::new(Kubernetes::connect(set)?));
        }
        match how.named()? {
            Some(kvhive_config::Executor::Program(words)) => {
                return Ok(Box::new(Program { words, limit: how.limit() }));
            }
            Some(kvhive_config::Executor::StatefulSet(set)) => {
                let set: SetName = set.parse().map_err(anyhow::Error::msg)?;
                return Ok(Box::new(Kubernetes::connect(&set)?));
            }
            Some(kvhive_config::Executor::Local) | None => {}
        }
        if self.target.admin.is_some() {
            bail!(
                "who starts and ends nodes there? Name --kubernetes, the program after `--`, or a --config whose [scaling] says it, or leave --admin out for the local cluster"
            );
        }
        Ok(Box::new(Local { dir: self.target.dir.clone() }))
    }

    fn would(&self, admin: &Admin, executor: &dyn Executor, plan: &Plan, beyond: Beyond) -> Result<()> {
        let (back, left) = undrains(admin, plan)?;
        let mut steps: Vec<String> = back.iter().map(|name| format!("let {name} hold slots again")).collect();
        steps.extend(left.iter().map(|name| goes_on(name)));
        steps.extend(plan.leave.iter().map(|name| format!("empty {name}, and wait until it is")));
        let scaling: Value = admin.get("/v1/scaling")?;
        if let Some(WireError::BeyondPolicy { floor, ceiling, .. }) =
            beyond_policy(&scaling, u32::try_from(plan.size).unwrap_or(u32::MAX), beyond)
        {
            steps.push(format!(
                "the policy allows {floor} to {ceiling} members: refused without --beyond-policy"
            ));
        }
        if let (Some(room), _) = drains::check(admin, &plan.leave, MayLose::Anything)? {
            let refused = if room.short_bytes > 0 { ": refused without --yes" } else { "" };
            steps.push(format!("{}{refused}", room.told()));
        }
        if plan.is_change() {
            steps.extend(executor.would(plan));
        }
        if self.json {
            return report::print_json(&json!({"from": plan.members, "to": plan.size, "would": steps}));
        }
        let members = report::counted(plan.members as u64, "member");
        if steps.is_empty() {
            println!("{members}, {} wanted: nothing would be done", plan.size);
            return Ok(());
        }
        println!("{members}, {} wanted; this would be done:", plan.size);
        steps.iter().for_each(|step| println!("  {step}"));
        Ok(())
    }

    fn tell(&self, scaled: &Scaled) -> Result<()> {
        if self.json {
            return report::print_json(scaled);
        }
        let Scaled {
            from,
            to,
            started,
            ended,
            undrained,
            left_draining,
            slots_moved,
            came_to,
            unreported,
            seconds,
        } = scaled;
        println!("{}", became(*from, *to, *seconds));
        if !started.is_empty() {
            println!("started {}", started.join(", "));
        }
        if !undrained.is_empty() {
            println!(
                "{} may hold slots again: the drain of a change of size is taken back",
                undrained.join(", ")
            );
        }
        for name in left_draining {
            println!("{}", goes_on(name));
        }
        if !ended.is_empty() {
            println!(
                "ended {}, of which {} went to others first",
                ended.join(", "),
                report::counted(*slots_moved, "slot")
            );
            println!("{}", came_to.told());
        }
        if !unreported.is_empty() {
            println!("nobody has written down what became of the blocks of {}", unreported.join(", "));
        }
        Ok(())
    }

    fn show(&self, scaling: &Value) -> Result<()> {
        if self.json {
            return report::print_json(scaling);
        }
        let policy = &scaling["policy"];
        println!("members     {}, to be {}{}", scaling["members"], scaling["target"], by_hand(scaling));
        match &scaling["recommendation"] {
            Value::Null => println!("advice      none yet: load is summed up every five minutes"),
            advice => println!(
                "advice      {}: {}",
                report::counted(advice["size"].as_u64().unwrap_or(0), "member"),
                text(advice, "reason")
            ),
        }
        println!(
            "policy      {}, {} to {} members, keep {} of the hits of the most, cooldown {} s up and {} s down",
            text(policy, "mode"),
            policy["floor"],
            policy["ceiling"],
            policy["keep"],
            policy["up_cooldown_s"],
            policy["down_cooldown_s"],
        );
        let observations = scaling["observations"].as_u64().unwrap_or(0);
        println!(
            "known from  {}",
            match observations {
                1 => "1 stretch of five minutes".to_owned(),
                count => format!("{count} stretches of five minutes"),
            }
        );
        let mut table = report::table(&["FIGURE", "AHEAD", "VALUE", "LOW", "HIGH", "MASE", "COVERAGE"]);
        for one in list(&scaling["forecast"]) {
            // Nothing has come yet of what was foreseen, or too little.
            let number =
                |field: &str| one[field].as_f64().map_or("-".to_owned(), |value| format!("{value:.2}"));
            table.add_row(vec![
                text(one, "figure").to_owned(),
                format!("{} s", one["ahead_s"]),
                number("value"),
                number("low"),
                number("high"),
                number("mase"),
                number("coverage"),
            ]);
        }
        report::print_table(&table);
        Ok(())
    }
}

/// Says what became of a size, where it was another.
fn became(from: usize, to: usize, seconds: f64) -> String {
    let members = report::counted(from as u64, "member");
    if from == to {
        format!("{members}, as before")
    } else {
        format!("{members} became {to} in {seconds:.1} s")
    }
}

fn warn(trouble: Option<String>) {
    if let Some(trouble) = trouble {
        eprintln!("warning: {trouble}");
    }
}

/// Says that the size was asked for by hand, where it was.
fn by_hand(scaling: &Value) -> String {
    match &scaling["policy"]["manual"] {
        Value::Null => String::new(),
        size => format!(" ({size} asked for by hand, until `kvhive scale set --automatic`)"),
    }
}

/// What was said last of a trouble that may last: every few seconds it would be the same.
#[derive(Default)]
struct Warned(Option<String>);

impl Warned {
    /// Returns what is to be said, if that is news.
    fn news(&mut self, trouble: String) -> Option<String> {
        let is_news = self.0.as_ref() != Some(&trouble);
        self.0 = Some(trouble.clone());
        is_news.then_some(trouble)
    }

    /// It is over: should it come again, that is news.
    fn is_over(&mut self) {
        self.0 = None;
    }
}

/// Says of a node that stays that it is being emptied all the same.
fn goes_on(name: &str) -> String {
    format!(
        "{name} is being emptied, as was asked for by itself, and that goes on: `kvhive drain {name} --undo` ends it"
    )
}

/// Returns why the policy stands against a size, as the coordinators say it.
fn beyond_policy(scaling: &Value, size: u32, beyond: Beyond) -> Option<WireError> {
    let number = |field: &str| u32::try_from(scaling["policy"][field].as_u64()?).ok();
    let (floor, ceiling) = (number("floor")?, number("ceiling")?);
    let stands = beyond == Beyond::Nothing && !(floor..=ceiling).contains(&size);
    stands.then_some(WireError::BeyondPolicy { size, floor, ceiling })
}

impl How {
    /// Reads whom the cluster file names, if one is given.
    fn named(&self) -> Result<Option<kvhive_config::Executor>> {
        let Some(file) = &self.config else { return Ok(None) };
        Ok(Some(config::read(file)?.scaling.executor.clone()))
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }
}

impl Set {
    fn patch(&self) -> Value {
        let mode = self.mode.map(|mode| match mode {
            Mode::Off => "off",
            Mode::Advise => "advise",
            Mode::Act => "act",
        });
        let fields = [
            ("mode", json!(mode)),
            ("floor", json!(self.floor)),
            ("ceiling", json!(self.ceiling)),
            ("keep", json!(self.keep)),
            ("up_cooldown_s", json!(self.up_cooldown)),
            ("down_cooldown_s", json!(self.down_cooldown)),
            ("look_ahead_s", json!(self.look_ahead)),
            ("max_queue_ms", json!(self.max_queue)),
            ("automatic", json!(self.automatic)),
        ];
        let named = fields.into_iter().filter(|(_, value)| !value.is_null());
        Value::Object(named.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_was_asked_for_by_hand_says_so() {
        assert_eq!(by_hand(&json!({"policy": {"manual": null}})), "");
        let said = by_hand(&json!({"policy": {"manual": 4}}));
        assert!(said.contains("4 asked for by hand") && said.contains("--automatic"), "{said}");
    }

    #[test]
    fn a_size_that_stays_became_no_other() {
        assert_eq!(became(2, 2, 0.04), "2 members, as before");
        assert_eq!(became(1, 3, 4.0), "1 member became 3 in 4.0 s");
    }

    #[test]
    fn a_trouble_that_lasts_is_told_once() {
        let mut warned = Warned::default();
        let news = |warned: &mut Warned, text: &str| warned.news(text.to_owned()).is_some();
        assert!(news(&mut warned, "too little room") && !news(&mut warned, "too little room"));
        assert!(news(&mut warned, "nobody answers") && news(&mut warned, "too little room"));
        warned.is_over();
        assert!(news(&mut warned, "too little room"));
    }
}
