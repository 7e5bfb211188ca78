//! How a process of a local cluster is begun and ended one by one: by its command alone, or in a network or with a clock of its own.

use super::{Cluster, RunningProcess, end};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};

/// How processes of a cluster are begun that are begun otherwise than by their command alone, by their names.
pub(crate) type Begins = BTreeMap<String, Begin>;

/// How one process is begun.
#[derive(Clone, Default, Debug)]
pub(crate) struct Begin {
    /// Words before its command, which have to end by running that in their own place.
    pub(crate) words: Vec<String>,
}

impl Begin {
    /// Returns the command that begins it.
    pub(super) fn command(&self, own: &Path) -> Command {
        match self.words.split_first() {
            None => Command::new(own),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(own);
                command
            }
        }
    }
}

impl Cluster {
    /// Returns the process id of what runs under this name.
    pub(crate) fn pid(&self, id: &str) -> Option<u32> {
        self.children.iter().find(|(process, _)| process.id == id).map(|(process, _)| process.pid)
    }

    /// Ends a process in order, as a service manager does.
    ///
    /// # Errors
    /// When there is no process of this id.
    pub(crate) fn end(&mut self, id: &str) -> Result<()> {
        let one = self.take(id)?;
        end(vec![one], &self.config);
        Ok(())
    }

    /// Has a process be begun in another way from its next start on.
    pub(crate) fn begin_as(&mut self, id: &str, begin: Begin) {
        self.begins.insert(id.to_owned(), begin);
    }

    /// Returns how a process is begun.
    pub(crate) fn begin(&self, id: &str) -> Begin {
        self.begins.get(id).cloned().unwrap_or_default()
    }

    /// Takes a process out of those that are looked after.
    pub(super) fn take(&mut self, id: &str) -> Result<(RunningProcess, Child)> {
        let at = self.children.iter().position(|(process, _)| process.id == id);
        Ok(self.children.remove(at.with_context(|| format!("{id} does not run"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_process_is_begun_by_the_words_before_its_command() {
        let own = Path::new("/bin/kvhive");
        assert_eq!(Begin::default().command(own).get_program(), OsStr::new("/bin/kvhive"));
        let begin = Begin { words: ["ip", "netns", "exec", "a"].map(str::to_owned).into() };
        let command = begin.command(own);
        assert_eq!(command.get_program(), OsStr::new("ip"));
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["netns", "exec", "a", "/bin/kvhive"]);
    }
}
