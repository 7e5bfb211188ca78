//! The reference of every key, rendered from the table that reading follows.

use crate::environment::{BETWEEN, PREFIX, spelled};
use crate::keys::{self, Absent, CLUSTER, COORDINATOR, DEVICE, Key, NODE, RAFT};
use crate::scaling::SCALING;
use crate::tls::TLS;
use crate::traces::TRACES;
use std::fmt::Write;

/// Renders the reference of every key as Markdown: what it takes, its default, its meaning and its variable.
pub fn reference_markdown() -> String {
    let sections: [(&str, &str, &[Key], Option<&str>); 8] = [
        ("[cluster]", "What all processes share.", CLUSTER, Some("CLUSTER")),
        ("[raft]", "How the coordinators agree.", RAFT, Some("RAFT")),
        (
            "[scaling]",
            "How many nodes there are to be, and who starts and ends them. What is said of sizes and times holds when the cluster is first \
             started: from then on the coordinators have it, `kvhive scale set` changes it, and this file is not asked again. Who starts \
             and ends nodes is read by the commands that are given this file.",
            SCALING,
            Some("SCALING"),
        ),
        (
            "[tls]",
            "Certificates. With this table every channel is encrypted: processes and clients show each other certificates, admin API and \
             metrics are HTTPS. Without it nothing is.",
            TLS,
            Some("TLS"),
        ),
        (
            "[traces]",
            "Traces of requests (docs/operate.md). With this table requests that are traced by whoever asks, and as many others as are \
             sampled, leave spans; without it nothing is recorded.",
            TRACES,
            Some("TRACES"),
        ),
        (
            "[[coordinator]]",
            "One coordinator process; 1 to 15 of them, and an odd number is best.",
            COORDINATOR,
            Some("COORDINATOR__<ID>"),
        ),
        (
            "[[node]]",
            "One node process. `[node_defaults]` takes the same keys but `id` and `host`, for all nodes that do not give them. A file \
             with a device there may list no node at all: then any may join that is started with `--host` (see above).",
            NODE,
            Some("NODE__<ID>"),
        ),
        ("[[node.device]]", "One device of the node above it, or `[[node_defaults.device]]`.", DEVICE, None),
    ];
    let mut out = String::new();
    for (at, (header, about, keys, variable)) in sections.into_iter().enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        let line = "| key | allowed | default | meaning | variable |\n| --- | --- | --- | --- | --- |";
        writeln!(out, "{gap}### `{header}`\n\n{about}\n\n{line}").expect("writing to a String does not fail");
        for key in keys {
            row(&mut out, key, variable);
        }
    }
    out
}

fn row(out: &mut String, key: &Key, variable: Option<&str>) {
    let default = match &key.absent {
        Absent::Required => "required".to_owned(),
        Absent::Value(text) => match key.rule {
            keys::Rule::Whole { .. } => format!("`{text}`"),
            keys::Rule::Classes => format!("`[\"{text}\"]`"),
            _ => format!("`\"{text}\"`"),
        },
        Absent::Derived(text) => (*text).to_owned(),
    };
    let variable = match variable {
        Some(section) if key.is_overridable() => format!("`{PREFIX}{section}{BETWEEN}{}`", spelled(key.name)),
        _ => "-".to_owned(),
    };
    let allowed = key.rule.allowed();
    writeln!(out, "| `{}` | {allowed} | {default} | {} | {variable} |", key.name, key.meaning)
        .expect("writing to a String does not fail");
}
