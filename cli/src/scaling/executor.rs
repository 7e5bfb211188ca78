//! What starts and ends processes: the supervisor of a local cluster, or any program that knows how (Slurm's own commands, a cloud's).
//! For Kubernetes see `kubernetes`. Nobody leaves before it is empty: that is seen to before these are asked.

use super::{Member, Plan};
use crate::cluster::local;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Starts and ends members' processes.
pub(crate) trait Executor: fmt::Display {
    /// Plans the way to `size` members.
    ///
    /// # Errors
    /// When there is none. Whether fewer than `floor` are one is the executor's to say.
    fn plan(&mut self, members: &[Member], size: usize, floor: usize) -> Result<Plan> {
        let _ = floor;
        Plan::of(members, size)
    }

    /// Finds out whether [`Executor::scale`] would be allowed, before anybody is emptied for it.
    ///
    /// # Errors
    /// When it is known that it would not.
    fn check(&mut self, plan: &Plan) -> Result<()> {
        let _ = plan;
        Ok(())
    }

    /// Has those started that come and those ended that leave. Need not wait for either.
    ///
    /// # Errors
    /// When it cannot be done.
    fn scale(&mut self, plan: &Plan) -> Result<()>;

    /// Says what [`Executor::scale`] would do.
    fn would(&self, plan: &Plan) -> Vec<String>;

    /// Says where to look when members do not come or go.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// The supervisor of the local cluster in a folder.
pub(crate) struct Local {
    pub(crate) dir: PathBuf,
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the supervisor of {}", self.dir.display())
    }
}

impl Executor for Local {
    fn scale(&mut self, plan: &Plan) -> Result<()> {
        local::Running::load(&self.dir)?;
        local::wish(&self.dir, plan.stay.iter().chain(&plan.start).cloned().collect())
    }

    fn would(&self, plan: &Plan) -> Vec<String> {
        let start = plan.start.iter().map(|name| format!("start {name}"));
        start.chain(plan.leave.iter().map(|name| format!("end {name}"))).collect()
    }
}

/// A program and its words. `{count}` stands for the new size, `{name}` for one that comes or leaves: with it the program runs
/// once for each. No shell reads them.
pub(crate) struct Program {
    pub(crate) words: Vec<String>,
    pub(crate) limit: Duration,
}

impl Program {
    fn runs(&self, plan: &Plan) -> Vec<Vec<String>> {
        let filled = |name: &str| {
            let fill =
                |word: &String| word.replace("{count}", &plan.size.to_string()).replace("{name}", name);
            self.words.iter().map(fill).collect()
        };
        if self.words.iter().any(|word| word.contains("{name}")) {
            plan.start.iter().chain(&plan.leave).map(|name| filled(name)).collect()
        } else {
            vec![filled("")]
        }
    }

    fn run(&self, words: &[String]) -> Result<()> {
        let (program, arguments) = words.split_first().context("no program is named")?;
        let told = words.join(" ");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start `{told}`"))?;
        let begun = Instant::now();
        loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("`{told}` failed ({status}): the size is as it was"),
                None if begun.elapsed() > self.limit => {
                    // Fails only when it has ended meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                    bail!("`{told}` did not end within {:?} and was killed", self.limit);
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.words.join(" "))
    }
}

impl Executor for Program {
    fn scale(&mut self, plan: &Plan) -> Result<()> {
        self.runs(plan).iter().try_for_each(|words| self.run(words))
    }

    fn would(&self, plan: &Plan) -> Vec<String> {
        self.runs(plan).iter().map(|words| format!("run `{}`", words.join(" "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Plan {
            members: 3,
            size: 2,
            stay: names(&["n-0", "n-1"]),
            start: Vec::new(),
            leave: names(&["n-2; touch x"]),
            undrain: Vec::new(),
            gone: Vec::new(),
            replicas: None,
        }
    }

    fn program(words: &[&str], limit: Duration) -> Program {
        Program { words: words.iter().map(|word| (*word).to_owned()).collect(), limit }
    }

    #[test]
    fn a_program_gets_the_size_or_each_name_as_one_word() {
        let by_count = program(&["scale", "--replicas={count}"], Duration::ZERO);
        assert_eq!(by_count.runs(&plan()), [["scale", "--replicas=2"]]);
        let by_name = program(&["scancel", "{name}"], Duration::ZERO);
        assert_eq!(by_name.runs(&plan()), [["scancel", "n-2; touch x"]], "no shell parts it");
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_told_of() {
        let limit = Duration::from_secs(60);
        program(&["true"], limit).scale(&plan()).expect("it does nothing");
        let failed = program(&["false", "{count}"], limit).scale(&plan()).expect_err("it fails");
        assert_eq!(failed.to_string(), "`false 2` failed (exit status: 1): the size is as it was");
        let hung = program(&["sleep", "600"], Duration::ZERO).scale(&plan()).expect_err("it hangs");
        assert!(hung.to_string().ends_with("and was killed"), "{hung}");
        assert!(program(&["/nowhere/at/all"], limit).scale(&plan()).is_err());
    }
}
