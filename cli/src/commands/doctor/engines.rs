//! Engines beside kvhive: which of their packages an interpreter has, and whether kvhive's own fits this program.

use super::finding::Finding;
use serde_json::Value;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ENGINE: &str = "engine";
/// The interpreter that is looked at where none is named.
const USUAL: &str = "python3";
/// How long it may take to answer, and how often that is looked at.
const LIMIT: Duration = Duration::from_secs(10);
const LOOKS_EVERY: Duration = Duration::from_millis(10);
/// What asks the interpreter, without importing anything.
const ASK: &str = "import importlib.metadata as m, json, sys
names = ('kvhive', 'vllm', 'sglang', 'lmcache', 'torch', 'transformers', 'numpy')
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
print(json.dumps({'python': sys.version.split()[0], **{name: version(name) for name in names}}))";

/// Looks at an interpreter's packages; `None` looks at the usual one, which need not be there.
pub(super) fn look(python: Option<&Path>) -> Vec<Finding> {
    let program = python.unwrap_or(Path::new(USUAL));
    let what = program.display().to_string();
    match (ask(program), python) {
        (Ok(said), _) => judge(&what, &said),
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            vec![Finding::holds(ENGINE, what, "there is none: no engine in Python here")]
        }
        (Err(error), _) => {
            let advice = "name the interpreter of the engines by --python";
            vec![Finding::warns(ENGINE, what, error.to_string(), advice)]
        }
    }
}

/// Asks an interpreter, for so long and no longer.
fn ask(program: &Path) -> io::Result<Value> {
    let mut asked = Command::new(program);
    let asked = asked.args(["-c", ASK]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut asked = asked.spawn()?;
    let begun = Instant::now();
    while asked.try_wait()?.is_none() {
        if begun.elapsed() > LIMIT {
            asked.kill()?;
            asked.wait()?;
            return Err(io::Error::other(format!("it has not answered in {} s", LIMIT.as_secs())));
        }
        std::thread::sleep(LOOKS_EVERY);
    }
    let output = asked.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // What it runs at its start may have its own to say before.
    let said = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    said.ok_or_else(|| {
        io::Error::other(format!("it ended with {} and said nothing of its packages", output.status))
    })
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
    fn an_interpreter_that_was_named_must_answer() {
        for program in ["/nowhere/python3", "/bin/true", "/bin/echo"] {
            let findings = look(Some(Path::new(program)));
            assert_eq!((findings.len(), findings[0].state), (1, State::Warns), "{program}");
        }
    }
}
