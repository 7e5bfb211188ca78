//! What an operator reads when a cluster file is wrong: whole texts, because they are the interface.

use kvhive_config::{Bytes, ClusterConfig, DeviceKind, Process, TokenSource};

const VALID: &str = r#"[cluster]
name = "test"
token_file = "token"
insecure = "allowed"
[raft]
[[coordinator]]
id = "coord-a"
host = "10.0.0.1"
data_dir = "/data/a"
[[node]]
id = "node-a"
host = "10.0.0.2"
[[node.device]]
"#;

const TLS: &str = r#"[tls]
certificate = "tls/member.pem"
key = "tls/member.key"
authorities = "tls/authority.pem"
"#;

fn problems_with(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    match ClusterConfig::from_toml(text, env) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems().iter().map(ToString::to_string).collect(),
    }
}

/// The problems of `VALID` with `line` put under the line `under`.
fn with(under: &str, line: &str) -> Vec<String> {
    assert!(VALID.contains(under), "{under}");
    problems_with(&VALID.replacen(under, &format!("{under}\n{line}"), 1), &[])
}

/// The problems of `VALID` with `old` replaced.
fn instead(old: &str, new: &str) -> Vec<String> {
    assert!(VALID.contains(old), "{old}");
    problems_with(&VALID.replacen(old, new, 1), &[])
}

#[test]
fn the_file_that_these_tests_break_is_right() {
    assert_eq!(problems_with(VALID, &[]), [""; 0]);
}

#[test]
fn each_wrong_value_is_told_with_line_key_value_and_what_is_allowed() {
    for (under, line, message) in [
        (
            "[[node]]",
            "gc_threshold = 0.05",
            "line 11: node[0].gc_threshold = 0.05: allowed is a number from 0.1 to 1",
        ),
        (
            "[[node]]",
            "gc_threshold = \"0.8\"",
            "line 11: node[0].gc_threshold = \"0.8\": allowed is a number from 0.1 to 1",
        ),
        (
            "[raft]",
            "[scaling]\nceiling = 2\nfloor = 3",
            "line 7: scaling.ceiling = 2: allowed is at least scaling.floor, which is 3",
        ),
        ("[raft]", "[scaling]\nkeep = 0.4", "line 7: scaling.keep = 0.4: allowed is a number from 0.5 to 1"),
        (
            "[raft]",
            "[scaling]\nup_cooldown = \"1500ms\"",
            "line 7: scaling.up_cooldown = \"1500ms\": it must come out at whole seconds; allowed is a time from \"0ms\" to \"86400s\"",
        ),
        (
            "[raft]",
            "[scaling]\nstatefulset = \"a/b/c\"",
            "line 7: scaling.statefulset = \"a/b/c\": allowed is \"NAME\" or \"NAMESPACE/NAME\", each 1 to 63 of a-z, 0-9 and '-', as in \"kvhive/kvhive-node\"",
        ),
        (
            "[raft]",
            "[scaling]\nprogram = []",
            "line 7: scaling.program = (array of 0): allowed is an array of 1 to 64 texts of 1 to 1024 bytes without control characters",
        ),
        (
            "[raft]",
            "[scaling]\nprogram = [\"a\"]\nstatefulset = \"a\"",
            "line 7: scaling.program = (array of 1): scaling.statefulset says already who starts nodes; allowed is one of them",
        ),
        ("[cluster]", "replicas = 9", "line 2: cluster.replicas = 9: allowed is a whole number from 1 to 8"),
        (
            "[cluster]",
            "replicas = -1",
            "line 2: cluster.replicas = -1: allowed is a whole number from 1 to 8",
        ),
        (
            "[cluster]",
            "replicas = \"2\"",
            "line 2: cluster.replicas = \"2\": allowed is a whole number from 1 to 8",
        ),
        (
            "[cluster]",
            "replicas = true",
            "line 2: cluster.replicas = true: allowed is a whole number from 1 to 8",
        ),
        (
            "[cluster]",
            "replicas = 1.5",
            "line 2: cluster.replicas = 1.5: allowed is a whole number from 1 to 8",
        ),
        (
            "[cluster]",
            "ack = \"some\"",
            "line 2: cluster.ack = \"some\": allowed is \"primary\" or \"quorum\" or \"all\"",
        ),
        (
            "[cluster]",
            "lease = 2000",
            "line 2: cluster.lease = 2000: a time needs a unit, such as \"2000ms\"; allowed is a time from \"200ms\" to \"60s\"",
        ),
        (
            "[cluster]",
            "lease = \"100ms\"",
            "line 2: cluster.lease = \"100ms\": allowed is a time from \"200ms\" to \"60s\"",
        ),
        (
            "[cluster]",
            "lease = \"soon\"",
            "line 2: cluster.lease = \"soon\": a time is a number and a unit, such as \"400ms\" or \"2s\"; allowed is a time from \"200ms\" to \"60s\"",
        ),
        (
            "[cluster]",
            "heartbeat = \"1s\"",
            "line 2: cluster.heartbeat = \"1s\": allowed is less than a third of cluster.lease, which is \"2s\"",
        ),
        (
            "[cluster]",
            "serving_lease = \"1s\"",
            "line 2: cluster.serving_lease = \"1s\": allowed is at least cluster.lease, which is \"2s\"",
        ),
        (
            "[raft]",
            "heartbeat = \"200ms\"",
            "line 6: raft.heartbeat = \"200ms\": allowed is at most a third of raft.election_timeout, which is \"400ms\"",
        ),
        (
            "id = \"coord-a\"",
            "admin = \"7800\"",
            "line 8: coordinator[0].admin = \"7800\": allowed is an IP address and a port from 1 to 65535, such as \"0.0.0.0:7810\"",
        ),
        (
            "id = \"coord-a\"",
            "admin = \"0.0.0.0:0\"",
            "line 8: coordinator[0].admin = \"0.0.0.0:0\": allowed is an IP address and a port from 1 to 65535, such as \"0.0.0.0:7810\"",
        ),
        (
            "id = \"coord-a\"",
            "admin = \"127.0.0.1:7800\"",
            "line 8: coordinator[0].admin = \"127.0.0.1:7800\": others reach it by coordinator[0].host, which is \"10.0.0.1\"; listen there or on 0.0.0.0",
        ),
        (
            "id = \"coord-a\"",
            "raft = \"0.0.0.0:7800\"",
            "line 8: coordinator[0].raft = \"0.0.0.0:7800\": coordinator[0].admin listens on 10.0.0.1:7800 of the same host; each listener needs a port of its own",
        ),
        (
            "id = \"node-a\"",
            "max_inflight = 268435456",
            "line 12: node[0].max_inflight = 268435456: a size needs a unit, such as \"64MiB\"; allowed is a size from \"1MiB\" to \"1TiB\"",
        ),
        (
            "id = \"node-a\"",
            "max_inflight = \"64M\"",
            "line 12: node[0].max_inflight = \"64M\": \"M\" is no unit; units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB; allowed is a size from \"1MiB\" to \"1TiB\"",
        ),
        (
            "id = \"node-a\"",
            "block_sizes = [\"2KiB\"]",
            "line 12: node[0].block_sizes = (array of 1): \"2KiB\" is no block size; allowed is an array of 1 to 8 different sizes from \"4KiB\" to \"64MiB\", multiples of 64 bytes, all or none as { size, share }",
        ),
        (
            "[[node.device]]",
            "memory = \"0\"",
            "line 14: node[0].device[0].memory = \"0\": allowed is a size from \"4KiB\" to \"64TiB\"",
        ),
        (
            "[[node.device]]",
            "host_memory = \"1KiB\"",
            "line 14: node[0].device[0].host_memory = \"1KiB\": allowed is \"0\" or a size from \"4KiB\" to \"64TiB\"",
        ),
        (
            "[[node.device]]",
            "kind = \"rocm\"",
            "line 14: node[0].device[0].kind = \"rocm\": allowed is \"host\" or \"cuda\" or \"auto\"",
        ),
        (
            "[[node.device]]",
            "memory = \"32KiB\"",
            "line 14: node[0].device[0].memory = \"32KiB\": no block of \"64KiB\" (node[0].block_sizes) fits its part; each size needs room for one",
        ),
    ] {
        assert_eq!(with(under, line), [message]);
    }
}

#[test]
fn replaced_values_are_told_alike() {
    for (old, new, message) in [
        (
            "\"test\"",
            "\"Test\"",
            "line 2: cluster.name = \"Test\": allowed is 1 to 63 of a-z, 0-9 and single hyphens, with a letter or digit at both ends",
        ),
        (
            "\"node-a\"",
            "\"node--a\"",
            "line 11: node[0].id = \"node--a\": allowed is 1 to 63 of a-z, 0-9 and single hyphens, with a letter or digit at both ends",
        ),
        (
            "\"node-a\"",
            "\"coord-a\"",
            "line 11: node[0].id = \"coord-a\": coordinator[0].id is the same; each process needs an id of its own",
        ),
        (
            "\"10.0.0.2\"",
            "\"10.0.0.256\"",
            "line 12: node[0].host = \"10.0.0.256\": allowed is an IP address or a DNS name",
        ),
        (
            "\"10.0.0.2\"",
            "\"0.0.0.0\"",
            "line 12: node[0].host = \"0.0.0.0\": nobody can be reached there; allowed is an IP address or a DNS name",
        ),
        (
            "\"10.0.0.2\"",
            "\"localhost\"",
            "line 12: node[0].host = \"localhost\": coordinator[0].host is another machine, which cannot reach this one by it; give an address that all can use",
        ),
        (
            "data_dir = \"/data/a\"",
            "",
            "coordinator[0].data_dir: missing; wanted is a path of 1 to 1024 bytes without control characters",
        ),
        (
            "\"/data/a\"",
            "\"\"",
            "line 9: coordinator[0].data_dir = \"\": allowed is a path of 1 to 1024 bytes without control characters",
        ),
        (
            "[[node.device]]",
            "",
            "node[0].device: missing; wanted is 1 to 16 tables, each begun by [[node.device]]",
        ),
        ("[raft]", "[rafts]", "line 5: rafts: unknown key, did you mean \"raft\"?"),
        (
            "[raft]",
            "[raft]\n[storage]",
            "line 6: storage: unknown key, known here are cluster, raft, scaling, tls, traces, coordinator, node_defaults, node",
        ),
        ("token_file", "tokenfile", "line 3: cluster.tokenfile: unknown key, did you mean \"token_file\"?"),
        ("[raft]", "[[raft]]", "line 5: raft = (array of 1): allowed is a table"),
    ] {
        let found = instead(old, new);
        assert!(found.iter().any(|found| found == message), "wanted {message}\nfound {found:#?}");
    }
}

#[test]
fn a_wrong_number_of_processes_is_told() {
    let with_more = |more: u32| {
        let one =
            |at| format!("[[coordinator]]\nid = \"more-{at}\"\nhost = \"10.0.1.{at}\"\ndata_dir = \"b\"\n");
        VALID.replace("[[node]]", &format!("{}[[node]]", (0..more).map(one).collect::<String>()))
    };
    assert_eq!(
        problems_with(&with_more(15), &[]),
        ["line 6: coordinator = (array of 16): allowed is 1 to 15 tables, each begun by [[coordinator]]"]
    );
    let remarks =
        |more| ClusterConfig::from_toml(&with_more(more), []).expect("any number will do").remarks();
    assert_eq!((remarks(0), remarks(2), remarks(14)), (vec![], vec![], vec![]));
    assert_eq!(
        remarks(3),
        ["4 coordinators survive the loss of 1, as 3 do, and decide more slowly: take 3 or 5"]
    );
    assert_eq!(
        remarks(1),
        ["2 coordinators survive the loss of none, as 1 does, and decide more slowly: take 1 or 3"]
    );
    let copies = VALID.replace("[raft]", "replicas = 2");
    assert_eq!(
        problems_with(&copies, &[]),
        ["line 5: cluster.replicas = 2: the file has 1 node; allowed is at most one copy a node"]
    );
}

#[test]
fn coordinators_cannot_share_a_number_or_a_folder() {
    let more: String = ["b", "c"]
        .iter()
        .map(|id| format!("[[coordinator]]\nid = \"coord-{id}\"\npeer = 1\nhost = \"10.0.0.1\"\ndata_dir = \"/data/a\"\nadmin = \"10.0.0.1:1{id}\"\n"))
        .collect::<String>()
        .replace(":1b", ":11")
        .replace(":1c", ":12")
        .replacen("data_dir", "raft = \"10.0.0.1:13\"\ndata_dir", 1);
    let found = problems_with(&VALID.replace("[[node]]", &(more + "[[node]]")), &[]);
    assert_eq!(
        found,
        [
            "line 12: coordinator[1].peer = 1: coordinator[0].peer is the same; each coordinator needs a number of its own",
            "line 19: coordinator[2].peer = 1: coordinator[0].peer is the same; each coordinator needs a number of its own",
            "line 15: coordinator[1].data_dir = \"/data/a\": coordinator[0].data_dir is the same on the same host; each coordinator needs a folder of its own",
            "line 21: coordinator[2].data_dir = \"/data/a\": coordinator[0].data_dir is the same on the same host; each coordinator needs a folder of its own",
            "coordinator[2].raft = \"10.0.0.1:7801\": coordinator[0].raft listens on 10.0.0.1:7801 of the same host; each listener needs a port of its own",
        ]
    );
}

#[test]
fn size_classes_that_do_not_add_up_are_told() {
    let allowed = "allowed is an array of 1 to 8 different sizes from \"4KiB\" to \"64MiB\", multiples of 64 bytes, all or none as { size, share }";
    for (sizes, what) in [
        (
            "[{ size = \"64KiB\", share = 0.5 }, { size = \"1MiB\", share = 0.4 }]",
            "the shares add up to 0.9, not to 1; ",
        ),
        ("[{ size = \"64KiB\", share = 0.5 }, \"1MiB\"]", "some classes have a share and some have none; "),
        ("[{ size = \"64KiB\" }, \"1MiB\"]", "a class has no share; "),
        ("[{ share = 1 }, \"1MiB\"]", "a class has no size; "),
        ("[{ size = \"64KiB\", part = 1 }, \"1MiB\"]", "unknown key \"part\" of a class; "),
        ("[{ size = \"64KiB\", share = nan }, \"1MiB\"]", "a share is a number from 0.001 to 1, not NaN; "),
        ("[\"64KiB\", \"0.0625MiB\"]", "\"64KiB\" is there twice; "),
        ("[\"64KiB\", \"5000B\"]", "\"5000B\" is no block size; "),
    ] {
        let found = with("id = \"node-a\"", &format!("block_sizes = {sizes}"));
        assert_eq!(found, [format!("line 12: node[0].block_sizes = (array of 2): {what}{allowed}")]);
    }
    assert_eq!(
        with("id = \"node-a\"", "block_sizes = []"),
        [format!("line 12: node[0].block_sizes = (array of 0): {allowed}")]
    );
    assert_eq!(
        with("id = \"node-a\"", "block_sizes = [\"64MiB\"]\nmax_inflight = \"1MiB\"")[0],
        "line 13: node[0].max_inflight = \"1MiB\": a block of node[0].block_sizes has \"64MiB\"; allowed is at least one such block"
    );
}

#[test]
fn a_port_for_redis_is_one_of_its_own_with_room_for_a_value() {
    assert_eq!(
        with("id = \"node-a\"", "redis_listen = \"0.0.0.0:6379\"\nredis_max_value = \"128MiB\"")[0],
        "node[0].redis_max_inflight = \"64MiB\": node[0].redis_max_value is \"128MiB\"; allowed is at least one such value"
    );
    let shared = with("id = \"node-a\"", "data = \"10.0.0.1:7900\"\nredis_listen = \"10.0.0.1:7900\"");
    assert!(shared.iter().any(|problem| problem.contains("redis_listen")), "{shared:?}");
}

#[test]
fn a_disk_tier_needs_a_folder_and_room_for_a_record_of_each_size() {
    let device = "[[node.device]]";
    assert_eq!(
        with(device, "disk = \"1GiB\""),
        [
            "line 14: node[0].device[0].disk = \"1GiB\": its files have no folder; allowed is with a \"disk_dir\""
        ]
    );
    let given = |disk: &str| {
        let text = VALID.replace("id = \"node-a\"", "id = \"node-a\"\ndisk_dir = \"cache\"");
        problems_with(&format!("{text}disk = \"{disk}\"\n"), &[])
    };
    assert_eq!(given("68KiB"), [""; 0]);
    // A frame of 64 KiB fits, and the page that says what is in it does not.
    assert_eq!(
        given("64KiB"),
        [
            "line 15: node[0].device[0].disk = \"64KiB\": no block of \"64KiB\" (node[0].block_sizes) fits its part; each size \
          needs room for one"
        ]
    );
}

#[test]
fn a_key_file_needs_a_disk_tier_that_is_encrypted() {
    let given = |lines: &str| with("id = \"node-a\"", lines);
    assert_eq!(given("disk_dir = \"cache\"\ndisk_key_file = \"/etc/kvhive/disk-key\""), [""; 0]);
    assert_eq!(
        given("disk_key_file = \"/etc/kvhive/disk-key\""),
        [
            "line 12: node[0].disk_key_file = \"/etc/kvhive/disk-key\": nothing is kept on disk; allowed is with a \"disk_dir\" or a \"persist_dir\""
        ]
    );
    assert_eq!(
        given("disk_dir = \"cache\"\ndisk_encryption = \"off\"\ndisk_key_file = \"key\""),
        [
            "line 14: node[0].disk_key_file = \"key\": nothing is encrypted; allowed is with disk_encryption = \"on\""
        ]
    );
}

#[test]
fn a_disk_tier_and_a_snapshot_need_folders_of_their_own() {
    let given = |disk: &str, persist: &str| {
        with("id = \"node-a\"", &format!("disk_dir = \"{disk}\"\npersist_dir = \"{persist}\""))
    };
    for (disk, persist) in [
        ("/var/cache/kvhive", "/var/cache/kvhive"),
        ("/var/cache/kvhive/", "/var/./cache/other/../kvhive"),
        ("cache", "./cache"),
        ("cache/node-a", "cache"),
        ("cache", "cache/node-a/snapshots"),
    ] {
        assert_eq!(
            given(disk, persist),
            [format!(
                "line 13: node[0].persist_dir = \"{persist}\": node[0].disk_dir = \"{disk}\" gives the node's disk tier the same \
                 folder, or one within the other; allowed is another"
            )]
        );
    }
    for (disk, persist) in [("cache", "snapshots"), ("cache", "cache/snapshots"), ("../cache", "cache")] {
        assert_eq!(given(disk, persist), [""; 0], "{disk} and {persist}");
    }
}

#[test]
fn a_strategy_that_shrinks_needs_a_smaller_size_to_shrink_into() {
    for strategy in ["compressed", "quantized"] {
        let given = |sizes: &str| {
            with("id = \"node-a\"", &format!("block_sizes = {sizes}\nstrategy = \"{strategy}\""))
        };
        assert_eq!(
            given("[\"64KiB\"]"),
            [format!(
                "line 13: node[0].strategy = \"{strategy}\": it shrinks blocks into frames of a smaller size, and \
                 node[0].block_sizes has one size only; allowed is with two or more"
            )]
        );
        assert_eq!(given("[\"32KiB\", \"64KiB\"]"), [] as [String; 0]);
    }
}

#[test]
fn labels_are_bounded() {
    let allowed = "allowed is a table of at most 32 texts; keys of 1 to 63 letters, digits, '.', '_', '-' and '/', values of at most 63 bytes without control characters";
    for (labels, what) in [
        ("{ zone = 3 }", "the value of \"zone\" is 3; ".to_owned()),
        ("{ \"a b\" = \"x\" }", "\"a b\" is no key of a label; ".to_owned()),
        (
            &format!("{{ {} }}", (0..33).map(|at| format!("l{at} = \"\"")).collect::<Vec<_>>().join(", ")),
            "there are 33 labels; ".to_owned(),
        ),
    ] {
        let found = with("id = \"node-a\"", &format!("labels = {labels}"));
        assert_eq!(found, [format!("line 12: node[0].labels = (table): {what}{allowed}")]);
    }
}

#[test]
fn a_text_that_is_not_toml_is_told_with_line_and_column() {
    let found = problems_with("[cluster]\nname = \n[raft\n", &[]);
    assert_eq!(found[0], "line 2, column 8: string values must be quoted, expected literal string");
    assert!(found.iter().skip(1).all(|found| found.starts_with("line ")), "{found:?}");
    let twice = problems_with("[cluster]\nname = \"a\"\nname = \"b\"\n", &[]);
    assert_eq!(twice, ["line 3, column 1: duplicate key"]);
    let long = "#".repeat((16 << 20) + 1);
    assert_eq!(problems_with(&long, &[])[0], "the file has 16777217 bytes; allowed is at most 16777216");
}

#[test]
fn all_problems_are_told_at_once_and_each_once() {
    let text = "[cluster]\nname = \"UP\"\nreplicas = 0\nlease = 5\ninsecure = \"yes\"\n[node_defaults]\nio_threads = 0\n\
                [[node_defaults.device]]\nmemory = 1\n[[node]]\nid = \"a\"\n[[node]]\nhost = \"h\"\n";
    let error = ClusterConfig::from_toml(text, []).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cluster file has 10 problems:\n  \
         cluster.token_file: missing; wanted is a file with the shared token, 16 to 1024 bytes, or KVHIVE_TOKEN in the environment\n  \
         line 2: cluster.name = \"UP\": allowed is 1 to 63 of a-z, 0-9 and single hyphens, with a letter or digit at both ends\n  \
         line 3: cluster.replicas = 0: allowed is a whole number from 1 to 8\n  \
         line 5: cluster.insecure = \"yes\": allowed is \"refused\" or \"allowed\"\n  \
         line 4: cluster.lease = 5: a time needs a unit, such as \"5ms\"; allowed is a time from \"200ms\" to \"60s\"\n  \
         coordinator: missing; wanted is 1 to 15 tables, each begun by [[coordinator]]\n  \
         line 7: node_defaults.io_threads = 0: allowed is a whole number from 1 to 256\n  \
         line 9: node_defaults.device[0].memory = 1: a size needs a unit, such as \"64MiB\"; allowed is a size from \"4KiB\" to \"64TiB\"\n  \
         node[0].host: missing; wanted is an IP address or a DNS name\n  \
         node[1].id: missing; wanted is 1 to 63 of a-z, 0-9 and single hyphens, with a letter or digit at both ends"
    );
}

#[test]
fn what_other_machines_reach_is_encrypted_or_said_to_be_insecure() {
    let bare = VALID.replace("insecure = \"allowed\"\n", "");
    let told = |key: &str, address: &str| {
        format!(
            "cluster.insecure = \"refused\": {key} listens on {address}, where other machines reach it, and without [tls] tokens and blocks \
             travel in the clear; give [tls] (`kvhive tls init` makes certificates), or \"allowed\" where everyone on that network may read them"
        )
    };
    assert_eq!(problems_with(&bare, &[]), [told("coordinator[0].admin", "10.0.0.1:7800")]);
    assert_eq!(problems_with(&format!("{bare}{TLS}"), &[]), [""; 0]);
    let one_host = bare.replace("10.0.0.1", "127.0.0.1").replace("10.0.0.2", "localhost");
    assert_eq!(problems_with(&one_host, &[]), [""; 0]);
    let open = one_host.replace("id = \"node-a\"", "id = \"node-a\"\ndata = \"0.0.0.0:7810\"");
    assert_eq!(problems_with(&open, &[]), [told("node[0].data", "0.0.0.0:7810")]);
    assert_eq!(problems_with(&open, &[("KVHIVE_CLUSTER__INSECURE", "allowed")]), [""; 0]);
}

#[test]
fn a_file_full_of_mistakes_ends_with_a_count() {
    let keys: String = (0..150).map(|at| format!("wrong-{at} = 1\n")).collect();
    let error = ClusterConfig::from_toml(&VALID.replace("[raft]", &keys), []).unwrap_err();
    assert_eq!((error.problems().len(), error.omitted()), (100, 50));
    assert!(error.to_string().ends_with("\n  and 50 more"));
}

#[test]
fn variables_override_what_the_file_says_and_pass_its_checks() {
    let env = [
        ("KVHIVE_CLUSTER__SEGMENT_BLOCKS", "32"),
        ("KVHIVE_RAFT__ELECTION_TIMEOUT", "1s"),
        ("KVHIVE_NODE_DEFAULTS__IO_THREADS", "4"),
        ("KVHIVE_NODE__NODE_A__DATA", "0.0.0.0:9000"),
        ("KVHIVE_NODE__NODE_A__BLOCK_SIZES", "1MiB, 64KiB"),
        ("KVHIVE_COORDINATOR__COORD_A__PEER", "7"),
        ("KVHIVE_LOG", "debug"),
        ("KVHIVE_TRACE__X", "1"),
        ("OTHER__X", "1"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = ClusterConfig::from_toml(VALID, env).unwrap();
    assert_eq!(config.cluster.segment_blocks, 32);
    assert_eq!(config.raft.election_timeout.as_millis(), 1000);
    assert_eq!(config.coordinators[0].peer, 7);
    let Some(Process::Node(node)) = config.process("node-a") else { panic!("node-a is a node") };
    assert_eq!((node.io_threads, node.data_address().as_str()), (4, "10.0.0.2:9000"));
    let sizes: Vec<Bytes> = node.block_sizes.iter().map(|class| class.size).collect();
    assert_eq!(sizes, [Bytes(64 << 10), Bytes(1 << 20)]);
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    for (name, value, message) in [
        (
            "KVHIVE_CLUSTER__REPLICAS",
            "9",
            "KVHIVE_CLUSTER__REPLICAS: cluster.replicas = \"9\": allowed is a whole number from 1 to 8",
        ),
        (
            "KVHIVE_CLUSTER__REPLICA",
            "1",
            "KVHIVE_CLUSTER__REPLICA: cluster.replica: unknown key, did you mean \"replicas\"?",
        ),
        (
            "KVHIVE_CLUSTR__REPLICAS",
            "1",
            "KVHIVE_CLUSTR__REPLICAS: clustr.replicas: unknown key, did you mean \"cluster\"?",
        ),
        (
            "KVHIVE_NODE__DATA",
            "1",
            "KVHIVE_NODE__DATA: node.data: unknown key, an override of it is KVHIVE_NODE__<ID>__<KEY>",
        ),
        (
            "KVHIVE_NODE__NODE_B__DATA",
            "1",
            "KVHIVE_NODE__NODE_B__DATA: the file has no node \"NODE_B\"; it has NODE_A",
        ),
        (
            "KVHIVE_NODE__NODE_A__LABELS",
            "1",
            "KVHIVE_NODE__NODE_A__LABELS: node.labels: unknown key, it can be given in the file only",
        ),
        (
            "KVHIVE_NODE__NODE_A__DATA",
            "9000",
            "KVHIVE_NODE__NODE_A__DATA: node[0].data = \"9000\": allowed is an IP address and a port from 1 to 65535, such as \"0.0.0.0:7810\"",
        ),
        (
            "KVHIVE_CLUSTER__HEARTBEAT",
            "1s",
            "KVHIVE_CLUSTER__HEARTBEAT: cluster.heartbeat = \"1s\": allowed is less than a third of cluster.lease, which is \"2s\"",
        ),
        (
            "KVHIVE_TOKEN",
            "sesame",
            "KVHIVE_TOKEN: the token has 6 bytes after trimming; allowed is 16 to 1024",
        ),
    ] {
        assert_eq!(problems_with(VALID, &[(name, value)]), [message]);
    }
}

#[test]
fn a_token_in_the_environment_stands_in_for_the_file_and_wins_over_it() {
    let env = || [("KVHIVE_TOKEN".to_owned(), "0123456789abcdef".to_owned())];
    let with_file = ClusterConfig::from_toml(VALID, env()).unwrap();
    assert_eq!(with_file.cluster.token, TokenSource::Environment { file: Some("token".to_owned()) });
    let without = VALID.replace("token_file = \"token\"\n", "");
    let without = ClusterConfig::from_toml(&without, env()).unwrap();
    assert_eq!(without.cluster.token, TokenSource::Environment { file: None });
    assert!(
        !format!("{without:?}{}", without.to_toml().expect("it lists its nodes"))
            .contains("0123456789abcdef")
    );
    let alone = ClusterConfig::from_toml(VALID, []).unwrap();
    assert_eq!(alone.cluster.token, TokenSource::File("token".to_owned()));
}

#[test]
fn certificates_are_given_whole_or_not_at_all() {
    let path = "a path of 1 to 1024 bytes without control characters";
    let missing = |key: &str| format!("tls.{key}: missing; wanted is {path}");
    assert_eq!(
        problems_with(&format!("{VALID}[tls]\ncertificate = \"a.pem\"\n"), &[]),
        [missing("key"), missing("authorities")]
    );
    // A variable makes the table too.
    assert_eq!(
        problems_with(VALID, &[("KVHIVE_TLS__KEY", "a.key")]),
        [missing("certificate"), missing("authorities")]
    );
    assert_eq!(
        problems_with(&format!("{VALID}{TLS}ca = \"a.pem\"\n"), &[]),
        ["line 18: tls.ca: unknown key, known here are certificate, key, authorities"]
    );
    let env = [("KVHIVE_TLS__KEY".to_owned(), "/run/own.key".to_owned())];
    let config = ClusterConfig::from_toml(&format!("{VALID}{TLS}"), env).unwrap();
    let tls = config.tls.as_ref().expect("it is given");
    assert_eq!((tls.certificate.as_str(), tls.key.as_str()), ("tls/member.pem", "/run/own.key"));
    let text = config.to_toml().expect("it lists its nodes");
    assert_eq!(ClusterConfig::from_toml(&text, []).as_ref(), Ok(&config));
    assert_eq!(ClusterConfig::from_toml(VALID, []).unwrap().tls, None);
}

#[test]
fn block_events_are_published_where_a_coordinator_says_and_repeated_only_then() {
    let at = "id = \"coord-a\"";
    let given = format!(
        "{at}\nblock_events = \"10.0.0.1:5557\"\nblock_events_replay = \"10.0.0.1:5558\"\nblock_events_topic = \"kv@kvhive@llama\""
    );
    let config = ClusterConfig::from_toml(&VALID.replace(at, &given), []).unwrap();
    let coordinator = &config.coordinators[0];
    assert_eq!(coordinator.block_events.map(|at| at.port()), Some(5557));
    assert_eq!(coordinator.block_events_topic.as_deref(), Some("kv@kvhive@llama"));
    let text = config.to_toml().expect("it lists its nodes");
    assert_eq!(ClusterConfig::from_toml(&text, []).as_ref(), Ok(&config));
    assert_eq!(
        with(at, "block_events_replay = \"10.0.0.1:5558\""),
        [
            "line 8: coordinator[0].block_events_replay = \"10.0.0.1:5558\": nothing is published that it could repeat; give block_events too"
        ]
    );
    assert_eq!(
        with(at, "block_events = \"10.0.0.1:7801\""),
        [
            "line 8: coordinator[0].block_events = \"10.0.0.1:7801\": coordinator[0].raft listens on 10.0.0.1:7801 of the same host; each listener needs a port of its own"
        ]
    );
}

const TRACES: &str = r#"[traces]
endpoint = "http://collector:4318/"
"#;

#[test]
fn traces_are_off_without_their_table_and_a_variable_can_make_it() {
    assert_eq!(ClusterConfig::from_toml(VALID, []).unwrap().traces, None);
    let config = ClusterConfig::from_toml(&format!("{VALID}{TRACES}sample = 0.01\n"), []).unwrap();
    let traces = config.traces.clone().expect("they are on");
    assert_eq!(traces.endpoint.as_deref(), Some("http://collector:4318"));
    assert_eq!((traces.sample_per_mille, traces.keep), (10, 256));
    let text = config.to_toml().expect("it lists its nodes");
    assert_eq!(ClusterConfig::from_toml(&text, []).as_ref(), Ok(&config));
    let env = [("KVHIVE_TRACES__SAMPLE".to_owned(), "1".to_owned())];
    let traced = ClusterConfig::from_toml(VALID, env).unwrap().traces.clone();
    assert_eq!(traced.map(|traces| (traces.sample_per_mille, traces.endpoint)), Some((1000, None)));
    for wrong in
        ["https://a:1", "http://a", "http://a:0", "http://a:1/v1/traces", "http://:1", "http://[::1:1", "a:1"]
    {
        let text = format!("{VALID}[traces]\nendpoint = \"{wrong}\"\n");
        let expected =
            format!("line 15: traces.endpoint = \"{wrong}\": allowed is http://host:port, without a path");
        assert_eq!(problems_with(&text, &[]), [expected]);
    }
    let text = format!("{VALID}[traces]\nendpoint = \"http://[::1]:4318\"\n");
    assert_eq!(problems_with(&text, &[]), [""; 0]);
}

#[test]
fn every_key_of_the_reference_is_read() {
    // A key that nothing reads would take any value in silence.
    let reference = kvhive_config::reference_markdown();
    let mut section = "";
    let mut keys = 0;
    let valid = format!("{VALID}{TLS}[scaling]\n{TRACES}");
    for line in reference.lines() {
        if let Some(header) = line.strip_prefix("### ") {
            section = header.trim_matches(['`', '[', ']']);
        }
        let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) else { continue };
        keys += 1;
        let header = valid
            .lines()
            .find(|line| line.trim_matches(['[', ']']) == section)
            .expect("VALID has each section");
        let text: String = valid
            .replacen(header, &format!("{header}\n{key} = 1979-05-27"), 1)
            .lines()
            .filter(|line| !line.starts_with(&format!("{key} = \"")) || section == "raft")
            .filter(|line| !(key == "device" && line.contains("[[node.device]]")))
            .map(|line| format!("{line}\n"))
            .collect();
        let found = problems_with(&text, &[]);
        assert!(
            found.iter().any(|found| found.contains(&format!("{key} = 1979-05-27: allowed is"))),
            "{section}.{key}: {found:#?}"
        );
    }
    assert_eq!(keys, 14 + 3 + 10 + 3 + 3 + 9 + 40 + 5);
}

#[test]
fn a_device_tier_on_a_gpu_is_read_and_written() {
    let text = format!("{VALID}\n[[node.device]]\nkind = \"auto\"\ngpu = 3\n");
    let config = ClusterConfig::from_toml(&text, []).expect("a right file");
    let kinds = |config: &ClusterConfig| -> Vec<(&str, u32)> {
        config.nodes[0].devices.iter().map(|device| (device.kind.as_str(), device.gpu)).collect()
    };
    assert_eq!(kinds(&config).last(), Some(&("auto", 3)));
    let again = ClusterConfig::from_toml(&config.to_toml().expect("it lists its nodes"), []);
    assert_eq!(again, Ok(config));
    let shape = kvhive_config::LocalShape { device_kind: DeviceKind::Cuda, ..Default::default() };
    let local = kvhive_config::LocalCluster { shape, ..Default::default() };
    let local = local.config().expect("the usual one, on GPUs");
    assert_eq!(kinds(&local), [("cuda", 0), ("cuda", 1)], "each takes the next");
}

#[test]
fn what_the_file_says_of_the_clusters_size_is_read_and_written() {
    use kvhive_config::{Executor, ScalingMode};
    let text = VALID.replace(
        "[raft]",
        "[scaling]\nmode = \"advise\"\nfloor = 2\nkeep = 0.9\ndown_cooldown = \"2h\"\nmax_queue = \"5ms\"\nprogram = [\"my-cloud\", \"say \\\"{count}\\\"\"]\n[raft]",
    );
    let env = [("KVHIVE_SCALING__CEILING".to_owned(), "8".to_owned())];
    let config = ClusterConfig::from_toml(&text, env).unwrap();
    let scaling = &config.scaling;
    assert_eq!((scaling.mode, scaling.floor, scaling.ceiling), (ScalingMode::Advise, 2, 8));
    assert_eq!((scaling.keep_per_mille, scaling.down_cooldown.as_secs()), (900, 7200));
    assert_eq!(
        scaling.executor,
        Executor::Program(vec!["my-cloud".to_owned(), "say \"{count}\"".to_owned()])
    );
    let written = config.to_toml().expect("it lists its nodes");
    assert_eq!(ClusterConfig::from_toml(&written, []).unwrap(), config);
}
