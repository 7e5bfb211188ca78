//! Engines beside kvhive: which of their packages an interpreter has, and whether kvhive's own fits this program.

use super::finding::Finding;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const ENGINE: &str = "engine";
/// What asks the interpreter, without importing anything.
const ASK: &str = "import importlib.metadata as m, json, sys
names = ('kvhive', 'vllm', 'sglang', 'lmcache', 'torch', 'transformers', 'numpy')
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
print(json.dumps({'python': sys.version.split()[0], **{name: version(name) for name in names}}))";

/// Looks at an interpreter's packages.
pub(super) fn look(python: &Path) -> Vec<Finding> {
    let what = python.display().to_string();
    let asked = Command::new(python).args(["-c", ASK]).output();
    let answer = asked.ok().filter(|output| output.status.success());
    let said: Option<Value> = answer.and_then(|output| serde_json::from_slice(&output.stdout).ok());
    match said {
        Some(said) => judge(&what, &said),
        None => vec![Finding::holds(ENGINE, what, "there is none: no engine in Python here")],
    }
}

fn judge(what: &str, said: &Value) -> Vec<Finding> {
    let version = |name: &str| said[name].as_str();
    let engines = ["vllm", "sglang", "lmcache", "torch", "transformers", "numpy"];
    let found = engines.into_iter().filter_map(|name| Some(format!("{name} {}", version(name)?)));
    let python = format!("Python {}", version("python").unwrap_or("?"));
    let all: Vec<String> = std::iter::once(python).chain(found).collect();
    let mut findings = vec![Finding::holds(ENGINE, what, all.join(", "))];
    let own = env!("CARGO_PKG_VERSION");
    let is_served = ["vllm", "sglang", "lmcache"].into_iter().any(|name| version(name).is_some());
    findings.push(match version("kvhive") {
        Some(wheel) if wheel == own => Finding::holds(ENGINE, "package kvhive", wheel),
        Some(wheel) => Finding::warns(
            ENGINE,
            "package kvhive",
            format!("{wheel}, this program is {own}"),
            "install the wheel of the cluster's version: pip install --upgrade",
        ),
        None if is_served => Finding::warns(
            ENGINE,
            "package kvhive",
            "not installed",
            "engines here do not use the cluster: build the wheel and install it (docs/integrate/python.md)",
        ),
        None => Finding::holds(ENGINE, "package kvhive", "not installed"),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use serde_json::json;

    #[test]
    fn an_engine_without_the_package_or_with_another_version_is_told_so() {
        let states =
            |said: Value| -> Vec<State> { judge("python3", &said).iter().map(|one| one.state).collect() };
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(states(json!({"python": "3.12.1", "vllm": "0.32.0"})), [State::Holds, State::Warns]);
        assert_eq!(states(json!({"vllm": "0.32.0", "kvhive": own})), [State::Holds, State::Holds]);
        assert_eq!(states(json!({"kvhive": "0.0.1"})), [State::Holds, State::Warns]);
        assert_eq!(states(json!({"numpy": "2.0.0"})), [State::Holds, State::Holds]);
        assert_eq!(
            judge("p", &json!({"python": "3.12.1", "torch": "2.13"}))[0].found,
            "Python 3.12.1, torch 2.13"
        );
    }

    #[test]
    fn no_interpreter_is_no_failure() {
        let findings = look(Path::new("/nowhere/python3"));
        assert_eq!((findings.len(), findings[0].state), (1, State::Holds));
    }
}
