//! `cluster-configs/kubernetes` as Kubernetes would be given it: built by `kubectl kustomize`, then held against the cluster file
//! in it, the real parser, and what the processes really listen on. Where there is no kubectl this says SKIPPED.

use kvhive_config::{ClusterConfig, Newcomer, NodeConfig, Process};
use kvhive_tests::files::{documents, file, list, text, word};
use kvhive_tests::{run, run_with};
use kvhive_tls::{Tls, TlsFiles};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

const NAMESPACE: &str = "kvhive";
const COORDINATOR: &str = "kvhive-coordinator";
const NODE: &str = "kvhive-node";
/// The autoscaler's pod, its account and its role.
const FOLLOWER: &str = "kvhive-autoscaler";
/// The overlay whose device tiers are GPUs'.
const GPUS: &str = "overlays/gpus";
/// The overlay with TLS.
const ENCRYPTED: &str = "overlays/encrypted";

/// One overlay, built.
struct Built {
    name: &'static str,
    documents: Vec<Value>,
}

/// Builds every overlay; none where there is no kubectl.
fn built() -> Vec<Built> {
    let folders = ["base", "overlays/small", "overlays/production", GPUS, ENCRYPTED];
    folders.into_iter().filter_map(build).collect()
}

fn build(name: &'static str) -> Option<Built> {
    let folder = file("cluster-configs/kubernetes").join(name);
    let Ok(output) = Command::new("kubectl").arg("kustomize").arg(folder).output() else {
        eprintln!("SKIPPED: kubectl is not here, so {name} is not built");
        return None;
    };
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    Some(Built { name, documents: documents(&text) })
}

impl Built {
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.documents.iter().filter(move |document| document["kind"] == kind)
    }

    fn one(&self, kind: &str, name: &str) -> &Value {
        let mut found = self.of_kind(kind).filter(|document| document["metadata"]["name"] == name);
        found.next().unwrap_or_else(|| panic!("{}: no {kind} {name}", self.name))
    }

    fn cluster_toml(&self) -> &str {
        let is_it = |map: &&Value| word(&map["metadata"]["name"]).starts_with("kvhive-cluster-");
        let map = self.of_kind("ConfigMap").find(is_it).expect("a cluster file");
        word(&map["data"]["cluster.toml"])
    }

    /// The cluster as a coordinator reads it.
    fn cluster(&self) -> ClusterConfig {
        ClusterConfig::from_toml(self.cluster_toml(), [])
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The node that pod `ordinal` of the set is, from the words that it is started with.
    fn node(&self, ordinal: u64) -> NodeConfig {
        let set = self.one("StatefulSet", NODE);
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let words = expanded(container, &format!("{NODE}-{ordinal}"));
        let after = |flag: &str| {
            let values = words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].clone());
            values.collect::<Vec<String>>()
        };
        assert_eq!(words[0], "up");
        let labels = after("--label").into_iter().map(|label| {
            let (key, value) = label.split_once('=').expect("KEY=VALUE");
            (key.to_owned(), value.to_owned())
        });
        let newcomer = Newcomer {
            id: after("--id").remove(0),
            host: after("--host").remove(0),
            labels: labels.collect(),
        };
        let config = ClusterConfig::from_toml_joined_by(self.cluster_toml(), [], &newcomer);
        let config = config.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let Some(Process::Node(node)) = config.process(&newcomer.id) else { panic!("it is a node") };
        node.clone()
    }
}

/// The words of a container of this pod, with what Kubernetes puts in.
fn expanded(container: &Value, pod: &str) -> Vec<String> {
    let mut variables = BTreeMap::new();
    for variable in list(&container["env"]) {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => pod,
            Some("metadata.namespace") => NAMESPACE,
            Some("spec.nodeName") => "host-1",
            Some("metadata.labels['topology.kubernetes.io/zone']") => "zone-a",
            Some(other) => panic!("{other} is nothing that this test knows"),
            None => word(&variable["value"]),
        };
        variables.insert(word(&variable["name"]), value);
    }
    let expand = |text: &Value| {
        let put_in = |text: String, (name, value): (&&str, &&str)| text.replace(&format!("$({name})"), value);
        let text = variables.iter().fold(word(text).to_owned(), put_in);
        assert!(!text.contains("$("), "{text} has a variable that the container has not");
        text
    };
    list(&container["args"]).iter().map(expand).collect()
}

fn container_port(container: &Value, name: &str) -> u64 {
    let found = list(&container["ports"]).iter().find(|port| port["name"] == name);
    found.and_then(|port| port["containerPort"].as_u64()).unwrap_or_else(|| panic!("no port {name}"))
}

/// The container that runs before a node.
fn first(built: &Built) -> &Value {
    &built.one("StatefulSet", NODE)["spec"]["template"]["spec"]["initContainers"][0]
}

/// Returns a variable's value, after checking that Kubernetes knows what is put into it: it sees the variables before.
fn variable<'a>(variables: &'a Value, name: &str) -> Option<&'a str> {
    let variables = list(variables);
    let at = variables.iter().position(|one| one["name"] == name)?;
    let value = word(&variables[at]["value"]);
    for used in value.split("$(").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(variables[..at].iter().any(|one| one["name"] == used), "{name} needs {used} before it");
    }
    Some(value)
}

fn container<'a>(built: &'a Built, set: &str) -> &'a Value {
    &built.one("StatefulSet", set)["spec"]["template"]["spec"]["containers"][0]
}

/// Reads a quantity of memory.
fn bytes(quantity: &Value) -> u64 {
    let text = word(quantity);
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).expect("a unit"));
    let unit = match unit {
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => panic!("unit {other}"),
    };
    number.parse::<u64>().expect("a number") * unit
}

#[test]
fn the_coordinators_of_the_cluster_file_are_the_pods_of_their_set() {
    for built in built() {
        let config = built.cluster();
        let set = built.one("StatefulSet", COORDINATOR);
        let service = word(&set["spec"]["serviceName"]);
        assert_eq!(built.one("Service", service)["spec"]["clusterIP"], "None", "{}", built.name);
        let wanted: Vec<(String, String, u64)> = (0..set["spec"]["replicas"].as_u64().expect("a number"))
            .map(|at| {
                let pod = format!("{COORDINATOR}-{at}");
                let words = expanded(container(&built, COORDINATOR), &pod);
                assert_eq!(words, ["up", "--config", "/etc/kvhive/cluster.toml", "--id", pod.as_str()]);
                (pod.clone(), format!("{pod}.{service}.{NAMESPACE}.svc"), at + 1)
            })
            .collect();
        let of_file = config.coordinators.iter().map(|one| (one.id.clone(), one.host.clone(), one.peer));
        assert_eq!(of_file.collect::<Vec<_>>(), wanted, "{}", built.name);
    }
}

#[test]
fn every_pod_of_the_nodes_set_may_join_by_the_words_that_it_is_started_with() {
    for built in built() {
        let service = built.one("StatefulSet", NODE)["spec"]["serviceName"].clone();
        assert_eq!(built.one("Service", word(&service))["spec"]["clusterIP"], "None", "{}", built.name);
        for ordinal in [0, 41] {
            let node = built.node(ordinal);
            assert_eq!(node.host, format!("{NODE}-{ordinal}.{}.{NAMESPACE}.svc", word(&service)));
            assert_eq!(node.labels["host"], "host-1");
            let zone = node.labels.get("zone").map(String::as_str);
            assert_eq!(zone, (built.name == "overlays/production").then_some("zone-a"));
        }
    }
}

#[test]
fn ports_are_those_that_the_processes_listen_on() {
    for built in built() {
        let config = built.cluster();
        let (coordinator, node) = (&config.coordinators[0], built.node(0));
        let of_coordinator = [("admin", coordinator.admin), ("raft", coordinator.raft)];
        let of_node = [("data", node.data), ("metrics", node.metrics)];
        for (set, service, ports) in [
            (COORDINATOR, COORDINATOR, of_coordinator),
            (COORDINATOR, "kvhive", of_coordinator),
            (NODE, NODE, of_node),
        ] {
            for (name, address) in ports {
                let of_service = list(&built.one("Service", service)["spec"]["ports"]);
                let of_service = of_service.iter().find(|port| port["name"] == name).expect("it is served");
                assert!(address.ip().is_unspecified(), "{}: {address} is one pod's own", built.name);
                assert_eq!(container_port(container(&built, set), name), u64::from(address.port()));
                assert_eq!(of_service["port"], address.port(), "{}: {service} {name}", built.name);
                assert_eq!(of_service["targetPort"], name, "{}: {service}", built.name);
            }
        }
        // What runs before a node starts and when it ends asks the coordinators.
        let scheme = if built.name == ENCRYPTED { "https" } else { "http" };
        let asked = format!("{scheme}://kvhive.$(POD_NAMESPACE).svc:{}", coordinator.admin.port());
        for variables in [&container(&built, NODE)["env"], &first(&built)["env"]] {
            assert_eq!(variable(variables, "KVHIVE_ADMIN"), Some(&*asked), "{}", built.name);
        }
    }
}

#[test]
fn probes_ask_a_port_for_health_that_the_container_has() {
    for built in built() {
        for (set, port) in [(COORDINATOR, "admin"), (NODE, "metrics")] {
            let container = container(&built, set);
            for (probe, path) in
                [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
            {
                let get = &container[probe]["httpGet"];
                assert_eq!((word(&get["path"]), word(&get["port"])), (path, port), "{}: {set}", built.name);
                let scheme = (built.name == ENCRYPTED).then_some("HTTPS");
                assert_eq!(get["scheme"].as_str(), scheme, "{}: {set} {probe}", built.name);
            }
            container_port(container, port);
        }
    }
}

#[test]
fn certificates_are_where_every_process_looks_for_them_and_valid_for_every_host() {
    let Some(built) = build(ENCRYPTED) else { return };
    let in_tls = |file: &str| format!("/etc/kvhive/tls/{file}");
    let mounted = |container: &Value, set: &str| {
        let mounts = list(&container["volumeMounts"]);
        let mount =
            mounts.iter().find(|mount| mount["mountPath"] == "/etc/kvhive/tls").expect("it is mounted");
        let volumes = list(&built.one("StatefulSet", set)["spec"]["template"]["spec"]["volumes"]);
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("it is there");
        assert_eq!(volume["secret"]["secretName"], "kvhive-tls");
    };
    for set in [COORDINATOR, NODE] {
        let container = container(&built, set);
        mounted(container, set);
        let variables = list(&container["env"])
            .iter()
            .filter_map(|one| Some((word(&one["name"]).to_owned(), one["value"].as_str()?.to_owned())));
        // As the process reads it.
        let config = ClusterConfig::from_toml(built.cluster_toml(), variables).expect("it is right");
        let tls = config.tls.clone().expect("it has certificates");
        assert_eq!([tls.certificate, tls.key, tls.authorities], ["tls.crt", "tls.key", "ca.crt"].map(in_tls));
    }
    mounted(first(&built), NODE);
    for variables in [&container(&built, NODE)["env"], &first(&built)["env"]] {
        assert_eq!(variable(variables, "KVHIVE_CA"), Some(&*in_tls("ca.crt")));
    }
    for monitor in built.of_kind("PodMonitor") {
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(
            (&endpoint["scheme"], &endpoint["tlsConfig"]["serverName"]),
            (&"https".into(), &"kvhive.kvhive.svc".into())
        );
    }
    // What the component says of making certificates is what the hosts need.
    let temp = tempfile::tempdir().expect("a folder");
    let dir = temp.path().join("tls").display().to_string();
    let told = text("cluster-configs/kubernetes/components/tls/kustomization.yaml");
    let line = told.lines().find_map(|line| line.strip_prefix("#   kvhive tls init --dir tls --host '"));
    let names = line.and_then(|line| line.strip_suffix('\'')).expect("it says how");
    run(&["tls", "init", "--dir", &dir, "--host", names]).expect("they are hosts");
    let hosts = built.cluster().coordinators.iter().map(|one| one.host.clone()).collect::<Vec<_>>();
    for host in hosts.into_iter().chain([built.node(7).host, format!("kvhive.{NAMESPACE}.svc")]) {
        let file = |name: &str| temp.path().join("tls").join(name);
        let files = TlsFiles {
            certificate: file("kvhive.kvhive.svc.pem"),
            key: file("kvhive.kvhive.svc.key"),
            authorities: file("authority.pem"),
            host: Some(host),
        };
        Tls::load(files).expect("it is valid for it");
    }
}

#[test]
fn a_pod_has_the_memory_the_time_and_the_folders_that_its_process_needs() {
    /// What connections, threads and indices take besides the arenas.
    const BESIDES: u64 = 128 << 20;
    for built in built() {
        let node = built.node(0);
        let pod = &built.one("StatefulSet", NODE)["spec"]["template"]["spec"];
        let limit = bytes(&container(&built, NODE)["resources"]["limits"]["memory"]);
        let needed = node.total_memory().0 + node.max_inflight.0 + BESIDES;
        assert!(limit >= needed, "{}: a node needs {needed} bytes and may have {limit}", built.name);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
        assert!(grace >= Process::Node(&node).kill_after().as_secs(), "{}", built.name);

        let config = built.cluster();
        let pod = &built.one("StatefulSet", COORDINATOR)["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
        let mounts = list(&container(&built, COORDINATOR)["volumeMounts"]);
        let is_mounted = |path: &str| {
            let inside = |mount: &&Value| path.starts_with(word(&mount["mountPath"]));
            mounts.iter().filter(inside).map(|mount| word(&mount["name"])).next()
        };
        for coordinator in &config.coordinators {
            assert!(grace >= Process::Coordinator(coordinator).kill_after().as_secs(), "{}", built.name);
            assert_eq!(is_mounted(&coordinator.data_dir), Some("data"), "{}", built.name);
        }
        let token = config.cluster.token.file().expect("a file");
        assert_eq!(is_mounted(token), Some("token"), "{}", built.name);
        let claims = list(&built.one("StatefulSet", COORDINATOR)["spec"]["volumeClaimTemplates"]);
        assert_eq!(claims[0]["metadata"]["name"], "data");
    }
}

#[test]
fn pods_of_nodes_see_gpus_where_their_device_tiers_are_those_and_take_none_from_engines() {
    for built in built() {
        let pod = &built.one("StatefulSet", NODE)["spec"]["template"]["spec"];
        let node = container(&built, NODE);
        let seen = variable(&node["env"], "NVIDIA_VISIBLE_DEVICES");
        let wants = built.node(0).devices.iter().any(|device| device.kind.as_str() == "cuda");
        assert_eq!(wants, built.name == GPUS, "{}", built.name);
        assert_eq!(
            (seen, pod["runtimeClassName"].as_str()),
            (wants.then_some("all"), wants.then_some("nvidia"))
        );
        assert!(!node["resources"].to_string().contains("gpu"), "{}", built.name);
    }
}

#[test]
fn what_selects_pods_selects_those_that_it_is_for() {
    for built in built() {
        let labels = |set: &str| &built.one("StatefulSet", set)["spec"]["template"]["metadata"]["labels"];
        let selects = |selector: &Value, set: &str| {
            let wanted = selector.as_object().expect("labels");
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels(set)[key] == *value)
        };
        for (name, set, other) in
            [(COORDINATOR, COORDINATOR, NODE), (NODE, NODE, COORDINATOR), ("kvhive", COORDINATOR, NODE)]
        {
            let mut selectors = vec![&built.one("Service", name)["spec"]["selector"]];
            if name == set {
                selectors.push(&built.one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"]);
                selectors.push(&built.one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"]);
                selectors.push(&built.one("StatefulSet", name)["spec"]["selector"]["matchLabels"]);
            }
            let monitors = built.of_kind("PodMonitor").filter(|monitor| monitor["metadata"]["name"] == name);
            selectors.extend(monitors.map(|monitor| &monitor["spec"]["selector"]["matchLabels"]));
            for selector in selectors {
                assert!(
                    selects(selector, set) && !selects(selector, other),
                    "{}: {name} {selector}",
                    built.name
                );
            }
        }
        for policy in built.of_kind("NetworkPolicy") {
            let set = word(&policy["metadata"]["name"]);
            for rule in list(&policy["spec"]["ingress"]) {
                for port in list(&rule["ports"]) {
                    container_port(container(&built, set), word(&port["port"]));
                }
            }
        }
        for monitor in built.of_kind("PodMonitor") {
            for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
                container_port(
                    container(&built, word(&monitor["metadata"]["name"])),
                    word(&endpoint["port"]),
                );
            }
        }
    }
}

#[test]
fn the_autoscaler_may_scale_the_set_of_nodes_and_do_nothing_else() {
    for built in built() {
        let Some(follower) = built.of_kind("Deployment").next() else {
            assert!(["base", "overlays/small", GPUS].contains(&built.name), "{}", built.name);
            continue;
        };
        assert_eq!(word(&follower["metadata"]["name"]), FOLLOWER);
        let pod = &follower["spec"]["template"];
        let selected = follower["spec"]["selector"]["matchLabels"].as_object().expect("labels");
        assert!(selected.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value), "{selected:?}");
        assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "kvhive", "coordinators let it in");
        assert_eq!(word(&pod["spec"]["serviceAccountName"]), FOLLOWER);
        let binding = built.one("RoleBinding", FOLLOWER);
        assert_eq!(word(&binding["roleRef"]["name"]), FOLLOWER);
        assert_eq!(binding["subjects"][0], built_account(&built));
        let rules = list(&built.one("Role", FOLLOWER)["rules"]).iter().map(|rule| {
            assert_eq!(rule["resourceNames"], serde_json::json!([NODE]), "{}: {rule}", built.name);
            (rule["apiGroups"].to_string(), rule["resources"].to_string(), rule["verbs"].to_string())
        });
        let rule =
            |resource: &str, verbs: &str| (r#"["apps"]"#.to_owned(), resource.to_owned(), verbs.to_owned());
        let needed = [
            rule(r#"["statefulsets"]"#, r#"["get"]"#),
            rule(r#"["statefulsets/scale"]"#, r#"["get","patch"]"#),
        ];
        assert_eq!(rules.collect::<Vec<_>>(), needed, "{}", built.name);

        let own = &pod["spec"]["containers"][0];
        assert_eq!(own["image"], container(&built, NODE)["image"], "{}", built.name);
        let told = container(&built, NODE);
        for name in ["KVHIVE_ADMIN", "KVHIVE_TOKEN_FILE", "KVHIVE_CA"] {
            assert_eq!(variable(&own["env"], name), variable(&told["env"], name), "{}: {name}", built.name);
        }
        for mount in list(&own["volumeMounts"]) {
            assert!(list(&told["volumeMounts"]).contains(mount), "{}: {mount}", built.name);
        }
        // The command takes its words: it looks for the Kubernetes that is not here.
        let words = expanded(own, FOLLOWER);
        assert!(words.contains(&NODE.to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let nowhere =
            [("KUBECONFIG", "/nowhere"), ("KVHIVE_ADMIN", "http://127.0.0.1:9"), ("KVHIVE_TOKEN", "a token")];
        let said = format!("{:#}", run_with(&words, &nowhere).expect_err("there is no Kubernetes"));
        assert!(said.contains("says where Kubernetes is"), "{}: {said}", built.name);
    }
}

/// The account that the autoscaler's pod has, as a binding names it.
fn built_account(built: &Built) -> Value {
    let account = built.one("ServiceAccount", FOLLOWER);
    serde_json::json!({"kind": "ServiceAccount", "name": FOLLOWER, "namespace": account["metadata"]["namespace"]})
}

#[test]
fn no_container_is_root_writes_outside_its_volumes_or_may_become_more() {
    for built in built() {
        for set in built.of_kind("StatefulSet").chain(built.of_kind("Deployment")) {
            let pod = &set["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{}", built.name);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{}", built.name);
            let asks_kubernetes = set["metadata"]["name"] == FOLLOWER;
            assert_eq!(pod["automountServiceAccountToken"], asks_kubernetes, "{}", built.name);
            let containers = list(&pod["containers"]).iter().chain(list(&pod["initContainers"]));
            for container in containers {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{}", built.name);
                assert_eq!(security["allowPrivilegeEscalation"], false, "{}", built.name);
                assert_eq!(security["capabilities"]["drop"][0], "ALL", "{}", built.name);
                assert!(container["resources"]["limits"]["memory"].is_string(), "{}", built.name);
            }
        }
    }
}

#[test]
fn the_schemas_of_kubernetes_take_it() {
    for built in built() {
        // Kinds of the Prometheus operator are not Kubernetes' own.
        let is_native =
            |document: &&Value| !word(&document["apiVersion"]).starts_with("monitoring.coreos.com/");
        let native = built.documents.iter().filter(is_native);
        let Ok(mut child) = Command::new("kubernetes-validate")
            .args(["--strict", "--quiet", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIPPED: kubernetes-validate is not here (pip install kubernetes-validate)");
            return;
        };
        // JSON is YAML.
        let native: Vec<String> = native.map(Value::to_string).collect();
        let mut input = child.stdin.take().expect("it was asked for");
        input.write_all(native.join("\n---\n").as_bytes()).expect("it reads");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {said}", built.name);
    }
}
