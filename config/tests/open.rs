//! A file that lists no nodes: any may join that brings its name and host, and is checked as one that a file lists.

use kvhive_config::{Bytes, ClusterConfig, ConfigError, Newcomer, Process};
use std::collections::BTreeMap;

const OPEN: &str = r#"[cluster]
name = "open"
replicas = 3
token_file = "token"
insecure = "allowed"
[[coordinator]]
id = "coord-a"
host = "10.0.0.1"
data_dir = "/data/a"
[node_defaults]
labels = { pool = "blue", zone = "?" }
[[node_defaults.device]]
memory = "1GiB"
"#;

fn newcomer() -> Newcomer {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    Newcomer { id: "node-7".to_owned(), host: "10.0.0.7".to_owned(), labels }
}

fn problems(outcome: Result<ClusterConfig, ConfigError>) -> Vec<String> {
    let error = outcome.expect_err("something is wrong");
    error.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn an_open_file_takes_any_node_and_makes_it_of_the_defaults() {
    let config = ClusterConfig::from_toml_joined_by(OPEN, [], &newcomer()).expect("it may join");
    let Some(Process::Node(node)) = config.process("node-7") else { panic!("it is a node") };
    assert_eq!(node.data_address(), "10.0.0.7:7810");
    assert_eq!(node.metrics.to_string(), "10.0.0.7:7811");
    assert_eq!(node.devices[0].memory, "1GiB".parse::<Bytes>().expect("a size"));
    let labels: Vec<(&str, &str)> = node.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(labels, [("pool", "blue"), ("zone", "a")]);
}

#[test]
fn coordinators_read_an_open_file_whatever_the_number_of_copies() {
    let config = ClusterConfig::from_toml(OPEN, []).expect("it is right");
    assert!(config.is_open());
    assert_eq!(config.ids().collect::<Vec<_>>(), ["coord-a"]);
    assert_eq!(config.to_toml(), None);
}

#[test]
fn variables_override_a_newcomer_as_a_node_of_the_file() {
    let env = [("KVHIVE_NODE__NODE_7__IO_THREADS".to_owned(), "9".to_owned())];
    let config = ClusterConfig::from_toml_joined_by(OPEN, env, &newcomer()).expect("it may join");
    assert_eq!(config.nodes[0].io_threads, 9);
}

#[test]
fn what_would_be_wrong_with_any_newcomer_is_told_before_one_comes() {
    let text = OPEN.replace("[[node_defaults.device]]", "block_sizes = [\"2MiB\"]\n[[node_defaults.device]]");
    assert_eq!(
        problems(ClusterConfig::from_toml(&text.replace("1GiB", "1MiB"), [])),
        [
            "line 14: node_defaults.device[0].memory = \"1MiB\": no block of \"2MiB\" (node_defaults.block_sizes) fits its part; each size needs room for one"
        ]
    );
}

#[test]
fn a_newcomer_that_is_wrong_is_told_by_the_option_that_gave_it() {
    let wrong = Newcomer { id: "Node".to_owned(), host: "0.0.0.0".to_owned(), ..newcomer() };
    assert_eq!(
        problems(ClusterConfig::from_toml_joined_by(OPEN, [], &wrong)),
        [
            "--host: node[0].host = \"0.0.0.0\": nobody can be reached there; allowed is an IP address or a DNS name",
            "--id: node[0].id = \"Node\": allowed is 1 to 63 of a-z, 0-9 and single hyphens, with a letter or digit at both ends",
        ]
    );
    let same = Newcomer { id: "coord-a".to_owned(), ..newcomer() };
    let found = problems(ClusterConfig::from_toml_joined_by(OPEN, [], &same));
    assert_eq!(
        found,
        [
            "--id: node[0].id = \"coord-a\": coordinator[0].id is the same; each process needs an id of its own"
        ]
    );
}

#[test]
fn a_file_that_lists_its_nodes_takes_no_other() {
    let closed =
        format!("{OPEN}[[node]]\nid = \"node-a\"\nhost = \"10.0.0.2\"\n").replace("replicas = 3", "");
    assert_eq!(
        problems(ClusterConfig::from_toml_joined_by(&closed, [], &newcomer())),
        [
            "--host: the file lists its nodes, which have their hosts and labels there, and node \"node-7\" would be another; add \
             it to the file, or take its [[node]] tables out so that any node may join"
        ]
    );
}
