//! Brings a cluster to a size: decides who comes and who leaves, empties who leaves, and has an [`Executor`] start and end
//! processes. Done in steps that can be done again: whoever is interrupted goes on with the same command.

mod executor;
mod kubernetes;
mod plan;

pub(crate) use executor::{Executor, Local, Program};
pub(crate) use kubernetes::{Kubernetes, SetName, Unfit};
pub(crate) use plan::{Member, Plan, Replicas};

use crate::admin::{Admin, Target};
use crate::commands::drain::Drain;
use crate::commands::status::{list, text};
use crate::drains::{self, CameTo, MayLose};
use crate::report;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often it is looked whether members have come or gone.
const POLL: Duration = Duration::from_millis(250);

/// Whether floor and ceiling of the policy stand against a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beyond {
    /// They do.
    Nothing,
    /// An operator goes, or went, beyond them.
    Policy,
}

/// What a change of size came to.
#[derive(Serialize, Debug)]
pub(crate) struct Scaled {
    /// Members before.
    pub(crate) from: usize,
    /// Members after.
    pub(crate) to: usize,
    /// Who was started.
    pub(crate) started: Vec<String>,
    /// Who was emptied and ended.
    pub(crate) ended: Vec<String>,
    /// Who was being emptied and holds slots again.
    pub(crate) undrained: Vec<String>,
    /// Who stays and is being emptied all the same, as an operator has asked for that.
    pub(crate) left_draining: Vec<String>,
    /// Slots that went to others by it: of one that was empty before, none.
    pub(crate) slots_moved: u64,
    /// What became of their blocks.
    #[serde(flatten)]
    pub(crate) came_to: CameTo,
    /// Who was emptied without anybody having written down what that came to.
    pub(crate) unreported: Vec<String>,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// Returns who there is.
///
/// # Errors
/// When no coordinator answers.
pub(crate) fn members(admin: &Admin) -> Result<Vec<Member>> {
    let status: Value = admin.get("/v1/cluster?consistency=linearizable")?;
    let devices = list(&status["devices"]);
    let member = |node: &Value| {
        let name = text(node, "name");
        let own = devices.iter().filter(|device| text(device, "node") == name);
        Member {
            name: name.to_owned(),
            is_up: text(node, "state") == "up",
            drains: node["drains"] == json!(true),
            slots: own.filter_map(|device| device["slots"].as_u64()).sum(),
        }
    };
    Ok(list(&status["nodes"]).iter().map(member).collect())
}

/// Plans the way to `size` members, by who there is and by the policy.
///
/// # Errors
/// When no coordinator answers, or there is no such way.
pub(crate) fn plan(admin: &Admin, executor: &mut dyn Executor, size: usize, may: Beyond) -> Result<Plan> {
    let scaling: Value = admin.get("/v1/scaling")?;
    let floor = match may {
        Beyond::Policy => 0,
        Beyond::Nothing => scaling["policy"]["floor"].as_u64().unwrap_or(0),
    };
    let floor = usize::try_from(floor).unwrap_or(usize::MAX);
    let plan = executor.plan(&members(admin)?, size, floor)?;
    if plan.is_change() {
        executor.check(&plan)?;
    }
    Ok(plan)
}

/// Brings a plan about: has members started, or empties them and has them ended only then. `losing` says what may be lost by that, and why
/// the size changes.
///
/// # Errors
/// When those who stay have too little room, or a step fails; the ones before it stay done.
pub(crate) fn carry_out(
    target: &Target,
    admin: &Admin,
    executor: &mut dyn Executor,
    plan: Plan,
    limit: Duration,
    losing: (MayLose, &str),
) -> Result<Scaled> {
    let begun = Instant::now();
    let (may, why) = losing;
    let (_, loses) = drains::check(admin, &plan.leave, may)?;
    let reason = format!("from {} to {}: {why}", report::counted(plan.members as u64, "member"), plan.size);
    // Who stays holds slots, unless an operator is emptying it, and so does whoever comes.
    let (undrained, left_draining) = undrains(admin, &plan)?;
    for name in &undrained {
        let _: Value = admin.patch(&format!("/v1/members/{name}"), &json!({"drains": false}))?;
    }
    let drain = |name: &String| {
        let drain = Drain::of(target.clone(), name).giving_up_after(limit).losing(loses);
        drain.because(&reason).for_size(plan.members, plan.size)
    };
    // All at once: nothing goes from one that leaves to another that does.
    let (mut slots_moved, mut came_to, mut unreported) = (0, CameTo::default(), Vec::new());
    let mut held = Vec::with_capacity(plan.leave.len());
    for name in &plan.leave {
        let emptied = drain(name).without_waiting().empty(admin)?;
        held.push((emptied.slots, emptied.was_before));
    }
    for (name, (held, was_before)) in plan.leave.iter().zip(held) {
        // What an earlier drain came to is not what this comes to.
        if was_before {
            continue;
        }
        match drain(name).empty(admin)?.came_to {
            Some(of_one) => {
                // One that has just come may have been given its slots after they were counted here.
                slots_moved += of_one.slots.max(held);
                came_to.add(&of_one);
            }
            None => {
                slots_moved += held;
                unreported.push(name.clone());
            }
        }
    }
    if let Some(member) = plan.not_empty(&members(admin)?) {
        bail!("{} holds slots again, somebody took its drain back: nothing was ended", member.name);
    }
    if plan.is_change() {
        let unfinished = || {
            let words: Vec<String> =
                plan.leave.iter().map(|name| format!("`kvhive drain {name} --undo`")).collect();
            if words.is_empty() {
                return "nothing was started".to_owned();
            }
            format!(
                "{} is emptied and not ended: the same command goes on from here, {} takes it back",
                plan.leave.join(", "),
                words.join(" ")
            )
        };
        executor.scale(&plan).with_context(unfinished)?;
        wait(admin, &*executor, &plan, limit)?;
    }
    Ok(Scaled {
        from: plan.members,
        to: plan.size,
        started: plan.start,
        ended: plan.leave.into_iter().chain(plan.gone).collect(),
        undrained,
        left_draining,
        slots_moved,
        came_to,
        unreported,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Returns whose drain is taken back, and of whom it is not who stay: an operator has asked for it by itself.
///
/// # Errors
/// When no coordinator answers.
pub(crate) fn undrains(admin: &Admin, plan: &Plan) -> Result<(Vec<String>, Vec<String>)> {
    let (mut back, mut left) = (Vec::new(), Vec::new());
    for name in &plan.undrain {
        let is_back = plan.start.contains(name) || drains::is_by_size(admin, name)?;
        if is_back { &mut back } else { &mut left }.push(name.clone());
    }
    Ok((back, left))
}

/// Waits until the plan has come about.
fn wait(admin: &Admin, executor: &dyn Executor, plan: &Plan, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        // Another coordinator may be about to lead.
        match members(admin) {
            Ok(members) if plan.is_done(&members) => return Ok(()),
            state if begun.elapsed() > limit => {
                let up = |members: Vec<Member>| members.iter().filter(|member| member.is_up).count();
                let told =
                    state.map_or_else(|error| format!("{error:#}"), |members| format!("{} up", up(members)));
                let hint = executor.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                bail!(
                    "the cluster has not {} after {limit:?}: {told}{hint}",
                    report::counted(plan.size as u64, "member")
                );
            }
            _ => std::thread::sleep(POLL),
        }
    }
}
