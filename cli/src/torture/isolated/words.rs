//! Commands of the system, run to their end.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it cannot be run or fails.
pub(super) fn run(words: &[&str]) -> Result<String> {
    let (program, rest) = words.split_first().context("no command")?;
    let output = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command of which it does not matter whether it fails: what it removes may be gone.
pub(super) fn try_run(words: &[&str]) {
    if let Err(error) = run(words) {
        tracing::debug!(error = format!("{error:#}"), "left as it is");
    }
}
