//! `kvhive nodes --links`: by which way blocks get from device to device, as every node tells of its own.

use super::status::{list, size, text};
use crate::admin::Admin;
use crate::report;
use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Asks every node that is up how its devices reach others, and prints it.
///
/// # Errors
/// When no coordinator answers; when a node does not, after the others' answers are printed.
pub(super) fn show(admin: &Admin, as_json: bool) -> Result<()> {
    let members: Value = admin.get_list("/v1/members", "members")?;
    let (mut links, mut sets, mut nccl, mut silent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for member in list(&members["members"]).iter().filter(|member| member["state"] == "up") {
        let name = text(member, "name");
        match admin.of_node(&text(member, "metrics_address")).get::<Value>("/v1/links") {
            Ok(told) => {
                links.extend(list(&told["links"]).iter().map(|link| of_node(&name, link)));
                sets.extend(list(&told["sets"]).iter().map(|set| of_node(&name, set)));
                nccl.extend(list(&told["nccl"]).iter().map(|gpu| of_node(&name, gpu)));
            }
            Err(error) => silent.push(format!("{name}: {error:#}")),
        }
    }
    if as_json {
        report::print_json(&json!({ "links": links, "sets": sets, "nccl": nccl }))?;
    } else if links.is_empty() {
        println!("no device has given another a block since their nodes started");
    } else {
        let mut table = report::table(&["FROM", "TO", "BY", "WHY", "BATCHES", "BYTES", "FAILED", "MEASURED"]);
        for link in &links {
            table.add_row(row(link));
        }
        report::print_table(&table);
    }
    if !as_json {
        sets.iter().for_each(|set| println!("{}", set_line(set)));
        print_pairs(&nccl);
    }
    if silent.is_empty() { Ok(()) } else { bail!("not all nodes have answered: {}", silent.join("; ")) }
}

/// Prints what each GPU does with NCCL, and how far its pairs are.
fn print_pairs(nccl: &[Value]) {
    let mut table = report::table(&["GPU", "PEER", "PAIR", "FOR", "TRANSFERS", "BYTES", "FAILED", "WHY"]);
    for gpu in nccl {
        println!(
            "\n{} ({}): the process that makes NCCL's calls {}; its slot is {}; {} of {} pairs",
            device(&gpu["device"]),
            text(gpu, "from"),
            text(gpu, "worker"),
            text(gpu, "slot"),
            text(gpu, "live"),
            text(gpu, "max_live")
        );
        for pair in list(&gpu["pairs"]) {
            table.add_row([
                device(&gpu["device"]),
                device(&pair["peer"]),
                text(pair, "state"),
                format!("{} s", pair["for_ms"].as_u64().unwrap_or(0) / 1000),
                text(pair, "transfers"),
                size(pair, "bytes"),
                text(pair, "failures"),
                text(pair, "why"),
            ]);
        }
    }
    if nccl.iter().any(|gpu| !list(&gpu["pairs"]).is_empty()) {
        println!();
        report::print_table(&table);
    }
    for gpu in nccl {
        for group in list(&gpu["groups"]) {
            let members: Vec<String> = list(&group["members"]).iter().map(device).collect();
            println!(
                "{} sees {} send to {} at once: {} for {} s, {} transfers, {}, failed {} times{}",
                device(&gpu["device"]),
                device(&group["root"]),
                members.join(", "),
                text(group, "state"),
                group["for_ms"].as_u64().unwrap_or(0) / 1000,
                text(group, "transfers"),
                size(group, "bytes"),
                text(group, "failures"),
                group["why"].as_str().map(|why| format!(" ({why})")).unwrap_or_default()
            );
        }
    }
}

/// Writes a device as `member/index`.
fn device(device: &Value) -> String {
    format!("{}/{}", text(device, "member"), text(device, "index"))
}

/// Says of a link whose it is.
fn of_node(name: &str, link: &Value) -> Value {
    let mut link = link.clone();
    if let Value::Object(fields) = &mut link {
        fields.insert("from".to_owned(), json!(name));
    }
    link
}

/// Says how a device gives several others the same, as a node of an older build does not.
fn set_line(set: &Value) -> String {
    let targets: Vec<&str> = list(&set["targets"]).iter().filter_map(Value::as_str).collect();
    let how = if set["at_once"] == true { "at once" } else { "to each by its own way" };
    format!(
        "{} ({}) gives {} the same {how}: {}; {} batches and {} have gone at once, {} failed",
        text(set, "source"),
        text(set, "from"),
        targets.join(", "),
        text(set, "reason"),
        text(set, "transfers"),
        size(set, "bytes"),
        text(set, "failures")
    )
}

fn row(link: &Value) -> [String; 8] {
    let transports = || list(&link["transports"]).iter();
    let sum = |field: &str| transports().filter_map(|one| one[field].as_u64()).sum::<u64>();
    let rates = transports().filter_map(|one| {
        let rates = list(&one["rates"]).iter();
        let newest =
            rates.filter(|rate| rate["ago_ms"].is_u64()).min_by_key(|rate| rate["ago_ms"].as_u64())?;
        Some(format!("{} {}/s", text(one, "transport"), report::bytes(newest["bytes_per_s"].as_u64()?)))
    });
    let rates: Vec<String> = rates.collect();
    [
        format!("{} ({})", text(link, "source"), text(link, "from")),
        format!("{} ({})", text(link, "target"), text(link, "node")),
        text(link, "transport"),
        text(link, "reason"),
        sum("transfers").to_string(),
        report::bytes(sum("bytes")),
        sum("failures").to_string(),
        if rates.is_empty() { "-".to_owned() } else { rates.join(", ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_a_line_that_says_how_and_why() {
        let set = json!({
            "source": "1/0", "targets": ["2/0", "3/0"], "at_once": false, "transfers": 4, "bytes": 1 << 20, "failures": 1,
            "reason": "at once 1.0 GB/s, each by its own way 2.0 GB/s", "rates": [], "rests_ms": null,
        });
        let told = "1/0 (node-1) gives 2/0, 3/0 the same to each by its own way: at once 1.0 GB/s, each by its own way 2.0 GB/s; \
                    4 batches and 1.0 MiB have gone at once, 1 failed";
        assert_eq!(set_line(&of_node("node-1", &set)), told);
    }

    #[test]
    fn a_link_is_a_line_of_what_all_its_ways_have_carried() {
        let way = |transport: &str, bytes: u64, ago: u64| {
            let rate = json!({"below_bytes": null, "bytes_per_s": 2 << 20, "samples": 3, "ago_ms": ago});
            json!({"transport": transport, "transfers": 2, "bytes": bytes, "failures": 1, "rates": [rate], "rests_ms": null})
        };
        let link = json!({
            "source": "1/0", "target": "2/1", "node": "node-2", "transport": "tcp", "reason": "there is no other way",
            "transports": [way("tcp", 1 << 20, 5), way("nccl", 1 << 20, 9)],
        });
        let told = row(&of_node("node-1", &link));
        let words = [
            "1/0 (node-1)",
            "2/1 (node-2)",
            "tcp",
            "there is no other way",
            "4",
            "2.0 MiB",
            "2",
            "tcp 2.0 MiB/s, nccl 2.0 MiB/s",
        ];
        assert_eq!(told, words.map(str::to_owned));
    }
}
