//! A cluster file for tests: one coordinator and one node, of which the test says the rest.

use kvhive_config::ClusterConfig;

/// Reads such a file: what it says of the node, its devices among it, and further tables.
pub(super) fn config(node: &str, tables: &str) -> ClusterConfig {
    let text = format!(
        r#"
            [cluster]
            name = "test"
            insecure = "allowed"
            token_file = "token"
            [raft]
            [[coordinator]]
            id = "coord-a"
            host = "10.0.0.1"
            data_dir = "/data/a"
            [[node]]
            id = "node-a"
            host = "10.0.0.2"
            {node}
            {tables}
        "#
    );
    ClusterConfig::from_toml(&text, std::iter::empty()).expect("a right file")
}
