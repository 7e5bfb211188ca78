//! Overrides: variables put into the file's tree before it is read, so that they pass the same checks as the file.
//!
//! `KVHIVE_<SECTION>__<KEY>`, and `KVHIVE_NODE__<ID>__<KEY>` or `KVHIVE_COORDINATOR__<ID>__<KEY>` for one process.
//! Two underscores part the words; hyphens of an id become single ones.

use crate::hint;
use crate::keys::{self, CLUSTER, COORDINATOR, Key, NODE, RAFT};
use crate::ledger::Ledger;
use crate::parse::key_shown;
use crate::problem::{Origin, Problem};
use crate::scaling::SCALING;
use crate::tls::TLS;
use crate::traces::TRACES;
use crate::tree::{Kind, Table, Value};
use std::collections::BTreeMap;

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "KVHIVE_";
/// What parts the words of an override.
pub(crate) const BETWEEN: &str = "__";
/// Variables of tracing keep their own form and are never overrides.
const TRACING: &str = "KVHIVE_TRACE_";
/// The most processes that a message names.
const MAX_NAMED: usize = 8;

const SECTIONS: [&str; 8] =
    ["cluster", "raft", "scaling", "tls", "traces", "coordinator", "node_defaults", "node"];

/// Returns `name` as a variable has it.
pub(crate) fn spelled(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

/// Puts every override of `variables` into `root`.
pub(crate) fn apply(root: &mut Table, variables: &BTreeMap<String, String>, ledger: &mut Ledger) {
    for (variable, value) in variables {
        let Some(words) = variable.strip_prefix(PREFIX) else { continue };
        if variable.starts_with(TRACING) || !words.contains(BETWEEN) {
            continue;
        }
        let words: Vec<&str> = words.split(BETWEEN).collect();
        let value = Value::text(value, Origin::Environment(variable.clone()));
        let unknown = match words[..] {
            ["CLUSTER", key] => set(shared(root, "cluster"), "cluster", CLUSTER, key, value),
            ["RAFT", key] => set(shared(root, "raft"), "raft", RAFT, key, value),
            ["SCALING", key] => set(shared(root, "scaling"), "scaling", SCALING, key, value),
            ["TLS", key] => set(shared(root, "tls"), "tls", TLS, key, value),
            ["TRACES", key] => set(shared(root, "traces"), "traces", TRACES, key, value),
            ["NODE_DEFAULTS", key] => {
                set(shared(root, "node_defaults"), "node_defaults", keys::node_defaults(), key, value)
            }
            ["COORDINATOR", id, key] => one(root, "coordinator", id, variable)
                .and_then(|table| set(Some(table), "coordinator", COORDINATOR, key, value)),
            ["NODE", id, key] => {
                one(root, "node", id, variable).and_then(|table| set(Some(table), "node", NODE, key, value))
            }
            _ => Err(shapeless(variable, &words)),
        };
        if let Err(problem) = unknown {
            ledger.add(problem);
        }
    }
}

fn shapeless(variable: &str, words: &[&str]) -> Problem {
    let section = words[0].to_ascii_lowercase();
    let hint = match section.as_str() {
        "cluster" | "raft" | "scaling" | "tls" | "traces" | "node_defaults" => {
            format!("an override of it is {PREFIX}{}__<KEY>", words[0])
        }
        "coordinator" | "node" => format!("an override of it is {PREFIX}{}__<ID>__<KEY>", words[0]),
        _ => hint::hint(&section, SECTIONS.into_iter()),
    };
    let key = key_shown(&words.join(".").to_ascii_lowercase());
    Problem::UnknownKey { origin: Origin::Environment(variable.to_owned()), key, hint }
}

/// Returns the table `name`, made if there is none; `None` if something else has its name, which reading will refuse.
fn shared<'a>(root: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    let empty = Value { kind: Kind::Table(Table::new()), origin: Origin::Default };
    match &mut root.entry(name.to_owned()).or_insert(empty).kind {
        Kind::Table(table) => Some(table),
        _ => None,
    }
}

/// Returns the table of the process that a variable calls `id`.
fn one<'a>(
    root: &'a mut Table,
    kind: &'static str,
    id: &str,
    variable: &str,
) -> Result<&'a mut Table, Problem> {
    let mut known = Vec::new();
    let processes = match root.get_mut(kind).map(|value| &mut value.kind) {
        Some(Kind::List(items)) => items.as_mut_slice(),
        _ => &mut [],
    };
    for process in processes {
        let Kind::Table(table) = &mut process.kind else { continue };
        let Some(Kind::Text(name)) = table.get("id").map(|id| &id.kind) else { continue };
        if spelled(name) == id {
            return Ok(table);
        }
        known.push(spelled(name));
    }
    let more = if known.len() > MAX_NAMED { ", …" } else { "" };
    known.truncate(MAX_NAMED);
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") + more };
    Err(Problem::UnknownProcess {
        variable: variable.to_owned(),
        kind,
        given: key_shown(id),
        known: key_shown_list(&known),
    })
}

fn key_shown_list(known: &str) -> String {
    known.chars().filter(|c| !c.is_control()).take(MAX_NAMED * 64).collect()
}

fn set(
    table: Option<&mut Table>,
    section: &str,
    keys: &'static [Key],
    key: &str,
    value: Value,
) -> Result<(), Problem> {
    let overridable = || keys.iter().filter(|key| key.is_overridable()).map(|key| key.name);
    let Some(name) = overridable().find(|name| spelled(name) == key) else {
        let lower = key.to_ascii_lowercase();
        let key = format!("{section}.{}", key_shown(&lower));
        // The nearest key may be the very word in small letters, or one that no variable can give.
        let hint = if keys.iter().any(|key| key.name == lower && !key.is_overridable()) {
            "it can be given in the file only".to_owned()
        } else {
            hint::hint(&lower, overridable())
        };
        return Err(Problem::UnknownKey { origin: value.origin, key, hint });
    };
    if let Some(table) = table {
        table.insert(name.to_owned(), value);
    }
    Ok(())
}
