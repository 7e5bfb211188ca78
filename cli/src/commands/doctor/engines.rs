//! Engines beside kvhive: which of their packages an interpreter has, whether kvhive's own fits this program, and whether its adapters
//! take those engines. That they say themselves; nothing of it is known here.

use super::finding::Finding;
use super::host::Nccl;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ENGINE: &str = "engine";
/// The interpreter that is looked at where none is named.
const USUAL: &str = "python3";
/// How long it may take to answer, and how often that is looked at.
const LIMIT: Duration = Duration::from_secs(10);
const LOOKS_EVERY: Duration = Duration::from_millis(10);
/// What asks the interpreter, without importing a package: that may take long, and fail.
const ASK: &str = include_str!("packages.py");
/// Whom adapters are for.
const SERVED: [&str; 3] = ["vllm", "sglang", "lmcache"];

/// The interpreter of the engines, and what it has said.
pub(super) struct Interpreter {
    program: PathBuf,
    /// Whether an operator named it; the usual one need not be there.
    is_named: bool,
    said: io::Result<Value>,
}

impl Interpreter {
    /// Asks the one that is named, or else the usual one.
    pub(super) fn ask(named: Option<&Path>) -> Interpreter {
        let program = named.unwrap_or(Path::new(USUAL)).to_owned();
        Interpreter { said: ask(&program), program, is_named: named.is_some() }
    }

    /// Returns how it has NCCL.
    pub(super) fn nccl(&self) -> Nccl<'_> {
        let Ok(said) = &self.said else { return Nccl::default() };
        Nccl { brought: said["nccl"].as_str(), is_used: said["torch"].is_string() }
    }

    /// Looks at its packages.
    pub(super) fn look(&self) -> Vec<Finding> {
        let what = self.program.display().to_string();
        match &self.said {
            Ok(said) => judge(&what, said, self.is_named),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_named => {
                vec![Finding::holds(ENGINE, what, "there is none: no engine in Python here")]
            }
            Err(error) => {
                let advice = "name the interpreter of the engines by --python";
                let tell = if self.is_named { Finding::fails } else { Finding::warns };
                vec![tell(ENGINE, what, error.to_string(), advice)]
            }
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

/// Tells what it has. Whoever named it has engines there, of whatever kind: then the package is missed.
fn judge(what: &str, said: &Value, is_named: bool) -> Vec<Finding> {
    let version = |name: &str| said[name].as_str();
    let engines = ["vllm", "sglang", "lmcache", "torch", "transformers", "numpy"];
    let found = engines.into_iter().filter_map(|name| Some(format!("{name} {}", version(name)?)));
    let python = format!("Python {}", version("python").unwrap_or("?"));
    let all: Vec<String> = std::iter::once(python).chain(found).collect();
    let mut findings = vec![Finding::holds(ENGINE, what, all.join(", "))];
    let own = env!("CARGO_PKG_VERSION");
    let is_served = SERVED.into_iter().any(|name| version(name).is_some());
    findings.push(match version("kvhive") {
        Some(wheel) if wheel == own => Finding::holds(ENGINE, "package kvhive", wheel),
        Some(wheel) => Finding::warns(
            ENGINE,
            "package kvhive",
            format!("{wheel}, this program is {own}"),
            "install the wheel of the cluster's version: pip install --upgrade",
        ),
        None if is_served || is_named => Finding::warns(
            ENGINE,
            "package kvhive",
            "not installed",
            "engines here do not use the cluster: build the wheel and install it (docs/integrate/python.md)",
        ),
        None => Finding::holds(ENGINE, "package kvhive", "not installed"),
    });
    findings.extend(SERVED.into_iter().filter_map(|name| adapter(name, said)));
    findings
}

/// Tells whether kvhive's adapter takes the engine there; nothing where one of both is not there.
fn adapter(name: &str, said: &Value) -> Option<Finding> {
    let (what, version) = (format!("adapter for {name}"), said[name].as_str()?);
    Some(match said["adapters"].get(name)?.as_str() {
        None => Finding::holds(ENGINE, what, format!("works with {version}")),
        // No more than a warning: an engine is served as well by the adapter of what runs within it, LMCache.
        Some(refused) => Finding::warns(
            ENGINE,
            what,
            refused,
            format!(
                "an engine that names it does not start: install a version that it works with (docs/integrate/{name}.md)"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use serde_json::json;

    #[test]
    fn an_engine_without_the_package_or_with_another_version_is_told_so() {
        let states = |said: Value| -> Vec<State> {
            judge("python3", &said, false).iter().map(|one| one.state).collect()
        };
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(states(json!({"python": "3.12.1", "vllm": "0.32.0"})), [State::Holds, State::Warns]);
        assert_eq!(states(json!({"vllm": "0.32.0", "kvhive": own})), [State::Holds, State::Holds]);
        assert_eq!(states(json!({"kvhive": "0.0.1"})), [State::Holds, State::Warns]);
        assert_eq!(states(json!({"numpy": "2.0.0"})), [State::Holds, State::Holds]);
        assert_eq!(
            judge("p", &json!({"python": "3.12.1", "torch": "2.13"}), false)[0].found,
            "Python 3.12.1, torch 2.13"
        );
        assert_eq!(judge("p", &json!({"numpy": "2.0.0"}), true)[1].state, State::Warns, "it was named");
    }

    #[test]
    fn an_engine_that_its_adapter_refuses_is_told_in_the_adapters_words() {
        let own = env!("CARGO_PKG_VERSION");
        let said = json!({"vllm": "0.33.1", "sglang": "0.5.23", "kvhive": own, "adapters": {"vllm": "no", "sglang": null}});
        let told: Vec<_> =
            judge("python3", &said, false).into_iter().map(|one| (one.state, one.found)).skip(2).collect();
        let expected = [(State::Warns, "no".to_owned()), (State::Holds, "works with 0.5.23".to_owned())];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_interpreter_that_was_named_must_answer() {
        for program in ["/nowhere/python3", "/bin/true", "/bin/echo"] {
            let findings = Interpreter::ask(Some(Path::new(program))).look();
            assert_eq!((findings.len(), findings[0].state), (1, State::Fails), "{program}");
        }
    }
}
