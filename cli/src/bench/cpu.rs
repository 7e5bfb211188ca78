//! CPU time of processes, user and system, as the kernel accounts it.

use anyhow::{Context, Result};
use std::time::Duration;

/// Returns the CPU time that the process has used so far, all its threads together.
///
/// # Errors
/// When there is no such process.
pub(crate) fn of_process(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name in parentheses may hold anything; fields are counted after it. utime and stime are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|at| {
            fields.get(*at).and_then(|field| field.parse::<u64>().ok()).context("unreadable /proc stat")
        })
        .sum::<Result<u64>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Returns the CPU time of several processes together.
///
/// # Errors
/// When one of them is gone.
pub(crate) fn of_processes(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| of_process(*pid)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_grows_when_we_work() {
        let before = of_process(std::process::id()).expect("this process lives");
        let mut word = 1u64;
        loop {
            for _ in 0..1_000_000 {
                word = std::hint::black_box(word.wrapping_mul(31) + 7);
            }
            if of_process(std::process::id()).expect("this process lives") > before {
                break;
            }
        }
        assert!(of_process(u32::MAX).is_err());
    }
}
