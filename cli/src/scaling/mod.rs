//! Brings a cluster to a size: decides who comes and who leaves, empties who leaves, and has an [`Executor`] start and end
//! processes. Done in steps that can be done again: whoever is interrupted goes on with the same command.

mod executor;
mod plan;

pub(crate) use executor::{Executor, Local, Program};
pub(crate) use plan::{Member, Plan};

use crate::admin::{Admin, Target};
use crate::commands::drain::{Drain, Emptied};
use crate::commands::status::{list, text};
use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often it is looked whether members have come or gone.
const POLL: Duration = Duration::from_millis(250);

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
    /// Slots that went to others.
    pub(crate) slots_moved: u64,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// Returns who there is.
///
/// # Errors
/// When no coordinator answers.
pub(crate) fn members(admin: &Admin) -> Result<Vec<Member>> {
    let answer = admin.get_list("/v1/members", "members")?;
    let member = |node: &Value| Member {
        name: text(node, "name").to_owned(),
        is_up: text(node, "state") == "up",
        drains: node["drains"] == json!(true),
    };
    Ok(list(&answer["members"]).iter().map(member).collect())
}

/// Gives the cluster `size` members: starts them, or empties them one after the other and ends them only then.
///
/// # Errors
/// When a step fails; the ones before it stay done.
pub(crate) fn scale_to(
    target: &Target,
    admin: &Admin,
    executor: &mut dyn Executor,
    size: usize,
    limit: Duration,
) -> Result<Scaled> {
    let begun = Instant::now();
    let plan = Plan::of(&members(admin)?, size)?;
    // Who stays or comes holds slots, whatever was wanted of it before.
    for name in &plan.undrain {
        let _: Value = admin.patch(&format!("/v1/members/{name}"), &json!({"drains": false}))?;
    }
    let mut slots_moved = 0;
    for name in &plan.leave {
        let Emptied { slots, left, .. } = Drain::of(target.clone(), name).empty(admin)?;
        if left > 0 {
            bail!("{name} still holds {left} slots: nothing was ended");
        }
        slots_moved += slots;
    }
    if !plan.start.is_empty() || !plan.leave.is_empty() {
        executor.scale(&plan)?;
        wait(admin, &plan, limit)?;
    }
    Ok(Scaled {
        from: plan.members,
        to: size,
        started: plan.start,
        ended: plan.leave,
        slots_moved,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Waits until as many as wanted are up, and who leaves is down.
fn wait(admin: &Admin, plan: &Plan, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        // Another coordinator may be about to lead.
        let state = members(admin).map(|members| {
            let up: Vec<&Member> = members.iter().filter(|member| member.is_up).collect();
            let lingering = up.iter().filter(|member| plan.leave.contains(&member.name)).count();
            (up.len(), lingering)
        });
        match state {
            Ok((up, 0)) if up == plan.size => return Ok(()),
            state if begun.elapsed() > limit => {
                let told = state.map_or_else(|error| format!("{error:#}"), |(up, _)| format!("{up} are up"));
                bail!("the cluster has not {} members after {limit:?}: {told}", plan.size);
            }
            _ => std::thread::sleep(POLL),
        }
    }
}
