//! `kvhive trace`: what became of traced requests; and `kvhive trace generate`, which makes a workload to replay.

use super::generated::Generated;
use super::status::{list, text};
use crate::admin::{Admin, Target};
use crate::report;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Show what became of a traced request as a tree, or list the newest; or make a workload
///
/// A request is traced when its engine says so (a W3C trace context whose sampled flag is set), or is one of those that `sample` in
/// the cluster file's `[traces]` picks. Every process keeps its own part for a while; here they are put together. A request's own id finds its trace where
/// the engine made the one of the other, as the client's `TraceId::of_request` does.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TraceCommand {
    #[command(flatten)]
    target: Target,
    /// The trace's id (32 hexadecimal digits), a whole traceparent, or the request's own id [default: list the newest]
    #[arg(value_name = "REQUEST|TRACE_ID")]
    id: Option<String>,
    /// How many are listed
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=256))]
    limit: u32,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Write the built-in workload (multi-turn chats, documents, agent loops) as a trace
    Generate {
        #[command(flatten)]
        generated: Generated,
        /// How many requests [default: 2000]
        #[arg(long, value_name = "N")]
        requests: Option<usize>,
        /// Where to write it [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Print what was written, and where, as JSON
        #[arg(long, requires = "output")]
        json: bool,
    },
}

impl TraceCommand {
    /// Does what was asked.
    ///
    /// # Errors
    /// When no coordinator answers, nothing is kept of the request, or the workload cannot be written.
    pub(crate) fn run(self) -> Result<()> {
        if let Some(Verb::Generate { generated, requests, output, json }) = self.verb {
            return generate(&generated, requests, output, json);
        }
        let admin = self.target.resolve()?;
        match &self.id {
            Some(id) => show(&admin, id, self.json),
            None => newest(&admin, self.limit, self.json),
        }
    }
}

fn generate(
    generated: &Generated,
    requests: Option<usize>,
    output: Option<PathBuf>,
    as_json: bool,
) -> Result<()> {
    let cannot = || match &output {
        Some(file) => format!("cannot write {}", file.display()),
        None => "standard output cannot be written".to_owned(),
    };
    let mut out: Box<dyn Write> = match &output {
        Some(file) => Box::new(std::io::BufWriter::new(std::fs::File::create(file).with_context(cannot)?)),
        None => Box::new(std::io::BufWriter::new(report::Output::lock())),
    };
    let (mut written, mut blocks) = (0_u64, 0_u64);
    for request in generated.generate(requests) {
        serde_json::to_writer(&mut out, &request).map_err(std::io::Error::from).with_context(cannot)?;
        writeln!(out).with_context(cannot)?;
        (written, blocks) = (written + 1, blocks + request.hash_ids.len() as u64);
    }
    out.flush().with_context(cannot)?;
    match as_json {
        true => report::print_json(&json!({ "file": output, "requests": written, "blocks": blocks })),
        false => Ok(()),
    }
}

fn newest(admin: &Admin, limit: u32, json: bool) -> Result<()> {
    let answer: Value = admin.get(&format!("/v1/traces?limit={limit}"))?;
    if json {
        return report::print_json(&answer);
    }
    warn(&answer);
    let traces = list(&answer["traces"]);
    if traces.is_empty() {
        println!(
            "no traces are kept: a request is traced when its engine says so, or by `sample` of [traces] in the cluster file"
        );
        return Ok(());
    }
    let mut table = report::table(&["TRACE", "BEGAN", "TOOK", "SPANS", "REQUEST", "PROCESSES", "FAILED"]);
    for one in traces {
        let processes: Vec<&str> = list(&one["processes"]).iter().filter_map(Value::as_str).collect();
        table.add_row([
            text(one, "trace"),
            report::utc(one["began_ms"].as_u64().unwrap_or(0)),
            micros(&one["took_us"]),
            text(one, "spans"),
            text(one, "name"),
            processes.join(" "),
            if one["failed"] == true { "yes".to_owned() } else { String::new() },
        ]);
    }
    report::print_table(&table);
    Ok(())
}

fn show(admin: &Admin, id: &str, json: bool) -> Result<()> {
    let trace: Value = admin.get(&format!("/v1/traces/{}", path(named(id)?)))?;
    if json {
        return report::print_json(&trace);
    }
    warn(&trace);
    println!(
        "trace {}, begun {}, {}",
        text(&trace, "trace"),
        report::utc(trace["began_ms"].as_u64().unwrap_or(0)),
        micros(&trace["took_us"])
    );
    let mut table = report::table(&["AFTER", "TOOK", "SPAN", "PROCESS", ""]);
    for span in list(&trace["spans"]) {
        table.add_row(row(span));
    }
    report::print_table(&table);
    Ok(())
}

fn row(span: &Value) -> [String; 5] {
    let depth = usize::try_from(span["depth"].as_u64().unwrap_or(0)).unwrap_or(0).min(32);
    let sign = if span["kind"] == "asked" { "→ " } else { "" };
    let mut said: Vec<String> = Vec::new();
    for (name, fact) in span["facts"].as_object().into_iter().flatten() {
        let fact = fact.as_str().map_or_else(|| fact.to_string(), str::to_owned);
        said.push(format!("{}={fact}", name.strip_prefix("kvhive.").unwrap_or(name)));
    }
    if let Some(why) = span["failed"].as_str() {
        said.push(format!("FAILED: {why}"));
    }
    [
        micros(&span["after_us"]),
        micros(&span["took_us"]),
        format!("{}{sign}{}", "  ".repeat(depth), text(span, "name")),
        text(span, "process"),
        said.join(" "),
    ]
}

/// Says who did not answer, and that nobody traces.
fn warn(answer: &Value) {
    for one in list(&answer["silent"]) {
        eprintln!(
            "warning: {} did not answer, its part is missing: {}",
            text(one, "process"),
            text(one, "why")
        );
    }
}

fn micros(us: &Value) -> String {
    report::duration(us.as_u64().unwrap_or(0).saturating_mul(1000))
}

/// Returns what the coordinator knows a request by: of a whole traceparent the trace's id.
pub(super) fn named(id: &str) -> Result<&str> {
    let mut parts = id.split('-');
    let is_parent = (parts.next().map(str::len), parts.next().map(str::len)) == (Some(2), Some(32));
    let id = if is_parent { &id[3..35] } else { id };
    if id.is_empty() {
        bail!("an empty id names no request");
    }
    Ok(id)
}

/// Returns a text as one part of a path.
fn path(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_traceparent_names_its_trace_and_any_other_id_itself() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(named(parent).expect("it is one"), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(named("chatcmpl-7/ä").map(path).expect("it is one"), "chatcmpl-7%2F%C3%A4");
        assert_eq!(named("00-short-1").expect("it is one"), "00-short-1");
        assert!(named("").is_err());
    }

    #[test]
    fn a_span_is_a_line_that_stands_within_its_parent() {
        let span = json!({
            "depth": 2, "kind": "asked", "name": "copy", "process": "node-0", "after_us": 15_000, "took_us": 7,
            "facts": {"kvhive.device": "2/0", "kvhive.bytes": 65536}, "failed": "busy",
        });
        let line = ["15.0 ms", "7000 ns", "    → copy", "node-0", "bytes=65536 device=2/0 FAILED: busy"];
        assert_eq!(row(&span), line.map(str::to_owned));
    }
}
