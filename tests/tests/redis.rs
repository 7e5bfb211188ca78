//! A cluster as users of Redis find it: with redis-cli and redis-benchmark as they come (Debian: redis-tools), over TLS too. Where they
//! are not installed these stories are skipped, and say so; where CI is set they fail.

use kvhive_tests::Cluster;
use std::net::TcpListener;
use std::process::{Command, Output};

/// A cluster whose nodes both speak Redis.
struct Scene {
    cluster: Cluster,
    ports: [u16; 2],
}

/// Says whether the tools are here.
fn has_tools() -> bool {
    let is_here = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let here = is_here("redis-cli") && is_here("redis-benchmark");
    let lacks = "redis-cli and redis-benchmark are not installed (Debian: apt-get install redis-tools)";
    assert!(here || std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{lacks}");
    if !here {
        eprintln!("skipped: {lacks}");
    }
    here
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.each_ref().map(|one| one.local_addr().expect("it is bound").port())
}

impl Scene {
    fn start(options: &[&str]) -> Scene {
        let ports = free_ports();
        let listen = ports.map(|port| format!("127.0.0.1:{port}"));
        let options = [&["--nodes", "2", "--replicas", "2", "--device-memory", "8MiB"], options].concat();
        let variables = [
            ("KVHIVE_NODE__NODE_1__REDIS_LISTEN", &*listen[0]),
            ("KVHIVE_NODE__NODE_2__REDIS_LISTEN", &*listen[1]),
        ];
        let scene = Scene { cluster: Cluster::start_with(&options, &variables), ports };
        // Slots that have just come are answered for when a lease has passed.
        for at in 0..2 {
            scene.cluster.until("a node that speaks Redis", || {
                (scene.cli(at, &["SET", "begun", "1"]) == "OK").then_some(())
            });
        }
        scene
    }

    /// Runs redis-cli at a node; returns what it prints.
    fn cli(&self, at: usize, words: &[&str]) -> String {
        let output = self.cli_as(at, &["--user", "default", "--pass", &self.cluster.token()], words);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn cli_as(&self, at: usize, who: &[&str], words: &[&str]) -> Output {
        let port = self.ports[at].to_string();
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &port, "--no-auth-warning"]).args(who);
        let authority = self.cluster.tls_file("authority.pem");
        if authority.exists() {
            command.args(["--tls", "--cacert"]).arg(authority);
        }
        command.args(words).output().expect("redis-cli is here")
    }
}

#[test]
fn redis_cli_finds_what_it_knows() {
    if !has_tools() {
        return;
    }
    let scene = Scene::start(&[]);
    assert_eq!(scene.cli(0, &["SET", "greeting", "hello"]), "OK");
    assert_eq!(scene.cli(1, &["GET", "greeting"]), "hello");
    assert_eq!(scene.cli(1, &["-3", "GET", "nothing"]), "");
    assert_eq!(scene.cli(1, &["SET", "greeting", "again", "XX", "GET", "EX", "100"]), "hello");
    assert_eq!(scene.cli(0, &["TTL", "greeting"]), "100");
    assert_eq!(scene.cli(0, &["MSET", "a:1", "x", "a:2", "y", "b:1", "z"]), "OK");
    assert_eq!(scene.cli(1, &["MGET", "a:1", "b:1", "c"]), "x\nz");
    let mut found: Vec<String> =
        scene.cli(1, &["--scan", "--pattern", "a:*"]).lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["a:1", "a:2"]);
    assert_eq!(scene.cli(0, &["DEL", "a:1", "a:2", "a:3"]), "2");
    assert_eq!(scene.cli(1, &["EXISTS", "a:1", "b:1"]), "1");
    assert_eq!(scene.cli(1, &["DBSIZE"]), "3");
    assert!(scene.cli(0, &["INFO", "server"]).contains("redis_version:"));
    assert!(scene.cli(0, &["LPUSH", "list", "1"]).contains("unknown command 'LPUSH'"));

    let told =
        |who: &[&str]| String::from_utf8_lossy(&scene.cli_as(0, who, &["GET", "b:1"]).stdout).into_owned();
    assert!(told(&[]).contains("NOAUTH"), "{}", told(&[]));
    let token = scene.cluster.token();
    assert!(told(&["--user", "acme", "--pass", &token]).contains("NOAUTH"), "no such tenant yet");
    scene.cluster.json(&["tenants", "create", "acme"]).expect("it is new");
    scene.cluster.until("a node that knows the tenant", || {
        (scene.cli_as(0, &["--user", "acme", "--pass", &token], &["SET", "b:1", "its own"]).stdout == b"OK\n")
            .then_some(())
    });
    assert_eq!(told(&["--user", "acme", "--pass", &token]), "its own\n");
    assert_eq!(scene.cli(0, &["GET", "b:1"]), "z", "each has its own");
}

#[test]
fn redis_benchmark_runs_and_no_command_of_it_fails() {
    if !has_tools() {
        return;
    }
    let scene = Scene::start(&[]);
    let (port, token) = (scene.ports[1].to_string(), scene.cluster.token());
    let benchmark = Command::new("redis-benchmark")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-a",
            &token,
            "-t",
            "ping,set,get,mset",
            "-n",
            "400",
            "-c",
            "8",
            "-P",
            "16",
        ])
        .args(["-d", "20000", "-r", "100", "-e", "--csv"])
        .output()
        .expect("redis-benchmark is here");
    let (told, complained) =
        (String::from_utf8_lossy(&benchmark.stdout), String::from_utf8_lossy(&benchmark.stderr));
    assert!(benchmark.status.success(), "{told}{complained}");
    for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "MSET (10 keys)"] {
        let line = told.lines().find(|line| line.starts_with(&format!("\"{test}\"")));
        let rate =
            line.and_then(|line| line.split(',').nth(1)).map(|rate| rate.trim_matches('"').parse::<f64>());
        assert!(rate.is_some_and(|rate| rate.is_ok_and(|rate| rate > 0.0)), "{test}: {told}{complained}");
    }
    let stats = scene.cli(1, &["INFO", "stats"]);
    let hits = stats.lines().find_map(|line| line.strip_prefix("keyspace_hits:")).expect("a figure");
    assert!(hits.trim().parse::<u64>().expect("a number") > 0, "{stats}");
}

#[test]
fn it_speaks_tls_where_the_cluster_does() {
    if !has_tools() {
        return;
    }
    let scene = Scene::start(&["--tls"]);
    assert_eq!(scene.cli(0, &["SET", "a", "b"]), "OK");
    assert_eq!(scene.cli(1, &["GET", "a"]), "b");
}
