//! An engine's cost in words, for people.

use super::score::Judged;
use kvhive_protocol::routing::{COMPUTE, Part, Term};

/// Says in a sentence what a request would cost at an engine, and why.
pub(crate) fn reason(tokens: u64, cost: u64, terms: &[Term], one: &Judged) -> String {
    let cached: Vec<String> = terms.iter().filter_map(cached).collect();
    let computed = terms.iter().find(|term| term.part == Part::Compute).map_or(0, |term| term.amount);
    let mut says = vec![match tokens - computed {
        0 => format!("all {tokens} tokens are to be computed"),
        _ => format!("of {tokens} tokens {}, {computed} are to be computed", cached.join(", ")),
    }];
    let load: Vec<String> = terms.iter().filter_map(|term| busy(term, one)).collect();
    match &one.load {
        None if load.is_empty() => says.push("nobody said how busy it is".to_owned()),
        _ if load.is_empty() => says.push("it is idle".to_owned()),
        _ => says.push(load.join(", ")),
    }
    if !one.known.is_connected {
        says.push("its events do not arrive".to_owned());
    } else if !one.known.is_exact {
        says.push("not all of its cache is known".to_owned());
    }
    format!("{}: as much as computing {} tokens", says.join("; "), cost.div_ceil(COMPUTE))
}

fn cached(term: &Term) -> Option<String> {
    let place = match term.part {
        Part::EngineDevice => "in its own device memory",
        Part::EngineHost => "in its own host memory",
        Part::EngineDisk => "on its own disk",
        Part::HiveLocal => "in kvhive's memory beside it",
        Part::HiveMemory => "in kvhive's memory elsewhere",
        Part::HiveDisk => "on kvhive's disks",
        _ => return None,
    };
    Some(format!("{} are {place}", term.amount))
}

fn busy(term: &Term, one: &Judged) -> Option<String> {
    let queued = one.load.is_some_and(|load| load.queued_tokens.is_some());
    Some(match term.part {
        Part::Running => format!("{} run", term.amount),
        Part::Waiting if queued => format!("{} tokens wait", term.amount),
        Part::Waiting => format!("{} wait", term.amount),
        Part::Taken => format!("{} tokens were sent there since", term.amount),
        Part::KvUsage => format!("its cache is {} % full", term.amount / 10_000),
        _ => return None,
    })
}
