//! The other ways to run a cluster: the Slurm script as a whole, on this machine with a Slurm of the test's own; systemd's units;
//! the compose file; the container's recipe. What this machine lacks is SKIPPED.

use kvhive_config::{ClusterConfig, Newcomer, Process};
use kvhive_tests::files::{documents, file, list, text, word, yaml};
use kvhive_tests::{in_patience, kvhive, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const BATCH: &str = "cluster-configs/slurm/kvhive.sbatch";

/// A job of the Slurm script on one host, this one.
struct Job {
    folder: tempfile::TempDir,
    script: Child,
    port: u16,
}

/// Hosts of a list; `srun` starts the command where it is, as the first task of a job on one host.
const SCONTROL: &str = "#!/bin/sh\nprintf '%s\\n' \"$3\" | tr , '\\n'\n";
const SRUN: &str = "#!/bin/bash\n\
    while case ${1:-} in --) shift; false ;; -*) true ;; *) false ;; esac; do\n\
      case $1 in --output=*) exec >>\"${1#*=}\" 2>&1 ;; esac\n\
      shift\n\
    done\n\
    export SLURM_NODEID=0 SLURMD_NODENAME=\"$SLURM_JOB_NODELIST\"\n\
    exec \"$@\"\n";

/// Writes down what it was asked for, and waits for its end.
const SRUN_THAT_ONLY_LISTENS: &str = "#!/bin/bash\n\
    printf '%s\\n' \"$*\" >>\"$KVHIVE_JOB_DIR/asked\"\n\
    case $* in *' rm '*) exit 0 ;; esac\n\
    trap 'exit 0' TERM\n\
    while :; do sleep 0.05; done\n";

/// Finds a port that is free with those that the script takes beside it.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("0.0.0.0", port)).is_ok();
    for _ in 0..100 {
        let held = TcpListener::bind(("0.0.0.0", 0)).expect("a free port");
        let port = held.local_addr().expect("it is bound").port();
        drop(held);
        if port < u16::MAX - 11 && [0, 1, 10, 11].into_iter().all(|above| is_free(port + above)) {
            return port;
        }
    }
    panic!("no free ports");
}

impl Job {
    /// Starts the script as a job on these hosts.
    fn start(hosts: &str, srun: &str) -> Job {
        let folder = tempfile::Builder::new().prefix("kvhive-slurm-").tempdir().expect("a temporary folder");
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).expect("room");
        for (name, script) in [("scontrol", SCONTROL), ("srun", srun)] {
            fs::write(bin.join(name), script).expect("room");
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
        let port = free_port();
        let log = fs::File::create(folder.path().join("job.log")).expect("room");
        let script = Command::new("bash")
            .arg(file(BATCH))
            .env("PATH", path)
            .env("SLURM_JOB_ID", "42")
            .env("SLURM_JOB_NODELIST", hosts)
            .env("KVHIVE_BIN", kvhive())
            .env("KVHIVE_JOB_DIR", folder.path().join("job"))
            .env("KVHIVE_LOCAL_DIR", folder.path().join("local"))
            .env("KVHIVE_MEMORY", "16MiB")
            .env("KVHIVE_BLOCK_SIZE", "64KiB")
            .env("KVHIVE_PORT", port.to_string())
            .stdout(log.try_clone().expect("a second hold"))
            .stderr(log)
            .spawn()
            .expect("bash is there");
        Job { folder, script, port }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(name)).ok()?.trim().to_owned())
    }

    /// Waits until `what` is so, or fails with the job's log.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Job) -> Option<T>) -> T {
        let found = in_patience(|| look(self));
        found.unwrap_or_else(|| panic!("waited in vain for {what}:\n{}", self.logs()))
    }

    /// Tells the script to end as Slurm does, and waits until it has.
    fn end(&mut self) {
        let pid = self.script.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill is there").success());
        let status = self.until("the end", |job| job.script.try_wait().expect("it is ours"));
        assert!(status.success(), "{status}\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let names = ["job.log", "job/coordinator-1.log", "job/nodes.log"];
        names.map(|name| format!("--- {name}\n{}\n", self.read(name).unwrap_or_default())).concat()
    }

    fn healthy(&self, above: u16, path: &str) -> Option<()> {
        let url = format!("http://127.0.0.1:{}{path}", self.port + above);
        ureq::get(&url).call().ok().map(|_| ())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Ends what it has started; without effect when the test has ended it.
        let pid = self.script.id().to_string();
        if matches!(self.script.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let _ = self.script.wait();
        }
    }
}

#[test]
fn a_slurm_job_serves_until_it_is_told_to_end_and_leaves_nothing_behind() {
    let mut job = Job::start("localhost", SRUN);
    // The probes of cluster-configs/kubernetes ask for the same.
    job.until("a coordinator", |job| job.healthy(0, "/healthz").and(job.healthy(0, "/readyz")));
    job.until("a node", |job| job.healthy(11, "/healthz").and(job.healthy(11, "/readyz")));
    let (admin, token) = (job.read("job/admin").expect("it tells"), job.path("job/token"));
    let coordinators = job.read("job/coordinators").expect("it tells");
    let of_admin = ["--admin", &admin, "--token-file", &token];
    let status: Value = job.until("a node that serves", |_| {
        let output = run(&[&["status", "--json"][..], &of_admin].concat()).ok()?;
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["slots"]["unavailable"] == 0 && status["nodes"][0]["state"] == "up").then_some(status)
    });
    assert_eq!(status["nodes"][0]["name"], "node-0");
    assert_eq!(status["nodes"][0]["labels"]["host"], "localhost");
    let replay = ["replay", "--requests", "20", "--coordinators", &coordinators, "--token-file", &token];
    run(&replay).expect("it serves");

    // What Kubernetes runs before a node starts, for one that was here before and for one that is new.
    for node in ["node-0", "node-17"] {
        run(&[&["drain", node, "--undo", "--if-known"][..], &of_admin].concat()).expect("nothing is wrong");
    }
    run(&[&["drain", "node-17", "--undo"][..], &of_admin].concat()).expect_err("there is no such node");

    let mode = |name: &str| fs::metadata(job.path(name)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode("job"), mode("job/token")), (0o700, 0o600), "the token is nobody else's");
    job.end();
    assert_eq!((job.healthy(0, "/healthz"), job.healthy(11, "/healthz")), (None, None));
    assert!(!Path::new(&job.path("local")).exists(), "raft logs are gone with the job");
    assert!(job.read("job/nodes.log").expect("a log").contains("node ends"), "{}", job.logs());
}

#[test]
fn a_slurm_job_on_many_hosts_has_three_coordinators_and_a_node_on_each() {
    let mut job = Job::start("gpu1,gpu2,gpu3,gpu4,gpu5", SRUN_THAT_ONLY_LISTENS);
    let asked =
        job.until("all steps", |job| job.read("job/asked").filter(|asked| asked.lines().count() == 4));
    let cluster = job.read("job/cluster.toml").expect("it is made");
    let config = ClusterConfig::from_toml(&cluster, []).expect("it is right");
    assert!(config.is_open());
    let knobs = run(&["node", "config", &job.path("job/cluster.toml"), "--json"]).expect("it is right");
    let knobs: Value = serde_json::from_slice(&knobs.stdout).expect("JSON");
    assert_eq!(
        (list(&knobs).len(), word(&knobs[0]["node"])),
        (1, "(any)"),
        "it tells of those that will join"
    );
    let of_file: Vec<(&str, &str)> = config.coordinators.iter().map(|one| (&*one.id, &*one.host)).collect();
    assert_eq!(of_file, [("coordinator-1", "gpu1"), ("coordinator-2", "gpu2"), ("coordinator-3", "gpu3")]);
    for (id, host) in of_file {
        let is_it = |line: &&str| {
            line.contains(&format!("--nodelist={host} ")) && line.ends_with(&format!("--id {id}"))
        };
        assert_eq!(asked.lines().filter(is_it).count(), 1, "{asked}");
    }
    let of_nodes =
        |line: &&str| line.contains("--nodes=5 --ntasks=5 --ntasks-per-node=1") && line.contains("--host");
    assert_eq!(asked.lines().filter(of_nodes).count(), 1, "{asked}");
    let admin: Vec<String> =
        config.coordinators.iter().map(|one| format!("http://{}", one.admin_address())).collect();
    let raft: Vec<String> = config.coordinators.iter().map(|one| one.raft_address()).collect();
    assert_eq!(job.read("job/admin"), Some(admin.join(",")));
    assert_eq!(job.read("job/coordinators"), Some(raft.join(",")));
    job.end();
}

/// Every file below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("readable").path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}

#[test]
fn every_file_is_what_its_name_says() {
    let (mut yamls, mut clusters) = (0, 0);
    for path in below(&file("cluster-configs")) {
        let text = fs::read_to_string(&path).expect("text");
        match path.extension().and_then(|end| end.to_str()) {
            Some("yaml") => {
                assert!(documents(&text).iter().all(Value::is_object), "{}", path.display());
                yamls += 1;
            }
            Some("toml") => {
                let token = [("KVHIVE_TOKEN".to_owned(), "0123456789abcdef".to_owned())];
                let read = ClusterConfig::from_toml(&text, token);
                assert!(read.is_ok(), "{}: {}", path.display(), read.expect_err("it is wrong"));
                clusters += 1;
            }
            _ => {}
        }
    }
    assert!(yamls >= 15 && clusters >= 7, "{yamls} YAML files and {clusters} cluster files were found");
}

/// The lines of a unit, as `Key=value` parted.
fn directives(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn systemd_takes_the_units_and_gives_a_process_the_time_to_end() {
    let three = ClusterConfig::from_toml(&text("cluster-configs/three-hosts.toml"), []).expect("it is right");
    let persists = text("cluster-configs/three-hosts.toml")
        .replace("io_threads = 4", "persist_dir = \"/var/lib/kvhive\"");
    let persists = ClusterConfig::from_toml(&persists, []).expect("it is right");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, instance) in [("kvhive-coordinator", "coord-a"), ("kvhive-node", "node-a")] {
        let unit = text(&format!("cluster-configs/systemd/{name}@.service"));
        let lines = directives(&unit);
        let of = |key: &str| lines.iter().filter(|line| line.0 == key).map(|line| line.1).collect::<Vec<_>>();
        let process = persists.process(instance).expect("it is in the file");
        assert_eq!(of("TimeoutStopSec"), [process.kill_after().as_secs().to_string()], "{name}");
        assert_eq!(of("ExecStart"), ["/usr/local/bin/kvhive up --config /etc/kvhive/cluster.toml --id %i"]);
        assert_eq!(of("KillSignal"), ["SIGTERM"]);
        // systemd looks whether the program is there.
        let here = unit.replace("/usr/local/bin/kvhive", &kvhive().display().to_string());
        let path = folder.path().join(format!("{name}@{instance}.service"));
        fs::write(&path, here).expect("room");
        let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output()
        else {
            eprintln!("SKIPPED: systemd-analyze is not here");
            continue;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(name), "{name}: {said}");
    }
    let state = |path: &str| path.starts_with("/var/lib/kvhive/");
    assert!(three.coordinators.iter().all(|one| state(&one.data_dir)), "the units may write there alone");
}

#[test]
fn the_compose_file_starts_the_coordinators_of_its_cluster_file_and_nodes_that_may_join() {
    let cluster = text("cluster-configs/compose/cluster.toml");
    let token = [("KVHIVE_TOKEN".to_owned(), "0123456789abcdef".to_owned())];
    let config = ClusterConfig::from_toml(&cluster, token.clone()).expect("it is right");
    let compose = yaml("cluster-configs/compose/compose.yaml");
    let services = compose["services"].as_object().expect("services");
    let health = |service: &Value| word(&service["healthcheck"]["test"][3]).to_owned();
    for coordinator in &config.coordinators {
        let service = &services[coordinator.id.as_str()];
        assert_eq!(coordinator.host, coordinator.id, "a service's name is its host's");
        let words: Vec<&str> = list(&service["command"]).iter().map(word).collect();
        assert_eq!(words, ["up", "--config", "/etc/kvhive/cluster.toml", "--id", &coordinator.id]);
        assert!(health(service).contains(&format!("127.0.0.1/{} ", coordinator.admin.port())));
        let volume = word(&service["volumes"][0]).split_once(':').expect("a volume and its place");
        assert!(coordinator.data_dir.starts_with(&format!("{}/", volume.1)));
        assert!(compose["volumes"].as_object().expect("volumes").contains_key(volume.0));
    }
    assert_eq!(services.len(), config.coordinators.len() + 1, "and the nodes'");

    // A container's hostname is twelve hexadecimal digits.
    let host = "0f3c5ad1e2b9".to_owned();
    let newcomer = Newcomer { id: format!("node-{host}"), host, labels: BTreeMap::new() };
    let config = ClusterConfig::from_toml_joined_by(&cluster, token, &newcomer).expect("it may join");
    let Some(Process::Node(node)) = config.process(&newcomer.id) else { panic!("it is a node") };
    let service = &services["node"];
    let line = word(&service["entrypoint"][2]);
    assert!(line.contains("--id \"node-$$(hostname)\" --host \"$$(hostname)\""), "{line}");
    assert!(health(service).contains(&format!("127.0.0.1/{} ", node.metrics.port())));
    for service in services.values() {
        let limit: u64 = word(&service["mem_limit"]).trim_end_matches('m').parse().expect("megabytes");
        assert!(limit << 20 >= node.total_memory().0 + node.max_inflight.0 + (128 << 20));
        let grace: u64 = word(&service["stop_grace_period"]).trim_end_matches('s').parse().expect("seconds");
        assert!(grace >= Process::Node(node).kill_after().as_secs());
        assert_eq!(service["configs"][0]["target"], "/etc/kvhive/cluster.toml");
        assert_eq!(service["read_only"], true);
    }
    assert!(
        usize::from(config.cluster.replicas)
            <= service["deploy"]["replicas"].as_u64().expect("a number") as usize
    );
    let has_compose = Command::new("docker").args(["compose", "version"]).output();
    if !has_compose.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: docker compose is not here");
        return;
    }
    let checked = Command::new("docker")
        .args(["compose", "--file"])
        .arg(file("cluster-configs/compose/compose.yaml"))
        .args(["config", "--quiet"])
        .env("KVHIVE_TOKEN", "0123456789abcdef")
        .output()
        .expect("docker is there");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn the_container_is_built_by_a_compiler_that_the_workspace_takes_and_names_its_ports() {
    let recipe = text("cluster-configs/Containerfile");
    let after = |word: &str| recipe.split(word).nth(1).expect("it is there").lines().next().expect("a line");
    let number = |text: &str| {
        let parts = text.split('.').map(|part| part.trim_matches('"').parse::<u32>().expect("a number"));
        parts.collect::<Vec<_>>()
    };
    let image = after("library/rust:").split('-').next().expect("a version");
    let manifest = text("Cargo.toml");
    let wanted = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    assert!(number(image) >= number(wanted), "rust {image} builds nothing that wants {wanted}");

    let three = ClusterConfig::from_toml(&text("cluster-configs/three-hosts.toml"), []).expect("it is right");
    let (coordinator, node) = (&three.coordinators[0], &three.nodes[0]);
    let ports = [coordinator.admin, coordinator.raft, node.data, node.metrics].map(|address| address.port());
    let exposed: Vec<u16> =
        after("EXPOSE ").split_whitespace().map(|port| port.parse().expect("a port")).collect();
    assert_eq!(exposed, ports);
}

#[test]
fn prometheus_scrapes_every_process_of_the_three_hosts() {
    let three = ClusterConfig::from_toml(&text("cluster-configs/three-hosts.toml"), []).expect("it is right");
    let scrapes = yaml("cluster-configs/observability/prometheus.yaml");
    let jobs = list(&scrapes["scrape_configs"]);
    for (job, kind) in jobs.iter().zip(["coordinator", "node"]) {
        assert_eq!(word(&job["job_name"]), format!("kvhive-{kind}"), "alerts know jobs by these names");
        let targets: Vec<&str> = list(&job["static_configs"][0]["targets"]).iter().map(word).collect();
        let processes = three.processes().filter(|process| process.kind() == kind);
        let wanted: Vec<String> = processes.map(Process::health_address).collect();
        assert_eq!(targets, wanted);
        assert_eq!(job["authorization"].is_object(), kind == "coordinator", "a node asks for no token");
    }
    assert_eq!(jobs.len(), 2);
}
