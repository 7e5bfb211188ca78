//! The Grafana dashboard and the Prometheus alerts: every name in them is one that a real node or coordinator exports, every
//! expression is PromQL, every alert has its chapter in the runbook.

use kvhive_tests::Cluster;
use kvhive_tests::files::{file, list, text, word, yaml};
use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// An expression and where it stands.
struct Expression {
    place: String,
    text: String,
}

fn alerts() -> Vec<Value> {
    let rules = yaml("cluster-configs/observability/alerts.yaml");
    list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

fn panels() -> Vec<Value> {
    let dashboard: Value =
        serde_json::from_str(&text("cluster-configs/observability/dashboard.json")).expect("JSON");
    list(&dashboard["panels"]).to_vec()
}

/// Every expression of both files, with Grafana's variables put in.
fn expressions() -> Vec<Expression> {
    let of_alerts = alerts().into_iter().map(|alert| Expression {
        place: format!("alert {}", word(&alert["alert"])),
        text: word(&alert["expr"]).to_owned(),
    });
    let of_panels = panels().into_iter().flat_map(|panel| {
        let place = format!("panel {:?}", word(&panel["title"]));
        let targets = list(&panel["targets"]).to_vec().into_iter();
        targets.map(move |target| Expression {
            place: place.clone(),
            text: word(&target["expr"]).replace("$__rate_interval", "1m").replace("$instance", ".*"),
        })
    });
    of_alerts.chain(of_panels).collect()
}

/// Names of series, and the values that each of their labels has.
type Series = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Reads Prometheus' text format. Values of labels here hold no commas and no quotes.
fn read(page: &str, series: &mut Series) {
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a value follows a name"));
        let labels = series.entry(name.to_owned()).or_default();
        let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
        for label in inside.0.split(',') {
            let (key, value) = label.split_once('=').expect("a label has a value");
            labels.entry(key.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
}

/// Names on a page of which it does not say what they are.
fn undescribed(page: &str) -> Vec<&str> {
    let described: BTreeSet<&str> = page.lines().filter_map(|line| after(line, "# HELP ")).collect();
    let typed = page.lines().filter_map(|line| after(line, "# TYPE "));
    typed.filter(|name| !described.contains(name)).collect()
}

fn after<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    line.strip_prefix(kind)?.split(' ').next()
}

/// What a cluster exports that has been used.
fn exported() -> Series {
    let cluster = Cluster::start(&[
        "--tls",
        "--coordinators",
        "1",
        "--nodes",
        "2",
        "--device-memory",
        "4MiB",
        "--disk",
        "8MiB",
    ]);
    cluster.json(&["replay", "--requests", "50"]).expect("it serves");
    let config = fs::read_to_string(Path::new(cluster.dir()).join("cluster.toml")).expect("it has a file");
    let config = kvhive_config::ClusterConfig::from_toml(&config, []).expect("it is right");
    let mut series = Series::new();
    for process in config.processes() {
        let page = cluster.get(&process.health_address(), "/metrics");
        assert_eq!(undescribed(&page), Vec::<&str>::new(), "every figure says what it is");
        read(&page, &mut series);
    }
    series
}

/// Labels that Prometheus puts on what it has read, and the one series of its own.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];
const UP: &str = "up";

struct Names<'a> {
    series: &'a Series,
    place: &'a str,
    found: usize,
    wrong: Vec<String>,
}

impl Names<'_> {
    fn check(&mut self, selector: &VectorSelector) {
        self.found += 1;
        let name = selector.name.as_deref().unwrap_or_default();
        if name == UP {
            return;
        }
        let Some(labels) = self.series.get(name) else {
            self.wrong.push(format!("{}: nobody exports {name:?}", self.place));
            return;
        };
        for matcher in &selector.matchers.matchers {
            if OF_PROMETHEUS.contains(&matcher.name.as_str()) {
                continue;
            }
            let has = |value: &String| match &matcher.op {
                MatchOp::Equal => *value == matcher.value,
                MatchOp::NotEqual => *value != matcher.value,
                MatchOp::Re(pattern) => pattern.is_match(value),
                MatchOp::NotRe(pattern) => !pattern.is_match(value),
            };
            if !labels.get(&matcher.name).is_some_and(|values| values.iter().any(has)) {
                self.wrong.push(format!("{}: {name} has nothing with {matcher}", self.place));
            }
        }
    }

    /// Checks that a sum or a quantile is by labels that one of the series in it has.
    fn check_grouping(&mut self, aggregate: &parser::AggregateExpr) {
        let Some(parser::LabelModifier::Include(labels)) = &aggregate.modifier else { return };
        let mut inside = Inside(Vec::new());
        let Ok(_) = walk_expr(&mut inside, &aggregate.expr);
        for label in labels.labels.iter().filter(|label| !OF_PROMETHEUS.contains(&label.as_str())) {
            let has = |name: &String| self.series.get(name).is_some_and(|labels| labels.contains_key(label));
            if !inside.0.iter().any(has) {
                self.wrong.push(format!("{}: none of {:?} has the label {label}", self.place, inside.0));
            }
        }
    }
}

impl ExprVisitor for Names<'_> {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Self::Error> {
        match expression {
            Expr::VectorSelector(selector) => self.check(selector),
            Expr::MatrixSelector(matrix) => self.check(&matrix.vs),
            Expr::Aggregate(aggregate) => self.check_grouping(aggregate),
            _ => {}
        }
        Ok(true)
    }
}

/// The names of the series in an expression.
struct Inside(Vec<String>);

impl ExprVisitor for Inside {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Self::Error> {
        match expression {
            Expr::VectorSelector(selector) => self.0.extend(selector.name.clone()),
            Expr::MatrixSelector(matrix) => self.0.extend(matrix.vs.name.clone()),
            _ => {}
        }
        Ok(true)
    }
}

fn wrong_in(expression: &Expression, series: &Series) -> Vec<String> {
    let Expression { place, text } = expression;
    let parsed = match parser::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => return vec![format!("{place}: {text} is no PromQL: {error}")],
    };
    let mut names = Names { series, place, found: 0, wrong: Vec::new() };
    let Ok(_) = walk_expr(&mut names, &parsed);
    if names.found == 0 {
        names.wrong.push(format!("{place}: {text} asks for nothing"));
    }
    names.wrong
}

#[test]
fn dashboard_and_alerts_ask_for_what_a_cluster_exports() {
    let series = exported();
    let wrong: Vec<String> =
        expressions().iter().flat_map(|expression| wrong_in(expression, &series)).collect();
    assert_eq!(wrong, [""; 0], "\n{}", wrong.join("\n"));
}

#[test]
fn a_name_a_label_or_a_value_that_nobody_exports_is_found() {
    let mut series = Series::new();
    read("# TYPE a counter\na{verb=\"fetch\",le=\"+Inf\"} 1\nb 2\n", &mut series);
    let wrong =
        |text: &str| wrong_in(&Expression { place: "x".to_owned(), text: text.to_owned() }, &series).len();
    assert_eq!(wrong("sum by (verb, instance) (rate(a{verb=~\"f.*\",job=\"j\"}[5m])) / b"), 0);
    assert_eq!(wrong("c > 0 or b"), 1);
    assert_eq!(wrong("a{verb=\"store\"}"), 1);
    assert_eq!(wrong("b{verb=\"fetch\"}"), 1);
    assert_eq!(wrong("sum by (verb) (b)"), 1);
    assert_eq!(wrong("rate(a)"), 1);
    assert_eq!(wrong("a +"), 1);
    assert_eq!(wrong("1 + 1"), 1);
}

#[test]
fn every_alert_has_its_chapter_in_the_runbook_and_every_chapter_its_alert() {
    let runbook = text("docs/runbook.md");
    let chapters: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## Kvhive")).collect();
    let alerts = alerts();
    let names: Vec<&str> = alerts.iter().map(|alert| word(&alert["alert"])).collect();
    let of_alerts: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("Kvhive")).collect();
    assert_eq!(chapters, of_alerts, "the runbook has the alerts' order");
    for alert in &alerts {
        let name = word(&alert["alert"]);
        let notes = &alert["annotations"];
        assert_eq!(word(&notes["runbook"]), format!("docs/runbook.md#{}", name.to_lowercase()));
        assert!(!word(&notes["summary"]).is_empty() && !word(&notes["description"]).is_empty(), "{name}");
        assert!(["critical", "warning"].contains(&word(&alert["labels"]["severity"])), "{name}");
    }
}

#[test]
fn the_operators_rules_are_those_of_alerts_yaml() {
    let alerts = text("cluster-configs/observability/alerts.yaml");
    let groups = &alerts[alerts.find("groups:").expect("it has groups")..];
    let head = "# alerts.yaml for the Prometheus operator: made of it by UPDATE=1 cargo test -p kvhive-tests --test observability.\n\
                apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: kvhive\nspec:\n";
    let lines =
        groups.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    let wanted = format!("{head}{}", lines.collect::<String>());
    let rule = "cluster-configs/observability/prometheus-rule.yaml";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file(rule), &wanted).expect("the repository may be written");
    }
    assert_eq!(text(rule), wanted, "run: UPDATE=1 cargo test -p kvhive-tests --test observability");
    assert_eq!(yaml(rule)["spec"]["groups"], yaml("cluster-configs/observability/alerts.yaml")["groups"]);
}

#[test]
fn panels_stand_beside_each_other_and_name_what_they_show() {
    let panels = panels();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in &panels {
        let title = word(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title}: its id is there twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        for x in at("x")..at("x") + at("w") {
            assert!(x < 24, "{title} ends beyond the page");
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        let targets = list(&panel["targets"]);
        assert!(targets.is_empty() == (word(&panel["type"]) == "row"), "{title}");
        for target in targets.iter().filter(|_| targets.len() > 1) {
            assert!(!word(&target["legendFormat"]).is_empty(), "{title}: which line is which?");
        }
    }
}
