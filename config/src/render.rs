//! A cluster as a cluster file, every key written out.

use crate::config::{ClusterParts, CoordinatorConfig};
use crate::node::{BlockClass, NodeConfig};
use crate::scaling::{Executor, ScalingSettings};
use crate::units::{format_share, format_time};
use std::fmt::Write;

pub(crate) fn toml(parts: &ClusterParts) -> String {
    let mut out = Lines(String::new());
    let cluster = &parts.cluster;
    out.header("[cluster]");
    out.text("name", &cluster.name);
    out.plain("replicas", cluster.replicas);
    out.text("ack", cluster.ack.as_str());
    out.plain("segment_blocks", cluster.segment_blocks);
    if let Some(file) = cluster.token.file() {
        out.text("token_file", file);
    }
    for (key, file) in [
        ("operator_token_file", &cluster.operator_token_file),
        ("viewer_token_file", &cluster.viewer_token_file),
    ] {
        if let Some(file) = file {
            out.text(key, file);
        }
    }
    out.text("insecure", if cluster.may_be_insecure { "allowed" } else { "refused" });
    out.text("lease", &format_time(cluster.lease));
    out.text("serving_lease", &format_time(cluster.serving_lease));
    out.text("heartbeat", &format_time(cluster.heartbeat));
    out.text("repair_after", &format_time(cluster.repair_after));
    out.text("balance", if cluster.balance { "continuous" } else { "off" });
    if let Some(level) = cluster.max_level {
        out.plain("max_level", level);
    }
    out.header("\n[raft]");
    out.text("election_timeout", &format_time(parts.raft.election_timeout));
    out.text("heartbeat", &format_time(parts.raft.heartbeat));
    out.plain("snapshot_every", parts.raft.snapshot_every);
    scaling(&mut out, &parts.scaling);
    if let Some(tls) = &parts.tls {
        out.header("\n[tls]");
        out.text("certificate", &tls.certificate);
        out.text("key", &tls.key);
        out.text("authorities", &tls.authorities);
    }
    if let Some(traces) = &parts.traces {
        out.header("\n[traces]");
        if let Some(endpoint) = &traces.endpoint {
            out.text("endpoint", endpoint);
        }
        out.plain("sample", format_share(traces.sample_per_mille));
        out.plain("keep", traces.keep);
    }
    for one in &parts.coordinators {
        coordinator(&mut out, one);
    }
    for one in &parts.nodes {
        node(&mut out, one);
    }
    out.0
}

fn scaling(out: &mut Lines, one: &ScalingSettings) {
    out.header("\n[scaling]");
    out.text("mode", one.mode.as_str());
    out.plain("floor", one.floor);
    out.plain("ceiling", one.ceiling);
    out.plain("keep", format_share(one.keep_per_mille));
    out.text("up_cooldown", &format_time(one.up_cooldown));
    out.text("down_cooldown", &format_time(one.down_cooldown));
    out.text("look_ahead", &format_time(one.look_ahead));
    out.text("max_queue", &format_time(one.max_queue));
    match &one.executor {
        Executor::Local => {}
        Executor::StatefulSet(set) => out.text("statefulset", set),
        Executor::Program(words) => {
            let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
            out.plain("program", format!("[{}]", words.join(", ")));
        }
    }
}

fn coordinator(out: &mut Lines, one: &CoordinatorConfig) {
    out.header("\n[[coordinator]]");
    out.text("id", &one.id);
    out.plain("peer", one.peer);
    out.text("host", &one.host);
    out.text("admin", &one.admin.to_string());
    out.text("raft", &one.raft.to_string());
    out.text("data_dir", &one.data_dir);
    for (key, address) in
        [("block_events", one.block_events), ("block_events_replay", one.block_events_replay)]
    {
        if let Some(address) = address {
            out.text(key, &address.to_string());
        }
    }
    if let Some(topic) = &one.block_events_topic {
        out.text("block_events_topic", topic);
    }
}

fn node(out: &mut Lines, one: &NodeConfig) {
    out.header("\n[[node]]");
    out.text("id", &one.id);
    out.text("host", &one.host);
    out.text("data", &one.data.to_string());
    out.text("metrics", &one.metrics.to_string());
    if !one.labels.is_empty() {
        let labels: Vec<String> =
            one.labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), quoted(value))).collect();
        out.plain("labels", format!("{{ {} }}", labels.join(", ")));
    }
    out.plain("io_threads", one.io_threads);
    out.plain("max_connections", one.max_connections);
    out.text("max_inflight", &one.max_inflight.to_string());
    out.text("move_rate", &one.move_rate.to_string());
    out.plain("move_slowdown_percent", one.move_slowdown_percent);
    out.plain("block_sizes", format!("[{}]", classes(&one.block_sizes)));
    if let Some(folder) = &one.disk_dir {
        out.text("disk_dir", folder);
    }
    out.text("disk_encryption", if one.disk_encryption { "on" } else { "off" });
    if let Some(file) = &one.disk_key_file {
        out.text("disk_key_file", file);
    }
    if let Some(folder) = &one.persist_dir {
        out.text("persist_dir", folder);
    }
    if let Some(every) = one.persist_every {
        out.text("persist_every", &format_time(every));
    }
    out.text("share_memory", one.share_memory.as_str());
    out.text("gpu_stages", if one.gpu_stages { "auto" } else { "off" });
    out.text("names_memory", &one.names_memory.to_string());
    out.text("guest_memory", &one.guest_memory.to_string());
    if let Some(listen) = one.redis.listen {
        out.text("redis_listen", &listen.to_string());
    }
    out.plain("redis_max_connections", one.redis.max_connections);
    out.text("redis_max_value", &one.redis.max_value.to_string());
    out.text("redis_max_inflight", &one.redis.max_inflight.to_string());
    out.text("nccl", one.nccl.when.as_str());
    out.text("nccl_after", &one.nccl.after.to_string());
    out.plain("nccl_max_pairs", one.nccl.max_pairs);
    out.plain("nccl_max_ctas", one.nccl.max_ctas);
    out.text("nccl_buffer", &one.nccl.buffer.to_string());
    out.text("nccl_guest_memory", &one.nccl.guest_memory.to_string());
    out.text("mode", one.mode.as_str());
    out.text("strategy", one.tuning.strategy);
    out.plain("prefetch_blocks", one.tuning.prefetch_blocks);
    out.text("hold", &format_time(one.tuning.hold));
    out.text("batch_delay", &format_time(one.tuning.batch_delay));
    out.text("codec", one.tuning.codec.as_str());
    out.plain("priority", one.tuning.priority);
    out.text("disk_admission", one.tuning.disk_admission.as_str());
    out.plain("gc_threshold", format_share(one.tuning.gc_per_mille));
    for device in &one.devices {
        out.header("[[node.device]]");
        out.text("kind", device.kind.as_str());
        out.plain("gpu", device.gpu);
        out.text("memory", &device.memory.to_string());
        out.text("host_memory", &device.host_memory.to_string());
        out.text("disk", &device.disk.to_string());
    }
}

fn classes(classes: &[BlockClass]) -> String {
    let even = 1_000_000 / u32::try_from(classes.len()).expect("a node has at most 8 classes").max(1);
    let shared = classes.iter().any(|class| class.share_ppm != even);
    let written = |class: &BlockClass| {
        let size = quoted(&class.size.to_string());
        if !shared {
            return size;
        }
        format!(
            "{{ size = {size}, share = {}.{:06} }}",
            class.share_ppm / 1_000_000,
            class.share_ppm % 1_000_000
        )
    };
    classes.iter().map(written).collect::<Vec<_>>().join(", ")
}

struct Lines(String);

impl Lines {
    fn header(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn text(&mut self, key: &str, value: &str) {
        self.plain(key, quoted(value));
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{key} = {value}").expect("writing to a String does not fail");
    }
}

/// Quotes a text that holds no control characters, as every text of a checked cluster.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
